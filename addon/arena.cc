#include "arena.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace cairn {
namespace {

constexpr uint64_t kSuperblockMagic = 0x314e5241'4e524143;  // "CARNARN1"
constexpr uint64_t kSlabTableMagic = 0x3142414c'534e5241;
constexpr uint64_t kNamespaceMagic = 0x3153454d'414e5241;
constexpr size_t kSuperblockBytes = 4096;
constexpr size_t kSlabTableBytes = kSlabsMax * 8 + 4096;
constexpr size_t kNamespaceOffset = 2 * kSuperblockBytes + 2 * kSlabTableBytes;
constexpr size_t kNamespaceBytes = (kHeadBytes - kNamespaceOffset) / 2 / 4096 * 4096;
constexpr uint64_t kAllocateBytes = 1u << 30;
constexpr uint64_t kReserveBytesMax = 1ull << 40;
constexpr uint64_t kSlabBytesMin = 64 * 1024;
/// No more than addresses can be reserved for: sizes of the largest pool still fit 64 bits.
constexpr uint64_t kSlabBytesMax = kReserveBytesMax;
/// A stride still fits 32 bits.
constexpr uint32_t kPayloadBytesMax = 1u << 31;

struct Superblock {
  uint32_t format;
  uint32_t slabs;
  uint64_t slabBytes;
  uint64_t uuid[2];
  uint32_t clean;
  uint32_t reserved;
};
static_assert(sizeof(Superblock) == 40);

struct NamespaceEntry {
  uint32_t index;
  uint32_t descriptorBytes;
  uint8_t digest[kDigestBytes];
};
static_assert(sizeof(NamespaceEntry) == 24);

/// mbind without libnuma: bind the range to one node. A kernel without NUMA answers ENOSYS.
void bindToNode(void* address, uint64_t bytes, int node) {
#ifdef SYS_mbind
  constexpr int kBind = 2;
  unsigned long mask[16] = {};
  const size_t bits = 8 * sizeof(unsigned long);
  if (static_cast<size_t>(node) >= 16 * bits) fail("ARGUMENT", "numaNode is out of range");
  mask[static_cast<size_t>(node) / bits] = 1ul << (static_cast<size_t>(node) % bits);
  const long result = syscall(SYS_mbind, address, bytes, kBind, mask, 16 * bits + 1, 0);
  if (result != 0 && errno != ENOSYS) failErrno("mbind to NUMA node " + std::to_string(node));
#else
  static_cast<void>(address), static_cast<void>(bytes), static_cast<void>(node);
#endif
}

constexpr int kInterleave = 3;

/// Whether the kernel spreads what is mapped here: it ignores policies for files that are not in memory.
bool isInterleaved(const void* address) {
#ifdef SYS_get_mempolicy
  constexpr int kOfAddress = 2;
  int mode = 0;
  const long result = syscall(SYS_get_mempolicy, &mode, nullptr, 0, address, kOfAddress);
  return result == 0 && mode == kInterleave;
#else
  static_cast<void>(address);
  return false;
#endif
}

/// mbind without libnuma: spread the range over nodes, page by page. Where the kernel or a sandbox does not let
/// us, or a node has gone, pages lie where they are first touched.
void interleaveOver(void* address, uint64_t bytes, const std::vector<uint32_t>& nodes) {
#ifdef SYS_mbind
  unsigned long mask[kNumaNodesMax / (8 * sizeof(unsigned long))] = {};
  const size_t bits = 8 * sizeof(unsigned long);
  for (const uint32_t node : nodes) mask[node / bits] |= 1ul << (node % bits);
  static_cast<void>(syscall(SYS_mbind, address, bytes, kInterleave, mask, kNumaNodesMax + 1, 0));
#else
  static_cast<void>(address), static_cast<void>(bytes), static_cast<void>(nodes);
#endif
}

}  // namespace

