// The paper's formula where w is small, |w| * length <= 10, as it is in every model: w is a decay divided by the length.
//
// No weight then decays or grows by more than e^10 over the whole sequence, so one scale serves all tokens: that of the
// largest k. exp(k) is taken once per token and the rest is sums. wkv_exact.hpp is the same for any w. Derivation:
// ../wkv/README.md.
#pragma once

#include "wkv_state.hpp"

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

template <class S> struct SmallDecay : Channels<S> {
  typedef typename Simd<S>::V V;
  typedef Channels<S> Base;
  using Base::at, Base::put, Base::accumulate, Base::begin, Base::end, Base::blocks, Base::length;
  using Base::k, Base::v, Base::gy, Base::y, Base::gk, Base::gv, Base::w, Base::u, Base::gw, Base::gu;

  static constexpr int64_t kBlock = 64;
  static constexpr S kLimit = 10;

  struct Pair {
    V n, d;
  };

  // A sum over blocks in units of e^(-w position of the sequence), with what rounding added so far (Kahan).
  struct Total {
    Pair sum, error;
  };

  bool applies() const {
    bool small = true;
    for (int i = 0; i < Base::lanes; ++i) {
      small &= fabs(static_cast<double>(w[i])) * static_cast<double>(length) <= kLimit;
      small &= fabs(static_cast<double>(u[i])) <= kLimit;
    }
    return small;
  }

  void forward() {
    prepare();
    Total past = nothing();
    for (int64_t b = 0; b < blocks(); ++b) {
      expand_future(b);
      Pair start = times(past.sum, growth(-begin(b))), local = {zero(), zero()};
      for (int64_t t = begin(b), i = 0; t < end(b); ++t, ++i) {
        V vt = at(v, t);
        Pair all = everything(start, local, i, vt, weight[t]);
        put(y, t, all.n / all.d);
        enter(local, weight[t] * up[i + 1], vt);
      }
      include(past, local, growth(begin(b)));
    }
  }

  void backward() {
    prepare();
    middle = static_cast<S>(length / 2);
    backward_forwards();
    backward_backwards();
  }

 private:
  V down[kBlock + 1], up[kBlock + 1]; // e^(-w i), e^(w i)
  V bonus;                            // e^u
  S middle;
  V *weight, *query;                  // e^(k - top) and (q y, q) for every token
  Pair *border, *future;              // future sums at block ends, and inside a block

  static MEDSEQ_MEMBER V zero() { return splat(S(0)); }
  static MEDSEQ_MEMBER Total nothing() { return {{zero(), zero()}, {zero(), zero()}}; }
  static MEDSEQ_MEMBER Pair times(const Pair &a, V x) { return {a.n * x, a.d * x}; }
  static MEDSEQ_MEMBER void enter(Pair &a, V p, V x) { a.n = a.n + p * x, a.d = a.d + p; }

  // e^(w t). Taken anew for every block: multiplying block by block would add up rounding.
  MEDSEQ_MEMBER V growth(int64_t t) const { return exp_bounded(w * static_cast<S>(t)); }

  static MEDSEQ_MEMBER void include(V &sum, V &error, V x) {
    V add = x - error, grown = sum + add;
    error = (grown - sum) - add;
    sum = grown;
  }
  static MEDSEQ_MEMBER void include(Total &a, const Pair &x, V scale) {
    include(a.sum.n, a.error.n, x.n * scale);
    include(a.sum.d, a.error.d, x.d * scale);
  }

  // Tables, the scale, all weights, and the future sums at block ends.
  void prepare() {
    weight = Base::token, query = Base::token + length;
    border = reinterpret_cast<Pair *>(Base::border), future = reinterpret_cast<Pair *>(Base::scratch);
    for (int64_t i = 0; i <= kBlock && i <= length; ++i) down[i] = growth(-i), up[i] = growth(i);
    bonus = exp_bounded(u);
    V top = at(k, 0);
    for (int64_t t = 1; t < length; ++t) top = vmax(at(k, t), top);
    Total after = nothing();
    for (int64_t b = blocks() - 1; b >= 0; --b) {
      border[b] = times(after.sum, growth(end(b)));
      Pair local = {zero(), zero()};
      for (int64_t t = begin(b), i = 0; t < end(b); ++t, ++i) {
        weight[t] = exp_bounded(at(k, t) - top);
        enter(local, weight[t] * down[i], at(v, t));
      }
      include(after, local, growth(-begin(b)));
    }
  }

  // future[i] = the sum over everything after token i of block b, in units of e^(-w (i + 1)).
  void expand_future(int64_t b) {
    int64_t count = end(b) - begin(b);
    Pair start = times(border[b], down[count]), local = {zero(), zero()};
    for (int64_t i = count - 1; i >= 0; --i) {
      future[i] = {start.n + local.n, start.d + local.d};
      enter(local, weight[begin(b) + i] * down[i], at(v, begin(b) + i));
    }
  }

  MEDSEQ_MEMBER Pair everything(const Pair &start, const Pair &local, int64_t i, V vt, V p) const {
    V self = bonus * p;
    return {down[i] * (start.n + local.n) + up[i + 1] * future[i].n + self * vt,
            down[i] * (start.d + local.d) + up[i + 1] * future[i].d + self};
  }

  // Left to right: the queries again, and what they send to later tokens.
  void backward_forwards() {
    Total past = nothing(), earlier = nothing();
    for (int64_t b = 0; b < blocks(); ++b) {
      expand_future(b);
      V decayed = growth(-begin(b)), grown = growth(begin(b));
      Pair start = times(past.sum, decayed), local = {zero(), zero()};
      Pair sent = times(earlier.sum, decayed), sending = {zero(), zero()};
      V block_gw = zero(), block_gu = zero();
      for (int64_t t = begin(b), i = 0; t < end(b); ++t, ++i) {
        V vt = at(v, t), p = weight[t], self = bonus * p;
        V past_n = down[i] * (start.n + local.n), past_d = down[i] * (start.d + local.d);
        V after_n = up[i + 1] * future[i].n, after_d = up[i + 1] * future[i].d;
        V d = past_d + after_d + self, q = at(gy, t) / d;
        V yt = (past_n + after_n + self * vt) / d;
        V own = self * q, gain = own * (vt - yt);
        V from_n = p * (down[i] * (sent.n + sending.n)), from_d = p * (down[i] * (sent.d + sending.d));
        V from_future = vt * from_d - from_n;
        put(gv, t, own + from_d);
        put(gk, t, gain + from_future);
        block_gu += gain;
        S place = static_cast<S>(t) - middle;
        block_gw += q * ((after_n - yt * after_d) * (place + 1) - (past_n - yt * past_d) * (place - 1));
        block_gw -= from_future * place;
        query[2 * t] = q * yt, query[2 * t + 1] = q;
        enter(local, p * up[i + 1], vt);
        enter(sending, q * up[i + 1], yt);
      }
      include(past, local, grown);
      include(earlier, sending, grown);
      gw += block_gw, gu += block_gu;
    }
  }

  // Right to left: what the queries send to earlier tokens.
  void backward_backwards() {
    Total later = nothing();
    for (int64_t b = blocks() - 1; b >= 0; --b) {
      int64_t first = begin(b), count = end(b) - first;
      Pair sent = times(later.sum, growth(first)), sending = {zero(), zero()};
      V block_gw = zero();
      for (int64_t i = count - 1; i >= 0; --i) {
        int64_t t = first + i;
        V reach = weight[t] * up[i + 1];
        V from_n = reach * (sent.n + sending.n), from_d = reach * (sent.d + sending.d);
        V from_past = at(v, t) * from_d - from_n;
        accumulate(gv, t, from_d);
        accumulate(gk, t, from_past);
        block_gw += from_past * (static_cast<S>(t) - middle);
        sending.n = sending.n + query[2 * t] * down[i];
        sending.d = sending.d + query[2 * t + 1] * down[i];
      }
      include(later, sending, growth(-first));
      gw += block_gw;
    }
  }
};

} // namespace
} // namespace MEDSEQ_ISA
} // namespace medseq
