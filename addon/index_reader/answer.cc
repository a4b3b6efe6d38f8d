#include "answer.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "../common.h"

namespace cairn {
namespace {

/// Written at once: from a buffer that stays in the processor's cache.
constexpr size_t kRecordsPerWrite = 4096;
/// Records lie scattered in memory; the one that comes so many later is fetched meanwhile.
constexpr size_t kRecordsAhead = 16;
constexpr size_t kCacheLineBytes = 64;

void writeAll(int file, const void* from, size_t bytes) {
  const auto* at = static_cast<const uint8_t*>(from);
  while (bytes > 0) {
    const ssize_t done = write(file, at, bytes);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) failErrno("write the answer");
    CAIRN_ASSERT(done > 0 && static_cast<size_t>(done) <= bytes, "a write that succeeds moves on");
    at += done;
    bytes -= static_cast<size_t>(done);
  }
}

void prefetch(const IndexRecord& record) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&record);
  __builtin_prefetch(bytes);
  __builtin_prefetch(bytes + kCacheLineBytes);
  __builtin_prefetch(bytes + sizeof record - 1);
}

}  // namespace

void writeHead(int file, const IndexContent* content) {
  static const std::vector<uint32_t> noPages;
  static const std::string noMeta;
  const auto& bad = content == nullptr ? noPages : content->badPages;
  const auto& meta = content == nullptr ? noMeta : content->meta;
  const size_t records = content == nullptr ? 0 : content->records.size();
  CAIRN_ASSERT(records <= UINT32_MAX && bad.size() <= UINT32_MAX, "numbers of the head are words");
  const size_t metaWords = roundUp(meta.size(), sizeof(uint32_t)) / sizeof(uint32_t);
  std::vector<uint32_t> head(kAnswerHeadWords + bad.size() + metaWords);
  head[0] = kAnswerMagic;
  head[1] = kAnswerVersion;
  head[2] = content == nullptr ? 0 : 1;
  head[3] = static_cast<uint32_t>(records);
  head[4] = static_cast<uint32_t>(meta.size());
  head[5] = static_cast<uint32_t>(bad.size());
  head[6] = content == nullptr ? 0 : content->pages;
  std::copy(bad.begin(), bad.end(), head.begin() + kAnswerHeadWords);
  memcpy(head.data() + kAnswerHeadWords + bad.size(), meta.data(), meta.size());
  writeAll(file, head.data(), head.size() * sizeof(uint32_t));
}

void writeRecords(int file, const RecordList& records, const uint32_t* order) {
  const size_t count = records.size();
  CAIRN_ASSERT(order != nullptr || count == 0, "records come in an order");
  std::vector<IndexRecord> piece(std::min(count, kRecordsPerWrite));
  size_t filled = 0;
  for (size_t i = 0; i < count; i++) {
    if (i + kRecordsAhead < count) prefetch(records[order[i + kRecordsAhead]]);
    CAIRN_ASSERT(order[i] < count, "the order names records");
    piece[filled++] = records[order[i]];
    if (filled < piece.size() && i + 1 < count) continue;
    writeAll(file, piece.data(), filled * sizeof(IndexRecord));
    filled = 0;
  }
}

}  // namespace cairn
