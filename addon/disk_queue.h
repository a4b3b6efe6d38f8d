// The queues of one disk: one coordinating thread that owns every decision, and a backend that owns the waiting.
//
// Order: READ by priority, then WRITE, then VERIFY, then header scans. One batch of writes is at the device at a
// time, with at most writeDepth operations (the next begins when all of it has begun), and no write begins while a
// read waits; writes that waited for writeWaitMicroseconds go first once, so that reads never starve them.
//
// The coordinating thread resubmits before it hashes: completions are collected, the device gets its next
// operations, then the bytes of one operation are verified and copied. Likewise it encodes one write, or 256 KiB of
// small ones, and hands them over before it encodes more.
//
// Deadlines: when an item's time is over, its operation loses its item and keeps its staging piece until the device
// answers; the bytes go nowhere, and memory outside the staging is only ever touched for items that are still there.
// A slot that such a lost write may yet change serves nobody until the device has answered.
//
// Lifetime: the thread, and what the device holds, own the queue. close() gives up after a while: then every batch
// has ended, no byte reaches memory outside the staging, and the rest goes when the device answers.
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "disk_batch.h"
#include "disk_io.h"

namespace cairn {

enum class DiskMode { kAuto, kUring, kThreads };

struct DiskQueueOptions {
  DiskMode mode;
  uint32_t queueDepth;
  uint32_t writeDepth;
  size_t stagingBytes;
  std::shared_ptr<const FileOperations> operations;
  /// The real read that io_uring must pass.
  std::shared_ptr<SegmentFile> probe;
  /// Writes that waited this long go before reads, once.
  int64_t writeWaitMicroseconds = 500'000;
  /// A device that has not answered the probe by then is refused.
  int64_t probeMicroseconds = 2'000'000;
};

struct DiskCounterSet {
  std::atomic<uint64_t> bytesRead{0};
  std::atomic<uint64_t> bytesWritten{0};
  std::atomic<uint64_t> readItems{0};
  std::atomic<uint64_t> writeItems{0};
  std::atomic<uint64_t> ioErrors{0};
  std::atomic<uint64_t> itemsCorrupt{0};
  std::atomic<uint64_t> itemsIdentity{0};
  std::atomic<uint64_t> readsQueued{0};
  std::atomic<uint64_t> writesQueued{0};
  std::atomic<uint64_t> inFlight{0};
  std::atomic<bool> registeredBuffers{false};
  /// Monotonic microseconds at which the oldest operation at the device began, 0 = none.
  std::atomic<int64_t> oldestBegan{0};
};

/// First fit in whole sectors.
class StagingMap {
 public:
  explicit StagingMap(size_t bytes) { free_.emplace(0, bytes); }
  /// False when no piece is large enough.
  bool take(size_t bytes, size_t& offset);
  void give(size_t offset, size_t bytes);

 private:
  std::map<size_t, size_t> free_;  // offset → bytes
};

class DiskQueue : public std::enable_shared_from_this<DiskQueue> {
 public:
  /// Starts the thread; returns when the backend is chosen. Throws an errno name, ETIMEDOUT for a device that hangs.
  static std::shared_ptr<DiskQueue> start(DiskQueueOptions options, std::shared_ptr<DiskEvents> events);

  // JS thread.
  /// Throws ARGUMENT when the id is in use, CLOSED after close().
  void submit(std::unique_ptr<DiskBatch> batch);
  void cancel(uint32_t id);
  /// `done` is called by the coordinating thread when all headers were read, or with false when the disk closes.
  void scan(std::shared_ptr<DiskScan> scan, std::function<void(bool)> done);
  void forget(std::shared_ptr<SegmentFile> file);
  /// Every batch has ended when this returns. Idempotent.
  void close();

  bool uring() const { return uring_; }
  const std::vector<std::string>& notes() const { return notes_; }
  const DiskCounterSet& counters() const { return counters_; }
  const std::shared_ptr<std::atomic<uint64_t>>& cpuMicroseconds() const { return cpu_; }
  /// Reads or writes wait or are at the device: background work stands aside. Any thread.
  bool busy() const { return counters_.readsQueued + counters_.writesQueued + counters_.inFlight > 0; }

 private:
  enum class Purpose : uint8_t { kItem, kSegmentHeader, kScan };
  struct Operation {
    DiskOperation io{};
    Purpose purpose = Purpose::kItem;
    /// nullptr: the item ended without it, or there is none.
    DiskBatch* batch = nullptr;
    size_t item = 0;
    std::shared_ptr<DiskSlab> slab;
    uint32_t index = 0;
    uint32_t count = 0;
    size_t staging = 0;
    size_t stagingBytes = 0;
    uint32_t done = 0;
    /// Times in a row that the device asked to be asked again.
    uint32_t again = 0;
    int64_t began = 0;
    DiskKind kind = DiskKind::kRead;
    bool active = false;
    /// Its item's time ended while the device had it.
    bool lost = false;
    /// The device answered; the answer waits to be looked at.
    bool landed = false;
  };
  struct Mail {
    std::vector<std::unique_ptr<DiskBatch>> batches;
    std::vector<uint32_t> cancels;
    std::vector<std::pair<std::shared_ptr<DiskScan>, std::function<void(bool)>>> scans;
    std::vector<std::shared_ptr<SegmentFile>> forgotten;
  };

