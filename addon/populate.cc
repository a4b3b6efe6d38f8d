#include "populate.h"

#include <sys/mman.h>

#include <algorithm>
#include <thread>
#include <vector>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace cairn {

int populateRange(uint8_t* base, uint64_t bytes) {
  constexpr uint64_t kSliceBytes = 64u << 20;
  for (uint64_t at = 0; at < bytes; at += kSliceBytes) {
    const uint64_t slice = std::min(kSliceBytes, bytes - at);
    while (madvise(base + at, slice, MADV_POPULATE_WRITE) != 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      if (errno != EINVAL) return errno;
      // Kernel before 5.14: one write per page that changes nothing.
      for (uint64_t page = 0; page < slice; page += 4096) {
        __atomic_fetch_add(base + at + page, 0, __ATOMIC_RELAXED);
      }
      break;
    }
  }
  return 0;
}

int populateArena(Arena& arena, uint32_t from, uint32_t to, uint32_t threads, const std::atomic<bool>& stop,
                  const std::function<void(uint32_t, uint32_t)>& report) {
  std::atomic<uint32_t> next{from};
  std::atomic<uint32_t> done{0};
  std::atomic<int> error{0};
  const auto work = [&] {
    for (;;) {
      const uint32_t slab = next.fetch_add(1);
      if (slab >= to || stop.load() || error.load() != 0) return;
      const int result = populateRange(arena.slabBase(slab), arena.slabBytes());
      if (result != 0) error.store(result);
      report(done.fetch_add(1) + 1, to - from);
    }
  };
  std::vector<std::thread> pool;
  for (uint32_t i = 1; i < threads; i++) pool.emplace_back(work);
  work();
  for (std::thread& thread : pool) thread.join();
  return error.load();
}

}  // namespace cairn
