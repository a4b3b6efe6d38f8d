// Pages of the NVMe index, their checksum, and the order of their records: without LMDB.
#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "../index_reader/crc32.h"
#include "../index_reader/page.h"
#include "../index_reader/records.h"
#include "check.h"
#include "index_fixture.h"

using namespace cairn;
using namespace cairn::test;

namespace {

uint32_t crcOf(const std::string& text) { return crc32(reinterpret_cast<const uint8_t*>(text.data()), text.size()); }

/// By the definition.
uint32_t crcBitwise(const uint8_t* bytes, size_t count) {
  uint32_t sum = 0xffffffff;
  for (size_t i = 0; i < count; i++) {
    sum ^= bytes[i];
    for (int bit = 0; bit < 8; bit++) sum = sum >> 1 ^ (sum & 1) * 0xedb88320;
  }
  return ~sum;
}

constexpr uint32_t kKey = 5 * kPagesPerSegment + 2;

/// The records of these (depth, generation) pairs, in this order, as the positions where they came from.
std::vector<uint32_t> sorted(const std::vector<std::pair<uint32_t, uint32_t>>& given) {
  RecordList records(given.size() + kPageSlots);
  for (const auto& [depth, generation] : given) {
    IndexRecord* room = records.room();
    CAIRN_ASSERT(room != nullptr, "there is room for all");
    *room = IndexRecord{};
    room->depth = depth;
    room->generation = generation;
    records.add(1);
  }
  RecordOrder order(records.size());
  const uint32_t* indexes = order.sort(records);
  return {indexes, indexes + records.size()};
}

std::vector<uint32_t> expectedOrder(const std::vector<std::pair<uint32_t, uint32_t>>& given) {
  std::vector<uint32_t> indexes(given.size());
  std::iota(indexes.begin(), indexes.end(), 0);
  std::stable_sort(indexes.begin(), indexes.end(), [&](uint32_t a, uint32_t b) {
    if (given[a].first != given[b].first) return given[a].first < given[b].first;
    return given[a].second > given[b].second;
  });
  return indexes;
}

}  // namespace

TEST("the checksum of pages is zlib's CRC-32") {
  EXPECT(crcOf("") == 0);
  EXPECT(crcOf("123456789") == 0xcbf43926);
  EXPECT(crcOf("The quick brown fox jumps over the lazy dog") == 0x414fa339);
  EXPECT(crcOf(std::string(32, '\0')) == 0x190a55ad);
  EXPECT(crcOf(std::string(32, '\xff')) == 0xff6cab0b);
}

TEST("the checksum is the same by tables and by its definition, for every length and alignment") {
  std::mt19937 random(1);
  std::vector<uint8_t> bytes(4096);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  for (size_t from = 0; from < 9; from++) {
    for (size_t count = 0; count <= 200; count++) {
      EXPECT(crc32(bytes.data() + from, count) == crcBitwise(bytes.data() + from, count));
    }
  }
  EXPECT(crc32(bytes.data(), bytes.size()) == crcBitwise(bytes.data(), bytes.size()));
}

TEST("the page of test/golden/nvme-index-page.hex says what index-pages.ts wrote into it") {
  const std::vector<uint8_t> page = goldenBytes("test/golden/nvme-index-page.hex");
  REQUIRE(!page.empty());
  IndexRecord records[kPageSlots];
  REQUIRE(readPage(page.data(), page.size(), kKey, records) == 3);
  const uint32_t depths[] = {1, 2, 70000};
  const uint32_t positions[] = {0, 1, 31};
  const uint32_t keys[] = {0x10000000, 0x20000000, 0x10000000};
  for (size_t i = 0; i < 3; i++) {
    const IndexRecord& record = records[i];
    EXPECT(record.row == (3 | 1 << 16) && record.depth == depths[i] && record.generation == 9);
    EXPECT((uint64_t{record.lastAccess[1]} << 32 | record.lastAccess[0]) == 1700000000123);
    EXPECT(keyIs(record.key, keys[i]));
    EXPECT(record.slot == (5u << 18) + 2 * kPageSlots + positions[i]);
    EXPECT(record.payloadBytes == 65536);
  }
  const uint32_t none[kKeyWords] = {};
  EXPECT(memcmp(records[0].parentKey, none, sizeof none) == 0);
  EXPECT(keyIs(records[1].parentKey, 0x10000000));
  EXPECT(keyIs(records[2].parentKey, 0x20000000));
}

TEST("a page is read at any alignment, full and with every parent spelled out") {
  PageBuilder full(kIndexPagesMax - 1);
  for (uint32_t i = 0; i < kPageSlots; i++) full.add(i, i + 1, 1, i * 100, kSpelledParent, i * 1000);
  const std::vector<uint32_t> page = full.sealed();
  REQUIRE(page.size() == kPageWordsMax);
  for (size_t shift = 0; shift < 8; shift++) {
    std::vector<uint8_t> bytes(shift + page.size() * 4);
    memcpy(bytes.data() + shift, page.data(), page.size() * 4);
    IndexRecord records[kPageSlots];
    REQUIRE(readPage(bytes.data() + shift, page.size() * 4, kIndexPagesMax - 1, records) == kPageSlots);
    for (uint32_t i = 0; i < kPageSlots; i++) {
      EXPECT(keyIs(records[i].key, i * 100) && keyIs(records[i].parentKey, i * 1000));
      EXPECT(records[i].slot == 0xffffffff - (kPageSlots - 1 - i));
    }
  }
}

