// A device that errs, answers short, stalls or never answers: every batch ends once, late bytes go nowhere, and the
// disk can be closed.
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "disk_fixture.h"

using namespace cairn;
using namespace cairn::test;

namespace {

/// While this lives the process gets no new thread: its stack would be larger than the address space.
class NoMoreThreads {
 public:
  NoMoreThreads() {
    EXPECT(pthread_getattr_default_np(&before_) == 0);
    set(size_t{1} << 47);
  }
  ~NoMoreThreads() { EXPECT(pthread_setattr_default_np(&before_) == 0); }

 private:
  static void set(size_t stackBytes) {
    pthread_attr_t attributes;
    EXPECT(pthread_getattr_default_np(&attributes) == 0);
    EXPECT(pthread_attr_setstacksize(&attributes, stackBytes) == 0);
    EXPECT(pthread_setattr_default_np(&attributes) == 0);
    pthread_attr_destroy(&attributes);
  }
  pthread_attr_t before_;
};

/// A queue over a pipe that nobody writes to: io_uring's reads of it stay in the kernel until somebody does.
struct PipeBench {
  PipeBench() {
    int ends[2];
    EXPECT(pipe2(ends, O_CLOEXEC) == 0);
    device = Descriptor(ends[1]);
    EXPECT(mkdir(dir.file("disk").c_str(), 0700) == 0);
    directory = DiskDirectory::open(dir.file("disk"), kSegment);
    arena = Arena::open({dir.file("pool"), 1u << 20, 1, -1, false});
    const uint8_t digest[kDigestBytes] = {7};
    arena->putNamespace(0, digest, digest, 0);
    slab = std::make_shared<DiskSlab>();
    slab->file = std::make_shared<SegmentFile>(directory, 0, Descriptor(ends[0]));
    slab->payloadBytes = kDiskPayload;
    slab->slots = 8;
    slab->strideBytes = diskSlotBytes(kDiskPayload);
    slab->generations = std::make_unique<std::atomic<uint32_t>[]>(slab->slots);
    Descriptor probe(::open(directory->identityPath().c_str(), O_RDONLY));
    queue = DiskQueue::start({DiskMode::kUring, 4, 2, 1u << 20, FileOperations::system(),
                              std::make_shared<SegmentFile>(directory, 0, std::move(probe)), 500'000},
                             events);
  }
  ~PipeBench() { queue->close(); }

  uint32_t read(uint32_t deadlineMs) {
    auto batch = std::make_unique<DiskBatch>();
    batch->options = {DiskKind::kRead, ++lastBatch, 0, 1, kDiskPayload, deadlineMs, 0, true};
    batch->arena = arena;
    batch->region = region;
    DiskItem& item = batch->items.emplace_back();
    item.seed = arena->namespaces()[0].seed;
    item.depth = 1;
    item.slab = slab;
    item.range = region->base();
    queue->submit(std::move(batch));
    return lastBatch;
  }
  uint8_t statusOf(uint32_t batch) {
    int status = -1;
    EXPECT(pump.until([&] { return status >= 0; }, [&](const EventPump::Words& event) {
      if (event.type == kCopied && event.id == batch) status = pump.statuses[event.offset];
    }));
    return static_cast<uint8_t>(status);
  }
  void answer() {
    const std::vector<uint8_t> bytes(diskSlotBytes(kDiskPayload), 0xaa);
    EXPECT(::write(device.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  }

  TemporaryDirectory dir;
  EventPump pump;
  Descriptor device;
  std::shared_ptr<DiskEvents> events = std::make_shared<DiskEvents>(pump.hub);
  std::shared_ptr<DiskDirectory> directory;
  std::shared_ptr<Arena> arena;
  std::shared_ptr<Region> region = Region::create(1 << 20).first;
  std::shared_ptr<DiskSlab> slab;
  std::shared_ptr<DiskQueue> queue;
  uint32_t lastBatch = 0;
};

/// Holds the oldest thread of a name (threads inherit it) wherever it waits, as a system call that hangs would.
class FrozenThread {
 public:
  explicit FrozenThread(const std::string& name) {
    EXPECT(pipe2(gate, O_CLOEXEC) == 0);
    frozen = 0;
    struct sigaction action{};
    action.sa_handler = [](int) {
      frozen = 1;
      char byte;
      while (::read(gate[0], &byte, 1) < 0 && errno == EINTR) continue;
      frozen = 0;
    };
    EXPECT(sigaction(SIGUSR2, &action, nullptr) == 0);
    pid_t thread = 0;
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
      std::string its;
      std::getline(std::ifstream(task.path() / "comm"), its);
      const pid_t number = std::stoi(task.path().filename());
      if (its == name && (thread == 0 || number < thread)) thread = number;
    }
    EXPECT(syscall(SYS_tgkill, getpid(), thread, SIGUSR2) == 0);
    while (frozen == 0) usleep(1000);
  }
  ~FrozenThread() {
    letGo();
    ::close(gate[0]);
    ::close(gate[1]);
  }
  void letGo() {
    if (frozen != 0) EXPECT(::write(gate[1], "", 1) == 1);
    while (frozen != 0) usleep(1000);
  }

 private:
  static inline std::atomic<int> frozen{0};
  static inline int gate[2];
};

SegmentHeader headerOnDisk(const DiskBench& bench) {
  const std::string path = bench.options.directory + "/segment-000000.cairn";
  Descriptor file(::open(path.c_str(), O_RDONLY));
  SegmentHeader header{};
  EXPECT(::pread(file.get(), &header, sizeof header, 0) == sizeof header);
  EXPECT(segmentHeaderState(header) == SegmentHeaderState::kValid);
  return header;
}

}  // namespace

TEST("a read or write that fails is IO and counted, and the next one is served") {
  DiskBench bench;
  bench.prepare();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(3)), 3, kItemOk));
  bench.faults->setRead([&](void*, size_t, off_t at) {
    return at == static_cast<off_t>(bench.offsetOf(1)) ? ssize_t{-EIO} : Faults::kPass;
  });
  EXPECT(bench.run(DiskKind::kRead, bench.reads(3)) == std::vector<uint8_t>({kItemOk, kItemIo, kItemOk}));
  EXPECT(bench.disk->counters().ioErrors == 1);
  bench.faults->setWrite([](void*, size_t, off_t) { return ssize_t{-ENOSPC}; });
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(2)), 2, kItemIo));
  EXPECT(bench.disk->counters().ioErrors == 3);
  bench.faults->setWrite(nullptr);
  bench.faults->setRead(nullptr);
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(3)), 3, kItemOk));
  EXPECT(all(bench.run(DiskKind::kRead, bench.reads(3)), 3, kItemOk));
}

