// Bidirectional WKV in O(length * channels) memory: shares the work over threads and channels, one lane per channel.
// The sequence is cut into blocks; sums from the far side are kept at block borders only and recomputed in cache.

#include "wkv.hpp"
#include "wkv_chunk64.hpp"
#include "wkv_exact.hpp"

#include <stdlib.h>

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

// Working memory of one thread.
template <class S> struct Scratch {
  typedef typename Simd<S>::V V;
  void *memory;
  int64_t blocks, block;

  Scratch(int64_t length, int64_t block_length, bool backward) : memory(0), block(block_length) {
    blocks = (length + block - 1) / block;
    size_t bytes = sizeof(State<S>) * static_cast<size_t>(states()) + (backward ? 4 * sizeof(V) * length : 0);
    if (posix_memalign(&memory, 64, bytes)) memory = 0;
  }
  ~Scratch() { free(memory); }
  int64_t states() const { return 2 * blocks + 3 * block; }

  void lend(Channels<S> &channels) const {
    channels.block = block;
    channels.border = static_cast<State<S> *>(memory);
    channels.past = channels.border + blocks;
    channels.scratch = channels.past + blocks;
    channels.token = reinterpret_cast<V *>(channels.border + states());
  }
};

template <class S> int64_t groups(const WkvProblem &p) { return (p.channels + Lanes<S>::count - 1) / Lanes<S>::count; }

// The channels of task number `task`; returns the offset of their first element in a (batch, length, channel) array.
template <class S> int64_t assign(Channels<S> &channels, const WkvProblem &p, int64_t task) {
  int64_t c = task % groups<S>(p) * Lanes<S>::count, rest = p.channels - c;
  int64_t offset = task / groups<S>(p) * p.length * p.channels + c;
  channels.length = p.length;
  channels.stride = p.channels;
  channels.lanes = static_cast<int>(rest < Lanes<S>::count ? rest : Lanes<S>::count);
  channels.k = static_cast<const S *>(p.k) + offset;
  channels.v = static_cast<const S *>(p.v) + offset;
  channels.w = load(static_cast<const S *>(p.w) + c, channels.lanes);
  channels.u = load(static_cast<const S *>(p.u) + c, channels.lanes);
  channels.gw = channels.gu = splat(S(0));
  return offset;
}

template <class S, class Formula> int forward(const WkvProblem &p, S *y) {
  int failed = 0;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1) reduction(| : failed)
  {
    Scratch<S> scratch(p.length, Formula::block_length(p.length), false);
    failed = scratch.memory == 0;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < p.batch * groups<S>(p); ++task) {
      if (failed) continue;
      Formula channels;
      int64_t offset = assign<S>(channels, p, task);
      channels.y = y + offset;
      scratch.lend(channels);
      channels.forward();
    }
  }
  return failed;
}

template <class S, class Formula> int backward(const WkvProblem &p, const S *gy, S *gw, S *gu, S *gk, S *gv) {
  int failed = 0;
  // Every batch item has its own row of gw and gu; adding the rows in order makes the sums independent of threads.
  const int64_t row = p.channels, count = p.batch * row;
  S *rows = static_cast<S *>(malloc(sizeof(S) * 2 * static_cast<size_t>(count)));
  if (!rows) return 1;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1) reduction(| : failed)
  {
    Scratch<S> scratch(p.length, Formula::block_length(p.length), true);
    failed = scratch.memory == 0;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < p.batch * groups<S>(p); ++task) {
      if (failed) continue;
      Formula channels;
      int64_t offset = assign<S>(channels, p, task);
      channels.gy = gy + offset, channels.gk = gk + offset, channels.gv = gv + offset;
      scratch.lend(channels);
      channels.backward();
      S *mine = rows + task / groups<S>(p) * row + task % groups<S>(p) * Lanes<S>::count;
      store(mine, channels.gw, channels.lanes);
      store(mine + count, channels.gu, channels.lanes);
    }
  }
  for (int64_t c = 0; c < row && !failed; ++c) {
    gw[c] = gu[c] = 0;
    for (int64_t b = 0; b < p.batch; ++b) gw[c] += rows[b * row + c], gu[c] += rows[count + b * row + c];
  }
  free(rows);
  return failed;
}

template <class S> int run_forward(const WkvProblem &p, void *y) {
  S *out = static_cast<S *>(y);
  return p.chunk64 ? forward<S, Chunk64<S>>(p, out) : forward<S, Exact<S>>(p, out);
}

template <class S> int run_backward(const WkvProblem &p, const void *gy, void *gw, void *gu, void *gk, void *gv) {
  const S *in = static_cast<const S *>(gy);
  S *out[] = {static_cast<S *>(gw), static_cast<S *>(gu), static_cast<S *>(gk), static_cast<S *>(gv)};
  return p.chunk64 ? backward<S, Chunk64<S>>(p, in, out[0], out[1], out[2], out[3])
                   : backward<S, Exact<S>>(p, in, out[0], out[1], out[2], out[3]);
}

} // namespace

int wkv_forward_f32(const WkvProblem &p, void *y) { return run_forward<float>(p, y); }
int wkv_forward_f64(const WkvProblem &p, void *y) { return run_forward<double>(p, y); }
int wkv_backward_f32(const WkvProblem &p, const void *gy, void *gw, void *gu, void *gk, void *gv) {
  return run_backward<float>(p, gy, gw, gu, gk, gv);
}
int wkv_backward_f64(const WkvProblem &p, const void *gy, void *gw, void *gu, void *gk, void *gv) {
  return run_backward<double>(p, gy, gw, gu, gk, gv);
}

} // namespace MEDSEQ_ISA
} // namespace medseq
