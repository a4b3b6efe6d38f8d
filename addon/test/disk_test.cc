// Blocks through a disk: right bytes, wrong bytes, order, sync and scan. What a device that fails or stalls does
// stands in disk_fault_test.cc.
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <set>
#include <vector>

#include "disk_fixture.h"

using namespace cairn;
using namespace cairn::test;

namespace {

constexpr DiskMode kModes[] = {DiskMode::kThreads, DiskMode::kUring};

size_t residentBytes() {
  std::ifstream file("/proc/self/statm");
  size_t pages = 0;
  size_t resident = 0;
  file >> pages >> resident;
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

TEST("what was written is read back byte for byte, by threads and by io_uring, for every kind of size") {
  for (const DiskMode mode : kModes) {
    for (const uint32_t payload : {64u, 3904u, 3905u, 8000u, 65536u, 200'000u}) {
      DiskBench bench(mode, payload);
      bench.prepare();
      const uint32_t count = std::min(bench.arena->slab(0).slots, 4u);
      EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(count)), count, kItemOk));
      EXPECT(bench.sync().c == 1);
      EXPECT(all(bench.run(DiskKind::kRead, bench.reads(count)), count, kItemOk));
      for (uint32_t i = 0; i < count; i++) EXPECT(bench.holds(i, i));
      EXPECT(all(bench.run(DiskKind::kVerify, bench.reads(count)), count, kItemOk));
      const DiskCounterSet& counters = bench.disk->counters();
      EXPECT(counters.readItems == count && counters.writeItems == count && counters.ioErrors == 0);
      EXPECT(counters.readsQueued == 0 && counters.writesQueued == 0 && counters.inFlight == 0);
      EXPECT(bench.disk->slabOf(DiskBench::slot(0), payload)->users == 0 && bench.arena->users(0) == 0);
      EXPECT(counters.oldestBegan == 0 && bench.failed[bench.lastBatch] == 0);
    }
  }
}

TEST("without O_DIRECT, or by another mode than before, the same bytes come back") {
  DiskBench bench(DiskMode::kUring);
  bench.prepare();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(4)), 4, kItemOk));
  for (const DiskMode mode : kModes) {
    bench.options.mode = mode;
    bench.options.direct = !bench.options.direct;
    bench.reopen();
    EXPECT(bench.disk->uring() == (mode == DiskMode::kUring) && (bench.options.direct || !bench.disk->direct()));
    memset(bench.region->base(), 0, 1 << 20);
    EXPECT(all(bench.run(DiskKind::kRead, bench.reads(4)), 4, kItemOk));
    for (uint32_t i = 0; i < 4; i++) EXPECT(bench.holds(i, i));
    EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(4)), 4, kItemOk));
    EXPECT(bench.sync().c == 1);
  }
}

TEST("opening a disk touches none of its staging memory; io_uring registers it beside the first work") {
  for (const DiskMode mode : kModes) {
    DiskBench bench(mode);
    bench.prepare();
    EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(1)), 1, kItemOk));
    bench.options.stagingBytes = 64u << 20;
    bench.close();
    const size_t before = residentBytes();
    bench.open();
    EXPECT(residentBytes() < before + (16u << 20));
    EXPECT(!bench.disk->counters().registeredBuffers);
    bench.disk->attach(0, kDiskSlabNumber);
    // Work goes on before, during and after.
    while (mode == DiskMode::kUring && !bench.disk->counters().registeredBuffers) {
      EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(4)), 4, kItemOk));
      EXPECT(all(bench.run(DiskKind::kRead, bench.reads(4)), 4, kItemOk));
    }
    EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(8)), 8, kItemOk));
    memset(bench.region->base(), 0, 1 << 20);
    EXPECT(all(bench.run(DiskKind::kRead, bench.reads(8)), 8, kItemOk));
    for (uint32_t i = 0; i < 8; i++) EXPECT(bench.holds(i, i));
    EXPECT((residentBytes() < before + (16u << 20)) == (mode == DiskMode::kThreads));
  }
}

