// medseq.ops._C: the compiled CPU kernels. Tensors arrive as addresses, so nothing here depends on torch's ABI.

#include "wkv.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace nb = nanobind;
using namespace medseq;

namespace {

struct Build {
  const char *name;
  bool usable;
  WkvForward wkv_forward[2]; // float32, float64
  WkvBackward wkv_backward[2];
};

#define MEDSEQ_BUILD(isa, usable)                                                                                      \
  {#isa, usable, {isa::wkv_forward_f32, isa::wkv_forward_f64}, {isa::wkv_backward_f32, isa::wkv_backward_f64}}

// Best last. The processor is asked at run time: a build it cannot run is listed nowhere and never called.
const std::vector<Build> &builds() {
  static const std::vector<Build> all = [] {
    std::vector<Build> list;
#if defined(MEDSEQ_X86)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    for (const Build &b : {Build MEDSEQ_BUILD(baseline, true), Build MEDSEQ_BUILD(avx2, has_avx2),
                           Build MEDSEQ_BUILD(avx512, has_avx512)})
      if (b.usable) list.push_back(b);
#else
    list.push_back(Build MEDSEQ_BUILD(baseline, true));
#endif
    return list;
  }();
  return all;
}

const Build &find_build(const std::string &isa) {
  for (const Build &b : builds())
    if (isa == b.name) return b;
  throw std::invalid_argument("this processor or build has no instruction set '" + isa + "'");
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Build &b : builds()) names.push_back(b.name);
  return names;
}

template <class T = const void> T *address(uintptr_t p) { return reinterpret_cast<T *>(p); }

WkvProblem problem(bool chunk64, int64_t batch, int64_t length, int64_t channels, uintptr_t w, uintptr_t u, uintptr_t k,
                   uintptr_t v, int threads) {
  return {batch, length, channels, address(w), address(u), address(k), address(v), chunk64, threads};
}

void wkv_forward(const std::string &isa, bool is_double, bool chunk64, int64_t batch, int64_t length, int64_t channels,
                 uintptr_t w, uintptr_t u, uintptr_t k, uintptr_t v, uintptr_t y, int threads) {
  WkvForward run = find_build(isa).wkv_forward[is_double];
  if (run(problem(chunk64, batch, length, channels, w, u, k, v, threads), address<void>(y))) throw std::bad_alloc();
}

void wkv_backward(const std::string &isa, bool is_double, bool chunk64, int64_t batch, int64_t length, int64_t channels,
                  uintptr_t w, uintptr_t u, uintptr_t k, uintptr_t v, uintptr_t gy, uintptr_t gw, uintptr_t gu,
                  uintptr_t gk, uintptr_t gv, int threads) {
  WkvBackward run = find_build(isa).wkv_backward[is_double];
  if (run(problem(chunk64, batch, length, channels, w, u, k, v, threads), address(gy), address<void>(gw),
          address<void>(gu), address<void>(gk), address<void>(gv)))
    throw std::bad_alloc();
}

} // namespace

NB_MODULE(_C, m) {
  m.doc() = "Compiled CPU kernels of medseq.ops; called with addresses of contiguous arrays.";
#if defined(_OPENMP)
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  m.def("instruction_sets", &instruction_sets, "Kernel builds that this processor can run, best last.");
  m.def("wkv_forward", &wkv_forward, nb::call_guard<nb::gil_scoped_release>());
  m.def("wkv_backward", &wkv_backward, nb::call_guard<nb::gil_scoped_release>());
}
