// Helpers of the disk tests: file operations that can be made to fail, and a disk with a filled pool beside it.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "../disk.h"
#include "check.h"
#include "fixture.h"

namespace cairn::test {

constexpr uint32_t kDiskPayload = 8000;
constexpr uint64_t kSegment = 4u << 20;
constexpr uint32_t kDiskSlabNumber = 5;

/// The system's file operations with faults in front. A fault decides by call; -1 lets the call through.
class Faults {
 public:
  using Fault = std::function<ssize_t(void*, size_t, off_t)>;
  Faults() {
    const auto real = FileOperations::system();
    auto table = std::make_shared<FileOperations>();
    table->pread = [this, real](int fd, void* into, size_t bytes, off_t at) {
      const ssize_t got = call(onRead, into, bytes, at);
      return got == kPass ? real->pread(fd, into, bytes, at) : answer(got);
    };
    table->pwrite = [this, real](int fd, const void* from, size_t bytes, off_t at) {
      const ssize_t put = call(onWrite, const_cast<void*>(from), bytes, at);
      if (put == kPass) return real->pwrite(fd, from, bytes, at);
      if (put > 0) return real->pwrite(fd, from, static_cast<size_t>(put), at);
      return answer(put);
    };
    table->fdatasync = [this, real](int fd) {
      const int error = syncErrno.load();
      syncs++;
      return error == 0 ? real->fdatasync(fd) : static_cast<int>(answer(-error));
    };
    table->fallocate = [this, real](int fd, off_t at, off_t bytes) {
      const int error = allocateErrno.load();
      return error == 0 ? real->fallocate(fd, at, bytes) : static_cast<int>(answer(-error));
    };
    operations = table;
  }

  static constexpr ssize_t kPass = INT64_MIN;
  void setRead(Fault fault) { set(onRead, std::move(fault)); }
  void setWrite(Fault fault) { set(onWrite, std::move(fault)); }

  std::shared_ptr<const FileOperations> operations;
  std::atomic<int> syncErrno{0};
  std::atomic<int> allocateErrno{0};
  std::atomic<int> syncs{0};

 private:
  static ssize_t answer(ssize_t result) {
    if (result >= 0) return result;
    errno = static_cast<int>(-result);
    return -1;
  }
  void set(Fault& which, Fault fault) {
    std::lock_guard lock(mutex_);
    which = std::move(fault);
  }
  ssize_t call(const Fault& which, void* bytes, size_t count, off_t at) {
    Fault fault;
    {
      std::lock_guard lock(mutex_);
      fault = which;
    }
    return fault ? fault(bytes, count, at) : kPass;
  }

  std::mutex mutex_;
  Fault onRead;
  Fault onWrite;
};

/// A device that answers nothing until it is let go.
class Stall {
 public:
  /// Counts the call and waits.
  void hold() {
    std::unique_lock lock(mutex_);
    held_++;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
  }
  void waitForHeld(uint32_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return held_ >= count; });
  }
  void letGo() {
    std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint32_t held_ = 0;
  bool open_ = false;
};

