#include "copy.h"

#include <algorithm>
#include <cstring>

namespace cairn {
namespace {

constexpr size_t kChunkBytes = 256 * 1024;
constexpr size_t kChunkItemsMax = 128;
constexpr size_t kPrefetchItems = 6;
constexpr size_t kRecycledMax = 16;

/// LOAD, STORE, MOVE, VERIFY in order of urgency; somebody waits for an IMPORT, nobody for an EXPORT.
size_t priorityOf(CopyKind kind) {
  switch (kind) {
    case CopyKind::kLoad: return 0;
    case CopyKind::kStore:
    case CopyKind::kImport: return 1;
    case CopyKind::kMove:
    case CopyKind::kExport: return 2;
    case CopyKind::kVerify: return 3;
  }
  CAIRN_ASSERT(false, "a copy kind");
  return 3;
}

void prefetchItem(const CopyItem& item) {
  __builtin_prefetch(item.header, 1);
  __builtin_prefetch(reinterpret_cast<const uint8_t*>(item.header) + 64, 1);
  __builtin_prefetch(item.payload, 1);
  if (item.other != nullptr) __builtin_prefetch(item.other, 1);
}

ItemStatus storeItem(CopyItem& item, uint32_t shard, uint32_t bytes) {
  const uint32_t generation = nextGeneration(item.header->generation);
  freeForWriting(*item.header);
  const Hash128 hash = copyAndHash(item.payload, item.other, bytes);
  landHeader(*item.header, item, {shard, bytes, generation, unixMilliseconds(), hash});
  return kItemOk;
}

ItemStatus loadItem(CopyItem& item, uint32_t shard, uint32_t bytes) {
  if (!slotHolds(*item.header, item, item.generation, shard, bytes)) return kItemIdentity;
  const uint32_t generation = item.header->generation;
  const Hash128 expected = item.header->payloadHash;
  const Hash128 hash = copyAndHash(item.other, item.payload, bytes);
  if (hash != expected) return kItemCorrupt;
  std::atomic_thread_fence(std::memory_order_acquire);
  // The ledger pins the slot while it is copied; a slot that changed anyway is not the block asked for.
  if (slotState(*item.header) != kSlotValid || item.header->generation != generation) return kItemIdentity;
  return kItemOk;
}

ItemStatus moveItem(CopyItem& item, uint32_t shard, uint32_t bytes) {
  if (!slotHolds(*item.header, item, item.generation, shard, bytes)) return kItemIdentity;
  SlotHeader& target = *item.targetHeader;
  const uint32_t generation = nextGeneration(target.generation);
  freeForWriting(target);
  const Hash128 hash = copyAndHash(item.other, item.payload, bytes);
  if (hash != item.header->payloadHash) return kItemCorrupt;
  memcpy(item.parentKey, item.header->parentKey, kKeyBytes);
  landHeader(target, item, {shard, bytes, generation, item.header->lastAccess, hash});
  return kItemOk;
}

ItemStatus verifyItem(const CopyItem& item, uint32_t shard, uint32_t bytes) {
  if (!slotHolds(*item.header, item, item.generation, shard, bytes)) return kItemIdentity;
  return hashOnly(item.payload, bytes) == item.header->payloadHash ? kItemOk : kItemCorrupt;
}

/// Remote objects are of no directory; their blocks are written once.
constexpr uint8_t kNoDirectory[kDirectoryIdBytes] = {};
constexpr uint32_t kObjectGeneration = 1;

ItemStatus exportItem(const CopyItem& item, const Digest& digest, const SealKey* key, uint32_t shard, uint32_t bytes) {
  if (!slotHolds(*item.header, item, item.generation, shard, bytes)) return kItemIdentity;
  const uint8_t* directory = key == nullptr ? kNoDirectory : key->id;
  const DiskSlotName name{item, digest.data(), directory, shard, bytes, kObjectGeneration};
  if (key != nullptr) return sealSlot(item.other, *item.header, item.payload, name, *key);
  return encodeSlot(item.other, *item.header, item.payload, name);
}

ItemStatus importItem(CopyItem& item, const Digest& digest, const SealKey* key, uint32_t shard, uint32_t bytes) {
  const uint8_t* directory = key == nullptr ? kNoDirectory : key->id;
  const DiskSlotName name{item, digest.data(), directory, shard, bytes, 0};
  if (key != nullptr) return openSlot(*item.header, item.payload, item.other, name, *key);
  DiskHeader header;
  const ItemStatus identity = readDiskHeader(item.other, name, header);
  if (identity != kItemOk) return identity;
  return landPayload(*item.header, item.payload, item.other, header, item);
}

/// Changes the per-slab count of queued copies, one atomic per run of equal slabs.
void addUsers(Arena& arena, const CopyItem* items, size_t count, bool targets, bool add) {
  for (size_t i = 0; i < count;) {
    const uint32_t slab = (targets ? items[i].targetSlot : items[i].slot) >> kSlotIndexBits;
    uint32_t run = 0;
    while (i < count && (targets ? items[i].targetSlot : items[i].slot) >> kSlotIndexBits == slab) {
      run++;
      i++;
    }
    std::atomic<uint32_t>& users = arena.users(slab);
    if (add) {
      users.fetch_add(run, std::memory_order_relaxed);
    } else {
      const uint32_t before = users.fetch_sub(run, std::memory_order_release);
      CAIRN_ASSERT(before >= run, "slab users are counted in pairs");
    }
  }
}

}  // namespace

CopyEngine::CopyEngine(uint32_t threads, EventHub& hub) : hub_(hub) {
  CAIRN_ASSERT(threads > 0, "at least one copy thread");
  try {
    for (uint32_t i = 0; i < threads; i++) threads_.push_back(startThread([this] { work(); }));
  } catch (...) {
    stop();
    throw;
  }
}

void CopyEngine::submit(const CopyBatchOptions& options, std::shared_ptr<Arena> arena,
                        std::shared_ptr<Region> region, std::vector<CopyItem> items,
                        std::vector<Digest> digests, std::unique_ptr<SealKey> key) {
  const bool move = options.kind == CopyKind::kMove;
  auto batch = std::make_shared<Batch>();
  batch->options = options;
  batch->arena = std::move(arena);
  batch->region = std::move(region);
  batch->items = std::move(items);
  batch->digests = std::move(digests);
  batch->key = std::move(key);
  const size_t count = batch->items.size();
  CAIRN_ASSERT(count > 0, "a batch has items");
  batch->statuses.assign(count, kItemOk);
  batch->unfinished = count;
  batch->submittedMicroseconds = steadyMicroseconds();
  batch->deadlineMicroseconds =
      options.deadlineMs == 0 ? 0 : batch->submittedMicroseconds + int64_t{options.deadlineMs} * 1000;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) fail("CLOSED", "the addon is stopped");
    if (!batches_.emplace(options.id, batch).second) fail("ARGUMENT", "the batch id is in use");
    addUsers(*batch->arena, batch->items.data(), count, false, true);
    if (move) addUsers(*batch->arena, batch->items.data(), count, true, true);
    counters_.queueItems.fetch_add(count, std::memory_order_relaxed);
    counters_.queueBytes.fetch_add(count * options.payloadBytes, std::memory_order_relaxed);
    if (batch->deadlineMicroseconds != 0) nextDeadline_ = std::min(nextDeadline_, batch->deadlineMicroseconds);
    queues_[priorityOf(options.kind)].push_back(std::move(batch));
  }
  wake_.notify_one();
}

