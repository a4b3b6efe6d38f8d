#include "disk_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include <xxhash.h>

namespace cairn {
namespace {

constexpr uint64_t kIdentityMagic = 0x3152494443524143;  // "CARCDIR1"
constexpr uint64_t kSegmentMagic = 0x3147455343524143;   // "CARCSEG1"
constexpr uint64_t kPrepareBytes = 2u << 20;
constexpr uint32_t kSegmentsMax = 1'000'000;

struct Identity {
  uint64_t magic;
  uint32_t version;
  uint32_t reserved;
  uint8_t id[kDirectoryIdBytes];
  uint64_t segmentBytes;
  uint64_t hash;
};
static_assert(sizeof(Identity) == 48);

uint64_t hashOf(const void* record, size_t bytes) { return XXH3_64bits(record, bytes - sizeof(uint64_t)); }

bool allZero(const uint8_t* bytes, size_t count) {
  return std::all_of(bytes, bytes + count, [](uint8_t byte) { return byte == 0; });
}

/// Ours, a plain file and nobody else's to touch; throws UNSAFE otherwise.
void checkFile(int fd, const std::string& path) {
  struct stat status;
  if (fstat(fd, &status) != 0) failErrno("fstat " + path);
  if (!S_ISREG(status.st_mode)) fail("UNSAFE", path + " is not a regular file");
  if (status.st_uid != geteuid()) fail("UNSAFE", path + " belongs to another user");
  if ((status.st_mode & 07777) != 0600) fail("UNSAFE", path + " must have mode 0600");
}

/// The number in segment-NNNNNN.cairn; false for any other name.
bool segmentNumber(const char* name, uint32_t& number) {
  unsigned value = 0;
  int used = 0;
  if (sscanf(name, "segment-%6u.cairn%n", &value, &used) != 1 || used != 20) return false;
  if (strlen(name) != 20 || value >= kSegmentsMax) return false;
  number = value;
  return true;
}

}  // namespace

std::shared_ptr<const FileOperations> FileOperations::system() {
  static const auto table = std::make_shared<const FileOperations>(FileOperations{
      ::pread, ::pwrite, ::fdatasync,
      [](int fd, off_t at, off_t bytes) { return ::fallocate(fd, 0, at, bytes); }});
  return table;
}

SegmentHeader makeSegmentHeader(uint32_t segment, const uint8_t* directoryId, uint32_t payloadBytes,
                                bool prepared, uint64_t segmentBytes) {
  SegmentHeader header{};
  header.magic = kSegmentMagic;
  header.version = kDiskFormat;
  header.segment = segment;
  memcpy(header.directoryId, directoryId, kDirectoryIdBytes);
  header.payloadBytes = payloadBytes;
  header.prepared = prepared ? 1 : 0;
  header.segmentBytes = segmentBytes;
  header.hash = hashOf(&header, sizeof header);
  return header;
}

SegmentHeaderState segmentHeaderState(const SegmentHeader& header) {
  const bool holds = header.hash == hashOf(&header, sizeof header);
  if (header.magic != kSegmentMagic || !holds) return SegmentHeaderState::kDamaged;
  return header.version == kDiskFormat ? SegmentHeaderState::kValid : SegmentHeaderState::kOtherVersion;
}

uint32_t slotsPerSegment(uint64_t segmentBytes, uint32_t payloadBytes) {
  if (payloadBytes == 0 || segmentBytes <= kSectorBytes) return 0;
  const uint64_t slots = (segmentBytes - kSectorBytes) / diskSlotBytes(payloadBytes);
  return static_cast<uint32_t>(std::min<uint64_t>(slots, kSlotsPerSlabMax));
}

SectorBuffer::SectorBuffer(size_t bytes)
    : data_(static_cast<uint8_t*>(aligned_alloc(kSectorBytes, roundUp(bytes, kSectorBytes)))) {
  if (data_ == nullptr) throw std::bad_alloc();
  memset(data_, 0, roundUp(bytes, kSectorBytes));
}

SectorBuffer::~SectorBuffer() { free(data_); }

// ---- the directory --------------------------------------------------------------------------------------

std::shared_ptr<DiskDirectory> DiskDirectory::open(const std::string& path, uint64_t segmentBytes) {
  if (segmentBytes < kSegmentBytesMin || segmentBytes % kSectorBytes != 0) {
    fail("ARGUMENT", "segmentBytes must be a multiple of 4096, at least 1 MiB");
  }
  auto directory = std::make_shared<DiskDirectory>();
  directory->path_ = path;
  directory->segmentBytes_ = segmentBytes;
  directory->checkDirectory();
  directory->openIdentity();
  directory->reopened_ = directory->readIdentity();
  if (!directory->reopened_) directory->writeIdentity();
  return directory;
}

std::string DiskDirectory::segmentPath(uint32_t segment) const {
  CAIRN_ASSERT(segment < kSegmentsMax, "a segment number has six digits");
  char name[32];
  snprintf(name, sizeof name, "/segment-%06u.cairn", segment);
  return path_ + name;
}

int DiskDirectory::sync() const { return fsync(directory_.get()) == 0 ? 0 : errno; }

void DiskDirectory::checkDirectory() {
  directory_ = Descriptor(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!directory_) {
    if (errno == ELOOP) fail("UNSAFE", path_ + " is a symbolic link");
    failErrno("open " + path_);
  }
  struct stat status;
  if (fstat(directory_.get(), &status) != 0) failErrno("fstat " + path_);
  if (status.st_uid != geteuid()) fail("UNSAFE", path_ + " belongs to another user");
  if ((status.st_mode & 077) != 0) fail("UNSAFE", path_ + " must have mode 0700");
}

void DiskDirectory::openIdentity() {
  const std::string path = identityPath();
  identity_ = Descriptor(::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600));
  if (!identity_) {
    if (errno == ELOOP) fail("UNSAFE", path + " is a symbolic link");
    failErrno("open " + path);
  }
  checkFile(identity_.get(), path);
  if (flock(identity_.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) fail("LOCKED", path + " is in use by another process");
    failErrno("flock " + path);
  }
  // Between open and flock the file may have been replaced: then this lock guards nothing.
  struct stat mine;
  struct stat named;
  if (fstat(identity_.get(), &mine) != 0) failErrno("fstat " + path);
  if (lstat(path.c_str(), &named) != 0 || named.st_ino != mine.st_ino || named.st_dev != mine.st_dev) {
    fail("LOCKED", path + " was replaced while it was opened");
  }
}

