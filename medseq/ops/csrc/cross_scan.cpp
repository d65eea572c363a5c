// The fused cross scan forward. Threads share the channels; each takes one block of channels through all directions.

#include "cross_scan_tokens.hpp"

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

template <class S> class Forward {
 public:
  typedef typename Simd<S>::V V;

  Forward(const CrossScanProblem &problem, const CrossScanResult &result)
      : p(problem), out(result), image(problem), arena(vectors(problem)),
        fixed(Parameters<S>::vectors(flat(problem))) {}
  bool failed() const { return arena.failed() || fixed.failed(); }

  static int64_t vectors(const CrossScanProblem &p) {
    const Image<S> image(p);
    return 2 * image.plane() + image.strip_tokens() + 3 * kTile + p.states;
  }

  // One row of B or C.
  void prepare(int64_t task) {
    arena.rewind();
    V *work = arena.take(image.plane());
    pack(p, image, task, reinterpret_cast<S *>(arena.take(image.strip_tokens())), work);
  }

  // One block of channels of one batch item.
  void run(int64_t batch, int64_t block) {
    const Place at = block_place<S>(p, batch, block);
    arena.rewind();
    x_plane = arena.take(image.plane()), y_plane = arena.take(image.plane());
    strip = arena.take(image.strip_tokens());
    u = arena.take(kTile), x = arena.take(kTile), y = arena.take(kTile);
    h = arena.take(p.states);
    image.load_plane(static_cast<const S *>(p.x) + x_offset<S>(p, at), at.lanes, x_plane);
    const V skip = all_skips<S>(p, at);
    for (int64_t i = 0; i < image.plane(); ++i) y_plane[i] = skip * x_plane[i];
    for (int k = 0; k < kDirections; ++k) scan(at, k);
    image.store_plane(static_cast<S *>(out.y) + x_offset<S>(p, at), at.lanes, y_plane);
  }

 private:
  const CrossScanProblem &p;
  const CrossScanResult &out;
  const Image<S> image;
  Arena<V> arena, fixed; // fixed: the parameters of one direction
  V *x_plane, *y_plane, *strip, *u, *x, *y, *h;

  void scan(const Place &at, int k) {
    const bool columns = p.columns[k], reverse = p.reverse[k];
    const S *delta = static_cast<const S *>(p.delta) + delta_offset<S>(p, at, k);
    Parameters<S> q;
    fixed.rewind();
    q.load_from(flat(p), in_direction(p, at, k), fixed);
    zero(h, p.states);
    for (int64_t i = 0; i < image.strips(columns); ++i) {
      const Strip s = image.strip(columns, reverse, i);
      image.load_strip(s, columns, reverse, delta, at.lanes, strip);
      for (int64_t t = 0; t < s.count; t += kTile) {
        if (out.checkpoints) save(at, k, s.tile + t / kTile);
        const int64_t count = s.count - t < kTile ? s.count - t : kTile;
        advance(q, at, k, s.first + t, count, s.tile + t / kTile, strip + t);
      }
    }
  }

  void save(const Place &at, int k, int64_t tile) {
    S *to = static_cast<S *>(out.checkpoints) + checkpoint_offset<S>(p, image, at, k, tile);
    for (int64_t n = 0; n < p.states; ++n) store(to + n * p.channels, h[n], at.lanes);
  }

  void advance(const Parameters<S> &q, const Place &at, int k, int64_t t0, int64_t count, int64_t tile, V *dt) {
    const Walk walk = image.plane_walk(p.columns[k], p.reverse[k]);
    gather(walk, t0, count, x_plane, u);
    const bool safe = p.softplus ? step_sizes<S, true>(q, count, u, dt, x, 0)
                                 : step_sizes<S, false>(q, count, u, dt, x, 0);
    const S *b = tiles_of<S>(p.packed, p, image, at.batch, k) + tile * p.states * kTile;
    const S *c = tiles_of<S>(p.packed, p, image, p.batch + at.batch, k) + tile * p.states * kTile;
    zero(y, count);
    forward_tile<S>({count, dt, x, safe}, p.states, q.rate, h, PerToken<S>{b, 0}, PerToken<S>{c, 0}, y);
    scatter_add(walk, t0, count, y_plane, y);
  }
};

template <class S> int forward(const CrossScanProblem &p, const CrossScanResult &out) {
  int failed = 0;
  const int64_t blocks = channel_blocks<S>(p);
#pragma omp parallel num_threads(p.threads) if (p.threads > 1) reduction(| : failed)
  {
    FlushDenormals guard;
    Forward<S> work(p, out);
    failed = work.failed();
#pragma omp for schedule(static)
    for (int64_t task = 0; task < TokenRow::count(p); ++task)
      if (!failed) work.prepare(task);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < p.batch * blocks; ++task)
      if (!failed) work.run(task / blocks, task % blocks);
  }
  return failed;
}

} // namespace

int cross_scan_forward_f32(const CrossScanProblem &p, const CrossScanResult &out) { return forward<float>(p, out); }
int cross_scan_forward_f64(const CrossScanProblem &p, const CrossScanResult &out) { return forward<double>(p, out); }

} // namespace MEDSEQ_ISA
} // namespace medseq
