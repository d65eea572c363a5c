// The selective scan backward: tiles from the last to the first, each recomputed from the states saved before it.
//
// B and C are shared by the channels of a group, so their gradients are sums over channels: a task adds up those of its
// own blocks of channels, one lane per channel, and sums the lanes once per tile. Which blocks belong to a task depends
// on the problem alone, so the result does not depend on the number of threads.

#include "selective_scan_block.hpp"

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

template <class S> class Backward {
 public:
  typedef typename Simd<S>::V V;

  Backward(const SelectiveScanProblem &problem, const SelectiveScanGradient &gradient)
      : p(problem), g(gradient), arena(vectors(problem)), walk(Walk::row_major(problem.length)),
        blocks(0) {
    if (p.reverse) walk = walk.reversed(p.length);
    void *memory = 0;
    if (posix_memalign(&memory, 64, sizeof(Block) * static_cast<size_t>(most_blocks(p)))) return;
    blocks = static_cast<Block *>(memory);
  }
  ~Backward() { free(blocks); }
  bool failed() const { return arena.failed() || !blocks; }

  // One part of the channels of one group of one batch item.
  void run(int64_t batch, int64_t group, int64_t part) {
    const int64_t all = group_blocks<S>(p), first = all * part / p.parts, count = all * (part + 1) / p.parts - first;
    arena.rewind();
    V **tiles[] = {&u, &dt, &slope, &x, &gy, &gx, &ga, &y, &z};
    for (V **tile : tiles) *tile = arena.take(kTile);
    decay = arena.take(kTogether * (kTile + 1)), state = arena.take(kTogether * (kTile + 1));
    start = arena.take(p.states);
    sum_b = arena.take(p.states * kTile), sum_c = arena.take(p.states * kTile);
    S *copy_b = reinterpret_cast<S *>(arena.take(copied(p))), *copy_c = reinterpret_cast<S *>(arena.take(copied(p)));
    for (int64_t i = 0; i < count; ++i) open(blocks[i], place<S>(p, batch, group, first + i));
    const int64_t row = (batch * p.groups + group) * p.parts + part;
    for (int64_t t0 = (p.length + kTile - 1) / kTile * kTile - kTile; t0 >= 0; t0 -= kTile) {
      int64_t tokens = p.length - t0 < kTile ? p.length - t0 : kTile;
      PerToken<S> b{}, c{};
      if (!p.constant_b) b = tile_rows<S>(p, walk, p.B, batch, group, t0, tokens, copy_b), b.sum = sum_b;
      if (!p.constant_c) c = tile_rows<S>(p, walk, p.C, batch, group, t0, tokens, copy_c), c.sum = sum_c;
      if (b.sum) zero(sum_b, p.states * kTile);
      if (c.sum) zero(sum_c, p.states * kTile);
      for (int64_t i = 0; i < count; ++i) retreat(blocks[i], t0, tokens, b, c);
      if (b.sum) reduce(sum_b, g.B, row, t0, tokens);
      if (c.sum) reduce(sum_c, g.C, row, t0, tokens);
    }
    for (int64_t i = 0; i < count; ++i) close(blocks[i]);
  }

 private:
  struct Block {
    Place at;
    Parameters<S> q;
    V *gh, *grate, *gb, *gc; // gradients of the states behind the tile, of A, and of constant B and C
    V gskip, gbias;
  };

  const SelectiveScanProblem &p;
  const SelectiveScanGradient &g;
  Arena<V> arena;
  Walk walk;
  Block *blocks;
  V *u, *dt, *slope, *x, *gy, *gx, *ga, *y, *z; // of a tile; slope: of softplus
  V *decay, *state, *start;                     // recomputed states, and those before the tile
  V *sum_b, *sum_c;                             // gradients of B and C, one lane per channel

  static int64_t copied(const SelectiveScanProblem &p) { return p.states * kTile / Lanes<S>::count + 1; }
  static int64_t most_blocks(const SelectiveScanProblem &p) {
    return group_blocks<S>(p) / p.parts + 1;
  }
  static int64_t vectors(const SelectiveScanProblem &p) {
    return 9 * kTile + 2 * kTogether * (kTile + 1) + p.states + 2 * p.states * kTile + 2 * copied(p) +
           most_blocks(p) * (Parameters<S>::vectors(p) + 4 * p.states);
  }

  void open(Block &block, const Place &at) {
    block.at = at;
    block.q.load_from(p, at, arena);
    V **arrays[] = {&block.gh, &block.grate, &block.gb, &block.gc};
    for (V **array : arrays) {
      *array = arena.take(p.states);
      zero(*array, p.states);
    }
    block.gskip = block.gbias = V{};
    if (!g.last_state) return;
    load_states<S>(g.last_state, at, p.channels * p.states, p.states, block.gh);
    for (int64_t n = 0; n < p.states; ++n) block.gh[n] = only<S>(block.gh[n], at.lanes);
  }

  void close(const Block &block) {
    const int64_t stride = p.channels * p.states;
    store_states<S>(g.A, block.at, stride, p.states, block.grate);
    if (p.constant_b) store_states<S>(g.B, block.at, stride, p.states, block.gb);
    if (p.constant_c) store_states<S>(g.C, block.at, stride, p.states, block.gc);
    if (g.initial_state) store_states<S>(g.initial_state, block.at, stride, p.states, block.gh);
    const int64_t channel = block.at.batch * p.channels + block.at.channel;
    if (g.D) store(static_cast<S *>(g.D) + channel, block.gskip, block.at.lanes);
    if (g.delta_bias) store(static_cast<S *>(g.delta_bias) + channel, block.gbias, block.at.lanes);
  }

  void read(const ScanRows &from, const Block &block, int64_t t0, int64_t count, V *to) {
    load_tile(walk, t0, count, row_of<S>(from, block.at), from.channel_stride, block.at.lanes, to);
  }
  void write(const ScanRows &to, const Block &block, int64_t t0, int64_t count, const V *from) {
    store_tile(walk, t0, count, row_of<S>(to, block.at), to.channel_stride, block.at.lanes, from);
  }

  // One tile of one block.
  void retreat(Block &block, int64_t t0, int64_t count, const PerToken<S> &b, const PerToken<S> &c) {
    const Parameters<S> &q = block.q;
    load_states<S>(checkpoint<S>(p, g.checkpoints, block.at.batch, t0), block.at, 0, p.states, start);
    read(p.u, block, t0, count, u);
    read(p.delta, block, t0, count, dt);
    read(g.gy, block, t0, count, gy);
    if (block.at.lanes < Lanes<S>::count)
      for (int64_t t = 0; t < count; ++t) gy[t] = only<S>(gy[t], block.at.lanes);
    Tile<S> tile = {count, dt, x, p.softplus ? step_sizes<S, true>(q, count, u, dt, x, slope)
                                             : step_sizes<S, false>(q, count, u, dt, x, 0)};
    if (p.z.data) open_gate(block, t0, count);
    zero(gx, count);
    zero(ga, count);
    TileGradient<S> gradient = {gy, gx, ga, p.z.data ? y : 0, decay, state};
    with_kinds<S>(p, b, c, {q.b, block.gb}, {q.c, block.gc}, [&](const auto &kind_b, const auto &kind_c) {
      backward_tile<S>(tile, gradient, p.states, q.rate, start, block.gh, block.grate, kind_b, kind_c);
    });
    if (p.z.data) {
      for (int64_t t = 0; t < count; ++t) y[t] *= z[t];
      write(g.z, block, t0, count, y);
    }
    finish(block, count);
    write(g.u, block, t0, count, gx);
    write(g.delta, block, t0, count, ga);
  }

  // From the gradient of the gated result to that of y; z becomes that of the gate, yet without the factor y.
  void open_gate(Block &block, int64_t t0, int64_t count) {
    read(p.z, block, t0, count, z);
    for (int64_t t = 0; t < count; ++t) {
      V s = sigmoid<S>(z[t]), gated = gy[t];
      gy[t] = gated * (z[t] * s);
      z[t] = gated * (s + z[t] * s * (splat(S(1)) - s));
      y[t] = block.q.skip * u[t];
    }
  }

  // gx, ga: from gradients of dt u and of the exponents to those of u and delta.
  void finish(Block &block, int64_t count) {
    V gskip{}, gbias{};
    for (int64_t t = 0; t < count; ++t) {
      V gdt = gx[t] * u[t] + ga[t] * static_cast<S>(kLn2);
      gskip += gy[t] * u[t];
      gx[t] = gx[t] * dt[t] + gy[t] * block.q.skip;
      ga[t] = p.softplus ? gdt * slope[t] : gdt;
      gbias += ga[t];
    }
    block.gskip += gskip;
    block.gbias += gbias;
  }

  // Sums over the lanes of `sum` into row `row` of (batch, group, part, state, length).
  void reduce(const V *sum, void *array, int64_t row, int64_t t0, int64_t count) {
    S totals[kTile];
    for (int64_t n = 0; n < p.states; ++n, sum += kTile) {
      for (int64_t t = 0; t < kTile; t += Square<S>::side) add_lanes<S>(sum + t, totals + t);
      put_row(walk, t0, count, totals, static_cast<S *>(array) + (row * p.states + n) * p.length);
    }
  }
};

template <class S> int backward(const SelectiveScanProblem &p, const SelectiveScanGradient &g) {
  int failed = 0;
  const int64_t tasks = p.batch * p.groups * p.parts;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1) reduction(| : failed)
  {
    FlushDenormals guard;
    Backward<S> work(p, g);
    failed = work.failed();
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < tasks; ++task) {
      if (failed) continue;
      int64_t row = task / p.parts;
      work.run(row / p.groups, row % p.groups, task % p.parts);
    }
  }
  return failed;
}

} // namespace

int selective_scan_backward_f32(const SelectiveScanProblem &p, const SelectiveScanGradient &g) {
  return backward<float>(p, g);
}
int selective_scan_backward_f64(const SelectiveScanProblem &p, const SelectiveScanGradient &g) {
  return backward<double>(p, g);
}

} // namespace MEDSEQ_ISA
} // namespace medseq
