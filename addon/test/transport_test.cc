#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <thread>
#include <vector>

#include "../region.h"
#include "transport_fixture.h"

using namespace cairn;
using namespace cairn::test;

namespace {

size_t openDescriptors() {
  size_t count = 0;
  for (int fd = 0; fd < 512; fd++) count += fcntl(fd, F_GETFD) >= 0;
  return count;
}

bool inOrder(const std::vector<uint32_t>& tags) {
  for (size_t at = 0; at < tags.size(); at++) {
    if (tags[at] != at) return false;
  }
  return true;
}

}  // namespace

TEST_LED_BY_EACH("a connection is announced with its peer's credentials and its listener") {
  Server server(leader);
  struct stat status;
  EXPECT(stat(server.path.c_str(), &status) == 0 && (status.st_mode & 0777) == 0660);
  const Peer peer(server.path);
  REQUIRE(server.accepted(1));
  EXPECT(server.accepts[0].a == static_cast<uint32_t>(getpid()));
  EXPECT(server.accepts[0].b == geteuid() && server.accepts[0].c == getegid() && server.accepts[0].d == 3);
  EXPECT(codeOf([&] { server.transport.listen(server.path, 0600, 4); }) == "EADDRINUSE");
  EXPECT(codeOf([&] { server.transport.listen(server.dir.file("b"), 0600, 3); }) == "ARGUMENT");
  server.transport.unlisten(3);
  EXPECT(codeOf([&] { Peer again(server.path); }) == "ENOENT");
  server.transport.listen(server.path, 0600, 5);
  const Peer third(server.path);
  // The refused listen() looked whether somebody serves there: that was a connection, too.
  EXPECT(server.until([&] { return server.accepts.back().d == 5; }));
}

