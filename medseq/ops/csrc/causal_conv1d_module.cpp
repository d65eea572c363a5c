// Python binding of the causal convolution's kernel. Absent arrays come as address 0.

#include "builds.hpp"
#include "causal_conv1d.hpp"

#include <nanobind/stl/string.h>

#include <new>

namespace nb = nanobind;

namespace medseq {
namespace {

// [is_double][build]
const CausalConvForward kForward[2][kBuilds] = {MEDSEQ_BUILDS(causal_conv1d_forward_f32),
                                                MEDSEQ_BUILDS(causal_conv1d_forward_f64)};
const CausalConvBackward kBackward[2][kBuilds] = {MEDSEQ_BUILDS(causal_conv1d_backward_f32),
                                                  MEDSEQ_BUILDS(causal_conv1d_backward_f64)};

CausalConvProblem problem(int64_t batch, int64_t channels, int64_t length, int64_t width, int64_t x, int64_t weight,
                          int64_t bias, int64_t state, bool silu, int threads) {
  return {batch, channels, length, width, address(x), address(weight), address(bias), address(state), silu, threads};
}

void forward(const std::string &isa, bool is_double, int64_t batch, int64_t channels, int64_t length, int64_t width,
             int64_t x, int64_t weight, int64_t bias, int64_t state, bool silu, int64_t y, int threads) {
  auto p = problem(batch, channels, length, width, x, weight, bias, state, silu, threads);
  if (kForward[is_double][build_index(isa)](p, address<void>(y))) throw std::bad_alloc();
}

void backward(const std::string &isa, bool is_double, int64_t batch, int64_t channels, int64_t length, int64_t width,
              int64_t x, int64_t weight, int64_t bias, int64_t state, bool silu, int64_t gy, int64_t gx,
              int64_t gweight, int64_t gbias, int64_t gstate, int threads) {
  auto p = problem(batch, channels, length, width, x, weight, bias, state, silu, threads);
  CausalConvGradient g = {address(gy), address<void>(gx), address<void>(gweight), address<void>(gbias),
                          address<void>(gstate)};
  if (kBackward[is_double][build_index(isa)](p, g)) throw std::bad_alloc();
}

} // namespace

void bind_causal_conv1d(nb::module_ &m) {
  m.def("causal_conv1d_forward", &forward, nb::call_guard<nb::gil_scoped_release>());
  m.def("causal_conv1d_backward", &backward, nb::call_guard<nb::gil_scoped_release>());
}

} // namespace medseq
