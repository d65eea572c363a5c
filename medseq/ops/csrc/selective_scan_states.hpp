// The selective scan over one tile, all states of one vector of channels:
//
//   h <- exp2(dt a) h + x B,   y += h C,   with x = dt u and a = A log2(e)
//
// and its derivative. States in the outer loop, tokens in the inner one, so that everything but B and C stays in
// the first-level cache; a few states at once share the loads. Between tokens only `h` waits for the previous one: the
// processor overlaps the exponentials of many tokens. Derivation: ../selective_scan/README.md.
#pragma once

#include "selective_scan_tile.hpp"

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

// States at once: what the 16 (AVX-512: 32) registers hold.
constexpr int kTogether = MEDSEQ_VECTOR_BYTES == 64 ? 4 : 2;

// B or C with one number per token, the same for all channels: row[state][kTile] in the scan's order. `sum`,
// V[kTogether][kTile], takes its gradient for the few states in work, one lane per channel.
template <class S> struct PerToken {
  typedef typename Simd<S>::V V;
  const S *row;
  V *sum;
  MEDSEQ_MEMBER V at(int k, int64_t t) const { return splat(row[k * kTile + t]); }
  MEDSEQ_MEMBER void add(int k, int64_t t, V x) const { sum[k * kTile + t] = x; }
  MEDSEQ_MEMBER PerToken from(int64_t n) const { return {row + n * kTile, sum ? sum + n * kTile : 0}; }
  // The same for states n, n + 1, ... coming into work.
  MEDSEQ_MEMBER PerToken next(int64_t n) const { return {row + n * kTile, sum}; }
};

// B or C with one number per channel, the same for all tokens: V[state], and as many for its gradient.
template <class S> struct PerChannel {
  typedef typename Simd<S>::V V;
  const V *value;
  V *sum;
  MEDSEQ_MEMBER V at(int k, int64_t) const { return value[k]; }
  MEDSEQ_MEMBER void add(int k, int64_t, V x) const { sum[k] += x; }
  MEDSEQ_MEMBER PerChannel from(int64_t n) const { return {value + n, sum ? sum + n : 0}; }
  MEDSEQ_MEMBER PerChannel next(int64_t n) const { return from(n); }
};

// One tile of one vector of channels.
template <class S> struct Tile {
  typedef typename Simd<S>::V V;
  int64_t count; // tokens
  const V *dt, *x;
  bool safe; // |dt a| <= Constants::safe everywhere
};

template <class S, int K, bool Safe, class B, class C>
MEDSEQ_INLINE void forward_states(const Tile<S> &tile, const typename Simd<S>::V *a, typename Simd<S>::V *h, B b, C c,
                                  typename Simd<S>::V *y) {
  typedef typename Simd<S>::V V;
  V state[K], rate[K];
  for (int k = 0; k < K; ++k) state[k] = h[k], rate[k] = a[k];
  for (int64_t t = 0; t < tile.count; ++t) {
    V d = tile.dt[t], x = tile.x[t], sum = y[t];
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      state[k] = exp2_of<S, Safe>(d, rate[k]) * state[k] + x * b.at(k, t);
      sum += state[k] * c.at(k, t);
    }
    y[t] = sum;
  }
  for (int k = 0; k < K; ++k) h[k] = state[k];
}

// Advances the states h over the tile and adds what they show to y. A function of its own, as is backward_tile: inlined
// into the walk over the tiles, the inner loops run out of registers.
template <class S, class B, class C>
__attribute__((noinline)) void forward_tile(const Tile<S> &tile, int64_t states, const typename Simd<S>::V *a,
                                            typename Simd<S>::V *h, B b, C c, typename Simd<S>::V *y) {
  int64_t n = 0;
  if (tile.safe) {
    for (; n + kTogether <= states; n += kTogether)
      forward_states<S, kTogether, true>(tile, a + n, h + n, b.from(n), c.from(n), y);
    for (; n < states; ++n) forward_states<S, 1, true>(tile, a + n, h + n, b.from(n), c.from(n), y);
  }
  for (; n < states; ++n) forward_states<S, 1, false>(tile, a + n, h + n, b.from(n), c.from(n), y);
}

