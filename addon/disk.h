// One device: its directory, its attached segments, its queues, and the slow work beside them (making segments,
// fdatasync, sorting a scan), each kind on a thread of its own so that none waits for another.
//
// All methods belong to the JS thread. Opening waits for the device, on a thread of its own that is let go when the
// device does not answer; closing waits for it a moment. Nothing else does.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "disk_batch.h"
#include "disk_queue.h"

namespace cairn {

/// A thread that does one thing after the other. close() gives up on a task that hangs: what the task holds goes when
/// it returns.
class DiskWorker {
 public:
  /// Begins the thread: what is posted later always runs. Throws EAGAIN.
  explicit DiskWorker(std::shared_ptr<std::atomic<uint64_t>> cpu);
  ~DiskWorker() { close(); }
  void post(std::function<void()> task);
  /// Tasks not begun are dropped, the one that runs is the last.
  void beginClose();
  /// The same, and waits for that one until then. Idempotent.
  void close(std::chrono::steady_clock::time_point until = std::chrono::steady_clock::now());

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable wake;
    std::condition_variable ended;
    std::deque<std::function<void()>> tasks;  // guarded by mutex
    bool closing = false;                     // guarded by mutex
    bool running = false;                     // guarded by mutex
    std::shared_ptr<std::atomic<uint64_t>> cpu;
  };
  static void run(const std::shared_ptr<State>& state);
  std::shared_ptr<State> state_;
};

struct DiskOptions {
  std::string directory;
  uint64_t segmentBytes;
  DiskMode mode;
  bool direct;
  uint32_t queueDepth;
  uint32_t writeDepth;
  size_t stagingBytes;
  std::shared_ptr<const FileOperations> operations = FileOperations::system();
  /// Writes that waited this long go before reads, once.
  int64_t writeWaitMicroseconds = 500'000;
  /// A device that leaves one step of the opening without an answer for this long is refused. More than the queue's
  /// own probe takes.
  uint32_t openMilliseconds = 3'000;
};

class Disk {
 public:
  /// Throws LOCKED, UNSAFE, FORMAT, ARGUMENT or an errno name: ETIMEDOUT for a device that hangs, whose directory
  /// stays LOCKED until it answers.
  Disk(const DiskOptions& options, EventHub& hub);
  ~Disk() { close(); }
  Disk(const Disk&) = delete;
  Disk& operator=(const Disk&) = delete;

  /// Ends everything; takes half a second when the device hangs, twice that when it hangs in the kernel. Idempotent.
  void close();

  const DiskDirectory& directory() const { return *directory_; }
  bool direct() const { return direct_; }
  bool uring() const { return queue_->uring(); }
  std::vector<std::string> notes() const;
  std::map<uint32_t, SegmentState> segments() const { return files_->list(); }

  void prepare(uint32_t segment, uint32_t task);
  void attach(uint32_t segment, uint32_t slab);
  void detach(uint32_t slab, bool remove);
  uint32_t assign(uint32_t slab, uint32_t payloadBytes);
  void release(uint32_t slab);
  void restore(uint32_t slot, uint32_t generation);
  uint32_t generation(uint32_t slot) const;

  /// Throws ARGUMENT for a slot that does not exist or is smaller than the payload.
  std::shared_ptr<DiskSlab> slabOf(uint32_t slot, uint32_t payloadBytes) const;
  void submit(std::unique_ptr<DiskBatch> batch) { queue_->submit(std::move(batch)); }
  void cancel(uint32_t batch) { queue_->cancel(batch); }
  void sync(uint32_t task);
  void scan(const Arena& arena, uint32_t task);
  /// Up to `count` headers of SCAN_WORDS words; 0 at the end, which ends the scan. Throws ARGUMENT without one.
  size_t scanRead(uint32_t* into, size_t count);

  const DiskCounterSet& counters() const { return queue_->counters(); }
  uint64_t cpuMicroseconds() const { return queue_->cpuMicroseconds()->load(std::memory_order_relaxed); }

 private:
  /// A failed fdatasync may have dropped what it could not write: the kernel then calls the pages clean, and the
  /// next call succeeds over lost data. So the first failure stands until the disk is opened anew.
  struct SyncState {
    std::atomic<int> error{0};
    std::atomic<bool> closing{false};
  };
  /// What an opening makes.
  struct Parts {
    std::shared_ptr<DiskDirectory> directory;
    std::shared_ptr<SegmentFiles> files;
    std::shared_ptr<DiskQueue> queue;
    std::unique_ptr<DiskWorker> preparer;
    std::unique_ptr<DiskWorker> syncer;
    std::unique_ptr<DiskWorker> sorter;
    std::vector<std::string> notes;
    bool direct = false;
  };
  struct Opening;
  static void makeParts(const DiskOptions& options, const std::shared_ptr<DiskEvents>& events, Parts& parts,
                        const std::function<void()>& step);
  static void runOpening(Opening& opening);
  Parts open(const DiskOptions& options);
  DiskSlab& attached(uint32_t slab) const;
  void checkIdle(const DiskSlab& slab) const;
  void fillGenerations(DiskSlab& slab);

  std::shared_ptr<DiskEvents> events_;
  std::shared_ptr<DiskDirectory> directory_;
  std::shared_ptr<const FileOperations> operations_;
  std::shared_ptr<SegmentFiles> files_;
  std::shared_ptr<DiskQueue> queue_;
  std::shared_ptr<SyncState> state_ = std::make_shared<SyncState>();
  std::map<uint32_t, std::shared_ptr<DiskSlab>> slabs_;
  std::shared_ptr<DiskScan> scan_;
  std::unique_ptr<DiskWorker> preparer_;
  std::unique_ptr<DiskWorker> syncer_;
  /// Shared with the scan: a queue that close() gave up on may end one when the disk has long gone.
  std::shared_ptr<DiskWorker> sorter_;
  std::vector<std::string> notes_;
  size_t stagingBytes_ = 0;
  bool direct_ = false;
  bool closed_ = false;
};

}  // namespace cairn
