// Python binding of the fused cross scan. Arrays come as lists of integers, in the order of ../cross_scan/cpu.py.

#include "builds.hpp"
#include "large_pages.hpp"
#include "cross_scan.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <stdexcept>

namespace nb = nanobind;

namespace medseq {
namespace {

typedef std::vector<int64_t> Numbers;

// [is_double][build]
const CrossScanForward kForward[2][kBuilds] = {MEDSEQ_BUILDS(cross_scan_forward_f32),
                                               MEDSEQ_BUILDS(cross_scan_forward_f64)};
const CrossScanBackward kBackward[2][kBuilds] = {MEDSEQ_BUILDS(cross_scan_backward_f32),
                                                 MEDSEQ_BUILDS(cross_scan_backward_f64)};

void check(const Numbers &list, size_t count) {
  if (list.size() != count) throw std::invalid_argument("cross_scan: wrong count of arguments in a list");
}

CrossScanProblem problem(const Numbers &sizes, const Numbers &flags, const Numbers &inputs, int threads) {
  check(sizes, 6), check(flags, 1 + 2 * kDirections), check(inputs, 8);
  CrossScanProblem p = {};
  p.batch = sizes[0], p.channels = sizes[1], p.rows = sizes[2], p.cols = sizes[3], p.states = sizes[4];
  p.parts = sizes[5];
  p.softplus = flags[0];
  for (int k = 0; k < kDirections; ++k) p.columns[k] = flags[1 + 2 * k], p.reverse[k] = flags[2 + 2 * k];
  const void **arrays[] = {&p.x, &p.delta, &p.A, &p.B, &p.C, &p.D, &p.delta_bias};
  for (size_t i = 0; i < 7; ++i) *arrays[i] = address(inputs[i]);
  p.packed = address<void>(inputs[7]);
  p.threads = threads;
  return p;
}

// Bytes of an array as large as x; delta has four times as many.
int64_t bytes_of_image(const CrossScanProblem &p, bool is_double) {
  return p.batch * p.channels * p.rows * p.cols * static_cast<int64_t>(is_double ? sizeof(double) : sizeof(float));
}

void forward(const std::string &isa, bool is_double, const Numbers &sizes, const Numbers &flags, const Numbers &inputs,
             const Numbers &outputs, int threads) {
  check(outputs, 2);
  const CrossScanResult result = {address<void>(outputs[0]), address<void>(outputs[1])};
  const CrossScanProblem p = problem(sizes, flags, inputs, threads);
  advise_large_pages(result.y, bytes_of_image(p, is_double));
  if (kForward[is_double][build_index(isa)](p, result)) throw std::bad_alloc();
}

void backward(const std::string &isa, bool is_double, const Numbers &sizes, const Numbers &flags, const Numbers &inputs,
              const Numbers &incoming, const Numbers &outputs, int threads) {
  check(incoming, 2), check(outputs, 8);
  CrossScanGradient g = {};
  g.gy = address(incoming[0]), g.checkpoints = address(incoming[1]);
  void **arrays[] = {&g.x, &g.delta, &g.A, &g.B, &g.C, &g.D, &g.delta_bias, &g.shares};
  for (size_t i = 0; i < 8; ++i) *arrays[i] = address<void>(outputs[i]);
  const CrossScanProblem p = problem(sizes, flags, inputs, threads);
  advise_large_pages(g.x, bytes_of_image(p, is_double));
  advise_large_pages(g.delta, kDirections * bytes_of_image(p, is_double));
  if (kBackward[is_double][build_index(isa)](p, g)) throw std::bad_alloc();
}

} // namespace

void bind_cross_scan(nb::module_ &m) {
  m.def("cross_scan_forward", &forward, nb::call_guard<nb::gil_scoped_release>());
  m.def("cross_scan_backward", &backward, nb::call_guard<nb::gil_scoped_release>());
}

} // namespace medseq