TEST("many batches at once share the queue and each ends once, with right bytes") {
  for (const DiskMode mode : kModes) {
    DiskBench bench(mode, 20'000, 8);
    bench.prepare();
    const uint32_t count = bench.arena->slab(0).slots;
    const uint32_t inRegion = (1u << 20) / 20'000;
    std::vector<uint32_t> ids;
    for (uint32_t i = 0; i < count; i += 4) {
      ids.push_back(bench.submit(DiskKind::kWrite, bench.items(std::min(4u, count - i), [&](uint32_t k) {
        return bench.write(i + k, i + k);
      })));
    }
    for (const uint32_t id : ids) {
      for (const uint8_t status : bench.statusesOf(id)) EXPECT(status == kItemOk);
    }
    ids.clear();
    const uint32_t reads = std::min(count, inRegion);
    for (uint32_t i = 0; i < reads; i++) {
      ids.push_back(bench.submit(DiskKind::kRead, {bench.read(i, i)}, 0, i % 3));
    }
    for (const uint32_t id : ids) EXPECT(all(bench.statusesOf(id), 1, kItemOk));
    for (uint32_t i = 0; i < reads; i++) EXPECT(bench.holds(i, i));
  }
}

TEST("a read promotes into a DRAM slot, with and without a region, and says so") {
  DiskBench bench;
  bench.prepare();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(2)), 2, kItemOk));
  const uint32_t target = 1u << kSlotIndexBits;
  const uint8_t promoted = kItemOk | kItemPromoted;
  EXPECT(bench.run(DiskKind::kRead, {bench.read(0, 0, target)})[0] == promoted);
  EXPECT(bench.holds(0, 0) && bench.failed[bench.lastBatch] == 0);
  const auto landed = [&](uint32_t slot, uint32_t block) {
    const SlotHeader& header = *bench.arena->header(slot);
    return slotHolds(header, bench.read(block, block), 1, 1 << 16, kDiskPayload) &&
           memcmp(bench.arena->payload(slot), bench.arena->payload(block), kDiskPayload) == 0;
  };
  EXPECT(landed(target, 0));
  const uint32_t alone = bench.submit(DiskKind::kRead, {bench.read(1, 1, target + 1)}, 0, 0, false);
  EXPECT(bench.statusesOf(alone)[0] == promoted && landed(target + 1, 1));
  bench.region->close();
  EXPECT(bench.run(DiskKind::kRead, {bench.read(1, 1, target + 2), bench.read(1, 1)}) ==
         std::vector<uint8_t>({kItemRegion | kItemPromoted, kItemRegion}));
  EXPECT(landed(target + 2, 1) && bench.failed[bench.lastBatch] == 2);
  EXPECT(bench.arena->users(0) == 0 && bench.arena->users(1) == 0);
}

TEST("a flipped, torn, zeroed, misdirected or foreign slot is a miss and never wrong bytes") {
  for (const DiskMode mode : kModes) {
    DiskBench bench(mode);
    bench.prepare();
    EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(8)), 8, kItemOk));
    bench.patch(bench.offsetOf(1) + 4096, [](uint8_t* bytes) { bytes[100] ^= 1; });
    bench.patch(bench.offsetOf(2) + 4096, [](uint8_t* bytes) { memset(bytes, 0, 4096); });
    bench.patch(bench.offsetOf(3), [](uint8_t* bytes) { memset(bytes, 0, 4096); });
    std::vector<uint8_t> other(2 * kSectorBytes);
    bench.patch(bench.offsetOf(0), [&](uint8_t* bytes) { memcpy(other.data(), bytes, other.size()); }, other.size());
    bench.patch(bench.offsetOf(4), [&](uint8_t* bytes) { memcpy(bytes, other.data(), other.size()); }, other.size());
    bench.patch(bench.offsetOf(5), [](uint8_t* bytes) { bytes[150] ^= 1; });
    bench.patch(bench.offsetOf(6), [](uint8_t* bytes) { bytes[64] ^= 1; });
    const std::vector<uint8_t> expected = {kItemOk,       kItemCorrupt,  kItemCorrupt,  kItemIdentity,
                                           kItemIdentity, kItemIdentity, kItemIdentity, kItemOk};
    EXPECT(bench.run(DiskKind::kVerify, bench.reads(8)) == expected);
    const auto promote = [&](uint32_t i) { return bench.read(i, i, (1u << kSlotIndexBits) + i); };
    std::vector<uint8_t> statuses = bench.run(DiskKind::kRead, bench.items(8, promote));
    for (uint32_t i = 0; i < 8; i++) {
      const bool good = expected[i] == kItemOk;
      EXPECT(statuses[i] == (good ? kItemOk | kItemPromoted : expected[i]));
      EXPECT((slotState(*bench.arena->header((1u << kSlotIndexBits) + i)) == kSlotValid) == good);
    }
    EXPECT(bench.disk->counters().itemsCorrupt == 4 && bench.disk->counters().itemsIdentity == 8);
  }
}

