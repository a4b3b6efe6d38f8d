#include "scan.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <thread>

namespace cairn {
namespace {

using Entries = std::vector<ScanResult::Entry>;

bool before(const ScanResult::Entry& a, const ScanResult::Entry& b) {
  return a.order != b.order ? a.order < b.order : a.slot < b.slot;
}

/// One slab: appends its valid headers, frees the others that claim to hold something; returns how many.
uint64_t scanSlab(Arena& arena, uint32_t slabIndex, Entries& entries) {
  const ArenaSlab& slab = arena.slab(slabIndex);
  auto* headers = reinterpret_cast<SlotHeader*>(arena.slabBase(slabIndex));
  uint64_t invalid = 0;
  for (uint32_t i = 0; i < slab.slots; i++) {
    SlotHeader& header = headers[i];
    if (slotState(header) == kSlotFree) continue;
    const uint32_t ns = header.namespaceIndex;
    const bool known = ns < kNamespacesMax && arena.namespaces()[ns].used;
    if (!known || header.length > slab.payloadBytes || !headerValid(header, arena.namespaces()[ns].seed)) {
      setSlotState(header, kSlotFree);
      invalid++;
      continue;
    }
    const uint64_t order = uint64_t{header.depth} << 32 | (UINT32_MAX - header.generation);
    entries.push_back({order, slabIndex << kSlotIndexBits | i});
  }
  return invalid;
}

}  // namespace

ScanResult scanArena(Arena& arena, uint32_t threads, const std::atomic<bool>& stop,
                     const std::function<void(uint32_t, uint32_t)>& report) {
  ScanResult result;
  std::mutex mutex;
  std::atomic<uint32_t> next{0};
  std::atomic<uint32_t> done{0};
  const uint32_t slabs = arena.slabs();
  const auto work = [&] {
    Entries mine;
    uint64_t invalid = 0;
    for (;;) {
      const uint32_t slab = next.fetch_add(1);
      if (slab >= slabs || stop.load()) break;
      invalid += scanSlab(arena, slab, mine);
      report(done.fetch_add(1) + 1, slabs);
    }
    std::sort(mine.begin(), mine.end(), before);
    std::lock_guard lock(mutex);
    result.invalid += invalid;
    const auto middle = static_cast<ptrdiff_t>(result.entries.size());
    result.entries.insert(result.entries.end(), mine.begin(), mine.end());
    std::inplace_merge(result.entries.begin(), result.entries.begin() + middle, result.entries.end(), before);
  };
  std::vector<std::thread> pool;
  for (uint32_t i = 1; i < threads; i++) pool.emplace_back(work);
  work();
  for (std::thread& thread : pool) thread.join();
  return result;
}

size_t ScanResult::read(const Arena& arena, uint32_t* into, size_t count) {
  const size_t last = std::min(entries.size(), cursor + count);
  size_t written = 0;
  for (; cursor < last; cursor++, written++) {
    const uint32_t slot = entries[cursor].slot;
    uint32_t* words = into + written * kScanWords;
    memcpy(words, arena.header(slot), sizeof(SlotHeader));
    words[sizeof(SlotHeader) / 4] = slot;
  }
  return written;
}

}  // namespace cairn
