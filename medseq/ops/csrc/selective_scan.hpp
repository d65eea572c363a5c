// Entry points of the selective scan's kernel; one copy per instruction set (see simd.hpp).
#pragma once

#include <stdint.h>

namespace medseq {

// An array (batch, channel, length) whose tokens are contiguous; strides in elements.
struct ScanRows {
  void *data;
  int64_t batch_stride, channel_stride;
};

// One floating type throughout. A, constant B and C: (channel, state); B, C: (batch, group, state, length); D and
// delta_bias: (channel,); initial_state: (batch, channel, state). Optional ones may be null.
struct SelectiveScanProblem {
  int64_t batch, channels, length, states, groups;
  int64_t parts; // of the channels of a group, going back only
  ScanRows u, delta, z;
  const void *A, *B, *C, *D, *delta_bias, *initial_state;
  bool constant_b, constant_c, softplus, reverse;
  int threads;
};

// The states before every 64th token, (batch, ceil(length / 64), channel, state), are kept for the way back.
struct SelectiveScanResult {
  ScanRows y;
  void *last_state, *checkpoints; // last_state: (batch, channel, state)
};

// u, delta, z as in the problem; gy and last_state (may be null) are the gradients that come in. What several parts of
// the work add to is written apart, so that sums do not depend on the number of threads: A, constant B and C
// (batch, channel, state); B, C (batch, group, part, state, length); D, delta_bias (batch, channel).
struct SelectiveScanGradient {
  ScanRows gy;
  const void *last_state, *checkpoints;
  ScanRows u, delta, z;
  void *A, *B, *C, *D, *delta_bias, *initial_state;
};

// 0, or 1 when memory ran out.
typedef int (*SelectiveScanForward)(const SelectiveScanProblem &, const SelectiveScanResult &);
typedef int (*SelectiveScanBackward)(const SelectiveScanProblem &, const SelectiveScanGradient &);

// The kernels' own exponential alone, for measuring: y = 2^x, |x| <= 125.
typedef void (*Exp2)(int64_t count, const void *x, void *y);

#define MEDSEQ_DECLARE_SELECTIVE_SCAN(isa)                                                                             \
  namespace isa {                                                                                                      \
  int selective_scan_forward_f32(const SelectiveScanProblem &, const SelectiveScanResult &);                           \
  int selective_scan_forward_f64(const SelectiveScanProblem &, const SelectiveScanResult &);                           \
  int selective_scan_backward_f32(const SelectiveScanProblem &, const SelectiveScanGradient &);                        \
  int selective_scan_backward_f64(const SelectiveScanProblem &, const SelectiveScanGradient &);                        \
  void exp2_f32(int64_t, const void *, void *);                                                                        \
  void exp2_f64(int64_t, const void *, void *);                                                                        \
  }

MEDSEQ_DECLARE_SELECTIVE_SCAN(baseline)
MEDSEQ_DECLARE_SELECTIVE_SCAN(avx2)
MEDSEQ_DECLARE_SELECTIVE_SCAN(avx512)

} // namespace medseq
