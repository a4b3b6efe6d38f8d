// Helpers of the transport's tests: a server that a test's own thread or the transport's leads, and a blocking client.
#pragma once

#include <sys/socket.h>

#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "../client.h"
#include "../transport.h"
#include "check.h"
#include "fixture.h"
#include "loop_pump.h"

namespace cairn::test {

constexpr uint32_t kBodyMax = 100'000;

inline TransportOptions options() {
  TransportOptions result{};
  result.frameBodyBytesMax = kBodyMax;
  result.connectionsMax = 8;
  result.outboundBytesMax = 1 << 20;
  // Longer than any test: a machine that stands still for a second ends no connection of theirs.
  result.frameTimeoutMs = 60'000;
  result.helloTimeoutMs = 60'000;
  result.magic = kClientMagic;
  result.version = 1;
  result.tickMs = 20;
  return result;
}

/// For the tests of time limits alone: of a frame, which bounds what a close still sends, too, and of HELLO.
inline TransportOptions hurried(uint32_t helloTimeoutMs = options().helloTimeoutMs) {
  TransportOptions result = options();
  result.frameTimeoutMs = 300;
  result.helloTimeoutMs = helloTimeoutMs;
  return result;
}

inline std::vector<uint8_t> frame(uint32_t bodyBytes, uint32_t tag, uint16_t flags = 0) {
  std::vector<uint8_t> bytes(kFrameHeaderBytes + bodyBytes);
  const uint32_t magic = kClientMagic;
  memcpy(bytes.data(), &magic, 4);
  bytes[4] = 1;
  memcpy(bytes.data() + 6, &flags, 2);
  memcpy(bytes.data() + 8, &bodyBytes, 4);
  memcpy(bytes.data() + 12, &tag, 4);
  for (uint32_t i = 0; i < bodyBytes; i++) bytes[kFrameHeaderBytes + i] = static_cast<uint8_t>(i * 13 + tag);
  return bytes;
}

inline uint32_t tagOf(const uint8_t* frame) {
  uint32_t tag;
  memcpy(&tag, frame + 12, 4);
  return tag;
}

inline bool frameIsWhole(const uint8_t* bytes, size_t length) {
  const uint32_t tag = tagOf(bytes);
  const std::vector<uint8_t> expected = frame(static_cast<uint32_t>(length - kFrameHeaderBytes), tag);
  return memcmp(bytes + 8, expected.data() + 8, length - 8) == 0;
}

/// Blocking little client.
struct Peer {
  explicit Peer(const std::string& path) : socket(connectUnix(path, false)) {}
  void write(const std::vector<uint8_t>& bytes, size_t from, size_t to) const {
    for (size_t at = from; at < to;) {
      const ssize_t sent = ::send(socket.get(), bytes.data() + at, to - at, MSG_NOSIGNAL);
      if (sent <= 0) return;
      at += static_cast<size_t>(sent);
    }
  }
  void write(const std::vector<uint8_t>& bytes) const { write(bytes, 0, bytes.size()); }
  /// Bytes until `count` or the end.
  std::vector<uint8_t> read(size_t count) const {
    std::vector<uint8_t> bytes(count);
    size_t at = 0;
    while (at < count) {
      const ssize_t got = ::recv(socket.get(), bytes.data() + at, count - at, 0);
      if (got <= 0) break;
      at += static_cast<size_t>(got);
    }
    bytes.resize(at);
    return bytes;
  }
  Descriptor socket;
};

/// Who serves the sockets: the transport thread because JS never does, JS, or both in turns.
enum class Leader { kNative, kJs, kBoth };

/// Of kBoth: pumps in which JS serves, then pumps in which it only answers the doorbell.
constexpr uint32_t kServedPumps = 10;
constexpr uint32_t kAwayPumps = 30;

struct Server {
  explicit Server(::cairn::test::Leader leader, const TransportOptions& with = options(), size_t inboxBytes = 1 << 20)
      : pump(inboxBytes), transport(with, pump.ring, pump.hub), path(dir.file("engine.sock")) {
    pump.afterPoll = [this] { transport.resume(); };
    if (leader != Leader::kNative) {
      pump.sockets = transport.pollDescriptor();
      pump.serve = [this] { transport.serve(); };
    }
    if (leader == Leader::kBoth) {
      pump.away = [pumps = 0u]() mutable { return pumps++ % (kServedPumps + kAwayPumps) >= kServedPumps; };
    }
    transport.listen(path, 0660, 3);
  }

  std::function<void(const LoopPump::Words&)> collect() {
    return [this](const LoopPump::Words& event) {
      EXPECT(closes.count(event.id) == 0);
      if (event.type == kAccept) accepts.push_back(event);
      if (event.type == kClose) closes[event.id] = event.a;
      if (event.type != kFrame) return;
      frames[event.id]++;
      EXPECT(frameIsWhole(pump.inbox.data() + event.offset, event.length));
      tags[event.id].push_back(tagOf(pump.inbox.data() + event.offset));
      EXPECT(event.offset % 8 == 0);
      if (event.a != UINT32_MAX) descriptors.push_back(static_cast<int>(event.a));
    };
  }
  bool until(const std::function<bool()>& done) { return pump.until(done, collect()); }
  bool accepted(size_t count) {
    return until([&] { return accepts.size() == count; });
  }
  /// The same, and all of them have said HELLO: none of their time limits runs.
  bool greeted(size_t count) {
    if (!accepted(count)) return false;
    for (const LoopPump::Words& accept : accepts) transport.established(accept.id);
    return true;
  }

  TemporaryDirectory dir;
  LoopPump pump;
  Transport transport;
  std::string path;
  std::vector<LoopPump::Words> accepts;
  std::map<uint32_t, uint32_t> closes;
  std::map<uint32_t, uint32_t> frames;
  std::map<uint32_t, std::vector<uint32_t>> tags;
  std::vector<int> descriptors;
};

}  // namespace cairn::test

/// A case that holds whoever serves the sockets.
#define TEST_LED_BY_EACH(name) \
  static void CAIRN_JOIN(testBody, __LINE__)(::cairn::test::Leader leader); \
  static const ::cairn::test::Register CAIRN_JOIN(testNative, __LINE__)( \
      name " [native leads]", [] { CAIRN_JOIN(testBody, __LINE__)(::cairn::test::Leader::kNative); }); \
  static const ::cairn::test::Register CAIRN_JOIN(testJs, __LINE__)( \
      name " [JS leads]", [] { CAIRN_JOIN(testBody, __LINE__)(::cairn::test::Leader::kJs); }); \
  static const ::cairn::test::Register CAIRN_JOIN(testBoth, __LINE__)( \
      name " [both in turns]", [] { CAIRN_JOIN(testBody, __LINE__)(::cairn::test::Leader::kBoth); }); \
  static void CAIRN_JOIN(testBody, __LINE__)(::cairn::test::Leader leader)
