#include "header.h"

#include <cstring>

#include <xxhash.h>

namespace cairn {

uint64_t namespaceSeed(const uint8_t* digest) { return XXH3_64bits(digest, 16); }

uint64_t headerHash(const SlotHeader& header, uint64_t seed) {
  // magic … version (28 bytes), payload hash (16), both keys (64): gathered, so that one call hashes all.
  uint8_t bytes[28 + 16 + 64];
  memcpy(bytes, &header.magic, 28);
  memcpy(bytes + 28, &header.payloadHash, 16);
  memcpy(bytes + 44, header.key, 64);
  return XXH3_64bits_withSeed(bytes, sizeof bytes, seed);
}

bool headerValid(const SlotHeader& header, uint64_t seed) {
  if (slotState(header) != kSlotValid) return false;
  if (header.magic != kHeaderMagic || header.version != kHeaderVersion) return false;
  if (header.depth == 0 || header.length == 0 || header.generation == 0) return false;
  if ((header.shard & 0xffff) >= (header.shard >> 16)) return false;
  return header.headerHash == headerHash(header, seed);
}

}  // namespace cairn
