// The selective scan forward. Threads share the channels; each takes a few blocks of channels at a time over all runs
// of tiles, so that they share the rows of B and C in cache.

#include "selective_scan_block.hpp"

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

constexpr int64_t kStrip = 4; // blocks that walk together

template <class S> class Forward {
 public:
  typedef typename Simd<S>::V V;

  Forward(const SelectiveScanProblem &problem, const SelectiveScanResult &result)
      : p(problem), out(result), arena(vectors(problem)), walk(Walk::row_major(problem.length)) {
    if (p.reverse) walk = walk.reversed(p.length);
  }
  bool failed() const { return arena.failed(); }

  // Blocks [first, last) of one group of one batch item.
  void run(int64_t batch, int64_t group, int64_t first, int64_t last) {
    arena.rewind();
    u = arena.take(kTile), dt = arena.take(kTile), x = arena.take(kTile), y = arena.take(kTile);
    S *b = reinterpret_cast<S *>(arena.take(row_vectors<S>(p)));
    S *c = reinterpret_cast<S *>(arena.take(row_vectors<S>(p)));
    for (int64_t i = first; i < last; ++i) open(blocks[i - first], place<S>(p, batch, group, i));
    for (int64_t number = 0; number < all_runs(p); ++number) {
      const Run run = run_of(p, number);
      if (!p.constant_b) copy_rows(p, walk, p.B, batch, group, run, b);
      if (!p.constant_c) copy_rows(p, walk, p.C, batch, group, run, c);
      for (int64_t i = first; i < last; ++i)
        for (int64_t tile = 0; tile < run.tiles; ++tile) {
          const int64_t row = tile * p.states * kTile;
          advance(blocks[i - first], run.start(tile), run.tokens(tile), {b + row, 0}, {c + row, 0});
        }
    }
    for (int64_t i = first; i < last; ++i)
      store_states<S>(out.last_state, blocks[i - first].at, p.channels * p.states, p.states, blocks[i - first].h);
  }

 private:
  struct Block {
    Place at;
    Parameters<S> q;
    V *h;
  };

  const SelectiveScanProblem &p;
  const SelectiveScanResult &out;
  Arena<V> arena;
  Walk walk;
  Block blocks[kStrip];
  V *u, *dt, *x, *y; // of a tile

  static int64_t vectors(const SelectiveScanProblem &p) {
    return 4 * kTile + 2 * row_vectors<S>(p) + kStrip * (Parameters<S>::vectors(p) + p.states);
  }

  void open(Block &block, const Place &at) {
    block.at = at;
    block.q.load_from(p, at, arena);
    block.h = arena.take(p.states);
    if (p.initial_state) return load_states<S>(p.initial_state, at, p.channels * p.states, p.states, block.h);
    zero(block.h, p.states);
  }

  void advance(Block &block, int64_t t0, int64_t count, const PerToken<S> &b, const PerToken<S> &c) {
    const Parameters<S> &q = block.q;
    if (out.checkpoints)
      store_states<S>(checkpoint<S>(p, out.checkpoints, block.at.batch, t0), block.at, 0, p.states, block.h);
    load_tile(walk, t0, count, row_of<S>(p.u, block.at), p.u.channel_stride, block.at.lanes, u);
    load_tile(walk, t0, count, row_of<S>(p.delta, block.at), p.delta.channel_stride, block.at.lanes, dt);
    Tile<S> tile = {count, dt, x, p.softplus ? step_sizes<S, true>(q, count, u, dt, x, 0)
                                             : step_sizes<S, false>(q, count, u, dt, x, 0)};
    for (int64_t t = 0; t < count; ++t) y[t] = q.skip * u[t];
    with_kinds<S>(p, b, c, {q.b, 0}, {q.c, 0}, [&](const auto &kind_b, const auto &kind_c) {
      forward_tile<S>(tile, p.states, q.rate, block.h, kind_b, kind_c, y);
    });
    if (p.z.data) {
      load_tile(walk, t0, count, row_of<S>(p.z, block.at), p.z.channel_stride, block.at.lanes, u);
      for (int64_t t = 0; t < count; ++t) y[t] *= u[t] * sigmoid<S>(u[t]);
    }
    store_tile(walk, t0, count, row_of<S>(out.y, block.at), out.y.channel_stride, block.at.lanes, y);
  }
};

template <class S> int forward(const SelectiveScanProblem &p, const SelectiveScanResult &out) {
  int failed = 0;
  const int64_t blocks = group_blocks<S>(p), all = p.batch * p.groups * blocks;
  // Long strips, but at least four for every thread.
  int64_t strip = all / (4 * static_cast<int64_t>(p.threads));
  strip = strip < 1 ? 1 : strip < kStrip ? strip : kStrip;
  const int64_t strips = (blocks + strip - 1) / strip;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1) reduction(| : failed)
  {
    FlushDenormals guard;
    Forward<S> work(p, out);
    failed = work.failed();
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < p.batch * p.groups * strips; ++task) {
      if (failed) continue;
      int64_t first = task % strips * strip, row = task / strips;
      work.run(row / p.groups, row % p.groups, first, first + strip < blocks ? first + strip : blocks);
    }
  }
  return failed;
}

template <class S> void exp2_all(int64_t count, const S *x, S *y) {
  constexpr int step = Lanes<S>::count;
  const typename Simd<S>::V one = splat(S(1));
  int64_t i = 0;
  for (; i + step <= count; i += step) store(y + i, exp2_safe<S>(load(x + i, step), one), step);
  if (i < count) store(y + i, exp2_safe<S>(load(x + i, static_cast<int>(count - i)), one), static_cast<int>(count - i));
}

} // namespace

int selective_scan_forward_f32(const SelectiveScanProblem &p, const SelectiveScanResult &out) {
  return forward<float>(p, out);
}
int selective_scan_forward_f64(const SelectiveScanProblem &p, const SelectiveScanResult &out) {
  return forward<double>(p, out);
}
void exp2_f32(int64_t count, const void *x, void *y) {
  exp2_all(count, static_cast<const float *>(x), static_cast<float *>(y));
}
void exp2_f64(int64_t count, const void *x, void *y) {
  exp2_all(count, static_cast<const double *>(x), static_cast<double *>(y));
}

} // namespace MEDSEQ_ISA
} // namespace medseq
