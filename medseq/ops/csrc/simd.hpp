// Fixed-width vectors for the CPU kernels: one lane per channel.
//
// Every kernel source is compiled once per instruction set, with MEDSEQ_ISA naming the namespace. All code that
// lands in such an object must have internal linkage or live in that namespace: an inline function shared between
// objects could be taken from the AVX-512 one and stop an older machine with an illegal instruction. Hence no
// standard-library templates here or in the kernels.
#pragma once

#include <stdint.h>
#include <string.h>

#ifndef MEDSEQ_ISA
#error "compile with -DMEDSEQ_ISA=<name>"
#endif
#ifndef MEDSEQ_VECTOR_BYTES
#define MEDSEQ_VECTOR_BYTES 32
#endif

#define MEDSEQ_MEMBER inline __attribute__((always_inline))
#define MEDSEQ_INLINE static MEDSEQ_MEMBER

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

template <class S> struct Simd;

template <> struct Simd<float> {
  typedef float V __attribute__((vector_size(MEDSEQ_VECTOR_BYTES)));
  typedef int32_t I __attribute__((vector_size(MEDSEQ_VECTOR_BYTES)));
};

template <> struct Simd<double> {
  typedef double V __attribute__((vector_size(MEDSEQ_VECTOR_BYTES)));
  typedef int64_t I __attribute__((vector_size(MEDSEQ_VECTOR_BYTES)));
};

template <class S> struct Lanes {
  static constexpr int count = MEDSEQ_VECTOR_BYTES / static_cast<int>(sizeof(S));
};

template <class S> MEDSEQ_INLINE typename Simd<S>::V splat(S x) { return x - typename Simd<S>::V{}; }

template <class V> MEDSEQ_INLINE V vmax(V a, V b) { return a > b ? a : b; }

// The first `lanes` of a vector; the others read as 0 and are never written.
template <class S> MEDSEQ_INLINE typename Simd<S>::V load(const S *p, int lanes) {
  typename Simd<S>::V x{};
  if (__builtin_expect(lanes == Lanes<S>::count, 1)) {
    memcpy(&x, p, sizeof(x));
  } else {
    for (int i = 0; i < lanes; ++i) x[i] = p[i];
  }
  return x;
}

template <class S> MEDSEQ_INLINE void store(S *p, typename Simd<S>::V x, int lanes) {
  if (__builtin_expect(lanes == Lanes<S>::count, 1)) {
    memcpy(p, &x, sizeof(x));
  } else {
    for (int i = 0; i < lanes; ++i) p[i] = x[i];
  }
}

// exp(x) for x < 80. Below the normal range the result is 0, so that no denormal number slows the loops. NaN stays NaN. x = n ln 2 + r with |r| <= ln 2 / 2, exp(x) = 2^n exp(r); adding
// and subtracting `magic` rounds to an integer, which -ffast-math would delete: never compile with it.
MEDSEQ_INLINE Simd<float>::V exp_bounded(Simd<float>::V x) {
  typedef Simd<float>::V V;
  typedef Simd<float>::I I;
  const float magic = 12582912.0f;
  const V lowest = splat(-87.0f);
  V z = x < lowest ? lowest : x;
  V n = (z * 1.44269504088896341f + magic) - magic;
  V r = z - n * 0.693145751953125f;
  r = r - n * 1.42860682030941723212e-6f;
  V p = r * splat(1.9841269841e-4f) + 1.3888888889e-3f;
  p = p * r + 8.3333333333e-3f;
  p = p * r + 4.1666666667e-2f;
  p = p * r + 1.6666666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  I bits = (__builtin_convertvector(n, I) + 127) << 23;
  V scale;
  memcpy(&scale, &bits, sizeof(scale));
  return x < lowest ? V{} : p * scale;
}

MEDSEQ_INLINE Simd<double>::V exp_bounded(Simd<double>::V x) {
  typedef Simd<double>::V V;
  typedef Simd<double>::I I;
  const double magic = 6755399441055744.0;
  const V lowest = splat(-700.0);
  V z = x < lowest ? lowest : x;
  V shifted = z * 1.44269504088896340736 + magic;
  V n = shifted - magic;
  V r = z - n * 0.693147180369123816490;
  r = r - n * 1.90821492927058770002e-10;
  const double inverse_factorial[] = {1.6059043836821613e-10, 2.0876756987868100e-09, 2.5052108385441720e-08,
                                      2.7557319223985888e-07, 2.7557319223985893e-06, 2.4801587301587302e-05,
                                      1.9841269841269841e-04, 1.3888888888888889e-03, 8.3333333333333332e-03,
                                      4.1666666666666664e-02, 1.6666666666666666e-01, 0.5, 1.0, 1.0};
  V p = splat(inverse_factorial[0]);
  for (int i = 1; i < 14; ++i) p = p * r + inverse_factorial[i];
  // The integer sits in the low bits of `shifted`; taking it from there needs no double -> int64 conversion,
  // which AVX2 lacks.
  I bits;
  memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 1023) << 52;
  V scale;
  memcpy(&scale, &bits, sizeof(scale));
  return x < lowest ? V{} : p * scale;
}

} // namespace
} // namespace MEDSEQ_ISA
} // namespace medseq
