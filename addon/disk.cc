#include "disk.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "toucher.h"

namespace cairn {
namespace {

constexpr std::chrono::milliseconds kWorkersCloseMilliseconds{500};
constexpr size_t kStagingBytesMin = 1u << 20;
constexpr uint32_t kDepthMax = 1024;
constexpr size_t kScanWords = sizeof(SlotHeader) / 4 + 1;
constexpr uint64_t kMiB = 1u << 20;
/// Making a segment lets reads and writes go first, but goes on a piece at least this often.
constexpr int kYieldMilliseconds = 40;

std::shared_ptr<SegmentFile> openProbe(const std::shared_ptr<DiskDirectory>& directory, bool direct) {
  Descriptor fd(::open(directory->identityPath().c_str(), O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0)));
  if (!fd) failErrno("open " + directory->identityPath());
  return std::make_shared<SegmentFile>(directory, 0, std::move(fd));
}

}  // namespace

// ---- workers --------------------------------------------------------------------------------------------

DiskWorker::DiskWorker(std::shared_ptr<std::atomic<uint64_t>> cpu) : state_(std::make_shared<State>()) {
  state_->cpu = std::move(cpu);
  state_->running = true;
  startThread([state = state_] { run(state); }).detach();
}

void DiskWorker::post(std::function<void()> task) {
  std::lock_guard lock(state_->mutex);
  if (state_->closing) return;
  state_->tasks.push_back(std::move(task));
  state_->wake.notify_one();
}

void DiskWorker::run(const std::shared_ptr<State>& state) {
  std::unique_lock lock(state->mutex);
  for (;;) {
    state->wake.wait(lock, [&] { return state->closing || !state->tasks.empty(); });
    if (state->closing) break;
    std::function<void()> task = std::move(state->tasks.front());
    state->tasks.pop_front();
    lock.unlock();
    task();
    task = nullptr;
    addThreadCpu(*state->cpu);
    lock.lock();
  }
  state->running = false;
  state->ended.notify_all();
}

void DiskWorker::beginClose() {
  std::deque<std::function<void()>> dropped;
  std::lock_guard lock(state_->mutex);
  state_->closing = true;
  dropped.swap(state_->tasks);
  state_->wake.notify_all();
}

void DiskWorker::close(std::chrono::steady_clock::time_point until) {
  beginClose();
  std::unique_lock lock(state_->mutex);
  state_->ended.wait_until(lock, until, [this] { return !state_->running; });
}

// ---- life -----------------------------------------------------------------------------------------------

struct Disk::Opening {
  DiskOptions options;
  std::shared_ptr<DiskEvents> events;
  std::mutex mutex;
  std::condition_variable changed;
  Parts parts;
  std::optional<Failure> failure;
  uint32_t steps = 0;      // guarded by mutex
  bool ended = false;      // guarded by mutex; the parts belong to the JS thread from here on
  bool abandoned = false;  // guarded by mutex; nobody waits for the parts
};

void Disk::makeParts(const DiskOptions& options, const std::shared_ptr<DiskEvents>& events, Parts& parts,
                     const std::function<void()>& step) {
  parts.directory = DiskDirectory::open(options.directory, options.segmentBytes);
  step();
  parts.direct = options.direct && probeDirect(*parts.directory, parts.notes);
  step();
  parts.files = std::make_shared<SegmentFiles>(parts.directory, options.operations, parts.direct, step);
  parts.queue = DiskQueue::start({options.mode, options.queueDepth, options.writeDepth, options.stagingBytes,
                                  options.operations, openProbe(parts.directory, parts.direct),
                                  options.writeWaitMicroseconds},
                                 events);
  for (auto* worker : {&parts.preparer, &parts.syncer, &parts.sorter}) {
    *worker = std::make_unique<DiskWorker>(parts.queue->cpuMicroseconds());
  }
}

