// Copy threads: STORE (region → slot), LOAD (slot → region), MOVE (slot → slot), VERIFY, and for remote objects
// EXPORT (slot → header and payload in a region) and IMPORT (back), each item with identity and checksum.
// Batches wait in queues, LOAD before STORE and IMPORT before MOVE and EXPORT before VERIFY; threads take
// a few items at a time, so that several share a batch and an urgent LOAD overtakes between items. Every batch
// ends in exactly one COPIED event, whatever happens to its items.
//
// Everything an item needs (pointers, key, expected identity) is resolved when it is submitted, on the JS
// thread, so copy threads never read the ledger or the arena's tables.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "arena.h"
#include "disk_slot.h"
#include "events.h"
#include "region.h"
#include "seal.h"

namespace cairn {

enum class CopyKind : uint32_t { kStore = 1, kLoad = 2, kMove = 3, kVerify = 4, kExport = 5, kImport = 6 };
using Digest = std::array<uint8_t, kDigestBytes>;
struct CopyItem : BlockName {
  SlotHeader* header;
  uint8_t* payload;
  /// STORE/LOAD/EXPORT/IMPORT: range of the region (nullptr: out of bounds). MOVE: payload of the target slot.
  uint8_t* other;
  SlotHeader* targetHeader;
  uint32_t slot;
  uint32_t targetSlot;
  uint32_t generation;
  /// EXPORT/IMPORT: which of the batch's namespace digests.
  uint32_t digest;
};
static_assert(sizeof(CopyItem) == 128);

struct CopyBatchOptions {
  CopyKind kind;
  uint32_t id;
  uint32_t shard;
  uint32_t shards;
  uint32_t payloadBytes;
  uint32_t deadlineMs;
};

struct CopyCounters {
  std::atomic<uint64_t> queueItems{0};
  std::atomic<uint64_t> queueBytes{0};
  std::atomic<uint64_t> bytesStored{0};
  std::atomic<uint64_t> bytesLoaded{0};
  std::atomic<uint64_t> busyMicroseconds{0};
  std::atomic<uint64_t> itemsCorrupt{0};
  std::atomic<uint64_t> itemsIdentity{0};
};

class CopyEngine {
 public:
  CopyEngine(uint32_t threads, EventHub& hub);
  ~CopyEngine() { stop(); }

  /// Takes the items over. region is empty for MOVE and VERIFY; digests serve EXPORT and IMPORT, which seal and open
  /// where there is a key. Throws ARGUMENT when the id is in use.
  void submit(const CopyBatchOptions& options, std::shared_ptr<Arena> arena, std::shared_ptr<Region> region,
              std::vector<CopyItem> items, std::vector<Digest> digests = {}, std::unique_ptr<SealKey> key = nullptr);
  /// Items not begun end CANCELLED. An unknown (ended) batch is no error.
  void cancel(uint32_t id);
  /// Running items end, everything else is dropped without an event. Idempotent.
  void stop();
  /// An item vector of an ended batch, for reuse.
  std::vector<CopyItem> recycledItems();
  const CopyCounters& counters() const { return counters_; }

 private:
  struct Batch {
    CopyBatchOptions options;
    std::shared_ptr<Arena> arena;
    std::shared_ptr<Region> region;
    std::vector<CopyItem> items;
    std::vector<Digest> digests;
    std::unique_ptr<SealKey> key;
    std::vector<uint8_t> statuses;
    int64_t submittedMicroseconds;
    int64_t deadlineMicroseconds;        // 0 = none
    size_t next = 0;                     // guarded by the engine's mutex
    size_t unfinished;                   // guarded by the engine's mutex
    std::atomic<bool> cancelled{false};
  };
  struct Chunk {
    std::shared_ptr<Batch> batch;
    size_t from;
    size_t to;
  };

  void work();
  bool take(Chunk& chunk);
  void run(const Chunk& chunk);
  void finish(const Chunk& chunk);
  void expire(int64_t now);
  /// Ends the items not begun; returns true when the batch has thereby ended.
  bool endWaiting(Batch& batch, ItemStatus status);
  void complete(Batch& batch);
  ItemStatus runItem(Batch& batch, CopyItem& item);
  ItemStatus runRegionItem(Batch& batch, CopyItem& item);

  EventHub& hub_;
  CopyCounters counters_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::array<std::deque<std::shared_ptr<Batch>>, 4> queues_;       // guarded by mutex_
  std::unordered_map<uint32_t, std::shared_ptr<Batch>> batches_;   // guarded by mutex_
  std::vector<std::vector<CopyItem>> recycled_;                    // guarded by mutex_
  int64_t nextDeadline_ = INT64_MAX;                               // guarded by mutex_
  bool stopping_ = false;                                          // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace cairn