// What backward knows of a tile, and where it adds up.
template <class S> struct TileGradient {
  typedef typename Simd<S>::V V;
  const V *gy;          // of y before the gate
  V *gx, *ga;           // of x, and of the exponents dt a in units of log2(e); both summed over states
  V *y;                 // if not null, y itself is added up again
  V *decay, *state;     // working memory, kTogether * (kTile + 1) each
};

template <class S, int K, bool Safe, class B, class C>
MEDSEQ_INLINE void recompute_states(const Tile<S> &tile, const TileGradient<S> &g, const typename Simd<S>::V *a,
                                    const typename Simd<S>::V *h, B b, C c) {
  typedef typename Simd<S>::V V;
  V state[K], rate[K];
  for (int k = 0; k < K; ++k) g.state[k] = state[k] = h[k], rate[k] = a[k];
  for (int64_t t = 0; t < tile.count; ++t) {
    V d = tile.dt[t], x = tile.x[t];
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      V decay = exp2_of<S, Safe>(d, rate[k]);
      state[k] = decay * state[k] + x * b.at(k, t);
      g.decay[t * K + k] = decay;
      g.state[(t + 1) * K + k] = state[k];
    }
  }
  if (!g.y) return;
  for (int64_t t = 0; t < tile.count; ++t)
    for (int k = 0; k < K; ++k) g.y[t] += g.state[(t + 1) * K + k] * c.at(k, t);
}

template <class S, int K, bool Safe, class B, class C>
MEDSEQ_INLINE void backward_states(const Tile<S> &tile, const TileGradient<S> &g, const typename Simd<S>::V *a,
                                   const typename Simd<S>::V *h, typename Simd<S>::V *gh, typename Simd<S>::V *grate,
                                   B b, C c) {
  typedef typename Simd<S>::V V;
  recompute_states<S, K, Safe>(tile, g, a, h, b, c);
  V carry[K], rate[K], total[K];
  for (int k = 0; k < K; ++k) carry[k] = gh[k], rate[k] = a[k], total[k] = splat(S(0));
  for (int64_t t = tile.count - 1; t >= 0; --t) {
    V d = tile.dt[t], x = tile.x[t], gy = g.gy[t], gx = g.gx[t], ga = g.ga[t];
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      V gs = gy * c.at(k, t) + carry[k];
      c.add(k, t, gy * g.state[(t + 1) * K + k]);
      b.add(k, t, gs * x);
      gx += gs * b.at(k, t);
      carry[k] = gs * g.decay[t * K + k];
      V exponent = carry[k] * g.state[t * K + k];
      ga += exponent * rate[k];
      total[k] += exponent * d;
    }
    g.gx[t] = gx, g.ga[t] = ga;
  }
  for (int k = 0; k < K; ++k) gh[k] = carry[k], grate[k] += total[k];
}

// From the states h before the tile: takes the states' gradient gh from behind the tile to before it, and adds up the
// gradients of A (grate), B, C and of what TileGradient names. Where B or C are PerToken, at most kTogether states.
template <class S, class B, class C>
__attribute__((noinline)) void backward_tile(const Tile<S> &tile, const TileGradient<S> &g, int64_t states,
                                             const typename Simd<S>::V *a, const typename Simd<S>::V *h,
                                             typename Simd<S>::V *gh, typename Simd<S>::V *grate, B b, C c) {
  int64_t n = 0;
  if (tile.safe) {
    for (; n + kTogether <= states; n += kTogether)
      backward_states<S, kTogether, true>(tile, g, a + n, h + n, gh + n, grate + n, b.from(n), c.from(n));
    for (; n < states; ++n)
      backward_states<S, 1, true>(tile, g, a + n, h + n, gh + n, grate + n, b.from(n), c.from(n));
  }
  for (; n < states; ++n)
    backward_states<S, 1, false>(tile, g, a + n, h + n, gh + n, grate + n, b.from(n), c.from(n));
}

} // namespace
} // namespace MEDSEQ_ISA
} // namespace medseq
