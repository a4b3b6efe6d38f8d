#include "ring.h"

#include "common.h"

namespace cairn {

InboxRing::Space InboxRing::ahead(size_t bytes) const {
  const size_t needed = roundUp(bytes, 8);
  CAIRN_ASSERT(needed <= sizeBytes_ / 2, "a frame is at most half the inbox");
  const uint64_t tail = tail_.load(std::memory_order_seq_cst);
  uint64_t start = head_;
  CAIRN_ASSERT(tail <= start && start - tail <= sizeBytes_, "the reader stays behind the writer");
  const size_t at = start % sizeBytes_;
  if (at + needed > sizeBytes_) start += sizeBytes_ - at;
  if (start + needed - tail > sizeBytes_) return Space{nullptr, 0, 0};
  const size_t offset = start % sizeBytes_;
  return Space{base_ + offset, static_cast<uint32_t>(offset), start};
}

uint64_t InboxRing::take(const Space& space, size_t bytes) {
  CAIRN_ASSERT(space.at != nullptr && space.end >= head_, "only offered room is taken");
  head_ = space.end + roundUp(bytes, 8);
  return head_;
}

InboxRing::Space InboxRing::allocate(size_t bytes) {
  const Space space = ahead(bytes);
  if (space.at == nullptr) return space;
  return Space{space.at, space.offset, take(space, bytes)};
}

}  // namespace cairn
