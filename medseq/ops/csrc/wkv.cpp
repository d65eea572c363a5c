// Bidirectional WKV, forward and exact backward, in O(length * channels) memory. Derivation: ../wkv/README.md.
//
// One lane per channel. A State is a pair of sums relative to exp(o), where o is their running maximum exponent, so
// nothing overflows for any sign of w and any spread of k. The sequence is cut into blocks; the states of the far
// direction are kept at block borders only and recomputed inside a block, which stays in cache.

#include "wkv.hpp"
#include "simd.hpp"

#include <math.h>
#include <stdlib.h>

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

const int64_t kBlock = 64;     // tokens between checkpoints in the exact convention
const int64_t kChunks = 64;    // number of chunks of the original kernel
const double kEpsilon = 1e-6;  // added by the original kernel to the scaled denominator
const double kEmpty = -1e30;   // exponent of an empty sum: far below any real one, yet finite

template <class V> struct State {
  V n, d, o; // exp(o) * (n, d) is (sum of p_j v_j, sum of p_j), or (sum of q_t y_t, sum of q_t) going back
};

template <class S> struct Kernel {
  typedef typename Simd<S>::V V;
  typedef State<V> St;

  // The problem of one batch item and one vector of channels.
  int64_t length, stride, block;
  int lanes;
  const S *k, *v, *gy;
  S *y, *gk, *gv;
  V w, u;
  V h_scale, h_shift; // (1 - e^w) = h_scale * e^h_shift without overflow
  St *border, *past, *scratch; // border, past: one per block; scratch: 3 per token of a block
  V *token;                    // backward: y, q and the exponent of q for every token
  V gw, gu;

  V at(const S *p, int64_t t) const { return load(p + t * stride, lanes); }

  static V zero() { return V{}; }
  static St empty() { return {V{}, V{}, splat(static_cast<S>(kEmpty))}; }

  // exp(-decay) * a + exp(o) * (n, d): one exponential, because one of the two factors is always 1.
  MEDSEQ_INLINE St push(const St &a, V decay, V o, V n, V d) {
    V faded = a.o - decay;
    V gap = faded - o;
    auto keep = gap >= 0;
    V e = exp_nonpositive(keep ? -gap : gap);
    V one = splat(S(1));
    V old_part = keep ? one : e, new_part = keep ? e : one;
    return {old_part * a.n + new_part * n, old_part * a.d + new_part * d, keep ? faded : o};
  }
  MEDSEQ_INLINE St merge(const St &a, const St &b) { return push(a, zero(), b.o, b.n, b.d); }
  MEDSEQ_INLINE St fade(const St &a, V decay) { return {a.n, a.d, a.o - decay}; }

  // exp(a.o + b.o - shift) * (b.d a.n - b.n a.d): a state against the adjoint of the one it turns into.
  MEDSEQ_INLINE V pair(const St &a, const St &b, V shift) {
    return exp_nonpositive(a.o + b.o - shift) * (b.d * a.n - b.n * a.d);
  }

  int64_t begin(int64_t b) const { return b * block; }
  int64_t end(int64_t b) const { return (b + 1) * block < length ? (b + 1) * block : length; }
  int64_t blocks() const { return (length + block - 1) / block; }

  // border[b] = the future state seen by the last token of block b.
  void sweep_future() {
    St future = empty();
    for (int64_t b = blocks() - 1; b >= 0; --b) {
      border[b] = future;
      for (int64_t t = end(b) - 1; t >= begin(b); --t)
        future = push(future, w, at(k, t), at(v, t), splat(S(1)));
    }
  }

  // The future states of all tokens of block b, from its border.
  void expand_future(int64_t b, St *out) {
    St future = border[b];
    for (int64_t t = end(b) - 1; t >= begin(b); --t) {
      out[t - begin(b)] = future;
      future = push(future, w, at(k, t), at(v, t), splat(S(1)));
    }
  }

  // ---- exact convention ------------------------------------------------------------------------------------------

  void forward_exact() {
    sweep_future();
    St past_state = empty();
    for (int64_t b = 0; b < blocks(); ++b) {
      expand_future(b, scratch);
      for (int64_t t = begin(b); t < end(b); ++t) {
        V kt = at(k, t), vt = at(v, t);
        St all = push(merge(past_state, scratch[t - begin(b)]), zero(), u + kt, vt, splat(S(1)));
        store(y + t * stride, all.n / all.d, lanes);
        past_state = push(past_state, w, kt, vt, splat(S(1)));
      }
    }
  }

  // Forward again, block by block, with what flows back to earlier queries' keys: gradients through the future sum.
  void backward_exact_future() {
    St past_state = empty(), adjoint = empty();
    for (int64_t b = 0; b < blocks(); ++b) {
      expand_future(b, scratch);
      past[b] = past_state;
      V block_gw = zero(), block_gu = zero();
      for (int64_t t = begin(b); t < end(b); ++t) {
        const St &future = scratch[t - begin(b)];
        V kt = at(k, t), vt = at(v, t);
        St all = push(merge(past_state, future), zero(), u + kt, vt, splat(S(1)));
        V yt = all.n / all.d, q = at(gy, t) / all.d;
        V self = exp_nonpositive(u + kt - all.o) * q;
        V from_future = exp_nonpositive(kt + adjoint.o);
        store(gv + t * stride, self + from_future * adjoint.d, lanes);
        store(gk + t * stride, self * (vt - yt) + from_future * (vt * adjoint.d - adjoint.n), lanes);
        block_gu += self * (vt - yt);
        block_gw -= pair(future, adjoint, w);
        token[3 * t] = q * yt, token[3 * t + 1] = q, token[3 * t + 2] = -all.o;
        adjoint = push(adjoint, w, -all.o, q * yt, q);
        past_state = push(past_state, w, kt, vt, splat(S(1)));
      }
      gw += block_gw, gu += block_gu;
    }
  }

  void backward_exact_past() {
    St adjoint = empty();
    for (int64_t b = blocks() - 1; b >= 0; --b) {
      St past_state = past[b];
      for (int64_t t = begin(b); t < end(b); ++t) {
        scratch[t - begin(b)] = past_state;
        past_state = push(past_state, w, at(k, t), at(v, t), splat(S(1)));
      }
      V block_gw = zero();
      for (int64_t t = end(b) - 1; t >= begin(b); --t) {
        V kt = at(k, t), vt = at(v, t);
        V from_past = exp_nonpositive(kt + adjoint.o);
        store(gv + t * stride, at(gv, t) + from_past * adjoint.d, lanes);
        store(gk + t * stride, at(gk, t) + from_past * (vt * adjoint.d - adjoint.n), lanes);
        block_gw -= pair(scratch[t - begin(b)], adjoint, w);
        adjoint = push(adjoint, w, token[3 * t + 2], token[3 * t], token[3 * t + 1]);
      }
      gw += block_gw;
    }
  }

  // ---- chunk64 convention ----------------------------------------------------------------------------------------

  // Past sums of one token: `before` the chunk, `inside` it, and the grown terms `grown` of the original's
  // subtraction; `start` is the exponent of the chunk's first token.
  struct ChunkState {
    St before, inside, grown;
    V start;
  };
  struct Weights {
    V o, before, inside, grown, future, self;
  };

  MEDSEQ_INLINE ChunkState open_chunk(const St &carried, V first_k) {
    return {carried, empty(), empty(), first_k};
  }
  MEDSEQ_MEMBER void enter(ChunkState &c, bool first, V kt, V vt) {
    if (!first) c.grown = push(c.grown, -w, kt, vt, splat(S(1)));
  }
  MEDSEQ_MEMBER void leave(ChunkState &c, V kt, V vt) {
    c.inside = push(c.inside, w, kt, vt, splat(S(1)));
    c.before = fade(c.before, w);
    c.start = c.start + w;
  }
  MEDSEQ_MEMBER Weights weigh(const ChunkState &c, const St &future, V kt) {
    Weights p;
    p.o = vmax(vmax(c.before.o - w, c.inside.o), vmax(u + kt, future.o - w));
    p.o = vmax(vmax(p.o, c.start), vmax(c.grown.o, c.grown.o + w));
    p.before = exp_nonpositive(c.before.o - w - p.o);
    p.inside = exp_nonpositive(c.inside.o - p.o);
    p.grown = h_scale * exp_nonpositive(c.grown.o + h_shift - p.o);
    p.future = exp_nonpositive(future.o - w - p.o);
    p.self = exp_nonpositive(u + kt - p.o);
    return p;
  }
  MEDSEQ_INLINE V numerator(const ChunkState &c, const St &f, const Weights &p, V vt) {
    return p.before * c.before.n + p.inside * c.inside.n + p.grown * c.grown.n + p.future * f.n + p.self * vt;
  }
  MEDSEQ_INLINE V denominator(const ChunkState &c, const St &f, const Weights &p) {
    return p.before * c.before.d + p.inside * c.inside.d + p.grown * c.grown.d + p.future * f.d + p.self +
           static_cast<S>(kEpsilon);
  }

  void forward_chunk64() {
    sweep_future();
    St carried = empty();
    for (int64_t b = 0; b < blocks(); ++b) {
      expand_future(b, scratch);
      ChunkState c = open_chunk(carried, at(k, begin(b)));
      for (int64_t t = begin(b); t < end(b); ++t) {
        V kt = at(k, t), vt = at(v, t);
        const St &future = scratch[t - begin(b)];
        enter(c, t == begin(b), kt, vt);
        Weights p = weigh(c, future, kt);
        store(y + t * stride, numerator(c, future, p, vt) / denominator(c, future, p), lanes);
        leave(c, kt, vt);
      }
      carried = merge(c.before, c.inside);
    }
  }

  void backward_chunk64_future() {
    St carried = empty(), adjoint = empty();
    for (int64_t b = 0; b < blocks(); ++b) {
      expand_future(b, scratch);
      past[b] = carried;
      ChunkState c = open_chunk(carried, at(k, begin(b)));
      V block_gw = zero(), block_gu = zero();
      for (int64_t t = begin(b); t < end(b); ++t) {
        V kt = at(k, t), vt = at(v, t);
        const St &future = scratch[t - begin(b)];
        enter(c, t == begin(b), kt, vt);
        Weights p = weigh(c, future, kt);
        V d = denominator(c, future, p);
        V yt = numerator(c, future, p, vt) / d, q = at(gy, t) / d;
        V from_future = exp_nonpositive(kt + adjoint.o - w);
        V self = p.self * q;
        store(gv + t * stride, self + from_future * adjoint.d, lanes);
        store(gk + t * stride, self * (vt - yt) + from_future * (vt * adjoint.d - adjoint.n), lanes);
        block_gu += self * (vt - yt);
        // The factors e^-w and 1 - e^w in front of the sums, then w inside the future sum.
        V grown_slope = exp_nonpositive(c.grown.o + w - p.o);
        block_gw -= q * (p.before * (c.before.n - yt * c.before.d) + p.future * (future.n - yt * future.d) +
                         grown_slope * (c.grown.n - yt * c.grown.d));
        block_gw -= pair(future, adjoint, w + w);
        token[3 * t] = q * yt, token[3 * t + 1] = q, token[3 * t + 2] = -p.o;
        adjoint = push(adjoint, w, -p.o, q * yt, q);
        leave(c, kt, vt);
      }
      carried = merge(c.before, c.inside);
      gw += block_gw, gu += block_gu;
    }
  }

  void backward_chunk64_past() {
    St later = empty(); // adjoint of the state carried over the chunk's end
    for (int64_t b = blocks() - 1; b >= 0; --b) {
      ChunkState c = open_chunk(past[b], at(k, begin(b)));
      for (int64_t t = begin(b); t < end(b); ++t) {
        V kt = at(k, t), vt = at(v, t);
        enter(c, t == begin(b), kt, vt);
        St *s = scratch + 3 * (t - begin(b));
        s[0] = c.before, s[1] = c.inside, s[2] = c.grown;
        leave(c, kt, vt);
      }
      St inside = empty(), grown = empty();
      V block_gw = zero();
      for (int64_t t = end(b) - 1; t >= begin(b); --t) {
        V kt = at(k, t), vt = at(v, t);
        V q = token[3 * t + 1], qy = token[3 * t], qo = token[3 * t + 2];
        const St *s = scratch + 3 * (t - begin(b));
        block_gw -= pair(s[0], later, w + w) + pair(s[0], inside, w + w) + pair(s[1], later, w + w);
        block_gw -= pair(s[1], inside, w);
        block_gw += h_scale * pair(s[2], grown, -(w + h_shift));
        V p_later = exp_nonpositive(kt + later.o - w), p_inside = exp_nonpositive(kt + inside.o);
        V sum_q = p_later * later.d + p_inside * inside.d;
        V sum_qy = p_later * later.n + p_inside * inside.n;
        if (t > begin(b)) {
          grown = push(grown, -w, qo, qy, q);
          V p_grown = h_scale * exp_nonpositive(kt + grown.o + h_shift);
          sum_q += p_grown * grown.d;
          sum_qy += p_grown * grown.n;
        }
        store(gv + t * stride, at(gv, t) + sum_q, lanes);
        store(gk + t * stride, at(gk, t) + (vt * sum_q - sum_qy), lanes);
        inside = push(inside, w, qo, qy, q);
        later = fade(later, w);
      }
      later = merge(later, inside);
      gw += block_gw;
    }
  }
};

