// Large pages for large results: fresh memory costs a page fault for every few kilobytes on first touch, which takes
// longer than some kernels that fill it.
#pragma once

#include <stdint.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace medseq {

// Advises the system to back `bytes` at `memory` with large pages; nothing happens to small arrays, or where it does
// not know them. Only pages that lie in the array as a whole are meant.
inline void advise_large_pages(void *memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t(1) << 21;
  if (!memory || bytes < 2 * static_cast<int64_t>(page)) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / page * page;
  // Refused where the kernel was built without them: then there is nothing to gain.
  if (end > begin) (void)madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

} // namespace medseq
