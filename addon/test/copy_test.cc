#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <thread>
#include <vector>

#include "../copy.h"
#include "../toucher.h"
#include "check.h"
#include "fixture.h"

using namespace cairn;
using namespace cairn::test;

namespace {

constexpr uint32_t kPayload = 8192;

/// An arena of one class, a region, an engine, and the items that lead from one to the other.
struct Bench {
  explicit Bench(uint32_t threads = 2, uint32_t payloadBytes = kPayload, uint64_t regionBytes = 1 << 20)
      : payload(payloadBytes), region(Region::create(regionBytes).first), engine(threads, pump.hub) {
    arena = Arena::open({dir.file("pool"), 4u << 20, 2, -1, false});
    const uint8_t digest[16] = {7};
    arena->putNamespace(0, digest, digest, 0);
    arena->assign(0, payload);
    arena->assign(1, payload);
    for (uint64_t i = 0; i < regionBytes; i++) region->base()[i] = static_cast<uint8_t>(i * 131 + i / 4096);
  }

  CopyItem item(uint32_t slot, uint64_t offset) const {
    CopyItem result{};
    result.slot = result.targetSlot = slot;
    result.header = arena->header(slot);
    result.payload = arena->payload(slot);
    result.other = region->contains(offset, payload) ? region->base() + offset : nullptr;
    result.seed = arena->namespaces()[0].seed;
    result.depth = slot + 1;
    memset(result.key, static_cast<int>(slot + 1), kKeyBytes);
    return result;
  }

  CopyItem move(uint32_t from, uint32_t to) const {
    CopyItem result = item(from, 0);
    result.targetSlot = to;
    result.targetHeader = arena->header(to);
    result.other = arena->payload(to);
    return result;
  }

  /// The block of slot `block`, as an object's header and payload at range `index`, to or from `slot`.
  CopyItem objectItem(uint32_t slot, uint32_t block, uint64_t index) const {
    const uint64_t bytes = kDiskHeaderBytes + payload;
    CopyItem result = item(slot, 0);
    result.other = region->contains(index * bytes, bytes) ? region->base() + index * bytes : nullptr;
    result.depth = block + 1;
    memset(result.key, static_cast<int>(block + 1), kKeyBytes);
    return result;
  }

  std::vector<CopyItem> items(uint32_t count) const {
    std::vector<CopyItem> list;
    for (uint32_t i = 0; i < count; i++) list.push_back(item(i, uint64_t{i} * payload));
    return list;
  }

  void submit(CopyKind kind, std::vector<CopyItem> list, uint32_t deadlineMs = 0) {
    const bool windowed = kind != CopyKind::kMove && kind != CopyKind::kVerify;
    engine.submit({kind, ++lastBatch, 0, 1, payload, deadlineMs}, arena, windowed ? region : nullptr,
                  std::move(list), {Digest{7}});
  }

  /// Runs one batch to its end; its statuses.
  std::vector<uint8_t> run(CopyKind kind, std::vector<CopyItem> list, uint32_t deadlineMs = 0) {
    submit(kind, std::move(list), deadlineMs);
    const uint32_t batch = lastBatch;
    EXPECT(pump.until([&] { return ended.count(batch) != 0; }, collect()));
    return ended[batch];
  }

  std::function<void(const EventPump::Words&)> collect() {
    return [this](const EventPump::Words& event) {
      EXPECT(event.type == kCopied && ended.count(event.id) == 0);
      ended[event.id].assign(pump.statuses + event.offset, pump.statuses + event.offset + event.length);
      failed[event.id] = event.a;
    };
  }

  TemporaryDirectory dir;
  EventPump pump;
  uint32_t payload;
  std::shared_ptr<Arena> arena;
  std::shared_ptr<Region> region;
  CopyEngine engine;
  uint32_t lastBatch = 0;
  std::map<uint32_t, std::vector<uint8_t>> ended;
  std::map<uint32_t, uint32_t> failed;
};

bool all(const std::vector<uint8_t>& statuses, size_t count, uint8_t status) {
  return statuses == std::vector<uint8_t>(count, status);
}

}  // namespace

