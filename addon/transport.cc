#include "transport.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace cairn {
namespace {

constexpr size_t kScratchBytes = 256 * 1024;
constexpr int kBacklog = 1024;
/// A turn is short, because the other leader may wait for it.
constexpr int kAcceptsPerTurn = 16;
constexpr size_t kKeepPartialBytes = 64 * 1024;
/// Frames of one connection that may wait for JS: a client that floods delays the others by that many at most.
constexpr size_t kFramesPerPoll = 64;

}  // namespace

Transport::Transport(const TransportOptions& options, InboxRing& ring, EventHub& hub)
    : options_(options),
      ring_(ring),
      hub_(hub),
      receiveBytes_(std::min(kScratchBytes, ring.sizeBytes() / 2)),
      scratch_(receiveBytes_) {
  if ((uint64_t{options.frameBodyBytesMax} + kFrameHeaderBytes + 8) * 2 > ring.sizeBytes()) {
    fail("ARGUMENT", "the inbox must hold two frames of frameBodyBytesMax");
  }
  epoll_ = Descriptor(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) failErrno("epoll_create1");
  wake_ = Descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_) failErrno("eventfd");
  spare_ = Descriptor(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWakeTag;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) failErrno("epoll_ctl");
  thread_ = startThread([this] {
    setTimeSlice(kAnswerSliceMicroseconds);
    run();
  });
}

// ---- JS thread ----------------------------------------------------------------------------------------

void Transport::listen(const std::string& path, mode_t mode, uint32_t listener) {
  std::lock_guard lock(mapMutex_);
  if (listeners_.count(listener) != 0) fail("ARGUMENT", "the listener number is in use");
  Listener entry{path, listenUnix(path, mode, kBacklog), 0, 0};
  struct stat status;
  if (lstat(path.c_str(), &status) != 0) failErrno("lstat " + path);
  entry.device = status.st_dev;
  entry.inode = status.st_ino;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kListenerTag | listener;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, entry.socket.get(), &event) != 0) failErrno("epoll_ctl");
  listeners_.emplace(listener, std::move(entry));
}

void Transport::unlisten(uint32_t listener) {
  {
    std::lock_guard lock(mapMutex_);
    const auto found = listeners_.find(listener);
    if (found == listeners_.end()) return;
    // The socket file goes at once, and only if it is still the one we made.
    struct stat status;
    const Listener& entry = found->second;
    const bool same = lstat(entry.path.c_str(), &status) == 0 && status.st_dev == entry.device &&
                      status.st_ino == entry.inode;
    if (same) ::unlink(entry.path.c_str());
  }
  post({Command::Kind::kUnlisten, listener, CloseReason::kLocal});
}

Transport::Shared Transport::find(uint32_t connection) {
  std::lock_guard lock(mapMutex_);
  const auto found = connections_.find(connection);
  return found == connections_.end() ? nullptr : found->second;
}

bool Transport::send(uint32_t id, const uint8_t* bytes, size_t count, int descriptor) {
  const Shared connection = find(id);
  if (connection == nullptr) return false;
  CloseReason reason = CloseReason::kSystem;
  {
    std::lock_guard lock(connection->mutex);
    if (!connection->socket || connection->closing) return false;
    ssize_t result = 0;
    if (connection->outbound.empty()) {
      result = sendWithDescriptor(connection->socket.get(), bytes, count, descriptor);
      if (result == -EPIPE || result == -ECONNRESET) return false;  // a turn sees the peer's end, too
    }
    const bool works = result >= 0 || result == -EAGAIN;
    const size_t sent = result > 0 ? static_cast<size_t>(result) : 0;
    const int owed = sent == 0 ? descriptor : -1;
    if (works && (sent == count || enqueue(*connection, bytes + sent, count - sent, owed, reason))) {
      counters_.framesSent.fetch_add(1, std::memory_order_relaxed);
      counters_.bytesSent.fetch_add(count, std::memory_order_relaxed);
      return true;
    }
  }
  close(id, reason);
  return false;
}

