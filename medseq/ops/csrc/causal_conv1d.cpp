// Depthwise causal convolution with an optional SiLU, forward and backward: one lane per token, one row (batch item and
// channel) at a time. Rows are cut into blocks that stay in the first cache; derivation: ../causal_conv1d/README.md.

#include "causal_conv1d.hpp"

#include "selective_scan_math.hpp"

#include <stdlib.h>

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

// Tokens of a block. Sums over a block are added up in double precision.
constexpr int64_t kBlock = 1024;

// 0 where e^-y is infinite, so that -1e38 times it is 0 too.
template <class S> MEDSEQ_INLINE typename Simd<S>::V logistic(typename Simd<S>::V y) {
  return splat(S(1)) / (splat(S(1)) + exp2_any<S>(y * static_cast<S>(-kLog2e)));
}

template <class S> MEDSEQ_INLINE double total(typename Simd<S>::V x) {
  double sum = 0;
  for (int i = 0; i < Lanes<S>::count; ++i) sum += static_cast<double>(x[i]);
  return sum;
}

// One row: its filter, and a copy of a block of tokens with the width - 1 tokens before it.
template <class S> struct Row {
  typedef typename Simd<S>::V V;
  static constexpr int lanes = Lanes<S>::count;

  int64_t length, width;
  const S *x, *weight, *state; // state null: zeros before the row
  S bias;
  bool silu;
  S *window; // width - 1 + kBlock tokens

  int64_t history() const { return width - 1; }
  S token(int64_t t) const { return t >= 0 ? x[t] : state ? state[t + history()] : S(0); }

  // window[i] = token first - (width - 1) + i, for the outputs first .. first + count - 1.
  void fill(int64_t first, int64_t count) {
    int64_t i = 0, t = first - history();
    for (; t < 0 && i < count + history(); ++i, ++t) window[i] = token(t);
    memcpy(window + i, x + t, sizeof(S) * static_cast<size_t>(count + history() - i));
  }
};

// The filter of a row. W is its width if that is known at compile time, so that it stays in registers, else 0.
template <class S, int W> struct Filter {
  typedef typename Simd<S>::V V;
  const Row<S> &row;
  V tap[W ? W : 1];

  explicit Filter(const Row<S> &of) : row(of) {
    for (int k = 0; k < W; ++k) tap[k] = splat(row.weight[k]);
  }
  MEDSEQ_MEMBER int64_t width() const { return W ? W : row.width; }
  MEDSEQ_MEMBER V at(int64_t k) const { return W ? tap[k] : splat(row.weight[k]); }

  MEDSEQ_MEMBER V before_activation(int64_t i, int n) const {
    V sum = splat(row.bias);
    for (int64_t k = 0; k < width(); ++k) sum += at(k) * load(row.window + i + k, n);
    return sum;
  }

  // Of the token i from what it sends to itself and the width - 1 tokens after it.
  MEDSEQ_MEMBER V gradient(const S *pulled, int64_t i, int n) const {
    V sum = splat(S(0));
    for (int64_t k = 0; k < width(); ++k) sum += at(k) * load(pulled + i + width() - 1 - k, n);
    return sum;
  }
};

MEDSEQ_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class S> Row<S> row_of(const CausalConvProblem &p, int64_t b, int64_t c, S *window) {
  const int64_t at = b * p.channels + c;
  const S *bias = static_cast<const S *>(p.bias), *state = static_cast<const S *>(p.state);
  return {p.length,
          p.width,
          static_cast<const S *>(p.x) + at * p.length,
          static_cast<const S *>(p.weight) + c * p.width,
          state ? state + at * (p.width - 1) : nullptr,
          bias ? bias[c] : S(0),
          p.silu,
          window};
}

template <class S, int W> void forward_row(Row<S> row, S *y) {
  typedef typename Simd<S>::V V;
  const Filter<S, W> filter(row);
  for (int64_t first = 0; first < row.length; first += kBlock) {
    const int64_t count = least(kBlock, row.length - first);
    row.fill(first, count);
    for (int64_t i = 0; i < count; i += row.lanes) {
      const int n = static_cast<int>(least(row.lanes, count - i));
      V sum = filter.before_activation(i, n);
      store(y + first + i, row.silu ? sum * logistic<S>(sum) : sum, n);
    }
  }
}

