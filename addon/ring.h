// The inbox: one buffer that the transport thread fills with whole frames and JS reads in place. One
// producer, one consumer. A frame is contiguous and 8-byte aligned; one that would cross the end starts
// again at 0. Positions count bytes for ever; the buffer must hold two of the largest frames, so that a
// frame fits whenever the ring is empty.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace cairn {

class InboxRing {
 public:
  InboxRing(uint8_t* base, size_t sizeBytes) : base_(base), sizeBytes_(sizeBytes) {}

  struct Space {
    /// nullptr: full.
    uint8_t* at;
    uint32_t offset;
    /// To be handed to release() once the frame was read.
    uint64_t end;
  };
  /// Producer: room for a frame. Each call takes it at once; the caller fills it before it announces it.
  Space allocate(size_t bytes);
  /// Producer: contiguous room for `bytes` that is not taken yet (at = nullptr: there is none); `end` is where it
  /// starts. Valid until the next allocate() or take().
  Space ahead(size_t bytes) const;
  /// Producer: takes the first `bytes` of what ahead() offered; returns the position after them.
  uint64_t take(const Space& space, size_t bytes);
  /// Consumer: everything up to `end` may be overwritten.
  void release(uint64_t end) { tail_.store(end, std::memory_order_seq_cst); }
  size_t sizeBytes() const { return sizeBytes_; }

 private:
  uint8_t* base_;
  size_t sizeBytes_;
  uint64_t head_ = 0;
  std::atomic<uint64_t> tail_{0};
};

}  // namespace cairn
