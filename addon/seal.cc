#include "seal.h"

#include <algorithm>
#include <cstring>
#include <dlfcn.h>
#include <string.h>
#include <sys/random.h>

namespace cairn {
namespace {

constexpr size_t kNonceBytes = 12;
constexpr size_t kTagBytes = 16;
constexpr size_t kNonceOffset = offsetof(DiskHeader, padding);
constexpr size_t kTagOffset = kNonceOffset + kNonceBytes;
static_assert(kTagOffset + kTagBytes == kDiskHeaderBytes && kNonceOffset == 164);
/// The cipher counts bytes in an int.
constexpr size_t kPieceBytes = 1 << 20;
// openssl/evp.h
constexpr int kGetTag = 0x10;
constexpr int kSetTag = 0x11;

/// What is used of libcrypto. Its types stay opaque.
struct Cipher {
  const void* (*aes256Gcm)() = nullptr;
  void* (*contextNew)() = nullptr;
  void (*contextFree)(void*) = nullptr;
  int (*control)(void*, int, int, void*) = nullptr;
  int (*init)(void*, const void*, void*, const uint8_t*, const uint8_t*, int) = nullptr;
  int (*update)(void*, uint8_t*, int*, const uint8_t*, int) = nullptr;
  int (*final)(void*, uint8_t*, int*) = nullptr;
  bool complete = false;
};

template <class Function>
bool resolve(Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  return function != nullptr;
}

Cipher findCipher() {
  Cipher cipher;
  cipher.complete = resolve(cipher.aes256Gcm, "EVP_aes_256_gcm") && resolve(cipher.contextNew, "EVP_CIPHER_CTX_new") &&
                    resolve(cipher.contextFree, "EVP_CIPHER_CTX_free") &&
                    resolve(cipher.control, "EVP_CIPHER_CTX_ctrl") && resolve(cipher.init, "EVP_CipherInit_ex") &&
                    resolve(cipher.update, "EVP_CipherUpdate") && resolve(cipher.final, "EVP_CipherFinal_ex");
  return cipher;
}

const Cipher& cipher() {
  static const Cipher found = findCipher();
  return found;
}

/// One run of the cipher, under one key and nonce.
class Run {
 public:
  Run(const SealKey& key, const uint8_t* nonce, bool encrypt) : context_(cipher().contextNew()) {
    CAIRN_ASSERT(cipher().complete, "a batch with a key is refused where there is no cipher");
    good_ = context_ != nullptr &&
            cipher().init(context_, cipher().aes256Gcm(), nullptr, key.bytes, nonce, encrypt ? 1 : 0) == 1;
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;
  ~Run() { cipher().contextFree(context_); }

  void associate(const uint8_t* data, size_t bytes) {
    int ignored = 0;
    good_ = good_ && cipher().update(context_, nullptr, &ignored, data, static_cast<int>(bytes)) == 1;
  }
  void transform(uint8_t* into, const uint8_t* from, size_t bytes) {
    for (size_t at = 0; good_ && at < bytes; at += kPieceBytes) {
      const int piece = static_cast<int>(std::min(kPieceBytes, bytes - at));
      int written = 0;
      good_ = cipher().update(context_, into + at, &written, from + at, piece) == 1 && written == piece;
    }
  }
  /// After the last byte.
  void getTag(uint8_t* tag) {
    uint8_t rest[kTagBytes];
    int written = 0;
    good_ = good_ && cipher().final(context_, rest, &written) == 1 && written == 0 &&
            cipher().control(context_, kGetTag, kTagBytes, tag) == 1;
  }
  bool tagHolds(const uint8_t* tag) {
    uint8_t expected[kTagBytes];
    uint8_t rest[kTagBytes];
    memcpy(expected, tag, kTagBytes);
    int written = 0;
    return cipher().control(context_, kSetTag, kTagBytes, expected) == 1 &&
           cipher().final(context_, rest, &written) == 1 && written == 0;
  }
  bool good() const { return good_; }

 private:
  void* context_;
  bool good_ = false;
};

bool randomBytes(uint8_t* into, size_t bytes) {
  return getrandom(into, bytes, 0) == static_cast<ssize_t>(bytes);
}

}  // namespace

SealKey::~SealKey() { explicit_bzero(bytes, sizeof bytes); }

bool sealingAvailable() { return cipher().complete; }

ItemStatus sealSlot(uint8_t* into, const SlotHeader& source, const uint8_t* payload, const DiskSlotName& name,
                    const SealKey& key) {
  CAIRN_ASSERT(name.directoryId == key.id, "a sealed block names its key");
  if (!slotHolds(source, name.block, 0, name.shard, name.payloadBytes)) return kItemIdentity;
  const uint32_t generation = source.generation;
  DiskHeader header = diskHeaderOf(source, name);
  if (hashOnly(payload, name.payloadBytes) != header.slot.payloadHash) return kItemCorrupt;
  header.slot.payloadHash = {};
  header.slot.headerHash = headerHash(header.slot, name.block.seed);
  header.version |= kSealedFlag;
  uint8_t* bytes = reinterpret_cast<uint8_t*>(&header);
  if (!randomBytes(bytes + kNonceOffset, kNonceBytes)) return kItemIo;
  Run run(key, bytes + kNonceOffset, true);
  run.associate(bytes, kNonceOffset);
  run.transform(into + kDiskHeaderBytes, payload, name.payloadBytes);
  run.getTag(bytes + kTagOffset);
  if (!run.good()) return kItemIo;
  std::atomic_thread_fence(std::memory_order_acquire);
  // The ledger pins the slot while it is read; a slot that changed anyway is not the block asked for.
  if (slotState(source) != kSlotValid || source.generation != generation) return kItemIdentity;
  memcpy(into, bytes, kDiskHeaderBytes);
  return kItemOk;
}

ItemStatus openSlot(SlotHeader& target, uint8_t* payload, const uint8_t* from, const DiskSlotName& name,
                    const SealKey& key) {
  CAIRN_ASSERT(name.directoryId == key.id, "a sealed block names its key");
  DiskHeader header;
  const ItemStatus identity = readDiskHeader(from, name, header, kDiskSlotVersion | kSealedFlag);
  if (identity != kItemOk) return identity;
  if (memcmp(header.slot.parentKey, name.block.parentKey, kKeyBytes) != 0) return kItemIdentity;
  const uint32_t generation = nextGeneration(target.generation);
  freeForWriting(target);
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(&header);
  Run run(key, bytes + kNonceOffset, false);
  run.associate(bytes, kNonceOffset);
  run.transform(payload, from + kDiskHeaderBytes, name.payloadBytes);
  if (!run.good()) return kItemIo;
  if (!run.tagHolds(bytes + kTagOffset)) return kItemCorrupt;
  const Hash128 hash = hashOnly(payload, name.payloadBytes);
  landHeader(target, name.block, {name.shard, name.payloadBytes, generation, unixMilliseconds(), hash});
  return kItemOk;
}

}  // namespace cairn