// Blocks from the last to the first: what a token sends back reaches width - 1 tokens to the left. `pulled` holds the
// gradient before the activation of a block, followed by that of the width - 1 tokens after it.
template <class S, int W>
void backward_row(Row<S> row, const S *gy, S *gx, S *gstate, S *pulled, double *gw, double &gb) {
  typedef typename Simd<S>::V V;
  const Filter<S, W> filter(row);
  const int64_t history = row.history(), blocks = (row.length + kBlock - 1) / kBlock;
  for (int64_t i = 0; i < history; ++i) pulled[i] = 0;
  for (int64_t block = blocks - 1; block >= 0; --block) {
    const int64_t first = block * kBlock, count = least(kBlock, row.length - first);
    row.fill(first, count);
    memmove(pulled + count, pulled, sizeof(S) * static_cast<size_t>(history));
    for (int64_t i = 0; i < count; i += row.lanes) {
      const int n = static_cast<int>(least(row.lanes, count - i));
      V g = load(gy + first + i, n);
      if (row.silu) {
        V sum = filter.before_activation(i, n), gate = logistic<S>(sum);
        g = g * gate * (splat(S(1)) + sum * (splat(S(1)) - gate));
      }
      store(pulled + i, g, n);
    }
    V sums[W ? W : 1] = {}, sum = splat(S(0));
    for (int64_t i = 0; i < count; i += row.lanes) {
      const int n = static_cast<int>(least(row.lanes, count - i));
      V g = load(pulled + i, n);
      sum += g;
      for (int k = 0; k < W; ++k) sums[k] += g * load(row.window + i + k, n);
      store(gx + first + i, filter.gradient(pulled, i, n), n);
    }
    for (int k = 0; k < W; ++k) gw[k] += total<S>(sums[k]);
    for (int64_t k = 0; k < row.width && !W; ++k) {
      V one = splat(S(0));
      for (int64_t i = 0; i < count; i += row.lanes) {
        const int n = static_cast<int>(least(row.lanes, count - i));
        one += load(pulled + i, n) * load(row.window + i + k, n);
      }
      gw[k] += total<S>(one);
    }
    gb += total<S>(sum);
  }
  // Token -history + j reaches the outputs 0 .. j.
  for (int64_t j = 0; gstate && j < history; ++j) {
    S g = 0;
    for (int64_t t = 0; t <= j && t < row.length; ++t) g += row.weight[j - t] * pulled[t];
    gstate[j] = g;
  }
}

// The usual widths have code of their own.
template <class S> auto forward_of(int64_t width) {
  return width == 4 ? forward_row<S, 4> : width == 3 ? forward_row<S, 3> : width == 2 ? forward_row<S, 2>
                                                                                      : forward_row<S, 0>;
}

template <class S> auto backward_of(int64_t width) {
  return width == 4 ? backward_row<S, 4> : width == 3 ? backward_row<S, 3> : width == 2 ? backward_row<S, 2>
                                                                                        : backward_row<S, 0>;
}

template <class S> int forward(const CausalConvProblem &p, S *y) {
  const auto run = forward_of<S>(p.width);
  int failed = 0;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1) reduction(| : failed)
  {
    S *window = static_cast<S *>(malloc(sizeof(S) * static_cast<size_t>(p.width - 1 + kBlock)));
    failed = window == nullptr;
#pragma omp for schedule(static)
    for (int64_t at = 0; at < p.batch * p.channels; ++at)
      if (!failed) run(row_of<S>(p, at / p.channels, at % p.channels, window), y + at * p.length);
    free(window);
  }
  return failed;
}

// A channel is one thread's from the first batch item to the last, so that its filter's gradient does not depend on the
// number of threads.
template <class S> int backward(const CausalConvProblem &p, const CausalConvGradient &g) {
  const S *gy = static_cast<const S *>(g.gy);
  S *gx = static_cast<S *>(g.x), *gweight = static_cast<S *>(g.weight), *gbias = static_cast<S *>(g.bias);
  S *gstate = static_cast<S *>(g.state);
  const int64_t history = p.width - 1;
  const auto run = backward_of<S>(p.width);
  int failed = 0;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1) reduction(| : failed)
  {
    S *window = static_cast<S *>(malloc(sizeof(S) * static_cast<size_t>(2 * (history + kBlock))));
    double *gw = static_cast<double *>(malloc(sizeof(double) * static_cast<size_t>(p.width)));
    failed = !window || !gw;
#pragma omp for schedule(static)
    for (int64_t c = 0; c < p.channels; ++c) {
      if (failed) continue;
      double gb = 0;
      for (int64_t k = 0; k < p.width; ++k) gw[k] = 0;
      for (int64_t b = 0; b < p.batch; ++b) {
        const int64_t at = b * p.channels + c;
        run(row_of<S>(p, b, c, window), gy + at * p.length, gx + at * p.length,
            gstate ? gstate + at * history : nullptr, window + history + kBlock, gw, gb);
      }
      for (int64_t k = 0; k < p.width; ++k) gweight[c * p.width + k] = static_cast<S>(gw[k]);
      if (gbias) gbias[c] = static_cast<S>(gb);
    }
    free(window), free(gw);
  }
  return failed;
}

} // namespace

int causal_conv1d_forward_f32(const CausalConvProblem &p, void *y) { return forward(p, static_cast<float *>(y)); }
int causal_conv1d_forward_f64(const CausalConvProblem &p, void *y) { return forward(p, static_cast<double *>(y)); }
int causal_conv1d_backward_f32(const CausalConvProblem &p, const CausalConvGradient &g) { return backward<float>(p, g); }
int causal_conv1d_backward_f64(const CausalConvProblem &p, const CausalConvGradient &g) { return backward<double>(p, g); }

} // namespace MEDSEQ_ISA
} // namespace medseq
