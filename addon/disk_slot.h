// A block outside DRAM: 192 bytes in front of the payload, the same on disk and in remote objects.
//
//   0    slot header (header.h); namespaceIndex is 0, for indexes differ from daemon to daemon
//   128  namespace digest, which also seeds the header hash
//   144  directory id of the disk; zero in remote objects, the key's id in sealed ones
//   160  version of this layout, then zeroes; sealed blocks: seal.h
//   192  payload; on disk zeroes follow up to 4 KiB
//
// A slot on disk takes a multiple of 4 KiB and is written and read by one operation. The format of segments
// and remote objects: any change bumps kDiskSlotVersion and test/golden/disk-slot.hex.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arena.h"
#include "slot.h"

namespace cairn {

enum ItemStatus : uint8_t {
  kItemOk = 0,
  kItemCorrupt = 1,
  kItemIdentity = 2,
  kItemCancelled = 3,
  kItemDeadline = 4,
  kItemRegion = 5,
  kItemIo = 6,
};

constexpr uint32_t kDiskSlotVersion = 1;
constexpr size_t kDiskHeaderBytes = 192;
constexpr size_t kSectorBytes = 4096;
constexpr size_t kDirectoryIdBytes = 16;

struct DiskHeader {
  SlotHeader slot;
  uint8_t digest[kDigestBytes];
  uint8_t directoryId[kDirectoryIdBytes];
  uint32_t version;
  uint8_t padding[28];
};
static_assert(sizeof(DiskHeader) == kDiskHeaderBytes);

/// Bytes of one read or write of a slot with this payload, and the distance of such slots.
constexpr uint64_t diskSlotBytes(uint64_t payloadBytes) {
  return roundUp(kDiskHeaderBytes + payloadBytes, kSectorBytes);
}

/// What a disk slot must say to be the block asked for.
struct DiskSlotName {
  const BlockName& block;
  const uint8_t* digest;
  const uint8_t* directoryId;
  /// shard index | shard count << 16
  uint32_t shard;
  uint32_t payloadBytes;
  /// 0 = any when reading.
  uint32_t generation;
};

/// The header of this DRAM slot's block outside DRAM.
DiskHeader diskHeaderOf(const SlotHeader& source, const DiskSlotName& name);

/// A DRAM slot → header and payload at `into` (192 + payloadBytes). The slot's identity is checked first, its
/// payload hash on the way. `into` is undefined unless OK.
ItemStatus encodeSlot(uint8_t* into, const SlotHeader& source, const uint8_t* payload, const DiskSlotName& name);

/// Copies the header at `from` out and verifies it: OK or IDENTITY. The payload is not looked at.
ItemStatus readDiskHeader(const uint8_t* from, const DiskSlotName& name, DiskHeader& header,
                          uint32_t version = kDiskSlotVersion);

/// The payload behind a verified header → `into`, hashed on the way: OK or CORRUPT.
ItemStatus copyPayload(uint8_t* into, const uint8_t* from, const DiskHeader& header);

/// The payload behind a verified header → a DRAM slot, in landing order. The slot stays free unless OK.
ItemStatus landPayload(SlotHeader& target, uint8_t* payload, const uint8_t* from, const DiskHeader& header,
                       const BlockName& name);

/// True when the header verifies by its own digest and belongs to the directory; identity is not asked.
bool diskHeaderValid(const DiskHeader& header, const uint8_t* directoryId);

}  // namespace cairn
