// What lies in one device's directory: directory.cairn (identity and lock) and the segment files.
//
// directory.cairn, 4 KiB: magic, version, directory id, segment bytes, hash. Locked by flock for as long as
// anything of this directory is in use, operations that a stalled device never answered included.
// segment-NNNNNN.cairn: a 4 KiB header (magic, version, number, directory id, payload bytes of its slots,
// prepared flag, segment bytes, hash), then slots. A segment is made in this order: header with prepared = 0,
// fsync; space; every byte written once, so that later writes find no unwritten extents; fsync of file and
// directory; prepared = 1, fsync. Any change bumps kDiskFormat and test/golden/disk-segment-header.hex; magic, version
// and hash keep their places in every version, so that another version and a flipped bit are told apart.
//
// A file whose header does not verify, or that belongs to another directory, is left alone: never truncated,
// never deleted, its number not used. A file that is empty was made by an open that was cut short.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common.h"
#include "disk_slot.h"

namespace cairn {

constexpr uint32_t kDiskFormat = 1;
constexpr uint64_t kSegmentBytesMin = 1u << 20;
/// EINTR and EAGAIN in a row before an operation fails with EIO.
constexpr uint32_t kAskAgainMax = 100;

/// The system calls that touch payload, as a table, so that tests can make them fail, tear or never return.
/// Each answers as its system call does (-1 and errno).
struct FileOperations {
  std::function<ssize_t(int, void*, size_t, off_t)> pread;
  std::function<ssize_t(int, const void*, size_t, off_t)> pwrite;
  std::function<int(int)> fdatasync;
  std::function<int(int, off_t, off_t)> fallocate;
  static std::shared_ptr<const FileOperations> system();
};

struct SegmentHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t segment;
  uint8_t directoryId[kDirectoryIdBytes];
  /// Payload bytes a slot serves, 0 = free.
  uint32_t payloadBytes;
  uint32_t prepared;
  uint64_t segmentBytes;
  uint64_t hash;
};
static_assert(sizeof(SegmentHeader) == 56);

SegmentHeader makeSegmentHeader(uint32_t segment, const uint8_t* directoryId, uint32_t payloadBytes,
                                bool prepared, uint64_t segmentBytes);
/// kOtherVersion: intact, and of another version. A header whose hash does not hold is damaged, whatever it says.
enum class SegmentHeaderState { kValid, kDamaged, kOtherVersion };
SegmentHeaderState segmentHeaderState(const SegmentHeader& header);

/// Slots a segment holds for a payload; 0 when not even one fits.
uint32_t slotsPerSegment(uint64_t segmentBytes, uint32_t payloadBytes);

/// The locked directory.
class DiskDirectory {
 public:
  /// Makes or reads directory.cairn. Throws LOCKED, UNSAFE, FORMAT or an errno name.
  static std::shared_ptr<DiskDirectory> open(const std::string& path, uint64_t segmentBytes);

  const std::string& path() const { return path_; }
  const uint8_t* id() const { return id_; }
  uint64_t segmentBytes() const { return segmentBytes_; }
  bool reopened() const { return reopened_; }
  std::string identityPath() const { return path_ + "/directory.cairn"; }
  std::string segmentPath(uint32_t segment) const;
  /// Makes created and removed names durable. 0 or an errno.
  int sync() const;

 private:
  void checkDirectory();
  void openIdentity();
  bool readIdentity();
  void writeIdentity();

  std::string path_;
  Descriptor directory_;
  Descriptor identity_;
  uint8_t id_[kDirectoryIdBytes] = {};
  uint64_t segmentBytes_ = 0;
  bool reopened_ = false;
};

/// One open segment file. Closed with its last user, so that a descriptor number is never used again while a
/// thread is still about to use it.
class SegmentFile {
 public:
  SegmentFile(std::shared_ptr<DiskDirectory> directory, uint32_t segment, Descriptor file)
      : directory(std::move(directory)), segment(segment), file(std::move(file)) {}
  const std::shared_ptr<DiskDirectory> directory;
  const uint32_t segment;
  const Descriptor file;
  /// Written since the last sync; set before the write's completion is told.
  std::atomic<bool> dirty{false};
};

struct SegmentState {
  std::shared_ptr<SegmentFile> file;
  uint32_t payloadBytes = 0;
  bool prepared = false;
  bool preparing = false;
};

/// The segments of a directory; used by the JS thread and the thread that prepares.
class SegmentFiles {
 public:
  /// Reads the headers of all segment files; `step` is called after each. Throws FORMAT for another version.
  SegmentFiles(std::shared_ptr<DiskDirectory> directory, std::shared_ptr<const FileOperations> operations,
               bool direct, const std::function<void()>& step);

  std::map<uint32_t, SegmentState> list() const;
  SegmentState get(uint32_t segment) const;
  void setPayloadBytes(uint32_t segment, uint32_t payloadBytes);
  /// Throws ARGUMENT when it is prepared or not ours, BUSY when it is being prepared.
  void beginPrepare(uint32_t segment);
  /// Makes and writes the file. `step(bytes done)` is called now and then; false ends it with ECANCELED and leaves
  /// the file to be prepared again. Returns 0 or an errno; after any other error the file is gone.
  int prepare(uint32_t segment, const std::function<bool(uint64_t)>& step);
  /// Deletes a file that is in the list. Throws an errno name.
  void remove(uint32_t segment);
  const std::vector<std::string>& notes() const { return notes_; }
  const std::shared_ptr<DiskDirectory>& directory() const { return directory_; }

 private:
  void add(uint32_t segment);
  Descriptor openSegment(const std::string& path, int flags) const;
  int writeAll(const SegmentFile& file, const std::function<bool(uint64_t)>& step) const;
  int writeHeader(const SegmentFile& file, uint32_t payloadBytes, bool prepared) const;
  int makeFile(uint32_t segment, std::shared_ptr<SegmentFile>& file);

  const std::shared_ptr<DiskDirectory> directory_;
  const std::shared_ptr<const FileOperations> operations_;
  const bool direct_;
  mutable std::mutex mutex_;
  std::map<uint32_t, SegmentState> segments_;  // guarded by mutex_
  std::vector<std::string> notes_;             // constructor only
};

/// Memory for O_DIRECT, zeroed, in whole sectors.
class SectorBuffer {
 public:
  explicit SectorBuffer(size_t bytes);
  ~SectorBuffer();
  SectorBuffer(const SectorBuffer&) = delete;
  SectorBuffer& operator=(const SectorBuffer&) = delete;
  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_;
};

/// Whether reads and writes with O_DIRECT work in this directory, tried with real ones; else a note.
bool probeDirect(const DiskDirectory& directory, std::vector<std::string>& notes);

}  // namespace cairn
