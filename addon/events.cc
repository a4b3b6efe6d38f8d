#include "events.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "common.h"

namespace cairn {

namespace {

uint64_t monotonicMicroseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(now).count());
}

}  // namespace

void EventHub::expect() {
  Bell quiet = Bell::kQuiet;  // a bell that has rung stays so: answered() must say it
  bell_.compare_exchange_strong(quiet, Bell::kExpected, std::memory_order_seq_cst);
}

void EventHub::ring() {
  if (bell_.exchange(Bell::kRung, std::memory_order_seq_cst) == Bell::kQuiet) doorbell_();
}

void EventHub::push(Event&& event) {
  if (event.type == kFrame) event.pushedAt = monotonicMicroseconds();
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(event));
    pending_.fetch_add(1, std::memory_order_relaxed);
  }
  ring();
}

size_t EventHub::poll(uint32_t* words, size_t eventsMax, uint8_t* statuses, size_t statusBytes,
                      InboxRing& ringBuffer) {
  ringBuffer.release(handedOutEnd_);
  if (taken_.empty()) {
    std::lock_guard lock(mutex_);
    taken_.swap(queue_);
  }
  size_t count = 0;
  size_t statusAt = 0;
  uint64_t now = 0;
  while (!taken_.empty() && count < eventsMax) {
    Event& event = taken_.front();
    if (event.type == kCopied) {
      CAIRN_ASSERT(event.statuses.size() <= statusBytes, "one batch's statuses fit");
      if (statusAt + event.statuses.size() > statusBytes) break;
      event.offset = static_cast<uint32_t>(statusAt);
      event.length = static_cast<uint32_t>(event.statuses.size());
      memcpy(statuses + statusAt, event.statuses.data(), event.statuses.size());
      statusAt += event.statuses.size();
    } else if (event.type == kFrame) {
      handedOutEnd_ = event.ringEnd;
      if (now == 0) now = monotonicMicroseconds();
      // Pushed after the clock was read: no time at all.
      const uint64_t waited = now > event.pushedAt ? now - event.pushedAt : 0;
      event.b = static_cast<uint32_t>(std::min<uint64_t>(waited, UINT32_MAX));
    }
    const uint32_t out[kEventWords] = {event.type, event.id, event.offset, event.length,
                                       event.a,    event.b,  event.c,      event.d};
    memcpy(words + count * kEventWords, out, sizeof out);
    count++;
    taken_.pop_front();
  }
  pending_.fetch_sub(count, std::memory_order_relaxed);
  bool more = !taken_.empty();
  if (!more) {
    std::lock_guard lock(mutex_);
    more = !queue_.empty();
  }
  if (more) ring();
  return count;
}

}  // namespace cairn
