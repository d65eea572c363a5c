// The selective scan backward: tiles from the last to the first, each recomputed from the states saved before it. Rows
// are read and written in runs of tiles from their beginning, which memory delivers much faster than tiles backwards.
//
// B and C are shared by the channels of a group, so their gradients are sums over channels: a task adds up those of its
// own blocks of channels. Which blocks belong to a task depends
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
    V **runs[] = {&u, &dt, &gy, &z}, **tiles[] = {&slope, &x, &gx, &ga, &y};
    for (V **run : runs) *run = arena.take(run_tiles(p) * kTile);
    for (V **tile : tiles) *tile = arena.take(kTile);
    decay = arena.take(kTogether * (kTile + 1)), state = arena.take(kTogether * (kTile + 1));
    start = arena.take(p.states);
    lanes_b = arena.take(kTogether * kTile), lanes_c = arena.take(kTogether * kTile);
    zero(lanes_b, kTogether * kTile), zero(lanes_c, kTogether * kTile);
    S **rows[] = {&b, &c, &sum_b, &sum_c};
    for (S **row : rows) *row = reinterpret_cast<S *>(arena.take(row_vectors<S>(p)));
    for (int64_t i = 0; i < count; ++i) open(blocks[i], place<S>(p, batch, group, first + i));
    const int64_t row = (batch * p.groups + group) * p.parts + part;
    for (int64_t number = all_runs(p) - 1; number >= 0; --number) {
      const Run run = run_of(p, number);
      if (!p.constant_b) copy_rows(p, walk, p.B, batch, group, run, b);
      if (!p.constant_c) copy_rows(p, walk, p.C, batch, group, run, c);
      for (int64_t i = 0; i < count; ++i) {
        is_first = i == 0;
        retreat(blocks[i], run);
      }
      if (!p.constant_b) put_rows(sum_b, g.B, row, run);
      if (!p.constant_c) put_rows(sum_c, g.C, row, run);
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
  V *u, *dt, *gy, *z;            // of a run; they become the gradients of u and delta, and that of the gate
  V *slope, *x, *gx, *ga, *y;    // of a tile; slope: of softplus
  V *decay, *state, *start;      // recomputed states, and those before the tile
  V *lanes_b, *lanes_c;          // gradients of B and C for a few states of a tile, one lane per channel
  S *b, *c, *sum_b, *sum_c;      // B, C and their gradients of a run, [tile][state][kTile]
  bool is_first;                 // block of this part

  static int64_t most_blocks(const SelectiveScanProblem &p) {
    return group_blocks<S>(p) / p.parts + 1;
  }
  static int64_t vectors(const SelectiveScanProblem &p) {
    return (4 * run_tiles(p) + 5) * kTile + 2 * kTogether * (2 * kTile + 1) + p.states + 4 * row_vectors<S>(p) +
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

  void read(const ScanRows &from, const Block &block, const Run &run, V *to) {
    load_tile(walk, run.start(0), run.tokens(), row_of<S>(from, block.at), from.channel_stride, block.at.lanes, to);
  }
  void write(const ScanRows &to, const Block &block, const Run &run, const V *from) {
    store_tile(walk, run.start(0), run.tokens(), row_of<S>(to, block.at), to.channel_stride, block.at.lanes, from);
  }

  // One run of one block.
  void retreat(Block &block, const Run &run) {
    read(p.u, block, run, u);
    read(p.delta, block, run, dt);
    read(g.gy, block, run, gy);
    if (p.z.data) read(p.z, block, run, z);
    if (block.at.lanes < Lanes<S>::count)
      for (int64_t t = 0; t < run.tokens(); ++t) gy[t] = only<S>(gy[t], block.at.lanes);
    for (int64_t tile = run.tiles - 1; tile >= 0; --tile) {
      load_states<S>(checkpoint<S>(p, g.checkpoints, block.at.batch, run.start(tile)), block.at, 0, p.states, start);
      retreat(block, tile, run.tokens(tile));
    }
    write(g.u, block, run, u);
    write(g.delta, block, run, dt);
    if (p.z.data) write(g.z, block, run, z);
  }

  // One tile of one block.
  void retreat(Block &block, int64_t number, int64_t count) {
    const Parameters<S> &q = block.q;
    V *const u = this->u + number * kTile, *const dt = this->dt + number * kTile, *const gy = this->gy + number * kTile,
            *const z = this->z + number * kTile;
    const Tile<S> tile = {count, dt, x, p.softplus ? step_sizes<S, true>(q, count, u, dt, x, slope)
                                                   : step_sizes<S, false>(q, count, u, dt, x, 0)};
    if (p.z.data) open_gate(block, count, u, gy, z);
    zero(gx, count);
    zero(ga, count);
    states(block, tile, gy, number * p.states * kTile);
    if (p.z.data)
      for (int64_t t = 0; t < count; ++t) z[t] *= y[t];
    finish(block, count, u, dt, gy);
  }

  // All states of a tile, a few at a time, so that their gradients of B and C are added up while in cache.
  void states(Block &block, const Tile<S> &tile, const V *gy, int64_t row) {
    const Parameters<S> &q = block.q;
    const TileGradient<S> gradient = {gy, gx, ga, p.z.data ? y : 0, decay, state};
    with_kinds<S>(p, {b + row, lanes_b}, {c + row, lanes_c}, {q.b, block.gb}, {q.c, block.gc},
                  [&](const auto &kind_b, const auto &kind_c) {
                    for (int64_t n = 0; n < p.states; n += kTogether) {
                      const int64_t many = p.states - n < kTogether ? p.states - n : kTogether;
                      backward_tile<S>(tile, gradient, many, q.rate + n, start + n, block.gh + n, block.grate + n,
                                       kind_b.next(n), kind_c.next(n));
                      if (!p.constant_b) add_up(lanes_b, many, tile.count, sum_b + row + n * kTile);
                      if (!p.constant_c) add_up(lanes_c, many, tile.count, sum_c + row + n * kTile);
                    }
                  });
  }

  void add_up(const V *lanes, int64_t states, int64_t count, S *to) {
    for (int64_t n = 0; n < states; ++n, lanes += kTile, to += kTile) {
      if (is_first) lane_sums<S, true>(lanes, count, to);
      else lane_sums<S, false>(lanes, count, to);
    }
  }

  // From the gradient of the gated result to that of y; z becomes that of the gate, yet without the factor y.
  void open_gate(const Block &block, int64_t count, const V *u, V *gy, V *z) {
    for (int64_t t = 0; t < count; ++t) {
      V s = sigmoid<S>(z[t]), gated = gy[t];
      gy[t] = gated * (z[t] * s);
      z[t] = gated * (s + z[t] * s * (splat(S(1)) - s));
      y[t] = block.q.skip * u[t];
    }
  }

  // u, dt: to the gradients of u and delta, from those of dt u (gx) and of the exponents (ga).
  void finish(Block &block, int64_t count, V *u, V *dt, const V *gy) {
    const V skip = block.q.skip;
    V gskip{}, gbias{};
    for (int64_t t = 0; t < count; ++t) {
      V gdt = gx[t] * u[t] + ga[t] * static_cast<S>(kLn2);
      gskip += gy[t] * u[t];
      u[t] = gx[t] * dt[t] + gy[t] * skip;
      dt[t] = p.softplus ? gdt * slope[t] : gdt;
      gbias += dt[t];
    }
    block.gskip += gskip;
    block.gbias += gbias;
  }

  // Into row `row` of (batch, group, part, state, length).
  void put_rows(const S *sums, void *array, int64_t row, const Run &run) {
    for (int64_t tile = 0; tile < run.tiles; ++tile)
      for (int64_t n = 0; n < p.states; ++n, sums += kTile)
        put_row(walk, run.start(tile), run.tokens(tile), sums,
                static_cast<S *>(array) + (row * p.states + n) * p.length);
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