/// What the socket did not take waits for it. False, and why: it cannot, and the connection has to end.
bool Transport::enqueue(Connection& connection, const uint8_t* bytes, size_t count, int descriptor,
                        CloseReason& reason) {
  CAIRN_ASSERT(count > 0, "what was sent whole does not wait");
  if (connection.outboundBytes + count > options_.outboundBytesMax) {
    reason = CloseReason::kSlowReader;
    return false;
  }
  reason = CloseReason::kSystem;
  Descriptor copy;
  if (descriptor >= 0) {
    copy = Descriptor(fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
    // Out of descriptors: no frame goes out without the one it announces.
    if (!copy) return false;
  }
  connection.outbound.push_back({{bytes, bytes + count}, 0, std::move(copy)});
  connection.outboundBytes += count;
  return applyInterest(connection);
}

void Transport::established(uint32_t id) {
  const Shared connection = find(id);
  if (connection != nullptr) connection->established.store(true, std::memory_order_relaxed);
}

void Transport::close(uint32_t id, CloseReason reason) { post({Command::Kind::kClose, id, reason}); }

void Transport::resume() {
  if (stalled_.load(std::memory_order_seq_cst)) wake();
}

void Transport::post(const Command& command) {
  {
    std::lock_guard lock(mapMutex_);
    commands_.push_back(command);
  }
  wake();
}

void Transport::wake() {
  const uint64_t one = 1;
  static_cast<void>(!write(wake_.get(), &one, sizeof one));
}

void Transport::stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(pauseMutex_);
    stopping_.store(true);
  }
  pause_.notify_one();
  wake();
  thread_.join();
  std::lock_guard lock(mapMutex_);
  for (auto& [id, listener] : listeners_) {
    struct stat status;
    const bool same = lstat(listener.path.c_str(), &status) == 0 && status.st_dev == listener.device &&
                      status.st_ino == listener.inode;
    if (same) ::unlink(listener.path.c_str());
  }
  listeners_.clear();
  for (auto& [id, connection] : connections_) {
    for (const int fd : connection->descriptors) ::close(fd);
  }
  connections_.clear();
  stalledList_.clear();
}

// ---- the turn, on either thread -----------------------------------------------------------------------

void Transport::runCommands() {
  std::vector<Command> commands;
  {
    std::lock_guard lock(mapMutex_);
    commands.swap(commands_);
    for (const Command& command : commands) {
      if (command.kind == Command::Kind::kUnlisten) listeners_.erase(command.id);
    }
  }
  for (const Command& command : commands) {
    if (command.kind != Command::Kind::kClose) continue;
    const Shared connection = find(command.id);
    if (connection == nullptr) continue;
    // A reader that does not read gets no chance to flush.
    if (command.reason == CloseReason::kSlowReader) {
      closeNow(connection, command.reason);
    } else {
      beginClose(connection, command.reason, false);
    }
  }
}

void Transport::accept(uint32_t listener) {
  int listenSocket;
  {
    // Listening sockets are closed in a turn only, so the number stays good outside the lock.
    std::lock_guard lock(mapMutex_);
    const auto found = listeners_.find(listener);
    if (found == listeners_.end()) return;
    listenSocket = found->second.socket.get();
  }
  if (hub_.pending() > kPendingEventsMax) return;  // JS is far behind: clients wait in the backlog
  for (int i = 0; i < kAcceptsPerTurn; i++) {
    Descriptor socket(accept4(listenSocket, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) {
      if (errno == EMFILE || errno == ENFILE) refuseOne(listenSocket);
      if (errno == ECONNABORTED || errno == EINTR) continue;
      return;
    }
    if (counters_.connections.load(std::memory_order_relaxed) >= options_.connectionsMax) {
      counters_.connectionsRefused.fetch_add(1, std::memory_order_relaxed);
      const std::vector<uint8_t>& words = options_.refusal;
      if (!words.empty()) static_cast<void>(sendWithDescriptor(socket.get(), words.data(), words.size(), -1));
      continue;
    }
    open(std::move(socket), listener);
  }
}

void Transport::refuseOne(int listenSocket) {
  spare_.reset();
  Descriptor socket(accept4(listenSocket, nullptr, nullptr, SOCK_CLOEXEC));
  if (socket) counters_.connectionsRefused.fetch_add(1, std::memory_order_relaxed);
  socket.reset();
  spare_ = Descriptor(::open("/dev/null", O_RDONLY | O_CLOEXEC));
}

void Transport::open(Descriptor socket, uint32_t listener) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return;
  const auto connection = std::make_shared<Connection>();
  // Ids come again after four thousand million connections; 0 is the wake tag's.
  do {
    connection->id = nextConnection_++;
  } while (connection->id == 0 || find(connection->id) != nullptr);
  connection->acceptedMs = steadyMilliseconds();
  connection->socket = std::move(socket);
  {
    std::lock_guard lock(mapMutex_);
    connections_.emplace(connection->id, connection);
  }
  counters_.connections.fetch_add(1, std::memory_order_relaxed);
  timed_.store(true, std::memory_order_relaxed);
  Event event{};
  event.type = kAccept;
  event.id = connection->id;
  event.a = static_cast<uint32_t>(peer.pid);
  event.b = peer.uid;
  event.c = peer.gid;
  event.d = listener;
  hub_.push(std::move(event));
  bool watched = false;
  {
    std::lock_guard lock(connection->mutex);
    watched = applyInterest(*connection);
  }
  if (!watched) closeNow(connection, CloseReason::kSystem);
}

