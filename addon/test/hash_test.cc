#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <xxhash.h>

#include "../hash.h"
#include "../header.h"
#include "check.h"
#include "fixture.h"

using namespace cairn;

namespace {

constexpr Landing kLandings[] = {Landing::kMemory, Landing::kCache};
constexpr HashPath kPaths[] = {HashPath::kPortable, HashPath::kAvx2, HashPath::kAvx512};

std::vector<uint8_t> randomBytes(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

/// Copies `bytes` with the path between the two offsets; true when bytes, hash and the guard bytes are right.
bool copiesRight(HashPath path, Landing landing, const uint8_t* source, size_t bytes, size_t targetOffset) {
  alignas(64) static uint8_t space[(1 << 20) + 8192];
  uint8_t* target = space + 64 + targetOffset;
  memset(target - 8, 0xee, bytes + 16);
  const Hash128 hash = copyAndHashBy(path, target, source, bytes, landing);
  const XXH128_hash_t expected = XXH3_128bits(source, bytes);
  bool guards = true;
  for (int i = 0; i < 8; i++) guards = guards && target[i - 8] == 0xee && target[bytes + i] == 0xee;
  return guards && hash.low == expected.low64 && hash.high == expected.high64 &&
         (bytes == 0 || memcmp(target, source, bytes) == 0);
}

bool copiesRight(HashPath path, const uint8_t* source, size_t bytes, size_t targetOffset) {
  bool right = true;
  for (const Landing landing : kLandings) right = right && copiesRight(path, landing, source, bytes, targetOffset);
  return right;
}

}  // namespace

TEST("the fused copy equals XXH3-128 for every length to 4096, aligned and not") {
  const std::vector<uint8_t> bytes = randomBytes(8192, 1);
  for (const HashPath path : kPaths) {
    if (!hashPathSupported(path)) continue;
    for (size_t length = 0; length <= 4096; length++) {
      EXPECT(copiesRight(path, bytes.data() + length % 67, length, 0));
      if (length % 7 == 0) EXPECT(copiesRight(path, bytes.data() + 3, length, 1 + length % 63));
    }
  }
}

TEST("the fused copy equals XXH3-128 for big random lengths") {
  const std::vector<uint8_t> bytes = randomBytes((1 << 20) + 4096, 2);
  std::mt19937 random(3);
  for (const HashPath path : kPaths) {
    if (!hashPathSupported(path)) continue;
    for (int i = 0; i < 40; i++) {
      const size_t length = random() % (1 << 20);
      EXPECT(copiesRight(path, bytes.data() + random() % 4096, length, (random() % 2) * (random() % 64)));
    }
    EXPECT(copiesRight(path, bytes.data(), 1 << 20, 0));
  }
}

TEST("the hash differs when any bit of a payload differs") {
  std::vector<uint8_t> bytes = randomBytes(3000, 4);
  const Hash128 before = hashOnly(bytes.data(), bytes.size());
  for (size_t bit = 0; bit < bytes.size() * 8; bit += 97) {
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    EXPECT(hashOnly(bytes.data(), bytes.size()) != before);
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
  }
}

TEST("one slot header stands in test/golden/slot-header.hex byte for byte") {
  SlotHeader header{};
  header.state = kSlotValid;
  header.magic = kHeaderMagic;
  header.namespaceIndex = 3;
  header.depth = 7;
  header.shard = 1 | 2 << 16;
  header.generation = 9;
  header.length = 4096;
  header.version = kHeaderVersion;
  header.lastAccess = 1700000000123;
  for (size_t i = 0; i < kKeyBytes; i++) header.key[i] = static_cast<uint8_t>(i);
  for (size_t i = 0; i < kKeyBytes; i++) header.parentKey[i] = static_cast<uint8_t>(0xa0 + i);
  std::vector<uint8_t> payload(4096);
  for (size_t i = 0; i < payload.size(); i++) payload[i] = static_cast<uint8_t>(i * 7);
  header.payloadHash = hashOnly(payload.data(), payload.size());
  uint8_t digest[16];
  for (size_t i = 0; i < sizeof digest; i++) digest[i] = static_cast<uint8_t>(0x10 + i);
  header.headerHash = headerHash(header, namespaceSeed(digest));
  EXPECT(headerValid(header, namespaceSeed(digest)));
  EXPECT(test::goldenHolds("test/golden/slot-header.hex", reinterpret_cast<const uint8_t*>(&header), sizeof header));
}

TEST("a header with any changed byte but last access does not verify, nor does another namespace's") {
  SlotHeader header{};
  header.state = kSlotValid;
  header.magic = kHeaderMagic;
  header.depth = 1;
  header.shard = 1 << 16;
  header.generation = 1;
  header.length = 64;
  header.version = kHeaderVersion;
  header.headerHash = headerHash(header, 42);
  EXPECT(headerValid(header, 42));
  EXPECT(!headerValid(header, 43));
  auto* raw = reinterpret_cast<uint8_t*>(&header);
  for (size_t i = 0; i < sizeof header; i++) {
    raw[i] ^= 0x10;
    const bool lastAccess = i >= 32 && i < 40;
    EXPECT(headerValid(header, 42) == lastAccess);
    raw[i] ^= 0x10;
  }
}
