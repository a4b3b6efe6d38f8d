#include "slot.h"

#include <cstring>

#include "common.h"

namespace cairn {

bool slotHolds(const SlotHeader& header, const BlockName& name, uint32_t generation, uint32_t shard,
               uint32_t payloadBytes) {
  if (header.namespaceIndex != name.namespaceIndex || header.depth != name.depth) return false;
  if (header.shard != shard || header.length != payloadBytes) return false;
  if (generation != 0 && header.generation != generation) return false;
  if (memcmp(header.key, name.key, kKeyBytes) != 0) return false;
  return headerValid(header, name.seed);
}

void freeForWriting(SlotHeader& header) {
  if (slotState(header) == kSlotFree) return;
  setSlotState(header, kSlotFree);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void landHeader(SlotHeader& header, const BlockName& name, const LandedCopy& copy) {
  CAIRN_ASSERT(slotState(header) == kSlotFree, "a header is written while its slot reads as free");
  CAIRN_ASSERT(copy.generation != 0, "a landed block has a generation");
  header.magic = kHeaderMagic;
  header.namespaceIndex = name.namespaceIndex;
  header.depth = name.depth;
  header.shard = copy.shard;
  header.generation = copy.generation;
  header.length = copy.payloadBytes;
  header.version = kHeaderVersion;
  header.lastAccess = copy.lastAccess;
  header.payloadHash = copy.hash;
  memcpy(header.key, name.key, kKeyBytes);
  memcpy(header.parentKey, name.parentKey, kKeyBytes);
  header.headerHash = headerHash(header, name.seed);
  setSlotState(header, kSlotValid);
}

}  // namespace cairn