bool Transport::applyInterest(Connection& connection) {
  if (!connection.socket) return true;
  // No interest at all means out of epoll: a hang-up would be reported again and again otherwise.
  const uint32_t wanted = (connection.reading ? uint32_t{EPOLLIN} : 0u) |
                          (connection.outbound.empty() ? 0u : uint32_t{EPOLLOUT});
  if (wanted == connection.interest) return true;
  epoll_event event{};
  event.events = wanted;
  event.data.u64 = connection.id;
  const int operation = wanted == 0                 ? EPOLL_CTL_DEL
                        : connection.interest == 0 ? EPOLL_CTL_ADD
                                                    : EPOLL_CTL_MOD;
  const int result = epoll_ctl(epoll_.get(), operation, connection.socket.get(), &event);
  CAIRN_ASSERT(result == 0 || errno == ENOMEM || errno == ENOSPC, "epoll_ctl on an open socket");
  if (result != 0) return false;
  connection.interest = wanted;
  return true;
}

void Transport::readable(const Shared& connection, bool hungUp) {
  // Not the connection's lock: socket, reading and closing are written in turns alone (the lock is for send(), which
  // reads them outside). Taking it here could wait for a send() that the woken client has just preempted.
  if (!connection->socket) return;
  const int fd = connection->socket.get();
  if (!connection->reading) {
    // Only flushing (closing, or stalled with replies queued): a hang-up ends that.
    if (hungUp) closeNow(connection, connection->closing ? connection->reason : CloseReason::kPeer);
    return;
  }
  // A frame that arrives whole and alone, which is what a look-up does, is received where JS will read it.
  const InboxRing::Space direct =
      connection->partial.empty() ? ring_.ahead(receiveBytes_) : InboxRing::Space{nullptr, 0, 0};
  uint8_t* into = direct.at != nullptr ? direct.at : scratch_.data();
  const ssize_t got = receiveWithDescriptors(fd, into, receiveBytes_, connection->descriptors);
  if (got == -EAGAIN) return;
  if (got <= 0) {
    closeNow(connection, got == 0 || got == -ECONNRESET ? CloseReason::kPeer : CloseReason::kSystem);
    return;
  }
  const size_t count = static_cast<size_t>(got);
  counters_.bytesReceived.fetch_add(count, std::memory_order_relaxed);
  if (direct.at == nullptr) {
    consume(connection, into, count);
    return;
  }
  size_t total = 0;
  CloseReason reason;
  const bool whole = examine(direct.at, count, total, reason) == Parsed::kWhole;
  if (whole) {
    const uint64_t end = ring_.take(direct, total);
    announce(*connection, {direct.at, direct.offset, end}, total, readFrameHeader(direct.at).flags);
  }
  // What follows lies in room that belongs to nobody.
  const size_t used = whole ? total : 0;
  memcpy(scratch_.data(), direct.at + used, count - used);
  consume(connection, scratch_.data(), count - used);
}

void Transport::consume(const Shared& connection, const uint8_t* bytes, size_t count) {
  std::vector<uint8_t>& partial = connection->partial;
  const bool direct = partial.empty();
  if (!direct) {
    partial.insert(partial.end(), bytes, bytes + count);
    bytes = partial.data();
    count = partial.size();
  }
  size_t used = 0;
  CloseReason reason = CloseReason::kLocal;
  const Parsed parsed = parse(*connection, bytes, count, used, reason);
  const size_t left = count - used;
  if (direct) {
    partial.assign(bytes + used, bytes + count);
  } else {
    partial.erase(partial.begin(), partial.begin() + static_cast<ptrdiff_t>(used));
    if (partial.empty() && partial.capacity() > kKeepPartialBytes) partial.shrink_to_fit();
  }
  if (left == 0) {
    // Descriptors that no frame announced belong to nobody.
    for (const int fd : connection->descriptors) ::close(fd);
    connection->descriptors.clear();
    connection->frameSinceMs = 0;
  } else if (used > 0 || connection->frameSinceMs == 0) {
    connection->frameSinceMs = steadyMilliseconds();
    timed_.store(true, std::memory_order_relaxed);
  }
  if (parsed == Parsed::kBad) beginClose(connection, reason, true);
  if (parsed == Parsed::kStalled) stall(connection);
}