TEST("what was stored is loaded back, byte for byte, with every size class formula") {
  for (const uint32_t payload : {64u, 240u, 241u, 1000u, 4096u, 65536u}) {
    Bench bench(2, payload);
    const uint32_t count = 12;
    const std::vector<uint8_t> original(bench.region->base(), bench.region->base() + count * payload);
    EXPECT(all(bench.run(CopyKind::kStore, bench.items(count)), count, kItemOk));
    memset(bench.region->base(), 0, count * payload);
    EXPECT(all(bench.run(CopyKind::kLoad, bench.items(count)), count, kItemOk));
    EXPECT(memcmp(bench.region->base(), original.data(), original.size()) == 0);
    EXPECT(bench.engine.counters().bytesStored == count * payload);
    EXPECT(bench.engine.counters().queueItems == 0 && bench.arena->users(0) == 0);
    EXPECT(all(bench.run(CopyKind::kVerify, bench.items(count)), count, kItemOk));
  }
}

TEST("any flipped payload bit is CORRUPT, for LOAD, VERIFY and MOVE") {
  Bench bench;
  bench.run(CopyKind::kStore, bench.items(3));
  bench.arena->payload(1)[4000] ^= 0x08;
  const std::vector<uint8_t> expected = {kItemOk, kItemCorrupt, kItemOk};
  EXPECT(bench.run(CopyKind::kLoad, bench.items(3)) == expected);
  EXPECT(bench.run(CopyKind::kVerify, bench.items(3)) == expected);
  EXPECT(bench.run(CopyKind::kMove, {bench.move(1, 1u << kSlotIndexBits)})[0] == kItemCorrupt);
  EXPECT(slotState(*bench.arena->header(1u << kSlotIndexBits)) == kSlotFree);
  EXPECT(bench.engine.counters().itemsCorrupt == 3);
}

TEST("LOAD refuses another key, depth, namespace, shard, length, generation, state or a damaged header") {
  Bench bench;
  bench.run(CopyKind::kStore, bench.items(1));
  const auto loads = [&](auto change) {
    CopyItem item = bench.item(0, 0);
    change(item);
    return bench.run(CopyKind::kLoad, {item})[0];
  };
  EXPECT(loads([](CopyItem&) {}) == kItemOk);
  EXPECT(loads([](CopyItem& item) { item.generation = 1; }) == kItemOk);
  EXPECT(loads([](CopyItem& item) { item.key[31] ^= 1; }) == kItemIdentity);
  EXPECT(loads([](CopyItem& item) { item.depth++; }) == kItemIdentity);
  EXPECT(loads([](CopyItem& item) { item.namespaceIndex++; }) == kItemIdentity);
  EXPECT(loads([](CopyItem& item) { item.seed++; }) == kItemIdentity);
  EXPECT(loads([](CopyItem& item) { item.generation = 2; }) == kItemIdentity);
  bench.payload = 4096;
  EXPECT(loads([](CopyItem&) {}) == kItemIdentity);
  bench.payload = kPayload;
  bench.arena->header(0)->parentKey[0] ^= 1;
  EXPECT(loads([](CopyItem&) {}) == kItemIdentity);
  bench.arena->header(0)->parentKey[0] ^= 1;
  setSlotState(*bench.arena->header(0), kSlotFree);
  EXPECT(loads([](CopyItem&) {}) == kItemIdentity);
  EXPECT(bench.engine.counters().itemsIdentity == 8);
}

TEST("every STORE raises the slot's generation, and one that wraps skips zero") {
  Bench bench;
  for (uint32_t i = 1; i <= 3; i++) {
    bench.run(CopyKind::kStore, bench.items(1));
    EXPECT(bench.arena->header(0)->generation == i);
  }
  bench.arena->header(0)->generation = UINT32_MAX;
  bench.run(CopyKind::kStore, bench.items(1));
  EXPECT(bench.arena->header(0)->generation == 1);
}

