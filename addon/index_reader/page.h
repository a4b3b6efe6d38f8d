// One page of the NVMe index as the reader sees it: bytes that anybody may have written become records, or nothing.
// The other half of this codec, and the layout in words, is tiers/nvme/index-pages.ts; test/golden/nvme-index-page.hex
// holds both together.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cairn {

constexpr uint32_t kPageSlots = 32;
constexpr uint32_t kPagesPerSegment = 8192;
constexpr uint32_t kIndexSegmentsMax = 16384;
constexpr uint32_t kIndexPagesMax = kIndexSegmentsMax * kPagesPerSegment;
constexpr uint32_t kPageHeadWords = 8;
constexpr uint32_t kEntryWords = 13;
constexpr uint32_t kKeyWords = 8;
constexpr uint32_t kPageWordsMax = kPageHeadWords + kPageSlots * (kEntryWords + kKeyWords);

/// What a start is told of one block: RECORD of tiers/nvme/probe.ts.
struct IndexRecord {
  /// Row of namespaces.json | shard << 16.
  uint32_t row;
  uint32_t depth;
  uint32_t generation;
  /// Milliseconds of Unix time, low word first.
  uint32_t lastAccess[2];
  uint32_t key[kKeyWords];
  /// Zero: none.
  uint32_t parentKey[kKeyWords];
  /// segment << kSlotIndexBits | index
  uint32_t slot;
  /// Of the segment's class.
  uint32_t payloadBytes;
};
static_assert(sizeof(IndexRecord) == 92, "23 words, without padding");

/// Reads the value that stood under `key`, at any alignment; `into` has room for kPageSlots records, in order of slots.
/// Returns how many there are; 0: these bytes are no such page, and what `into` holds then means nothing.
size_t readPage(const uint8_t* value, size_t bytes, uint32_t key, IndexRecord* into);

}  // namespace cairn
