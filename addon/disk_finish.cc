// The second half of DiskQueue: what happens when the device answers, when time is over, and when a batch ends.
#include <algorithm>

#include "disk_queue.h"

namespace cairn {

uint32_t& DiskQueue::atDevice(const Operation& operation) {
  if (operation.lost) return lost_;
  if (operation.purpose == Purpose::kScan) return othersAtDevice_;
  return operation.io.write ? writesAtDevice_ : readsAtDevice_;
}

void DiskQueue::updateOldest() {
  int64_t oldest = 0;
  for (const Operation& operation : operations_) {
    if (!operation.active || operation.landed || operation.began == 0) continue;
    if (oldest == 0 || operation.began < oldest) oldest = operation.began;
  }
  counters_.oldestBegan.store(oldest, std::memory_order_relaxed);
}

void DiskQueue::collect(int64_t timeoutMicroseconds) {
  collected_.clear();
  backend_->wait(timeoutMicroseconds, collected_);
  for (const DiskCompletion& completion : collected_) {
    CAIRN_ASSERT(completion.id < operations_.size(), "the device answers what it was asked");
    Operation& operation = operations_[completion.id];
    CAIRN_ASSERT(operation.active && !operation.landed, "the device answers once");
    uint32_t& count = atDevice(operation);
    CAIRN_ASSERT(count > 0, "operations at the device are counted in pairs");
    count--;
    counters_.inFlight--;
    operation.landed = true;
    landed_.push_back(completion);
  }
  if (!collected_.empty()) updateOldest();
}

/// True when the operation went to the device again. `result` becomes the bytes of the whole, or a negative errno.
bool DiskQueue::continueShort(Operation& operation, int32_t& result) {
  if (operation.lost) return false;
  const bool again = result == -EINTR || result == -EAGAIN;
  if (result < 0 && !again) return false;
  operation.again = again ? operation.again + 1 : 0;
  if (operation.again > kAskAgainMax) {
    result = -EIO;
    return false;
  }
  const uint32_t moved = again ? 0 : static_cast<uint32_t>(result);
  CAIRN_ASSERT(moved <= operation.io.bytes, "no more moves than was asked for");
  if (moved == operation.io.bytes) {
    result = static_cast<int32_t>(operation.done + moved);
    return false;
  }
  const auto whole = static_cast<uint32_t>(moved / kSectorBytes * kSectorBytes);
  if (whole == 0 && !again) {
    result = -EIO;
    return false;
  }
  operation.done += whole;
  operation.io.buffer += whole;
  operation.io.offset += whole;
  operation.io.bytes -= whole;
  begin(operation);
  return true;
}

void DiskQueue::finish(uint32_t id, int32_t result) {
  Operation& operation = operations_[id];
  CAIRN_ASSERT(operation.active && operation.landed, "only what landed is finished");
  const bool needed = operation.purpose != Purpose::kItem || operation.batch != nullptr;
  if (needed && continueShort(operation, result)) return;
  if (result < 0) counters_.ioErrors++;
  if (operation.io.write) operation.slab->file->dirty.store(true, std::memory_order_release);
  if (result > 0) (operation.io.write ? counters_.bytesWritten : counters_.bytesRead) += static_cast<uint64_t>(result);
  switch (operation.purpose) {
    case Purpose::kItem: finishItem(operation, result); break;
    case Purpose::kSegmentHeader: finishSegmentHeader(operation, result); break;
    case Purpose::kScan: finishScan(operation, result); break;
  }
}

void DiskQueue::finishItem(Operation& operation, int32_t result) {
  DiskBatch* batch = operation.batch;
  if (batch == nullptr) {
    if (operation.io.write) lostWrites_.erase(operation.slab->slab << kSlotIndexBits | operation.index);
    release(operation);
    return;
  }
  const size_t item = operation.item;
  uint8_t status = kItemOk;
  if (result < 0) {
    status = kItemIo;
  } else if (batch->options.kind != DiskKind::kWrite) {
    const uint8_t* bytes = staging_->data() + operation.staging;
    std::lock_guard lock(delivering_);
    status = abandoned_ ? uint8_t{kItemCancelled} : deliverRead(*batch, batch->items[item], bytes);
  }
  release(operation);
  endItem(*batch, item, status);
}

void DiskQueue::finishSegmentHeader(Operation& operation, int32_t result) {
  const std::shared_ptr<DiskSlab> slab = operation.slab;
  headersAtDevice_.erase(slab.get());
  // Before release(): from then on the slab may be idle, and JS may assign it anew and owe another header.
  if (result >= 0) slab->headerOwed = false;
  release(operation);
  if (result >= 0) return;
  // Items that wait for this header cannot be written; one that comes later tries again.
  const std::vector<DiskBatch*> waiting(writes_.begin(), writes_.end());
  for (DiskBatch* batch : waiting) {
    const size_t count = batch->items.size();
    for (size_t i = batch->next; i < count; i++) {
      if (batch->states[i] != ItemState::kWaiting || batch->items[i].slab != slab) continue;
      settle(*batch, i, kItemIo);
    }
    if (batch->unfinished == 0) complete(*batch);
  }
}

void DiskQueue::finishScan(Operation& operation, int32_t result) {
  if (scans_.empty() || operation.lost) {
    release(operation);
    return;
  }
  DiskScan& scan = *scans_.front().first;
  const DiskSlab& slab = *operation.slab;
  if (result < 0) {
    scan.invalid += operation.count;
    scan.slotsDone += operation.count;
  } else {
    const uint8_t* bytes = staging_->data() + operation.staging;
    scan.take(slab, operation.index, operation.count, bytes, slab.strideBytes);
  }
  scan.atDevice--;
  const uint64_t before = scan.slotsDone - operation.count;
  const uint64_t step = scan.slotsTotal / 100 + 1;
  if (before / step != scan.slotsDone / step && scan.slotsDone < scan.slotsTotal) {
    events_->progress(scan.task, static_cast<uint32_t>(scan.slotsDone), static_cast<uint32_t>(scan.slotsTotal), 0);
  }
  release(operation);
  if (scan.slabAt == scan.slabs.size() && scan.atDevice == 0) endScan(true);
}

void DiskQueue::endScan(bool whole) {
  auto [scan, done] = std::move(scans_.front());
  scans_.pop_front();
  for (const auto& slab : scan->slabs) slab->users.fetch_sub(1, std::memory_order_release);
  for (Operation& operation : operations_) {
    if (!operation.active || operation.purpose != Purpose::kScan || operation.landed || operation.lost) continue;
    othersAtDevice_--;
    operation.lost = true;
    lost_++;
  }
  done(whole);
}

/// Staging, slab and number are free again.
void DiskQueue::release(Operation& operation) {
  CAIRN_ASSERT(operation.active, "an operation is released once");
  map_.give(operation.staging, operation.stagingBytes);
  const uint32_t before = operation.slab->users.fetch_sub(1, std::memory_order_release);
  CAIRN_ASSERT(before > 0, "slab users are counted in pairs");
  const uint32_t id = operation.io.id;
  operation = Operation{};
  freeOperations_.push_back(id);
}

/// One item's end: its counts go, its status stands. The batch is told by complete().
void DiskQueue::settle(DiskBatch& batch, size_t at, uint8_t status) {
  DiskItem& item = batch.items[at];
  CAIRN_ASSERT(batch.states[at] != ItemState::kEnded && batch.unfinished > 0, "an item ends once");
  const bool began = batch.states[at] == ItemState::kAtDevice;
  const DiskKind kind = batch.options.kind;
  if (!began && kind == DiskKind::kRead) counters_.readsQueued--;
  if (!began && kind == DiskKind::kWrite) counters_.writesQueued--;
  batch.states[at] = ItemState::kEnded;
  batch.statuses[at] = status;
  batch.unfinished--;
  const uint8_t plain = status & static_cast<uint8_t>(~kItemPromoted);
  if (plain == kItemOk && kind == DiskKind::kWrite) counters_.writeItems++;
  if (plain == kItemOk && kind == DiskKind::kRead) counters_.readItems++;
  counters_.itemsCorrupt += plain == kItemCorrupt;
  counters_.itemsIdentity += plain == kItemIdentity;
  item.slab->users.fetch_sub(1, std::memory_order_release);
  if (item.dramSlot == kNoDramSlot) return;
  const uint32_t before = batch.arena->users(item.dramSlot >> kSlotIndexBits).fetch_sub(1, std::memory_order_release);
  CAIRN_ASSERT(before > 0, "DRAM slab users are counted in pairs");
}

void DiskQueue::endItem(DiskBatch& batch, size_t item, uint8_t status) {
  settle(batch, item, status);
  if (batch.unfinished == 0) complete(batch);
}

/// Ends what has not begun, and takes items away from the device: reads always, writes when asked.
void DiskQueue::endBatch(DiskBatch& batch, ItemStatus status, bool alsoWritesAtDevice) {
  const bool detach = batch.options.kind != DiskKind::kWrite || alsoWritesAtDevice;
  for (Operation& operation : operations_) {
    if (!detach || !operation.active || operation.batch != &batch) continue;
    settle(batch, operation.item, status);
    operation.batch = nullptr;
    if (operation.io.write) lostWrites_.insert(operation.slab->slab << kSlotIndexBits | operation.index);
    if (operation.landed) continue;
    atDevice(operation)--;
    operation.lost = true;
    lost_++;
  }
  for (size_t i = 0; i < batch.items.size(); i++) {
    if (batch.states[i] == ItemState::kWaiting) settle(batch, i, status);
  }
  batch.next = batch.items.size();
  if (batch.unfinished == 0) complete(batch);
}

/// Tells the batch's end and forgets it: `batch` is gone afterwards.
void DiskQueue::complete(DiskBatch& batch) {
  const uint32_t id = batch.options.id;
  for (auto& queue : reads_) std::erase(queue, &batch);
  std::erase(writes_, &batch);
  std::erase(verifies_, &batch);
  Event event = copiedEvent(batch);
  // The region, and with it a client's memory, goes before its end is told.
  batches_.erase(id);
  bool told = false;
  {
    std::lock_guard lock(mutex_);
    told = open_.erase(id) == 0;
  }
  if (!told) events_->push(std::move(event));
}

void DiskQueue::expire(int64_t now) {
  if (now < nextDeadline_) return;
  nextDeadline_ = INT64_MAX;
  std::vector<DiskBatch*> due;
  for (const auto& [id, batch] : batches_) {
    if (batch->deadlineMicroseconds == 0) continue;
    if (batch->deadlineMicroseconds <= now) {
      due.push_back(batch.get());
    } else {
      nextDeadline_ = std::min(nextDeadline_, batch->deadlineMicroseconds);
    }
  }
  for (DiskBatch* batch : due) endBatch(*batch, kItemDeadline, true);
}

int64_t DiskQueue::waitMicroseconds(int64_t now) const {
  int64_t wait = nextDeadline_ == INT64_MAX ? INT64_MAX : std::max<int64_t>(0, nextDeadline_ - now);
  const int64_t turn = writesWaitSince_ + options_.writeWaitMicroseconds;
  if (writesWaitSince_ != 0 && turn > now) wait = std::min(wait, turn - now);
  return wait == INT64_MAX ? -1 : wait;
}

}  // namespace cairn