/// False when the file is new: empty, or zeroes of an open that was cut short.
bool DiskDirectory::readIdentity() {
  uint8_t bytes[kSectorBytes] = {};
  const ssize_t got = pread(identity_.get(), bytes, sizeof bytes, 0);
  if (got < 0) failErrno("read " + identityPath());
  if (allZero(bytes, sizeof bytes)) return false;
  Identity identity;
  memcpy(&identity, bytes, sizeof identity);
  if (identity.magic != kIdentityMagic) fail("FORMAT", identityPath() + " is damaged, or not a disk's identity");
  if (identity.hash != hashOf(&identity, sizeof identity)) fail("FORMAT", identityPath() + " is damaged");
  if (identity.version != kDiskFormat) {
    fail("FORMAT", identityPath() + " has format version " + std::to_string(identity.version));
  }
  if (identity.segmentBytes < kSegmentBytesMin || identity.segmentBytes % kSectorBytes != 0) {
    fail("FORMAT", identityPath() + " contradicts itself");
  }
  memcpy(id_, identity.id, sizeof id_);
  segmentBytes_ = identity.segmentBytes;
  return true;
}

void DiskDirectory::writeIdentity() {
  if (getrandom(id_, sizeof id_, 0) != sizeof id_) failErrno("getrandom");
  Identity identity{};
  identity.magic = kIdentityMagic;
  identity.version = kDiskFormat;
  memcpy(identity.id, id_, sizeof id_);
  identity.segmentBytes = segmentBytes_;
  identity.hash = hashOf(&identity, sizeof identity);
  uint8_t bytes[kSectorBytes] = {};
  memcpy(bytes, &identity, sizeof identity);
  const ssize_t put = pwrite(identity_.get(), bytes, sizeof bytes, 0);
  if (put != static_cast<ssize_t>(sizeof bytes)) failErrno("write " + identityPath(), put < 0 ? errno : ENOSPC);
  if (fsync(identity_.get()) != 0) failErrno("fsync " + identityPath());
  const int error = sync();
  if (error != 0) failErrno("fsync " + path_, error);
}

// ---- segments -------------------------------------------------------------------------------------------

SegmentFiles::SegmentFiles(std::shared_ptr<DiskDirectory> directory,
                           std::shared_ptr<const FileOperations> operations, bool direct,
                           const std::function<void()>& step)
    : directory_(std::move(directory)), operations_(std::move(operations)), direct_(direct) {
  DIR* names = opendir(directory_->path().c_str());
  if (names == nullptr) failErrno("read " + directory_->path());
  std::vector<uint32_t> numbers;
  while (const dirent* entry = readdir(names)) {
    uint32_t number = 0;
    if (segmentNumber(entry->d_name, number)) numbers.push_back(number);
  }
  closedir(names);
  std::sort(numbers.begin(), numbers.end());
  for (const uint32_t number : numbers) {
    add(number);
    step();
  }
}