/// On the thread of the opening, which a device that hangs may hold for as long as it likes.
void Disk::runOpening(Opening& opening) {
  opening.failure = failureOf([&] {
    makeParts(opening.options, opening.events, opening.parts, [&] {
      std::lock_guard lock(opening.mutex);
      opening.steps++;
      opening.changed.notify_all();
    });
  });
  std::lock_guard lock(opening.mutex);
  if (opening.failure.has_value() || opening.abandoned) {
    if (opening.parts.queue != nullptr) opening.parts.queue->close();
    opening.parts = {};
  }
  opening.ended = true;
  opening.changed.notify_all();
}

Disk::Parts Disk::open(const DiskOptions& options) {
  const auto opening = std::make_shared<Opening>();
  opening->options = options;
  opening->events = events_;
  startThread([opening] { runOpening(*opening); }).detach();
  std::unique_lock lock(opening->mutex);
  for (bool answered = true; answered && !opening->ended;) {
    const auto moved = [&, seen = opening->steps] { return opening->ended || opening->steps != seen; };
    answered = opening->changed.wait_for(lock, std::chrono::milliseconds(options.openMilliseconds), moved);
  }
  if (!opening->ended) {
    opening->abandoned = true;
    events_->cut();
    failErrno("open " + options.directory + ", whose device does not answer", ETIMEDOUT);
  }
  if (opening->failure.has_value()) throw *opening->failure;
  return std::move(opening->parts);
}

Disk::Disk(const DiskOptions& options, EventHub& hub) : operations_(options.operations) {
  if (options.queueDepth == 0 || options.queueDepth > kDepthMax) fail("ARGUMENT", "queueDepth must be 1 to 1024");
  if (options.writeDepth == 0 || options.writeDepth > kDepthMax) fail("ARGUMENT", "writeDepth must be 1 to 1024");
  if (options.stagingBytes < kStagingBytesMin || options.stagingBytes % kSectorBytes != 0) {
    fail("ARGUMENT", "stagingBytes must be a multiple of 4096, at least 1 MiB");
  }
  stagingBytes_ = options.stagingBytes;
  events_ = std::make_shared<DiskEvents>(hub);
  Parts parts = open(options);
  directory_ = std::move(parts.directory);
  files_ = std::move(parts.files);
  queue_ = std::move(parts.queue);
  preparer_ = std::move(parts.preparer);
  syncer_ = std::move(parts.syncer);
  sorter_ = std::move(parts.sorter);
  notes_ = std::move(parts.notes);
  direct_ = parts.direct;
}

void Disk::close() {
  if (closed_ || queue_ == nullptr) return;
  closed_ = true;
  state_->closing.store(true);
  DiskWorker* const workers[] = {preparer_.get(), syncer_.get(), sorter_.get()};
  const auto until = std::chrono::steady_clock::now() + kWorkersCloseMilliseconds;
  for (DiskWorker* worker : workers) worker->beginClose();
  queue_->close();
  for (DiskWorker* worker : workers) worker->close(until);
  events_->cut();
  slabs_.clear();
  scan_.reset();
}

std::vector<std::string> Disk::notes() const {
  std::vector<std::string> all = notes_;
  for (const auto* more : {&files_->notes(), &queue_->notes()}) all.insert(all.end(), more->begin(), more->end());
  return all;
}

// ---- segments -------------------------------------------------------------------------------------------

void Disk::prepare(uint32_t segment, uint32_t task) {
  for (const auto& [number, slab] : slabs_) {
    if (slab->file->segment == segment) fail("BUSY", "the segment is attached");
  }
  files_->beginPrepare(segment);
  const auto total = static_cast<uint32_t>(directory_->segmentBytes() / kMiB);
  preparer_->post([files = files_, queue = queue_, events = events_, state = state_, segment, task, total] {
    uint64_t told = 0;
    const auto step = [&](uint64_t done) {
      for (int waited = 0; queue->busy() && waited < kYieldMilliseconds && !state->closing.load(); waited++) {
        usleep(1000);
      }
      if (done / kMiB >= told + total / 100 + 1) {
        told = done / kMiB;
        events->progress(task, static_cast<uint32_t>(told), total, kRunning);
      }
      return !state->closing.load();
    };
    const int error = files->prepare(segment, step);
    events->progress(task, error == 0 ? total : 0, total, error == 0 ? kEnded : kFailed, error);
  });
}

