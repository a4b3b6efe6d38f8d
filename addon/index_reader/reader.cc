#include "reader.h"

#include <fcntl.h>
#include <lmdb.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "../common.h"

namespace cairn {
namespace {

/// What an LMDB file begins with, twice: a page header, then (offsets in the page) magic, page bytes and last page.
constexpr size_t kMetaPageBytes = 4096;
constexpr uint32_t kMetaMagic = 0xbeefc0de;
constexpr size_t kMetaMagicAt = 24;
constexpr size_t kMetaPageBytesAt = 48;
constexpr size_t kMetaLastPageAt = 144;
/// As lmdb-js opens it; LMDB maps at least what the file says that it holds.
constexpr size_t kMapBytesMin = 128 << 10;
constexpr unsigned kReadersMax = 126;
constexpr mode_t kLockFileMode = 0664;
/// Far more than a daemon ever wrote.
constexpr size_t kMetaBytesMax = 64 << 10;
constexpr const char* kDataFile = "/data.mdb";

[[noreturn]] void damaged(const std::string& why) { fail("damaged", why); }

/// `rc`: what a function of LMDB returned.
void check(int rc, const char* what) {
  if (rc != MDB_SUCCESS) damaged(std::string(what) + ": " + mdb_strerror(rc));
}

class Environment {
 public:
  Environment() { check(mdb_env_create(&env_), "an environment"); }
  ~Environment() {
    if (txn_ != nullptr) mdb_txn_abort(txn_);
    mdb_env_close(env_);
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

  void open(const std::string& folder) {
    check(mdb_env_set_maxreaders(env_, kReadersMax), "readers");
    check(mdb_env_set_mapsize(env_, kMapBytesMin), "map");
    check(mdb_env_open(env_, folder.c_str(), MDB_RDONLY | MDB_NOTLS, kLockFileMode), "open");
    int dead = 0;
    check(mdb_reader_check(env_, &dead), "places of readers that were killed");
    check(mdb_txn_begin(env_, nullptr, MDB_RDONLY, &txn_), "a snapshot");
  }

  /// Calls visit(key, value) for every entry, in LMDB's order.
  template <typename Visit>
  void each(const Visit& visit) const {
    CAIRN_ASSERT(txn_ != nullptr, "an open environment is read");
    MDB_dbi database = 0;
    check(mdb_dbi_open(txn_, nullptr, MDB_INTEGERKEY, &database), "its database");
    MDB_cursor* opened = nullptr;
    check(mdb_cursor_open(txn_, database, &opened), "its entries");
    const std::unique_ptr<MDB_cursor, decltype(&mdb_cursor_close)> cursor(opened, mdb_cursor_close);
    MDB_val key, value;
    int rc = mdb_cursor_get(cursor.get(), &key, &value, MDB_FIRST);
    for (; rc == MDB_SUCCESS; rc = mdb_cursor_get(cursor.get(), &key, &value, MDB_NEXT)) visit(key, value);
    if (rc != MDB_NOTFOUND) check(rc, "the next entry");
  }

 private:
  MDB_env* env_ = nullptr;
  MDB_txn* txn_ = nullptr;
};

template <typename T>
T valueAt(const uint8_t* bytes, size_t at) {
  T value;
  memcpy(&value, bytes + at, sizeof value);
  return value;
}

/// Bytes that a meta page says its file has; 0: it is none.
uint64_t bytesAskedFor(const uint8_t* page) {
  if (valueAt<uint32_t>(page, kMetaMagicAt) != kMetaMagic) return 0;
  const auto pageBytes = valueAt<uint32_t>(page, kMetaPageBytesAt);
  const auto lastPage = valueAt<uint64_t>(page, kMetaLastPageAt);
  uint64_t bytes = 0;
  if (pageBytes == 0) return 0;
  if (lastPage == UINT64_MAX || __builtin_mul_overflow(lastPage + 1, uint64_t{pageBytes}, &bytes)) return UINT64_MAX;
  return bytes;
}

/// LMDB maps the file by what its meta pages say. At least one of them must be a meta page, and the file must be as
/// long as the shorter of them asks for. Returns its bytes.
uint64_t checkFile(const std::string& path) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) failErrno(path);
  struct stat status;
  if (fstat(file.get(), &status) != 0) failErrno(path);
  const auto bytes = static_cast<uint64_t>(status.st_size);
  uint64_t asked = 0;
  for (const off_t at : {off_t{0}, static_cast<off_t>(kMetaPageBytes)}) {
    uint8_t page[kMetaPageBytes] = {};
    if (pread(file.get(), page, sizeof page, at) < 0) failErrno(path);
    const uint64_t one = bytesAskedFor(page);
    if (one > 0) asked = asked == 0 ? one : std::min(asked, one);
  }
  if (asked == 0) damaged("the meta pages of the index are damaged");
  if (bytes < asked) {
    damaged("the index file has " + std::to_string(bytes) + " of " + std::to_string(asked) + " bytes");
  }
  // Pages are asked for in order of keys: on a disk they are better read in order of the file.
  posix_fadvise(file.get(), 0, 0, POSIX_FADV_WILLNEED);
  return bytes;
}

/// Takes in what LMDB hands out, believing none of it.
class Collector {
 public:
  explicit Collector(IndexContent& content) : content_(content) {}

