// Entry points of the causal convolution's kernel; one copy per instruction set (see simd.hpp).
#pragma once

#include <stdint.h>

namespace medseq {

// Pointers to contiguous arrays of one floating type: x (batch, channel, length), weight (channel, width),
// bias (channel,) or null, state (batch, channel, width - 1) or null.
struct CausalConvProblem {
  int64_t batch, channels, length, width;
  const void *x, *weight, *bias, *state;
  bool silu;
  int threads;
};

// Where the gradients go, in the shapes of the inputs; bias and state may be null.
struct CausalConvGradient {
  const void *gy;
  void *x, *weight, *bias, *state;
};

// 0, or 1 when memory ran out.
typedef int (*CausalConvForward)(const CausalConvProblem &, void *y);
typedef int (*CausalConvBackward)(const CausalConvProblem &, const CausalConvGradient &);

#define MEDSEQ_DECLARE_CAUSAL_CONV1D(isa)                                                                              \
  namespace isa {                                                                                                      \
  int causal_conv1d_forward_f32(const CausalConvProblem &, void *);                                                    \
  int causal_conv1d_forward_f64(const CausalConvProblem &, void *);                                                    \
  int causal_conv1d_backward_f32(const CausalConvProblem &, const CausalConvGradient &);                               \
  int causal_conv1d_backward_f64(const CausalConvProblem &, const CausalConvGradient &);                               \
  }

MEDSEQ_DECLARE_CAUSAL_CONV1D(baseline)
MEDSEQ_DECLARE_CAUSAL_CONV1D(avx2)
MEDSEQ_DECLARE_CAUSAL_CONV1D(avx512)

} // namespace medseq
