// The JS loop as the transport's tests play it: it answers the doorbell and, when told how, serves the sockets.
#pragma once

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <functional>
#include <vector>

#include "../events.h"

namespace cairn::test {

/// An event hub whose events a test can wait for, as JS would poll them. Given a descriptor and `serve`, it serves the
/// sockets as the JS loop does.
class LoopPump {
 public:
  explicit LoopPump(size_t inboxBytes = 1 << 20)
      : inbox(inboxBytes), ring(inbox.data(), inboxBytes), hub([this] {
          const uint64_t one = 1;
          static_cast<void>(!write(bell_.get(), &one, sizeof one));
        }) {}

  struct Words {
    uint32_t type, id, offset, length, a, b, c, d;
  };

  /// Waits up to five seconds for something to do; each event is handed to `onEvent` while its bytes are valid.
  bool pump(const std::function<void(const Words&)>& onEvent) {
    const bool serving = serve && (!away || !away());
    pollfd look[2] = {{bell_.get(), POLLIN, 0}, {serving ? sockets : -1, POLLIN, 0}};
    if (::poll(look, 2, 5000) <= 0) return false;
    if (look[1].revents != 0) {
      hub.expect();
      serve();
    }
    if (look[0].revents != 0) {
      uint64_t drained;
      static_cast<void>(!read(bell_.get(), &drained, sizeof drained));
    }
    if (!hub.answered()) return true;
    Words events[4];
    const size_t count = hub.poll(reinterpret_cast<uint32_t*>(events), 4, statuses, sizeof statuses, ring);
    if (afterPoll) afterPoll();
    for (size_t i = 0; i < count; i++) onEvent(events[i]);
    return true;
  }

  /// Pumps until `done` says so; false after five silent seconds.
  bool until(const std::function<bool()>& done, const std::function<void(const Words&)>& onEvent) {
    while (!done()) {
      if (!pump(onEvent)) return done();
    }
    return true;
  }

 private:
  Descriptor bell_{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};

 public:
  std::vector<uint8_t> inbox;
  uint8_t statuses[4096];
  InboxRing ring;
  EventHub hub;
  std::function<void()> afterPoll;
  int sockets = -1;
  std::function<void()> serve;
  /// True: JS does not look at the sockets this time.
  std::function<bool()> away;
};

}  // namespace cairn::test
