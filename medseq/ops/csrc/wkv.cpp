// Bidirectional WKV in O(length * channels) memory: shares the work over threads and channels, one lane per channel.
// The sequence is cut into blocks; sums from the far side are kept at block borders only and recomputed in cache.

#include "wkv.hpp"
#include "wkv_chunk64.hpp"
#include "wkv_exact.hpp"
#include "wkv_small.hpp"

#include <stdlib.h>

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

// Working memory of one thread.
template <class S> struct Scratch {
  typedef typename Simd<S>::V V;
  void *memory;
  int64_t blocks, block;

  // `vectors`: how many per token of the sequence the formulas keep.
  Scratch(const WkvProblem &p, int64_t vectors) : memory(0) {
    block = p.chunk64 ? Chunk64<S>::block_length(p.length) : Exact<S>::block_length(p.length);
    blocks = (p.length + block - 1) / block;
    size_t bytes = sizeof(State<S>) * static_cast<size_t>(states()) + sizeof(V) * vectors * p.length;
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

// Calls work(channels, offset) with the formula that suits the channels of task number `task`.
template <class S, class Work>
void solve(const WkvProblem &p, const Scratch<S> &scratch, int64_t task, const Work &work) {
  if (p.chunk64) {
    Chunk64<S> channels;
    int64_t offset = assign<S>(channels, p, task);
    scratch.lend(channels);
    return work(channels, offset);
  }
  SmallDecay<S> usual;
  int64_t offset = assign<S>(usual, p, task);
  scratch.lend(usual);
  if (usual.applies()) return work(usual, offset);
  Exact<S> any;
  assign<S>(any, p, task);
  scratch.lend(any);
  work(any, offset);
}

template <class S> int forward(const WkvProblem &p, S *y) {
  int failed = 0;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1) reduction(| : failed)
  {
    Scratch<S> scratch(p, 1);
    failed = scratch.memory == 0;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < p.batch * groups<S>(p); ++task) {
      if (failed) continue;
      solve<S>(p, scratch, task, [&](auto &channels, int64_t offset) {
        channels.y = y + offset;
        channels.forward();
      });
    }
  }
  return failed;
}

template <class S> int backward(const WkvProblem &p, const S *gy, S *gw, S *gu, S *gk, S *gv) {
  int failed = 0;
  // Every batch item has its own row of gw and gu; adding the rows in order makes the sums independent of threads.
  const int64_t row = p.channels, count = p.batch * row;
  S *rows = static_cast<S *>(malloc(sizeof(S) * 2 * static_cast<size_t>(count)));
  if (!rows) return 1;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1) reduction(| : failed)
  {
    Scratch<S> scratch(p, 4);
    failed = scratch.memory == 0;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < p.batch * groups<S>(p); ++task) {
      if (failed) continue;
      S *mine = rows + task / groups<S>(p) * row + task % groups<S>(p) * Lanes<S>::count;
      solve<S>(p, scratch, task, [&](auto &channels, int64_t offset) {
        channels.gy = gy + offset, channels.gk = gk + offset, channels.gv = gv + offset;
        channels.backward();
        store(mine, channels.gw, channels.lanes);
        store(mine + count, channels.gu, channels.lanes);
      });
    }
  }
  for (int64_t c = 0; c < row && !failed; ++c) {
    gw[c] = gu[c] = 0;
    for (int64_t b = 0; b < p.batch; ++b) gw[c] += rows[b * row + c], gu[c] += rows[count + b * row + c];
  }
  free(rows);
  return failed;
}

} // namespace

int wkv_forward_f32(const WkvProblem &p, void *y) { return forward(p, static_cast<float *>(y)); }
int wkv_forward_f64(const WkvProblem &p, void *y) { return forward(p, static_cast<double *>(y)); }
int wkv_backward_f32(const WkvProblem &p, const void *gy, void *gw, void *gu, void *gk, void *gv) {
  return backward(p, static_cast<const float *>(gy), static_cast<float *>(gw), static_cast<float *>(gu),
                  static_cast<float *>(gk), static_cast<float *>(gv));
}
int wkv_backward_f64(const WkvProblem &p, const void *gy, void *gw, void *gu, void *gk, void *gv) {
  return backward(p, static_cast<const double *>(gy), static_cast<double *>(gw), static_cast<double *>(gu),
                  static_cast<double *>(gk), static_cast<double *>(gv));
}

} // namespace MEDSEQ_ISA
} // namespace medseq