int64_t at_least_one(int64_t x) { return x > 0 ? x : 1; }

// Scratch of one thread: states at block borders (2), inside a block (3), and three vectors per token going back.
template <class S> struct Scratch {
  typedef typename Simd<S>::V V;
  V *memory;
  int64_t blocks, block;
  Scratch(int64_t length, int64_t block_length, bool backward) : memory(0), block(block_length) {
    blocks = (length + block - 1) / block;
    int64_t vectors = 3 * (2 * blocks + 3 * block) + (backward ? 3 * length : 0);
    void *p = 0;
    if (posix_memalign(&p, 64, sizeof(V) * static_cast<size_t>(at_least_one(vectors))) == 0) memory = static_cast<V *>(p);
  }
  ~Scratch() { free(memory); }
  void lend(Kernel<S> &kernel) {
    kernel.block = block;
    kernel.border = reinterpret_cast<State<V> *>(memory);
    kernel.past = kernel.border + blocks;
    kernel.scratch = kernel.past + blocks;
    kernel.token = memory + 3 * (2 * blocks + 3 * block);
  }
};

template <class S> Kernel<S> view(const WkvProblem &p, int64_t b, int64_t c) {
  Kernel<S> kernel;
  memset(static_cast<void *>(&kernel), 0, sizeof(kernel));
  int64_t rest = p.channels - c, offset = b * p.length * p.channels + c;
  kernel.length = p.length;
  kernel.stride = p.channels;
  kernel.lanes = static_cast<int>(rest < Lanes<S>::count ? rest : Lanes<S>::count);
  kernel.k = static_cast<const S *>(p.k) + offset;
  kernel.v = static_cast<const S *>(p.v) + offset;
  kernel.w = load(static_cast<const S *>(p.w) + c, kernel.lanes);
  kernel.u = load(static_cast<const S *>(p.u) + c, kernel.lanes);
  for (int i = 0; i < kernel.lanes; ++i) {
    double w = kernel.w[i];
    kernel.h_scale[i] = static_cast<S>(w > 0 ? expm1(-w) : -expm1(w));
    kernel.h_shift[i] = w > 0 ? kernel.w[i] : S(0);
  }
  return kernel;
}

