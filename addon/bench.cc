#include "bench.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cstring>

#include "common.h"
#include "region.h"
#include "socket.h"

namespace cairn {
namespace {

constexpr uint32_t kFrameBytesMax = 64u << 20;

double nowMicroseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) / 1e3;
}

void writeAll(int socket, const uint8_t* bytes, size_t count) {
  for (size_t at = 0; at < count;) {
    const ssize_t sent = ::send(socket, bytes + at, count - at, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) failErrno("send");
    at += static_cast<size_t>(sent);
  }
}

/// False when the peer left before the first byte.
bool readAll(int socket, uint8_t* into, size_t count) {
  for (size_t at = 0; at < count;) {
    const ssize_t got = ::recv(socket, into + at, count - at, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) failErrno("recv");
    if (got == 0 && at == 0) return false;
    if (got == 0) fail("EPIPE", "the peer left in the middle of a message");
    at += static_cast<size_t>(got);
  }
  return true;
}

void readFrame(int socket, std::vector<uint8_t>& buffer) {
  if (buffer.size() < kFrameHeaderBytes) buffer.resize(kFrameHeaderBytes);
  if (!readAll(socket, buffer.data(), kFrameHeaderBytes)) fail("EPIPE", "the server closed the connection");
  const uint32_t body = readFrameHeader(buffer.data()).bodyBytes;
  if (body > kFrameBytesMax) fail("EMSGSIZE", "the reply is too large");
  if (buffer.size() < kFrameHeaderBytes + body) buffer.resize(kFrameHeaderBytes + body);
  if (body > 0 && !readAll(socket, buffer.data() + kFrameHeaderBytes, body)) {
    fail("EPIPE", "the server left in the middle of a frame");
  }
}

struct Mapping {
  Mapping(uint64_t bytes, bool huge) : sizeBytes(bytes) {
    const Descriptor file = makeSealedMemfd("cairn-bench", bytes);
    base = mapShared(file.get(), bytes, huge);
  }
  ~Mapping() { munmap(base, sizeBytes); }
  Mapping(const Mapping&) = delete;
  uint8_t* base;
  uint64_t sizeBytes;
};

}  // namespace

std::vector<double> benchMemcpyRates(uint64_t bytes, uint64_t blockBytes, uint32_t passes, bool hugePages) {
  if (blockBytes == 0 || bytes < blockBytes) fail("ARGUMENT", "blockBytes must be positive and at most bytes");
  if (passes == 0 || passes > 1000) fail("ARGUMENT", "passes must be 1 to 1000");
  const Mapping from(bytes, hugePages);
  const Mapping to(bytes, hugePages);
  memset(from.base, 0x5a, bytes);
  memset(to.base, 0xa5, bytes);
  std::vector<double> rates;
  for (uint32_t pass = 0; pass < passes; pass++) {
    const double began = nowMicroseconds();
    uint64_t copied = 0;
    for (uint64_t at = 0; at + blockBytes <= bytes; at += blockBytes) {
      memcpy(to.base + at, from.base + at, blockBytes);
      copied += blockBytes;
    }
    rates.push_back(static_cast<double>(copied) / (nowMicroseconds() - began) / 1e3);
  }
  return rates;
}

std::vector<double> benchRoundTripMicroseconds(const std::string& path, const std::vector<uint8_t>& hello,
                                               const std::vector<uint8_t>& request, uint32_t replyBytes,
                                               uint32_t count) {
  if (request.empty()) fail("ARGUMENT", "the request is empty");
  const Descriptor socket = connectUnix(path, false);
  std::vector<uint8_t> buffer(replyBytes > kFrameHeaderBytes ? replyBytes : kFrameHeaderBytes);
  if (!hello.empty()) {
    writeAll(socket.get(), hello.data(), hello.size());
    readFrame(socket.get(), buffer);
  }
  std::vector<double> times(count);
  for (double& time : times) {
    const double began = nowMicroseconds();
    writeAll(socket.get(), request.data(), request.size());
    if (replyBytes == 0) {
      readFrame(socket.get(), buffer);
    } else if (!readAll(socket.get(), buffer.data(), replyBytes)) {
      fail("EPIPE", "the server closed the connection");
    }
    time = nowMicroseconds() - began;
  }
  return times;
}

void benchEchoServe(const std::string& path, uint32_t requestBytes, uint32_t replyBytes) {
  if (requestBytes == 0 || replyBytes == 0) fail("ARGUMENT", "sizes must be positive");
  const Descriptor listener = listenUnix(path, 0600, 1);
  pollfd wait{listener.get(), POLLIN, 0};
  while (poll(&wait, 1, -1) < 0 && errno == EINTR) continue;
  const Descriptor socket(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!socket) failErrno("accept");
  std::vector<uint8_t> request(requestBytes);
  const std::vector<uint8_t> reply(replyBytes, 0x11);
  while (readAll(socket.get(), request.data(), requestBytes)) {
    writeAll(socket.get(), reply.data(), replyBytes);
  }
  ::unlink(path.c_str());
}

}  // namespace cairn