struct DiskBench {
  explicit DiskBench(DiskMode mode = DiskMode::kThreads, uint32_t payloadBytes = kDiskPayload,
                     uint32_t queueDepth = 4)
      : payload(payloadBytes), region(Region::create(1 << 20).first) {
    options = {dir.file("disk"), kSegment, mode, true, queueDepth, 2, 1u << 20, faults->operations, 500'000};
    EXPECT(mkdir(options.directory.c_str(), 0700) == 0);
    arena = Arena::open({dir.file("pool"), 1u << 20, 2, -1, false});
    uint8_t digest[kDigestBytes];
    for (size_t i = 0; i < sizeof digest; i++) digest[i] = static_cast<uint8_t>(i + 1);
    arena->putNamespace(0, digest, digest, 0);
    arena->assign(0, payload);
    arena->assign(1, payload);
    for (uint32_t i = 0; i < arena->slab(0).slots; i++) fillSlot(*arena, i, 1, i + 1);
    open();
  }
  ~DiskBench() { close(); }

  void open() { disk = std::make_unique<Disk>(options, pump.hub); }
  void close() { disk.reset(); }
  /// Makes segment 0 and gives it to the payload.
  void prepare() {
    disk->prepare(0, ++lastTask);
    EXPECT(ended(lastTask).c == 1);
    disk->attach(0, kDiskSlabNumber);
    disk->assign(kDiskSlabNumber, payload);
  }
  /// As after a restart: the segment is there and has its class.
  void reopen() {
    close();
    open();
    disk->attach(0, kDiskSlabNumber);
  }
  EventPump::Words ended(uint32_t task) {
    EXPECT(pump.until([&] { return tasks.count(task) != 0 && tasks[task].c != 0; }, collect()));
    return tasks[task];
  }
  EventPump::Words sync() {
    disk->sync(++lastTask);
    return ended(lastTask);
  }

  static uint32_t slot(uint32_t index) { return kDiskSlabNumber << kSlotIndexBits | index; }

  /// The block of DRAM slot `block`, read from or written to the disk slot `index`.
  DiskItem item(uint32_t index, uint32_t block, uint64_t offset, uint32_t dramSlot) const {
    DiskItem result{};
    result.seed = arena->namespaces()[0].seed;
    memcpy(result.digest, arena->namespaces()[0].digest, kDigestBytes);
    result.depth = block + 1;
    memset(result.key, static_cast<int>(block + 1), kKeyBytes);
    result.slab = disk->slabOf(slot(index), payload);
    result.index = index;
    result.range = region->contains(offset, payload) ? region->base() + offset : nullptr;
    result.dramSlot = dramSlot;
    if (dramSlot != kNoDramSlot) {
      result.dramHeader = arena->header(dramSlot);
      result.dramPayload = arena->payload(dramSlot);
    }
    return result;
  }
  DiskItem write(uint32_t index, uint32_t block) const { return item(index, block, UINT64_MAX, block); }
  DiskItem read(uint32_t index, uint32_t block, uint32_t dramSlot = kNoDramSlot) const {
    return item(index, block, uint64_t{index} * payload, dramSlot);
  }
  template <class Make>
  std::vector<DiskItem> items(uint32_t count, Make make) const {
    std::vector<DiskItem> list;
    for (uint32_t i = 0; i < count; i++) list.push_back(make(i));
    return list;
  }
  std::vector<DiskItem> writes(uint32_t count) const {
    return items(count, [&](uint32_t i) { return write(i, i); });
  }
  std::vector<DiskItem> reads(uint32_t count) const {
    return items(count, [&](uint32_t i) { return read(i, i); });
  }

  uint32_t submit(DiskKind kind, std::vector<DiskItem> list, uint32_t deadlineMs = 0, uint32_t priority = 0,
                  bool withRegion = true) {
    auto batch = std::make_unique<DiskBatch>();
    const bool hasRegion = kind == DiskKind::kRead && withRegion;
    batch->options = {kind, ++lastBatch, 0, 1, payload, deadlineMs, priority, hasRegion};
    batch->arena = arena;
    if (hasRegion) batch->region = region;
    batch->items = std::move(list);
    disk->submit(std::move(batch));
    return lastBatch;
  }
  std::vector<uint8_t> statusesOf(uint32_t batch) {
    EXPECT(pump.until([&] { return batches.count(batch) != 0; }, collect()));
    return batches[batch];
  }
  std::vector<uint8_t> run(DiskKind kind, std::vector<DiskItem> list, uint32_t deadlineMs = 0) {
    return statusesOf(submit(kind, std::move(list), deadlineMs));
  }
  bool holds(uint32_t index, uint32_t block) const {
    return memcmp(region->base() + uint64_t{index} * payload, arena->payload(block), payload) == 0;
  }
  std::function<void(const EventPump::Words&)> collect() {
    return [this](const EventPump::Words& event) {
      if (event.type == kProgress) tasks[event.id] = event;
      if (event.type != kCopied) return;
      EXPECT(batches.count(event.id) == 0);
      batches[event.id].assign(pump.statuses + event.offset, pump.statuses + event.offset + event.length);
      failed[event.id] = event.a;
    };
  }
  /// Changes bytes of the segment file behind the disk's back.
  void patch(uint64_t at, const std::function<void(uint8_t*)>& change, size_t bytes = kSectorBytes) {
    const std::string path = options.directory + "/segment-000000.cairn";
    Descriptor file(::open(path.c_str(), O_RDWR));
    std::vector<uint8_t> piece(bytes);
    EXPECT(::pread(file.get(), piece.data(), bytes, static_cast<off_t>(at)) == static_cast<ssize_t>(bytes));
    change(piece.data());
    EXPECT(::pwrite(file.get(), piece.data(), bytes, static_cast<off_t>(at)) == static_cast<ssize_t>(bytes));
    EXPECT(::fsync(file.get()) == 0);
  }
  uint64_t offsetOf(uint32_t index) const { return kSectorBytes + index * diskSlotBytes(payload); }

  // The faults outlive what uses them: a stalled thread returns when it is let go.
  const std::shared_ptr<Faults> faults = std::make_shared<Faults>();
  TemporaryDirectory dir;
  EventPump pump;
  uint32_t payload;
  std::shared_ptr<Region> region;
  std::shared_ptr<Arena> arena;
  DiskOptions options;
  std::unique_ptr<Disk> disk;
  uint32_t lastBatch = 0;
  uint32_t lastTask = 1000;
  std::map<uint32_t, std::vector<uint8_t>> batches;
  std::map<uint32_t, uint32_t> failed;
  std::map<uint32_t, EventPump::Words> tasks;
};

inline bool all(const std::vector<uint8_t>& statuses, size_t count, uint8_t status) {
  return statuses == std::vector<uint8_t>(count, status);
}

}  // namespace cairn::test
