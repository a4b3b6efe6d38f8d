// What JS asks of a disk, resolved: a batch of reads, writes or checks, and the segment slots they name.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "arena.h"
#include "disk_file.h"
#include "disk_slot.h"
#include "events.h"
#include "region.h"

namespace cairn {

enum class DiskKind : uint32_t { kRead = 1, kWrite = 2, kVerify = 3 };
constexpr uint32_t kNoDramSlot = UINT32_MAX;
/// Beside the status of a READ: the DRAM slot holds the verified block.
constexpr uint8_t kItemPromoted = 0x80;
constexpr uint32_t kDiskPriorities = 3;

/// The way of native threads to JS that can be cut: after cut() no event of this disk comes any more, so a thread
/// that a stalled device held may return when the hub has long gone.
class DiskEvents {
 public:
  explicit DiskEvents(EventHub& hub) : hub_(&hub) {}
  void push(Event&& event) {
    std::lock_guard lock(mutex_);
    if (hub_ != nullptr) hub_->push(std::move(event));
  }
  void progress(uint32_t task, uint32_t done, uint32_t total, uint32_t state, int error = 0);
  void cut() {
    std::lock_guard lock(mutex_);
    hub_ = nullptr;
  }

 private:
  std::mutex mutex_;
  EventHub* hub_;  // guarded by mutex_
};

/// A segment under its slab number. Geometry changes on the JS thread while nothing uses the slab.
struct DiskSlab {
  uint32_t slab = 0;
  std::shared_ptr<SegmentFile> file;
  uint32_t payloadBytes = 0;
  uint32_t slots = 0;
  uint64_t strideBytes = 0;
  /// The segment header on disk does not say payloadBytes yet: it goes out before the next slot.
  bool headerOwed = false;
  /// Generation of each slot's last write, the one at the device included; 0 = unknown.
  std::unique_ptr<std::atomic<uint32_t>[]> generations;
  /// Slots of a slab assigned anew continue from here, so that generations do not repeat.
  uint32_t generationBase = 0;
  /// Items queued, operations at the device, a scan.
  std::atomic<uint32_t> users{0};

  uint64_t offsetOf(uint32_t index) const { return kSectorBytes + uint64_t{index} * strideBytes; }
};

struct DiskItem : BlockName {
  uint8_t digest[kDigestBytes];
  std::shared_ptr<DiskSlab> slab;
  /// Of the disk slot in its slab.
  uint32_t index;
  uint32_t dramSlot = kNoDramSlot;
  /// READ: range of the region; nullptr without one, or when the region has gone or the range lies outside.
  uint8_t* range;
  SlotHeader* dramHeader;
  uint8_t* dramPayload;
};

struct DiskBatchOptions {
  DiskKind kind;
  uint32_t id;
  uint32_t shard;
  uint32_t shards;
  uint32_t payloadBytes;
  uint32_t deadlineMs;
  uint32_t priority;
  /// The caller named a region, gone or not.
  bool hasRegion;
};

enum class ItemState : uint8_t { kWaiting, kAtDevice, kEnded };

/// Belongs to the coordinating thread once submitted.
struct DiskBatch {
  DiskBatchOptions options;
  std::shared_ptr<Arena> arena;
  std::shared_ptr<Region> region;
  std::vector<DiskItem> items;
  std::vector<uint8_t> statuses;
  std::vector<ItemState> states;
  int64_t submittedMicroseconds = 0;
  int64_t deadlineMicroseconds = 0;  // 0 = none
  size_t next = 0;
  size_t unfinished = 0;
  bool cancelled = false;

  uint32_t shardWord() const { return options.shard | options.shards << 16; }
  DiskSlotName nameOf(const DiskItem& item, uint32_t generation) const {
    return {item, item.digest, item.slab->file->directory->id(), shardWord(), options.payloadBytes, generation};
  }
};

/// The slot that was read into `staging` → the item's region range and DRAM slot; the item's status with
/// kItemPromoted. Called while the memory named by the item is sure to be there.
uint8_t deliverRead(const DiskBatch& batch, DiskItem& item, const uint8_t* staging);

/// The one event of an ended batch.
Event copiedEvent(DiskBatch& batch);

/// What a header scan of a disk found; filled by the coordinating thread, sorted by a helper, then read by JS.
struct DiskScan {
  struct Entry {
    /// depth << 32 | ~generation: ascending order is the order wanted.
    uint64_t order;
    uint32_t slot;
    SlotHeader header;
  };
  struct Namespace {
    uint8_t digest[kDigestBytes];
    uint32_t index;
  };
  uint32_t task = 0;
  std::vector<Namespace> namespaces;  // sorted by digest
  std::vector<std::shared_ptr<DiskSlab>> slabs;
  std::vector<Entry> entries;
  uint64_t slotsTotal = 0;
  uint64_t slotsDone = 0;
  uint64_t invalid = 0;
  // Where reading goes on.
  size_t slabAt = 0;
  uint32_t slotAt = 0;
  uint32_t atDevice = 0;
  size_t cursor = 0;
  std::atomic<bool> ended{false};

  /// Headers of `count` slots from `index` on, `strideBytes` apart in memory.
  void take(const DiskSlab& slab, uint32_t index, uint32_t count, const uint8_t* bytes, size_t strideBytes);
  void sort();
};

}  // namespace cairn