TEST("MOVE carries payload, parent and last access to the target slot") {
  Bench bench;
  CopyItem item = bench.item(2, 0);
  memset(item.parentKey, 0x44, kKeyBytes);
  bench.run(CopyKind::kStore, {item});
  bench.arena->header(2)->lastAccess = 123;
  const uint32_t target = 1u << kSlotIndexBits | 4;
  EXPECT(bench.run(CopyKind::kMove, {bench.move(2, target)})[0] == kItemOk);
  const SlotHeader& header = *bench.arena->header(target);
  EXPECT(header.lastAccess == 123 && header.parentKey[5] == 0x44 && header.generation == 1);
  EXPECT(headerValid(header, bench.arena->namespaces()[0].seed));
  EXPECT(memcmp(bench.arena->payload(target), bench.arena->payload(2), kPayload) == 0);
}

TEST("what was exported is imported into other slots, with its own header, byte for byte") {
  for (const uint32_t payload : {64u, 241u, 8192u, 65536u}) {
    Bench bench(2, payload);
    EXPECT(all(bench.run(CopyKind::kStore, bench.items(4)), 4, kItemOk));
    std::vector<CopyItem> out;
    std::vector<CopyItem> in;
    const uint32_t target = 1u << kSlotIndexBits;
    for (uint32_t i = 0; i < 4; i++) {
      out.push_back(bench.objectItem(i, i, i));
      in.push_back(bench.objectItem(target + i, i, i));
    }
    EXPECT(all(bench.run(CopyKind::kExport, out), 4, kItemOk));
    EXPECT(all(bench.run(CopyKind::kImport, in), 4, kItemOk));
    for (uint32_t i = 0; i < 4; i++) {
      EXPECT(slotHolds(*bench.arena->header(target + i), in[i], 1, 1 << 16, payload));
      EXPECT(memcmp(bench.arena->payload(target + i), bench.arena->payload(i), payload) == 0);
      DiskHeader header;
      memcpy(&header, out[i].other, sizeof header);
      const uint8_t none[kDirectoryIdBytes] = {};
      EXPECT(diskHeaderValid(header, none) && header.slot.generation == 1 && header.digest[0] == 7);
    }
    EXPECT(bench.arena->users(0) == 0 && bench.arena->users(1) == 0);
  }
}

TEST("an object's block that is damaged, torn or another's is not imported, and its slot stays free") {
  Bench bench;
  EXPECT(all(bench.run(CopyKind::kStore, bench.items(1)), 1, kItemOk));
  const CopyItem out = bench.objectItem(0, 0, 0);
  EXPECT(all(bench.run(CopyKind::kExport, {out}), 1, kItemOk));
  const uint32_t target = 1u << kSlotIndexBits;
  const auto imports = [&](uint32_t block) { return bench.run(CopyKind::kImport, {bench.objectItem(target, block, 0)})[0]; };
  for (const size_t at : {0u, 4u, 64u, 100u, 130u, 150u, 160u}) {
    out.other[at] ^= 1;
    EXPECT(imports(0) == kItemIdentity);
    out.other[at] ^= 1;
  }
  EXPECT(imports(1) == kItemIdentity);
  for (const size_t at : {size_t{192}, size_t{192 + kPayload - 1}}) {
    out.other[at] ^= 1;
    EXPECT(imports(0) == kItemCorrupt);
    EXPECT(slotState(*bench.arena->header(target)) == kSlotFree);
    out.other[at] ^= 1;
  }
  EXPECT(imports(0) == kItemOk);
  EXPECT(bench.run(CopyKind::kImport, {bench.objectItem(target, 0, 1 << 20)})[0] == kItemRegion);
  CopyItem another = out;
  another.generation = 9;
  EXPECT(bench.run(CopyKind::kExport, {another})[0] == kItemIdentity);
  bench.arena->payload(0)[5] ^= 1;
  EXPECT(bench.run(CopyKind::kExport, {out})[0] == kItemCorrupt);
}

