// Disk I/O by io_uring, straight on the kernel's interface. One ring a disk, owned by its coordinating thread;
// the staging area is one registered buffer and segment files are registered, which saves most of the CPU cost of
// an operation. What a kernel or a sandbox refuses is done without, step by step, each with a note.
//
// Registering a buffer pins all of it, and pages that were never touched are made on the way: too long for an open,
// and for a read that waits. So the ring serves with unregistered buffers at first; when the thread has work but
// waits for the device, it touches the staging area piece by piece, and registers it at the end. Writes that come
// faster than they can be encoded put that off until they pause: their thread then has no time to wait.
#include <linux/io_uring.h>
#include <linux/time_types.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>

#include "disk_io.h"
#include "populate.h"

#ifndef IORING_SETUP_COOP_TASKRUN
#define IORING_SETUP_COOP_TASKRUN (1U << 8)
#endif
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif

namespace cairn {
namespace {

constexpr uint64_t kWakeTag = UINT64_MAX;
constexpr uint64_t kProbeTag = UINT64_MAX - 1;
constexpr uint32_t kFilesMax = 4096;
constexpr int32_t kNoFile = -1;
constexpr useconds_t kRefusedMicroseconds = 1000;
/// What is touched at a time; one huge page.
constexpr size_t kTouchBytes = 2u << 20;

/// Memory that the device may yet write to, at any time: nobody's any more, and never given back.
void keepForEver(std::unique_ptr<SectorBuffer> sector) {
  static std::mutex mutex;
  static auto& kept = *new std::vector<std::unique_ptr<SectorBuffer>>();
  std::lock_guard lock(mutex);
  kept.push_back(std::move(sector));
}

class UringBackend : public DiskBackend {
 public:
  explicit UringBackend(std::shared_ptr<Staging> staging) : staging_(std::move(staging)) {}

  ~UringBackend() override {
    for (const auto& [at, bytes] : mappings_) munmap(at, bytes);
  }

  /// 0 or an errno.
  int open(uint32_t entries, std::vector<std::string>& notes);
  /// A real read through the ring; bytes or a negative errno. -ETIME: the read is still at the device, and the ring
  /// must not be used again.
  int32_t probe(const SegmentFile& file, int64_t limitMicroseconds);

  void submit(const DiskOperation& operation) override;
  void flush() override { enter(0, 0); }
  void wait(int64_t timeoutMicroseconds, std::vector<DiskCompletion>& ended) override;
  void wake() override {
    const uint64_t one = 1;
    static_cast<void>(!::write(wakeFile_.get(), &one, sizeof one));
  }
  void forget(const SegmentFile& file) override;
  bool prepareMore() override;
  bool registeredBuffers() const override { return registeredBuffers_; }

 private:
  int setup(uint32_t entries, uint32_t flags);
  int map();
  void foreseeBuffers(std::vector<std::string>& notes);
  void registerFiles(std::vector<std::string>& notes);
  int updateFile(uint32_t slot, int32_t fd);
  int32_t fileSlot(const SegmentFile& file);
  io_uring_sqe& next();
  void armWake();
  void enter(uint32_t complete, int64_t timeoutMicroseconds);
  bool reap(std::vector<DiskCompletion>& ended);

  const std::shared_ptr<Staging> staging_;
  Descriptor ring_;
  Descriptor wakeFile_;
  uint64_t wakeValue_ = 0;
  bool wakeArmed_ = false;
  /// What the probe was answered.
  std::optional<int32_t> probed_;
  io_uring_params params_{};
  std::vector<std::pair<void*, size_t>> mappings_;
  uint8_t* rings_ = nullptr;
  io_uring_sqe* sqes_ = nullptr;
  uint32_t tail_ = 0;
  uint32_t unsubmitted_ = 0;
  bool registeredBuffers_ = false;
  /// Bytes of the staging area whose pages are there.
  size_t touched_ = 0;
  std::vector<uint32_t> freeSlots_;
  std::unordered_map<const SegmentFile*, uint32_t> slots_;

