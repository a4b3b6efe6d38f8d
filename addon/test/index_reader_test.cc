// The reader of an index: LMDB files as a daemon writes them, and as nobody should. Files that end the process that
// maps them are damaged by the TypeScript tests, against the program.
#include <fcntl.h>
#include <lmdb.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "../index_reader/answer.h"
#include "../index_reader/reader.h"
#include "check.h"
#include "fixture.h"
#include "index_fixture.h"

using namespace cairn;
using namespace cairn::test;

namespace {

using Bytes = std::vector<uint8_t>;

/// An environment as lmdb-js opens it, for writing.
class Writer {
 public:
  explicit Writer(const TemporaryDirectory& directory) : folder(directory.file("index")) {
    mkdir(folder.c_str(), 0700);
    mdb_env_create(&env_);
    mdb_env_set_mapsize(env_, 64 << 20);
    EXPECT(mdb_env_open(env_, folder.c_str(), MDB_NOTLS, 0600) == MDB_SUCCESS);
    begin();
    mdb_dbi_open(txn_, nullptr, MDB_INTEGERKEY | MDB_CREATE, &database_);
  }
  ~Writer() {
    commit();
    mdb_env_close(env_);
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  void put(uint32_t key, const void* bytes, size_t count) {
    MDB_val name{sizeof key, &key};
    MDB_val value{count, const_cast<void*>(bytes)};
    EXPECT(mdb_put(txn_, database_, &name, &value, 0) == MDB_SUCCESS);
  }
  void put(uint32_t key, const std::vector<uint32_t>& page) { put(key, page.data(), page.size() * 4); }
  void begin() { EXPECT(mdb_txn_begin(env_, nullptr, 0, &txn_) == MDB_SUCCESS); }
  void commit() {
    if (txn_ != nullptr) EXPECT(mdb_txn_commit(txn_) == MDB_SUCCESS);
    txn_ = nullptr;
  }

  const std::string folder;

 private:
  MDB_env* env_ = nullptr;
  MDB_txn* txn_ = nullptr;
  MDB_dbi database_ = 0;
};

/// A page with one block, of the depth that its key is.
std::vector<uint32_t> pageOf(uint32_t key) {
  PageBuilder builder(key);
  builder.add(0, key + 1, 1, key * 8);
  return builder.sealed();
}

/// Why the index is not believed; "": it is.
std::string damageOf(const std::string& folder) {
  try {
    readIndex(folder);
  } catch (const Failure& failure) {
    return failure.message;
  }
  return "";
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

void cut(const std::string& folder, off_t bytes) {
  EXPECT(truncate((folder + "/data.mdb").c_str(), bytes) == 0);
}

/// What `write` wrote into a file.
Bytes written(const std::function<void(int)>& write) {
  const Descriptor file(memfd_create("answer", MFD_CLOEXEC));
  write(file.get());
  Bytes bytes(static_cast<size_t>(lseek(file.get(), 0, SEEK_END)));
  EXPECT(pread(file.get(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  return bytes;
}

uint32_t wordAt(const Bytes& bytes, size_t word) {
  uint32_t value = 0;
  memcpy(&value, bytes.data() + word * 4, sizeof value);
  return value;
}

}  // namespace

TEST("an index is read over several segments, and pages that do not verify are told by their keys") {
  const TemporaryDirectory directory;
  const std::vector<uint32_t> keys = {0, 1, kPagesPerSegment - 1, kPagesPerSegment, 16383u * kPagesPerSegment + 5};
  std::string folder;
  {
    Writer writer(directory);
    folder = writer.folder;
    for (const uint32_t key : keys) writer.put(key, pageOf(key));
    writer.put(7, pageOf(8));
    writer.put(9, "garbage", 7);
    writer.put(10, "", 0);
    writer.put(kIndexPagesMax, pageOf(kIndexPagesMax));
    writer.put(kIndexMetaKey, "{\"a\":1}", 7);
  }
  EXPECT(indexExists(folder));
  const IndexContent content = readIndex(folder);
  EXPECT(content.meta == "{\"a\":1}");
  EXPECT(content.pages == keys.size());
  EXPECT((content.badPages == std::vector<uint32_t>{7, 9, 10, kIndexPagesMax}));
  REQUIRE(content.records.size() == keys.size());
  for (size_t i = 0; i < keys.size(); i++) {
    EXPECT(content.records[i].depth == keys[i] + 1 && keyIs(content.records[i].key, keys[i] * 8));
    EXPECT(content.records[i].slot == keys[i] * kPageSlots);
  }
}

TEST("an index without entries, or with facts alone, is read") {
  for (const bool facts : {false, true}) {
    const TemporaryDirectory directory;
    std::string folder;
    {
      Writer writer(directory);
      folder = writer.folder;
      if (facts) writer.put(kIndexMetaKey, "{}", 2);
    }
    const IndexContent content = readIndex(folder);
    EXPECT(content.pages == 0 && content.badPages.empty() && content.records.size() == 0);
    EXPECT(content.meta == (facts ? "{}" : ""));
  }
}

TEST("an index with more bad pages than sound ones is damaged as a whole") {
  const TemporaryDirectory directory;
  Writer writer(directory);
  writer.put(0, pageOf(0));
  writer.put(1, pageOf(0));
  writer.commit();
  EXPECT(damageOf(writer.folder).empty());
  const TemporaryDirectory other;
  Writer second(other);
  second.put(0, pageOf(0));
  second.put(1, pageOf(0));
  second.put(2, pageOf(0));
  second.commit();
  EXPECT(damageOf(second.folder) == "2 of 3 pages");
}

TEST("keys of another length, and an overlong meta entry, are damage") {
  const TemporaryDirectory directory;
  Writer writer(directory);
  writer.put(kIndexMetaKey, Bytes(70000).data(), 70000);
  writer.commit();
  EXPECT(contains(damageOf(writer.folder), "the meta entry has 70000 bytes"));
  const TemporaryDirectory other;
  const std::string folder = other.file("index");
  mkdir(folder.c_str(), 0700);
  MDB_env* env = nullptr;
  MDB_txn* txn = nullptr;
  MDB_dbi database = 0;
  mdb_env_create(&env);
  EXPECT(mdb_env_open(env, folder.c_str(), MDB_NOTLS, 0600) == MDB_SUCCESS);
  mdb_txn_begin(env, nullptr, 0, &txn);
  mdb_dbi_open(txn, nullptr, MDB_CREATE, &database);
  MDB_val name{5, const_cast<char*>("hello")};
  EXPECT(mdb_put(txn, database, &name, &name, 0) == MDB_SUCCESS);
  EXPECT(mdb_txn_commit(txn) == MDB_SUCCESS);
  EXPECT(contains(damageOf(folder), "a key has 5 bytes"));
  mdb_env_close(env);
}

TEST("a file that is shorter than its meta pages say is damaged before it is mapped") {
  const TemporaryDirectory directory;
  std::string folder;
  {
    Writer writer(directory);
    folder = writer.folder;
    // Each of the two meta pages names one of these states.
    for (uint32_t key = 0; key < 200; key++) {
      writer.put(key, pageOf(key));
      if (key != 100) continue;
      writer.commit();
      writer.begin();
    }
  }
  EXPECT(damageOf(folder).empty());
  cut(folder, 3 * 4096);
  EXPECT(contains(damageOf(folder), "the index file has 12288 of "));
  for (const off_t bytes : {off_t{0}, off_t{23}, off_t{100}}) {
    cut(folder, bytes);
    EXPECT(contains(damageOf(folder), "the meta pages of the index are damaged"));
  }
}

TEST("a file that is none, or cannot be opened, is told and nothing is made in its place") {
  const TemporaryDirectory directory;
  const std::string folder = directory.file("index");
  EXPECT(!indexExists(folder));
  EXPECT(contains(damageOf(folder), "data.mdb"));
  mkdir(folder.c_str(), 0700);
  mkdir((folder + "/data.mdb").c_str(), 0700);
  EXPECT(indexExists(folder));
  EXPECT(contains(damageOf(folder), "data.mdb"));
  EXPECT(access((folder + "/lock.mdb").c_str(), F_OK) != 0);
}

TEST("an index is read beside its writer, as it was last committed, and leaves no reader behind") {
  const TemporaryDirectory directory;
  Writer writer(directory);
  writer.put(3, pageOf(3));
  writer.commit();
  for (int round = 0; round < 200; round++) EXPECT(readIndex(writer.folder).records.size() == 1);
}

TEST("the answer's head says what was found, and the records follow in the order asked for") {
  const TemporaryDirectory directory;
  Writer writer(directory);
  for (uint32_t key = 0; key < 9000; key++) writer.put(key, pageOf(key));
  writer.put(9000, "bad", 3);
  writer.put(kIndexMetaKey, "{\"b\":2}", 7);
  writer.commit();
  const IndexContent content = readIndex(writer.folder);
  RecordOrder order(content.records.size());
  const uint32_t* indexes = order.sort(content.records);
  std::vector<uint32_t> backwards(indexes, indexes + 9000);
  std::reverse(backwards.begin(), backwards.end());
  const Bytes bytes = written([&](int file) {
    writeHead(file, &content);
    writeRecords(file, content.records, backwards.data());
  });
  const uint32_t head[] = {kAnswerMagic, kAnswerVersion, 1, 9000, 7, 1, 9000, 0, 9000};
  for (size_t i = 0; i < std::size(head); i++) EXPECT(wordAt(bytes, i) == head[i]);
  EXPECT(memcmp(bytes.data() + 36, "{\"b\":2}\0", 8) == 0);
  REQUIRE(bytes.size() == 44 + 9000 * sizeof(IndexRecord));
  for (size_t i = 0; i < 9000; i++) EXPECT(wordAt(bytes, 11 + i * 23 + 1) == 9000 - i);
}

TEST("the answer to no index is a head alone") {
  const Bytes bytes = written([](int file) { writeHead(file, nullptr); });
  REQUIRE(bytes.size() == kAnswerHeadWords * 4);
  EXPECT(wordAt(bytes, 0) == kAnswerMagic && wordAt(bytes, 2) == 0 && wordAt(bytes, 3) == 0);
}

TEST("an answer that cannot be written is a failure") {
  EXPECT(codeOf([] { writeHead(-1, nullptr); }) == "EBADF");
}
