// The functions of the selective scan's inner loops, one vector of channels at a time.
//
// All exponentials round by adding and subtracting a large number ("magic") and put the integer part into the exponent
// by an integer addition; the polynomials have p(0) = 1 exactly, so that a decay of zero keeps the state as it is.
// Polynomials in float32: least maximal relative error, float64: Taylor's.
#pragma once

#include "simd.hpp"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

// A state that fades away ends among the denormal numbers, where every operation is slow: they are zero while this lives.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : before(_mm_getcsr()) { _mm_setcsr(before | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before); }

 private:
  unsigned before;
#else
  FlushDenormals() {}
#endif
};

template <class S> struct Constants;

template <> struct Constants<float> {
  static constexpr float magic = 12582912.0f; // 1.5 * 2^23
  static constexpr int mantissa = 23;
  static constexpr float lowest = -127.0f, highest = 128.0f; // exp2 gives exactly 0 and infinity there
  static constexpr float safe = 125.0f;                      // |x| up to here needs no clamping
};

template <> struct Constants<double> {
  static constexpr double magic = 6755399441055744.0; // 1.5 * 2^52
  static constexpr int mantissa = 52;
  static constexpr double lowest = -1023.0, highest = 1024.0;
  static constexpr double safe = 1020.0;
};

constexpr double kLog2e = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

MEDSEQ_INLINE Simd<float>::V exp2_fraction(Simd<float>::V r) {
  Simd<float>::V p = r * splat(1.5353709750343114e-4f) + 1.3398961164057255e-3f;
  p = p * r + 9.618435986340046e-3f;
  p = p * r + 5.550331994891167e-2f;
  p = p * r + 0.24022647738456726f;
  p = p * r + 0.6931471824645996f;
  return p * r + 1.0f;
}

MEDSEQ_INLINE Simd<double>::V exp2_fraction(Simd<double>::V r) {
  // ln(2)^k / k!
  const double c[] = {1.3691488853904128e-12, 2.5678435993488202e-11, 4.4455382718708116e-10, 7.0549116208011234e-9,
                      1.0178086009239699e-7,  1.3215486790144307e-6,  1.5252733804059841e-5,  1.5403530393381608e-4,
                      1.3333558146428443e-3,  9.6181291076284772e-3,  5.5504108664821580e-2,  2.4022650695910072e-1,
                      6.9314718055994531e-1,  1.0};
  Simd<double>::V p = splat(c[0]);
  for (int i = 1; i < 14; ++i) p = p * r + c[i];
  return p;
}

// p * 2^n, for p near 1 and n the integer in the low bits of `shifted`.
template <class S> MEDSEQ_INLINE typename Simd<S>::V scaled(typename Simd<S>::V p, typename Simd<S>::V shifted) {
  typedef typename Simd<S>::I I;
  I n, bits;
  memcpy(&n, &shifted, sizeof(n));
  memcpy(&bits, &p, sizeof(bits));
  bits += n << Constants<S>::mantissa;
  memcpy(&p, &bits, sizeof(p));
  return p;
}

// 2^(d a) for |d a| <= safe. With a fused multiply-add the product is never rounded.
template <class S> MEDSEQ_INLINE typename Simd<S>::V exp2_safe(typename Simd<S>::V d, typename Simd<S>::V a) {
  typename Simd<S>::V shifted = d * a + Constants<S>::magic;
  typename Simd<S>::V r = d * a - (shifted - Constants<S>::magic);
  return scaled<S>(exp2_fraction(r), shifted);
}

// 2^x for every x: 0 far below, infinity far above, NaN for NaN (the integer addition could turn one into a number).
template <class S> MEDSEQ_INLINE typename Simd<S>::V exp2_any(typename Simd<S>::V x) {
  typedef typename Simd<S>::V V;
  const V low = splat(Constants<S>::lowest), high = splat(Constants<S>::highest);
  V z = x < low ? low : x;
  z = z > high ? high : z;
  V shifted = z + Constants<S>::magic;
  V p = scaled<S>(exp2_fraction(z - (shifted - Constants<S>::magic)), shifted);
  return x == x ? p : x;
}

