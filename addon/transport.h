// The engine API's sockets: one epoll set accepts, frames, bounds and closes; JS only ever sees whole, size-checked
// frames in the inbox ring and never waits for a client.
//
// Two leaders, one turn. An idle JS thread serves the sockets itself: its loop polls the epoll descriptor, and serve()
// takes one turn, so a look-up is answered by the thread that it woke. The transport thread follows: it does not wait
// on the sockets, so no frame wakes two threads, but looks at every tick. When sockets are ready and JS served none
// between two looks, JS is busy, and the transport thread leads until JS serves again: framing, limits, back-pressure
// and the end of connections never wait for JS longer than two ticks. Time limits are always checked by it.
//
// Who may touch what: `turn_` is held for one turn, by either thread; no turn blocks on a client, so waiting for it is
// short. A Connection's reading side and whatever is marked "the turn" below belong to its holder, which is also why a
// connection's frames keep their order over a change of leaders. A Connection's writing side (outbound queue, epoll
// interest, the descriptor's life) is written under its mutex, because send() writes on the JS thread outside of any
// turn. Lock order: turn, connections_ map, one connection, event hub. JS calls nothing of ours inside its own turn.
//
// Bounds: connections, body bytes (checked before anything is allocated), time to HELLO, time to finish a
// frame, bytes waiting to be written. When the inbox is full the connection is taken out of epoll until
// JS has polled: that is the back-pressure, in the client's own socket buffer.
#pragma once

#include <sys/epoll.h>

#include <array>
#include <atomic>
#include <condition_variable>
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
  /// Between two looks of the transport thread: at time limits, and whether JS has left sockets waiting. Not shorter
  /// in a daemon: each look wakes an idle core, and the scheduler then draws the woken JS thread there (tens of µs).
  uint32_t tickMs = 100;
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
  /// False: the connection is gone or going (SLOW_READER: too much waits; SYSTEM: the kernel refused memory or
  /// descriptors). The descriptor stays the caller's.
  bool send(uint32_t connection, const uint8_t* bytes, size_t count, int descriptor);
  void established(uint32_t connection);
  /// Flushes what is queued (within the frame timeout), then closes with this reason.
  void close(uint32_t connection, CloseReason reason);
  /// After poll(): stalled connections are read again.
  void resume();
  /// Readable while a turn has something to do: what the JS loop polls. Open until destruction.
  int pollDescriptor() const { return epoll_.get(); }
  /// When that descriptor is readable: one turn, which never blocks on a client.
  void serve();
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
    // The turn.
    std::vector<uint8_t> partial;
    std::vector<int> descriptors;
    int64_t acceptedMs;
    int64_t frameSinceMs = 0;  // 0: no frame begun
    int64_t closeByMs = 0;     // 0: not closing
    bool stalled = false;
    std::atomic<bool> established{false};
    // Written under mutex; socket, reading, closing and reason in a turn only, so a turn reads them without it.
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
  /// epoll tags: a connection's is its id.
  static constexpr uint64_t kWakeTag = 0;
  static constexpr uint64_t kListenerTag = 1ull << 32;
  /// A turn is short, because the other leader may wait for it.
  static constexpr int kEventsPerTurn = 16;
  static constexpr size_t kPendingEventsMax = 1u << 16;

  using Shared = std::shared_ptr<Connection>;
  enum class Parsed { kWhole, kMore, kStalled, kBad };

  // Transport thread.
  void run();
  /// True: sockets are ready and JS has not served any since `seen`, the number of its turns at the last look.
  bool jsIsAway(uint64_t& seen);
  /// Serves until JS does.
  void lead(uint64_t seen);
  /// Ended early by stop().
  void pause(int milliseconds);
  bool ready() const;
  int wait(epoll_event* events, int timeoutMs) const;
  // The turn. Events may be stale: what they announced may have been handled by the other leader since.
  void handle(const epoll_event* events, int count);
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
  bool enqueue(Connection& connection, const uint8_t* bytes, size_t count, int descriptor, CloseReason& reason);
  /// False: the kernel refused (no memory, no watches left). Nobody would hear of the socket: it has to be closed.
  [[nodiscard]] bool applyInterest(Connection& connection);
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
  std::unordered_map<uint32_t, Shared> connections_;     // guarded by mapMutex_; changed in a turn
  std::unordered_map<uint32_t, Listener> listeners_;     // guarded by mapMutex_
  std::vector<Command> commands_;                        // guarded by mapMutex_
  std::mutex turn_;
  std::vector<Shared> stalledList_;      // the turn
  const size_t receiveBytes_;            // taken from a socket at once
  std::vector<uint8_t> scratch_;         // the turn
  uint32_t nextConnection_ = 1;          // the turn
  int64_t checkedMs_ = 0;                // the turn
  std::atomic<bool> timed_{false};       // some connection has a time limit running; written in a turn
  std::atomic<bool> stalled_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<uint64_t> jsTurns_{0};     // how often JS came for the sockets
  std::mutex pauseMutex_;
  std::condition_variable pause_;        // with pauseMutex_ and stopping_
  std::thread thread_;
};

}  // namespace cairn
