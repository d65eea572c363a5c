// Entry points of the bidirectional WKV kernel; one copy per instruction set (see simd.hpp).
#pragma once

#include <stdint.h>

namespace medseq {

// Pointers to contiguous arrays of one floating type: w, u (channel,), the rest (batch, length, channel).
struct WkvProblem {
  int64_t batch, length, channels;
  const void *w, *u, *k, *v;
  bool chunk64; // false: the paper's formula; true: the original kernel's chunked form
  int threads;
};

// 0, or 1 when memory ran out. Backward writes gw, gu (channel,) and gk, gv (batch, length, channel).
typedef int (*WkvForward)(const WkvProblem &, void *y);
typedef int (*WkvBackward)(const WkvProblem &, const void *gy, void *gw, void *gu, void *gk, void *gv);

#define MEDSEQ_DECLARE_WKV(isa)                                                                                        \
  namespace isa {                                                                                                      \
  int wkv_forward_f32(const WkvProblem &, void *);                                                                     \
  int wkv_forward_f64(const WkvProblem &, void *);                                                                     \
  int wkv_backward_f32(const WkvProblem &, const void *, void *, void *, void *, void *);                              \
  int wkv_backward_f64(const WkvProblem &, const void *, void *, void *, void *, void *);                              \
  }

MEDSEQ_DECLARE_WKV(baseline)
MEDSEQ_DECLARE_WKV(avx2)
MEDSEQ_DECLARE_WKV(avx512)

} // namespace medseq