// The bound is known for a whole tile of tokens, so the choice costs nothing in the loops.
template <class S, bool Safe> MEDSEQ_INLINE typename Simd<S>::V exp2_of(typename Simd<S>::V d, typename Simd<S>::V a) {
  if (Safe) return exp2_safe<S>(d, a);
  return exp2_any<S>(d * a);
}

// exp(x) for x <= 0 or NaN. Below the normal range the result is denormal, which FlushDenormals makes 0.
template <class S> MEDSEQ_INLINE typename Simd<S>::V exp_negative(typename Simd<S>::V x) {
  typedef typename Simd<S>::V V;
  constexpr bool single = sizeof(S) == 4;
  const V low = splat(static_cast<S>(single ? -87.7 : -708.9));
  V z = x < low ? low : x;
  V shifted = z * static_cast<S>(kLog2e) + Constants<S>::magic;
  V n = shifted - Constants<S>::magic;
  V r = z - n * static_cast<S>(single ? 0.693145751953125 : 0.693147180369123816490);
  r = r - n * static_cast<S>(single ? 1.42860682030941723212e-6 : 1.90821492927058770002e-10);
  V p = scaled<S>(exp2_fraction(r * static_cast<S>(kLog2e)), shifted);
  return x == x ? p : x;
}

// log(1 + e) for 0 <= e <= 1.
MEDSEQ_INLINE Simd<float>::V log1p_unit(Simd<float>::V e) {
  Simd<float>::V p = e * splat(-0.003320560324937105f) + 0.020214524120092392f;
  p = p * e - 0.05768444389104843f;
  p = p * e + 0.10682768374681473f;
  p = p * e - 0.15356861054897308f;
  p = p * e + 0.19695991277694702f;
  p = p * e - 0.2495872676372528f;
  p = p * e + 0.333305299282074f;
  p = p * e - 0.49999934434890747f;
  p = p * e + 1.0f;
  return p * e;
}

MEDSEQ_INLINE Simd<double>::V log1p_unit(Simd<double>::V e) {
  // 2 artanh(w), w = e / (2 + e) <= 1/3.
  Simd<double>::V w = e / (e + 2.0), square = w * w, p = splat(1.0 / 35.0);
  for (int i = 33; i > 0; i -= 2) p = p * square + 1.0 / i;
  return 2.0 * w * p;
}

// 1 / (1 + exp(-x)), given e = exp(-|x|).
template <class S> MEDSEQ_INLINE typename Simd<S>::V sigmoid_from(typename Simd<S>::V x, typename Simd<S>::V e) {
  typename Simd<S>::V one = splat(S(1));
  return (x < 0 ? e : one) / (e + one);
}

template <class S> MEDSEQ_INLINE typename Simd<S>::V minus_abs(typename Simd<S>::V x) { return x < 0 ? x : -x; }

template <class S> MEDSEQ_INLINE typename Simd<S>::V sigmoid(typename Simd<S>::V x) {
  return sigmoid_from<S>(x, exp_negative<S>(minus_abs<S>(x)));
}

// log(1 + exp(x)), given e = exp(-|x|).
template <class S> MEDSEQ_INLINE typename Simd<S>::V softplus_from(typename Simd<S>::V x, typename Simd<S>::V e) {
  return (x < 0 ? typename Simd<S>::V{} : x) + log1p_unit(e);
}

template <class S> MEDSEQ_INLINE typename Simd<S>::V softplus(typename Simd<S>::V x) {
  return softplus_from<S>(x, exp_negative<S>(minus_abs<S>(x)));
}

} // namespace
} // namespace MEDSEQ_ISA
} // namespace medseq