Transport::Parsed Transport::examine(const uint8_t* frame, size_t count, size_t& total,
                                     CloseReason& reason) const {
  if (count < 4) return Parsed::kMore;
  uint32_t magic;
  memcpy(&magic, frame, 4);
  if (magic != options_.magic) {
    reason = CloseReason::kBadMagic;
    return Parsed::kBad;
  }
  if (count < kFrameHeaderBytes) return Parsed::kMore;
  const FrameHeader header = readFrameHeader(frame);
  if (header.version != options_.version) {
    reason = CloseReason::kVersion;
    return Parsed::kBad;
  }
  if (header.bodyBytes > options_.frameBodyBytesMax) {
    reason = CloseReason::kFrameTooLarge;
    return Parsed::kBad;
  }
  total = kFrameHeaderBytes + header.bodyBytes;
  return count < total ? Parsed::kMore : Parsed::kWhole;
}

Transport::Parsed Transport::parse(Connection& connection, const uint8_t* bytes, size_t count, size_t& used,
                                   CloseReason& reason) {
  for (size_t frames = 0;; frames++) {
    size_t total = 0;
    const Parsed found = examine(bytes + used, count - used, total, reason);
    if (found != Parsed::kWhole) return found;
    if (frames == kFramesPerPoll) {
      stalled_.store(true, std::memory_order_seq_cst);  // the next poll() lets it go on; stall() rings for that
      return Parsed::kStalled;
    }
    if (!deliver(connection, bytes + used, total)) return Parsed::kStalled;
    used += total;
  }
}

bool Transport::deliver(Connection& connection, const uint8_t* frame, size_t bytes) {
  InboxRing::Space space = ring_.allocate(bytes);
  if (space.at == nullptr) {
    // Say that we wait, then look again: JS may have polled in between and would not wake us.
    stalled_.store(true, std::memory_order_seq_cst);
    space = ring_.allocate(bytes);
    if (space.at == nullptr) return false;
  }
  memcpy(space.at, frame, bytes);
  announce(connection, space, bytes, readFrameHeader(frame).flags);
  return true;
}

void Transport::announce(Connection& connection, const InboxRing::Space& space, size_t bytes, uint16_t flags) {
  Event event{};
  event.type = kFrame;
  event.id = connection.id;
  event.offset = space.offset;
  event.length = static_cast<uint32_t>(bytes);
  event.a = UINT32_MAX;
  event.ringEnd = space.end;
  if ((flags & kFlagDescriptor) != 0 && !connection.descriptors.empty()) {
    event.a = static_cast<uint32_t>(connection.descriptors.front());
    connection.descriptors.erase(connection.descriptors.begin());
  }
  counters_.framesReceived.fetch_add(1, std::memory_order_relaxed);
  hub_.push(std::move(event));
}

void Transport::stall(const Shared& connection) {
  counters_.inboxFullStalls.fetch_add(1, std::memory_order_relaxed);
  connection->stalled = true;
  connection->frameSinceMs = 0;  // the wait is ours, not the client's
  stalledList_.push_back(connection);
  bool watched = false;
  {
    std::lock_guard lock(connection->mutex);
    connection->reading = false;
    watched = applyInterest(*connection);
  }
  if (!watched) closeNow(connection, CloseReason::kSystem);
  // Frames handed out are given back by the next poll(), and without an event JS might never call it.
  hub_.nudge();
}

void Transport::resumeStalled() {
  if (stalledList_.empty()) {
    stalled_.store(false, std::memory_order_seq_cst);
    return;
  }
  std::vector<Shared> waiting;
  waiting.swap(stalledList_);
  stalled_.store(false, std::memory_order_seq_cst);
  for (const Shared& connection : waiting) {
    connection->stalled = false;
    bool watched = false;
    {
      std::lock_guard lock(connection->mutex);
      if (!connection->socket || connection->closing) continue;
      connection->reading = true;
      watched = applyInterest(*connection);
    }
    if (watched) {
      consume(connection, nullptr, 0);
    } else {
      closeNow(connection, CloseReason::kSystem);
    }
  }
}