TEST("short and interrupted answers are continued; an end of file is IO") {
  DiskBench bench;
  bench.prepare();
  std::atomic<int> calls{0};
  bench.faults->setWrite([&](void*, size_t bytes, off_t) -> ssize_t {
    if (calls++ % 3 == 0) return -EINTR;
    return bytes > kSectorBytes ? ssize_t{4096} : Faults::kPass;
  });
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(4)), 4, kItemOk));
  bench.faults->setRead([&](void* into, size_t bytes, off_t at) -> ssize_t {
    if (calls++ % 3 == 0) return -EINTR;
    if (bytes <= kSectorBytes) return Faults::kPass;
    // 5000 bytes: the queue may count on whole sectors only.
    Descriptor file(::open((bench.options.directory + "/segment-000000.cairn").c_str(), O_RDONLY));
    return ::pread(file.get(), into, 5000, at);
  });
  EXPECT(all(bench.run(DiskKind::kRead, bench.reads(4)), 4, kItemOk));
  for (uint32_t i = 0; i < 4; i++) EXPECT(bench.holds(i, i));
  bench.faults->setRead([](void*, size_t, off_t) { return ssize_t{0}; });
  EXPECT(all(bench.run(DiskKind::kRead, bench.reads(2)), 2, kItemIo));
}

