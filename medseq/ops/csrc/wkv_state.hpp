// Sums of exponentials that cannot overflow, and one vector of channels of a WKV problem.
#pragma once

#include "simd.hpp"
#include "wkv.hpp"

#include <math.h>

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

// exp(top - rate * age) * (n, d). Going forward (n, d) = (sum of p_j v_j, sum of p_j); the adjoints hold (sum of
// q_t y_t, sum of q_t). `top` is the exponent of the largest term when it entered and `age` the steps since then:
// counting steps, instead of subtracting the rate at each, keeps rounding from piling up with the distance, and tells
// which token is the largest.
template <class S> struct State {
  typedef typename Simd<S>::V V;
  V n, d, top, age;
};

template <class S> MEDSEQ_INLINE State<S> empty() {
  // Far below any real exponent, yet finite, so that differences of two are no NaN.
  return {splat(S(0)), splat(S(0)), splat(S(-1e30)), splat(S(0))};
}

template <class S> MEDSEQ_INLINE State<S> aged(State<S> a) {
  a.age = a.age + 1;
  return a;
}

template <class S> MEDSEQ_INLINE typename Simd<S>::V exponent(const State<S> &a, typename Simd<S>::V rate) {
  return a.top - rate * a.age;
}

// The sum of two states, relative to the larger exponent: one exponential, because one of the factors is 1.
template <class S>
MEDSEQ_INLINE State<S> add(const State<S> &a, const State<S> &b, typename Simd<S>::V rate) {
  typedef typename Simd<S>::V V;
  V gap = (a.top - b.top) - rate * (a.age - b.age);
  auto keep = gap >= 0;
  V e = exp_nonpositive(keep ? -gap : gap), one = splat(S(1));
  V old_part = keep ? one : e, new_part = keep ? e : one;
  return {old_part * a.n + new_part * b.n, old_part * a.d + new_part * b.d, keep ? a.top : b.top,
          keep ? a.age : b.age};
}

// One step of the sequence: the sums decay, then exp(o) * (n, d) enters.
template <class S>
MEDSEQ_INLINE State<S> push(const State<S> &a, typename Simd<S>::V rate, typename Simd<S>::V o,
                            typename Simd<S>::V n, typename Simd<S>::V d) {
  return add<S>(aged<S>(a), {n, d, o, splat(S(0))}, rate);
}

// A sum against the adjoint of what it becomes `steps` steps later: minus the derivative by the rate of one step.
template <class S>
MEDSEQ_INLINE typename Simd<S>::V paired(const State<S> &a, const State<S> &b, typename Simd<S>::V rate,
                                         typename Simd<S>::V steps) {
  return exp_nonpositive((a.top + b.top) - rate * (a.age + b.age + steps)) * (b.d * a.n - b.n * a.d);
}

// One batch item and one vector of channels: where its rows are, and memory to work in.
template <class S> struct Channels {
  typedef typename Simd<S>::V V;
  typedef State<S> St;

  int64_t length, stride, block; // tokens, elements between two tokens, tokens between checkpoints
  int lanes;
  const S *k, *v, *gy;
  S *y, *gk, *gv;
  V w, u;
  V gw, gu;
  St *border, *past; // one per block: the future at its end, the past at its begin
  St *scratch;       // three per token of a block
  V *token;          // four per token of the sequence, going back only

  int64_t blocks() const { return (length + block - 1) / block; }
  int64_t begin(int64_t b) const { return b * block; }
  int64_t end(int64_t b) const { return (b + 1) * block < length ? (b + 1) * block : length; }

  MEDSEQ_MEMBER V at(const S *p, int64_t t) const { return load(p + t * stride, lanes); }
  MEDSEQ_MEMBER void put(S *p, int64_t t, V x) const { store(p + t * stride, x, lanes); }
  MEDSEQ_MEMBER void accumulate(S *p, int64_t t, V x) const { put(p, t, at(p, t) + x); }
  MEDSEQ_MEMBER St step(const St &a, V kt, V vt) const { return push<S>(a, w, kt, vt, splat(S(1))); }

  // border[b] = what the last token of block b sees after itself.
  void sweep_future() {
    St future = empty<S>();
    for (int64_t b = blocks() - 1; b >= 0; --b) {
      border[b] = future;
      for (int64_t t = end(b) - 1; t >= begin(b); --t) future = step(future, at(k, t), at(v, t));
    }
  }

  // What every token of block b sees after itself, recomputed from the border while the block is in cache.
  void expand_future(int64_t b) {
    St future = border[b];
    for (int64_t t = end(b) - 1; t >= begin(b); --t) {
      scratch[t - begin(b)] = future;
      future = step(future, at(k, t), at(v, t));
    }
  }
};

} // namespace
} // namespace MEDSEQ_ISA
} // namespace medseq
