// The paper's formula where w is small, |w| * length <= 10, as it is in every model: w is a decay divided by the length.
//
// No weight then decays or grows by more than e^10 over the whole sequence, so one scale serves all tokens: that of the
// largest k. exp(k) is taken once per token and pass, and the rest is sums. wkv_exact.hpp is the same for any w.
// Derivation: ../wkv/README.md.
//
// Work on a block of tokens is a function of its own, so that the vectors of channels beside each other go through the
// sequence together: memory is then read row by row, each cache line once, however long the sequence.
#pragma once

#include "selective_scan_math.hpp"
#include "wkv_state.hpp"

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

template <class S> struct SmallDecay : Channels<S> {
  typedef typename Simd<S>::V V;
  typedef Channels<S> Base;
  using Base::at, Base::put, Base::begin, Base::end, Base::length;
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

  // At the end of a block: the sum over later tokens and their scale; the scale with the block's own tokens. Going back
  // `sum` becomes the one over earlier queries.
  struct Border {
    Pair sum;
    V top, own_top;
  };

  // For one block at a time; all vectors of channels use the same.
  struct Workspace {
    V weight[kBlock];    // e^(k - top)
    Pair future[kBlock]; // the sums over later tokens (keys, or queries) in units of e^(-w (i + 1))
  };

  bool applies() const {
    bool small = true;
    for (int i = 0; i < Base::lanes; ++i) {
      small &= fabs(static_cast<double>(w[i])) * static_cast<double>(length) <= kLimit;
      small &= fabs(static_cast<double>(u[i])) <= kLimit;
    }
    return small;
  }

  // Before the first block. `keep` is an output, (batch, length, channel), that holds the weights until it is written.
  void open(Border *borders, S *keep) {
    border = borders, kept = keep;
    for (int64_t i = 0; i <= kBlock && i <= length; ++i) down[i] = growth(-i), up[i] = growth(i);
    bonus = exp_bounded(u);
    middle = static_cast<S>(length / 2);
    top = splat(S(-1e30)); // finite, so that differences of two are no NaN
    past = earlier = later = {{zero(), zero()}, {zero(), zero()}};
  }

  // Right to left: the sums over later tokens at the ends of blocks, every token's weight in units of the largest k so
  // far.
  void sweep_block(int64_t b) {
    V own_top = top;
    for (int64_t t = begin(b); t < end(b); ++t) own_top = vmax(at(k, t), own_top);
    border[b] = {later.sum, top, own_top};
    V shrink = exp_bounded(top - own_top);
    later = {times(later.sum, shrink), times(later.error, shrink)};
    top = own_top;
    Pair local = {zero(), zero()};
    for (int64_t t = begin(b), i = 0; t < end(b); ++t, ++i) {
      V p = weight_of(at(k, t) - top);
      put(kept, t, p);
      enter(local, p * down[i], at(v, t));
      fetch(k, t - kBlock), fetch(v, t - kBlock), fetch_to_write(kept, t - kBlock);
    }
    include(later, local, growth(-begin(b)));
  }

  // Left to right.
  void forward_block(int64_t b, Workspace &work) {
    expand_future(b, work);
    Pair start = times(past.sum, growth(-begin(b))), local = {zero(), zero()};
    for (int64_t t = begin(b), i = 0; t < end(b); ++t, ++i) {
      V vt = at(v, t), p = work.weight[i], self = bonus * p;
      V n = down[i] * (start.n + local.n) + up[i + 1] * work.future[i].n + self * vt;
      V d = down[i] * (start.d + local.d) + up[i + 1] * work.future[i].d + self;
      put(y, t, n / d);
      enter(local, p * up[i + 1], vt);
      fetch(v, t + kBlock), fetch_to_write(kept, t + kBlock);
    }
    include(past, local, growth(begin(b)));
  }

  // Left to right: the queries (q y, q), which wait in gk and gv, and what w and u get from them.
  void query_block(int64_t b, Workspace &work) {
    expand_future(b, work);
    border[b].sum = earlier.sum;
    V grown = growth(begin(b)), block_gw = zero(), block_gu = zero();
    Pair start = times(past.sum, growth(-begin(b))), local = {zero(), zero()}, sending = local;
    for (int64_t t = begin(b), i = 0; t < end(b); ++t, ++i) {
      V vt = at(v, t), p = work.weight[i], self = bonus * p;
      V after_n = up[i + 1] * work.future[i].n, after_d = up[i + 1] * work.future[i].d;
      V n = down[i] * (start.n + local.n) + after_n + self * vt;
      V d = down[i] * (start.d + local.d) + after_d + self;
      V inverse = splat(S(1)) / d, q = at(gy, t) * inverse, yt = n * inverse;
      // After, past and self weigh v - y, and these three add up to 0.
      V own = self * (vt - yt), after = after_n - yt * after_d;
      block_gu += q * own;
      block_gw += q * (after + after + own) * (static_cast<S>(t) - middle);
      put(gk, t, q * yt), put(gv, t, q);
      enter(local, p * up[i + 1], vt);
      enter(sending, q * up[i + 1], yt);
      fetch(v, t + kBlock), fetch(gy, t + kBlock), fetch_to_write(gk, t + kBlock), fetch_to_write(kept, t + kBlock);
    }
    include(past, local, grown);
    include(earlier, sending, grown);
    gw += block_gw - block_gu, gu += block_gu;
  }

  // Between the two sweeps of the backward pass: `later` now sums queries.
  void turn() { later = {{zero(), zero()}, {zero(), zero()}}; }

  // Right to left: what all queries send to the keys and values, the mirror image of `forward_block`.
  void key_block(int64_t b, Workspace &work) {
    int64_t first = begin(b), count = end(b) - first;
    Pair from_later = times(later.sum, growth(first)), local = {zero(), zero()};
    for (int64_t i = count - 1; i >= 0; --i) {
      work.future[i] = {from_later.n + local.n, from_later.d + local.d};
      local.n = local.n + at(gk, first + i) * down[i], local.d = local.d + at(gv, first + i) * down[i];
    }
    include(later, local, growth(-first));
    V block_gw = zero();
    Pair start = times(border[b].sum, growth(-first)), sending = {zero(), zero()};
    for (int64_t t = first, i = 0; i < count; ++t, ++i) {
      V vt = at(v, t), p = weight_of(at(k, t) - top), query_n = at(gk, t), query_d = at(gv, t);
      V later_n = up[i + 1] * work.future[i].n, later_d = up[i + 1] * work.future[i].d;
      V earlier_n = down[i] * (start.n + sending.n), earlier_d = down[i] * (start.d + sending.d);
      V seen_n = later_n + earlier_n + bonus * query_n, seen_d = later_d + earlier_d + bonus * query_d;
      put(gv, t, p * seen_d);
      put(gk, t, p * (vt * seen_d - seen_n));
      S place = static_cast<S>(t) - middle;
      block_gw += p * (vt * (later_d - earlier_d) - (later_n - earlier_n)) * place;
      sending.n = sending.n + query_n * up[i + 1], sending.d = sending.d + query_d * up[i + 1];
      fetch(k, t - kBlock), fetch(v, t - kBlock), fetch_to_write(gk, t - kBlock), fetch_to_write(gv, t - kBlock);
    }
    gw += block_gw;
  }

 private:
  V down[kBlock + 1], up[kBlock + 1]; // e^(-w i), e^(w i)
  V bonus, top;                       // e^u, the largest k
  S middle;
  Total past, earlier, later;
  Border *border; // one per block
  S *kept;

  static MEDSEQ_MEMBER V zero() { return splat(S(0)); }
  static MEDSEQ_MEMBER Pair times(const Pair &a, V x) { return {a.n * x, a.d * x}; }
  static MEDSEQ_MEMBER void enter(Pair &a, V p, V x) { a.n = a.n + p * x, a.d = a.d + p; }

  // e^x for x <= 0; 0 below the normal range.
  static MEDSEQ_MEMBER V weight_of(V x) {
    const V low = splat(Constants<S>::lowest);
    V z = x * static_cast<S>(kLog2e);
    z = low > z ? low : z;
    V shifted = z + Constants<S>::magic, p = exp2_parts(z - (shifted - Constants<S>::magic), shifted);
    return x == x ? p : x;
  }

  // The next block, while this one is worked on: a vector of channels alone reads too little of a row for the
  // processor to see the pattern. Addresses beyond the array are harmless.
  MEDSEQ_MEMBER void fetch(const S *p, int64_t t) const { __builtin_prefetch(p + t * Base::stride, 0, 2); }
  MEDSEQ_MEMBER void fetch_to_write(S *p, int64_t t) const { __builtin_prefetch(p + t * Base::stride, 1, 2); }

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

  // The weights of block b and the sums over everything after each token, in units of the largest k of all.
  MEDSEQ_MEMBER void expand_future(int64_t b, Workspace &work) const {
    int64_t first = begin(b);
    V scale = exp_bounded(border[b].own_top - top);
    Pair start = times(border[b].sum, growth(first) * exp_bounded(border[b].top - top)), local = {zero(), zero()};
    for (int64_t i = end(b) - first - 1; i >= 0; --i) {
      V p = at(kept, first + i) * scale;
      work.weight[i] = p;
      work.future[i] = {start.n + local.n, start.d + local.d};
      enter(local, p * down[i], at(v, first + i));
    }
  }
};

} // namespace
} // namespace MEDSEQ_ISA
} // namespace medseq
