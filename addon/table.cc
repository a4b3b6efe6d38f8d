#include "table.h"

#include <atomic>
#include <cstring>

#include <xxhash.h>

#include "common.h"

namespace cairn {

DoubleTable::DoubleTable(uint8_t* base, size_t copyBytes, uint64_t magic)
    : base_(base), copyBytes_(copyBytes), magic_(magic) {
  CAIRN_ASSERT(copyBytes > sizeof(Head), "a table copy holds its head");
}

size_t DoubleTable::payloadBytesMax() const { return copyBytes_ - sizeof(Head); }

uint64_t DoubleTable::hashOf(const Head& head, const uint8_t* payload) const {
  return XXH3_64bits_withSeed(payload, head.bytes, head.magic ^ head.sequence * 0x9e3779b97f4a7c15);
}

bool DoubleTable::valid(const Head& head, const uint8_t* payload) const {
  if (head.magic != magic_ || head.sequence == 0 || head.bytes > payloadBytesMax()) return false;
  return head.hash == hashOf(head, payload);
}

bool DoubleTable::read(std::vector<uint8_t>& payload) {
  int best = -1;
  Head bestHead{};
  for (int copy = 0; copy < 2; copy++) {
    const uint8_t* at = base_ + static_cast<size_t>(copy) * copyBytes_;
    Head head;
    memcpy(&head, at, sizeof head);
    if (!valid(head, at + sizeof(Head))) continue;
    if (best >= 0 && head.sequence < bestHead.sequence) continue;
    best = copy;
    bestHead = head;
  }
  if (best < 0) return false;
  const uint8_t* at = base_ + static_cast<size_t>(best) * copyBytes_ + sizeof(Head);
  payload.assign(at, at + bestHead.bytes);
  sequence_ = bestHead.sequence;
  newest_ = best;
  return true;
}

void DoubleTable::write(const uint8_t* payload, size_t bytes) {
  CAIRN_ASSERT(bytes <= payloadBytesMax(), "a table fits its copy");
  const int target = 1 - newest_;
  uint8_t* at = base_ + static_cast<size_t>(target) * copyBytes_;
  Head head{};
  head.magic = magic_;
  head.sequence = sequence_ + 1;
  head.bytes = bytes;
  memset(at, 0, sizeof head);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (bytes > 0) memcpy(at + sizeof head, payload, bytes);
  head.hash = hashOf(head, payload);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  memcpy(at, &head, sizeof head);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  sequence_ = head.sequence;
  newest_ = target;
}

}  // namespace cairn