DiskSlab& Disk::attached(uint32_t slab) const {
  const auto found = slabs_.find(slab);
  if (found == slabs_.end()) fail("ARGUMENT", "no such slab: " + std::to_string(slab));
  return *found->second;
}

void Disk::checkIdle(const DiskSlab& slab) const {
  if (slab.users.load(std::memory_order_acquire) != 0) {
    fail("BUSY", "slab " + std::to_string(slab.slab) + " is in use");
  }
}

void Disk::fillGenerations(DiskSlab& slab) {
  slab.slots = slotsPerSegment(directory_->segmentBytes(), slab.payloadBytes);
  slab.strideBytes = slab.payloadBytes == 0 ? 0 : diskSlotBytes(slab.payloadBytes);
  slab.generations = std::make_unique<std::atomic<uint32_t>[]>(slab.slots);
  for (uint32_t i = 0; i < slab.slots; i++) slab.generations[i].store(slab.generationBase, std::memory_order_relaxed);
}

void Disk::attach(uint32_t segment, uint32_t slab) {
  if (slab >= kSlabsMax) fail("ARGUMENT", "a slab number is below 16384");
  if (slabs_.count(slab) != 0) fail("ARGUMENT", "the slab number is in use");
  const SegmentState state = files_->get(segment);
  if (!state.prepared) fail("ARGUMENT", "the segment is not prepared");
  for (const auto& [number, other] : slabs_) {
    if (other->file->segment == segment) fail("ARGUMENT", "the segment is attached already");
  }
  auto added = std::make_shared<DiskSlab>();
  added->slab = slab;
  added->file = state.file;
  added->payloadBytes = state.payloadBytes;
  fillGenerations(*added);
  slabs_.emplace(slab, std::move(added));
}

void Disk::detach(uint32_t slab, bool remove) {
  DiskSlab& old = attached(slab);
  checkIdle(old);
  const std::shared_ptr<SegmentFile> file = old.file;
  if (remove) files_->remove(file->segment);
  slabs_.erase(slab);
  queue_->forget(file);
}

uint32_t Disk::assign(uint32_t index, uint32_t payloadBytes) {
  DiskSlab& slab = attached(index);
  if (slab.payloadBytes != 0) fail("ARGUMENT", "the slab is assigned already");
  if (slotsPerSegment(directory_->segmentBytes(), payloadBytes) == 0) {
    fail("ARGUMENT", "payloadBytes does not fit a segment");
  }
  if (diskSlotBytes(payloadBytes) > stagingBytes_ / 2) {
    fail("ARGUMENT", "payloadBytes is more than half of stagingBytes");
  }
  checkIdle(slab);
  slab.payloadBytes = payloadBytes;
  slab.headerOwed = true;
  fillGenerations(slab);
  files_->setPayloadBytes(slab.file->segment, payloadBytes);
  return slab.slots;
}

/// The segment header keeps its class until the next one is assigned: what lies in the slots is still true.
void Disk::release(uint32_t index) {
  DiskSlab& slab = attached(index);
  if (slab.payloadBytes == 0) return;
  checkIdle(slab);
  for (uint32_t i = 0; i < slab.slots; i++) {
    slab.generationBase = std::max(slab.generationBase, slab.generations[i].load(std::memory_order_relaxed));
  }
  slab.payloadBytes = 0;
  fillGenerations(slab);
  files_->setPayloadBytes(slab.file->segment, 0);
}

std::shared_ptr<DiskSlab> Disk::slabOf(uint32_t slot, uint32_t payloadBytes) const {
  const auto found = slabs_.find(slot >> kSlotIndexBits);
  if (found == slabs_.end() || (slot & (kSlotsPerSlabMax - 1)) >= found->second->slots) {
    fail("ARGUMENT", "no such disk slot: " + std::to_string(slot));
  }
  if (found->second->payloadBytes < payloadBytes) {
    fail("ARGUMENT", "disk slot " + std::to_string(slot) + " is smaller than payloadBytes");
  }
  if (diskSlotBytes(payloadBytes) > stagingBytes_ / 2) {
    fail("ARGUMENT", "payloadBytes is more than half of stagingBytes");
  }
  return found->second;
}

