// A small table that stands twice in the pool file, so that a crash in the middle of writing one copy
// leaves the other. Each copy carries a sequence number and a hash; the reader takes the valid copy with
// the higher sequence, the writer overwrites the other one.
//
// The page cache outlives the process, so program order is enough against kill -9; a power cut empties
// the DRAM tier anyway.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cairn {

class DoubleTable {
 public:
  /// Two copies of `copyBytes` each, at `base` and right behind it. copyBytes includes the 64-byte head.
  DoubleTable(uint8_t* base, size_t copyBytes, uint64_t magic);

  size_t payloadBytesMax() const;
  /// The newest valid payload; false when neither copy is valid.
  bool read(std::vector<uint8_t>& payload);
  /// Writes the older copy. bytes ≤ payloadBytesMax().
  void write(const uint8_t* payload, size_t bytes);

 private:
  struct Head {
    uint64_t magic;
    uint64_t sequence;
    uint64_t bytes;
    uint64_t hash;
    uint8_t reserved[32];
  };
  static_assert(sizeof(Head) == 64);

  bool valid(const Head& head, const uint8_t* payload) const;
  uint64_t hashOf(const Head& head, const uint8_t* payload) const;

  uint8_t* base_;
  size_t copyBytes_;
  uint64_t magic_;
  uint64_t sequence_ = 0;
  int newest_ = 1;
};

}  // namespace cairn