Descriptor SegmentFiles::openSegment(const std::string& path, int flags) const {
  // Without O_NONBLOCK: io_uring would answer EAGAIN where a file system cannot begin an operation at once.
  flags |= O_RDWR | O_NOFOLLOW | O_CLOEXEC | (direct_ ? O_DIRECT : 0);
  const int fd = ::open(path.c_str(), flags | O_NOATIME, 0600);
  return Descriptor(fd < 0 && errno == EPERM ? ::open(path.c_str(), flags, 0600) : fd);
}

/// Takes a file into the list, or a note why it is left alone.
void SegmentFiles::add(uint32_t segment) {
  const std::string path = directory_->segmentPath(segment);
  Descriptor fd = openSegment(path, 0);
  if (!fd) {
    notes_.push_back(path + " is left alone: " + strerrordesc_np(errno));
    return;
  }
  checkFile(fd.get(), path);
  struct stat status;
  if (fstat(fd.get(), &status) != 0) failErrno("fstat " + path);
  SegmentState state;
  if (status.st_size > 0) {
    SectorBuffer bytes(kSectorBytes);
    if (operations_->pread(fd.get(), bytes.data(), kSectorBytes, 0) != static_cast<ssize_t>(kSectorBytes)) {
      notes_.push_back(path + " is left alone: its header cannot be read");
      return;
    }
    SegmentHeader header;
    memcpy(&header, bytes.data(), sizeof header);
    const SegmentHeaderState verdict = segmentHeaderState(header);
    if (verdict == SegmentHeaderState::kOtherVersion) {
      fail("FORMAT", path + " has format version " + std::to_string(header.version));
    }
    const bool ours = verdict == SegmentHeaderState::kValid && header.segment == segment &&
                      header.segmentBytes == directory_->segmentBytes() &&
                      memcmp(header.directoryId, directory_->id(), kDirectoryIdBytes) == 0;
    if (!ours) {
      notes_.push_back(path + " is left alone: its header is damaged or names another directory");
      return;
    }
    const bool whole = static_cast<uint64_t>(status.st_size) >= directory_->segmentBytes();
    state.prepared = header.prepared == 1 && whole;
    state.payloadBytes = state.prepared ? header.payloadBytes : 0;
  }
  state.file = std::make_shared<SegmentFile>(directory_, segment, std::move(fd));
  segments_.emplace(segment, std::move(state));
}

std::map<uint32_t, SegmentState> SegmentFiles::list() const {
  std::lock_guard lock(mutex_);
  return segments_;
}

SegmentState SegmentFiles::get(uint32_t segment) const {
  std::lock_guard lock(mutex_);
  const auto found = segments_.find(segment);
  if (found == segments_.end()) fail("ARGUMENT", "no such segment: " + std::to_string(segment));
  return found->second;
}

void SegmentFiles::setPayloadBytes(uint32_t segment, uint32_t payloadBytes) {
  std::lock_guard lock(mutex_);
  const auto found = segments_.find(segment);
  CAIRN_ASSERT(found != segments_.end(), "an attached segment is in the list");
  found->second.payloadBytes = payloadBytes;
}

void SegmentFiles::beginPrepare(uint32_t segment) {
  if (segment >= kSegmentsMax) fail("ARGUMENT", "a segment number has six digits");
  std::lock_guard lock(mutex_);
  const auto found = segments_.find(segment);
  if (found != segments_.end() && found->second.prepared) fail("ARGUMENT", "the segment is prepared");
  if (found != segments_.end() && found->second.preparing) fail("BUSY", "the segment is being prepared");
  segments_[segment].preparing = true;
}

int SegmentFiles::writeHeader(const SegmentFile& file, uint32_t payloadBytes, bool prepared) const {
  SectorBuffer bytes(kSectorBytes);
  const SegmentHeader header =
      makeSegmentHeader(file.segment, directory_->id(), payloadBytes, prepared, directory_->segmentBytes());
  memcpy(bytes.data(), &header, sizeof header);
  const ssize_t put = operations_->pwrite(file.file.get(), bytes.data(), kSectorBytes, 0);
  if (put < 0) return errno;
  if (put != static_cast<ssize_t>(kSectorBytes)) return EIO;
  return operations_->fdatasync(file.file.get()) == 0 ? 0 : errno;
}

