// The fused cross scan backward: every direction from its last tile to its first, each tile recomputed from the states
// saved before it.
//
// B and C are shared by all channels, so their gradients are sums over channels: a task goes through its blocks of
// channels one after the other and adds to its own share. Which blocks belong to a task depends on the problem alone,
// so the result does not depend on the number of threads.

#include "cross_scan_tokens.hpp"

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

template <class S> class Backward {
 public:
  typedef typename Simd<S>::V V;

  Backward(const CrossScanProblem &problem, const CrossScanGradient &gradient)
      : p(problem), g(gradient), image(problem), arena(vectors(problem)),
        fixed(Parameters<S>::vectors(flat(problem))) {}
  bool failed() const { return arena.failed() || fixed.failed(); }

  static int64_t vectors(const CrossScanProblem &p) {
    const Image<S> image(p);
    return 3 * image.plane() + image.strip_tokens() + 6 * kTile + 2 * kTogether * (kTile + 1) + 3 * p.states +
           2 * kTogether * kTile;
  }

  // One row of B or C, before and after all channels.
  void prepare(int64_t task) {
    arena.rewind();
    V *work = arena.take(image.plane());
    pack(p, image, task, reinterpret_cast<S *>(arena.take(image.strip_tokens())), work);
  }
  void join(int64_t task) {
    arena.rewind();
    unpack(p, g, image, task, reinterpret_cast<S *>(arena.take(image.strip_tokens())));
  }

  // One part of the channels of one batch item.
  void run(int64_t batch, int64_t part) {
    const int64_t all = channel_blocks<S>(p);
    arena.rewind();
    V **planes[] = {&x_plane, &gy_plane, &gx_plane};
    for (V **plane : planes) *plane = arena.take(image.plane());
    strip = arena.take(image.strip_tokens());
    V **tiles[] = {&u, &x, &slope, &gy, &gx, &ga};
    for (V **tile : tiles) *tile = arena.take(kTile);
    decay = arena.take(kTogether * (kTile + 1)), state = arena.take(kTogether * (kTile + 1));
    start = arena.take(p.states), gh = arena.take(p.states), grate = arena.take(p.states);
    sum_b = arena.take(kTogether * kTile), sum_c = arena.take(kTogether * kTile);
    zero(sum_b, kTogether * kTile), zero(sum_c, kTogether * kTile);
    share = batch * p.parts + part;
    for (int64_t i = all * part / p.parts; i < all * (part + 1) / p.parts; ++i) {
      is_first = i == all * part / p.parts;
      block(block_place<S>(p, batch, i));
    }
  }

 private:
  const CrossScanProblem &p;
  const CrossScanGradient &g;
  const Image<S> image;
  Arena<V> arena, fixed;
  V *x_plane, *gy_plane, *gx_plane, *strip;
  V *u, *x, *slope, *gy, *gx, *ga; // of a tile; slope: of softplus
  V *decay, *state, *start;        // recomputed states, and those before the tile
  V *gh, *grate, gbias;            // gradients of the states behind the tile, of A and delta_bias
  V *sum_b, *sum_c;                // gradients of B and C of a tile, one lane per channel
  int64_t share;
  bool is_first; // block of this share

  void block(const Place &at) {
    image.load_plane(static_cast<const S *>(p.x) + x_offset<S>(p, at), at.lanes, x_plane);
    image.load_plane(static_cast<const S *>(g.gy) + x_offset<S>(p, at), at.lanes, gy_plane);
    const V skip = all_skips<S>(p, at);
    V gskip{};
    for (int64_t r = 0; r < image.rows; ++r)
      for (int64_t i = r * image.pitch; i < r * image.pitch + image.cols; ++i) {
        if (at.lanes < Lanes<S>::count) gy_plane[i] = only<S>(gy_plane[i], at.lanes);
        gx_plane[i] = skip * gy_plane[i];
        gskip += gy_plane[i] * x_plane[i];
      }
    for (int k = 0; k < kDirections; ++k) {
      const int64_t channel = (at.batch * kDirections + k) * p.channels + at.channel;
      if (g.D) store(static_cast<S *>(g.D) + channel, gskip, at.lanes);
      scan(at, k);
      store_states<S>(g.A, in_direction(p, at, k), kDirections * p.channels * p.states, p.states, grate);
      if (g.delta_bias) store(static_cast<S *>(g.delta_bias) + channel, gbias, at.lanes);
    }
    image.store_plane(static_cast<S *>(g.x) + x_offset<S>(p, at), at.lanes, gx_plane);
  }

  void scan(const Place &at, int k) {
    const bool columns = p.columns[k], reverse = p.reverse[k];
    const int64_t delta = delta_offset<S>(p, at, k);
    Parameters<S> q;
    fixed.rewind();
    q.load_from(flat(p), in_direction(p, at, k), fixed);
    zero(gh, p.states), zero(grate, p.states);
    gbias = V{};
    for (int64_t i = image.strips(columns) - 1; i >= 0; --i) {
      const Strip s = image.strip(columns, reverse, i);
      image.load_strip(s, columns, reverse, static_cast<const S *>(p.delta) + delta, at.lanes, strip);
      for (int64_t t = (s.count - 1) / kTile * kTile; t >= 0; t -= kTile) {
        const S *saved = static_cast<const S *>(g.checkpoints) +
                         checkpoint_offset<S>(p, image, at, k, s.tile + t / kTile);
        for (int64_t n = 0; n < p.states; ++n) start[n] = load(saved + n * p.channels, at.lanes);
        const int64_t count = s.count - t < kTile ? s.count - t : kTile;
        retreat(q, at, k, s.first + t, count, s.tile + t / kTile, strip + t);
      }
      image.store_strip(s, columns, reverse, static_cast<S *>(g.delta) + delta, at.lanes, strip);
    }
  }

  // One tile; dt becomes the gradient of delta.
  void retreat(const Parameters<S> &q, const Place &at, int k, int64_t t0, int64_t count, int64_t number, V *dt) {
    const Walk walk = image.plane_walk(p.columns[k], p.reverse[k]);
    gather(walk, t0, count, x_plane, u);
    gather(walk, t0, count, gy_plane, gy);
    const bool safe = p.softplus ? step_sizes<S, true>(q, count, u, dt, x, slope)
                                 : step_sizes<S, false>(q, count, u, dt, x, 0);
    const Tile<S> tile = {count, dt, x, safe};
    zero(gx, count), zero(ga, count);
    states(tile, q, at.batch, k, number);
    finish(count, dt);
    scatter_add(walk, t0, count, gx_plane, gx);
  }

  // All states of a tile, a few at a time, so that their gradients of B and C are added up while in cache.
  void states(const Tile<S> &tile, const Parameters<S> &q, int64_t batch, int k, int64_t number) {
    const TileGradient<S> gradient = {gy, gx, ga, 0, decay, state};
    const int64_t first = number * p.states * kTile;
    const S *b = tiles_of<S>(p.packed, p, image, batch, k) + first;
    const S *c = tiles_of<S>(p.packed, p, image, p.batch + batch, k) + first;
    S *to_b = tiles_of<S>(g.shares, p, image, share, k) + first;
    S *to_c = tiles_of<S>(g.shares, p, image, p.batch * p.parts + share, k) + first;
    for (int64_t n = 0; n < p.states; n += kTogether) {
      const int64_t many = p.states - n < kTogether ? p.states - n : kTogether;
      backward_tile<S>(tile, gradient, many, q.rate + n, start + n, gh + n, grate + n,
                       PerToken<S>{b + n * kTile, sum_b}, PerToken<S>{c + n * kTile, sum_c});
      for (int64_t i = 0; i < many; ++i) {
        add_up(sum_b + i * kTile, tile.count, to_b + (n + i) * kTile);
        add_up(sum_c + i * kTile, tile.count, to_c + (n + i) * kTile);
      }
    }
  }

  void add_up(const V *sum, int64_t count, S *to) {
    if (is_first) lane_sums<S, true>(sum, count, to);
    else lane_sums<S, false>(sum, count, to);
  }

  // gx: from the gradient of dt u to that of u; dt: to the gradient of delta.
  void finish(int64_t count, V *dt) {
    V total{};
    for (int64_t t = 0; t < count; ++t) {
      V gdt = gx[t] * u[t] + ga[t] * static_cast<S>(kLn2);
      gx[t] *= dt[t];
      dt[t] = p.softplus ? gdt * slope[t] : gdt;
      total += dt[t];
    }
    gbias += total;
  }
};

template <class S> int backward(const CrossScanProblem &p, const CrossScanGradient &g) {
  int failed = 0;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1) reduction(| : failed)
  {
    FlushDenormals guard;
    Backward<S> work(p, g);
    failed = work.failed();
#pragma omp for schedule(static)
    for (int64_t task = 0; task < TokenRow::count(p); ++task)
      if (!failed) work.prepare(task);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < p.batch * p.parts; ++task)
      if (!failed) work.run(task / p.parts, task % p.parts);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < TokenRow::count(p); ++task)
      if (!failed) work.join(task);
  }
  return failed;
}

} // namespace

int cross_scan_backward_f32(const CrossScanProblem &p, const CrossScanGradient &g) { return backward<float>(p, g); }
int cross_scan_backward_f64(const CrossScanProblem &p, const CrossScanGradient &g) { return backward<double>(p, g); }

} // namespace MEDSEQ_ISA
} // namespace medseq