TEST("items out of the region or after its close end REGION and move no byte") {
  Bench bench;
  const std::vector<uint8_t> statuses =
      bench.run(CopyKind::kStore, {bench.item(0, 0), bench.item(1, (1 << 20) - kPayload + 1), bench.item(2, UINT64_MAX)});
  EXPECT(statuses == std::vector<uint8_t>({kItemOk, kItemRegion, kItemRegion}));
  bench.region->close();
  const uint8_t before = bench.region->base()[0];
  bench.arena->payload(0)[0] = static_cast<uint8_t>(before + 1);
  EXPECT(all(bench.run(CopyKind::kLoad, bench.items(2)), 2, kItemRegion));
  EXPECT(bench.region->base()[0] == before);
}

TEST("after the event of a cancelled batch not one byte lands") {
  Bench bench(2, 65536, 32 << 20);
  const uint32_t count = bench.arena->slab(0).slots;
  EXPECT(all(bench.run(CopyKind::kStore, bench.items(count)), count, kItemOk));
  uint32_t cancelled = 0;
  for (int round = 0; round < 20; round++) {
    memset(bench.region->base(), 0, 32 << 20);
    std::vector<CopyItem> list;
    for (uint32_t i = 0; i < 500; i++) list.push_back(bench.item(i % count, uint64_t{i} * 65536));
    bench.submit(CopyKind::kLoad, std::move(list));
    usleep(static_cast<useconds_t>(round * 50));
    bench.engine.cancel(bench.lastBatch);
    bench.engine.cancel(bench.lastBatch + 1000);
    REQUIRE(bench.pump.until([&] { return bench.ended.count(bench.lastBatch) != 0; }, bench.collect()));
    const std::vector<uint8_t>& statuses = bench.ended[bench.lastBatch];
    std::vector<uint8_t> sums(500);
    const auto sum = [&] {
      uint64_t total = 0;
      for (uint64_t at = 0; at < 32u << 20; at += 64) total += bench.region->base()[at];
      return total;
    };
    const uint64_t now = sum();
    usleep(500);
    EXPECT(sum() == now);
    for (const uint8_t status : statuses) cancelled += status == kItemCancelled;
    EXPECT(bench.arena->users(0) == 0);
  }
  EXPECT(cancelled > 0);
}

TEST("items not begun at the deadline end DEADLINE, and urgent batches overtake") {
  Bench bench(1, 65536, 4 << 20);
  const uint32_t count = bench.arena->slab(0).slots;
  EXPECT(all(bench.run(CopyKind::kStore, bench.items(count)), count, kItemOk));
  // Long work first; then a VERIFY that cannot begin in time.
  for (int i = 0; i < 60; i++) {
    std::vector<CopyItem> list;
    for (int k = 0; k < 20; k++) {
      for (const CopyItem& item : bench.items(count)) list.push_back(item);
    }
    bench.submit(CopyKind::kLoad, std::move(list));
  }
  const uint32_t lastLoad = bench.lastBatch;
  bench.submit(CopyKind::kVerify, bench.items(2), 1);
  const uint32_t verify = bench.lastBatch;
  bool verifyEndedFirst = false;
  EXPECT(bench.pump.until([&] { return bench.ended.count(verify) != 0 && bench.ended.count(lastLoad) != 0; },
                          [&](const EventPump::Words& event) {
                            bench.collect()(event);
                            if (event.id == verify) verifyEndedFirst = bench.ended.count(lastLoad) == 0;
                          }));
  EXPECT(all(bench.ended[verify], 2, kItemDeadline));
  EXPECT(verifyEndedFirst && bench.failed[verify] == 2);
}

TEST("a batch id in use is refused; an engine stops with work queued and drops it") {
  Bench bench(1, 65536, 4 << 20);
  std::vector<CopyItem> list;
  for (int i = 0; i < 2000; i++) list.push_back(bench.item(static_cast<uint32_t>(i) % 50, 0));
  bench.submit(CopyKind::kStore, std::move(list));
  bench.lastBatch--;
  EXPECT(codeOf([&] { bench.submit(CopyKind::kStore, bench.items(1)); }) == "ARGUMENT");
  bench.engine.stop();
  EXPECT(bench.arena->users(0) == 0);
  EXPECT(codeOf([&] { bench.submit(CopyKind::kStore, bench.items(1)); }) == "CLOSED");
}

