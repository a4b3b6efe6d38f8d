// Touches memory before it serves, so that no page fault stands in a copy: MADV_POPULATE_WRITE, or a
// harmless atomic read-modify-write per page where the kernel lacks it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>

#include "arena.h"

namespace cairn {

/// 0 or an errno. Contents stay as they are.
int populateRange(uint8_t* base, uint64_t bytes);

/// Touches slabs [from, to) with `threads`; report(done, total) after each; stops early when `stop` is set.
/// Returns 0 or an errno.
int populateArena(Arena& arena, uint32_t from, uint32_t to, uint32_t threads, const std::atomic<bool>& stop,
                  const std::function<void(uint32_t, uint32_t)>& report);

}  // namespace cairn
