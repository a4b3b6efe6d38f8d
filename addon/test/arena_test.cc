#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "../arena.h"
#include "../populate.h"
#include "../scan.h"
#include "check.h"
#include "fixture.h"

using namespace cairn;
using namespace cairn::test;

namespace {

constexpr uint64_t kSlabBytes = 64 * 1024;

Arena::Options optionsOf(const std::string& path, uint32_t slabs = 4) {
  return Arena::Options{path, kSlabBytes, slabs, -1, false};
}

/// Overwrites bytes of the file.
void damage(const std::string& path, off_t at, size_t count) {
  const Descriptor file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  const std::vector<uint8_t> junk(count, 0x5d);
  EXPECT(pwrite(file.get(), junk.data(), count, at) == static_cast<ssize_t>(count));
}

constexpr off_t kSlabTableAt = 2 * 4096;
constexpr off_t kSlabTableCopyBytes = kSlabsMax * 8 + 4096;
constexpr off_t kNamespaceAt = kSlabTableAt + 2 * kSlabTableCopyBytes;
constexpr off_t kNamespaceCopyBytes = (static_cast<off_t>(kHeadBytes) - kNamespaceAt) / 2 / 4096 * 4096;

}  // namespace

TEST("a new arena comes back with its slabs, namespaces and clean flag") {
  const TemporaryDirectory dir;
  const std::string path = dir.file("pool");
  const uint8_t digest[16] = {1, 2, 3};
  {
    const auto arena = Arena::open(optionsOf(path));
    EXPECT(!arena->reopened() && !arena->clean());
    EXPECT(arena->assign(1, 4096) == slotsPerSlab(kSlabBytes, 4096));
    arena->putNamespace(5, digest, reinterpret_cast<const uint8_t*>("abc"), 3);
    arena->close(true);
  }
  const auto arena = Arena::open(optionsOf(path, 9));
  EXPECT(arena->reopened() && arena->clean());
  EXPECT(arena->slabs() == 4);
  EXPECT(arena->slab(1).payloadBytes == 4096 && arena->slab(0).payloadBytes == 0);
  EXPECT(arena->namespaces()[5].used && memcmp(arena->namespaces()[5].digest, digest, 16) == 0);
  EXPECT(arena->namespaces()[5].descriptor == std::vector<uint8_t>({'a', 'b', 'c'}));
  EXPECT(!arena->namespaces()[4].used);
}

TEST("a locked, foreign-mode, linked or special pool file is refused with its code") {
  const TemporaryDirectory dir;
  const std::string path = dir.file("pool");
  const auto arena = Arena::open(optionsOf(path));
  EXPECT(codeOf([&] { Arena::open(optionsOf(path)); }) == "LOCKED");
  const std::string open = dir.file("open");
  Arena::open(optionsOf(open))->close(true);
  chmod(open.c_str(), 0644);
  EXPECT(codeOf([&] { Arena::open(optionsOf(open)); }) == "UNSAFE");
  const std::string link = dir.file("link");
  EXPECT(symlink(open.c_str(), link.c_str()) == 0);
  EXPECT(codeOf([&] { Arena::open(optionsOf(link)); }) == "UNSAFE");
  const std::string pipe = dir.file("pipe");
  EXPECT(mkfifo(pipe.c_str(), 0600) == 0);
  EXPECT(codeOf([&] { Arena::open(optionsOf(pipe)); }) == "UNSAFE");
  EXPECT(codeOf([&] { Arena::open(optionsOf(dir.file("no/such"))); }) == "ENOENT");
}

TEST("one damaged copy of each table is survived, two are FORMAT") {
  const off_t tables[][2] = {{0, 4096}, {kSlabTableAt, kSlabTableCopyBytes}, {kNamespaceAt, kNamespaceCopyBytes}};
  for (const auto& [at, copyBytes] : tables) {
    for (int copy = 0; copy < 2; copy++) {
      const TemporaryDirectory dir;
      const std::string path = dir.file("pool");
      {
        const auto arena = Arena::open(optionsOf(path));
        const uint8_t digest[16] = {9};
        // Twice each, so that both copies are current enough to serve.
        for (uint32_t slab = 0; slab < 2; slab++) arena->assign(slab, 64);
        for (uint32_t ns = 0; ns < 2; ns++) arena->putNamespace(ns, digest, digest, 4);
        arena->close(true);
      }
      damage(path, at + copy * copyBytes + 20, 8);
      {
        const auto arena = Arena::open(optionsOf(path));
        EXPECT(arena->reopened());
        EXPECT(arena->slab(0).payloadBytes == 64 && arena->namespaces()[0].used);
      }
      damage(path, at + copy * copyBytes + 20, 8);
      damage(path, at + (1 - copy) * copyBytes + 20, 8);
      EXPECT(codeOf([&] { Arena::open(optionsOf(path)); }) == "FORMAT");
    }
  }
}