TEST("a page with any one bit flipped, cut off, made longer or under another key is none") {
  PageBuilder builder(kKey);
  builder.add(3, 1, 1, 10);
  builder.add(4, 2, 1, 20, 3);
  std::vector<uint32_t> page = builder.sealed();
  IndexRecord records[kPageSlots];
  REQUIRE(readWords(page, kKey, records) == 2);
  for (size_t bit = 0; bit < page.size() * 32; bit++) {
    page[bit / 32] ^= 1u << bit % 32;
    EXPECT(readWords(page, kKey, records) == 0);
    page[bit / 32] ^= 1u << bit % 32;
  }
  const auto* bytes = reinterpret_cast<const uint8_t*>(page.data());
  for (size_t count = 0; count < page.size() * 4; count++) EXPECT(readPage(bytes, count, kKey, records) == 0);
  EXPECT(readWords(page, kKey + 1, records) == 0);
  page.push_back(0);
  EXPECT(readWords(page, kKey, records) == 0);
}

TEST("a page whose checksum holds and whose words do not is none") {
  IndexRecord records[kPageSlots];
  const auto none = [&](const PageBuilder& builder, uint32_t key = kKey) {
    return readWords(builder.sealed(), key, records) == 0;
  };
  PageBuilder good(kKey);
  good.add(0, 1, 1, 10);
  EXPECT(!none(good));
  for (size_t word = 0; word < 2; word++) {
    PageBuilder other = good;
    other.words[word]++;
    EXPECT(none(other));
  }
  PageBuilder empty = good;
  empty.words[4] = 0;
  EXPECT(none(empty));
  PageBuilder more = good;
  more.words[4] = 0x80000001;
  EXPECT(none(more));
  PageBuilder longer = good;
  longer.words.resize(kPageWordsMax + 1);
  EXPECT(none(longer));
  PageBuilder unspelled(kKey);
  unspelled.add(0, 1, 1, 10);
  unspelled.words[8] = kSpelledParent << 24;
  EXPECT(none(unspelled));
  PageBuilder beyond(kIndexPagesMax);
  beyond.add(0, 1, 1, 10);
  EXPECT(none(beyond, kIndexPagesMax));
}

TEST("a parent's position where nothing stands makes a page none; its own and a later one are taken as they are") {
  for (uint32_t parent = 0; parent < kNoParent; parent++) {
    PageBuilder builder(kKey);
    builder.add(1, 1, 1, 100);
    builder.add(2, 2, 1, 200, parent);
    builder.add(30, 3, 1, 300);
    IndexRecord records[kPageSlots];
    const size_t count = readWords(builder.sealed(), kKey, records);
    const bool stands = parent == 1 || parent == 2 || parent == 30;
    EXPECT(count == (stands ? 3 : 0));
    if (stands) EXPECT(keyIs(records[1].parentKey, parent == 30 ? 300 : parent * 100));
  }
}

TEST("random words never read or write beyond a page") {
  std::mt19937 random(2);
  for (int round = 0; round < 20000; round++) {
    PageBuilder builder(kKey);
    builder.words.resize(kPageHeadWords + random() % (kPageWordsMax - kPageHeadWords + 1));
    for (size_t i = kPageHeadWords; i < builder.words.size(); i++) builder.words[i] = random();
    builder.words[4] = random() & random();
    const std::vector<uint32_t> page = builder.sealed();
    const std::vector<IndexRecord> before(kPageSlots);
    std::vector<IndexRecord> records = before;
    const size_t count = readWords(page, kKey, records.data());
    EXPECT(count == 0 || count == static_cast<size_t>(__builtin_popcount(page[4])));
  }
}

TEST("records are ordered by depth, then generation descending, then as they came") {
  std::mt19937 random(3);
  for (const uint32_t depths : {1u, 5u, 70000u, 0xffffffffu}) {
    for (const uint32_t generations : {1u, 3u, 0xffffffffu}) {
      std::vector<std::pair<uint32_t, uint32_t>> given(5000);
      for (auto& [depth, generation] : given) {
        depth = random() % depths;
        generation = random() % generations;
      }
      EXPECT(sorted(given) == expectedOrder(given));
    }
  }
}

TEST("the deepest depth there is costs an order no more memory than others, and none is an order too") {
  EXPECT(sorted({}).empty());
  EXPECT((sorted({{7, 7}}) == std::vector<uint32_t>{0}));
  const std::vector<std::pair<uint32_t, uint32_t>> given = {{0xffffffff, 0}, {0, 0xffffffff}, {0xffffffff, 1}, {0, 0}};
  EXPECT((sorted(given) == std::vector<uint32_t>{1, 3, 2, 0}));
}

TEST("a list of records says when it is full") {
  RecordList records(kPageSlots * 2 - 1);
  REQUIRE(records.room() != nullptr);
  records.add(kPageSlots);
  EXPECT(records.room() == nullptr);
  EXPECT(records.size() == kPageSlots);
}