  void take(const MDB_val& key, const MDB_val& value) {
    if (key.mv_size != sizeof(uint32_t)) damaged("a key has " + std::to_string(key.mv_size) + " bytes");
    const auto number = valueAt<uint32_t>(static_cast<const uint8_t*>(key.mv_data), 0);
    // A tree that leads to the same leaf twice would name the same slots twice.
    if (number < next_) damaged("the keys of the index are not in order");
    next_ = uint64_t{number} + 1;
    if (number == kIndexMetaKey) takeMeta(value);
    else takePage(number, value);
  }

 private:
  void takeMeta(const MDB_val& value) {
    if (value.mv_size > kMetaBytesMax) damaged("the meta entry has " + std::to_string(value.mv_size) + " bytes");
    content_.meta.assign(static_cast<const char*>(value.mv_data), value.mv_size);
  }

  void takePage(uint32_t key, const MDB_val& value) {
    IndexRecord* room = content_.records.room();
    if (room == nullptr) damaged("the index names more blocks than its file can hold");
    const size_t count = readPage(static_cast<const uint8_t*>(value.mv_data), value.mv_size, key, room);
    content_.records.add(count);
    if (count > 0) content_.pages++;
    else content_.badPages.push_back(key);
  }

  IndexContent& content_;
  uint64_t next_ = 0;
};

}  // namespace

bool indexExists(const std::string& folder) { return access((folder + kDataFile).c_str(), F_OK) == 0; }

IndexContent readIndex(const std::string& folder) {
  CAIRN_ASSERT(!folder.empty(), "an index lies in a folder");
  const std::string path = folder + kDataFile;
  checkFile(path);
  Environment environment;
  environment.open(folder);
  // Pages of the snapshot stand in the file, which a daemon may have lengthened since it was checked.
  struct stat status;
  if (stat(path.c_str(), &status) != 0) failErrno(path);
  const auto bytes = static_cast<uint64_t>(status.st_size);
  const uint64_t recordsMax = bytes / (kEntryWords * sizeof(uint32_t)) + kPageSlots;
  if (recordsMax > UINT32_MAX) damaged("the index file has " + std::to_string(bytes) + " bytes");
  IndexContent content(recordsMax);
  Collector collector(content);
  environment.each([&](const MDB_val& key, const MDB_val& value) { collector.take(key, value); });
  if (content.badPages.size() > content.pages) {
    damaged(std::to_string(content.badPages.size()) + " of " + std::to_string(content.badPages.size() + content.pages) +
            " pages");
  }
  CAIRN_ASSERT(content.records.size() <= recordsMax, "records stay within their memory");
  return content;
}

}  // namespace cairn