TEST("every write raises the slot's generation, and an older sector that comes back is IDENTITY") {
  DiskBench bench;
  bench.prepare();
  EXPECT(bench.disk->generation(DiskBench::slot(0)) == 0);
  EXPECT(all(bench.run(DiskKind::kWrite, {bench.write(0, 0)}), 1, kItemOk));
  std::vector<uint8_t> old(2 * kSectorBytes);
  bench.patch(bench.offsetOf(0), [&](uint8_t* bytes) { memcpy(old.data(), bytes, old.size()); }, old.size());
  EXPECT(all(bench.run(DiskKind::kWrite, {bench.write(0, 0)}), 1, kItemOk));
  EXPECT(bench.disk->generation(DiskBench::slot(0)) == 2);
  EXPECT(bench.run(DiskKind::kRead, {bench.read(0, 0)})[0] == kItemOk);
  bench.patch(bench.offsetOf(0), [&](uint8_t* bytes) { memcpy(bytes, old.data(), old.size()); }, old.size());
  EXPECT(bench.run(DiskKind::kRead, {bench.read(0, 0)})[0] == kItemIdentity);
  // After a restart anything is taken until the index has spoken.
  bench.reopen();
  EXPECT(bench.run(DiskKind::kRead, {bench.read(0, 0)})[0] == kItemOk);
  bench.disk->restore(DiskBench::slot(0), 2);
  EXPECT(bench.run(DiskKind::kRead, {bench.read(0, 0)})[0] == kItemIdentity);
  bench.disk->restore(DiskBench::slot(0), UINT32_MAX);
  EXPECT(all(bench.run(DiskKind::kWrite, {bench.write(0, 0)}), 1, kItemOk));
  EXPECT(bench.disk->generation(DiskBench::slot(0)) == 1);
  bench.disk->release(kDiskSlabNumber);
  bench.disk->assign(kDiskSlabNumber, kDiskPayload);
  EXPECT(bench.disk->generation(DiskBench::slot(0)) == bench.disk->generation(DiskBench::slot(1)));
}

TEST("a DRAM slot that is not its block, or whose bytes changed, is not written down") {
  DiskBench bench;
  bench.prepare();
  bench.arena->payload(1)[77] ^= 1;
  DiskItem wrong = bench.write(2, 2);
  wrong.key[0] ^= 1;
  const std::vector<DiskItem> list = {bench.write(0, 0), bench.write(1, 1), wrong};
  EXPECT(bench.run(DiskKind::kWrite, list) == std::vector<uint8_t>({kItemOk, kItemCorrupt, kItemIdentity}));
  EXPECT(bench.disk->generation(DiskBench::slot(1)) == 0);
  EXPECT(bench.run(DiskKind::kVerify, bench.reads(3)) ==
         std::vector<uint8_t>({kItemOk, kItemIdentity, kItemIdentity}));
}

