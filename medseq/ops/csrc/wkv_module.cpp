// Python binding of the bidirectional WKV kernel.

#include "builds.hpp"
#include "wkv.hpp"

#include <nanobind/stl/string.h>

#include <new>

namespace nb = nanobind;

namespace medseq {
namespace {

// [is_double][build]
const WkvForward kForward[2][kBuilds] = {MEDSEQ_BUILDS(wkv_forward_f32), MEDSEQ_BUILDS(wkv_forward_f64)};
const WkvBackward kBackward[2][kBuilds] = {MEDSEQ_BUILDS(wkv_backward_f32), MEDSEQ_BUILDS(wkv_backward_f64)};

WkvProblem problem(bool chunk64, int64_t batch, int64_t length, int64_t channels, int64_t w, int64_t u, int64_t k,
                   int64_t v, int threads) {
  return {batch, length, channels, address(w), address(u), address(k), address(v), chunk64, threads};
}

void forward(const std::string &isa, bool is_double, bool chunk64, int64_t batch, int64_t length, int64_t channels,
             int64_t w, int64_t u, int64_t k, int64_t v, int64_t y, int threads) {
  WkvForward run = kForward[is_double][build_index(isa)];
  if (run(problem(chunk64, batch, length, channels, w, u, k, v, threads), address<void>(y))) throw std::bad_alloc();
}

void backward(const std::string &isa, bool is_double, bool chunk64, int64_t batch, int64_t length, int64_t channels,
              int64_t w, int64_t u, int64_t k, int64_t v, int64_t gy, int64_t gw, int64_t gu, int64_t gk, int64_t gv,
              int threads) {
  WkvBackward run = kBackward[is_double][build_index(isa)];
  if (run(problem(chunk64, batch, length, channels, w, u, k, v, threads), address(gy), address<void>(gw),
          address<void>(gu), address<void>(gk), address<void>(gv)))
    throw std::bad_alloc();
}

} // namespace

void bind_wkv(nb::module_ &m) {
  m.def("wkv_forward", &forward, nb::call_guard<nb::gil_scoped_release>());
  m.def("wkv_backward", &backward, nb::call_guard<nb::gil_scoped_release>());
}

} // namespace medseq