uint32_t slotsPerSlab(uint64_t slabBytes, uint32_t payloadBytes) {
  if (payloadBytes == 0 || payloadBytes > kPayloadBytesMax) return 0;
  const uint64_t unit = payloadBytes >= 4096 ? 4096 : 64;
  const uint64_t stride = roundUp(payloadBytes, unit);
  uint64_t slots = std::min<uint64_t>(slabBytes / (stride + sizeof(SlotHeader)), kSlotsPerSlabMax);
  while (slots > 0 && roundUp(slots * sizeof(SlotHeader), unit) + slots * stride > slabBytes) slots--;
  return static_cast<uint32_t>(slots);
}

std::shared_ptr<Arena> Arena::open(const Options& options) {
  if (options.slabs == 0 || options.slabs > kSlabsMax) fail("ARGUMENT", "slabs must be 1 to 16384");
  if (options.slabBytes < kSlabBytesMin || options.slabBytes > kSlabBytesMax || options.slabBytes % 4096 != 0) {
    fail("ARGUMENT", "slabBytes must be a multiple of 4096, from 65536 to 1 TiB");
  }
  std::shared_ptr<Arena> arena(new Arena());
  arena->path_ = options.path;
  arena->numaNode_ = options.numaNode;
  arena->interleaveNodes_ = options.interleaveNodes;
  for (const uint32_t node : options.interleaveNodes) CAIRN_ASSERT(node < kNumaNodesMax, "a NUMA node fits the mask");
  arena->hugePages_ = options.hugePages;
  arena->users_ = std::make_unique<std::atomic<uint32_t>[]>(kSlabsMax);
  arena->openFile(options.path);
  arena->slabBytes_ = options.slabBytes;
  struct stat status;
  if (fstat(arena->file_.get(), &status) != 0) failErrno("fstat " + options.path);
  const auto sizeBytes = static_cast<uint64_t>(status.st_size);
  if (sizeBytes >= kHeadBytes) {
    arena->mapHead();
    // A file whose superblock was never written is an open that was cut short: start over.
    const auto written = [](uint8_t byte) { return byte != 0; };
    arena->reopened_ = std::any_of(arena->base_, arena->base_ + 2 * kSuperblockBytes, written);
  } else if (sizeBytes > 0) {
    char bytes[4096];
    const ssize_t got = pread(arena->file_.get(), bytes, sizeof bytes, 0);
    if (std::any_of(bytes, bytes + std::max<ssize_t>(got, 0), [](char byte) { return byte != 0; })) {
      fail("FORMAT", options.path + " is shorter than a pool's head");
    }
  }
  if (arena->reopened_) {
    arena->load();
  } else {
    arena->create(options);
  }
  arena->writeSuperblock(false);
  return arena;
}

void Arena::openFile(const std::string& path) {
  file_ = Descriptor(::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600));
  if (!file_) {
    if (errno == ELOOP) fail("UNSAFE", path + " is a symbolic link");
    failErrno("open " + path);
  }
  struct stat status;
  if (fstat(file_.get(), &status) != 0) failErrno("fstat " + path);
  if (!S_ISREG(status.st_mode)) fail("UNSAFE", path + " is not a regular file");
  if (status.st_uid != geteuid()) fail("UNSAFE", path + " belongs to another user");
  if ((status.st_mode & 07777) != 0600) fail("UNSAFE", path + " must have mode 0600");
  if (flock(file_.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) fail("LOCKED", path + " is in use by another process");
    failErrno("flock " + path);
  }
  // Between open and flock the former owner may have deleted the file: then this lock guards nothing.
  struct stat named;
  if (lstat(path.c_str(), &named) != 0 || named.st_ino != status.st_ino || named.st_dev != status.st_dev) {
    fail("LOCKED", path + " was replaced while it was opened");
  }
}

