// Pages of the index as the daemon writes them (tiers/nvme/index-pages.ts), and as nobody should.
#pragma once

#include <array>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../index_reader/crc32.h"
#include "../index_reader/page.h"

namespace cairn::test {

constexpr uint32_t kNoParent = 254;
constexpr uint32_t kSpelledParent = 255;

/// A page with words in the order of the layout; what it says need not be true.
struct PageBuilder {
  explicit PageBuilder(uint32_t key, uint32_t payloadBytes = 4096) {
    words = {0x58495243, 1, key, payloadBytes, 0, 0, 0, 0};
  }

  /// The words of its key are `key`, `key` + 1 …; those of a spelled parent are `spelled` …
  void add(uint32_t position, uint32_t depth, uint32_t generation, uint32_t key, uint32_t parent = kNoParent,
           uint32_t spelled = 0) {
    words[4] |= 1u << position;
    for (const uint32_t word : {parent << 24, depth, generation, 7u, 1u}) words.push_back(word);
    for (uint32_t i = 0; i < kKeyWords; i++) words.push_back(key + i);
    if (parent != kSpelledParent) return;
    for (uint32_t i = 0; i < kKeyWords; i++) words.push_back(spelled + i);
  }

  /// With its number of words and its checksum.
  std::vector<uint32_t> sealed() const {
    std::vector<uint32_t> page = words;
    page[6] = static_cast<uint32_t>(page.size());
    page[5] = 0;
    page[5] = crc32(reinterpret_cast<const uint8_t*>(page.data()), page.size() * 4);
    return page;
  }

  std::vector<uint32_t> words;
};

inline size_t readWords(const std::vector<uint32_t>& page, uint32_t key, IndexRecord* into) {
  return readPage(reinterpret_cast<const uint8_t*>(page.data()), page.size() * 4, key, into);
}

/// The key in a record or of its parent begins with this word, and goes on as PageBuilder writes it.
inline bool keyIs(const uint32_t* key, uint32_t first) {
  for (uint32_t i = 0; i < kKeyWords; i++) {
    if (key[i] != first + i) return false;
  }
  return true;
}

/// The bytes of a golden file.
inline std::vector<uint8_t> goldenBytes(const char* path) {
  std::vector<uint8_t> bytes;
  FILE* file = fopen(path, "r");
  unsigned byte = 0;
  while (file != nullptr && fscanf(file, "%2x", &byte) == 1) bytes.push_back(static_cast<uint8_t>(byte));
  if (file != nullptr) fclose(file);
  return bytes;
}

}  // namespace cairn::test
