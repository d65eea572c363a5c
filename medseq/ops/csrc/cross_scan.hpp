// Entry points of the fused cross scan; one copy per instruction set (see simd.hpp).
#pragma once

#include <stdint.h>

namespace medseq {

constexpr int kDirections = 4;

// Contiguous arrays of one floating type, all in the order of the image. x: (batch, channel, row, col); delta:
// (batch, 4, channel, row, col); A: (4 channel, state); B, C: (batch, 4, state, row, col); D, delta_bias: (4 channel,),
// may be null.
struct CrossScanProblem {
  int64_t batch, channels, rows, cols, states;
  int64_t parts;                                   // of the channels, going back only
  bool columns[kDirections], reverse[kDirections]; // down the columns? from the last token to the first?
  const void *x, *delta, *A, *B, *C, *D, *delta_bias;
  void *packed; // working memory, (2, batch, 4, tile, state, 64): B and C as the scans meet them
  bool softplus;
  int threads;
};

// checkpoints, may be null: the states before every tile of tokens, (batch, 4, tile, state, channel).
struct CrossScanResult {
  void *y, *checkpoints;
};

// x, delta, B, C as in the problem; A (batch, 4 channel, state), D and delta_bias (batch, 4 channel) by item, so
// that sums do not depend on the number of threads. `shares` is working memory, (2, batch, part, 4, tile, state, 64).
struct CrossScanGradient {
  const void *gy, *checkpoints;
  void *x, *delta, *A, *B, *C, *D, *delta_bias, *shares;
};

// 0, or 1 when memory ran out.
typedef int (*CrossScanForward)(const CrossScanProblem &, const CrossScanResult &);
typedef int (*CrossScanBackward)(const CrossScanProblem &, const CrossScanGradient &);

#define MEDSEQ_DECLARE_CROSS_SCAN(isa)                                                                                 \
  namespace isa {                                                                                                      \
  int cross_scan_forward_f32(const CrossScanProblem &, const CrossScanResult &);                                       \
  int cross_scan_forward_f64(const CrossScanProblem &, const CrossScanResult &);                                       \
  int cross_scan_backward_f32(const CrossScanProblem &, const CrossScanGradient &);                                    \
  int cross_scan_backward_f64(const CrossScanProblem &, const CrossScanGradient &);                                    \
  }

MEDSEQ_DECLARE_CROSS_SCAN(baseline)
MEDSEQ_DECLARE_CROSS_SCAN(avx2)
MEDSEQ_DECLARE_CROSS_SCAN(avx512)

} // namespace medseq
