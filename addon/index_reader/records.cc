#include "records.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "../common.h"

namespace cairn {
namespace {

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

constexpr size_t kStepBytes = 2u << 20;
/// A digit of the radix sort. Depths mostly have one, and generations mostly are alike or have one more.
constexpr unsigned kDigitBits = 16;
constexpr size_t kDigits = size_t{1} << kDigitBits;

/// One pass, which keeps the order of equal digits.
void sortByDigit(const RecordList& records, unsigned shift, const uint32_t* from, uint32_t* into) {
  const size_t count = records.size();
  std::vector<uint32_t> next(kDigits + 1);
  const auto digitOf = [&](size_t index) { return records.orderOf(index) >> shift & (kDigits - 1); };
  for (size_t i = 0; i < count; i++) next[digitOf(i) + 1]++;
  for (size_t digit = 1; digit <= kDigits; digit++) next[digit] += next[digit - 1];
  CAIRN_ASSERT(next[kDigits] == count, "every record has a place");
  for (size_t i = 0; i < count; i++) {
    const size_t place = next[digitOf(from[i])]++;
    into[place] = from[i];
  }
  CAIRN_ASSERT(next[kDigits - 1] == count, "every place is taken");
}

size_t checkedCapacity(size_t records) {
  CAIRN_ASSERT(records <= UINT32_MAX, "the index of a record is one word");
  return records;
}

}  // namespace

Memory::Memory(size_t bytes) : bytes_(roundUp(std::max<size_t>(bytes, 1), kStepBytes)) {
  CAIRN_ASSERT(bytes_ >= bytes, "bytes are countable");
  base_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base_ == MAP_FAILED) failErrno("memory for " + std::to_string(bytes) + " bytes");
}

void Memory::take(size_t bytes) {
  CAIRN_ASSERT(bytes <= bytes_, "no more is taken than was asked for");
  if (bytes <= taken_) return;
  // Only an advice: what it could not have comes with the first write.
  madvise(static_cast<uint8_t*>(base_) + taken_, kStepBytes, MADV_POPULATE_WRITE);
  taken_ += kStepBytes;
}

Memory::~Memory() {
  if (base_ != nullptr) munmap(base_, bytes_);
}

RecordList::RecordList(size_t capacity)
    : records_(checkedCapacity(capacity) * sizeof(IndexRecord)),
      orders_(capacity * sizeof(uint64_t)),
      capacity_(capacity) {}

IndexRecord* RecordList::room() {
  if (capacity_ - size_ < kPageSlots) return nullptr;
  records_.take((size_ + kPageSlots) * sizeof(IndexRecord));
  return records_.as<IndexRecord>() + size_;
}

void RecordList::add(size_t count) {
  CAIRN_ASSERT(count <= kPageSlots, "a page has no more slots");
  CAIRN_ASSERT(count <= capacity_ - size_, "room() was asked");
  const auto* records = records_.as<IndexRecord>();
  auto* orders = orders_.as<uint64_t>();
  for (const size_t end = size_ + count; size_ < end; size_++) {
    orders[size_] = uint64_t{records[size_].depth} << 32 | (UINT32_MAX - records[size_].generation);
  }
}

RecordOrder::RecordOrder(size_t count)
    : count_(count), order_(checkedCapacity(count) * sizeof(uint32_t)), other_(count * sizeof(uint32_t)) {}

const uint32_t* RecordOrder::sort(const RecordList& records) {
  CAIRN_ASSERT(records.size() == count_, "memory was taken for these records");
  auto* order = order_.as<uint32_t>();
  auto* other = other_.as<uint32_t>();
  uint64_t varying = 0;
  for (size_t i = 0; i < count_; i++) {
    order[i] = static_cast<uint32_t>(i);
    varying |= records.orderOf(i) ^ records.orderOf(0);
  }
  // From the last digit to the first; one that is the same everywhere orders nothing.
  for (unsigned shift = 0; shift < 64; shift += kDigitBits) {
    if ((varying >> shift & (kDigits - 1)) == 0) continue;
    sortByDigit(records, shift, order, other);
    std::swap(order, other);
  }
  CAIRN_ASSERT(count_ == 0 || records.orderOf(order[0]) <= records.orderOf(order[count_ - 1]), "ascending");
  return order;
}

}  // namespace cairn