void Disk::restore(uint32_t slot, uint32_t generation) {
  slabOf(slot, 0)->generations[slot & (kSlotsPerSlabMax - 1)].store(generation, std::memory_order_relaxed);
}

uint32_t Disk::generation(uint32_t slot) const {
  return slabOf(slot, 0)->generations[slot & (kSlotsPerSlabMax - 1)].load(std::memory_order_relaxed);
}

// ---- sync and scan --------------------------------------------------------------------------------------

void Disk::sync(uint32_t task) {
  syncer_->post([files = files_, operations = operations_, events = events_, state = state_, task] {
    uint32_t synced = 0;
    for (const auto& [number, segment] : files->list()) {
      if (state->error.load() != 0 || segment.file == nullptr) continue;
      if (!segment.file->dirty.exchange(false, std::memory_order_acq_rel)) continue;
      if (operations->fdatasync(segment.file->file.get()) != 0) state->error.store(errno);
      synced++;
    }
    const int error = state->error.load();
    events->progress(task, synced, synced, error == 0 ? kEnded : kFailed, error);
  });
}

void Disk::scan(const Arena& arena, uint32_t task) {
  if (scan_ != nullptr && !scan_->ended.load()) fail("BUSY", "the disk is being scanned");
  auto scan = std::make_shared<DiskScan>();
  scan->task = task;
  for (uint32_t i = 0; i < kNamespacesMax; i++) {
    const ArenaNamespace& ns = arena.namespaces()[i];
    if (!ns.used) continue;
    DiskScan::Namespace& entry = scan->namespaces.emplace_back();
    memcpy(entry.digest, ns.digest, kDigestBytes);
    entry.index = i;
  }
  std::sort(scan->namespaces.begin(), scan->namespaces.end(), [](const auto& a, const auto& b) {
    return memcmp(a.digest, b.digest, kDigestBytes) < 0;
  });
  for (const auto& [number, slab] : slabs_) {
    if (slab->slots == 0) continue;
    scan->slabs.push_back(slab);
    scan->slotsTotal += slab->slots;
  }
  auto sorted = [scan, events = events_, task](bool whole) {
    scan->sort();
    scan->ended.store(true);
    const auto valid = static_cast<uint32_t>(scan->entries.size());
    const auto total = static_cast<uint32_t>(valid + scan->invalid);
    events->progress(task, valid, total, whole ? kEnded : kFailed, whole ? 0 : ECANCELED);
  };
  queue_->scan(scan, [sorted, sorter = sorter_](bool whole) {
    // A scan that was cut short has nothing to sort, and its disk's sorter takes no task any more.
    if (whole) {
      sorter->post([sorted] { sorted(true); });
    } else {
      sorted(false);
    }
  });
  scan_ = std::move(scan);
}

size_t Disk::scanRead(uint32_t* into, size_t count) {
  if (scan_ == nullptr || !scan_->ended.load()) fail("ARGUMENT", "no scan of this disk has ended");
  size_t written = 0;
  while (scan_->cursor < scan_->entries.size() && written < count) {
    const DiskScan::Entry& entry = scan_->entries[scan_->cursor++];
    const auto found = slabs_.find(entry.slot >> kSlotIndexBits);
    const uint32_t index = entry.slot & (kSlotsPerSlabMax - 1);
    if (found == slabs_.end() || index >= found->second->slots) continue;
    const uint32_t seen = entry.header.generation;
    uint32_t known = 0;
    // Written since the scan passed by, or just being written: what it saw is gone.
    if (!found->second->generations[index].compare_exchange_strong(known, seen) && known != seen) continue;
    uint32_t* words = into + written * kScanWords;
    memcpy(words, &entry.header, sizeof entry.header);
    words[sizeof(SlotHeader) / 4] = entry.slot;
    written++;
  }
  if (written == 0) scan_.reset();
  return written;
}

}  // namespace cairn
