// The builds of the kernels, one per instruction set, and the choice among them at run time.
#pragma once

#include <nanobind/nanobind.h>

#include <stdint.h>
#include <string>
#include <vector>

// One function in all its builds, worst first; the order of build_names().
#if defined(MEDSEQ_X86)
#define MEDSEQ_BUILDS(function) {baseline::function, avx2::function, avx512::function}
#else
#define MEDSEQ_BUILDS(function) {baseline::function}
#endif

namespace medseq {

#if defined(MEDSEQ_X86)
constexpr int kBuilds = 3;
#else
constexpr int kBuilds = 1;
#endif

// The builds that this processor can run, best last: always a beginning of the list in MEDSEQ_BUILDS.
const std::vector<std::string> &build_names();

// Place of a build in MEDSEQ_BUILDS; throws std::invalid_argument if this processor cannot run it.
size_t build_index(const std::string &isa);

template <class T = const void> T *address(int64_t p) { return reinterpret_cast<T *>(static_cast<uintptr_t>(p)); }

// One per operator, in <operator>_module.cpp.
void bind_causal_conv1d(nanobind::module_ &m);
void bind_cross_scan(nanobind::module_ &m);
void bind_wkv(nanobind::module_ &m);
void bind_selective_scan(nanobind::module_ &m);

} // namespace medseq
