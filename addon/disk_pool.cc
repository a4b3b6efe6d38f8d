// Disk I/O by pread and pwrite on a pool of threads, where io_uring is refused. A thread that the device holds is
// lost until the device answers, so the pool grows up to its bound while operations wait.
#include <sys/mman.h>
#include <time.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "disk_io.h"

namespace cairn {
namespace {

constexpr size_t kHugePageBytes = 2u << 20;

/// What the threads share with the backend; it outlives the backend when a thread is stuck.
struct Pool {
  PoolOptions options;
  std::mutex mutex;
  std::condition_variable work;
  std::condition_variable ready;
  std::deque<DiskOperation> queue;      // guarded by mutex
  std::vector<DiskCompletion> ended;    // guarded by mutex
  uint32_t threads = 0;                 // guarded by mutex
  uint32_t idle = 0;                    // guarded by mutex
  bool woken = false;                   // guarded by mutex
  bool closed = false;                  // guarded by mutex
};

int32_t perform(const FileOperations& operations, const DiskOperation& operation) {
  const int fd = operation.file->file.get();
  const auto at = static_cast<off_t>(operation.offset);
  const ssize_t moved = operation.write ? operations.pwrite(fd, operation.buffer, operation.bytes, at)
                                        : operations.pread(fd, operation.buffer, operation.bytes, at);
  return moved < 0 ? -errno : static_cast<int32_t>(moved);
}

void work(const std::shared_ptr<Pool>& pool) {
  std::unique_lock lock(pool->mutex);
  for (;;) {
    pool->idle++;
    pool->work.wait(lock, [&] { return pool->closed || !pool->queue.empty(); });
    pool->idle--;
    if (pool->closed) break;
    DiskOperation operation = std::move(pool->queue.front());
    pool->queue.pop_front();
    lock.unlock();
    const int32_t result = perform(*pool->options.operations, operation);
    addThreadCpu(*pool->options.cpuMicroseconds);
    const uint32_t id = operation.id;
    operation.file.reset();
    lock.lock();
    pool->ended.push_back({id, result});
    pool->ready.notify_one();
  }
  pool->threads--;
  pool->ready.notify_one();
}

class PoolBackend : public DiskBackend {
 public:
  explicit PoolBackend(PoolOptions options) : pool_(std::make_shared<Pool>()) {
    CAIRN_ASSERT(options.threadsMax > 0, "a pool has threads");
    pool_->options = std::move(options);
  }

  /// Idle threads end; those inside an operation end when it does, holding file and memory until then.
  ~PoolBackend() override {
    std::unique_lock lock(pool_->mutex);
    pool_->closed = true;
    pool_->queue.clear();
    pool_->work.notify_all();
    pool_->ready.wait_for(lock, std::chrono::milliseconds(200), [this] { return pool_->threads == 0; });
  }

  void submit(const DiskOperation& operation) override {
    std::lock_guard lock(pool_->mutex);
    pool_->queue.push_back(operation);
    if (pool_->idle < pool_->queue.size() && pool_->threads < pool_->options.threadsMax && !grow()) return;
    pool_->work.notify_one();
  }

  void flush() override {}

  void wait(int64_t timeoutMicroseconds, std::vector<DiskCompletion>& ended) override {
    std::unique_lock lock(pool_->mutex);
    const auto due = [this] { return pool_->woken || !pool_->ended.empty(); };
    if (timeoutMicroseconds < 0) {
      pool_->ready.wait(lock, due);
    } else if (timeoutMicroseconds > 0) {
      pool_->ready.wait_for(lock, std::chrono::microseconds(timeoutMicroseconds), due);
    }
    pool_->woken = false;
    ended.insert(ended.end(), pool_->ended.begin(), pool_->ended.end());
    pool_->ended.clear();
  }

  void wake() override {
    std::lock_guard lock(pool_->mutex);
    pool_->woken = true;
    pool_->ready.notify_one();
  }

  void forget(const SegmentFile&) override {}

 private:
  /// One more thread. False when there is none at all, and the newest operation ended at once.
  bool grow() {
    try {
      startThread([pool = pool_] { work(pool); }).detach();
      pool_->threads++;
      return true;
    } catch (const Failure&) {
      // Those that there are will do; another one is tried with the next operation.
      if (pool_->threads > 0) return true;
    }
    pool_->ended.push_back({pool_->queue.back().id, -ENOMEM});
    pool_->queue.pop_back();
    return false;
  }

  std::shared_ptr<Pool> pool_;
};

}  // namespace

Staging::Staging(size_t bytes) : bytes_(bytes) {
  CAIRN_ASSERT(bytes > 0 && bytes % kSectorBytes == 0, "staging is in whole sectors");
  // Aligned for huge pages: a device then takes a block in few pieces, and in fewer requests.
  mappedBytes_ = roundUp(bytes, kHugePageBytes) + kHugePageBytes;
  mapped_ = mmap(nullptr, mappedBytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped_ == MAP_FAILED) failErrno("map staging memory");
  data_ = reinterpret_cast<uint8_t*>(roundUp(reinterpret_cast<uintptr_t>(mapped_), kHugePageBytes));
  static_cast<void>(madvise(data_, bytes, MADV_HUGEPAGE));
  static_cast<void>(madvise(data_, bytes, MADV_DONTDUMP));
}

Staging::~Staging() { munmap(mapped_, mappedBytes_); }

void addThreadCpu(std::atomic<uint64_t>& into) {
  static thread_local uint64_t last = 0;
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  const uint64_t total = static_cast<uint64_t>(now.tv_sec) * 1'000'000 + static_cast<uint64_t>(now.tv_nsec) / 1000;
  into.fetch_add(total - last, std::memory_order_relaxed);
  last = total;
}

std::unique_ptr<DiskBackend> makePoolBackend(PoolOptions options) {
  return std::make_unique<PoolBackend>(std::move(options));
}

}  // namespace cairn
