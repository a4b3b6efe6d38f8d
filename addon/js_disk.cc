// N-API face of the disks: opening, segments, batches, sync and scan. Arguments are checked and items resolved here,
// on the JS thread, so that disk threads read neither the ledger nor the arena's tables.
#include <cstring>

#include "js_support.h"

namespace cairn::js {
namespace {

constexpr size_t kDiskScanWords = sizeof(SlotHeader) / 4 + 1;

Disk& diskOf(Instance& instance, uint32_t id) {
  instance.needRunning();
  const auto found = instance.disks.find(id);
  if (found == instance.disks.end()) fail("CLOSED", "no such disk: " + std::to_string(id));
  return *found->second;
}

Disk& diskOf(const Call& call) { return diskOf(call.instance(), call.uint32(0)); }

DiskOptions diskOptions(const Call& call, napi_value object) {
  DiskOptions options{};
  options.directory = call.fieldString(object, "directory");
  options.segmentBytes = call.fieldSize(object, "segmentBytes");
  const std::string mode = call.fieldString(object, "mode");
  if (mode != "auto" && mode != "uring" && mode != "threads") {
    fail("ARGUMENT", "mode must be auto, uring or threads");
  }
  options.mode = mode == "threads" ? DiskMode::kThreads : mode == "uring" ? DiskMode::kUring : DiskMode::kAuto;
  const std::string direct = call.fieldString(object, "direct");
  if (direct != "auto" && direct != "off") fail("ARGUMENT", "direct must be auto or off");
  options.direct = direct == "auto";
  options.queueDepth = call.fieldUint32(object, "queueDepth");
  options.writeDepth = call.fieldUint32(object, "writeDepth");
  options.stagingBytes = call.fieldSize(object, "stagingBytes");
  options.operations = FileOperations::system();
  return options;
}

napi_value text(const Call& call, const std::string& string) {
  napi_value value;
  check(napi_create_string_utf8(call.env, string.c_str(), string.size(), &value), "string");
  return value;
}

napi_value diskOpen(Call& call) {
  Instance& instance = call.instance();
  instance.needRunning();
  auto disk = std::make_unique<Disk>(diskOptions(call, call.value(0)), *instance.hub);
  const uint32_t id = instance.nextDisk++;
  napi_value info = call.object();
  call.set(info, "disk", id);
  call.set(info, "reopened", call.boolean(disk->directory().reopened(), nullptr));
  call.set(info, "directoryId", call.copyOf(disk->directory().id(), kDirectoryIdBytes));
  call.set(info, "segmentBytes", static_cast<double>(disk->directory().segmentBytes()));
  call.set(info, "mode", text(call, disk->uring() ? "uring" : "threads"));
  call.set(info, "direct", call.boolean(disk->direct(), nullptr));
  napi_value notes;
  check(napi_create_array(call.env, &notes), "array");
  uint32_t count = 0;
  for (const std::string& note : disk->notes()) {
    check(napi_set_element(call.env, notes, count++, text(call, note)), "element");
  }
  call.set(info, "notes", notes);
  instance.disks.emplace(id, std::move(disk));
  return info;
}

napi_value diskClose(Call& call) {
  Instance& instance = call.instance();
  diskOf(call).close();
  instance.disks.erase(call.uint32(0));
  return call.nothing();
}

napi_value diskSegments(Call& call) {
  napi_value list;
  check(napi_create_array(call.env, &list), "array");
  uint32_t count = 0;
  for (const auto& [segment, state] : diskOf(call).segments()) {
    // One that is only just being made is not found yet.
    if (state.file == nullptr) continue;
    napi_value entry = call.object();
    call.set(entry, "segment", segment);
    call.set(entry, "payloadBytes", state.payloadBytes);
    call.set(entry, "prepared", call.boolean(state.prepared, nullptr));
    check(napi_set_element(call.env, list, count++, entry), "element");
  }
  return list;
}

napi_value diskPrepare(Call& call) {
  diskOf(call).prepare(call.uint32(1), call.uint32(2));
  return call.nothing();
}

napi_value diskAttach(Call& call) {
  diskOf(call).attach(call.uint32(1), call.uint32(2));
  return call.nothing();
}

napi_value diskDetach(Call& call) {
  diskOf(call).detach(call.uint32(1), call.boolean(2));
  return call.nothing();
}

napi_value diskAssign(Call& call) { return call.number(diskOf(call).assign(call.uint32(1), call.uint32(2))); }

napi_value diskRelease(Call& call) {
  diskOf(call).release(call.uint32(1));
  return call.nothing();
}

napi_value diskSlotsPerSegment(Call& call) { return call.number(slotsPerSegment(call.size(0), call.uint32(1))); }

napi_value diskRestore(Call& call) {
  Disk& disk = diskOf(call);
  const auto slots = call.words(1);
  const auto generations = call.words(2);
  const uint32_t count = call.uint32(3);
  if (count > slots.length || count > generations.length) fail("ARGUMENT", "count does not fit the arrays");
  for (uint32_t i = 0; i < count; i++) disk.restore(slots.data[i], generations.data[i]);
  return call.nothing();
}

napi_value diskGenerations(Call& call) {
  const Disk& disk = diskOf(call);
  const auto slots = call.words(1);
  const uint32_t count = call.uint32(2);
  const auto into = call.words(3);
  if (count > slots.length || count > into.length) fail("ARGUMENT", "count does not fit the arrays");
  for (uint32_t i = 0; i < count; i++) into.data[i] = disk.generation(slots.data[i]);
  return call.nothing();
}

napi_value diskScan(Call& call) {
  Disk& disk = diskOf(call);
  disk.scan(*call.instance().arena(call.uint32(1)), call.uint32(2));
  return call.nothing();
}

napi_value diskScanRead(Call& call) {
  Disk& disk = diskOf(call);
  const auto into = call.words(1);
  if (into.length < kDiskScanWords) fail("ARGUMENT", "the array holds no header");
  return call.number(static_cast<double>(disk.scanRead(into.data, into.length / kDiskScanWords)));
}

napi_value diskSync(Call& call) {
  diskOf(call).sync(call.uint32(1));
  return call.nothing();
}

DiskBatchOptions diskBatchOptions(const Call& call, napi_value object) {
  auto options = batchOptions<DiskBatchOptions>(call, object, 3);
  options.priority = call.fieldUint32(object, "priority");
  options.hasRegion = options.kind == DiskKind::kRead && call.fieldUint32(object, "region") != 0;
  return options;
}

/// Everything the disk's threads need, read from the ledger's record and the tables of arena and disk.
void resolveItem(const Ledger& ledger, const Disk& disk, const DiskBatch& batch, const uint32_t* words,
                 DiskItem& item) {
  const DiskBatchOptions& options = batch.options;
  item.slab = disk.slabOf(words[0], options.payloadBytes);
  item.index = words[0] & (kSlotsPerSlabMax - 1);
  item.range = batch.region == nullptr ? nullptr : itemRange(*batch.region, words, options.payloadBytes);
  resolveName(ledger, *batch.arena, words[3], item);
  memcpy(item.digest, batch.arena->namespaces()[item.namespaceIndex].digest, kDigestBytes);
  item.dramSlot = options.kind == DiskKind::kVerify ? kNoDramSlot : words[4];
  item.dramHeader = nullptr;
  item.dramPayload = nullptr;
  if (item.dramSlot != kNoDramSlot) {
    checkSlot(*batch.arena, item.dramSlot, options.payloadBytes);
    item.dramHeader = batch.arena->header(item.dramSlot);
    item.dramPayload = batch.arena->payload(item.dramSlot);
  } else if (options.kind == DiskKind::kWrite) {
    fail("ARGUMENT", "a write needs a DRAM slot");
  } else if (options.kind == DiskKind::kRead && !options.hasRegion) {
    fail("ARGUMENT", "a read needs a region or a DRAM slot");
  }
}

napi_value diskSubmit(Call& call) {
  Instance& instance = call.instance();
  napi_value object = call.value(0);
  Disk& disk = diskOf(instance, call.fieldUint32(object, "disk"));
  auto batch = std::make_unique<DiskBatch>();
  batch->options = diskBatchOptions(call, object);
  batch->arena = instance.arena(call.fieldUint32(object, "arena"));
  const BatchItems given = batchItems(call);
  if (batch->options.hasRegion) batch->region = batchRegion(call, object);
  batch->items.resize(given.count);
  for (uint32_t i = 0; i < given.count; i++) {
    resolveItem(instance.ledger, disk, *batch, given.at(i), batch->items[i]);
  }
  disk.submit(std::move(batch));
  return call.nothing();
}

napi_value diskCancel(Call& call) {
  diskOf(call).cancel(call.uint32(1));
  return call.nothing();
}

napi_value diskCounters(Call& call) {
  const Disk& disk = diskOf(call);
  const DiskCounterSet& counters = disk.counters();
  napi_value result = call.object();
  const auto set = [&](const char* key, const std::atomic<uint64_t>& value) {
    call.set(result, key, static_cast<double>(value.load(std::memory_order_relaxed)));
  };
  set("bytesRead", counters.bytesRead);
  set("bytesWritten", counters.bytesWritten);
  set("readItems", counters.readItems);
  set("writeItems", counters.writeItems);
  set("ioErrors", counters.ioErrors);
  set("itemsCorrupt", counters.itemsCorrupt);
  set("itemsIdentity", counters.itemsIdentity);
  set("readsQueued", counters.readsQueued);
  set("writesQueued", counters.writesQueued);
  set("inFlight", counters.inFlight);
  const bool registered = counters.registeredBuffers.load(std::memory_order_relaxed);
  call.set(result, "registeredBuffers", call.boolean(registered, nullptr));
  const int64_t began = counters.oldestBegan.load(std::memory_order_relaxed);
  call.set(result, "oldestMicroseconds", began == 0 ? 0 : static_cast<double>(steadyMicroseconds() - began));
  call.set(result, "cpuMicroseconds", static_cast<double>(disk.cpuMicroseconds()));
  return result;
}

}  // namespace

void addDiskMethods(napi_env env, napi_value exports) {
  addMethod(env, exports, "diskOpen", entry<diskOpen>);
  addMethod(env, exports, "diskClose", entry<diskClose>);
  addMethod(env, exports, "diskSegments", entry<diskSegments>);
  addMethod(env, exports, "diskPrepare", entry<diskPrepare>);
  addMethod(env, exports, "diskAttach", entry<diskAttach>);
  addMethod(env, exports, "diskDetach", entry<diskDetach>);
  addMethod(env, exports, "diskAssign", entry<diskAssign>);
  addMethod(env, exports, "diskRelease", entry<diskRelease>);
  addMethod(env, exports, "diskSlotsPerSegment", entry<diskSlotsPerSegment>);
  addMethod(env, exports, "diskRestore", entry<diskRestore>);
  addMethod(env, exports, "diskGenerations", entry<diskGenerations>);
  addMethod(env, exports, "diskScan", entry<diskScan>);
  addMethod(env, exports, "diskScanRead", entry<diskScanRead>);
  addMethod(env, exports, "diskSync", entry<diskSync>);
  addMethod(env, exports, "diskSubmit", entry<diskSubmit>);
  addMethod(env, exports, "diskCancel", entry<diskCancel>);
  addMethod(env, exports, "diskCounters", entry<diskCounters>);
}

}  // namespace cairn::js