void Transport::writable(const Shared& connection) {
  bool finished = false;
  CloseReason reason = CloseReason::kSystem;
  {
    std::lock_guard lock(connection->mutex);
    if (!connection->socket) return;
    const bool works = flush(*connection);
    const bool watched = applyInterest(*connection);
    finished = !works || !watched || (connection->closing && connection->outbound.empty());
    reason = connection->closing ? connection->reason : works ? CloseReason::kSystem : CloseReason::kPeer;
  }
  if (finished) closeNow(connection, reason);
}

bool Transport::flush(Connection& connection) {
  while (!connection.outbound.empty()) {
    Outbound& item = connection.outbound.front();
    const ssize_t sent = sendWithDescriptor(connection.socket.get(), item.bytes.data() + item.at,
                                            item.bytes.size() - item.at, item.descriptor.get());
    if (sent == -EAGAIN) return true;
    if (sent < 0) return false;
    if (sent > 0) item.descriptor.reset();
    item.at += static_cast<size_t>(sent);
    connection.outboundBytes -= static_cast<size_t>(sent);
    if (item.at == item.bytes.size()) connection.outbound.pop_front();
  }
  return true;
}

void Transport::beginClose(const Shared& connection, CloseReason reason, bool farewell) {
  bool now = false;
  {
    std::lock_guard lock(connection->mutex);
    if (!connection->socket || connection->closing) return;
    connection->closing = true;
    connection->reason = reason;
    connection->reading = false;
    const std::vector<uint8_t>& words = options_.farewells[static_cast<size_t>(reason)];
    if (farewell && !words.empty()) {
      connection->outbound.push_back({words, 0, Descriptor()});
      connection->outboundBytes += words.size();
    }
    now = !flush(*connection) || connection->outbound.empty() || !applyInterest(*connection);
  }
  connection->closeByMs = steadyMilliseconds() + options_.frameTimeoutMs;
  timed_.store(true, std::memory_order_relaxed);
  if (now) closeNow(connection, reason);
}

void Transport::closeNow(const Shared& connection, CloseReason reason) {
  {
    std::lock_guard lock(connection->mutex);
    if (!connection->socket) return;
    connection->socket.reset();
    connection->interest = 0;
    connection->outbound.clear();
    connection->outboundBytes = 0;
  }
  for (const int fd : connection->descriptors) ::close(fd);
  connection->descriptors.clear();
  {
    std::lock_guard lock(mapMutex_);
    connections_.erase(connection->id);
  }
  if (connection->stalled) std::erase(stalledList_, connection);
  counters_.connections.fetch_sub(1, std::memory_order_relaxed);
  Event event{};
  event.type = kClose;
  event.id = connection->id;
  event.a = static_cast<uint32_t>(reason);
  hub_.push(std::move(event));
}

void Transport::checkTimes() {
  if (!timed_.load(std::memory_order_relaxed)) return;
  const std::lock_guard turn(turn_);
  const int64_t now = steadyMilliseconds();
  if (now - checkedMs_ < options_.tickMs / 2) return;
  checkedMs_ = now;
  std::vector<Shared> all;
  {
    std::lock_guard lock(mapMutex_);
    for (const auto& [id, connection] : connections_) all.push_back(connection);
  }
  bool timed = false;
  for (const Shared& connection : all) {
    const bool greeted = connection->established.load(std::memory_order_relaxed);
    const bool inFrame = connection->frameSinceMs != 0;
    if (connection->closeByMs != 0 && now >= connection->closeByMs) {
      closeNow(connection, connection->reason);
    } else if (connection->closeByMs == 0 && !greeted && now - connection->acceptedMs >= options_.helloTimeoutMs) {
      beginClose(connection, CloseReason::kHelloTimeout, true);
    } else if (connection->closeByMs == 0 && inFrame && now - connection->frameSinceMs >= options_.frameTimeoutMs) {
      beginClose(connection, CloseReason::kFrameTimeout, true);
    }
    timed = timed || !greeted || inFrame || connection->closeByMs != 0;
  }
  timed_.store(timed, std::memory_order_relaxed);
}

}  // namespace cairn
