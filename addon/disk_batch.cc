#include "disk_batch.h"

#include <algorithm>
#include <cstring>

namespace cairn {

void DiskEvents::progress(uint32_t task, uint32_t done, uint32_t total, uint32_t state, int error) {
  Event event{};
  event.type = kProgress;
  event.id = task;
  event.a = done;
  event.b = total;
  event.c = state;
  event.d = static_cast<uint32_t>(error);
  push(std::move(event));
}

uint8_t deliverRead(const DiskBatch& batch, DiskItem& item, const uint8_t* staging) {
  CAIRN_ASSERT(batch.options.kind != DiskKind::kWrite, "only reads are delivered");
  const uint32_t expected = item.slab->generations[item.index].load(std::memory_order_relaxed);
  DiskHeader header;
  const ItemStatus identity = readDiskHeader(staging, batch.nameOf(item, expected), header);
  if (identity != kItemOk) return identity;
  CAIRN_ASSERT(header.slot.length == batch.options.payloadBytes, "a verified header has the length asked for");
  if (batch.options.kind == DiskKind::kVerify) {
    const Hash128 hash = hashOnly(staging + kDiskHeaderBytes, header.slot.length);
    return hash == header.slot.payloadHash ? kItemOk : kItemCorrupt;
  }
  uint8_t status = kItemOk;
  if (batch.options.hasRegion) {
    const bool there = batch.region != nullptr && !batch.region->closing() && item.range != nullptr;
    status = there ? copyPayload(item.range, staging, header) : kItemRegion;
    if (status == kItemCorrupt) return status;
  }
  if (item.dramHeader == nullptr) return status;
  const ItemStatus landed = landPayload(*item.dramHeader, item.dramPayload, staging, header, item);
  // A block that reached the region stands, whatever became of its promotion.
  if (landed != kItemOk) return batch.options.hasRegion && status == kItemOk ? status : uint8_t{landed};
  return status | kItemPromoted;
}

Event copiedEvent(DiskBatch& batch) {
  CAIRN_ASSERT(batch.unfinished == 0, "a batch ends when all its items have");
  uint32_t failed = 0;
  for (const uint8_t status : batch.statuses) failed += (status & ~kItemPromoted) != kItemOk;
  const uint64_t bytes = (batch.statuses.size() - failed) * uint64_t{batch.options.payloadBytes};
  const int64_t took = std::min<int64_t>(steadyMicroseconds() - batch.submittedMicroseconds, UINT32_MAX);
  Event event{};
  event.type = kCopied;
  event.id = batch.options.id;
  event.a = failed;
  event.b = static_cast<uint32_t>(took);
  event.c = static_cast<uint32_t>(bytes);
  event.d = static_cast<uint32_t>(bytes >> 32);
  event.statuses = std::move(batch.statuses);
  return event;
}

void DiskScan::take(const DiskSlab& slab, uint32_t index, uint32_t count, const uint8_t* bytes,
                    size_t strideBytes) {
  CAIRN_ASSERT(index + count <= slab.slots, "scanned slots exist");
  slotsDone += count;
  for (uint32_t i = 0; i < count; i++) {
    DiskHeader header;
    memcpy(&header, bytes + i * strideBytes, sizeof header);
    // A slot that was prepared and never written.
    if (header.slot.magic == 0 && header.version == 0) continue;
    const auto at = std::lower_bound(
        namespaces.begin(), namespaces.end(), header.digest,
        [](const Namespace& ns, const uint8_t* digest) { return memcmp(ns.digest, digest, kDigestBytes) < 0; });
    const bool known = at != namespaces.end() && memcmp(at->digest, header.digest, kDigestBytes) == 0;
    if (!known || header.slot.length > slab.payloadBytes || !diskHeaderValid(header, slab.file->directory->id())) {
      invalid++;
      continue;
    }
    header.slot.namespaceIndex = at->index;
    const uint64_t order = uint64_t{header.slot.depth} << 32 | (UINT32_MAX - header.slot.generation);
    entries.push_back({order, slab.slab << kSlotIndexBits | (index + i), header.slot});
  }
}

void DiskScan::sort() {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.order != b.order ? a.order < b.order : a.slot < b.slot;
  });
}

}  // namespace cairn