void Arena::reserveAddresses() {
  if (base_ != nullptr) return;
  uint64_t bytes = std::min(kHeadBytes + kSlabsMax * slabBytes_, kReserveBytesMax);
  // A host with a limit on address space gets a smaller reserve; growth then ends there.
  for (; bytes >= kHeadBytes + slabBytes_; bytes /= 2) {
    constexpr uint64_t kAlign = 2u << 20;
    void* at = mmap(nullptr, bytes + kAlign, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) continue;
    auto* start = static_cast<uint8_t*>(at);
    const size_t skip = roundUp(reinterpret_cast<uintptr_t>(start), kAlign) - reinterpret_cast<uintptr_t>(start);
    if (skip > 0) munmap(start, skip);
    if (skip < kAlign) munmap(start + skip + bytes, kAlign - skip);
    base_ = start + skip;
    reservedBytes_ = bytes;
    return;
  }
  failErrno("reserve addresses", ENOMEM);
}

void Arena::mapHead() {
  reserveAddresses();
  void* at = mmap(base_, kHeadBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file_.get(), 0);
  if (at == MAP_FAILED) failErrno("mmap the head of " + path_);
  superblock_ = std::make_unique<DoubleTable>(base_, kSuperblockBytes, kSuperblockMagic);
  slabTable_ = std::make_unique<DoubleTable>(base_ + 2 * kSuperblockBytes, kSlabTableBytes, kSlabTableMagic);
  namespaceTable_ = std::make_unique<DoubleTable>(base_ + kNamespaceOffset, kNamespaceBytes, kNamespaceMagic);
}

void Arena::mapSlabs(uint32_t from, uint32_t to) {
  if (from >= to) return;
  const uint64_t offset = fileBytes(from);
  const uint64_t bytes = fileBytes(to) - offset;
  if (offset + bytes > reservedBytes_) failErrno("map slabs beyond the reserved addresses", ENOMEM);
  void* at = mmap(base_ + offset, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file_.get(),
                  static_cast<off_t>(offset));
  if (at == MAP_FAILED) failErrno("mmap " + path_);
  if (!interleaveNodes_.empty()) numaPolicySet_ = isInterleaved(at);
  // Advice: a file system without huge pages answers EINVAL, which is no fault.
  if (hugePages_) static_cast<void>(madvise(at, bytes, MADV_HUGEPAGE));
  static_cast<void>(madvise(at, bytes, MADV_DONTDUMP));
}

void Arena::setNumaPolicy(uint64_t from, uint64_t to) {
  if ((numaNode_ < 0 && interleaveNodes_.empty()) || from >= to) return;
  // The policy of shared memory belongs to the file: this mapping may go as soon as it is set.
  void* at = mmap(nullptr, to - from, PROT_NONE, MAP_SHARED, file_.get(), static_cast<off_t>(from));
  if (at == MAP_FAILED) failErrno("mmap " + path_);
  try {
    if (numaNode_ >= 0) bindToNode(at, to - from, numaNode_);
    if (!interleaveNodes_.empty()) interleaveOver(at, to - from, interleaveNodes_);
  } catch (...) {
    munmap(at, to - from);
    throw;
  }
  munmap(at, to - from);
}

void Arena::allocateFile(uint64_t from, uint64_t to) {
  setNumaPolicy(from, to);
  for (uint64_t at = from; at < to;) {
    const uint64_t bytes = std::min(kAllocateBytes, to - at);
    int error = fallocate(file_.get(), 0, static_cast<off_t>(at), static_cast<off_t>(bytes)) == 0 ? 0 : errno;
    if (error == EOPNOTSUPP) {
      error = posix_fallocate(file_.get(), static_cast<off_t>(at), static_cast<off_t>(bytes));
    }
    if (error == EINTR) continue;
    if (error != 0) failErrno("allocate " + std::to_string(to) + " bytes of " + path_, error);
    at += bytes;
  }
}