std::vector<CopyItem> CopyEngine::recycledItems() {
  std::lock_guard lock(mutex_);
  if (recycled_.empty()) return {};
  std::vector<CopyItem> items = std::move(recycled_.back());
  recycled_.pop_back();
  return items;
}

void CopyEngine::work() {
  Chunk chunk;
  while (take(chunk)) {
    const int64_t began = steadyMicroseconds();
    run(chunk);
    counters_.busyMicroseconds.fetch_add(static_cast<uint64_t>(steadyMicroseconds() - began),
                                         std::memory_order_relaxed);
    finish(chunk);
    chunk.batch.reset();
  }
}

bool CopyEngine::take(Chunk& chunk) {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (stopping_) return false;
    if (nextDeadline_ != INT64_MAX) expire(steadyMicroseconds());
    for (auto& queue : queues_) {
      if (queue.empty()) continue;
      chunk.batch = queue.front();
      Batch& batch = *chunk.batch;
      const size_t byBytes = std::max<size_t>(1, kChunkBytes / batch.options.payloadBytes);
      chunk.from = batch.next;
      chunk.to = std::min(batch.items.size(), batch.next + std::min(byBytes, kChunkItemsMax));
      batch.next = chunk.to;
      const bool more = batch.next < batch.items.size();
      if (!more) queue.pop_front();
      // Another thread may share what is left of this batch, or take the next one.
      if (more || !queue.empty()) wake_.notify_one();
      return true;
    }
    wake_.wait(lock);
  }
}

