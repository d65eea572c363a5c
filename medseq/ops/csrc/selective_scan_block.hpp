// One vector of channels ("block") of a selective scan: where its rows lie, its parameters, and what a tile needs
// before its states.
#pragma once

#include "selective_scan.hpp"
#include "selective_scan_states.hpp"

#include <stdlib.h>

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

// Aligned memory for vectors, handed out piece by piece.
template <class V> class Arena {
 public:
  explicit Arena(int64_t vectors) : memory(0), next(0) {
    if (posix_memalign(&memory, 64, sizeof(V) * static_cast<size_t>(vectors + 1))) memory = 0;
    next = static_cast<V *>(memory);
  }
  ~Arena() { free(memory); }
  bool failed() const { return memory == 0; }
  void rewind() { next = static_cast<V *>(memory); }
  V *take(int64_t vectors) {
    V *p = next;
    next += vectors;
    return p;
  }

 private:
  Arena(const Arena &);
  void operator=(const Arena &);
  void *memory;
  V *next;
};

template <class V> MEDSEQ_INLINE void zero(V *p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = V{};
}

// x with zeros in the lanes that have no channel of their own: they must add nothing to sums over channels.
template <class S> MEDSEQ_INLINE typename Simd<S>::V only(typename Simd<S>::V x, int lanes) {
  for (int i = lanes; i < Lanes<S>::count; ++i) x[i] = 0;
  return x;
}

// Where the channels of a block lie: channels [channel, channel + lanes) of item `batch`, all in `group`.
struct Place {
  int64_t batch, group, channel;
  int lanes;
};

// Blocks never reach into another group.
template <class S> MEDSEQ_INLINE int64_t group_blocks(const SelectiveScanProblem &p) {
  return (p.channels / p.groups + Lanes<S>::count - 1) / Lanes<S>::count;
}

template <class S>
MEDSEQ_INLINE Place place(const SelectiveScanProblem &p, int64_t batch, int64_t group, int64_t block) {
  int64_t first = block * Lanes<S>::count, rest = p.channels / p.groups - first;
  return {batch, group, group * (p.channels / p.groups) + first,
          static_cast<int>(rest < Lanes<S>::count ? rest : Lanes<S>::count)};
}

template <class S> MEDSEQ_INLINE S *row_of(const ScanRows &rows, const Place &at) {
  return static_cast<S *>(rows.data) + at.batch * rows.batch_stride + at.channel * rows.channel_stride;
}

// (channel, state) or (batch, channel, state) <-> V[state].
template <class S>
void load_states(const void *array, const Place &at, int64_t batch_stride, int64_t states, typename Simd<S>::V *out) {
  const S *base = static_cast<const S *>(array) + at.batch * batch_stride + at.channel * states;
  load_rows(base, states, at.lanes, 0, states, out, 1);
}

template <class S>
void store_states(void *array, const Place &at, int64_t batch_stride, int64_t states, const typename Simd<S>::V *in) {
  S *base = static_cast<S *>(array) + at.batch * batch_stride + at.channel * states;
  store_rows(base, states, at.lanes, 0, states, in, 1);
}

// What stays the same over all tokens.
template <class S> struct Parameters {
  typedef typename Simd<S>::V V;
  V *rate, *b, *c; // V[state]: A log2(e), and B, C if constant
  V largest;       // of |rate|
  V skip, bias;    // D, delta_bias

  static int64_t vectors(const SelectiveScanProblem &p) { return 3 * p.states; }

  void load_from(const SelectiveScanProblem &p, const Place &at, Arena<V> &arena) {
    rate = arena.take(p.states), b = arena.take(p.states), c = arena.take(p.states);
    load_states<S>(p.A, at, 0, p.states, rate);
    largest = splat(S(0));
    for (int64_t n = 0; n < p.states; ++n) {
      rate[n] *= static_cast<S>(kLog2e);
      V size = rate[n] < 0 ? -rate[n] : rate[n];
      largest = size <= largest ? largest : size;
    }
    if (p.constant_b) load_states<S>(p.B, at, 0, p.states, b);
    if (p.constant_c) load_states<S>(p.C, at, 0, p.states, c);
    skip = p.D ? load(static_cast<const S *>(p.D) + at.channel, at.lanes) : V{};
    bias = p.delta_bias ? load(static_cast<const S *>(p.delta_bias) + at.channel, at.lanes) : V{};
  }
};

// A run of tiles, which one block of channels goes through before the next one does: of every row a piece so long that
// the processor foresees what comes next, and so short that B and C of all tiles stay in the second-level cache.
constexpr int64_t kLongestRun = 16;