TEST("a device that only ever asks to be asked again ends each operation with IO, a segment with EIO") {
  DiskBench bench;
  bench.prepare();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(4)), 4, kItemOk));
  for (const int error : {EINTR, EAGAIN}) {
    const auto refuse = [error](void*, size_t, off_t) { return ssize_t{-error}; };
    bench.faults->setRead(refuse);
    bench.faults->setWrite(refuse);
    EXPECT(all(bench.run(DiskKind::kRead, bench.reads(2)), 2, kItemIo));
    EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(2)), 2, kItemIo));
    // The header passes, what follows it does not.
    bench.faults->setWrite([error](void*, size_t, off_t at) { return at > 0 ? ssize_t{-error} : Faults::kPass; });
    bench.disk->prepare(1, ++bench.lastTask);
    EXPECT(bench.ended(bench.lastTask).d == EIO);
  }
  bench.faults->setRead(nullptr);
  bench.faults->setWrite(nullptr);
  EXPECT(bench.disk->counters().ioErrors == 8);
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(4)), 4, kItemOk));
  EXPECT(all(bench.run(DiskKind::kRead, bench.reads(4)), 4, kItemOk));
}

TEST("where no thread is to be had a disk is not opened, and an open one answers IO and goes on afterwards") {
  DiskBench bench;
  bench.close();
  {
    const NoMoreThreads none;
    EXPECT(codeOf([&] { bench.open(); }) == "EAGAIN");
  }
  bench.open();
  {
    const NoMoreThreads none;
    // What prepares and syncs has its threads since the opening.
    bench.prepare();
    EXPECT(bench.sync().c == 1);
    EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(3)), 3, kItemIo));
    EXPECT(all(bench.run(DiskKind::kRead, bench.reads(3)), 3, kItemIo));
  }
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(3)), 3, kItemOk));
  const NoMoreThreads none;
  EXPECT(all(bench.run(DiskKind::kRead, bench.reads(3)), 3, kItemOk));
}

TEST("a write that the device tore is CORRUPT when it is read") {
  DiskBench bench;
  bench.prepare();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(2)), 2, kItemOk));
  // From now on only the first sector of a write reaches the device, which says that all did.
  const auto table = std::make_shared<FileOperations>(*bench.faults->operations);
  const auto real = FileOperations::system();
  table->pwrite = [real](int fd, const void* bytes, size_t count, off_t at) {
    real->pwrite(fd, bytes, kSectorBytes, at);
    return static_cast<ssize_t>(count);
  };
  bench.options.operations = table;
  bench.reopen();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.items(2, [&](uint32_t i) { return bench.write(i, i + 4); })), 2, kItemOk));
  const auto other = [&](uint32_t i) { return bench.read(i, i + 4); };
  EXPECT(all(bench.run(DiskKind::kRead, bench.items(2, other)), 2, kItemCorrupt));
  EXPECT(all(bench.run(DiskKind::kRead, bench.reads(2)), 2, kItemIdentity));
}

TEST("a segment header that cannot be written fails the writes behind it, and is tried again") {
  DiskBench bench;
  bench.prepare();
  bench.faults->setWrite([](void*, size_t, off_t at) { return at == 0 ? ssize_t{-EIO} : Faults::kPass; });
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(5)), 5, kItemIo));
  bench.faults->setWrite(nullptr);
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(5)), 5, kItemOk));
  bench.reopen();
  EXPECT(bench.disk->segments().at(0).payloadBytes == kDiskPayload);
  EXPECT(all(bench.run(DiskKind::kRead, bench.reads(5)), 5, kItemOk));
}

