// What the original CUDA kernel of Restore-RWKV computes: the sequence in 64 chunks. Derivation: ../wkv/README.md.
#pragma once

#include "wkv_state.hpp"

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

template <class S> struct Chunk64 : Channels<S> {
  typedef typename Simd<S>::V V;
  typedef State<S> St;
  typedef Channels<S> Base;
  using Base::at, Base::put, Base::accumulate, Base::step, Base::begin, Base::end, Base::blocks;
  using Base::k, Base::v, Base::gy, Base::y, Base::gk, Base::gv, Base::w, Base::u, Base::gw, Base::gu;
  using Base::past, Base::scratch, Base::token;

  static constexpr double kEpsilon = 1e-6; // added to the scaled denominator by the original kernel

  static int64_t block_length(int64_t length) { return length > 64 ? (length + 63) / 64 : 1; }

  // What token t sees behind it: the chunks before its own, its chunk so far, and the tokens s < j <= t with growing
  // weight. `open` is the exponent that the chunk's first token s has grown to.
  struct Behind {
    St before;
    Running<S> inside, grown;
    V open, since; // since = t - s
  };

  // Of the five sums; m is the largest exponent the original kernel meets.
  struct Exponents {
    V before, inside, grown, after, self, m;
  };
  // Of the five sums, relative to exp(m).
  struct Weights {
    V before, inside, grown, after, self;
  };

  void forward() {
    prepare();
    Base::sweep_future();
    St carried = empty<S>();
    for (int64_t b = 0; b < blocks(); ++b) {
      Base::expand_future(b);
      Behind behind = open_chunk(b, carried);
      for (int64_t t = begin(b); t < end(b); ++t) {
        V kt = at(k, t), vt = at(v, t);
        const St &after = scratch[t - begin(b)];
        enter(behind, t == begin(b), kt, vt);
        Weights p = weigh(exponents(behind, after, kt));
        put(y, t, numerator(behind, after, p, vt) / denominator(behind, after, p));
        leave(behind, kt, vt);
      }
      carried = add<S>(behind.before, behind.inside.sum, w);
    }
  }

  void backward() {
    prepare();
    Base::sweep_future();
    backward_forwards();
    backward_backwards();
    spread_largest();
  }

 private:
  V factor, shift; // 1 - e^w = factor * e^shift, neither of which overflows

  void prepare() {
    Base::slack = 0;
    for (int i = 0; i < Lanes<S>::count; ++i) {
      double rate = w[i];
      factor[i] = static_cast<S>(rate > 0 ? expm1(-rate) : -expm1(rate));
      shift[i] = rate > 0 ? w[i] : S(0);
    }
  }

  MEDSEQ_MEMBER Behind open_chunk(int64_t b, const St &carried) const {
    return {carried, running<S>(empty<S>()), running<S>(empty<S>()), at(k, begin(b)), splat(S(0))};
  }
  MEDSEQ_MEMBER void enter(Behind &c, bool first, V kt, V vt) const {
    if (!first) push<S>(c.grown, -w, kt, vt, splat(S(1)), S(0));
  }
  MEDSEQ_MEMBER void leave(Behind &c, V kt, V vt) const {
    step(c.inside, kt, vt);
    c.before = aged<S>(c.before);
    c.since = c.since + 1;
  }

  MEDSEQ_MEMBER Exponents exponents(const Behind &c, const St &after, V kt) const {
    Exponents e;
    e.before = exponent<S>(aged<S>(c.before), w);
    e.inside = exponent<S>(c.inside.sum, w);
    e.grown = exponent<S>(c.grown.sum, -w) + shift;
    e.after = exponent<S>(aged<S>(after), w);
    e.self = u + kt;
    e.m = vmax(vmax(vmax(e.before, e.inside), vmax(e.grown, e.after)), vmax(e.self, c.open + w * c.since));
    return e;
  }
  MEDSEQ_MEMBER Weights weigh(const Exponents &e) const {
    return {exp_bounded(e.before - e.m), exp_bounded(e.inside - e.m), factor * exp_bounded(e.grown - e.m),
            exp_bounded(e.after - e.m), exp_bounded(e.self - e.m)};
  }
  MEDSEQ_MEMBER V numerator(const Behind &c, const St &after, const Weights &p, V vt) const {
    return p.before * c.before.n + p.inside * c.inside.sum.n + p.grown * c.grown.sum.n + p.after * after.n + p.self * vt;
  }
  MEDSEQ_MEMBER V denominator(const Behind &c, const St &after, const Weights &p) const {
    return p.before * c.before.d + p.inside * c.inside.sum.d + p.grown * c.grown.sum.d + p.after * after.d + p.self +
           static_cast<S>(kEpsilon);
  }

  // Left to right: the queries again, and what they send to later tokens.
  void backward_forwards() {
    St carried = empty<S>();
    Running<S> earlier = running<S>(carried);
    const V two = splat(S(2));
    for (int64_t b = 0; b < blocks(); ++b) {
      Base::expand_future(b);
      past[b] = carried;
      Behind c = open_chunk(b, carried);
      V block_gw = splat(S(0)), block_gu = splat(S(0));
      for (int64_t t = begin(b); t < end(b); ++t) {
        V kt = at(k, t), vt = at(v, t);
        const St &after = scratch[t - begin(b)];
        enter(c, t == begin(b), kt, vt);
        Exponents e = exponents(c, after, kt);
        Weights p = weigh(e);
        V d = denominator(c, after, p);
        V yt = numerator(c, after, p, vt) / d, q = at(gy, t) / d, self = p.self * q;
        V weight = exp_bounded(kt + exponent<S>(aged<S>(earlier.sum), w));
        put(gv, t, self + weight * earlier.sum.d);
        put(gk, t, self * (vt - yt) + weight * (vt * earlier.sum.d - earlier.sum.n));
        block_gu += self * (vt - yt);
        // e^-w before the far sums and 1 - e^w before the grown one depend on w themselves.
        V slope = exp_bounded(exponent<S>(c.grown.sum, -w) + w - e.m);
        block_gw -= q * (p.before * (c.before.n - yt * c.before.d) + p.after * (after.n - yt * after.d) +
                         slope * (c.grown.sum.n - yt * c.grown.sum.d));
        block_gw -= paired<S>(after, earlier.sum, w, two);
        V *kept = token + 4 * t;
        kept[0] = q * yt, kept[1] = q, kept[2] = -e.m;
        kept[3] = find_largest(c, after, e, q * yt * S(-kEpsilon), block_gw, block_gu);
        push<S>(earlier, w, -e.m, q * yt, q, Base::kSlack);
        leave(c, kt, vt);
      }
      carried = add<S>(c.before, c.inside.sum, w);
      gw += block_gw, gu += block_gu;
    }
  }

  // m scales epsilon, so it has a gradient gm: to w by the distance of the token that has the exponent m, to u if that
  // is the token itself. Returns where that token is, relative to t; its k gets gm in spread_largest.
  MEDSEQ_MEMBER V find_largest(const Behind &c, const St &after, const Exponents &e, V gm, V &block_gw,
                               V &block_gu) const {
    const V none = splat(S(0)), one = splat(S(1));
    V where = -c.since, slope = c.since; // the chunk's first token, unless one of these has the exponent
    auto choose = [&](V candidate, V its_place, V its_slope) __attribute__((always_inline)) {
      auto found = candidate == e.m;
      where = found ? its_place : where;
      slope = found ? its_slope : slope;
    };
    choose(e.before, -c.before.age - 1, -c.before.age - 1);
    choose(e.inside, -c.inside.sum.age - 1, -c.inside.sum.age);
    choose(e.after, after.age + 1, -after.age - 1);
    choose(e.grown, -c.grown.sum.age, c.grown.sum.age + (shift > 0 ? one : none));
    choose(e.self, none, none);
    block_gw += gm * slope;
    block_gu += e.self == e.m ? gm : none;
    return where;
  }

  void spread_largest() {
    for (int64_t t = 0; t < Base::length; ++t) {
      const V *kept = token + 4 * t;
      for (int i = 0; i < Base::lanes; ++i)
        gk[(t + static_cast<int64_t>(kept[3][i])) * Base::stride + i] -= static_cast<S>(kEpsilon) * kept[0][i];
    }
  }

  // Right to left: what the queries send to earlier tokens, of the same chunk or of one before.
  void backward_backwards() {
    const V one = splat(S(1)), two = splat(S(2));
    St later = empty<S>(); // adjoint of what crosses the chunk's end
    for (int64_t b = blocks() - 1; b >= 0; --b) {
      recompute_behind(b);
      Running<S> inside = running<S>(empty<S>()), grown = inside;
      V block_gw = splat(S(0));
      for (int64_t t = end(b) - 1; t >= begin(b); --t) {
        V kt = at(k, t), vt = at(v, t);
        const V *kept = token + 4 * t;
        const St *s = scratch + 3 * (t - begin(b));
        block_gw -= paired<S>(s[0], later, w, two) + paired<S>(s[0], inside.sum, w, two) +
                    paired<S>(s[1], later, w, two) + paired<S>(s[1], inside.sum, w, one);
        block_gw += factor * paired_grown(s[2], grown.sum);
        V p_later = exp_bounded(kt + exponent<S>(aged<S>(later), w));
        V p_inside = exp_bounded(kt + exponent<S>(inside.sum, w));
        V sum_q = p_later * later.d + p_inside * inside.sum.d;
        V sum_qy = p_later * later.n + p_inside * inside.sum.n;
        if (t > begin(b)) {
          push<S>(grown, -w, kept[2], kept[0], kept[1], Base::kSlack);
          V p_grown = factor * exp_bounded(kt + exponent<S>(grown.sum, -w) + shift);
          sum_q += p_grown * grown.sum.d;
          sum_qy += p_grown * grown.sum.n;
        }
        accumulate(gv, t, sum_q);
        accumulate(gk, t, vt * sum_q - sum_qy);
        push<S>(inside, w, kept[2], kept[0], kept[1], Base::kSlack);
        later = aged<S>(later);
      }
      later = add<S>(later, inside.sum, w);
      gw += block_gw;
    }
  }

  // `paired` of the grown sum, with the e^shift of its factor.
  MEDSEQ_MEMBER V paired_grown(const St &a, const St &b) const {
    return exp_bounded((a.top + b.top) + w * (a.age + b.age + 1) + shift) * (b.d * a.n - b.n * a.d);
  }

  void recompute_behind(int64_t b) {
    Behind c = open_chunk(b, past[b]);
    for (int64_t t = begin(b); t < end(b); ++t) {
      V kt = at(k, t), vt = at(v, t);
      enter(c, t == begin(b), kt, vt);
      St *s = scratch + 3 * (t - begin(b));
      s[0] = c.before, s[1] = c.inside.sum, s[2] = c.grown.sum;
      leave(c, kt, vt);
    }
  }
};

} // namespace
} // namespace MEDSEQ_ISA
} // namespace medseq
