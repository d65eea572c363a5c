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

// A state that fades away ends among the denormal numbers, where every operation is slow: they are zero while this
// lives.
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

#if defined(__AVX2__) && MEDSEQ_VECTOR_BYTES == 32
#define MEDSEQ_EIGHTHS 1 // eight floats fit a register, from which one instruction picks any
#endif

template <class S> struct Constants;

template <> struct Constants<float> {
#if defined(MEDSEQ_EIGHTHS)
  static constexpr int fraction = 3;
#else
  static constexpr int fraction = 0;
#endif
  static constexpr int mantissa = 23;
  // 1.5 * 2^mantissa, so that adding it rounds to a multiple of 2^-fraction.
  static constexpr float magic = 12582912.0f / (1 << fraction);
  static constexpr float lowest = -127.0f, highest = 127.9f; // exp2 gives exactly 0 below, infinity above
  static constexpr float safe = 125.0f;                      // |x| up to here needs no clamping
};

template <> struct Constants<double> {
  static constexpr int fraction = 0, mantissa = 52;
  static constexpr double magic = 6755399441055744.0;
  static constexpr double lowest = -1023.0, highest = 1023.9;
  static constexpr double safe = 1020.0;
};

constexpr double kLog2e = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

template <class S> MEDSEQ_INLINE typename Simd<S>::I bits_of(typename Simd<S>::V x) {
  typename Simd<S>::I bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

template <class S> MEDSEQ_INLINE typename Simd<S>::V from_bits(typename Simd<S>::I bits) {
  typename Simd<S>::V x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// 2^n p for p near 1: `shifted` is magic + n.
template <class S> MEDSEQ_INLINE typename Simd<S>::V scaled(typename Simd<S>::V p, typename Simd<S>::V shifted) {
  return from_bits<S>(bits_of<S>(p) + (bits_of<S>(shifted) << Constants<S>::mantissa));
}

// 2^n exp(r) and 2^n 2^r, where `shifted` is magic + n, n rounded to a multiple of 2^-fraction and |r| what is left.
#if defined(MEDSEQ_EIGHTHS)
// Short polynomials, and the fraction of n from a register.
MEDSEQ_INLINE Simd<float>::V eighths(Simd<float>::V shifted) {
  // The bits of 2^(i/8), less what shifting i into the exponent's place adds.
  const Simd<float>::I powers = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                 0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
  Simd<float>::I n = bits_of<float>(shifted);
  __m256i power = _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(powers), reinterpret_cast<__m256i>(n));
  return from_bits<float>(reinterpret_cast<Simd<float>::I>(power) + (n << (Constants<float>::mantissa - 3)));
}

MEDSEQ_INLINE Simd<float>::V exp_parts(Simd<float>::V r, Simd<float>::V shifted) {
  Simd<float>::V q = r * splat(0.16664297878742218f) + 0.5000647902488708f, power = eighths(shifted);
  return power * r * (q * r + 1.0f) + power;
}

MEDSEQ_INLINE Simd<float>::V exp2_parts(Simd<float>::V r, Simd<float>::V shifted) {
  // One degree less is 2e-8 too large on average, which a slowly decaying state adds up token by token.
  Simd<float>::V q = r * splat(0.009620598517358303f) + 0.055510710924863815f, power = eighths(shifted);
  q = q * r + 0.24022649228572845f;
  return power * r * (q * r + 0.6931471824645996f) + power;
}
#else
MEDSEQ_INLINE Simd<float>::V exp_parts(Simd<float>::V r, Simd<float>::V shifted) {
  Simd<float>::V p = r * splat(0.0013843963388353586f) + 0.008374215103685856f;
  p = p * r + 0.04166799783706665f;
  p = p * r + 0.16666430234909058f;
  p = p * r + 0.4999999403953552f;
  p = p * r + 1.0f;
  return scaled<float>(p * r + 1.0f, shifted);
}

MEDSEQ_INLINE Simd<float>::V exp2_parts(Simd<float>::V r, Simd<float>::V shifted) {
  Simd<float>::V p = r * splat(1.5353709750343114e-4f) + 1.3398961164057255e-3f;
  p = p * r + 9.618435986340046e-3f;
  p = p * r + 5.550331994891167e-2f;
  p = p * r + 0.24022647738456726f;
  p = p * r + 0.6931471824645996f;
  return scaled<float>(p * r + 1.0f, shifted);
}
#endif

MEDSEQ_INLINE Simd<double>::V exp2_parts(Simd<double>::V r, Simd<double>::V shifted) {
  // ln(2)^k / k!
  const double c[] = {1.3691488853904128e-12, 2.5678435993488202e-11, 4.4455382718708116e-10, 7.0549116208011234e-9,
                      1.0178086009239699e-7,  1.3215486790144307e-6,  1.5252733804059841e-5,  1.5403530393381608e-4,
                      1.3333558146428443e-3,  9.6181291076284772e-3,  5.5504108664821580e-2,  2.4022650695910072e-1,
                      6.9314718055994531e-1,  1.0};
  Simd<double>::V p = splat(c[0]);
  for (int i = 1; i < 14; ++i) p = p * r + c[i];
  return scaled<double>(p, shifted);
}

MEDSEQ_INLINE Simd<double>::V exp_parts(Simd<double>::V r, Simd<double>::V shifted) {
  return exp2_parts(r * kLog2e, shifted);
}

// 2^(d a) for |d a| <= safe. With a fused multiply-add the product is never rounded.
template <class S> MEDSEQ_INLINE typename Simd<S>::V exp2_safe(typename Simd<S>::V d, typename Simd<S>::V a) {
  typename Simd<S>::V shifted = d * a + Constants<S>::magic;
  return exp2_parts(d * a - (shifted - Constants<S>::magic), shifted);
}

// 2^x for every x: 0 far below, infinity far above, NaN for NaN.
template <class S> MEDSEQ_INLINE typename Simd<S>::V exp2_any(typename Simd<S>::V x) {
  typedef typename Simd<S>::V V;
  const V low = splat(Constants<S>::lowest), high = splat(Constants<S>::highest);
  V z = x < low ? low : x;
  z = z > high ? high : z;
  V shifted = z + Constants<S>::magic, infinite = splat(static_cast<S>(__builtin_inf()));
  V p = exp2_parts(z - (shifted - Constants<S>::magic), shifted);
  // The integer addition could turn NaN into a number.
  return x == x ? (x > high ? infinite : p) : x;
}

// The bound is known for a whole tile of tokens, so the choice costs nothing in the loops.
template <class S, bool Safe> MEDSEQ_INLINE typename Simd<S>::V exp2_of(typename Simd<S>::V d, typename Simd<S>::V a) {
  if (Safe) return exp2_safe<S>(d, a);
  return exp2_any<S>(d * a);
}

// |x| as the bits of a number: ordered as integers these are ordered as magnitudes, NaN above all.
template <class S> MEDSEQ_INLINE typename Simd<S>::I magnitude(typename Simd<S>::V x) {
  typename Simd<S>::I sign = bits_of<S>(splat(S(-0.0)));
  return bits_of<S>(x) & ~sign;
}

// exp(-|x|); 0 for NaN. Below the normal range the result is denormal, which FlushDenormals makes 0.
template <class S> MEDSEQ_INLINE typename Simd<S>::V exp_minus_abs(typename Simd<S>::V x) {
  typedef typename Simd<S>::V V;
  typedef typename Simd<S>::I I;
  constexpr bool single = sizeof(S) == 4;
  const I most = magnitude<S>(splat(static_cast<S>(single ? 87.7 : 708.9)));
  I size = magnitude<S>(x);
  V z = from_bits<S>(size < most ? size : most);
  V shifted = Constants<S>::magic - z * static_cast<S>(kLog2e);
  V n = shifted - Constants<S>::magic;
#if defined(__FMA__) || defined(__aarch64__)
  V r = n * static_cast<S>(-kLn2) - z;
  if (!single) r = r - n * static_cast<S>(2.3190468138462996e-17);
#else
  V r = n * static_cast<S>(single ? -0.693145751953125 : -0.693147180369123816490) - z;
  r = r - n * static_cast<S>(single ? 1.42860682030941723212e-6 : 1.90821492927058770002e-10);
#endif
  return exp_parts(r, shifted);
}

// log(1 + e) for 0 <= e <= 1.
MEDSEQ_INLINE Simd<float>::V log1p_unit(Simd<float>::V e) {
  // The high powers apart: two short chains of operations instead of a long one, and no cancellation between them.
  typedef Simd<float>::V V;
  V square = e * e, fifth = square * square * e;
  V high = e * splat(-0.003320560324937105f) + 0.020214524120092392f;
  V low = e * splat(0.19695991277694702f) - 0.2495872676372528f;
  high = high * e - 0.05768444389104843f;
  low = low * e + 0.333305299282074f;
  high = high * e + 0.10682768374681473f;
  low = low * e - 0.49999934434890747f;
  high = high * e - 0.15356861054897308f;
  low = low * e + 1.0f;
  return (high * fifth + low) * e;
}

MEDSEQ_INLINE Simd<double>::V log1p_unit(Simd<double>::V e) {
  // 2 artanh(w), w = e / (2 + e) <= 1/3.
  Simd<double>::V w = e / (e + 2.0), square = w * w, p = splat(1.0 / 35.0);
  for (int i = 33; i > 0; i -= 2) p = p * square + 1.0 / i;
  return 2.0 * w * p;
}

// 1 / (1 + exp(-x)), given e = exp(-|x|); a number even for NaN.
template <class S> MEDSEQ_INLINE typename Simd<S>::V sigmoid_from(typename Simd<S>::V x, typename Simd<S>::V e) {
  typename Simd<S>::V one = splat(S(1));
  return (x < 0 ? e : one) / (e + one);
}

template <class S> MEDSEQ_INLINE typename Simd<S>::V sigmoid(typename Simd<S>::V x) {
  return sigmoid_from<S>(x, exp_minus_abs<S>(x));
}

// log(1 + exp(x)), given e = exp(-|x|).
template <class S> MEDSEQ_INLINE typename Simd<S>::V softplus_from(typename Simd<S>::V x, typename Simd<S>::V e) {
  return log1p_unit(e) + (x < 0 ? typename Simd<S>::V{} : x);
}

template <class S> MEDSEQ_INLINE typename Simd<S>::V softplus(typename Simd<S>::V x) {
  return softplus_from<S>(x, exp_minus_abs<S>(x));
}

} // namespace
} // namespace MEDSEQ_ISA
} // namespace medseq