void Arena::create(const Options& options) {
  if (ftruncate(file_.get(), 0) != 0) failErrno("ftruncate " + path_);
  try {
    allocateFile(0, fileBytes(options.slabs));
  } catch (...) {
    // Space taken for a pool that cannot be would starve its host: give it back, keep no half pool.
    static_cast<void>(ftruncate(file_.get(), 0));
    static_cast<void>(unlink(path_.c_str()));
    throw;
  }
  if (base_ == nullptr) mapHead();
  slabs_.assign(options.slabs, ArenaSlab{});
  namespaces_.assign(kNamespacesMax, ArenaNamespace{});
  mapSlabs(0, options.slabs);
  if (getrandom(uuid_, sizeof uuid_, 0) != sizeof uuid_) failErrno("getrandom");
  writeNamespaces(namespaces_);
  writeSlabs();
}

void Arena::load() {
  std::vector<uint8_t> bytes;
  Superblock super;
  if (!superblock_->read(bytes) || bytes.size() < sizeof(uint32_t)) {
    fail("FORMAT", path_ + ": both copies of the superblock are damaged, or it is not a pool");
  }
  uint32_t format;
  memcpy(&format, bytes.data(), sizeof format);
  if (format != kArenaFormat || bytes.size() != sizeof super) {
    fail("FORMAT", path_ + " has format version " + std::to_string(format));
  }
  memcpy(&super, bytes.data(), sizeof super);
  if (super.slabs == 0 || super.slabs > kSlabsMax || super.slabBytes < kSlabBytesMin ||
      super.slabBytes > kSlabBytesMax || super.slabBytes % 4096 != 0) {
    fail("FORMAT", path_ + ": the superblock contradicts itself");
  }
  slabBytes_ = super.slabBytes;
  memcpy(uuid_, super.uuid, sizeof uuid_);
  clean_ = super.clean != 0;
  struct stat status;
  if (fstat(file_.get(), &status) != 0) failErrno("fstat " + path_);
  const uint64_t needed = fileBytes(super.slabs);
  if (static_cast<uint64_t>(status.st_size) < needed) {
    fail("FORMAT", path_ + " is shorter than its table says");
  }
  allocateFile(0, needed);
  if (reservedBytes_ < needed) {
    // The reserve was sized by the caller's slab size; size it by the file's.
    munmap(base_, reservedBytes_);
    base_ = nullptr;
    mapHead();
    superblock_->read(bytes);
  }
  slabs_.assign(super.slabs, ArenaSlab{});
  namespaces_.assign(kNamespacesMax, ArenaNamespace{});
  loadSlabs();
  loadNamespaces();
  mapSlabs(0, super.slabs);
}

void Arena::loadSlabs() {
  std::vector<uint8_t> bytes;
  if (!slabTable_->read(bytes) || bytes.size() % 8 != 0) {
    fail("FORMAT", path_ + ": both copies of the slab table are damaged");
  }
  const size_t count = std::min(bytes.size() / 8, slabs_.size());
  for (size_t i = 0; i < count; i++) {
    memcpy(&slabs_[i].payloadBytes, bytes.data() + i * 8, 4);
    memcpy(&slabs_[i].generationBase, bytes.data() + i * 8 + 4, 4);
    setGeometry(slabs_[i]);
    if (slabs_[i].payloadBytes != 0 && slabs_[i].slots == 0) {
      fail("FORMAT", path_ + ": a slab's payload is larger than the slab");
    }
  }
}

void Arena::loadNamespaces() {
  std::vector<uint8_t> bytes;
  if (!namespaceTable_->read(bytes)) {
    fail("FORMAT", path_ + ": both copies of the namespace table are damaged");
  }
  for (size_t at = 0; at + sizeof(NamespaceEntry) <= bytes.size();) {
    NamespaceEntry entry;
    memcpy(&entry, bytes.data() + at, sizeof entry);
    at += sizeof entry;
    if (entry.index >= kNamespacesMax || entry.descriptorBytes > bytes.size() - at) {
      fail("FORMAT", path_ + ": the namespace table contradicts itself");
    }
    ArenaNamespace& ns = namespaces_[entry.index];
    ns.used = true;
    memcpy(ns.digest, entry.digest, kDigestBytes);
    ns.seed = namespaceSeed(ns.digest);
    ns.descriptor.assign(bytes.begin() + static_cast<ptrdiff_t>(at),
                         bytes.begin() + static_cast<ptrdiff_t>(at + entry.descriptorBytes));
    at += entry.descriptorBytes;
  }
}

