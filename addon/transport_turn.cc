// Who serves the sockets, and when: one turn, and the two leaders that take it (transport.h says why).
#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "transport.h"

namespace cairn {
namespace {

constexpr int kSecondLookMs = 5;

}  // namespace

void Transport::run() {
  uint64_t seen = 0;
  while (!stopping_.load()) {
    pause(static_cast<int>(options_.tickMs));
    checkTimes();
    if (jsIsAway(seen)) lead(seen);
  }
}

bool Transport::jsIsAway(uint64_t& seen) {
  const uint64_t before = seen;
  seen = jsTurns_.load(std::memory_order_relaxed);
  if (seen != before || !ready()) return false;
  // Perhaps JS is just waking up for it.
  pause(kSecondLookMs);
  return jsTurns_.load(std::memory_order_relaxed) == seen && ready();
}

void Transport::lead(uint64_t seen) {
  epoll_event events[kEventsPerTurn];
  while (!stopping_.load() && jsTurns_.load(std::memory_order_relaxed) == seen) {
    const int count = wait(events, static_cast<int>(options_.tickMs));
    {
      const std::lock_guard turn(turn_);
      handle(events, count);
    }
    checkTimes();
    if (hub_.pending() > kPendingEventsMax) pause(1);
  }
}

void Transport::pause(int milliseconds) {
  std::unique_lock lock(pauseMutex_);
  pause_.wait_for(lock, std::chrono::milliseconds(milliseconds), [this] { return stopping_.load(); });
}

bool Transport::ready() const {
  pollfd look{epoll_.get(), POLLIN, 0};
  return ::poll(&look, 1, 0) > 0;
}

void Transport::serve() {
  jsTurns_.fetch_add(1, std::memory_order_relaxed);
  const std::lock_guard turn(turn_);
  if (stopping_.load()) return;
  epoll_event events[kEventsPerTurn];
  handle(events, wait(events, 0));
}

int Transport::wait(epoll_event* events, int timeoutMs) const {
  const int count = epoll_wait(epoll_.get(), events, kEventsPerTurn, timeoutMs);
  CAIRN_ASSERT(count >= 0 || errno == EINTR, "epoll_wait works");
  return std::max(count, 0);
}

void Transport::handle(const epoll_event* events, int count) {
  for (int i = 0; i < count; i++) {
    const uint64_t tag = events[i].data.u64;
    if (tag == kWakeTag) {
      uint64_t drained;
      if (read(wake_.get(), &drained, sizeof drained) < 0) continue;
      runCommands();
      resumeStalled();
    } else if ((tag & kListenerTag) != 0) {
      accept(static_cast<uint32_t>(tag));
    } else {
      const Shared connection = find(static_cast<uint32_t>(tag));
      if (connection == nullptr) continue;
      if ((events[i].events & EPOLLOUT) != 0) writable(connection);
      const bool hungUp = (events[i].events & (EPOLLHUP | EPOLLERR)) != 0;
      if (hungUp || (events[i].events & EPOLLIN) != 0) readable(connection, hungUp);
    }
  }
}

}  // namespace cairn
