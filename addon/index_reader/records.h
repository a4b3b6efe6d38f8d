// The records of an index in memory, and the order in which a start takes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "page.h"

namespace cairn {

/// Memory of the process, taken from the system as it is touched. Throws Failure.
class Memory {
 public:
  explicit Memory(size_t bytes);
  Memory(Memory&& other) noexcept : base_(std::exchange(other.base_, nullptr)), bytes_(other.bytes_) {}
  Memory& operator=(Memory&&) = delete;
  ~Memory();
  /// Its first `bytes` are about to be written, and the next after them: pages that come in steps cost less than one
  /// fault each. Huge pages would cost less still where they are at hand, and several times as much where they are not.
  void take(size_t bytes);
  template <typename T>
  T* as() const {
    return static_cast<T*>(base_);
  }

 private:
  void* base_ = nullptr;
  size_t bytes_ = 0;
  size_t taken_ = 0;
};

/// Records as they come, up to a number that is known before. Throws Failure where there is no memory for them.
class RecordList {
 public:
  explicit RecordList(size_t capacity);
  size_t size() const { return size_; }
  const IndexRecord& operator[](size_t index) const { return records_.as<IndexRecord>()[index]; }
  /// By which record `index` is sorted: depth << 32 | ~generation.
  uint64_t orderOf(size_t index) const { return orders_.as<uint64_t>()[index]; }
  /// Room for the records of one page, of which add() says how many came; nullptr: there is no more.
  IndexRecord* room();
  void add(size_t count);

 private:
  Memory records_;
  /// Taken from records while they are in the processor's cache.
  Memory orders_;
  size_t capacity_;
  size_t size_ = 0;
};

/// Indexes of records by depth, then generation descending, then as they came.
class RecordOrder {
 public:
  /// Takes the memory, and throws Failure where there is none. Fewer than 2^32 records.
  explicit RecordOrder(size_t count);
  /// `count` indexes, valid as long as this object.
  const uint32_t* sort(const RecordList& records);

 private:
  size_t count_;
  Memory order_;
  Memory other_;
};

}  // namespace cairn
