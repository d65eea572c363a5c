// A tile: up to kTile consecutive tokens of one vector of channels, as an array V[kTile], and how it gets there.
//
//   Walk                       the order in which a scan visits the positions of a row or an image: walk.position(t)
//   load_rows / store_rows     consecutive positions of `lanes` rows (channels) <-> V[position], by transposing
//   load_tile / store_tile     the same through a walk, tokens [t0, t0 + count): contiguous walks (step 1 or -1)
//                              transpose, others gather token by token
//   gather / scatter_add       through a walk from / onto a plane V[position] that load_rows filled before: what a scan
//                              in several directions over one image wants, as every element is transposed only once
//   copy_row / put_row         one row of scalars (of B or C) in the walk's order, and back
//   lane_sums                  sums over channels
//
// A row starts at base + lane * stride; lanes beyond `lanes` (1 <= lanes <= vector length) repeat the last row when
// loading and are never stored. All positions, strides and counts are int64.
// The scan over a tile itself is in selective_scan_states.hpp.
#pragma once

#include "selective_scan_math.hpp"

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

// Tokens between two saved states. A tile's arrays for two states fit the first-level cache.
constexpr int kTile = 64;

// Token t is at origin + (t % run) * step + (t / run) * jump.
struct Walk {
  int64_t origin, step, run, jump;

  static MEDSEQ_MEMBER Walk row_major(int64_t length) { return {0, 1, length, 0}; }
  static MEDSEQ_MEMBER Walk column_major(int64_t height, int64_t width) { return {0, width, height, 1}; }
  // The same positions from the last to the first.
  MEDSEQ_MEMBER Walk reversed(int64_t length) const {
    return {length ? position(length - 1) : 0, -step, run, -jump};
  }
  MEDSEQ_MEMBER int64_t position(int64_t t) const {
    return t < run ? origin + t * step : origin + t % run * step + t / run * jump;
  }
  MEDSEQ_MEMBER bool contiguous() const { return step == 1 || step == -1; }

  // Calls piece(i, position, n) for the straight pieces of tokens [t0, t0 + count): tokens t0 + i ... t0 + i + n - 1
  // are at position, position + step, ...
  template <class Piece> MEDSEQ_MEMBER void pieces(int64_t t0, int64_t count, const Piece &piece) const {
    for (int64_t i = 0; i < count;) {
      int64_t left = run - (t0 + i) % run, n = count - i < left ? count - i : left;
      piece(i, position(t0 + i), n);
      i += n;
    }
  }
};
static_assert(sizeof(Walk::origin) == 8, "positions are 64-bit: images may have more than 2^31 elements");

#if defined(__clang__)
#define MEDSEQ_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MEDSEQ_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(pick(a)){__VA_ARGS__})
#endif

MEDSEQ_INLINE Simd<float>::I pick(Simd<float>::V) { return Simd<float>::I{}; }
MEDSEQ_INLINE Simd<double>::I pick(Simd<double>::V) { return Simd<double>::I{}; }