void Arena::setGeometry(ArenaSlab& slab) const {
  slab.slots = slotsPerSlab(slabBytes_, slab.payloadBytes);
  if (slab.slots == 0) return;
  const uint64_t unit = slab.payloadBytes >= 4096 ? 4096 : 64;
  slab.strideBytes = static_cast<uint32_t>(roundUp(slab.payloadBytes, unit));
  slab.payloadOffset = roundUp(uint64_t{slab.slots} * sizeof(SlotHeader), unit);
  CAIRN_ASSERT(slab.payloadOffset + uint64_t{slab.slots} * slab.strideBytes <= slabBytes_, "slots fit");
}

void Arena::writeSuperblock(bool clean) {
  Superblock super{kArenaFormat, slabs(), slabBytes_, {uuid_[0], uuid_[1]}, clean ? 1u : 0u, 0};
  superblock_->write(reinterpret_cast<const uint8_t*>(&super), sizeof super);
}

void Arena::writeSlabs() {
  std::vector<uint8_t> bytes(slabs_.size() * 8);
  for (size_t i = 0; i < slabs_.size(); i++) {
    memcpy(bytes.data() + i * 8, &slabs_[i].payloadBytes, 4);
    memcpy(bytes.data() + i * 8 + 4, &slabs_[i].generationBase, 4);
  }
  slabTable_->write(bytes.data(), bytes.size());
}

void Arena::writeNamespaces(const std::vector<ArenaNamespace>& namespaces) {
  std::vector<uint8_t> bytes;
  for (uint32_t i = 0; i < namespaces.size(); i++) {
    const ArenaNamespace& ns = namespaces[i];
    if (!ns.used) continue;
    NamespaceEntry entry{i, static_cast<uint32_t>(ns.descriptor.size()), {}};
    memcpy(entry.digest, ns.digest, kDigestBytes);
    const auto* raw = reinterpret_cast<const uint8_t*>(&entry);
    bytes.insert(bytes.end(), raw, raw + sizeof entry);
    bytes.insert(bytes.end(), ns.descriptor.begin(), ns.descriptor.end());
  }
  if (bytes.size() > namespaceTable_->payloadBytesMax()) fail("ENOSPC", "the namespace table is full");
  namespaceTable_->write(bytes.data(), bytes.size());
}

void Arena::putNamespace(uint32_t index, const uint8_t* digest, const uint8_t* descriptor, size_t bytes) {
  if (index >= kNamespacesMax) fail("ARGUMENT", "namespace index must be below 4096");
  if (scans_.load(std::memory_order_acquire) != 0) fail("BUSY", "the arena is being scanned");
  const ArenaNamespace before = namespaces_[index];
  ArenaNamespace& ns = namespaces_[index];
  ns.used = true;
  memcpy(ns.digest, digest, kDigestBytes);
  ns.seed = namespaceSeed(digest);
  ns.descriptor.assign(descriptor, descriptor + bytes);
  try {
    writeNamespaces(namespaces_);
  } catch (...) {
    ns = before;
    throw;
  }
}

void Arena::checkIdle(uint32_t slab) const {
  if (users_[slab].load(std::memory_order_acquire) != 0) {
    fail("BUSY", "copies of slab " + std::to_string(slab) + " are in flight");
  }
  if (scans_.load(std::memory_order_acquire) != 0) fail("BUSY", "the arena is being scanned");
}

void Arena::checkNoHelpers() const {
  if (helpers_.load(std::memory_order_acquire) != 0) fail("BUSY", "the arena is being scanned or touched");
}

