// Windows: memfds shared with an engine. A region is mapped only when it is sealed against shrinking and
// growing, so that no client can take pages from under a running copy; huge-page memfds are refused, for
// a hole punched into one could not be filled again and would end in a SIGBUS.
//
// Lifetime: the table and every batch in flight hold a reference; the last one unmaps. `closing` makes
// items that have not begun end REGION.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "common.h"

namespace cairn {

class Region {
 public:
  /// Takes over the descriptor; no page is touched yet (toucher.h). Throws NOT_SEALED, TOO_SMALL, UNSAFE or an errno name.
  static std::shared_ptr<Region> map(Descriptor file, uint64_t sizeBytes);
  /// Makes a sealed memfd and maps it.
  static std::pair<std::shared_ptr<Region>, Descriptor> create(uint64_t sizeBytes);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  uint8_t* base() const { return base_; }
  uint64_t sizeBytes() const { return sizeBytes_; }
  bool contains(uint64_t offset, uint64_t bytes) const {
    return offset <= sizeBytes_ && bytes <= sizeBytes_ - offset;
  }
  void close() { closing_.store(true, std::memory_order_release); }
  bool closing() const { return closing_.load(std::memory_order_acquire); }

  /// docs/protocol.md: compares the pattern of seed, then writes that of seed + 1 in its place.
  bool prove(uint64_t offset, uint64_t rowBytes, uint32_t seed);

 private:
  Region(uint8_t* base, uint64_t sizeBytes) : base_(base), sizeBytes_(sizeBytes) {}
  uint8_t* base_;
  uint64_t sizeBytes_;
  std::atomic<bool> closing_{false};
};

/// A new memfd of this size, sealed against shrinking and growing.
Descriptor makeSealedMemfd(const char* name, uint64_t sizeBytes);
/// Maps a whole descriptor shared. huge = advise huge pages.
uint8_t* mapUntouched(int file, uint64_t sizeBytes, bool huge);
/// The same, and touches every page before it returns.
uint8_t* mapShared(int file, uint64_t sizeBytes, bool huge);

}  // namespace cairn