// Elements of a and b in turn, from the low / high half of every 128 bits.
#if MEDSEQ_VECTOR_BYTES == 16
MEDSEQ_INLINE Simd<float>::V mix_low(Simd<float>::V a, Simd<float>::V b) { return MEDSEQ_SHUFFLE(a, b, 0, 4, 1, 5); }
MEDSEQ_INLINE Simd<float>::V mix_high(Simd<float>::V a, Simd<float>::V b) { return MEDSEQ_SHUFFLE(a, b, 2, 6, 3, 7); }
MEDSEQ_INLINE Simd<double>::V mix_low(Simd<double>::V a, Simd<double>::V b) { return MEDSEQ_SHUFFLE(a, b, 0, 2); }
MEDSEQ_INLINE Simd<double>::V mix_high(Simd<double>::V a, Simd<double>::V b) { return MEDSEQ_SHUFFLE(a, b, 1, 3); }
#elif MEDSEQ_VECTOR_BYTES == 32
MEDSEQ_INLINE Simd<float>::V mix_low(Simd<float>::V a, Simd<float>::V b) {
  return MEDSEQ_SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
}
MEDSEQ_INLINE Simd<float>::V mix_high(Simd<float>::V a, Simd<float>::V b) {
  return MEDSEQ_SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
}
MEDSEQ_INLINE Simd<double>::V mix_low(Simd<double>::V a, Simd<double>::V b) {
  return MEDSEQ_SHUFFLE(a, b, 0, 4, 2, 6);
}
MEDSEQ_INLINE Simd<double>::V mix_high(Simd<double>::V a, Simd<double>::V b) {
  return MEDSEQ_SHUFFLE(a, b, 1, 5, 3, 7);
}
#elif MEDSEQ_VECTOR_BYTES == 64
MEDSEQ_INLINE Simd<float>::V mix_low(Simd<float>::V a, Simd<float>::V b) {
  return MEDSEQ_SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
MEDSEQ_INLINE Simd<float>::V mix_high(Simd<float>::V a, Simd<float>::V b) {
  return MEDSEQ_SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
MEDSEQ_INLINE Simd<double>::V mix_low(Simd<double>::V a, Simd<double>::V b) {
  return MEDSEQ_SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
}
MEDSEQ_INLINE Simd<double>::V mix_high(Simd<double>::V a, Simd<double>::V b) {
  return MEDSEQ_SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
}
#endif

// Elements in 128 bits: the side of the squares that are transposed.
template <class S> struct Square {
  static constexpr int side = 16 / static_cast<int>(sizeof(S));
};

// Transposes the squares that lie side by side in `side` vectors.
MEDSEQ_INLINE void transpose(Simd<double>::V (&r)[2]) {
  Simd<double>::V low = mix_low(r[0], r[1]);
  r[1] = mix_high(r[0], r[1]);
  r[0] = low;
}

MEDSEQ_INLINE void transpose(Simd<float>::V (&r)[4]) {
  typedef Simd<double>::V Pairs;
  Pairs a[2], b[2];
  Simd<float>::V x[4] = {mix_low(r[0], r[1]), mix_low(r[2], r[3]), mix_high(r[0], r[1]), mix_high(r[2], r[3])};
  memcpy(&a, &x[0], sizeof(a));
  memcpy(&b, &x[2], sizeof(b));
  transpose(a);
  transpose(b);
  memcpy(&r[0], &a, sizeof(a));
  memcpy(&r[2], &b, sizeof(b));
}

// 128 bits from each of the given addresses, and back. The compiler takes plain copies through memory.
MEDSEQ_INLINE Simd<float>::V join(const float *const *p) {
#if MEDSEQ_VECTOR_BYTES == 32 && defined(__AVX__)
  return reinterpret_cast<Simd<float>::V>(
      _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p[0])), _mm_loadu_ps(p[1]), 1));
#elif MEDSEQ_VECTOR_BYTES == 64 && defined(__AVX512F__)
  __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(p[0]));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(p[1]), 1);
  x = _mm512_insertf32x4(x, _mm_loadu_ps(p[2]), 2);
  return reinterpret_cast<Simd<float>::V>(_mm512_insertf32x4(x, _mm_loadu_ps(p[3]), 3));
#else
  Simd<float>::V x;
  for (int i = 0; i < MEDSEQ_VECTOR_BYTES / 16; ++i) memcpy(reinterpret_cast<char *>(&x) + 16 * i, p[i], 16);
  return x;
#endif
}

MEDSEQ_INLINE Simd<double>::V join(const double *const *p) {
  const float *q[MEDSEQ_VECTOR_BYTES / 16];
  for (int i = 0; i < MEDSEQ_VECTOR_BYTES / 16; ++i) q[i] = reinterpret_cast<const float *>(p[i]);
  Simd<float>::V x = join(q);
  Simd<double>::V y;
  memcpy(&y, &x, sizeof(y));
  return y;
}

