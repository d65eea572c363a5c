// Sums of exponentials that cannot overflow, and one vector of channels of a WKV problem.
#pragma once

#include "simd.hpp"
#include "wkv.hpp"

#include <math.h>

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

// exp(top - rate * age) * (n, d). Going forward (n, d) = (sum of p_j v_j, sum of p_j); the adjoints hold (sum of
// q_t y_t, sum of q_t). `top` is the exponent of a large term when it entered and `age` the steps since then: counting
// steps, instead of subtracting the rate at each, keeps rounding from piling up with the distance.
template <class S> struct State {
  typedef typename Simd<S>::V V;
  V n, d, top, age;
};

// A State that grows token by token, with what rounding has added so far (Kahan).
template <class S> struct Running {
  typename Simd<S>::V n_error, d_error;
  State<S> sum;
};

template <class S> MEDSEQ_INLINE State<S> empty() {
  // Far below any real exponent, yet finite, so that differences of two are no NaN.
  return {splat(S(0)), splat(S(0)), splat(S(-1e30)), splat(S(0))};
}

template <class S> MEDSEQ_INLINE Running<S> running(const State<S> &sum) { return {splat(S(0)), splat(S(0)), sum}; }

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
  V e = exp_bounded(keep ? -gap : gap), one = splat(S(1));
  V in_a = keep ? one : e, in_b = keep ? e : one;
  return {in_a * a.n + in_b * b.n, in_a * a.d + in_b * b.d, keep ? a.top : b.top, keep ? a.age : b.age};
}

// One step of the sequence: the sums decay, then exp(o) * (n, d) enters. The scale changes only when the new term is
// e^slack times larger, because every change rounds: without slack, terms of equal size change it at every token.
template <class S>
MEDSEQ_INLINE void push(Running<S> &a, typename Simd<S>::V rate, typename Simd<S>::V o, typename Simd<S>::V n,
                        typename Simd<S>::V d, S slack) {
  typedef typename Simd<S>::V V;
  a.sum.age = a.sum.age + 1;
  V gap = (a.sum.top - o) - rate * a.sum.age;
  auto keep = gap >= -slack;
  V e = exp_bounded(keep ? -gap : gap), one = splat(S(1));
  V old_part = keep ? one : e, new_part = keep ? e : one;
  V old_n = old_part * a.sum.n, old_d = old_part * a.sum.d;
  V add_n = new_part * n - old_part * a.n_error, add_d = new_part * d - old_part * a.d_error;
  a.sum.n = old_n + add_n, a.sum.d = old_d + add_d;
  a.n_error = (a.sum.n - old_n) - add_n, a.d_error = (a.sum.d - old_d) - add_d;
  a.sum.top = keep ? a.sum.top : o;
  a.sum.age = keep ? a.sum.age : splat(S(0));
}

// A sum against the adjoint of what it becomes `steps` steps later: minus the derivative by the rate of one step.
template <class S>
MEDSEQ_INLINE typename Simd<S>::V paired(const State<S> &a, const State<S> &b, typename Simd<S>::V rate,
                                         typename Simd<S>::V steps) {
  return exp_bounded((a.top + b.top) - rate * (a.age + b.age + steps)) * (b.d * a.n - b.n * a.d);
}

// One batch item and one vector of channels: where its rows are, and memory to work in.
template <class S> struct Channels {
  static constexpr S kSlack = 8;
  typedef typename Simd<S>::V V;
  typedef State<S> St;

  int64_t length, stride, block; // tokens, elements between two tokens, tokens between checkpoints
  int lanes;
  const S *k, *v, *gy;
  S *y, *gk, *gv;
  V w, u;
  V gw, gu;
  S slack; // of the sums over tokens; 0 where the largest exponent itself is wanted
  St *border, *past; // one per block: the future at its end, the past at its begin
  St *scratch;       // three per token of a block
  V *token;          // four per token of the sequence, going back only

  int64_t blocks() const { return (length + block - 1) / block; }
  int64_t begin(int64_t b) const { return b * block; }
  int64_t end(int64_t b) const { return (b + 1) * block < length ? (b + 1) * block : length; }

  MEDSEQ_MEMBER V at(const S *p, int64_t t) const { return load(p + t * stride, lanes); }
  MEDSEQ_MEMBER void put(S *p, int64_t t, V x) const { store(p + t * stride, x, lanes); }
  MEDSEQ_MEMBER void accumulate(S *p, int64_t t, V x) const { put(p, t, at(p, t) + x); }
  MEDSEQ_MEMBER void step(Running<S> &a, V kt, V vt) const { push<S>(a, w, kt, vt, splat(S(1)), slack); }

  // border[b] = what the last token of block b sees after itself.
  void sweep_future() {
    Running<S> future = running<S>(empty<S>());
    for (int64_t b = blocks() - 1; b >= 0; --b) {
      border[b] = future.sum;
      for (int64_t t = end(b) - 1; t >= begin(b); --t) step(future, at(k, t), at(v, t));
    }
  }

  // What every token of block b sees after itself, recomputed from the border while the block is in cache.
  void expand_future(int64_t b) {
    Running<S> future = running<S>(border[b]);
    for (int64_t t = end(b) - 1; t >= begin(b); --t) {
      scratch[t - begin(b)] = future.sum;
      step(future, at(k, t), at(v, t));
    }
  }
};

} // namespace
} // namespace MEDSEQ_ISA
} // namespace medseq