uint32_t Arena::assign(uint32_t index, uint32_t payloadBytes) {
  if (index >= slabs_.size()) fail("ARGUMENT", "slab is out of range");
  if (payloadBytes == 0 || slotsPerSlab(slabBytes_, payloadBytes) == 0) {
    fail("ARGUMENT", "payloadBytes does not fit a slab");
  }
  ArenaSlab& slab = slabs_[index];
  if (slab.payloadBytes != 0) fail("ARGUMENT", "the slab is assigned already");
  checkIdle(index);
  slab.payloadBytes = payloadBytes;
  setGeometry(slab);
  // Free headers first, the table after: a crash in between leaves the slab unassigned.
  auto* headers = reinterpret_cast<SlotHeader*>(slabBase(index));
  for (uint32_t i = 0; i < slab.slots; i++) {
    memset(&headers[i], 0, sizeof(SlotHeader));
    headers[i].generation = slab.generationBase;
  }
  writeSlabs();
  return slab.slots;
}

void Arena::release(uint32_t index) {
  if (index >= slabs_.size()) fail("ARGUMENT", "slab is out of range");
  ArenaSlab& slab = slabs_[index];
  if (slab.payloadBytes == 0) return;
  checkIdle(index);
  auto* headers = reinterpret_cast<SlotHeader*>(slabBase(index));
  for (uint32_t i = 0; i < slab.slots; i++) {
    setSlotState(headers[i], kSlotFree);
    slab.generationBase = std::max(slab.generationBase, headers[i].generation);
  }
  slab.payloadBytes = 0;
  setGeometry(slab);
  writeSlabs();
}

void Arena::resize(uint32_t target) {
  if (target == 0 || target > kSlabsMax) fail("ARGUMENT", "slabs must be 1 to 16384");
  const uint32_t before = slabs();
  if (target == before) return;
  if (target > before) {
    allocateFile(fileBytes(before), fileBytes(target));
    mapSlabs(before, target);
    slabs_.resize(target);
    writeSlabs();
    writeSuperblock(false);
    return;
  }
  checkNoHelpers();
  for (uint32_t i = target; i < before; i++) {
    if (slabs_[i].payloadBytes != 0) fail("BUSY", "slab " + std::to_string(i) + " is still assigned");
    checkIdle(i);
  }
  slabs_.resize(target);
  writeSuperblock(false);
  writeSlabs();
  uint8_t* from = base_ + fileBytes(target);
  const uint64_t bytes = fileBytes(before) - fileBytes(target);
  void* at = mmap(from, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (at == MAP_FAILED) failErrno("unmap slabs");
  if (ftruncate(file_.get(), static_cast<off_t>(fileBytes(target))) != 0) failErrno("ftruncate " + path_);
}

bool Arena::slotExists(uint32_t slot) const {
  const uint32_t slab = slot >> kSlotIndexBits;
  return slab < slabs_.size() && (slot & (kSlotsPerSlabMax - 1)) < slabs_[slab].slots;
}

SlotHeader* Arena::header(uint32_t slot) const {
  CAIRN_ASSERT(slotExists(slot), "the slot exists");
  return reinterpret_cast<SlotHeader*>(slabBase(slot >> kSlotIndexBits)) + (slot & (kSlotsPerSlabMax - 1));
}

uint8_t* Arena::payload(uint32_t slot) const {
  CAIRN_ASSERT(slotExists(slot), "the slot exists");
  const ArenaSlab& slab = slabs_[slot >> kSlotIndexBits];
  const uint64_t index = slot & (kSlotsPerSlabMax - 1);
  return slabBase(slot >> kSlotIndexBits) + slab.payloadOffset + index * slab.strideBytes;
}

void Arena::close(bool keep) {
  checkNoHelpers();
  for (uint32_t i = 0; i < slabs(); i++) checkIdle(i);
  if (keep) {
    writeSuperblock(true);
  } else if (unlink(path_.c_str()) != 0 && errno != ENOENT) {
    failErrno("unlink " + path_);
  }
  file_.reset();
}

Arena::~Arena() {
  if (base_ != nullptr) munmap(base_, reservedBytes_);
}

}  // namespace cairn
