// medseq.ops._C: the compiled CPU kernels. Tensors arrive as addresses, so nothing here depends on torch's ABI.

#include "builds.hpp"
#include "processor.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

namespace medseq {

// The processor is asked at run time: a build it cannot run is listed nowhere and never called.
const std::vector<std::string> &build_names() {
  static const std::vector<std::string> names = [] {
#if defined(MEDSEQ_X86)
    __builtin_cpu_init();
    return builds_for({__builtin_cpu_supports("avx2") != 0, __builtin_cpu_supports("fma") != 0,
                       __builtin_cpu_supports("avx512f") != 0, __builtin_cpu_supports("avx512dq") != 0,
                       __builtin_cpu_supports("avx512bw") != 0, __builtin_cpu_supports("avx512vl") != 0});
#else
    return builds_for({});
#endif
  }();
  return names;
}

size_t build_index(const std::string &isa) {
  for (size_t i = 0; i < build_names().size(); ++i)
    if (isa == build_names()[i]) return i;
  throw std::invalid_argument("this processor or build has no instruction set '" + isa + "'");
}

} // namespace medseq

NB_MODULE(_C, m) {
  m.doc() = "Compiled CPU kernels of medseq.ops; called with addresses of contiguous arrays.";
#if defined(_OPENMP)
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  m.def("instruction_sets", &medseq::build_names, "Kernel builds that this processor can run, best last.");
  medseq::bind_causal_conv1d(m);
  medseq::bind_cross_scan(m);
  medseq::bind_wkv(m);
  medseq::bind_selective_scan(m);
}
