#include "disk_queue.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cstring>

namespace cairn {
namespace {

/// close() waits this long for the device; then it is left alone with what it holds.
constexpr int64_t kCloseMicroseconds = 300'000;
constexpr std::chrono::milliseconds kStuckMilliseconds{1'000};
constexpr uint32_t kPoolSpareThreads = 8;
/// Headers of slots up to this distance are read with everything in between.
constexpr uint64_t kScanDenseBytes = 64 * 1024;
constexpr uint64_t kScanPieceBytes = 1u << 20;
/// So much is encoded for writes in one turn.
constexpr uint64_t kEncodeBytes = 256 * 1024;

}  // namespace

bool StagingMap::take(size_t bytes, size_t& offset) {
  CAIRN_ASSERT(bytes > 0 && bytes % kSectorBytes == 0, "pieces are in whole sectors");
  for (auto at = free_.begin(); at != free_.end(); ++at) {
    if (at->second < bytes) continue;
    offset = at->first;
    const size_t left = at->second - bytes;
    free_.erase(at);
    if (left > 0) free_.emplace(offset + bytes, left);
    return true;
  }
  return false;
}

void StagingMap::give(size_t offset, size_t bytes) {
  auto next = free_.lower_bound(offset);
  CAIRN_ASSERT(next == free_.end() || next->first >= offset + bytes, "a piece is given back once");
  if (next != free_.end() && next->first == offset + bytes) {
    bytes += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += bytes;
      return;
    }
  }
  free_.emplace(offset, bytes);
}

// ---- JS thread ------------------------------------------------------------------------------------------

DiskQueue::DiskQueue(DiskQueueOptions options, std::shared_ptr<DiskEvents> events)
    : options_(std::move(options)),
      events_(std::move(events)),
      staging_(std::make_shared<Staging>(options_.stagingBytes)),
      cpu_(std::make_shared<std::atomic<uint64_t>>(0)),
      map_(options_.stagingBytes) {
  CAIRN_ASSERT(options_.queueDepth > 0 && options_.writeDepth > 0, "a queue has a depth");
}

std::shared_ptr<DiskQueue> DiskQueue::start(DiskQueueOptions options, std::shared_ptr<DiskEvents> events) {
  std::shared_ptr<DiskQueue> queue(new DiskQueue(std::move(options), std::move(events)));
  queue->thread_ = startThread([queue] { queue->run(); });
  std::unique_lock lock(queue->mutex_);
  queue->changed_.wait(lock, [&] { return queue->ready_; });
  if (!queue->refused_.has_value()) return queue;
  // Not joined: a thread may end only when its read does.
  queue->thread_.detach();
  throw *queue->refused_;
}

void DiskQueue::submit(std::unique_ptr<DiskBatch> batch) {
  const size_t count = batch->items.size();
  CAIRN_ASSERT(count > 0, "a batch has items");
  batch->statuses.assign(count, kItemOk);
  batch->states.assign(count, ItemState::kWaiting);
  batch->unfinished = count;
  batch->submittedMicroseconds = steadyMicroseconds();
  const int64_t span = int64_t{batch->options.deadlineMs} * 1000;
  batch->deadlineMicroseconds = span == 0 ? 0 : batch->submittedMicroseconds + span;
  {
    std::lock_guard lock(mutex_);
    if (closing_) fail("CLOSED", "the disk is closed");
    if (!open_.emplace(batch->options.id, count).second) fail("ARGUMENT", "the batch id is in use");
    for (DiskItem& item : batch->items) {
      item.slab->users.fetch_add(1, std::memory_order_relaxed);
      if (item.dramSlot == kNoDramSlot) continue;
      batch->arena->users(item.dramSlot >> kSlotIndexBits).fetch_add(1, std::memory_order_relaxed);
    }
    if (batch->options.kind == DiskKind::kRead) counters_.readsQueued += count;
    if (batch->options.kind == DiskKind::kWrite) counters_.writesQueued += count;
    mail_.batches.push_back(std::move(batch));
  }
  backend_->wake();
}

void DiskQueue::cancel(uint32_t id) {
  {
    std::lock_guard lock(mutex_);
    if (closing_ || open_.count(id) == 0) return;
    mail_.cancels.push_back(id);
  }
  backend_->wake();
}

void DiskQueue::scan(std::shared_ptr<DiskScan> scan, std::function<void(bool)> done) {
  {
    std::lock_guard lock(mutex_);
    if (closing_) fail("CLOSED", "the disk is closed");
    for (const auto& slab : scan->slabs) slab->users.fetch_add(1, std::memory_order_relaxed);
    mail_.scans.emplace_back(std::move(scan), std::move(done));
  }
  backend_->wake();
}

void DiskQueue::forget(std::shared_ptr<SegmentFile> file) {
  {
    std::lock_guard lock(mutex_);
    if (closing_) return;
    mail_.forgotten.push_back(std::move(file));
  }
  backend_->wake();
}

void DiskQueue::close() {
  bool join = false;
  std::unordered_map<uint32_t, size_t> untold;
  {
    std::unique_lock lock(mutex_);
    if (closing_) return;
    closing_ = true;
    lock.unlock();
    backend_->wake();
    lock.lock();
    changed_.wait_for(lock, kStuckMilliseconds, [this] { return ended_; });
    join = ended_ && !leftAlone_;
    // The thread itself hangs in the kernel: what it has not told is told here.
    if (!ended_) untold.swap(open_);
  }
  if (join) {
    thread_.join();
    return;
  }
  thread_.detach();
  {
    std::lock_guard lock(delivering_);
    abandoned_ = true;
  }
  for (const auto& [id, count] : untold) {
    Event event{};
    event.type = kCopied;
    event.id = id;
    event.a = static_cast<uint32_t>(count);
    event.statuses.assign(count, kItemCancelled);
    events_->push(std::move(event));
  }
}

// ---- the coordinating thread ----------------------------------------------------------------------------

void DiskQueue::chooseBackend() {
  const uint32_t operations = options_.queueDepth + options_.writeDepth;
  if (options_.mode != DiskMode::kThreads) {
    backend_ = makeUringBackend({staging_, operations * 4, options_.probe, options_.probeMicroseconds}, notes_);
    uring_ = backend_ != nullptr;
  }
  if (backend_ == nullptr) {
    const uint32_t threads = std::max(operations, 4u) + kPoolSpareThreads;
    backend_ = makePoolBackend({options_.operations, staging_, threads, cpu_});
  }
}

void DiskQueue::run() {
  pthread_setname_np(pthread_self(), "cairn-disk");
  const std::optional<Failure> refused = failureOf([this] { chooseBackend(); });
  {
    std::lock_guard lock(mutex_);
    ready_ = true;
    refused_ = refused;
    changed_.notify_all();
  }
  if (refused.has_value()) return;
  while (takeMail()) {
    expire(steadyMicroseconds());
    const bool more = pump();
    backend_->flush();
    const bool wait = landed_.empty() && !more && !prepareMore();
    collect(wait ? waitMicroseconds(steadyMicroseconds()) : 0);
    // The wait may have been long, and close() may have ended all this meanwhile.
    if (landed_.empty() || closing()) continue;
    // The device gets its next operations before the bytes of the last one are looked at.
    static_cast<void>(pump());
    backend_->flush();
    const DiskCompletion next = landed_.front();
    landed_.pop_front();
    finish(next.id, next.result);
    addThreadCpu(*cpu_);
  }
  finishClosing();
}

/// Every batch ends here. What the device still holds is waited for: a while before close() returns, then for as
/// long as it takes, on this thread, which close() has let go.
void DiskQueue::finishClosing() {
  while (!batches_.empty()) endBatch(*batches_.begin()->second, kItemCancelled, true);
  while (!scans_.empty()) endScan(false);
  const auto held = [this] { return readsAtDevice_ + writesAtDevice_ + othersAtDevice_ + lost_ > 0; };
  const auto land = [&](int64_t wait) {
    collect(wait);
    while (!landed_.empty()) {
      const DiskCompletion next = landed_.front();
      landed_.pop_front();
      finish(next.id, next.result);
    }
  };
  land(0);
  const int64_t until = steadyMicroseconds() + kCloseMicroseconds;
  for (int64_t now = steadyMicroseconds(); held() && now < until; now = steadyMicroseconds()) land(until - now);
  {
    std::lock_guard lock(mutex_);
    leftAlone_ = held();
    ended_ = true;
    changed_.notify_all();
  }
  while (held()) land(-1);
}

bool DiskQueue::closing() {
  std::lock_guard lock(mutex_);
  return closing_;
}

/// False when the disk closes.
bool DiskQueue::takeMail() {
  Mail mail;
  bool closing = false;
  {
    std::lock_guard lock(mutex_);
    std::swap(mail, mail_);
    closing = closing_;
  }
  asked_ = asked_ || !mail.batches.empty() || !mail.scans.empty();
  for (auto& batch : mail.batches) enqueue(std::move(batch));
  for (auto& scan : mail.scans) scans_.push_back(std::move(scan));
  for (const auto& file : mail.forgotten) backend_->forget(*file);
  for (const uint32_t id : mail.cancels) {
    const auto found = batches_.find(id);
    if (found != batches_.end()) endBatch(*found->second, kItemCancelled, false);
  }
  return !closing;
}

void DiskQueue::enqueue(std::unique_ptr<DiskBatch> batch) {
  DiskBatch* raw = batch.get();
  const DiskBatchOptions& options = raw->options;
  CAIRN_ASSERT(batches_.count(options.id) == 0, "a batch id is used once at a time");
  if (raw->deadlineMicroseconds != 0) nextDeadline_ = std::min(nextDeadline_, raw->deadlineMicroseconds);
  batches_.emplace(options.id, std::move(batch));
  switch (options.kind) {
    case DiskKind::kRead: reads_[std::min(options.priority, kDiskPriorities - 1)].push_back(raw); break;
    case DiskKind::kWrite: writes_.push_back(raw); break;
    case DiskKind::kVerify: verifies_.push_back(raw); break;
  }
}

/// True when it has more to begin as soon as the device was given what is ready.
bool DiskQueue::pump() {
  const int64_t now = steadyMicroseconds();
  const bool writesWait = !writes_.empty() && writesAtDevice_ < options_.writeDepth;
  if (!writesWait) writesWaitSince_ = 0;
  if (writesWait && writesWaitSince_ == 0) writesWaitSince_ = now;
  if (writesWait && now - writesWaitSince_ >= options_.writeWaitMicroseconds) {
    static_cast<void>(startWrites(UINT64_MAX));
    // Reads stand back until a piece of staging is free for the write that waited.
    if (writesWaitSince_ != 0 && !writes_.empty() && headersAtDevice_.empty()) return false;
  }
  bool readsWait = false;
  for (auto& queue : reads_) {
    readsWait = readsWait || startReads(queue, options_.queueDepth);
  }
  if (readsWait) return false;
  const bool more = startWrites(kEncodeBytes);
  if (!writes_.empty()) return more;
  // Checks leave half of the depth to reads that come meanwhile.
  if (!startReads(verifies_, std::max(1u, options_.queueDepth / 2)) && !scans_.empty()) startScan();
  return false;
}

/// What the backend left for later, once somebody uses the disk: a start has better things to do. False when there is
/// nothing.
bool DiskQueue::prepareMore() {
  if (!asked_) return false;
  const bool did = backend_->prepareMore();
  counters_.registeredBuffers.store(backend_->registeredBuffers(), std::memory_order_relaxed);
  return did;
}

/// Begins items of the queue's batches in order; true when one waits.
bool DiskQueue::startReads(std::deque<DiskBatch*>& queue, uint32_t depth) {
  while (!queue.empty()) {
    DiskBatch& batch = *queue.front();
    if (batch.next == batch.items.size()) {
      queue.pop_front();
      continue;
    }
    if (readsAtDevice_ >= depth) return true;
    // startItem may end the batch, and the batch is gone then.
    const size_t item = batch.next++;
    if (startItem(batch, item) != Start::kWait) continue;
    batch.next--;
    return true;
  }
  return false;
}

/// The device begins a write as soon as it is encoded, and reads that came meanwhile go before the next: a disk that
/// answers several at once would be left with little to do for as long as all their successors take to be copied and
/// hashed (a fifth of its speed). Writes that waited too long have no such bound, or reads would come between them for
/// as long again. True when more can be begun in the next turn.
bool DiskQueue::startWrites(uint64_t encodeBytes) {
  const int64_t waitSince = writesWaitSince_;
  uint64_t encodedBytes = 0;
  while (!writes_.empty() && writesAtDevice_ < options_.writeDepth) {
    if (encodedBytes >= encodeBytes) {
      // Reads may come before the rest, which waits since it could have begun.
      writesWaitSince_ = waitSince;
      return true;
    }
    DiskBatch& batch = *writes_.front();
    if (batch.next == batch.items.size()) {
      // All begun; the next batch may follow while the last ones are at the device.
      writes_.pop_front();
      continue;
    }
    encodedBytes += diskSlotBytes(batch.options.payloadBytes);
    // startItem may end the batch, and the batch is gone then.
    const size_t item = batch.next++;
    if (startItem(batch, item) == Start::kWait) {
      batch.next--;
      return false;
    }
    writesWaitSince_ = 0;
  }
  return false;
}

DiskQueue::Start DiskQueue::startItem(DiskBatch& batch, size_t at) {
  DiskItem& item = batch.items[at];
  // Ended before its turn, with its segment's header.
  if (batch.states[at] == ItemState::kEnded) return Start::kEndedAtOnce;
  const bool write = batch.options.kind == DiskKind::kWrite;
  const auto end = [&](uint8_t status) {
    endItem(batch, at, status);
    return Start::kEndedAtOnce;
  };
  // The device may yet write this slot: what it holds then, nobody knows.
  if (lostWrites_.count(item.slab->slab << kSlotIndexBits | item.index) != 0) return end(kItemDeadline);
  if (!write && batch.options.hasRegion && item.dramHeader == nullptr) {
    if (batch.region == nullptr || batch.region->closing() || item.range == nullptr) return end(kItemRegion);
  }
  if (write && item.slab->headerOwed) return startSegmentHeader(item.slab);
  const uint64_t bytes = diskSlotBytes(batch.options.payloadBytes);
  CAIRN_ASSERT(bytes <= item.slab->strideBytes, "an item fits its slot");
  Operation* operation = newOperation(item.slab, bytes, item.slab->offsetOf(item.index), write);
  if (operation == nullptr) return Start::kWait;
  operation->batch = &batch;
  operation->item = at;
  operation->index = item.index;
  operation->kind = batch.options.kind;
  if (write) {
    std::atomic<uint32_t>& known = item.slab->generations[item.index];
    const uint32_t generation = nextGeneration(known.load(std::memory_order_relaxed));
    const DiskSlotName name = batch.nameOf(item, generation);
    const ItemStatus status = encodeSlot(operation->io.buffer, *item.dramHeader, item.dramPayload, name);
    if (status != kItemOk) {
      release(*operation);
      return end(status);
    }
    const uint64_t used = kDiskHeaderBytes + batch.options.payloadBytes;
    memset(operation->io.buffer + used, 0, bytes - used);
    // Before the device may change the slot: what it held, or what a scan saw in it, is this slot's no more.
    known.store(generation, std::memory_order_release);
  }
  batch.states[at] = ItemState::kAtDevice;
  if (batch.options.kind == DiskKind::kRead) counters_.readsQueued--;
  if (write) counters_.writesQueued--;
  begin(*operation);
  return Start::kStarted;
}

/// The segment's header says its slots' size before the first of them is written.
DiskQueue::Start DiskQueue::startSegmentHeader(const std::shared_ptr<DiskSlab>& slab) {
  if (headersAtDevice_.count(slab.get()) != 0) return Start::kWait;
  Operation* operation = newOperation(slab, kSectorBytes, 0, true);
  if (operation == nullptr) return Start::kWait;
  operation->purpose = Purpose::kSegmentHeader;
  operation->kind = DiskKind::kWrite;
  const DiskDirectory& directory = *slab->file->directory;
  const SegmentHeader header = makeSegmentHeader(slab->file->segment, directory.id(), slab->payloadBytes, true,
                                                 directory.segmentBytes());
  memset(operation->io.buffer, 0, kSectorBytes);
  memcpy(operation->io.buffer, &header, sizeof header);
  headersAtDevice_.insert(slab.get());
  begin(*operation);
  return Start::kWait;
}

void DiskQueue::startScan() {
  DiskScan& scan = *scans_.front().first;
  const uint32_t depth = std::max(1u, options_.queueDepth / 2);
  while (scan.slabAt < scan.slabs.size() && othersAtDevice_ < depth) {
    const std::shared_ptr<DiskSlab>& slab = scan.slabs[scan.slabAt];
    const uint64_t stride = slab->strideBytes;
    const uint64_t piece = std::min<uint64_t>(kScanPieceBytes, options_.stagingBytes / 2);
    const bool dense = stride <= kScanDenseBytes && stride <= piece;
    const uint32_t left = slab->slots - scan.slotAt;
    const uint32_t count = dense ? std::min(left, static_cast<uint32_t>(piece / stride)) : std::min(left, 1u);
    const uint64_t bytes = dense ? count * stride : kSectorBytes;
    if (count > 0) {
      Operation* operation = newOperation(slab, bytes, slab->offsetOf(scan.slotAt), false);
      if (operation == nullptr) return;
      operation->purpose = Purpose::kScan;
      operation->index = scan.slotAt;
      operation->count = count;
      scan.atDevice++;
      begin(*operation);
    }
    scan.slotAt += count;
    if (scan.slotAt < slab->slots) continue;
    scan.slabAt++;
    scan.slotAt = 0;
  }
  if (scan.slabAt == scan.slabs.size() && scan.atDevice == 0) endScan(true);
}

/// nullptr while no staging is free, or the device holds too much already.
DiskQueue::Operation* DiskQueue::newOperation(const std::shared_ptr<DiskSlab>& slab, size_t bytes,
                                              uint64_t offset, bool write) {
  if (lost_ >= 2 * options_.queueDepth) return nullptr;
  size_t staging = 0;
  if (!map_.take(bytes, staging)) return nullptr;
  uint32_t id = 0;
  if (freeOperations_.empty()) {
    id = static_cast<uint32_t>(operations_.size());
    operations_.emplace_back();
  } else {
    id = freeOperations_.back();
    freeOperations_.pop_back();
  }
  Operation& operation = operations_[id];
  operation = Operation{};
  operation.active = true;
  operation.slab = slab;
  operation.staging = staging;
  operation.stagingBytes = bytes;
  operation.io = {id, write, slab->file, staging_->data() + staging, static_cast<uint32_t>(bytes), offset};
  slab->users.fetch_add(1, std::memory_order_relaxed);
  return &operation;
}

void DiskQueue::begin(Operation& operation) {
  CAIRN_ASSERT(operation.active && !operation.lost, "an operation begins with its item");
  if (operation.began == 0) operation.began = steadyMicroseconds();
  operation.landed = false;
  atDevice(operation)++;
  counters_.inFlight++;
  backend_->submit(operation.io);
  updateOldest();
}

}  // namespace cairn