TEST("reads come before writes, by priority, and before checks") {
  DiskBench bench(DiskMode::kThreads, kDiskPayload, 1);
  bench.close();
  bench.options.writeWaitMicroseconds = INT64_C(3'600'000'000);
  bench.open();
  bench.prepare();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(8)), 8, kItemOk));
  Stall stall;
  std::mutex mutex;
  std::vector<std::pair<bool, off_t>> order;
  bench.faults->setRead([&](void*, size_t, off_t at) {
    stall.hold();
    std::lock_guard lock(mutex);
    order.emplace_back(false, at);
    return Faults::kPass;
  });
  bench.faults->setWrite([&](void*, size_t, off_t at) {
    std::lock_guard lock(mutex);
    order.emplace_back(true, at);
    return Faults::kPass;
  });
  const uint32_t first = bench.submit(DiskKind::kRead, {bench.read(0, 0)});
  stall.waitForHeld(1);
  // From the first of these on a read waits, so that nothing below may begin.
  const uint32_t low = bench.submit(DiskKind::kRead, {bench.read(3, 3)}, 0, 2);
  const uint32_t last = bench.submit(DiskKind::kRead, {bench.read(6, 6)}, 0, 2);
  const uint32_t middle = bench.submit(DiskKind::kRead, {bench.read(2, 2)}, 0, 1);
  const uint32_t high = bench.submit(DiskKind::kRead, {bench.read(1, 1)}, 0, 0);
  const uint32_t verify = bench.submit(DiskKind::kVerify, {bench.read(4, 4)});
  const uint32_t write = bench.submit(DiskKind::kWrite, {bench.write(5, 5)});
  // The queue has seen all of them once this one, which it ends by itself, has ended.
  const uint32_t seen = bench.submit(DiskKind::kRead, {bench.read(7, 7)});
  bench.disk->cancel(seen);
  EXPECT(bench.statusesOf(seen)[0] == kItemCancelled);
  stall.letGo();
  for (const uint32_t id : {first, verify, write, low, last, middle, high}) EXPECT(bench.statusesOf(id)[0] == kItemOk);
  REQUIRE(order.size() == 7);
  const auto read = [&](uint32_t i) { return std::pair(false, static_cast<off_t>(bench.offsetOf(i))); };
  for (const uint32_t i : {0u, 1u, 2u, 3u}) EXPECT(order[i] == read(i));
  // With the last read none waits any more. A write may begin once no read waits, and a check once no write does: which of their threads tells first is open.
  const auto told = [&](uint32_t i) { return std::find(order.begin() + 4, order.end(), read(i)) != order.end(); };
  EXPECT(told(6) && told(4));
  EXPECT(std::count_if(order.begin(), order.end(), [](const auto& one) { return one.first; }) == 1);
}

TEST("writes are not starved by reads that never end") {
  DiskBench bench(DiskMode::kThreads, kDiskPayload, 1);
  bench.close();
  bench.options.writeWaitMicroseconds = 20'000;
  bench.open();
  bench.prepare();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(2)), 2, kItemOk));
  const uint32_t write = bench.submit(DiskKind::kWrite, {bench.write(1, 1)});
  // Two reads wait at any time, until the write has ended.
  std::set<uint32_t> reads = {bench.submit(DiskKind::kRead, {bench.read(0, 0)}),
                              bench.submit(DiskKind::kRead, {bench.read(0, 0)})};
  EXPECT(bench.pump.until([&] { return bench.batches.count(write) != 0; }, [&](const EventPump::Words& event) {
    bench.collect()(event);
    if (reads.erase(event.id) != 0) {
      for (int i = 0; i < 2 && reads.size() < 3; i++) {
        reads.insert(bench.submit(DiskKind::kRead, {bench.read(0, 0)}));
      }
    }
  }));
  EXPECT(bench.batches[write][0] == kItemOk);
  for (const uint32_t id : reads) EXPECT(bench.statusesOf(id)[0] == kItemOk);
}

TEST("when writes have waited long enough, as many begin as the device may have, not one") {
  DiskBench bench(DiskMode::kThreads, 300'000, 1);
  bench.close();
  bench.options.writeWaitMicroseconds = 500'000;
  // Enough for two writes beside reads that are not delivered yet.
  bench.options.stagingBytes = 4u << 20;
  bench.open();
  bench.prepare();
  EXPECT(bench.options.writeDepth == 2);
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(3)), 3, kItemOk));
  std::atomic<uint32_t> reads{0};
  std::mutex mutex;
  std::vector<uint32_t> readsBefore;  // of each write; guarded by mutex
  bench.faults->setRead([&](void*, size_t, off_t) {
    usleep(5'000);
    reads++;
    return Faults::kPass;
  });
  bench.faults->setWrite([&](void*, size_t, off_t) {
    std::lock_guard lock(mutex);
    readsBefore.push_back(reads.load());
    return Faults::kPass;
  });
  // 1.2 seconds in which a read waits at any time.
  const uint32_t read = bench.submit(DiskKind::kRead, bench.items(240, [&](uint32_t) { return bench.read(0, 0); }));
  const uint32_t write = bench.submit(DiskKind::kWrite, {bench.write(1, 1), bench.write(2, 2)});
  EXPECT(all(bench.statusesOf(write), 2, kItemOk));
  REQUIRE(readsBefore.size() == 2);
  // A second wait would be a hundred reads long.
  EXPECT(readsBefore[0] > 0 && readsBefore[0] < 240 && readsBefore[1] - readsBefore[0] < 50);
  EXPECT(all(bench.statusesOf(read), 240, kItemOk));
}

