// Sealed blocks: EXPORT and IMPORT under AES-256-GCM, for stores that others can read or write.
//
// A sealed block is as long as an open one and has the same header (disk_slot.h), with these differences:
//   version      kDiskSlotVersion | kSealedFlag
//   payload hash zero: a hash of the plaintext would tell who stores the same block
//   directory id id of the data key, so that any run of blocks tells which key opens it
//   164          nonce (12 random bytes), tag (16)
//   192          ciphertext
// Associated data are the 164 bytes of header in front of the nonce: keys, depth, shard, length, namespace, version and
// key id. A block moved to another place, or shown under another identity, does not open.
//
// The cipher is that of the OpenSSL inside the node binary, looked up at first use: the addon links against nothing.
// Nonces are random, so one key may seal 2^32 blocks (NIST SP 800-38D, 8.3) before it has to be replaced.
#pragma once

#include <cstddef>
#include <cstdint>

#include "disk_slot.h"

namespace cairn {

constexpr uint32_t kSealedFlag = 0x8000'0000;
constexpr size_t kSealKeyBytes = 32;
/// As long as the field that holds it.
constexpr size_t kSealKeyIdBytes = kDirectoryIdBytes;

/// A tenant's data key, wiped when it goes out of scope.
struct SealKey {
  uint8_t bytes[kSealKeyBytes] = {};
  uint8_t id[kSealKeyIdBytes] = {};
  SealKey() = default;
  SealKey(const SealKey&) = delete;
  SealKey& operator=(const SealKey&) = delete;
  ~SealKey();
};

/// Whether this process has AES-256-GCM.
bool sealingAvailable();

/// A DRAM slot → sealed block at `into` (192 + payloadBytes). Identity and payload hash of the slot are checked first.
/// `into` never holds plaintext, and is undefined unless OK. IO: the cipher or the kernel's randomness failed.
ItemStatus sealSlot(uint8_t* into, const SlotHeader& source, const uint8_t* payload, const DiskSlotName& name,
                    const SealKey& key);

/// A sealed block → a DRAM slot, in landing order; the slot stays free unless OK. IDENTITY: not sealed, not by this
/// key, or another block; CORRUPT: the tag differs.
ItemStatus openSlot(SlotHeader& target, uint8_t* payload, const uint8_t* from, const DiskSlotName& name,
                    const SealKey& key);

}  // namespace cairn
