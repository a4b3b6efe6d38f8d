#include "disk_slot.h"

#include <cstring>

namespace cairn {

DiskHeader diskHeaderOf(const SlotHeader& source, const DiskSlotName& name) {
  CAIRN_ASSERT(name.generation != 0, "a slot is written with a generation");
  CAIRN_ASSERT(name.payloadBytes != 0, "a block has a payload");
  DiskHeader header{};
  memcpy(&header.slot, &source, sizeof header.slot);
  header.slot.state = kSlotValid;
  header.slot.namespaceIndex = 0;
  header.slot.generation = name.generation;
  header.slot.headerHash = headerHash(header.slot, name.block.seed);
  memcpy(header.digest, name.digest, kDigestBytes);
  memcpy(header.directoryId, name.directoryId, kDirectoryIdBytes);
  header.version = kDiskSlotVersion;
  return header;
}

ItemStatus encodeSlot(uint8_t* into, const SlotHeader& source, const uint8_t* payload, const DiskSlotName& name) {
  if (!slotHolds(source, name.block, 0, name.shard, name.payloadBytes)) return kItemIdentity;
  const uint32_t generation = source.generation;
  const DiskHeader header = diskHeaderOf(source, name);
  const Hash128 hash = copyAndHash(into + kDiskHeaderBytes, payload, name.payloadBytes, Landing::kCache);
  if (hash != header.slot.payloadHash) return kItemCorrupt;
  std::atomic_thread_fence(std::memory_order_acquire);
  // The ledger pins the slot while it is copied; a slot that changed anyway is not the block asked for.
  if (slotState(source) != kSlotValid || source.generation != generation) return kItemIdentity;
  memcpy(into, &header, sizeof header);
  return kItemOk;
}

ItemStatus readDiskHeader(const uint8_t* from, const DiskSlotName& name, DiskHeader& header, uint32_t version) {
  memcpy(&header, from, sizeof header);
  const SlotHeader& slot = header.slot;
  if (header.version != version) return kItemIdentity;
  if (memcmp(header.directoryId, name.directoryId, kDirectoryIdBytes) != 0) return kItemIdentity;
  if (memcmp(header.digest, name.digest, kDigestBytes) != 0) return kItemIdentity;
  if (slot.depth != name.block.depth || slot.shard != name.shard) return kItemIdentity;
  if (slot.length != name.payloadBytes) return kItemIdentity;
  if (name.generation != 0 && slot.generation != name.generation) return kItemIdentity;
  if (memcmp(slot.key, name.block.key, kKeyBytes) != 0) return kItemIdentity;
  return headerValid(slot, name.block.seed) ? kItemOk : kItemIdentity;
}

ItemStatus copyPayload(uint8_t* into, const uint8_t* from, const DiskHeader& header) {
  const Hash128 hash = copyAndHash(into, from + kDiskHeaderBytes, header.slot.length);
  return hash == header.slot.payloadHash ? kItemOk : kItemCorrupt;
}

ItemStatus landPayload(SlotHeader& target, uint8_t* payload, const uint8_t* from, const DiskHeader& header,
                       const BlockName& name) {
  CAIRN_ASSERT(header.slot.depth == name.depth, "the header was verified for this block");
  const uint32_t generation = nextGeneration(target.generation);
  freeForWriting(target);
  const ItemStatus status = copyPayload(payload, from, header);
  if (status != kItemOk) return status;
  landHeader(target, name,
             {header.slot.shard, header.slot.length, generation, unixMilliseconds(), header.slot.payloadHash});
  return kItemOk;
}

bool diskHeaderValid(const DiskHeader& header, const uint8_t* directoryId) {
  if (header.version != kDiskSlotVersion) return false;
  if (memcmp(header.directoryId, directoryId, kDirectoryIdBytes) != 0) return false;
  return headerValid(header.slot, namespaceSeed(header.digest));
}

}  // namespace cairn
