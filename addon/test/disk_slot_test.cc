#include <cstring>
#include <vector>

#include "../disk_file.h"
#include "../disk_slot.h"
#include "check.h"
#include "fixture.h"

using namespace cairn;
using namespace cairn::test;

namespace {

constexpr uint32_t kBytes = 64;

/// A DRAM slot in plain memory, and the disk slot it becomes.
struct Slot {
  Slot() {
    for (size_t i = 0; i < kDigestBytes; i++) digest[i] = static_cast<uint8_t>(0x10 + i);
    for (size_t i = 0; i < kDirectoryIdBytes; i++) directory[i] = static_cast<uint8_t>(0xd0 + i);
    block.seed = namespaceSeed(digest);
    block.namespaceIndex = 3;
    block.depth = 7;
    for (size_t i = 0; i < kKeyBytes; i++) block.key[i] = static_cast<uint8_t>(i);
    for (size_t i = 0; i < kKeyBytes; i++) block.parentKey[i] = static_cast<uint8_t>(0xa0 + i);
    for (size_t i = 0; i < kBytes; i++) payload[i] = static_cast<uint8_t>(i * 7);
    landHeader(header, block, {1 | 2 << 16, kBytes, 9, 1700000000123, hashOnly(payload, kBytes)});
  }
  DiskSlotName name(uint32_t generation) const {
    return {block, digest, directory, 1 | 2 << 16, kBytes, generation};
  }
  ItemStatus encode(uint32_t generation = 5) { return encodeSlot(disk, header, payload, name(generation)); }
  ItemStatus read(uint32_t generation = 5) const {
    DiskHeader out;
    return readDiskHeader(disk, name(generation), out);
  }

  uint8_t digest[kDigestBytes];
  uint8_t directory[kDirectoryIdBytes];
  BlockName block{};
  SlotHeader header{};
  uint8_t payload[kBytes];
  alignas(64) uint8_t disk[kDiskHeaderBytes + kBytes] = {};
};

}  // namespace

TEST("one disk slot stands in test/golden/disk-slot.hex byte for byte") {
  Slot slot;
  EXPECT(slot.encode() == kItemOk);
  EXPECT(goldenHolds("test/golden/disk-slot.hex", slot.disk, sizeof slot.disk));
}

TEST("a disk slot is read back by the block it was written for, whatever the reader's namespace index") {
  Slot slot;
  EXPECT(slot.encode() == kItemOk);
  EXPECT(slot.read() == kItemOk && slot.read(0) == kItemOk);
  slot.block.namespaceIndex = 8;
  DiskHeader header;
  REQUIRE(readDiskHeader(slot.disk, slot.name(5), header) == kItemOk);
  SlotHeader target{};
  target.generation = 41;
  uint8_t payload[kBytes];
  EXPECT(landPayload(target, payload, slot.disk, header, slot.block) == kItemOk);
  EXPECT(slotHolds(target, slot.block, 42, 1 | 2 << 16, kBytes));
  EXPECT(memcmp(payload, slot.payload, kBytes) == 0 && memcmp(target.parentKey, slot.block.parentKey, 32) == 0);
}

TEST("any changed byte of a disk slot's header but last access and padding is IDENTITY, of its payload CORRUPT") {
  Slot slot;
  EXPECT(slot.encode() == kItemOk);
  for (size_t i = 0; i < sizeof slot.disk; i++) {
    slot.disk[i] ^= 0x10;
    const bool unread = (i >= 32 && i < 40) || (i >= 164 && i < kDiskHeaderBytes);
    DiskHeader header;
    const ItemStatus identity = readDiskHeader(slot.disk, slot.name(5), header);
    EXPECT((identity == kItemOk) == (unread || i >= kDiskHeaderBytes));
    if (i >= kDiskHeaderBytes) {
      uint8_t into[kBytes];
      SlotHeader target{};
      EXPECT(copyPayload(into, slot.disk, header) == kItemCorrupt);
      EXPECT(landPayload(target, into, slot.disk, header, slot.block) == kItemCorrupt);
      EXPECT(slotState(target) == kSlotFree);
    }
    slot.disk[i] ^= 0x10;
  }
  EXPECT(slot.read() == kItemOk);
}

TEST("another key, depth, shard, length, generation, namespace or directory is IDENTITY") {
  Slot slot;
  EXPECT(slot.encode() == kItemOk);
  EXPECT(slot.read(6) == kItemIdentity);
  const auto with = [&](auto change) {
    Slot other;
    change(other);
    memcpy(other.disk, slot.disk, sizeof slot.disk);
    return other.read();
  };
  EXPECT(with([](Slot&) {}) == kItemOk);
  EXPECT(with([](Slot& other) { other.block.key[31] ^= 1; }) == kItemIdentity);
  EXPECT(with([](Slot& other) { other.block.depth++; }) == kItemIdentity);
  EXPECT(with([](Slot& other) { other.digest[0] ^= 1; }) == kItemIdentity);
  EXPECT(with([](Slot& other) { other.block.seed ^= 1; }) == kItemIdentity);
  EXPECT(with([](Slot& other) { other.directory[15] ^= 1; }) == kItemIdentity);
  DiskHeader header;
  const DiskSlotName shard{slot.block, slot.digest, slot.directory, 2 << 16, kBytes, 0};
  EXPECT(readDiskHeader(slot.disk, shard, header) == kItemIdentity);
  const DiskSlotName length{slot.block, slot.digest, slot.directory, 1 | 2 << 16, kBytes - 1, 0};
  EXPECT(readDiskHeader(slot.disk, length, header) == kItemIdentity);
}

TEST("a DRAM slot that is not the block, or whose payload changed, is not written") {
  Slot slot;
  slot.block.key[0] ^= 1;
  EXPECT(slot.encode() == kItemIdentity);
  slot.block.key[0] ^= 1;
  slot.payload[63] ^= 1;
  EXPECT(slot.encode() == kItemCorrupt);
  slot.payload[63] ^= 1;
  setSlotState(slot.header, kSlotFree);
  EXPECT(slot.encode() == kItemIdentity);
  setSlotState(slot.header, kSlotValid);
  EXPECT(slot.encode() == kItemOk);
}

TEST("slots are whole sectors, and a segment holds what fits behind its header") {
  EXPECT(diskSlotBytes(1) == 4096 && diskSlotBytes(3904) == 4096 && diskSlotBytes(3905) == 8192);
  EXPECT(diskSlotBytes(2u << 20) == (2u << 20) + 4096);
  EXPECT(slotsPerSegment(kSegmentBytesMin, 3904) == 255 && slotsPerSegment(kSegmentBytesMin, 3905) == 127);
  EXPECT(slotsPerSegment(1u << 20, (1u << 20) - 4096 - 192) == 1 && slotsPerSegment(1u << 20, 1u << 20) == 0);
  EXPECT(slotsPerSegment(1ull << 40, 64) == kSlotsPerSlabMax && slotsPerSegment(1u << 30, 0) == 0);
}
