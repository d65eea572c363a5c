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

// Working memory of one thread for the formulas that take a vector of channels through the whole sequence.
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

// How the channels of a batch item are shared out: vectors beside each other go through the sequence as a team, so that
// whole rows are read; as many teams as give every thread the same number of them.
template <class S> struct Teams {
  static constexpr int64_t kLargest = 16;
  int64_t vectors, size, per_item;

  explicit Teams(const WkvProblem &p) {
    int64_t a = p.threads, b = p.batch;
    while (b) {
      int64_t rest = a % b;
      a = b, b = rest;
    }
    const int64_t wanted = p.threads / a;
    vectors = (p.channels + Lanes<S>::count - 1) / Lanes<S>::count;
    size = (vectors + wanted - 1) / wanted;
    if (size > kLargest) size = kLargest;
    per_item = (vectors + size - 1) / size;
  }
};

// The members of a team: those with small w step together, the others go alone.
template <class S> struct Team {
  typedef SmallDecay<S> Member;
  typedef typename Member::Border Border;
  void *memory;
  Member *members;
  Border *borders;
  typename Member::Workspace *work;
  int64_t blocks, count;

  Team(const WkvProblem &p, int64_t size) : memory(0), blocks((p.length + Member::kBlock - 1) / Member::kBlock) {
    const size_t most = static_cast<size_t>(size);
    size_t bytes = sizeof(*work) + most * (sizeof(Member) + sizeof(Border) * static_cast<size_t>(blocks));
    if (posix_memalign(&memory, 64, bytes)) memory = 0;
    work = static_cast<typename Member::Workspace *>(memory);
    members = reinterpret_cast<Member *>(work + 1);
    borders = reinterpret_cast<Border *>(members + size);
  }
  ~Team() { free(memory); }

  void open(S *keep, const WkvProblem &p) {
    for (int64_t i = 0; i < count; ++i) members[i].open(borders + i * blocks, keep + (members[i].k - start(p)));
  }
  static const S *start(const WkvProblem &p) { return static_cast<const S *>(p.k); }

  template <class Work> void leftwards(const Work &step) {
    for (int64_t b = blocks - 1; b >= 0; --b)
      for (int64_t i = 0; i < count; ++i) step(members[i], b);
  }
  template <class Work> void rightwards(const Work &step) {
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t i = 0; i < count; ++i) step(members[i], b);
  }
};

// Vector of channels number `vector` of batch item `item`; returns the offset of its first element.
template <class S> int64_t assign(Channels<S> &channels, const WkvProblem &p, int64_t item, int64_t vector) {
  int64_t c = vector * Lanes<S>::count, rest = p.channels - c, offset = item * p.length * p.channels + c;
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

// Fills the team with those of its vectors that it can take; the others are worked on alone, at once.
template <class S, class Outputs, class Work>
void gather(const WkvProblem &p, const Teams<S> &teams, int64_t task, Team<S> &team, const Scratch<S> &scratch,
            const Outputs &outputs, const Work &work) {
  const int64_t item = task / teams.per_item, first = task % teams.per_item * teams.size;
  const int64_t last = first + teams.size < teams.vectors ? first + teams.size : teams.vectors;
  team.count = 0;
  auto alone = [&](auto channels, int64_t vector) {
    outputs(channels, assign<S>(channels, p, item, vector));
    scratch.lend(channels);
    work(channels);
  };
  for (int64_t vector = first; vector < last; ++vector) {
    if (p.chunk64) {
      alone(Chunk64<S>(), vector);
      continue;
    }
    SmallDecay<S> &member = team.members[team.count];
    outputs(member, assign<S>(member, p, item, vector));
    member.block = SmallDecay<S>::kBlock;
    if (member.applies())
      ++team.count;
    else
      alone(Exact<S>(), vector);
  }
}

template <class S> int forward(const WkvProblem &p, S *y) {
  int failed = 0;
  const Teams<S> teams(p);
#pragma omp parallel num_threads(p.threads) if (p.threads > 1) reduction(| : failed)
  {
    Scratch<S> scratch(p, 0);
    Team<S> team(p, teams.size);
    failed = !scratch.memory || !team.memory;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < p.batch * teams.per_item; ++task) {
      if (failed) continue;
      gather<S>(
          p, teams, task, team, scratch, [&](auto &channels, int64_t offset) { channels.y = y + offset; },
          [](auto &channels) { channels.forward(); });
      team.open(y, p);
      team.leftwards([](auto &member, int64_t b) { member.sweep_block(b); });
      team.rightwards([&](auto &member, int64_t b) { member.forward_block(b, *team.work); });
    }
  }
  return failed;
}

template <class S> int backward(const WkvProblem &p, const S *gy, S *gw, S *gu, S *gk, S *gv) {
  int failed = 0;
  const Teams<S> teams(p);
  // Every batch item has its own row of gw and gu; adding the rows in order makes the sums independent of threads.
  const int64_t row = p.channels, count = p.batch * row;
  S *rows = static_cast<S *>(malloc(sizeof(S) * 2 * static_cast<size_t>(count)));
  if (!rows) return 1;
  auto keep = [&](const auto &channels) {
    // k's place says which batch item and channels these are.
    const int64_t offset = channels.k - static_cast<const S *>(p.k);
    S *mine = rows + offset / (p.length * row) * row + offset % row;
    store(mine, channels.gw, channels.lanes);
    store(mine + count, channels.gu, channels.lanes);
  };
#pragma omp parallel num_threads(p.threads) if (p.threads > 1) reduction(| : failed)
  {
    Scratch<S> scratch(p, 4);
    Team<S> team(p, teams.size);
    failed = !scratch.memory || !team.memory;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < p.batch * teams.per_item; ++task) {
      if (failed) continue;
      auto outputs = [&](auto &channels, int64_t offset) {
        channels.gy = gy + offset, channels.gk = gk + offset, channels.gv = gv + offset;
      };
      gather<S>(p, teams, task, team, scratch, outputs, [&](auto &channels) {
        channels.backward();
        keep(channels);
      });
      team.open(gv, p);
      team.leftwards([](auto &member, int64_t b) { member.sweep_block(b); });
      team.rightwards([&](auto &member, int64_t b) { member.query_block(b, *team.work); });
      for (int64_t i = 0; i < team.count; ++i) team.members[i].turn();
      team.leftwards([&](auto &member, int64_t b) { member.key_block(b, *team.work); });
      for (int64_t i = 0; i < team.count; ++i) keep(team.members[i]);
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
