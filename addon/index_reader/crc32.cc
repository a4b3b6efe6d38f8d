#include "crc32.h"

#include <array>
#include <bit>
#include <cstring>

#include "../common.h"

namespace cairn {
namespace {

static_assert(std::endian::native == std::endian::little, "index pages are little-endian, and so is this code");

constexpr uint32_t kPolynomial = 0xedb88320;
/// Bytes of a step; table n holds what a byte does that n more bytes follow.
constexpr size_t kStep = 16;

using Tables = std::array<std::array<uint32_t, 256>, kStep>;

constexpr Tables makeTables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; byte++) {
    uint32_t sum = byte;
    for (int bit = 0; bit < 8; bit++) sum = (sum >> 1) ^ ((sum & 1) != 0 ? kPolynomial : 0);
    tables[0][byte] = sum;
  }
  for (size_t n = 1; n < kStep; n++) {
    for (uint32_t byte = 0; byte < 256; byte++) {
      const uint32_t before = tables[n - 1][byte];
      tables[n][byte] = (before >> 8) ^ tables[0][before & 0xff];
    }
  }
  return tables;
}

constexpr Tables kTables = makeTables();
static_assert(kTables[0][1] == 0x77073096 && kTables[0][255] == 0x2d02ef8d, "the table of every CRC-32");

uint32_t step(uint32_t sum, const uint8_t* bytes) {
  uint32_t words[kStep / sizeof(uint32_t)];
  memcpy(words, bytes, sizeof words);
  words[0] ^= sum;
  uint32_t next = 0;
  for (size_t i = 0; i < kStep; i++) next ^= kTables[kStep - 1 - i][words[i / 4] >> i % 4 * 8 & 0xff];
  return next;
}

}  // namespace

uint32_t crc32(const uint8_t* bytes, size_t count) {
  CAIRN_ASSERT(bytes != nullptr || count == 0, "there are bytes to sum up");
  uint32_t sum = 0xffffffff;
  size_t at = 0;
  for (; count - at >= kStep; at += kStep) sum = step(sum, bytes + at);
  for (; at < count; at++) sum = (sum >> 8) ^ kTables[0][(sum ^ bytes[at]) & 0xff];
  CAIRN_ASSERT(at == count, "every byte counts once");
  return ~sum;
}

}  // namespace cairn
