// medseq.ops._C: the compiled CPU kernels. Tensors arrive as addresses, so nothing here depends on torch's ABI.

#include "builds.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

namespace medseq {

// The processor is asked at run time: a build it cannot run is listed nowhere and never called.
const std::vector<std::string> &build_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> list = {"baseline"};
#if defined(MEDSEQ_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (avx2) list.push_back("avx2");
    if (avx512) list.push_back("avx512");
#endif
    return list;
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