TEST_LED_BY_EACH("a dead socket file is replaced, another kind of file is not") {
  Server server(leader);
  const std::string dead = server.dir.file("dead");
  listenUnix(dead, 0600, 1).reset();
  server.transport.listen(dead, 0600, 9);
  const Peer peer(dead);
  EXPECT(server.accepted(1));
  const std::string plain = server.dir.file("plain");
  Descriptor file(::open(plain.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  EXPECT(codeOf([&] { server.transport.listen(plain, 0600, 10); }) == "EADDRINUSE");
  EXPECT(access(plain.c_str(), F_OK) == 0);
}

TEST_LED_BY_EACH("frames cut anywhere and interleaved over connections arrive whole and in order") {
  Server server(leader);
  std::vector<uint8_t> stream;
  for (uint32_t tag = 0; tag < 40; tag++) {
    const std::vector<uint8_t> one = frame(tag * 37 % 500, tag);
    stream.insert(stream.end(), one.begin(), one.end());
  }
  std::vector<Peer> peers;
  for (int i = 0; i < 3; i++) peers.emplace_back(server.path);
  REQUIRE(server.greeted(3));
  std::vector<std::thread> writers;
  for (const Peer& peer : peers) {
    const size_t step = 1 + writers.size() * 53;
    writers.emplace_back([&peer, &stream, step] {
      for (size_t at = 0; at < stream.size(); at += step) peer.write(stream, at, std::min(stream.size(), at + step));
    });
  }
  EXPECT(server.until([&] {
    uint32_t total = 0;
    for (const auto& [id, count] : server.frames) total += count;
    return total == 120;
  }));
  for (std::thread& writer : writers) writer.join();
  EXPECT(server.frames.size() == 3 && server.closes.empty());
  for (const auto& [id, tags] : server.tags) EXPECT(inOrder(tags));
  EXPECT(server.transport.counters().framesReceived == 120);
}

TEST_LED_BY_EACH("bad magic, another version and an oversized body close the connection with their reasons") {
  Server server(leader);
  const auto reasonFor = [&](const std::vector<uint8_t>& bytes) -> uint32_t {
    const Peer peer(server.path);
    server.accepted(server.accepts.size() + 1);
    const uint32_t id = server.accepts.back().id;
    peer.write(bytes);
    EXPECT(server.until([&] { return server.closes.count(id) != 0; }));
    EXPECT(peer.read(1).empty());
    return server.closes[id];
  };
  std::vector<uint8_t> bad = frame(10, 1);
  bad[0] ^= 1;
  EXPECT(reasonFor(bad) == static_cast<uint32_t>(CloseReason::kBadMagic));
  EXPECT(reasonFor({'G', 'E', 'T', ' '}) == static_cast<uint32_t>(CloseReason::kBadMagic));
  bad = frame(10, 1);
  bad[4] = 2;
  EXPECT(reasonFor(bad) == static_cast<uint32_t>(CloseReason::kVersion));
  bad = frame(0, 1);
  const uint32_t huge = kBodyMax + 1;
  memcpy(bad.data() + 8, &huge, 4);
  EXPECT(reasonFor(bad) == static_cast<uint32_t>(CloseReason::kFrameTooLarge));
  EXPECT(server.frames.empty());
}

TEST_LED_BY_EACH("a frame begun and not finished times out, a whole one does not, nor HELLO once established") {
  Server server(leader, hurried(1000));
  const Peer slow(server.path);
  const Peer good(server.path);
  REQUIRE(server.accepted(2));
  const std::vector<uint8_t> bytes = frame(1000, 4);
  slow.write(bytes, 0, 500);
  good.write(bytes);
  const uint32_t slowId = server.accepts[0].id;
  const uint32_t goodId = server.accepts[1].id;
  EXPECT(server.until([&] { return server.closes.count(slowId) != 0; }));
  EXPECT(server.closes[slowId] == static_cast<uint32_t>(CloseReason::kFrameTimeout));
  EXPECT(server.frames[goodId] == 1 && server.closes.count(goodId) == 0);
  // A third one says HELLO in time (established), the second never does.
  const Peer third(server.path);
  REQUIRE(server.accepted(3));
  server.transport.established(server.accepts[2].id);
  EXPECT(server.until([&] { return server.closes.count(goodId) != 0; }));
  EXPECT(server.closes[goodId] == static_cast<uint32_t>(CloseReason::kHelloTimeout));
  usleep(1'200'000);
  third.write(bytes);
  EXPECT(server.until([&] { return server.frames[server.accepts[2].id] == 1; }));
  EXPECT(server.closes.size() == 2);
}

TEST_LED_BY_EACH("a descriptor reaches the frame that announces it; extra and stray ones are closed") {
  const size_t before = openDescriptors();
  {
    Server server(leader);
    const Peer peer(server.path);
    REQUIRE(server.accepted(1));
    const Descriptor file = makeSealedMemfd("test", 4096);
    const Descriptor other = makeSealedMemfd("test", 8192);
    const std::vector<uint8_t> with = frame(100, 1, kFlagDescriptor);
    EXPECT(sendWithDescriptor(peer.socket.get(), with.data(), with.size(), file.get()) ==
           static_cast<ssize_t>(with.size()));
    EXPECT(sendWithDescriptor(peer.socket.get(), with.data(), with.size(), other.get()) > 0);
    const std::vector<uint8_t> without = frame(100, 2);
    EXPECT(sendWithDescriptor(peer.socket.get(), without.data(), without.size(), file.get()) > 0);
    peer.write(with);
    const uint32_t id = server.accepts[0].id;
    server.pump.until([&] { return server.frames[id] == 4; }, [&](const LoopPump::Words& event) {
      if (event.type != kFrame) return;
      server.frames[id]++;
      if (event.a != UINT32_MAX) server.descriptors.push_back(static_cast<int>(event.a));
    });
    REQUIRE(server.descriptors.size() == 2);
    struct stat status;
    EXPECT(fstat(server.descriptors[0], &status) == 0 && status.st_size == 4096);
    EXPECT(fstat(server.descriptors[1], &status) == 0 && status.st_size == 8192);
    EXPECT((fcntl(server.descriptors[0], F_GETFD) & FD_CLOEXEC) != 0);
    for (const int fd : server.descriptors) close(fd);
  }
  EXPECT(openDescriptors() == before);
}

TEST_LED_BY_EACH("a full inbox stops reading and loses nothing") {
  Server server(leader, options(), 256 * 1024);
  const Peer peer(server.path);
  REQUIRE(server.accepted(1));
  const uint32_t id = server.accepts[0].id;
  server.transport.established(id);
  constexpr uint32_t kFrames = 60;
  std::thread writer([&] {
    for (uint32_t tag = 0; tag < kFrames; tag++) peer.write(frame(50'000 + tag, tag));
  });
  // Longer than the frame timeout: the wait is the daemon's own, so nobody is timed out for it.
  usleep(600'000);
  EXPECT(server.transport.counters().inboxFullStalls > 0);
  EXPECT(server.until([&] { return server.frames[id] == kFrames; }));
  writer.join();
  EXPECT(server.closes.empty() && inOrder(server.tags[id]));
}

TEST_LED_BY_EACH("connections beyond the limit are closed and counted; room is given again") {
  Server server(leader);
  std::vector<Peer> peers;
  for (int i = 0; i < 12; i++) peers.emplace_back(server.path);
  EXPECT(server.accepted(8));
  for (int i = 8; i < 12; i++) EXPECT(peers[static_cast<size_t>(i)].read(1).empty());
  EXPECT(server.transport.counters().connectionsRefused == 4);
  peers.clear();
  EXPECT(server.until([&] { return server.closes.size() == 8; }));
  for (const auto& [id, reason] : server.closes) EXPECT(reason == static_cast<uint32_t>(CloseReason::kPeer));
  const Peer peer(server.path);
  EXPECT(server.accepted(9));
}

TEST_LED_BY_EACH("replies queue when the client reads slowly, keep their order, and are flushed before a close") {
  Server server(leader);
  const Peer peer(server.path);
  REQUIRE(server.accepted(1));
  const uint32_t id = server.accepts[0].id;
  server.transport.established(id);
  std::vector<uint8_t> expected;
  for (uint32_t tag = 0; tag < 20; tag++) {
    const std::vector<uint8_t> one = frame(40'000, tag);
    EXPECT(server.transport.send(id, one.data(), one.size(), -1));
    expected.insert(expected.end(), one.begin(), one.end());
  }
  server.transport.close(id, CloseReason::kLocal);
  EXPECT(peer.read(expected.size() + 1) == expected);
  EXPECT(server.until([&] { return server.closes.count(id) != 0; }));
  EXPECT(server.closes[id] == static_cast<uint32_t>(CloseReason::kLocal));
  EXPECT(!server.transport.send(id, expected.data(), 100, -1));
}

TEST_LED_BY_EACH("a client that never reads is cut off at the outbound limit") {
  Server server(leader);
  const Peer peer(server.path);
  REQUIRE(server.accepted(1));
  const uint32_t id = server.accepts[0].id;
  const std::vector<uint8_t> one = frame(100'000, 1);
  int sent = 0;
  while (server.transport.send(id, one.data(), one.size(), -1)) REQUIRE(++sent < 1000);
  EXPECT(server.until([&] { return server.closes.count(id) != 0; }));
  EXPECT(server.closes[id] == static_cast<uint32_t>(CloseReason::kSlowReader));
}

TEST_LED_BY_EACH("a descriptor queued behind slow replies still arrives, though the caller closed its own") {
  Server server(leader);
  ClientSocket client(server.path);
  REQUIRE(server.accepted(1));
  const uint32_t id = server.accepts[0].id;
  const std::vector<uint8_t> filler = frame(100'000, 1);
  for (int i = 0; i < 6; i++) EXPECT(server.transport.send(id, filler.data(), filler.size(), -1));
  const std::vector<uint8_t> with = frame(10, 2, kFlagDescriptor);
  {
    const Descriptor file = makeSealedMemfd("test", 12288);
    EXPECT(server.transport.send(id, with.data(), with.size(), file.get()));
  }
  std::vector<uint8_t> buffer(200'000);
  client.setBuffer(buffer.data(), buffer.size());
  int got = 0;
  int fd = -1;
  std::string reason;
  for (int turn = 0; turn < 5000 && got < 7 && reason.empty(); turn++) {
    reason = client.receive();
    for (;;) {
      const ClientSocket::Frame one = client.next(reason);
      if (one.data == nullptr) break;
      got++;
      if (one.descriptor >= 0) fd = one.descriptor;
    }
    client.compact();
    usleep(200);
  }
  EXPECT(got == 7 && reason.empty());
  struct stat status;
  EXPECT(fd >= 0 && fstat(fd, &status) == 0 && status.st_size == 12288);
  if (fd >= 0) close(fd);
}

TEST_LED_BY_EACH("sends from the JS side and reads of either leader run together under load") {
  Server server(leader);
  std::vector<Peer> peers;
  for (int i = 0; i < 4; i++) peers.emplace_back(server.path);
  REQUIRE(server.greeted(4));
  constexpr int kCalls = 300;
  std::vector<std::thread> clients;
  std::atomic<int> answered{0};
  for (const Peer& peer : peers) {
    clients.emplace_back([&peer, &answered] {
      for (uint32_t tag = 0; tag < kCalls; tag++) {
        const std::vector<uint8_t> request = frame(tag * 11 % 3000, tag);
        peer.write(request);
        if (peer.read(request.size()) == request) answered++;
      }
    });
  }
  const auto collect = server.collect();
  EXPECT(server.pump.until([&] { return answered == 4 * kCalls; }, [&](const LoopPump::Words& event) {
    collect(event);
    if (event.type != kFrame) return;
    EXPECT(server.transport.send(event.id, server.pump.inbox.data() + event.offset, event.length, -1));
  }) || answered == 4 * kCalls);
  for (std::thread& client : clients) client.join();
  EXPECT(answered == 4 * kCalls);
}

TEST_LED_BY_EACH("stopping with clients connected and frames queued ends at once and leaves no socket file") {
  const size_t before = openDescriptors();
  {
    Server server(leader);
    std::vector<Peer> peers;
    for (int i = 0; i < 4; i++) {
      peers.emplace_back(server.path);
      peers.back().write(frame(1000, 1));
    }
    server.accepted(4);
    server.transport.stop();
    server.transport.stop();
    EXPECT(access(server.path.c_str(), F_OK) != 0);
    EXPECT(!server.transport.send(server.accepts[0].id, frame(0, 1).data(), 32, -1));
  }
  EXPECT(openDescriptors() == before);
}

TEST_LED_BY_EACH("10,000 connections that come and go leave the listener serving") {
  Server server(leader);
  size_t closed = 0;
  std::thread crowd([&] {
    for (int i = 0; i < 10'000; i++) {
      try {
        const Peer peer(server.path);
      } catch (const Failure&) {
        usleep(100);
      }
    }
  });
  size_t frames = 0;
  const auto collect = [&](const LoopPump::Words& event) {
    closed += event.type == kClose;
    frames += event.type == kFrame;
  };
  std::atomic<bool> done{false};
  std::thread waiter([&] {
    crowd.join();
    done = true;
  });
  while (!done) server.pump.pump(collect);
  waiter.join();
  const auto& connections = server.transport.counters().connections;
  server.pump.until([&] { return connections == 0 && server.pump.hub.pending() == 0; }, collect);
  // What is left in the backlog may hold all places for a moment: then a newcomer is refused and comes again.
  bool arrived = false;
  for (int turn = 0; turn < 100 && !arrived; turn++) {
    const Peer last(server.path);
    last.write(frame(5, 5));
    for (int wait = 0; wait < 20 && !arrived && server.pump.pump(collect); wait++) arrived = frames > 0;
  }
  EXPECT(arrived && closed > 0);
}

TEST("frames keep their order while the leaders change in the middle of them") {
  Server server(Leader::kBoth);
  constexpr uint32_t kFrames = 4000;
  std::vector<Peer> peers;
  for (int i = 0; i < 3; i++) peers.emplace_back(server.path);
  REQUIRE(server.greeted(3));
  std::vector<std::thread> writers;
  for (const Peer& peer : peers) {
    writers.emplace_back([&peer, odd = writers.size()] {
      for (uint32_t tag = 0; tag < kFrames; tag++) {
        const std::vector<uint8_t> one = frame(tag * 29 % 700, tag);
        const size_t cut = (tag + odd) % 3 == 0 ? one.size() / 2 : one.size();
        peer.write(one, 0, cut);
        peer.write(one, cut, one.size());
      }
    });
  }
  EXPECT(server.until([&] { return server.transport.counters().framesReceived == 3 * kFrames; }));
  for (std::thread& writer : writers) writer.join();
  peers.clear();
  EXPECT(server.until([&] { return server.closes.size() == 3; }));
  EXPECT(server.tags.size() == 3);
  for (const auto& [id, tags] : server.tags) EXPECT(tags.size() == kFrames && inOrder(tags));
}

TEST("while JS is busy frames are read, limits kept and ends seen; it finds them all when it comes back") {
  Server server(Leader::kJs, hurried());
  const Peer slow(server.path);
  auto gone = std::make_unique<Peer>(server.path);
  REQUIRE(server.accepted(2));
  const uint32_t slowId = server.accepts[0].id;
  const uint32_t goneId = server.accepts[1].id;
  // From here on nobody pumps.
  const Peer late(server.path);
  slow.write(frame(1000, 0), 0, 500);
  for (uint32_t tag = 0; tag < 5; tag++) gone->write(frame(100, tag));
  gone.reset();
  const TransportCounters& counters = server.transport.counters();
  const int64_t giveUpMs = steadyMilliseconds() + 5'000;
  // Three were there in the end: `gone` leaves, `slow` exceeds its time, `late` waits for its HELLO.
  while ((counters.framesReceived < 5 || counters.connections != 1) && steadyMilliseconds() < giveUpMs) usleep(1000);
  EXPECT(counters.framesReceived == 5 && counters.connections == 1);
  EXPECT(server.until([&] { return server.closes.size() == 2 && server.accepts.size() == 3; }));
  EXPECT(server.closes[goneId] == static_cast<uint32_t>(CloseReason::kPeer));
  EXPECT(server.closes[slowId] == static_cast<uint32_t>(CloseReason::kFrameTimeout));
  EXPECT(server.tags[goneId].size() == 5 && inOrder(server.tags[goneId]));
  // JS is back: it serves again.
  late.write(frame(10, 0));
  EXPECT(server.until([&] { return server.frames[server.accepts[2].id] == 1; }));
}

TEST("what JS pushes in its own turn rings no doorbell, and nothing that was pushed is missed") {
  int rung = 0;
  EventHub hub([&] { rung++; });
  const auto push = [&] {
    Event event{};
    event.type = kClose;
    hub.push(std::move(event));
  };
  EXPECT(!hub.answered());
  hub.expect();
  EXPECT(!hub.answered() && rung == 0);
  hub.expect();
  push();
  push();
  EXPECT(hub.answered() && !hub.answered() && rung == 0);
  push();
  push();
  EXPECT(rung == 1);
  // Rung before the turn: the turn answers it.
  hub.expect();
  EXPECT(hub.answered() && !hub.answered());
  hub.expect();
  hub.nudge();
  EXPECT(hub.answered() && rung == 1);
  hub.nudge();
  EXPECT(rung == 2);
}