TEST("a read that the device sits on ends DEADLINE, and what comes late lands nowhere") {
  DiskBench bench;
  bench.prepare();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(6)), 6, kItemOk));
  Stall stall;
  bench.faults->setRead([&](void*, size_t, off_t at) {
    if (at == static_cast<off_t>(bench.offsetOf(0))) stall.hold();
    return Faults::kPass;
  });
  memset(bench.region->base(), 0xee, 1 << 20);
  const uint32_t target = 1u << kSlotIndexBits;
  const std::weak_ptr<Region> region = bench.region;
  EXPECT(bench.run(DiskKind::kRead, {bench.read(0, 0, target)}, 400)[0] == kItemDeadline);
  EXPECT(bench.disk->counters().inFlight == 1 && bench.disk->counters().oldestBegan != 0);
  EXPECT(bench.arena->users(1) == 0);
  // The others are served meanwhile.
  for (int round = 0; round < 5; round++) {
    const auto next = [&](uint32_t i) { return bench.read(i + 2, i + 2); };
    EXPECT(all(bench.run(DiskKind::kRead, bench.items(4, next)), 4, kItemOk));
  }
  // Nothing holds the window any more: it may be unmapped while the device still has the read.
  bench.region.reset();
  EXPECT(region.expired());
  EXPECT(codeOf([&] { bench.disk->release(kDiskSlabNumber); }) == "BUSY");
  stall.letGo();
  bench.region = Region::create(1 << 20).first;
  EXPECT(all(bench.run(DiskKind::kRead, {bench.read(3, 3)}), 1, kItemOk));
  while (bench.disk->counters().inFlight != 0) usleep(1000);
  EXPECT(slotState(*bench.arena->header(target)) == kSlotFree);
  for (size_t i = 0; i < kDiskPayload; i++) EXPECT(bench.region->base()[i] == 0);
}

TEST("a write that the device sits on ends DEADLINE, and its slot serves nobody until the device answers") {
  DiskBench bench;
  bench.prepare();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(2)), 2, kItemOk));
  Stall stall;
  bench.faults->setWrite([&](void*, size_t, off_t at) {
    if (at == static_cast<off_t>(bench.offsetOf(0))) stall.hold();
    return Faults::kPass;
  });
  EXPECT(bench.run(DiskKind::kWrite, {bench.write(0, 0)}, 400)[0] == kItemDeadline);
  EXPECT(bench.arena->users(0) == 0);
  EXPECT(bench.run(DiskKind::kWrite, {bench.write(0, 3)})[0] == kItemDeadline);
  EXPECT(bench.run(DiskKind::kRead, {bench.read(0, 0), bench.read(1, 1)}) ==
         std::vector<uint8_t>({kItemDeadline, kItemOk}));
  EXPECT(bench.run(DiskKind::kWrite, {bench.write(4, 4)})[0] == kItemOk);
  stall.letGo();
  while (bench.disk->counters().inFlight != 0) usleep(1000);
  EXPECT(bench.run(DiskKind::kWrite, {bench.write(0, 3)})[0] == kItemOk);
  EXPECT(bench.run(DiskKind::kRead, {bench.read(0, 3)})[0] == kItemOk);
}

TEST("items that never began end at their deadline, on a device that takes nothing more") {
  DiskBench bench(DiskMode::kThreads, kDiskPayload, 1);
  bench.prepare();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(3)), 3, kItemOk));
  Stall stall;
  bench.faults->setRead([&](void*, size_t, off_t) {
    stall.hold();
    return Faults::kPass;
  });
  EXPECT(all(bench.run(DiskKind::kRead, bench.reads(3), 40), 3, kItemDeadline));
  EXPECT(all(bench.run(DiskKind::kRead, bench.reads(3), 40), 3, kItemDeadline));
  EXPECT(all(bench.run(DiskKind::kRead, bench.reads(3), 40), 3, kItemDeadline));
  EXPECT(bench.disk->counters().readsQueued == 0);
  stall.letGo();
  while (bench.disk->counters().inFlight != 0) usleep(1000);
  bench.faults->setRead(nullptr);
  EXPECT(all(bench.run(DiskKind::kRead, bench.reads(3), 5000), 3, kItemOk));
}

