// Copy and hash in one pass. The checksum is XXH3-128 (default secret, seed 0), bit for bit what
// XXH3_128bits gives; each source byte is loaded exactly once, so the hash is that of the bytes written
// even while another process scribbles over the source.
//
// Long payloads: one 64-byte stripe is loaded into registers, stored with a non-temporal store and
// accumulated. That is one read and one write of memory, where copy-then-hash reads twice. A target that a device
// or a socket reads at once is better left in the cache: a disk took such writes 13 % faster.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cairn {

struct Hash128 {
  uint64_t low;
  uint64_t high;
  bool operator==(const Hash128&) const = default;
};
static_assert(sizeof(Hash128) == 16);

enum class HashPath { kPortable, kAvx2, kAvx512 };
/// Where the written bytes go: past the cache, or into it because somebody reads them soon.
enum class Landing { kMemory, kCache };

bool hashPathSupported(HashPath path);

/// Copies `bytes` from source to target (no overlap) and returns the hash of what was written. All stores
/// have reached memory order (store fence) on return.
Hash128 copyAndHash(uint8_t* target, const uint8_t* source, size_t bytes, Landing landing = Landing::kMemory);
/// The same by a named implementation, for tests.
Hash128 copyAndHashBy(HashPath path, uint8_t* target, const uint8_t* source, size_t bytes, Landing landing);
Hash128 hashOnly(const uint8_t* source, size_t bytes);
/// Non-temporal copy without a hash, for comparison in benches.
void streamCopy(uint8_t* target, const uint8_t* source, size_t bytes);

}  // namespace cairn
