// Python binding of the selective scan's kernel. Arrays come as lists of integers, in the order of cpu.py.

#include "builds.hpp"
#include "large_pages.hpp"
#include "selective_scan.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <stdexcept>

namespace nb = nanobind;

namespace medseq {
namespace {

typedef std::vector<int64_t> Numbers;

// [is_double][build]
const SelectiveScanForward kForward[2][kBuilds] = {MEDSEQ_BUILDS(selective_scan_forward_f32),
                                                   MEDSEQ_BUILDS(selective_scan_forward_f64)};
const SelectiveScanBackward kBackward[2][kBuilds] = {MEDSEQ_BUILDS(selective_scan_backward_f32),
                                                     MEDSEQ_BUILDS(selective_scan_backward_f64)};
const Exp2 kExp2[2][kBuilds] = {MEDSEQ_BUILDS(exp2_f32), MEDSEQ_BUILDS(exp2_f64)};

// Reads a list of numbers from its beginning to its end.
class Reader {
 public:
  explicit Reader(const Numbers &all, size_t count) : next(all.data()) {
    if (all.size() != count) throw std::invalid_argument("selective_scan: wrong count of arguments in a list");
  }
  int64_t number() { return *next++; }
  void *array() { return address<void>(number()); }
  ScanRows rows() {
    void *data = array();
    int64_t batch = number();
    return {data, batch, number()};
  }

 private:
  const int64_t *next;
};

SelectiveScanProblem problem(const Numbers &sizes, const Numbers &flags, const Numbers &inputs, int threads) {
  Reader size(sizes, 6), flag(flags, 4), in(inputs, 15);
  SelectiveScanProblem p = {};
  p.batch = size.number(), p.channels = size.number(), p.length = size.number(), p.states = size.number();
  p.groups = size.number(), p.parts = size.number();
  p.constant_b = flag.number(), p.constant_c = flag.number(), p.softplus = flag.number(), p.reverse = flag.number();
  p.u = in.rows(), p.delta = in.rows(), p.z = in.rows();
  p.A = in.array(), p.B = in.array(), p.C = in.array();
  p.D = in.array(), p.delta_bias = in.array(), p.initial_state = in.array();
  p.threads = threads;
  return p;
}

// Bytes of an array as large as u.
int64_t bytes_of_rows(const SelectiveScanProblem &p, bool is_double) {
  return p.batch * p.channels * p.length * static_cast<int64_t>(is_double ? sizeof(double) : sizeof(float));
}

void forward(const std::string &isa, bool is_double, const Numbers &sizes, const Numbers &flags, const Numbers &inputs,
             const Numbers &outputs, int threads) {
  Reader out(outputs, 5);
  SelectiveScanResult result = {};
  result.y = out.rows(), result.last_state = out.array(), result.checkpoints = out.array();
  const SelectiveScanProblem p = problem(sizes, flags, inputs, threads);
  advise_large_pages(result.y.data, bytes_of_rows(p, is_double));
  if (kForward[is_double][build_index(isa)](p, result)) throw std::bad_alloc();
}

void backward(const std::string &isa, bool is_double, const Numbers &sizes, const Numbers &flags, const Numbers &inputs,
              const Numbers &incoming, const Numbers &outputs, int threads) {
  Reader in(incoming, 5), out(outputs, 15);
  SelectiveScanGradient g = {};
  g.gy = in.rows(), g.last_state = in.array(), g.checkpoints = in.array();
  g.u = out.rows(), g.delta = out.rows(), g.z = out.rows();
  g.A = out.array(), g.B = out.array(), g.C = out.array();
  g.D = out.array(), g.delta_bias = out.array(), g.initial_state = out.array();
  const SelectiveScanProblem p = problem(sizes, flags, inputs, threads);
  for (const ScanRows &rows : {g.u, g.delta, g.z}) advise_large_pages(rows.data, bytes_of_rows(p, is_double));
  if (kBackward[is_double][build_index(isa)](p, g)) throw std::bad_alloc();
}

void exp2_all(const std::string &isa, bool is_double, int64_t count, int64_t x, int64_t y) {
  kExp2[is_double][build_index(isa)](count, address(x), address<void>(y));
}

} // namespace

void bind_selective_scan(nb::module_ &m) {
  m.def("selective_scan_forward", &forward, nb::call_guard<nb::gil_scoped_release>());
  m.def("selective_scan_backward", &backward, nb::call_guard<nb::gil_scoped_release>());
  m.def("exp2", &exp2_all, nb::call_guard<nb::gil_scoped_release>(),
        "2^x of `count` numbers |x| <= 125 by the kernels' own exponential: the rate that bounds the scans.");
}

} // namespace medseq