  uint32_t* word(uint32_t offset) const { return reinterpret_cast<uint32_t*>(rings_ + offset); }
};

int UringBackend::setup(uint32_t entries, uint32_t flags) {
  params_ = {};
  params_.flags = flags | IORING_SETUP_CLAMP;
  const long fd = syscall(SYS_io_uring_setup, entries, &params_);
  if (fd < 0) return errno;
  ring_ = Descriptor(static_cast<int>(fd));
  return 0;
}

int UringBackend::map() {
  constexpr uint32_t kNeeded = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG;
  if ((params_.features & kNeeded) != kNeeded) return EOPNOTSUPP;
  const size_t sqBytes = params_.sq_off.array + params_.sq_entries * sizeof(uint32_t);
  const size_t cqBytes = params_.cq_off.cqes + params_.cq_entries * sizeof(io_uring_cqe);
  const auto mapped = [&](size_t bytes, off_t offset) -> void* {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring_.get(), offset);
    if (at == MAP_FAILED) return nullptr;
    mappings_.emplace_back(at, bytes);
    return at;
  };
  rings_ = static_cast<uint8_t*>(mapped(std::max(sqBytes, cqBytes), IORING_OFF_SQ_RING));
  sqes_ = static_cast<io_uring_sqe*>(mapped(params_.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES));
  return rings_ == nullptr || sqes_ == nullptr ? ENOMEM : 0;
}

int UringBackend::open(uint32_t entries, std::vector<std::string>& notes) {
  wakeFile_ = Descriptor(eventfd(0, EFD_CLOEXEC));
  if (!wakeFile_) return errno;
  int error = setup(entries, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN);
  if (error == EINVAL) {
    notes.push_back("this kernel's io_uring knows no single issuer or no cooperative task running");
    error = setup(entries, 0);
  }
  if (error == 0) error = map();
  if (error != 0) return error;
  foreseeBuffers(notes);
  registerFiles(notes);
  return 0;
}

/// Whether the staging area is to be registered, as far as that can be known before it is tried.
void UringBackend::foreseeBuffers(std::vector<std::string>& notes) {
  // Kernels before 5.13 register a buffer only when nothing is at the device.
  if ((params_.features & IORING_FEAT_RSRC_TAGS) == 0) {
    notes.push_back("this kernel's io_uring registers no buffers while it is in use");
    touched_ = staging_->bytes();
    return;
  }
  rlimit limit{};
  if (geteuid() == 0 || getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur >= staging_->bytes()) return;
  notes.push_back("RLIMIT_MEMLOCK is less than the staging memory: io_uring may register no buffers");
}

bool UringBackend::prepareMore() {
  if (touched_ == staging_->bytes()) return false;
  const size_t bytes = std::min(kTouchBytes, staging_->bytes() - touched_);
  const bool there = populateRange(staging_->data() + touched_, bytes) == 0;
  touched_ = there ? touched_ + bytes : staging_->bytes();
  if (!there || touched_ < staging_->bytes()) return there;
  const iovec whole{staging_->data(), staging_->bytes()};
  registeredBuffers_ = syscall(SYS_io_uring_register, ring_.get(), IORING_REGISTER_BUFFERS, &whole, 1) == 0;
  return false;
}

void UringBackend::registerFiles(std::vector<std::string>& notes) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) limit.rlim_cur = 64;
  const auto count = static_cast<uint32_t>(std::min<uint64_t>(limit.rlim_cur, kFilesMax));
  const std::vector<int32_t> none(count, kNoFile);
  if (syscall(SYS_io_uring_register, ring_.get(), IORING_REGISTER_FILES, none.data(), count) != 0) {
    notes.push_back(std::string("io_uring registers no files here: ") + strerrordesc_np(errno));
    return;
  }
  for (uint32_t slot = count; slot > 0; slot--) freeSlots_.push_back(slot - 1);
}