TEST("a STORE hashes what it wrote while the client scribbles over the source") {
  Bench bench(2, 65536);
  // Another process, as in life: it shares the window and nothing else.
  auto* words = reinterpret_cast<volatile uint64_t*>(bench.region->base());
  const pid_t scribbler = fork();
  if (scribbler == 0) {
    for (uint64_t i = 0;; i++) words[i * 7919 % (16 * 65536 / 8)] = i;
  }
  for (int round = 0; round < 20; round++) {
    EXPECT(all(bench.run(CopyKind::kStore, bench.items(16)), 16, kItemOk));
    EXPECT(all(bench.run(CopyKind::kVerify, bench.items(16)), 16, kItemOk));
  }
  kill(scribbler, SIGKILL);
  EXPECT(waitpid(scribbler, nullptr, 0) == scribbler);
}

TEST("a window that is not sealed, too small or of huge pages is refused, and the layout proof compares") {
  Descriptor open(memfd_create("open", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT(ftruncate(open.get(), 8192) == 0);
  EXPECT(codeOf([&] { Region::map(Descriptor(dup(open.get())), 8192); }) == "NOT_SEALED");
  EXPECT(fcntl(open.get(), F_ADD_SEALS, F_SEAL_SHRINK) == 0);
  EXPECT(codeOf([&] { Region::map(Descriptor(dup(open.get())), 8192); }) == "NOT_SEALED");
  EXPECT(fcntl(open.get(), F_ADD_SEALS, F_SEAL_GROW) == 0);
  EXPECT(codeOf([&] { Region::map(Descriptor(dup(open.get())), 8193); }) == "TOO_SMALL");
  EXPECT(codeOf([&] { Region::map(Descriptor(::open("/dev/null", O_RDWR)), 1); }) == "NOT_SEALED");
  EXPECT(codeOf([&] { Region::map(Descriptor(dup(open.get())), 0); }) == "ARGUMENT");
  const auto region = Region::map(std::move(open), 8192);
  EXPECT(!region->prove(8, 100, 5));
  // splitmix64(5·2^32 + 0), computed by hand from docs/protocol.md.
  const auto word = [](uint64_t x) {
    uint64_t z = x + 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  };
  uint64_t row[13];
  for (uint64_t i = 0; i < 13; i++) row[i] = word((5ull << 32) + i);
  memcpy(region->base() + 8, row, 100);
  EXPECT(region->prove(8, 100, 5));
  const uint64_t next = word(6ull << 32);
  EXPECT(memcmp(region->base() + 8, &next, 8) == 0);
  EXPECT(region->base()[108] == 0);
  EXPECT(codeOf([&] { region->prove(8100, 93, 5); }) == "ARGUMENT");
}

TEST("windows are touched in turns, a small one before a large one that came first; a closed one is cancelled") {
  EventPump pump;
  std::vector<EventPump::Words> seen;
  {
    RegionToucher toucher(pump.hub);
    const auto large = Region::create(256u << 20).first;
    const auto small = Region::create(1u << 20).first;
    const auto closed = Region::create(1u << 20).first;
    closed->close();
    toucher.touch(large, 1);
    toucher.touch(small, 2);
    toucher.touch(closed, 3);
    while (seen.size() < 3 && pump.pump([&](const EventPump::Words& words) { seen.push_back(words); })) {
    }
    EXPECT(seen.size() == 3);
    EXPECT(seen[0].id == 2 && seen[0].type == kProgress && seen[0].c == kEnded && seen[0].d == 0);
    EXPECT(seen[1].id == 3 && seen[1].c == kFailed && seen[1].d == ECANCELED);
    EXPECT(seen[2].id == 1 && seen[2].c == kEnded);
    std::vector<unsigned char> resident((256u << 20) / 4096);
    EXPECT(mincore(large->base(), large->sizeBytes(), resident.data()) == 0);
    EXPECT(std::all_of(resident.begin(), resident.end(), [](unsigned char page) { return (page & 1) != 0; }));
    toucher.touch(large, 4);
  }
  // Stopped with work left: no hang, and the region is free.
}
