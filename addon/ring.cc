#include "ring.h"

#include "common.h"

namespace cairn {

InboxRing::Space InboxRing::allocate(size_t bytes) {
  const size_t needed = roundUp(bytes, 8);
  CAIRN_ASSERT(needed <= sizeBytes_ / 2, "a frame is at most half the inbox");
  const uint64_t tail = tail_.load(std::memory_order_seq_cst);
  uint64_t head = head_;
  CAIRN_ASSERT(tail <= head && head - tail <= sizeBytes_, "the reader stays behind the writer");
  const size_t at = head % sizeBytes_;
  if (at + needed > sizeBytes_) head += sizeBytes_ - at;
  if (head + needed - tail > sizeBytes_) return Space{nullptr, 0, 0};
  head_ = head + needed;
  const size_t offset = head % sizeBytes_;
  return Space{base_ + offset, static_cast<uint32_t>(offset), head_};
}

}  // namespace cairn