TEST("a scan lists every valid header by depth with its generation, and frees nothing") {
  for (const DiskMode mode : kModes) {
    for (const uint32_t payload : {8000u, 100'000u}) {
      DiskBench bench(mode, payload);
      bench.prepare();
      const uint32_t count = std::min(bench.arena->slab(0).slots, 5u);
      for (int round = 0; round < 2; round++) {
        EXPECT(all(bench.run(DiskKind::kWrite, bench.items(count, [&](uint32_t i) {
          return bench.write(count - 1 - i, i);
        })), count, kItemOk));
      }
      bench.patch(bench.offsetOf(count - 2), [](uint8_t* bytes) { bytes[70] ^= 1; });
      bench.reopen();
      bench.disk->scan(*bench.arena, 7);
      EXPECT(codeOf([&] { bench.disk->scan(*bench.arena, 8); }) == "BUSY");
      const auto ended = bench.ended(7);
      EXPECT(ended.c == 1 && ended.a == count - 1 && ended.b == count);
      std::vector<uint32_t> words(33 * 2);
      std::vector<uint32_t> depths;
      for (size_t got = 0; (got = bench.disk->scanRead(words.data(), 2)) > 0;) {
        for (size_t i = 0; i < got; i++) {
          const uint32_t* header = words.data() + i * 33;
          depths.push_back(header[3]);
          EXPECT(header[2] == 0 && header[5] == 2 && header[32] == DiskBench::slot(count - header[3]));
          EXPECT(bench.disk->generation(header[32]) == 2);
        }
      }
      EXPECT(depths.size() == count - 1 && std::is_sorted(depths.begin(), depths.end()));
      EXPECT(codeOf([&] { bench.disk->scanRead(words.data(), 2); }) == "ARGUMENT");
      EXPECT(bench.disk->slabOf(DiskBench::slot(0), payload)->users == 0);
    }
  }
}

TEST("a scan leaves out blocks of namespaces it does not know, and slots written since") {
  DiskBench bench;
  bench.prepare();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(3)), 3, kItemOk));
  bench.reopen();
  bench.disk->scan(*bench.arena, 7);
  EXPECT(bench.ended(7).a == 3);
  bench.disk->restore(DiskBench::slot(1), 9);
  std::vector<uint32_t> words(33 * 4);
  EXPECT(bench.disk->scanRead(words.data(), 4) == 2);
  const uint8_t other[kDigestBytes] = {77};
  bench.arena->putNamespace(0, other, other, 0);
  bench.disk->scan(*bench.arena, 8);
  const auto ended = bench.ended(8);
  EXPECT(ended.a == 0 && ended.b == 3);
}

TEST("the staging map gives pieces first-fit and joins what comes back") {
  StagingMap map(10 * 4096);
  size_t at[4];
  for (size_t i = 0; i < 4; i++) EXPECT(map.take(2 * 4096, at[i]) && at[i] == i * 2 * 4096);
  size_t more = 0;
  EXPECT(!map.take(3 * 4096, more));
  map.give(at[0], 2 * 4096);
  map.give(at[2], 2 * 4096);
  EXPECT(!map.take(5 * 4096, more));
  map.give(at[1], 2 * 4096);
  EXPECT(map.take(6 * 4096, more) && more == 0);
  map.give(at[3], 2 * 4096);
  EXPECT(map.take(4 * 4096, more) && more == 6 * 4096);
  EXPECT(!map.take(4096, more));
}