int UringBackend::updateFile(uint32_t slot, int32_t fd) {
  io_uring_files_update update{};
  update.offset = slot;
  update.fds = reinterpret_cast<uint64_t>(&fd);
  return syscall(SYS_io_uring_register, ring_.get(), IORING_REGISTER_FILES_UPDATE, &update, 1) == 1 ? 0 : errno;
}

/// The registered slot of a file, kNoFile where it must go by its descriptor.
int32_t UringBackend::fileSlot(const SegmentFile& file) {
  const auto found = slots_.find(&file);
  if (found != slots_.end()) return static_cast<int32_t>(found->second);
  if (freeSlots_.empty()) return kNoFile;
  const uint32_t slot = freeSlots_.back();
  if (updateFile(slot, file.file.get()) != 0) return kNoFile;
  freeSlots_.pop_back();
  slots_.emplace(&file, slot);
  return static_cast<int32_t>(slot);
}

void UringBackend::forget(const SegmentFile& file) {
  const auto found = slots_.find(&file);
  if (found == slots_.end()) return;
  // A slot that cannot be emptied is not used again; the file stays open in the kernel until the ring goes.
  if (updateFile(found->second, kNoFile) == 0) freeSlots_.push_back(found->second);
  slots_.erase(found);
}

/// The next free submission entry, zeroed.
io_uring_sqe& UringBackend::next() {
  while (tail_ - __atomic_load_n(word(params_.sq_off.head), __ATOMIC_ACQUIRE) >= params_.sq_entries) flush();
  const uint32_t index = tail_ & *word(params_.sq_off.ring_mask);
  word(params_.sq_off.array)[index] = index;
  io_uring_sqe& entry = sqes_[index];
  memset(&entry, 0, sizeof entry);
  tail_++;
  unsubmitted_++;
  return entry;
}

void UringBackend::submit(const DiskOperation& operation) {
  const int32_t slot = fileSlot(*operation.file);
  io_uring_sqe& entry = next();
  if (registeredBuffers_) {
    entry.opcode = operation.write ? IORING_OP_WRITE_FIXED : IORING_OP_READ_FIXED;
  } else {
    entry.opcode = operation.write ? IORING_OP_WRITE : IORING_OP_READ;
  }
  entry.fd = slot == kNoFile ? operation.file->file.get() : slot;
  if (slot != kNoFile) entry.flags = IOSQE_FIXED_FILE;
  entry.addr = reinterpret_cast<uint64_t>(operation.buffer);
  entry.len = operation.bytes;
  entry.off = operation.offset;
  entry.user_data = operation.id;
}

void UringBackend::armWake() {
  if (wakeArmed_) return;
  wakeArmed_ = true;
  io_uring_sqe& entry = next();
  entry.opcode = IORING_OP_READ;
  entry.fd = wakeFile_.get();
  entry.addr = reinterpret_cast<uint64_t>(&wakeValue_);
  entry.len = sizeof wakeValue_;
  entry.user_data = kWakeTag;
}

/// Hands over what is prepared and waits for `complete` completions, up to the timeout (-1: for ever).
void UringBackend::enter(uint32_t complete, int64_t timeoutMicroseconds) {
  __atomic_store_n(word(params_.sq_off.tail), tail_, __ATOMIC_RELEASE);
  __kernel_timespec time{timeoutMicroseconds / 1'000'000, timeoutMicroseconds % 1'000'000 * 1000};
  io_uring_getevents_arg argument{};
  if (timeoutMicroseconds >= 0) argument.ts = reinterpret_cast<uint64_t>(&time);
  const uint32_t flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
  const long taken =
      syscall(SYS_io_uring_enter, ring_.get(), unsubmitted_, complete, flags, &argument, sizeof argument);
  // ETIME, EINTR, EAGAIN and EBUSY leave what was not taken for the next call; a kernel without memory or room for
  // answers is not asked without a pause.
  if (taken < 0 && (errno == EAGAIN || errno == EBUSY)) usleep(kRefusedMicroseconds);
  if (taken > 0) unsubmitted_ -= std::min(unsubmitted_, static_cast<uint32_t>(taken));
  const uint32_t head = __atomic_load_n(word(params_.sq_off.head), __ATOMIC_ACQUIRE);
  unsubmitted_ = tail_ - head;
}