/// A new file, or one of ours that was never finished, with its first header on disk. 0 or an errno.
int SegmentFiles::makeFile(uint32_t segment, std::shared_ptr<SegmentFile>& file) {
  if (file == nullptr) {
    const std::string path = directory_->segmentPath(segment);
    // A name that is taken belongs to a file that was left alone: EEXIST.
    Descriptor fd = openSegment(path, O_CREAT | O_EXCL);
    if (!fd) return errno;
    file = std::make_shared<SegmentFile>(directory_, segment, std::move(fd));
    std::lock_guard lock(mutex_);
    segments_[segment].file = file;
  }
  return writeHeader(*file, 0, false);
}

int SegmentFiles::writeAll(const SegmentFile& file, const std::function<bool(uint64_t)>& step) const {
  const uint64_t total = directory_->segmentBytes();
  const int fd = file.file.get();
  if (operations_->fallocate(fd, 0, static_cast<off_t>(total)) != 0 && errno != EOPNOTSUPP) return errno;
  SectorBuffer zeroes(kPrepareBytes);
  uint32_t again = 0;
  for (uint64_t at = kSectorBytes; at < total;) {
    if (!step(at)) return ECANCELED;
    const uint64_t bytes = std::min(kPrepareBytes - at % kPrepareBytes, total - at);
    const ssize_t put = operations_->pwrite(fd, zeroes.data(), bytes, static_cast<off_t>(at));
    if (put < 0 && (errno == EINTR || errno == EAGAIN)) {
      if (++again > kAskAgainMax) return EIO;
      continue;
    }
    if (put < 0) return errno;
    again = 0;
    const uint64_t done = static_cast<uint64_t>(put) / kSectorBytes * kSectorBytes;
    if (done == 0) return EIO;
    at += done;
  }
  return operations_->fdatasync(fd) == 0 ? 0 : errno;
}

int SegmentFiles::prepare(uint32_t segment, const std::function<bool(uint64_t)>& step) {
  std::shared_ptr<SegmentFile> file = get(segment).file;
  int error = makeFile(segment, file);
  if (error == 0) error = writeAll(*file, step);
  if (error == 0) error = directory_->sync();
  if (error == 0) error = writeHeader(*file, 0, true);
  std::lock_guard lock(mutex_);
  SegmentState& state = segments_[segment];
  state.preparing = false;
  state.prepared = error == 0;
  if (error == 0 || error == ECANCELED) return error;
  if (file != nullptr) static_cast<void>(unlink(directory_->segmentPath(segment).c_str()));
  segments_.erase(segment);
  return error;
}

void SegmentFiles::remove(uint32_t segment) {
  std::lock_guard lock(mutex_);
  const auto found = segments_.find(segment);
  if (found == segments_.end()) fail("ARGUMENT", "no such segment: " + std::to_string(segment));
  if (found->second.preparing) fail("BUSY", "the segment is being prepared");
  const std::string path = directory_->segmentPath(segment);
  struct stat mine;
  struct stat named;
  // The name must still mean the file that was verified at open.
  if (fstat(found->second.file->file.get(), &mine) != 0) failErrno("fstat " + path);
  if (lstat(path.c_str(), &named) != 0) failErrno("remove " + path);
  if (named.st_ino != mine.st_ino || named.st_dev != mine.st_dev) fail("UNSAFE", path + " was replaced");
  if (unlink(path.c_str()) != 0) failErrno("remove " + path);
  segments_.erase(found);
}

bool probeDirect(const DiskDirectory& directory, std::vector<std::string>& notes) {
  const auto refuse = [&](const char* what) {
    notes.push_back(std::string("O_DIRECT does not work here, I/O is buffered: ") + what + ": " +
                    strerrordesc_np(errno));
    return false;
  };
  SectorBuffer bytes(kSectorBytes);
  Descriptor reader(::open(directory.identityPath().c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  if (!reader) return refuse("open");
  if (pread(reader.get(), bytes.data(), kSectorBytes, 0) != static_cast<ssize_t>(kSectorBytes)) return refuse("read");
  std::string path = directory.path() + "/.probe-XXXXXX";
  Descriptor scratch(mkostemp(path.data(), O_DIRECT | O_CLOEXEC));
  if (!scratch) return refuse("open");
  static_cast<void>(unlink(path.c_str()));
  const ssize_t put = pwrite(scratch.get(), bytes.data(), kSectorBytes, 0);
  // A file system that is full says nothing against O_DIRECT.
  if (put < 0 && errno != ENOSPC && errno != EDQUOT) return refuse("write");
  return true;
}

}  // namespace cairn
