// The engine API's sockets: one epoll thread accepts, frames, bounds and closes; JS only ever sees whole,
// size-checked frames in the inbox ring and never waits for a client.
//
// Who may touch what: a Connection's reading side belongs to the transport thread; its writing side (outbound
// queue, epoll interest, the descriptor's life) is guarded by its mutex, because send() writes on the JS
// thread when it can. Lock order: connections_ map, then one connection, then the event hub.
//
// Bounds: connections, body bytes (checked before anything is allocated), time to HELLO, time to finish a
// frame, bytes waiting to be written. When the inbox is full the connection is taken out of epoll until
// JS has polled: that is the back-pressure, in the client's own socket buffer.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "common.h"
#include "events.h"
#include "ring.h"
#include "socket.h"

namespace cairn {

enum class CloseReason : uint32_t {
  kPeer = 0,
  kBadMagic = 1,
  kFrameTooLarge = 2,
  kFrameTimeout = 3,
  kHelloTimeout = 4,
  kSlowReader = 5,
  kLocal = 6,
  kSystem = 7,
  kVersion = 8,
};

constexpr size_t kCloseReasons = 9;

struct TransportOptions {
  uint32_t frameBodyBytesMax;
  uint32_t connectionsMax;
  uint32_t outboundBytesMax;
  uint32_t frameTimeoutMs;
  uint32_t helloTimeoutMs;
  uint32_t magic;
  uint32_t version;
  /// Whole frames that say why, sent before the transport closes for that reason; empty: closed without a word.
  std::array<std::vector<uint8_t>, kCloseReasons> farewells{};
  /// The same for a connection beyond connectionsMax.
  std::vector<uint8_t> refusal{};
};

struct TransportCounters {
  std::atomic<uint64_t> framesReceived{0};
  std::atomic<uint64_t> bytesReceived{0};
  std::atomic<uint64_t> framesSent{0};
  std::atomic<uint64_t> bytesSent{0};
  std::atomic<uint64_t> connections{0};
  std::atomic<uint64_t> connectionsRefused{0};
  std::atomic<uint64_t> inboxFullStalls{0};
};

class Transport {
 public:
  Transport(const TransportOptions& options, InboxRing& ring, EventHub& hub);
  ~Transport() { stop(); }

  // JS thread.
  void listen(const std::string& path, mode_t mode, uint32_t listener);
  void unlisten(uint32_t listener);
  /// False: the connection is gone or going. The descriptor stays the caller's.
  bool send(uint32_t connection, const uint8_t* bytes, size_t count, int descriptor);
  void established(uint32_t connection);
  /// Flushes what is queued (within the frame timeout), then closes with this reason.
  void close(uint32_t connection, CloseReason reason);
  /// After poll(): stalled connections are read again.
  void resume();
  void stop();
  const TransportCounters& counters() const { return counters_; }

 private:
  struct Outbound {
    std::vector<uint8_t> bytes;
    size_t at;
    Descriptor descriptor;
  };
  struct Connection {
    uint32_t id;
    // Transport thread.
    std::vector<uint8_t> partial;
    std::vector<int> descriptors;
    int64_t acceptedMs;
    int64_t frameSinceMs = 0;  // 0: no frame begun
    int64_t closeByMs = 0;     // 0: not closing
    bool stalled = false;
    std::atomic<bool> established{false};
    // Guarded by mutex.
    std::mutex mutex;
    Descriptor socket;
    bool reading = true;
    bool closing = false;
    CloseReason reason = CloseReason::kPeer;
    uint32_t interest = 0;  // epoll events now registered
    std::deque<Outbound> outbound;
    size_t outboundBytes = 0;
  };
  struct Listener {
    std::string path;
    Descriptor socket;
    uint64_t device;
    uint64_t inode;
  };
  struct Command {
    enum class Kind { kClose, kUnlisten } kind;
    uint32_t id;
    CloseReason reason;
  };
  using Shared = std::shared_ptr<Connection>;
  enum class Parsed { kWhole, kMore, kStalled, kBad };

  void run();
  void runCommands();
  void accept(uint32_t listener);
  void refuseOne(int listenSocket);
  void open(Descriptor socket, uint32_t listener);
  void readable(const Shared& connection, bool hungUp);
  void consume(const Shared& connection, const uint8_t* bytes, size_t count);
  Parsed parse(Connection& connection, const uint8_t* bytes, size_t count, size_t& used, CloseReason& reason);
  /// The frame that starts here; kWhole: its `total` bytes are all there.
  Parsed examine(const uint8_t* frame, size_t count, size_t& total, CloseReason& reason) const;
  bool deliver(Connection& connection, const uint8_t* frame, size_t bytes);
  void announce(Connection& connection, const InboxRing::Space& space, size_t bytes, uint16_t flags);
  void stall(const Shared& connection);
  void resumeStalled();
  void writable(const Shared& connection);
  bool flush(Connection& connection);
  void applyInterest(Connection& connection);
  /// Flushes, then closes. `farewell`: the peer is told why by us, JS has not done so.
  void beginClose(const Shared& connection, CloseReason reason, bool farewell);
  void closeNow(const Shared& connection, CloseReason reason);
  void checkTimes();
  Shared find(uint32_t connection);
  void post(const Command& command);
  void wake();

  const TransportOptions options_;
  InboxRing& ring_;
  EventHub& hub_;
  TransportCounters counters_;
  Descriptor epoll_;
  Descriptor wake_;
  Descriptor spare_;  // closed for a moment when descriptors run out, so that accept can refuse
  std::mutex mapMutex_;
  std::unordered_map<uint32_t, Shared> connections_;     // guarded by mapMutex_; changed by the transport thread
  std::unordered_map<uint32_t, Listener> listeners_;     // guarded by mapMutex_
  std::vector<Command> commands_;                        // guarded by mapMutex_
  std::vector<Shared> stalledList_;                      // transport thread
  const size_t receiveBytes_;                            // taken from a socket at once
  std::vector<uint8_t> scratch_;                         // transport thread
  std::atomic<bool> stalled_{false};
  std::atomic<bool> stopping_{false};
  uint32_t nextConnection_ = 1;
  bool timed_ = false;  // some connection has a time limit running
  int64_t checkedMs_ = 0;
  std::thread thread_;
};

}  // namespace cairn