void CopyEngine::expire(int64_t now) {
  if (now < nextDeadline_) return;
  nextDeadline_ = INT64_MAX;
  for (auto& queue : queues_) {
    for (auto at = queue.begin(); at != queue.end();) {
      const std::shared_ptr<Batch> batch = *at;
      if (batch->deadlineMicroseconds == 0 || now < batch->deadlineMicroseconds) {
        if (batch->deadlineMicroseconds != 0) nextDeadline_ = std::min(nextDeadline_, batch->deadlineMicroseconds);
        ++at;
        continue;
      }
      at = queue.erase(at);
      if (endWaiting(*batch, kItemDeadline)) complete(*batch);
    }
  }
}

bool CopyEngine::endWaiting(Batch& batch, ItemStatus status) {
  const size_t from = batch.next;
  const size_t count = batch.items.size() - from;
  if (count == 0) return false;
  std::fill_n(batch.statuses.begin() + static_cast<ptrdiff_t>(from), count, status);
  const CopyItem* items = batch.items.data() + from;
  addUsers(*batch.arena, items, count, false, false);
  if (batch.options.kind == CopyKind::kMove) addUsers(*batch.arena, items, count, true, false);
  counters_.queueItems.fetch_sub(count, std::memory_order_relaxed);
  counters_.queueBytes.fetch_sub(count * batch.options.payloadBytes, std::memory_order_relaxed);
  batch.next = batch.items.size();
  batch.unfinished -= count;
  return batch.unfinished == 0;
}

void CopyEngine::run(const Chunk& chunk) {
  Batch& batch = *chunk.batch;
  const bool small = batch.options.payloadBytes <= 4096;
  for (size_t i = chunk.from; i < chunk.to; i++) {
    if (small && i + kPrefetchItems < chunk.to) prefetchItem(batch.items[i + kPrefetchItems]);
    batch.statuses[i] = runItem(batch, batch.items[i]);
  }
}

ItemStatus CopyEngine::runItem(Batch& batch, CopyItem& item) {
  const uint32_t bytes = batch.options.payloadBytes;
  const uint32_t shard = batch.options.shard | batch.options.shards << 16;
  if (batch.cancelled.load(std::memory_order_relaxed)) return kItemCancelled;
  if (batch.deadlineMicroseconds != 0 && steadyMicroseconds() >= batch.deadlineMicroseconds) return kItemDeadline;
  switch (batch.options.kind) {
    case CopyKind::kStore:
    case CopyKind::kLoad:
    case CopyKind::kExport:
    case CopyKind::kImport: return runRegionItem(batch, item);
    case CopyKind::kMove: return moveItem(item, shard, bytes);
    case CopyKind::kVerify: return verifyItem(item, shard, bytes);
  }
  CAIRN_ASSERT(false, "a copy kind");
  return kItemIdentity;
}

