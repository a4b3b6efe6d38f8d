#include "page.h"

#include <bit>
#include <cstring>

#include "../common.h"
#include "crc32.h"

namespace cairn {
namespace {

constexpr uint32_t kPageMagic = 0x58495243;  // "CRIX"
constexpr uint32_t kPageVersion = 1;
constexpr uint32_t kParentNone = 254;
constexpr uint32_t kParentSpelled = 255;
constexpr uint32_t kSlotIndexBits = 18;
static_assert(kPagesPerSegment * kPageSlots == 1u << kSlotIndexBits, "a segment's pages hold all its slots");
static_assert(uint64_t{kIndexSegmentsMax} << kSlotIndexBits == uint64_t{1} << 32, "a place is one word");

/// Words of a page's head.
enum : size_t { kMagic, kVersion, kKey, kPayloadBytes, kPresent, kChecksum, kWords };
/// Words of an entry.
enum : size_t { kFirst, kDepth, kGeneration, kLastAccess, kEntryKey = 5 };

uint32_t parentOf(const uint32_t* entry) { return entry[kFirst] >> 24; }

/// Checks the head and the checksum of a copy of the page. Its checksum word becomes 0.
bool headHolds(uint32_t* page, size_t words, uint32_t key) {
  if (page[kMagic] != kPageMagic || page[kVersion] != kPageVersion) return false;
  if (page[kKey] != key || page[kWords] != words) return false;
  const uint32_t sum = page[kChecksum];
  page[kChecksum] = 0;
  return crc32(reinterpret_cast<const uint8_t*>(page), words * sizeof(uint32_t)) == sum;
}

/// Where the entry of each slot begins, for those that are present. False: the page does not end where its entries do.
bool findEntries(const uint32_t* page, size_t words, const uint32_t* (&entries)[kPageSlots]) {
  const uint32_t present = page[kPresent];
  size_t at = kPageHeadWords;
  for (uint32_t position = 0; position < kPageSlots; position++) {
    entries[position] = nullptr;
    if ((present >> position & 1) == 0) continue;
    if (at + kEntryWords > words) return false;
    entries[position] = page + at;
    at += kEntryWords + (parentOf(page + at) == kParentSpelled ? kKeyWords : 0);
  }
  return at == words;
}

/// False: the parent is named by a position where nothing stands.
bool copyParentKey(const uint32_t* entry, const uint32_t* const (&entries)[kPageSlots], uint32_t* into) {
  constexpr size_t kKeyBytes = kKeyWords * sizeof(uint32_t);
  const uint32_t parent = parentOf(entry);
  if (parent == kParentNone) {
    memset(into, 0, kKeyBytes);
    return true;
  }
  const uint32_t* from = entry + kEntryWords;
  if (parent != kParentSpelled) {
    if (parent >= kPageSlots || entries[parent] == nullptr) return false;
    from = entries[parent] + kEntryKey;
  }
  memcpy(into, from, kKeyBytes);
  return true;
}

}  // namespace

size_t readPage(const uint8_t* value, size_t bytes, uint32_t key, IndexRecord* into) {
  CAIRN_ASSERT(value != nullptr && into != nullptr, "there is a value, and room for its records");
  const size_t words = bytes / sizeof(uint32_t);
  if (bytes % sizeof(uint32_t) != 0 || key >= kIndexPagesMax) return 0;
  if (words < kPageHeadWords + kEntryWords || words > kPageWordsMax) return 0;
  // A copy: aligned, and nobody else's to change between the check and the use.
  uint32_t page[kPageWordsMax];
  memcpy(page, value, bytes);
  const uint32_t* entries[kPageSlots];
  if (!headHolds(page, words, key) || !findEntries(page, words, entries)) return 0;
  const uint32_t firstSlot = (key / kPagesPerSegment << kSlotIndexBits) + key % kPagesPerSegment * kPageSlots;
  IndexRecord* record = into;
  for (uint32_t position = 0; position < kPageSlots; position++) {
    const uint32_t* entry = entries[position];
    if (entry == nullptr) continue;
    memcpy(record, entry, kEntryWords * sizeof(uint32_t));
    record->row = entry[kFirst] & 0xffffff;
    if (!copyParentKey(entry, entries, record->parentKey)) return 0;
    record->slot = firstSlot + position;
    record->payloadBytes = page[kPayloadBytes];
    record++;
  }
  const auto count = static_cast<size_t>(record - into);
  CAIRN_ASSERT(count == static_cast<size_t>(std::popcount(page[kPresent])), "a record for each slot");
  return count;
}

}  // namespace cairn
