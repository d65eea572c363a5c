// The paper's formula of bidirectional WKV, forward and backward. Derivation: ../wkv/README.md.
#pragma once

#include "wkv_state.hpp"

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

template <class S> struct Exact : Channels<S> {
  typedef typename Simd<S>::V V;
  typedef State<S> St;
  typedef Channels<S> Base;
  using Base::at, Base::put, Base::accumulate, Base::step, Base::begin, Base::end, Base::blocks;
  using Base::k, Base::v, Base::gy, Base::y, Base::gk, Base::gv, Base::w, Base::u, Base::gw, Base::gu;
  using Base::past, Base::scratch, Base::token;

  static int64_t block_length(int64_t) { return 64; } // shared with SmallDecay

  MEDSEQ_MEMBER St all_of(const St &before, const St &after, V kt, V vt) const {
    return add<S>(add<S>(before, after, w), {vt, splat(S(1)), u + kt, splat(S(0))}, w);
  }

  void forward() {
    Base::slack = Base::kSlack;
    Base::sweep_future();
    Running<S> before = running<S>(empty<S>());
    for (int64_t b = 0; b < blocks(); ++b) {
      Base::expand_future(b);
      for (int64_t t = begin(b); t < end(b); ++t) {
        V kt = at(k, t), vt = at(v, t);
        St all = all_of(before.sum, scratch[t - begin(b)], kt, vt);
        put(y, t, all.n / all.d);
        step(before, kt, vt);
      }
    }
  }

  void backward() {
    Base::slack = Base::kSlack;
    Base::sweep_future();
    backward_forwards();
    backward_backwards();
  }

 private:
  // Left to right: the queries again, and what they send to later tokens (through their future sums).
  void backward_forwards() {
    Running<S> before = running<S>(empty<S>()), earlier = before;
    for (int64_t b = 0; b < blocks(); ++b) {
      Base::expand_future(b);
      past[b] = before.sum;
      V block_gw = splat(S(0)), block_gu = splat(S(0));
      for (int64_t t = begin(b); t < end(b); ++t) {
        const St &after = scratch[t - begin(b)];
        V kt = at(k, t), vt = at(v, t);
        St all = all_of(before.sum, after, kt, vt);
        V m = exponent<S>(all, w), yt = all.n / all.d, q = at(gy, t) / all.d;
        V self = exp_bounded(u + kt - m) * q;
        V weight = exp_bounded(kt + exponent<S>(earlier.sum, w));
        put(gv, t, self + weight * earlier.sum.d);
        put(gk, t, self * (vt - yt) + weight * (vt * earlier.sum.d - earlier.sum.n));
        block_gu += self * (vt - yt);
        block_gw -= paired<S>(after, earlier.sum, w, splat(S(1)));
        V *kept = token + 4 * t;
        kept[0] = q * yt, kept[1] = q, kept[2] = -m;
        push<S>(earlier, w, -m, q * yt, q, Base::kSlack);
        step(before, kt, vt);
      }
      gw += block_gw, gu += block_gu;
    }
  }

  // Right to left: what the queries send to earlier tokens (through their past sums).
  void backward_backwards() {
    Running<S> later = running<S>(empty<S>());
    for (int64_t b = blocks() - 1; b >= 0; --b) {
      Running<S> before = running<S>(past[b]);
      for (int64_t t = begin(b); t < end(b); ++t) {
        scratch[t - begin(b)] = before.sum;
        step(before, at(k, t), at(v, t));
      }
      V block_gw = splat(S(0));
      for (int64_t t = end(b) - 1; t >= begin(b); --t) {
        V kt = at(k, t), vt = at(v, t);
        V weight = exp_bounded(kt + exponent<S>(later.sum, w));
        accumulate(gv, t, weight * later.sum.d);
        accumulate(gk, t, weight * (vt * later.sum.d - later.sum.n));
        block_gw -= paired<S>(scratch[t - begin(b)], later.sum, w, splat(S(1)));
        const V *kept = token + 4 * t;
        push<S>(later, w, kept[2], kept[0], kept[1], Base::kSlack);
      }
      gw += block_gw;
    }
  }
};

} // namespace
} // namespace MEDSEQ_ISA
} // namespace medseq