ItemStatus CopyEngine::runRegionItem(Batch& batch, CopyItem& item) {
  const uint32_t bytes = batch.options.payloadBytes;
  const uint32_t shard = batch.options.shard | batch.options.shards << 16;
  if (batch.region == nullptr || batch.region->closing() || item.other == nullptr) return kItemRegion;
  if (batch.options.kind == CopyKind::kStore) return storeItem(item, shard, bytes);
  if (batch.options.kind == CopyKind::kLoad) return loadItem(item, shard, bytes);
  CAIRN_ASSERT(item.digest < batch.digests.size(), "an item of an object has its namespace's digest");
  const Digest& digest = batch.digests[item.digest];
  const bool out = batch.options.kind == CopyKind::kExport;
  const SealKey* key = batch.key.get();
  return out ? exportItem(item, digest, key, shard, bytes) : importItem(item, digest, key, shard, bytes);
}

void CopyEngine::finish(const Chunk& chunk) {
  Batch& batch = *chunk.batch;
  const size_t count = chunk.to - chunk.from;
  const CopyItem* items = batch.items.data() + chunk.from;
  addUsers(*batch.arena, items, count, false, false);
  if (batch.options.kind == CopyKind::kMove) addUsers(*batch.arena, items, count, true, false);
  counters_.queueItems.fetch_sub(count, std::memory_order_relaxed);
  counters_.queueBytes.fetch_sub(count * batch.options.payloadBytes, std::memory_order_relaxed);
  std::lock_guard lock(mutex_);
  batch.unfinished -= count;
  if (batch.unfinished == 0) complete(batch);
}

void CopyEngine::complete(Batch& batch) {
  uint32_t failed = 0;
  uint64_t corrupt = 0;
  uint64_t identity = 0;
  for (const uint8_t status : batch.statuses) {
    failed += status != kItemOk;
    corrupt += status == kItemCorrupt;
    identity += status == kItemIdentity;
  }
  const uint64_t bytes = (batch.statuses.size() - failed) * uint64_t{batch.options.payloadBytes};
  if (batch.options.kind == CopyKind::kStore) counters_.bytesStored.fetch_add(bytes, std::memory_order_relaxed);
  if (batch.options.kind == CopyKind::kLoad) counters_.bytesLoaded.fetch_add(bytes, std::memory_order_relaxed);
  counters_.itemsCorrupt.fetch_add(corrupt, std::memory_order_relaxed);
  counters_.itemsIdentity.fetch_add(identity, std::memory_order_relaxed);
  const int64_t took = std::min<int64_t>(steadyMicroseconds() - batch.submittedMicroseconds, UINT32_MAX);
  Event event{};
  event.type = kCopied;
  event.id = batch.options.id;
  event.a = failed;
  event.b = static_cast<uint32_t>(took);
  event.c = static_cast<uint32_t>(bytes);
  event.d = static_cast<uint32_t>(bytes >> 32);
  event.statuses = std::move(batch.statuses);
  if (recycled_.size() < kRecycledMax) {
    batch.items.clear();
    recycled_.push_back(std::move(batch.items));
  }
  batch.region.reset();
  batches_.erase(batch.options.id);
  hub_.push(std::move(event));
}

void CopyEngine::cancel(uint32_t id) {
  std::lock_guard lock(mutex_);
  const auto found = batches_.find(id);
  if (found == batches_.end()) return;
  const std::shared_ptr<Batch> batch = found->second;
  batch->cancelled.store(true, std::memory_order_relaxed);
  auto& queue = queues_[priorityOf(batch->options.kind)];
  const auto at = std::find(queue.begin(), queue.end(), batch);
  if (at == queue.end()) return;
  queue.erase(at);
  if (endWaiting(*batch, kItemCancelled)) complete(*batch);
}

void CopyEngine::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  std::lock_guard lock(mutex_);
  for (auto& queue : queues_) {
    for (const auto& batch : queue) endWaiting(*batch, kItemCancelled);
    queue.clear();
  }
  batches_.clear();
}

}  // namespace cairn