TEST("cancel ends reads at once and lets writes at the device finish") {
  DiskBench bench;
  bench.prepare();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(6)), 6, kItemOk));
  Stall reads;
  Stall writes;
  bench.faults->setRead([&](void*, size_t, off_t) {
    reads.hold();
    return Faults::kPass;
  });
  bench.faults->setWrite([&](void*, size_t, off_t) {
    writes.hold();
    return Faults::kPass;
  });
  const uint32_t write = bench.submit(DiskKind::kWrite, bench.writes(6));
  writes.waitForHeld(2);
  const uint32_t read = bench.submit(DiskKind::kRead, bench.reads(6));
  reads.waitForHeld(4);
  bench.disk->cancel(read);
  bench.disk->cancel(write);
  bench.disk->cancel(12345);
  EXPECT(all(bench.statusesOf(read), 6, kItemCancelled));
  writes.letGo();
  EXPECT(bench.statusesOf(write) == std::vector<uint8_t>({kItemOk, kItemOk, kItemCancelled, kItemCancelled,
                                                          kItemCancelled, kItemCancelled}));
  reads.letGo();
}

TEST("a failed sync is never believed again until the disk is opened anew") {
  DiskBench bench;
  bench.prepare();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(1)), 1, kItemOk));
  const int before = bench.faults->syncs;
  EXPECT(bench.sync().c == 1 && bench.faults->syncs == before + 1);
  EXPECT(bench.sync().c == 1 && bench.faults->syncs == before + 1);
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(1)), 1, kItemOk));
  bench.faults->syncErrno = EIO;
  const auto failed = bench.sync();
  EXPECT(failed.c == 2 && failed.d == EIO);
  bench.faults->syncErrno = 0;
  const auto again = bench.sync();
  EXPECT(again.c == 2 && again.d == EIO);
  bench.reopen();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(1)), 1, kItemOk));
  EXPECT(bench.sync().c == 1);
}

TEST("a disk whose device never answers is closed: its batches end CANCELLED, its lock stays until the answer") {
  DiskBench bench;
  bench.prepare();
  EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(2)), 2, kItemOk));
  auto stall = std::make_shared<Stall>();
  bench.faults->setRead([stall](void*, size_t, off_t) {
    stall->hold();
    return Faults::kPass;
  });
  const uint32_t batch = bench.submit(DiskKind::kRead, bench.reads(2));
  const uint32_t waiting = bench.submit(DiskKind::kVerify, bench.reads(2));
  stall->waitForHeld(2);
  bench.close();
  EXPECT(all(bench.statusesOf(batch), 2, kItemCancelled));
  EXPECT(all(bench.statusesOf(waiting), 2, kItemCancelled));
  EXPECT(bench.arena->users(0) == 0);
  EXPECT(codeOf([&] { bench.open(); }) == "LOCKED");
  stall->letGo();
  std::string code = "LOCKED";
  for (int i = 0; i < 2000 && code == "LOCKED"; i++) {
    code = codeOf([&] { bench.open(); });
    if (code == "LOCKED") usleep(1000);
  }
  EXPECT(code.empty());
}

TEST("a device that hangs while it is opened is refused, and can be opened when it has answered") {
  DiskBench bench;
  bench.prepare();
  bench.close();
  auto stall = std::make_shared<Stall>();
  bench.faults->setRead([stall](void*, size_t, off_t) {
    stall->hold();
    return Faults::kPass;
  });
  bench.options.openMilliseconds = 50;
  EXPECT(codeOf([&] { bench.open(); }) == "ETIMEDOUT");
  EXPECT(codeOf([&] { bench.open(); }) == "LOCKED");
  stall->letGo();
  bench.options.openMilliseconds = 10'000;
  std::string code = "LOCKED";
  for (int i = 0; i < 5000 && code == "LOCKED"; i++) {
    code = codeOf([&] { bench.open(); });
    if (code == "LOCKED") usleep(1000);
  }
  EXPECT(code.empty() && bench.disk->segments().at(0).prepared);
}

