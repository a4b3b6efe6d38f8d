// What the transport does when the kernel refuses it descriptors or watches: the connection ends by name, and no frame
// goes out without its descriptor.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <vector>

#include "transport_fixture.h"

using namespace cairn;
using namespace cairn::test;

namespace {

std::atomic<bool> noWatches{false};

constexpr auto kSystem = static_cast<uint32_t>(CloseReason::kSystem);

/// No descriptor can be had while it lives.
struct NoDescriptors {
  NoDescriptors() {
    EXPECT(getrlimit(RLIMIT_NOFILE, &before) == 0);
    const int lowestFree = fcntl(0, F_DUPFD_CLOEXEC, 0);
    ::close(lowestFree);
    const rlimit none{static_cast<rlim_t>(lowestFree), before.rlim_max};
    EXPECT(setrlimit(RLIMIT_NOFILE, &none) == 0);
  }
  ~NoDescriptors() { EXPECT(setrlimit(RLIMIT_NOFILE, &before) == 0); }
  rlimit before{};
};

}  // namespace

/// In front of the system's: new watches are refused while noWatches says so.
extern "C" int epoll_ctl(int epoll, int operation, int fd, epoll_event* event) noexcept {
  using Call = int (*)(int, int, int, epoll_event*);
  static const auto real = reinterpret_cast<Call>(dlsym(RTLD_NEXT, "epoll_ctl"));
  if (operation == EPOLL_CTL_ADD && noWatches) {
    errno = ENOSPC;
    return -1;
  }
  return real(epoll, operation, fd, event);
}

TEST_LED_BY_EACH("a frame that has to wait while descriptors have run out ends the connection, not without its own") {
  Server server(leader, hurried());
  const Peer peer(server.path);
  REQUIRE(server.greeted(1));
  const uint32_t id = server.accepts[0].id;
  // More than the socket takes.
  const std::vector<uint8_t> large = frame(kBodyMax, 1);
  for (int i = 0; i < 5; i++) EXPECT(server.transport.send(id, large.data(), large.size(), -1));
  const std::vector<uint8_t> last = frame(64, 2, kFlagDescriptor);
  {
    const NoDescriptors none;
    EXPECT(!server.transport.send(id, last.data(), last.size(), 0));
  }
  EXPECT(server.transport.counters().framesSent == 5);
  EXPECT(server.until([&] { return server.closes.count(id) != 0; }));
  EXPECT(server.closes[id] == kSystem);
  // What the client got before is whole frames of the first kind.
  const std::vector<uint8_t> got = peer.read(5 * large.size() + last.size());
  EXPECT(got.size() <= 5 * large.size());
  EXPECT(got.size() >= large.size() && frameIsWhole(got.data(), large.size()) && tagOf(got.data()) == 1);
}

TEST_LED_BY_EACH("a connection that cannot be watched is closed, and the next one is served") {
  Server server(leader);
  noWatches = true;
  const Peer refused(server.path);
  EXPECT(server.until([&] { return server.closes.size() == 1; }));
  noWatches = false;
  REQUIRE(server.accepts.size() == 1);
  EXPECT(server.closes[server.accepts[0].id] == kSystem);
  EXPECT(refused.read(1).empty());
  const Peer next(server.path);
  next.write(frame(10, 0));
  EXPECT(server.until([&] { return server.accepts.size() == 2 && server.frames[server.accepts[1].id] == 1; }));
  EXPECT(server.transport.counters().connections == 1);
}

TEST_LED_BY_EACH("a stalled connection that cannot be watched again is closed") {
  Server server(leader);
  const Peer peer(server.path);
  REQUIRE(server.greeted(1));
  const uint32_t id = server.accepts[0].id;
  peer.write(frame(8, 0));
  REQUIRE(server.until([&] { return server.frames[id] == 1; }));
  noWatches = true;
  // More at once than one connection may have waiting.
  std::vector<uint8_t> many;
  for (uint32_t tag = 0; tag < 200; tag++) {
    const std::vector<uint8_t> one = frame(8, tag);
    many.insert(many.end(), one.begin(), one.end());
  }
  peer.write(many);
  EXPECT(server.until([&] { return server.closes.count(id) != 0; }));
  noWatches = false;
  EXPECT(server.closes[id] == kSystem);
  EXPECT(server.frames[id] > 1 && server.frames[id] < 201);
  EXPECT(server.transport.counters().connections == 0);
}

TEST("a client's frame that has to wait while descriptors have run out is refused, and nothing of it is sent") {
  const TemporaryDirectory dir;
  const std::string path = dir.file("engine.sock");
  const Descriptor listening = listenUnix(path, 0600, 1);
  ClientSocket client(path);
  const std::vector<uint8_t> large = frame(kBodyMax, 1);
  for (int i = 0; i < 5; i++) EXPECT(client.send(large.data(), large.size(), -1));
  EXPECT(client.hasUnsent());
  const std::vector<uint8_t> last = frame(64, 2, kFlagDescriptor);
  {
    const NoDescriptors none;
    EXPECT(!client.send(last.data(), last.size(), 0));
  }
  EXPECT(client.send(last.data(), last.size(), 0));
}