void UringBackend::wait(int64_t timeoutMicroseconds, std::vector<DiskCompletion>& ended) {
  // What came with a flush counts, a wake as much as an answer: neither comes twice.
  const bool came = reap(ended);
  armWake();
  const bool block = timeoutMicroseconds != 0 && !came;
  enter(block ? 1 : 0, block ? timeoutMicroseconds : 0);
  reap(ended);
}

/// True when there was an answer, or a wake.
bool UringBackend::reap(std::vector<DiskCompletion>& ended) {
  const uint32_t mask = *word(params_.cq_off.ring_mask);
  const auto* entries = reinterpret_cast<const io_uring_cqe*>(rings_ + params_.cq_off.cqes);
  uint32_t head = *word(params_.cq_off.head);
  const uint32_t tail = __atomic_load_n(word(params_.cq_off.tail), __ATOMIC_ACQUIRE);
  const bool came = head != tail;
  for (; head != tail; head++) {
    const io_uring_cqe& entry = entries[head & mask];
    if (entry.user_data == kWakeTag) {
      wakeArmed_ = false;
    } else if (entry.user_data == kProbeTag) {
      probed_ = entry.res;
    } else {
      ended.push_back({static_cast<uint32_t>(entry.user_data), entry.res});
    }
  }
  __atomic_store_n(word(params_.cq_off.head), head, __ATOMIC_RELEASE);
  return came;
}

int32_t UringBackend::probe(const SegmentFile& file, int64_t limitMicroseconds) {
  CAIRN_ASSERT(!probed_.has_value(), "one probe at a time");
  auto sector = std::make_unique<SectorBuffer>(kSectorBytes);
  io_uring_sqe& entry = next();
  entry.opcode = IORING_OP_READ;
  entry.fd = file.file.get();
  entry.addr = reinterpret_cast<uint64_t>(sector->data());
  entry.len = kSectorBytes;
  entry.user_data = kProbeTag;
  std::vector<DiskCompletion> none;
  const int64_t until = steadyMicroseconds() + limitMicroseconds;
  for (int64_t now = steadyMicroseconds(); !probed_.has_value() && now < until; now = steadyMicroseconds()) {
    enter(1, until - now);
    reap(none);
  }
  CAIRN_ASSERT(none.empty(), "nothing but the probe is at the device");
  if (!probed_.has_value()) keepForEver(std::move(sector));
  return std::exchange(probed_, std::nullopt).value_or(-ETIME);
}

}  // namespace

std::unique_ptr<DiskBackend> makeUringBackend(UringOptions options, std::vector<std::string>& notes) {
  auto backend = std::make_unique<UringBackend>(std::move(options.staging));
  const int error = backend->open(options.entries, notes);
  if (error != 0) {
    notes.push_back(std::string("io_uring is refused, a pool of threads stands in: ") + strerrordesc_np(error));
    return nullptr;
  }
  const int32_t result = backend->probe(*options.probe, options.probeMicroseconds);
  if (result == static_cast<int32_t>(kSectorBytes)) return backend;
  if (result == -ETIME) failErrno("the device does not answer a read", ETIMEDOUT);
  notes.push_back(std::string("io_uring does not read here, a pool of threads stands in: ") +
                  (result < 0 ? strerrordesc_np(-result) : "short read"));
  return nullptr;
}

}  // namespace cairn