  DiskQueue(DiskQueueOptions options, std::shared_ptr<DiskEvents> events);
  void chooseBackend();
  void run();
  void finishClosing();
  bool takeMail();
  bool closing();
  void enqueue(std::unique_ptr<DiskBatch> batch);

  // Starting work (disk_queue.cc).
  bool pump();
  bool prepareMore();
  bool startReads(std::deque<DiskBatch*>& queue, uint32_t depth);
  bool startWrites(uint64_t encodeBytes);
  void startScan();
  enum class Start { kStarted, kEndedAtOnce, kWait };
  Start startItem(DiskBatch& batch, size_t item);
  Start startSegmentHeader(const std::shared_ptr<DiskSlab>& slab);
  Operation* newOperation(const std::shared_ptr<DiskSlab>& slab, size_t bytes, uint64_t offset, bool write);
  void begin(Operation& operation);

  // Ending work (disk_finish.cc).
  void collect(int64_t timeoutMicroseconds);
  bool continueShort(Operation& operation, int32_t& result);
  void finish(uint32_t id, int32_t result);
  void finishItem(Operation& operation, int32_t result);
  void finishSegmentHeader(Operation& operation, int32_t result);
  void finishScan(Operation& operation, int32_t result);
  void release(Operation& operation);
  void endItem(DiskBatch& batch, size_t item, uint8_t status);
  void endBatch(DiskBatch& batch, ItemStatus status, bool alsoWritesAtDevice);
  void complete(DiskBatch& batch);
  void expire(int64_t now);
  int64_t waitMicroseconds(int64_t now) const;
  uint32_t& atDevice(const Operation& operation);
  void settle(DiskBatch& batch, size_t item, uint8_t status);
  void endScan(bool whole);
  void updateOldest();

  const DiskQueueOptions options_;
  const std::shared_ptr<DiskEvents> events_;
  const std::shared_ptr<Staging> staging_;
  const std::shared_ptr<std::atomic<uint64_t>> cpu_;
  DiskCounterSet counters_;
  std::vector<std::string> notes_;
  bool uring_ = false;
  /// Set before the thread serves, used by wake() from any thread until the thread has ended.
  std::unique_ptr<DiskBackend> backend_;

  std::mutex mutex_;
  std::condition_variable changed_;
  Mail mail_;                                          // guarded by mutex_
  std::unordered_map<uint32_t, size_t> open_;          // guarded by mutex_; items of each batch not told yet
  bool ready_ = false;                                 // guarded by mutex_
  std::optional<Failure> refused_;                     // guarded by mutex_; why there is no backend
  bool closing_ = false;                               // guarded by mutex_
  bool ended_ = false;                                 // guarded by mutex_; every batch has ended
  bool leftAlone_ = false;                             // guarded by mutex_; the device still owes answers
  std::thread thread_;                                 // JS thread
  /// Held while bytes go to or come from memory outside the staging; close() takes it to set abandoned_.
  std::mutex delivering_;
  bool abandoned_ = false;                             // guarded by delivering_

  // The coordinating thread's own.
  std::unordered_map<uint32_t, std::unique_ptr<DiskBatch>> batches_;
  std::array<std::deque<DiskBatch*>, kDiskPriorities> reads_;
  std::deque<DiskBatch*> writes_;
  std::deque<DiskBatch*> verifies_;
  std::deque<std::pair<std::shared_ptr<DiskScan>, std::function<void(bool)>>> scans_;
  StagingMap map_;
  std::deque<Operation> operations_;
  std::vector<uint32_t> freeOperations_;
  std::deque<DiskCompletion> landed_;
  std::vector<DiskCompletion> collected_;
  std::unordered_set<uint32_t> lostWrites_;            // slots
  std::unordered_set<const DiskSlab*> headersAtDevice_;  // slabs whose segment header is being written
  uint32_t readsAtDevice_ = 0;
  uint32_t writesAtDevice_ = 0;
  uint32_t othersAtDevice_ = 0;
  uint32_t lost_ = 0;
  int64_t writesWaitSince_ = 0;
  int64_t nextDeadline_ = INT64_MAX;
  /// Somebody uses this disk.
  bool asked_ = false;
};

}  // namespace cairn
