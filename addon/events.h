// The one queue between native threads and JS. Any thread pushes; JS drains by poll() at most once per
// event-loop turn. The doorbell is coalesced: it rings once until JS has come for the events, and not at all
// while JS is on its way by itself (it serves the sockets and looks here next).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <vector>

#include "ring.h"

namespace cairn {

constexpr size_t kEventWords = 8;
enum EventType : uint32_t { kAccept = 1, kFrame = 2, kClose = 3, kCopied = 4, kProgress = 5 };

struct Event {
  uint32_t type;
  uint32_t id;
  uint32_t offset;
  uint32_t length;
  uint32_t a;
  uint32_t b;
  uint32_t c;
  uint32_t d;
  /// FRAME: ring position after the frame.
  uint64_t ringEnd;
  /// FRAME: monotonic microseconds of push().
  uint64_t pushedAt;
  /// COPIED: item statuses, copied out by poll().
  std::vector<uint8_t> statuses;
};

class EventHub {
 public:
  explicit EventHub(std::function<void()> doorbell) : doorbell_(std::move(doorbell)) {}

  void push(Event&& event);
  /// Rings without an event: the transport waits for room that only the next poll() gives back.
  void nudge() { ring(); }
  /// JS thread, before it serves the sockets: what is pushed until answered() needs no doorbell.
  void expect();
  /// JS thread, when it comes: the next push rings again. False: nothing was pushed since it last came.
  bool answered() { return bell_.exchange(Bell::kQuiet, std::memory_order_seq_cst) == Bell::kRung; }
  /// Events not yet polled; a bound for producers that can wait.
  size_t pending() const { return pending_.load(std::memory_order_relaxed); }

  /// Fills `words` with up to `eventsMax` events, and `statuses`; releases the frames of the last poll in
  /// `ring`. Rings again when something is left.
  size_t poll(uint32_t* words, size_t eventsMax, uint8_t* statuses, size_t statusBytes, InboxRing& ring);

 private:
  enum class Bell : uint32_t { kQuiet, kExpected, kRung };

  void ring();

  std::function<void()> doorbell_;
  std::atomic<Bell> bell_{Bell::kQuiet};
  std::atomic<size_t> pending_{0};
  std::mutex mutex_;
  std::deque<Event> queue_;   // guarded by mutex_
  std::deque<Event> taken_;   // JS thread
  uint64_t handedOutEnd_ = 0; // JS thread
};

}  // namespace cairn
