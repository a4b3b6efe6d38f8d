// How a disk's coordinating thread gets bytes to and from the device: a seam with two sides, io_uring
// (disk_uring.cc) and a pool of threads (disk_pool.cc). A backend moves what it is told and judges nothing:
// short and failed operations are the queue's to handle.
//
// Whatever the device does, an operation's file and memory live until the device has answered: operations hold
// both, so a disk can be closed while a stalled device sits on them.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "disk_file.h"

namespace cairn {

/// One mapping that all disk I/O goes through; unmapped with its last user. Its pages come as they are used: to touch
/// them all takes long enough to be missed at a start.
class Staging {
 public:
  /// Throws an errno name.
  explicit Staging(size_t bytes);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* mapped_;
  size_t mappedBytes_;
  uint8_t* data_;
  size_t bytes_;
};

struct DiskOperation {
  uint32_t id;
  bool write;
  std::shared_ptr<SegmentFile> file;
  uint8_t* buffer;
  uint32_t bytes;
  uint64_t offset;
};

struct DiskCompletion {
  uint32_t id;
  /// Bytes moved, or a negative errno.
  int32_t result;
};

/// Adds the CPU time of the calling thread since its last call to `into`.
void addThreadCpu(std::atomic<uint64_t>& into);

/// All but wake() is called by the coordinating thread alone.
class DiskBackend {
 public:
  virtual ~DiskBackend() = default;
  /// Begins at the next flush() at the latest.
  virtual void submit(const DiskOperation& operation) = 0;
  virtual void flush() = 0;
  /// Appends what has ended; waits for the first one up to the timeout (-1: for ever), or for wake().
  virtual void wait(int64_t timeoutMicroseconds, std::vector<DiskCompletion>& ended) = 0;
  virtual void wake() = 0;
  /// The file will not be used again.
  virtual void forget(const SegmentFile& file) = 0;
  /// A short step of set-up that is not needed to serve, for moments without anything else to do; false when none
  /// is left.
  virtual bool prepareMore() { return false; }
  virtual bool registeredBuffers() const { return false; }
};

struct PoolOptions {
  std::shared_ptr<const FileOperations> operations;
  std::shared_ptr<Staging> staging;
  /// Started as needed. Some are spare, for those that a stalled device holds.
  uint32_t threadsMax;
  /// CPU time of the threads, microseconds; outlives the backend.
  std::shared_ptr<std::atomic<uint64_t>> cpuMicroseconds;
};
std::unique_ptr<DiskBackend> makePoolBackend(PoolOptions options);

struct UringOptions {
  std::shared_ptr<Staging> staging;
  uint32_t entries;
  /// The file of the real read (4 KiB at 0) that the ring must pass.
  std::shared_ptr<SegmentFile> probe;
  int64_t probeMicroseconds;
};

/// The ring belongs to the calling thread, which alone may use it. Tries a real read before it returns; nullptr and a
/// note when io_uring or the read is refused. Lesser refusals leave a note, too. Throws ETIMEDOUT when the device does
/// not answer: threads would wait for it as well.
std::unique_ptr<DiskBackend> makeUringBackend(UringOptions options, std::vector<std::string>& notes);

}  // namespace cairn
