// One slot of the DRAM pool as copies see it: what a block is called, whether a slot holds exactly that block,
// and the order in which a block lands (state = free → payload → fence → fields → state = valid). Shared by
// the copy threads and the disk queues, so that a slot is filled in one way only.
#pragma once

#include <cstdint>

#include "header.h"

namespace cairn {

/// A block's identity, read from its ledger record when work is submitted.
struct BlockName {
  /// Seeds the header hash: the namespace's (header.h).
  uint64_t seed;
  uint32_t namespaceIndex;
  uint32_t depth;
  uint8_t key[kKeyBytes];
  uint8_t parentKey[kKeyBytes];
};
static_assert(sizeof(BlockName) == 80);

/// What else a landed header says.
struct LandedCopy {
  /// shard index | shard count << 16
  uint32_t shard;
  uint32_t payloadBytes;
  uint32_t generation;
  /// Milliseconds of Unix time.
  uint64_t lastAccess;
  Hash128 hash;
};

/// Generations count the writes of a slot; 0 means "any" and is skipped.
inline uint32_t nextGeneration(uint32_t generation) { return generation == UINT32_MAX ? 1 : generation + 1; }

/// True when the slot holds exactly this block, by a header that verifies. generation 0 = any.
bool slotHolds(const SlotHeader& header, const BlockName& name, uint32_t generation, uint32_t shard,
               uint32_t payloadBytes);

/// Nothing of a payload may become visible while the state still reads as valid: non-temporal stores would
/// overtake the plain one without the fence.
void freeForWriting(SlotHeader& header);

/// The fields of a landed block, then state = valid. The payload and its fence came before.
void landHeader(SlotHeader& header, const BlockName& name, const LandedCopy& copy);

}  // namespace cairn
