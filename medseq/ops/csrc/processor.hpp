// Which builds of the kernels a processor can run. Apart from the question to the processor, so that tests can fake it.
#pragma once

#include <string>
#include <vector>

namespace medseq {

// What the processor says it has.
struct Processor {
  bool avx2, fma, avx512f, avx512dq, avx512bw, avx512vl;
};

// Every flag that the build was compiled with must be there: CMakeLists.txt, add_kernels.
inline std::vector<std::string> builds_for(const Processor &has) {
  std::vector<std::string> list = {"baseline"};
  const bool avx2 = has.avx2 && has.fma;
  const bool avx512 = avx2 && has.avx512f && has.avx512dq && has.avx512bw && has.avx512vl;
  if (avx2) list.push_back("avx2");
  if (avx512) list.push_back("avx512");
  return list;
}

} // namespace medseq