// The first `count` of the 128-bit parts of x.
MEDSEQ_INLINE void split_bits(void *const *p, const void *bits, int count) {
#if MEDSEQ_VECTOR_BYTES == 32 && defined(__AVX__)
  __m256 x;
  memcpy(&x, bits, sizeof(x));
  if (count > 0) _mm_storeu_ps(static_cast<float *>(p[0]), _mm256_castps256_ps128(x));
  if (count > 1) _mm_storeu_ps(static_cast<float *>(p[1]), _mm256_extractf128_ps(x, 1));
#elif MEDSEQ_VECTOR_BYTES == 64 && defined(__AVX512F__)
  __m512 x;
  memcpy(&x, bits, sizeof(x));
  if (count > 0) _mm_storeu_ps(static_cast<float *>(p[0]), _mm512_maskz_extractf32x4_ps(-1, x, 0));
  if (count > 1) _mm_storeu_ps(static_cast<float *>(p[1]), _mm512_maskz_extractf32x4_ps(-1, x, 1));
  if (count > 2) _mm_storeu_ps(static_cast<float *>(p[2]), _mm512_maskz_extractf32x4_ps(-1, x, 2));
  if (count > 3) _mm_storeu_ps(static_cast<float *>(p[3]), _mm512_maskz_extractf32x4_ps(-1, x, 3));
#else
  for (int i = 0; i < count; ++i) memcpy(p[i], static_cast<const char *>(bits) + 16 * i, 16);
#endif
}

// out[i * out_step] = position first + i of every row, i < count. Transposes squares of `side` positions; lane
// i + side * j of the vector comes from vector i, part j.
template <class S>
MEDSEQ_INLINE void load_rows(const S *base, int64_t stride, int lanes, int64_t first, int64_t count,
                             typename Simd<S>::V *out, int64_t out_step) {
  typedef typename Simd<S>::V V;
  constexpr int side = Square<S>::side, parts = Lanes<S>::count / side;
  const S *row[Lanes<S>::count];
  for (int i = 0; i < Lanes<S>::count; ++i) row[i] = base + first + (i < lanes ? i : lanes - 1) * stride;
  int64_t t = 0;
  for (; t + side <= count; t += side) {
    V r[side];
    for (int i = 0; i < side; ++i) {
      const S *p[parts];
      for (int j = 0; j < parts; ++j) p[j] = row[i + side * j] + t;
      r[i] = join(p);
    }
    transpose(r);
    for (int i = 0; i < side; ++i) out[(t + i) * out_step] = r[i];
  }
  for (; t < count; ++t) {
    V x{};
    for (int i = 0; i < Lanes<S>::count; ++i) x[i] = row[i][t];
    out[t * out_step] = x;
  }
}

// The other way round.
template <class S>
MEDSEQ_INLINE void store_rows(S *base, int64_t stride, int lanes, int64_t first, int64_t count,
                              const typename Simd<S>::V *in, int64_t in_step) {
  typedef typename Simd<S>::V V;
  constexpr int side = Square<S>::side, parts = Lanes<S>::count / side;
  int64_t t = 0;
  for (; t + side <= count; t += side) {
    V r[side];
    for (int i = 0; i < side; ++i) r[i] = in[(t + i) * in_step];
    transpose(r);
    for (int i = 0; i < side && i < lanes; ++i) {
      void *p[parts];
      for (int j = 0; j < parts; ++j) p[j] = base + first + t + (i + side * j) * stride;
      split_bits(p, &r[i], lanes == Lanes<S>::count ? parts : (lanes - i + side - 1) / side);
    }
  }
  for (; t < count; ++t)
    for (int i = 0; i < lanes; ++i) base[first + t + i * stride] = in[t * in_step][i];
}

template <class S>
MEDSEQ_INLINE void load_tile(const Walk &walk, int64_t t0, int64_t count, const S *base, int64_t stride, int lanes,
                             typename Simd<S>::V *out) {
  walk.pieces(t0, count, [&](int64_t i, int64_t position, int64_t n) {
    if (walk.step == 1) return load_rows(base, stride, lanes, position, n, out + i, 1);
    if (walk.step == -1) return load_rows(base, stride, lanes, position - n + 1, n, out + i + n - 1, -1);
    for (int64_t t = 0; t < n; ++t) {
      typename Simd<S>::V x{};
      const S *p = base + position + t * walk.step;
      for (int lane = 0; lane < lanes; ++lane) x[lane] = p[lane * stride];
      out[i + t] = x;
    }
  });
}

