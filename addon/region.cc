#include "region.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "populate.h"

namespace cairn {
namespace {

uint64_t patternWord(uint64_t seed, uint64_t index) {
  uint64_t z = (seed << 32) + index + 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

}  // namespace

uint8_t* mapUntouched(int file, uint64_t sizeBytes, bool huge) {
  void* at = mmap(nullptr, sizeBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (at == MAP_FAILED) failErrno("mmap a window");
  if (huge) static_cast<void>(madvise(at, sizeBytes, MADV_HUGEPAGE));
  static_cast<void>(madvise(at, sizeBytes, MADV_DONTDUMP));
  return static_cast<uint8_t*>(at);
}

uint8_t* mapShared(int file, uint64_t sizeBytes, bool huge) {
  uint8_t* at = mapUntouched(file, sizeBytes, huge);
  const int error = populateRange(at, sizeBytes);
  if (error != 0) {
    munmap(at, sizeBytes);
    failErrno("touch a window", error);
  }
  return at;
}

std::shared_ptr<Region> Region::map(Descriptor file, uint64_t sizeBytes) {
  if (sizeBytes == 0) fail("ARGUMENT", "sizeBytes must be positive");
  const int seals = fcntl(file.get(), F_GET_SEALS);
  constexpr int kNeeded = F_SEAL_SHRINK | F_SEAL_GROW;
  if (seals < 0 && errno == EBADF) failErrno("window descriptor");
  if (seals < 0 || (seals & kNeeded) != kNeeded) {
    fail("NOT_SEALED", "the descriptor is not a memfd sealed with F_SEAL_SHRINK and F_SEAL_GROW");
  }
  struct stat status;
  if (fstat(file.get(), &status) != 0) failErrno("fstat a window");
  if (static_cast<uint64_t>(status.st_size) < sizeBytes) {
    fail("TOO_SMALL", "the memfd holds " + std::to_string(status.st_size) + " bytes");
  }
  struct statfs system;
  if (fstatfs(file.get(), &system) != 0) failErrno("fstatfs a window");
  if (system.f_type == HUGETLBFS_MAGIC) fail("UNSAFE", "huge-page memfds are not accepted as windows");
  return std::shared_ptr<Region>(new Region(mapUntouched(file.get(), sizeBytes, false), sizeBytes));
}

Descriptor makeSealedMemfd(const char* name, uint64_t sizeBytes) {
  if (sizeBytes == 0) fail("ARGUMENT", "sizeBytes must be positive");
  Descriptor file(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file) failErrno("memfd_create");
  if (ftruncate(file.get(), static_cast<off_t>(sizeBytes)) != 0) failErrno("size a memfd");
  if (fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) failErrno("seal a memfd");
  return file;
}

std::pair<std::shared_ptr<Region>, Descriptor> Region::create(uint64_t sizeBytes) {
  Descriptor file = makeSealedMemfd("cairn-window", sizeBytes);
  uint8_t* base = mapUntouched(file.get(), sizeBytes, false);
  return {std::shared_ptr<Region>(new Region(base, sizeBytes)), std::move(file)};
}

Region::~Region() { munmap(base_, sizeBytes_); }

bool Region::prove(uint64_t offset, uint64_t rowBytes, uint32_t seed) {
  if (rowBytes == 0 || !contains(offset, rowBytes)) fail("ARGUMENT", "the row lies outside the region");
  uint8_t* row = base_ + offset;
  for (uint64_t at = 0; at < rowBytes; at += 8) {
    const uint64_t word = patternWord(seed, at / 8);
    if (memcmp(row + at, &word, std::min<uint64_t>(8, rowBytes - at)) != 0) return false;
  }
  for (uint64_t at = 0; at < rowBytes; at += 8) {
    const uint64_t word = patternWord(uint64_t{seed} + 1, at / 8);
    memcpy(row + at, &word, std::min<uint64_t>(8, rowBytes - at));
  }
  return true;
}

}  // namespace cairn
