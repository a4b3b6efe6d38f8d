// The 128-byte slot header: identity and checksums of one block copy. The format of pool files: any change
// bumps kHeaderVersion, test/golden/slot-header.hex and SLOT_HEADER in addon/binding.ts together.
//
// The header hash covers everything but state, last access and itself, and is seeded by the namespace's
// digest: a header that survives while its namespace index was given to another namespace does not verify.
// Writing order of a slot (one thread): state = free → payload → fence → fields → state = valid (release).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "hash.h"

namespace cairn {

constexpr uint32_t kSlotFree = 0;
constexpr uint32_t kSlotValid = 0xca1129b1;
constexpr uint32_t kHeaderMagic = 0x48535243;  // "CRSH"
constexpr uint32_t kHeaderVersion = 1;
constexpr size_t kKeyBytes = 32;

struct SlotHeader {
  uint32_t state;
  uint32_t magic;
  uint32_t namespaceIndex;
  uint32_t depth;
  /// shard index | shard count << 16
  uint32_t shard;
  uint32_t generation;
  uint32_t length;
  uint32_t version;
  /// Milliseconds of Unix time.
  uint64_t lastAccess;
  Hash128 payloadHash;
  uint64_t headerHash;
  uint8_t key[kKeyBytes];
  uint8_t parentKey[kKeyBytes];
};
static_assert(sizeof(SlotHeader) == 128 && alignof(SlotHeader) == 8);
static_assert(offsetof(SlotHeader, lastAccess) == 8 * 4 && offsetof(SlotHeader, payloadHash) == 10 * 4);
static_assert(offsetof(SlotHeader, headerHash) == 14 * 4 && offsetof(SlotHeader, key) == 16 * 4);
static_assert(offsetof(SlotHeader, parentKey) == 24 * 4);

inline uint32_t slotState(const SlotHeader& header) {
  return __atomic_load_n(&header.state, __ATOMIC_ACQUIRE);
}
inline void setSlotState(SlotHeader& header, uint32_t state) {
  __atomic_store_n(&header.state, state, __ATOMIC_RELEASE);
}

/// Seed of a namespace's header hashes; digest is 16 bytes.
uint64_t namespaceSeed(const uint8_t* digest);
uint64_t headerHash(const SlotHeader& header, uint64_t seed);
/// State, magic, version, plain sanity and the header hash.
bool headerValid(const SlotHeader& header, uint64_t seed);

}  // namespace cairn