template <class S>
MEDSEQ_INLINE void store_tile(const Walk &walk, int64_t t0, int64_t count, S *base, int64_t stride, int lanes,
                              const typename Simd<S>::V *in) {
  walk.pieces(t0, count, [&](int64_t i, int64_t position, int64_t n) {
    if (walk.step == 1) return store_rows(base, stride, lanes, position, n, in + i, 1);
    if (walk.step == -1) return store_rows(base, stride, lanes, position - n + 1, n, in + i + n - 1, -1);
    for (int64_t t = 0; t < n; ++t)
      for (int lane = 0; lane < lanes; ++lane) base[position + t * walk.step + lane * stride] = in[i + t][lane];
  });
}

template <class V> MEDSEQ_INLINE void gather(const Walk &walk, int64_t t0, int64_t count, const V *plane, V *out) {
  walk.pieces(t0, count, [&](int64_t i, int64_t position, int64_t n) {
    for (int64_t t = 0; t < n; ++t) out[i + t] = plane[position + t * walk.step];
  });
}

template <class V> MEDSEQ_INLINE void scatter_add(const Walk &walk, int64_t t0, int64_t count, V *plane, const V *in) {
  walk.pieces(t0, count, [&](int64_t i, int64_t position, int64_t n) {
    for (int64_t t = 0; t < n; ++t) plane[position + t * walk.step] += in[i + t];
  });
}

template <class S>
MEDSEQ_INLINE void copy_row(const Walk &walk, int64_t t0, int64_t count, const S *row, S *out) {
  walk.pieces(t0, count, [&](int64_t i, int64_t position, int64_t n) {
    if (walk.step == 1) {
      memcpy(out + i, row + position, sizeof(S) * static_cast<size_t>(n));
      return;
    }
    for (int64_t t = 0; t < n; ++t) out[i + t] = row[position + t * walk.step];
  });
}

// Back to its places.
template <class S>
MEDSEQ_INLINE void put_row(const Walk &walk, int64_t t0, int64_t count, const S *in, S *row) {
  walk.pieces(t0, count, [&](int64_t i, int64_t position, int64_t n) {
    for (int64_t t = 0; t < n; ++t) row[position + t * walk.step] = in[i + t];
  });
}

// Sums within every 128 bits of r[0], r[1], ..., side by side.
MEDSEQ_INLINE Simd<double>::V fold(const Simd<double>::V *r) { return mix_low(r[0], r[1]) + mix_high(r[0], r[1]); }

MEDSEQ_INLINE Simd<float>::V fold(const Simd<float>::V *r) {
  typedef Simd<double>::V Pairs;
  Simd<float>::V halves[2], sums[2];
  for (int i = 0; i < 2; ++i) halves[i] = mix_low(r[2 * i], r[2 * i + 1]) + mix_high(r[2 * i], r[2 * i + 1]);
  Pairs a[2];
  memcpy(a, halves, sizeof(a));
  const Pairs turned[2] = {mix_low(a[0], a[1]), mix_high(a[0], a[1])};
  memcpy(sums, turned, sizeof(sums));
  return sums[0] + sums[1];
}

// to[t] = or += the sum over the lanes of in[t]. Both have kTile places, of which the last may hold anything.
template <class S, bool First> MEDSEQ_INLINE void lane_sums(const typename Simd<S>::V *in, int64_t count, S *to) {
  typedef S Quarter __attribute__((vector_size(16)));
  constexpr int side = Square<S>::side, parts = Lanes<S>::count / side;
  for (int64_t t = 0; t < count; t += side) {
    const typename Simd<S>::V sum = fold(in + t);
    Quarter part[parts], total;
    memcpy(part, &sum, sizeof(sum));
    total = part[0];
    for (int j = 1; j < parts; ++j) total += part[j];
    if (!First) {
      memcpy(part, to + t, sizeof(total));
      total += part[0];
    }
    memcpy(to + t, &total, sizeof(total));
  }
}

} // namespace
} // namespace MEDSEQ_ISA
} // namespace medseq