TEST("a disk is closed in the middle of everything") {
  for (const DiskMode mode : {DiskMode::kThreads, DiskMode::kUring}) {
    for (int round = 0; round < 6; round++) {
      DiskBench bench(mode);
      bench.prepare();
      EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(8)), 8, kItemOk));
      std::vector<uint32_t> ids;
      for (int i = 0; i < 20; i++) {
        ids.push_back(bench.submit(DiskKind::kRead, bench.reads(8)));
        // Other slots: a read beside a write of its slot may rightly miss.
        const auto beside = [&](uint32_t k) { return bench.write(k + 8, k); };
        ids.push_back(bench.submit(DiskKind::kWrite, bench.items(8, beside)));
      }
      bench.disk->scan(*bench.arena, 1);
      bench.disk->sync(2);
      bench.disk->prepare(1, 3);
      usleep(static_cast<useconds_t>(round * 300));
      bench.close();
      for (const uint32_t id : ids) {
        for (const uint8_t status : bench.statusesOf(id)) EXPECT(status == kItemOk || status == kItemCancelled);
      }
      EXPECT(bench.arena->users(0) == 0);
    }
  }
}

TEST("a read that io_uring does not get answered ends DEADLINE, and its answer lands nowhere") {
  PipeBench bench;
  REQUIRE(bench.queue->uring());
  EXPECT(bench.statusOf(bench.read(400)) == kItemDeadline);
  EXPECT(bench.queue->counters().inFlight == 1 && bench.slab->users == 1);
  const std::weak_ptr<Region> region = bench.region;
  bench.region.reset();
  EXPECT(region.expired());
  bench.answer();
  while (bench.queue->counters().inFlight != 0) usleep(1000);
  bench.region = Region::create(1 << 20).first;
  // Answered now, with bytes that are no block.
  const uint32_t next = bench.read(0);
  bench.answer();
  EXPECT(bench.statusOf(next) == kItemIdentity);
}

