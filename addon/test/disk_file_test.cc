#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include <xxhash.h>

#include "disk_fixture.h"

using namespace cairn;
using namespace cairn::test;

namespace {

std::string makeDirectory(const TemporaryDirectory& dir, mode_t mode = 0700) {
  const std::string path = dir.file("disk");
  EXPECT(mkdir(path.c_str(), mode) == 0);
  EXPECT(chmod(path.c_str(), mode) == 0);
  return path;
}

std::vector<uint8_t> contentOf(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void writeFile(const std::string& path, const std::vector<uint8_t>& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  file.close();
  EXPECT(chmod(path.c_str(), 0600) == 0);
}

/// The header as another version of the format would have written it.
SegmentHeader ofVersion(SegmentHeader header, uint32_t version) {
  header.version = version;
  header.hash = XXH3_64bits(&header, offsetof(SegmentHeader, hash));
  return header;
}

}  // namespace

TEST("one segment header stands in test/golden/disk-segment-header.hex byte for byte") {
  uint8_t id[kDirectoryIdBytes];
  for (size_t i = 0; i < sizeof id; i++) id[i] = static_cast<uint8_t>(0xd0 + i);
  const SegmentHeader header = makeSegmentHeader(7, id, 2u << 20, true, 1u << 30);
  EXPECT(segmentHeaderState(header) == SegmentHeaderState::kValid);
  EXPECT(goldenHolds("test/golden/disk-segment-header.hex", reinterpret_cast<const uint8_t*>(&header), sizeof header));
}

TEST("a segment header with any changed byte is damaged, its version's too; an intact one of another version says so") {
  const uint8_t id[kDirectoryIdBytes] = {1};
  SegmentHeader header = makeSegmentHeader(7, id, 4096, true, 1u << 30);
  auto* raw = reinterpret_cast<uint8_t*>(&header);
  for (size_t i = 0; i < sizeof header; i++) {
    raw[i] ^= 4;
    EXPECT(segmentHeaderState(header) == SegmentHeaderState::kDamaged);
    raw[i] ^= 4;
  }
  EXPECT(segmentHeaderState(ofVersion(header, kDiskFormat + 1)) == SegmentHeaderState::kOtherVersion);
  EXPECT(segmentHeaderState(ofVersion(header, kDiskFormat)) == SegmentHeaderState::kValid);
}

TEST("a directory keeps its id and segment size, and is locked while anything of it is in use") {
  TemporaryDirectory dir;
  const std::string path = makeDirectory(dir);
  uint8_t id[kDirectoryIdBytes];
  {
    const auto directory = DiskDirectory::open(path, 2u << 20);
    EXPECT(!directory->reopened() && directory->segmentBytes() == 2u << 20);
    memcpy(id, directory->id(), sizeof id);
    EXPECT(codeOf([&] { DiskDirectory::open(path, 2u << 20); }) == "LOCKED");
  }
  const auto again = DiskDirectory::open(path, 8u << 20);
  EXPECT(again->reopened() && again->segmentBytes() == 2u << 20);
  EXPECT(memcmp(again->id(), id, sizeof id) == 0);
}

TEST("a directory or file that others may touch is UNSAFE, a damaged or newer one FORMAT, none is changed") {
  TemporaryDirectory dir;
  const std::string path = makeDirectory(dir, 0750);
  const auto code = [&] { return codeOf([&] { DiskDirectory::open(path, 1u << 20); }); };
  EXPECT(code() == "UNSAFE");
  EXPECT(chmod(path.c_str(), 0700) == 0);
  const std::string identity = path + "/directory.cairn";
  writeFile(identity, {});
  EXPECT(chmod(identity.c_str(), 0640) == 0);
  EXPECT(code() == "UNSAFE");
  std::filesystem::remove(identity);
  std::filesystem::create_symlink("/dev/null", identity);
  EXPECT(code() == "UNSAFE");
  std::filesystem::remove(identity);
  EXPECT(code().empty());
  const std::vector<uint8_t> good = contentOf(identity);
  for (const size_t at : {0u, 8u, 16u, 32u, 40u}) {
    std::vector<uint8_t> bad = good;
    bad[at] ^= 1;
    writeFile(identity, bad);
    EXPECT(code() == "FORMAT");
    EXPECT(contentOf(identity) == bad);
  }
  // An open that was cut short left nothing, or zeroes.
  writeFile(identity, std::vector<uint8_t>(100));
  EXPECT(code().empty());
  EXPECT(codeOf([&] { DiskDirectory::open(dir.file("missing"), 1u << 20); }) == "ENOENT");
  EXPECT(codeOf([&] { DiskDirectory::open(path, 4096); }) == "ARGUMENT");
}

TEST("a segment is written once from end to end and found prepared again, with its class") {
  DiskBench bench;
  bench.prepare();
  // What the list gives out holds the files, and with them the directory's lock: none is kept.
  REQUIRE(bench.disk->segments().size() == 1);
  EXPECT(bench.disk->segments().at(0).prepared && bench.disk->segments().at(0).payloadBytes == kDiskPayload);
  struct stat status;
  EXPECT(stat((bench.options.directory + "/segment-000000.cairn").c_str(), &status) == 0);
  EXPECT(static_cast<uint64_t>(status.st_size) == kSegment && (status.st_mode & 0777) == 0600);
  EXPECT(static_cast<uint64_t>(status.st_blocks) * 512 >= kSegment);
  EXPECT(bench.run(DiskKind::kWrite, bench.writes(1))[0] == kItemOk);
  bench.reopen();
  EXPECT(bench.disk->segments().at(0).payloadBytes == kDiskPayload);
  EXPECT(bench.disk->slabOf(DiskBench::slot(0), kDiskPayload)->slots == slotsPerSegment(kSegment, kDiskPayload));
}

TEST("preparing that fails leaves no file; one cut short is found and prepared again") {
  DiskBench bench;
  const std::string path = bench.options.directory + "/segment-000000.cairn";
  bench.faults->allocateErrno = ENOSPC;
  bench.disk->prepare(0, 1);
  EXPECT(bench.ended(1).d == ENOSPC && !std::filesystem::exists(path) && bench.disk->segments().empty());
  bench.faults->allocateErrno = 0;
  bench.faults->setWrite([](void*, size_t, off_t at) { return at > 4096 ? ssize_t{-EIO} : Faults::kPass; });
  bench.disk->prepare(0, 2);
  EXPECT(bench.ended(2).d == EIO && !std::filesystem::exists(path));
  // The process dies in the middle: the header says so.
  bench.faults->setWrite(nullptr);
  bench.disk->prepare(0, 3);
  EXPECT(bench.ended(3).c == 1);
  bench.close();
  const auto id = contentOf(path);
  SegmentHeader header;
  memcpy(&header, id.data(), sizeof header);
  const SegmentHeader half = makeSegmentHeader(0, header.directoryId, 0, false, kSegment);
  bench.patch(0, [&](uint8_t* bytes) { memcpy(bytes, &half, sizeof half); });
  bench.open();
  EXPECT(bench.disk->segments().size() == 1 && !bench.disk->segments().at(0).prepared);
  EXPECT(codeOf([&] { bench.disk->attach(0, 1); }) == "ARGUMENT");
  bench.prepare();
  EXPECT(bench.disk->segments().at(0).prepared);
  EXPECT(codeOf([&] { bench.disk->prepare(0, 9); }) == "BUSY");
}

TEST("a segment that is damaged, or of another directory, is left alone; one of another version is refused") {
  DiskBench bench;
  bench.prepare();
  bench.close();
  const std::string path = bench.options.directory + "/segment-000000.cairn";
  const std::vector<uint8_t> good = contentOf(path);
  SegmentHeader header;
  memcpy(&header, good.data(), sizeof header);
  const uint8_t otherId[kDirectoryIdBytes] = {9};
  const SegmentHeader foreign = makeSegmentHeader(0, otherId, 0, true, kSegment);
  const SegmentHeader renumbered = makeSegmentHeader(4, header.directoryId, 0, true, kSegment);
  SegmentHeader damaged = header;
  damaged.payloadBytes ^= 1;
  SegmentHeader flipped = header;
  flipped.version ^= 4;
  for (const SegmentHeader& one : {foreign, renumbered, damaged, flipped}) {
    bench.patch(0, [&](uint8_t* bytes) { memcpy(bytes, &one, sizeof one); });
    const std::vector<uint8_t> before = contentOf(path);
    bench.open();
    EXPECT(bench.disk->segments().empty());
    const auto notes = bench.disk->notes();
    EXPECT(std::any_of(notes.begin(), notes.end(), [](const auto& note) { return note.find("left alone") != std::string::npos; }));
    bench.disk->prepare(0, ++bench.lastTask);
    EXPECT(bench.ended(bench.lastTask).d == EEXIST);
    bench.close();
    EXPECT(contentOf(path) == before);
  }
  const SegmentHeader newer = ofVersion(header, kDiskFormat + 1);
  bench.patch(0, [&](uint8_t* bytes) { memcpy(bytes, &newer, sizeof newer); });
  EXPECT(codeOf([&] { bench.open(); }) == "FORMAT");
  EXPECT(contentOf(path).size() == kSegment);
}

TEST("a detached segment goes when asked, and not while it is used") {
  DiskBench bench;
  bench.prepare();
  Stall stall;
  bench.faults->setRead([&](void*, size_t, off_t) {
    stall.hold();
    return Faults::kPass;
  });
  EXPECT(bench.run(DiskKind::kWrite, bench.writes(1))[0] == kItemOk);
  const uint32_t batch = bench.submit(DiskKind::kRead, bench.reads(1));
  stall.waitForHeld(1);
  EXPECT(codeOf([&] { bench.disk->detach(kDiskSlabNumber, true); }) == "BUSY");
  EXPECT(codeOf([&] { bench.disk->release(kDiskSlabNumber); }) == "BUSY");
  stall.letGo();
  EXPECT(bench.statusesOf(batch)[0] == kItemOk);
  bench.disk->release(kDiskSlabNumber);
  EXPECT(bench.disk->assign(kDiskSlabNumber, 100'000) == slotsPerSegment(kSegment, 100'000));
  bench.disk->detach(kDiskSlabNumber, true);
  EXPECT(!std::filesystem::exists(bench.options.directory + "/segment-000000.cairn"));
  EXPECT(bench.disk->segments().empty());
}