MEDSEQ_INLINE int64_t run_tiles(const SelectiveScanProblem &p) {
  int64_t tiles = p.states ? 128 / p.states : kLongestRun;
  return tiles < 1 ? 1 : tiles < kLongestRun ? tiles : kLongestRun;
}

struct Run {
  int64_t first, tiles, length; // length: of the whole scan

  MEDSEQ_MEMBER int64_t start(int64_t tile) const { return (first + tile) * kTile; }
  MEDSEQ_MEMBER int64_t tokens(int64_t tile) const {
    int64_t left = length - start(tile);
    return left < kTile ? left : kTile;
  }
  MEDSEQ_MEMBER int64_t tokens() const { return (tiles - 1) * kTile + tokens(tiles - 1); }
};

MEDSEQ_INLINE int64_t all_runs(const SelectiveScanProblem &p) {
  int64_t tokens = run_tiles(p) * kTile;
  return (p.length + tokens - 1) / tokens;
}

MEDSEQ_INLINE Run run_of(const SelectiveScanProblem &p, int64_t number) {
  int64_t most = run_tiles(p), first = number * most, left = (p.length + kTile - 1) / kTile - first;
  return {first, left < most ? left : most, p.length};
}

// Vectors that hold B or C of a run.
template <class S> MEDSEQ_INLINE int64_t row_vectors(const SelectiveScanProblem &p) {
  return run_tiles(p) * p.states * kTile / Lanes<S>::count + 1;
}

// B or C of a run in the scan's order, [tile][state][kTile], shared by the channels of a group. Copied, because rows
// that lie a power of two apart would drive each other out of the cache.
template <class S>
void copy_rows(const SelectiveScanProblem &p, const Walk &walk, const void *array, int64_t batch, int64_t group,
               const Run &run, S *copy) {
  const S *rows = static_cast<const S *>(array) + (batch * p.groups + group) * p.states * p.length;
  for (int64_t tile = 0; tile < run.tiles; ++tile)
    for (int64_t n = 0; n < p.states; ++n, copy += kTile)
      copy_row(walk, run.start(tile), run.tokens(tile), rows + n * p.length, copy);
}

// The states before a tile, which forward keeps for backward.
template <class S>
MEDSEQ_INLINE S *checkpoint(const SelectiveScanProblem &p, const void *array, int64_t batch, int64_t t0) {
  int64_t tiles = (p.length + kTile - 1) / kTile;
  return static_cast<S *>(const_cast<void *>(array)) + (batch * tiles + t0 / kTile) * p.channels * p.states;
}

// Calls work(b, c) with the kinds of B and C that the problem has.
template <class S, class Work>
MEDSEQ_INLINE void with_kinds(const SelectiveScanProblem &p, const PerToken<S> &b, const PerToken<S> &c,
                              const PerChannel<S> &fixed_b, const PerChannel<S> &fixed_c, const Work &work) {
  if (p.constant_b && p.constant_c) return work(fixed_b, fixed_c);
  if (p.constant_b) return work(fixed_b, c);
  if (p.constant_c) return work(b, fixed_c);
  work(b, c);
}

// dt = softplus(delta + bias) in place, x = dt u; true if no exponent of the tile needs clamping.
template <class S, bool Softplus>
MEDSEQ_INLINE bool step_sizes(const Parameters<S> &q, int64_t count, const typename Simd<S>::V *u,
                              typename Simd<S>::V *dt, typename Simd<S>::V *x, typename Simd<S>::V *slope) {
  typedef typename Simd<S>::V V;
  typedef typename Simd<S>::I I;
  const V bias = q.bias;
  I largest{};
  // Two short passes, of which the processor overlaps more tokens than of a long one.
  for (int64_t t = 0; t < count; ++t) {
    dt[t] += bias;
    if (Softplus) x[t] = exp_minus_abs<S>(dt[t]);
  }
  for (int64_t t = 0; t < count; ++t) {
    V d = dt[t];
    if (Softplus) {
      V e = x[t];
      if (slope) slope[t] = sigmoid_from<S>(d, e);
      d = softplus_from<S>(d, e);
    }
    dt[t] = d;
    x[t] = d * u[t];
    I size = magnitude<S>(d);
    largest = size > largest ? size : largest;
  }
  I outside = ~(from_bits<S>(largest) * q.largest <= Constants<S>::safe);
  bool safe = true;
  for (int i = 0; i < Lanes<S>::count; ++i) safe &= outside[i] == 0;
  return safe;
}

} // namespace
} // namespace MEDSEQ_ISA
} // namespace medseq