TEST("a device that does not answer io_uring's probe is refused, and its late answer hurts nobody") {
  TemporaryDirectory dir;
  EventPump pump;
  EXPECT(mkdir(dir.file("disk").c_str(), 0700) == 0);
  const auto directory = DiskDirectory::open(dir.file("disk"), kSegment);
  const auto events = std::make_shared<DiskEvents>(pump.hub);
  const std::vector<uint8_t> answer(kSectorBytes, 0xaa);
  for (const DiskMode mode : {DiskMode::kUring, DiskMode::kAuto}) {
    int ends[2];
    EXPECT(pipe2(ends, O_CLOEXEC) == 0);
    const Descriptor device(ends[1]);
    const auto probe = std::make_shared<SegmentFile>(directory, 0, Descriptor(ends[0]));
    const auto start = [&](int64_t probeMicroseconds) {
      const auto operations = FileOperations::system();
      return DiskQueue::start({mode, 4, 2, 1u << 20, operations, probe, 500'000, probeMicroseconds}, events);
    };
    EXPECT(codeOf([&] { start(20'000); }) == "ETIMEDOUT");
    EXPECT(::write(device.get(), answer.data(), answer.size()) == static_cast<ssize_t>(answer.size()));
    // The first read may have taken that answer, or may have gone with its ring.
    EXPECT(::write(device.get(), answer.data(), answer.size()) == static_cast<ssize_t>(answer.size()));
    const auto queue = start(10'000'000);
    EXPECT(queue->uring() && queue->notes().empty());
    queue->close();
  }
}

TEST("a queue whose reads io_uring never gets answered is closed, and goes when the answer comes") {
  PipeBench bench;
  const uint32_t batch = bench.read(0);
  while (bench.queue->counters().inFlight == 0) usleep(1000);
  bench.queue->close();
  EXPECT(bench.statusOf(batch) == kItemCancelled);
  EXPECT(bench.slab->users == 1);
  bench.answer();
  for (int i = 0; i < 5000 && bench.slab->users != 0; i++) usleep(1000);
  EXPECT(bench.slab->users == 0);
}

TEST("a disk whose own thread hangs is closed, and that thread begins nothing more when it comes back") {
  constexpr auto kPerPiece = static_cast<uint32_t>((1u << 19) / diskSlotBytes(kDiskPayload));
  const uint32_t slots = slotsPerSegment(kSegment, kDiskPayload);
  const uint32_t pieces = (slots + kPerPiece - 1) / kPerPiece;
  // Held: every read of a scan, so that more would follow; or only the one that then ends it.
  for (const bool all : {true, false}) {
    DiskBench bench;
    bench.prepare();
    EXPECT(bench.run(DiskKind::kWrite, bench.writes(1))[0] == kItemOk);
    Stall stall;
    std::atomic<uint32_t> reads{0};
    bench.faults->setRead([&](void*, size_t, off_t at) {
      // Opening anew reads the segment's header.
      if (at != 0) reads++;
      if (all || at == static_cast<off_t>(bench.offsetOf(0))) stall.hold();
      return Faults::kPass;
    });
    bench.disk->scan(*bench.arena, 1);
    stall.waitForHeld(1);
    while (!all && (reads < pieces || bench.disk->counters().inFlight > 1)) usleep(1000);
    FrozenThread thread("cairn-disk");
    stall.letGo();
    bench.close();
    const uint32_t before = reads;
    thread.letGo();
    std::string code = "LOCKED";
    for (int i = 0; i < 2000 && code == "LOCKED"; i++) {
      code = codeOf([&] { bench.open(); });
      if (code == "LOCKED") usleep(1000);
    }
    EXPECT(code.empty());
    EXPECT(reads == before);
  }
}

TEST("a segment given to another class when its late header write was answered says that class before its slots") {
  DiskBench bench;
  bench.prepare();
  for (uint32_t round = 1; round <= 8; round++) {
    auto stall = std::make_shared<Stall>();
    bench.faults->setWrite([stall](void*, size_t, off_t at) {
      if (at == 0) stall->hold();
      return Faults::kPass;
    });
    EXPECT(bench.run(DiskKind::kWrite, bench.writes(1), 40)[0] == kItemDeadline);
    EXPECT(codeOf([&] { bench.disk->release(kDiskSlabNumber); }) == "BUSY");
    bench.faults->setWrite(nullptr);
    stall->letGo();
    while (codeOf([&] { bench.disk->release(kDiskSlabNumber); }) == "BUSY") continue;
    const uint32_t payload = kDiskPayload + round * 4096;
    bench.disk->assign(kDiskSlabNumber, payload);
    EXPECT(bench.run(DiskKind::kWrite, bench.writes(1))[0] == kItemOk);
    EXPECT(headerOnDisk(bench).payloadBytes == payload);
    bench.disk->release(kDiskSlabNumber);
    bench.disk->assign(kDiskSlabNumber, kDiskPayload);
  }
}

TEST("a slot that is being written when a scan's headers are read is left out, and keeps what is written") {
  DiskBench bench;
  bench.prepare();
  for (int i = 0; i < 2; i++) EXPECT(all(bench.run(DiskKind::kWrite, bench.writes(2)), 2, kItemOk));
  bench.reopen();
  bench.disk->scan(*bench.arena, 7);
  EXPECT(bench.ended(7).a == 2);
  Stall stall;
  bench.faults->setWrite([&](void*, size_t, off_t) {
    stall.hold();
    return Faults::kPass;
  });
  const uint32_t batch = bench.submit(DiskKind::kWrite, {bench.write(0, 2)});
  stall.waitForHeld(1);
  std::vector<uint32_t> words(4 * (sizeof(SlotHeader) / 4 + 1));
  EXPECT(bench.disk->scanRead(words.data(), 4) == 1);
  EXPECT(words[sizeof(SlotHeader) / 4] == bench.slot(1));
  stall.letGo();
  EXPECT(bench.statusesOf(batch)[0] == kItemOk);
  EXPECT(bench.run(DiskKind::kRead, {bench.read(0, 2), bench.read(1, 1)}) == std::vector<uint8_t>(2, kItemOk));
}
