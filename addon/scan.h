// Restart: reads every slot header of an arena, clears what does not verify, and lists the rest in the order
// the ledger wants them (by depth, then newest generation first).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "arena.h"

namespace cairn {

constexpr size_t kScanWords = 33;

struct ScanResult {
  struct Entry {
    /// depth << 32 | ~generation: ascending order is the order wanted.
    uint64_t order;
    uint32_t slot;
  };
  std::vector<Entry> entries;
  uint64_t invalid = 0;
  size_t cursor = 0;

  /// Copies up to `count` headers plus slot numbers; returns how many.
  size_t read(const Arena& arena, uint32_t* into, size_t count);
};

/// Scans with `threads` helpers; report(slabs done, slabs) as it goes; stops early when `stop` is set.
ScanResult scanArena(Arena& arena, uint32_t threads, const std::atomic<bool>& stop,
                     const std::function<void(uint32_t, uint32_t)>& report);

}  // namespace cairn