int64_t block_length(const WkvProblem &p) {
  return p.chunk64 ? at_least_one((p.length + kChunks - 1) / kChunks) : kBlock;
}

template <class S> int forward(const WkvProblem &p, S *y) {
  int failed = 0;
  const int64_t groups = (p.channels + Lanes<S>::count - 1) / Lanes<S>::count;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1) reduction(| : failed)
  {
    Scratch<S> scratch(p.length, block_length(p), false);
    failed = scratch.memory == 0;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < p.batch * groups; ++task) {
      if (failed) continue;
      int64_t b = task / groups, c = task % groups * Lanes<S>::count;
      Kernel<S> kernel = view<S>(p, b, c);
      kernel.y = y + b * p.length * p.channels + c;
      scratch.lend(kernel);
      p.chunk64 ? kernel.forward_chunk64() : kernel.forward_exact();
    }
  }
  return failed;
}

template <class S> int backward(const WkvProblem &p, const S *gy, S *gw, S *gu, S *gk, S *gv) {
  int failed = 0;
  const int64_t groups = (p.channels + Lanes<S>::count - 1) / Lanes<S>::count;
  // Every batch item writes its own gw, gu row; the rows are added in order, whatever the number of threads.
  S *rows = static_cast<S *>(malloc(sizeof(S) * 2 * static_cast<size_t>(at_least_one(p.batch * p.channels))));
  if (!rows) return 1;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1) reduction(| : failed)
  {
    Scratch<S> scratch(p.length, block_length(p), true);
    failed = scratch.memory == 0;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < p.batch * groups; ++task) {
      if (failed) continue;
      int64_t b = task / groups, c = task % groups * Lanes<S>::count;
      int64_t offset = b * p.length * p.channels + c;
      Kernel<S> kernel = view<S>(p, b, c);
      kernel.gy = gy + offset, kernel.gk = gk + offset, kernel.gv = gv + offset;
      scratch.lend(kernel);
      kernel.sweep_future();
      p.chunk64 ? kernel.backward_chunk64_future() : kernel.backward_exact_future();
      p.chunk64 ? kernel.backward_chunk64_past() : kernel.backward_exact_past();
      store(rows + 2 * b * p.channels + c, kernel.gw, kernel.lanes);
      store(rows + (2 * b + 1) * p.channels + c, kernel.gu, kernel.lanes);
    }
  }
  for (int64_t c = 0; c < p.channels; ++c) {
    S sum_w = 0, sum_u = 0;
    for (int64_t b = 0; b < p.batch; ++b) {
      sum_w += rows[2 * b * p.channels + c];
      sum_u += rows[(2 * b + 1) * p.channels + c];
    }
    gw[c] = sum_w, gu[c] = sum_u;
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