TEST("a file shorter than its table, or not a pool at all, is FORMAT and never a signal") {
  const TemporaryDirectory dir;
  const std::string path = dir.file("pool");
  Arena::open(optionsOf(path))->close(true);
  EXPECT(truncate(path.c_str(), static_cast<off_t>(kHeadBytes + kSlabBytes)) == 0);
  EXPECT(codeOf([&] { Arena::open(optionsOf(path)); }) == "FORMAT");
  EXPECT(truncate(path.c_str(), 5000) == 0);
  EXPECT(codeOf([&] { Arena::open(optionsOf(path)); }) == "FORMAT");
  const std::string zeros = dir.file("zeros");
  const Descriptor file(::open(zeros.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  EXPECT(ftruncate(file.get(), 100) == 0);
  EXPECT(!Arena::open(optionsOf(zeros))->reopened());
}

TEST("a file system that is full is an error at open and at resize, and leaves no file behind") {
  const TemporaryDirectory dir;
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, SIG_IGN);
  rlimit tight{kHeadBytes + 2 * kSlabBytes, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &tight);
  const std::string path = dir.file("pool");
  EXPECT(codeOf([&] { Arena::open(optionsOf(path, 8)); }) == "EFBIG");
  EXPECT(access(path.c_str(), F_OK) != 0);
  const auto arena = Arena::open(optionsOf(path, 2));
  EXPECT(codeOf([&] { arena->resize(3); }) == "EFBIG");
  EXPECT(arena->slabs() == 2);
  setrlimit(RLIMIT_FSIZE, &before);
  arena->resize(3);
  EXPECT(arena->slabs() == 3);
}

TEST("resize keeps addresses and contents, refuses assigned or busy slabs") {
  const TemporaryDirectory dir;
  const auto arena = Arena::open(optionsOf(dir.file("pool"), 2));
  arena->assign(0, 64);
  uint8_t* before = arena->payload(3);
  memset(before, 0x77, 64);
  arena->resize(40);
  EXPECT(arena->payload(3) == before && before[63] == 0x77);
  arena->assign(39, 4096);
  memset(arena->payload(39u << kSlotIndexBits), 1, 4096);
  EXPECT(codeOf([&] { arena->resize(3); }) == "BUSY");
  arena->users(39).fetch_add(1);
  EXPECT(codeOf([&] { arena->release(39); }) == "BUSY");
  arena->users(39).fetch_sub(1);
  arena->release(39);
  arena->resize(3);
  EXPECT(arena->slabs() == 3 && before[0] == 0x77);
  EXPECT(codeOf([&] { arena->assign(3, 64); }) == "ARGUMENT");
}

TEST("a slab given back and assigned again continues its generations") {
  const TemporaryDirectory dir;
  const auto arena = Arena::open(optionsOf(dir.file("pool")));
  arena->assign(0, 64);
  arena->header(2)->generation = 17;
  arena->release(0);
  arena->assign(0, 4096);
  EXPECT(arena->header(0)->generation == 17 && slotState(*arena->header(0)) == kSlotFree);
}

TEST("slots never overlap, stay inside the slab and are aligned, for many sizes") {
  for (uint32_t payload = 1; payload < 70'000; payload = payload * 5 / 4 + 1) {
    const uint64_t slab = 1u << 20;
    const uint32_t slots = slotsPerSlab(slab, payload);
    const uint64_t unit = payload >= 4096 ? 4096 : 64;
    EXPECT(slots > 0 && slots <= kSlotsPerSlabMax);
    EXPECT(roundUp(slots * 128ull, unit) + slots * roundUp(payload, unit) <= slab);
    // One more would not fit.
    EXPECT(roundUp((slots + 1) * 128ull, unit) + (slots + 1) * roundUp(payload, unit) > slab);
  }
  EXPECT(slotsPerSlab(64u << 20, 64) == kSlotsPerSlabMax);
  EXPECT(slotsPerSlab(4096, 8192) == 0 && slotsPerSlab(4096, 0) == 0);
  EXPECT(slotsPerSlab(8ull << 30, 1u << 31) == 3 && slotsPerSlab(8ull << 30, UINT32_MAX) == 0);
}

TEST("a pool whose slabs are too large for any address space is refused before anything is made") {
  const TemporaryDirectory dir;
  const std::string path = dir.file("pool");
  // 16,384 of them are 64 MiB more than 64 bits can say.
  Arena::Options options{path, (1ull << 50) + 4096, 16'384, -1, false};
  EXPECT(codeOf([&] { Arena::open(options); }) == "ARGUMENT");
  EXPECT(access(path.c_str(), F_OK) != 0);
}

TEST("after SIGKILL in the middle of storing, a scan finds whole blocks only and frees the rest") {
  const TemporaryDirectory dir;
  const std::string path = dir.file("pool");
  const pid_t child = fork();
  if (child == 0) {
    const auto arena = Arena::open(optionsOf(path));
    const uint8_t digest[16] = {1};
    arena->putNamespace(0, digest, digest, 0);
    arena->assign(0, 1024);
    for (uint32_t round = 0;; round++) {
      for (uint32_t slot = 0; slot < arena->slab(0).slots; slot++) fillSlot(*arena, slot, round + 1, slot + 1);
    }
  }
  usleep(150'000);
  kill(child, SIGKILL);
  int status = 0;
  EXPECT(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
  const auto arena = Arena::open(optionsOf(path));
  EXPECT(arena->reopened() && !arena->clean());
  // A torn header: claims to be valid, does not verify.
  arena->header(5)->depth ^= 1;
  const std::atomic<bool> stop{false};
  ScanResult result = scanArena(*arena, 2, stop, [](uint32_t, uint32_t) {});
  EXPECT(result.entries.size() + 2 >= arena->slab(0).slots && result.entries.size() < arena->slab(0).slots);
  EXPECT(slotState(*arena->header(5)) == kSlotFree);
  for (size_t i = 0; i < result.entries.size(); i++) {
    const SlotHeader& header = *arena->header(result.entries[i].slot);
    EXPECT(hashOnly(arena->payload(result.entries[i].slot), header.length) == header.payloadHash);
    if (i > 0) EXPECT(arena->header(result.entries[i - 1].slot)->depth <= header.depth);
  }
  std::vector<uint32_t> words(kScanWords * 7);
  size_t read = 0;
  while (const size_t count = result.read(*arena, words.data(), 7)) {
    EXPECT(memcmp(words.data(), arena->header(words[32]), 128) == 0);
    read += count;
  }
  EXPECT(read == result.entries.size());
}

TEST("of equal depths the newer generation comes first, and unknown namespaces are freed") {
  const TemporaryDirectory dir;
  const auto arena = Arena::open(optionsOf(dir.file("pool")));
  const uint8_t digest[16] = {1};
  arena->putNamespace(0, digest, digest, 0);
  arena->assign(0, 64);
  fillSlot(*arena, 0, 3, 5);
  fillSlot(*arena, 1, 8, 5);
  fillSlot(*arena, 2, 1, 2);
  fillSlot(*arena, 3, 1, 2);
  arena->header(3)->namespaceIndex = 77;
  const std::atomic<bool> stop{false};
  const ScanResult result = scanArena(*arena, 3, stop, [](uint32_t, uint32_t) {});
  REQUIRE(result.entries.size() == 3);
  EXPECT(result.invalid == 1);
  EXPECT(result.entries[0].slot == 2 && result.entries[1].slot == 1 && result.entries[2].slot == 0);
}

TEST("pre-touch reports every slab and keeps contents") {
  const TemporaryDirectory dir;
  const auto arena = Arena::open(optionsOf(dir.file("pool"), 8));
  arena->assign(7, 64);
  memset(arena->payload(7u << kSlotIndexBits), 0x33, 64);
  std::atomic<uint32_t> calls{0};
  const std::atomic<bool> stop{false};
  EXPECT(populateArena(*arena, 0, 8, 3, stop, [&](uint32_t, uint32_t total) { calls += total == 8; }) == 0);
  EXPECT(calls == 8 && arena->payload(7u << kSlotIndexBits)[63] == 0x33);
}
