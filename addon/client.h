// The client's end of an engine connection: framing, descriptors and a bounded send queue over a
// non-blocking socket. It owns no thread and no loop; the caller says when the socket is readable or
// writable, and lends the receive buffer (in Node an ArrayBuffer, so that frames are read in place).
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "common.h"
#include "socket.h"

namespace cairn {

constexpr uint32_t kClientMagic = 0x314e5243;  // "CRN1"
constexpr size_t kClientFrameBytesMax = 64u << 20;
constexpr size_t kClientUnsentBytesMax = 64u << 20;

class ClientSocket {
 public:
  explicit ClientSocket(const std::string& path) : socket_(connectUnix(path, true)) {}
  ~ClientSocket() { close(); }

  int descriptor() const { return socket_.get(); }
  bool open() const { return static_cast<bool>(socket_); }
  void close();

  /// Lends (or replaces) the receive buffer; bytes received so far are copied into it.
  void setBuffer(uint8_t* buffer, size_t bytes);
  /// Capacity the next frame needs; larger than the buffer: setBuffer() first.
  size_t neededBytes() const { return neededBytes_; }

  /// Reads once. Empty: go on; else the reason why the connection is over.
  std::string receive();
  struct Frame {
    const uint8_t* data;  // nullptr: no whole frame
    size_t offset;
    size_t length;
    int descriptor;
  };
  /// The next whole frame in the buffer; valid until compact() or setBuffer(). `reason` is set on a bad one.
  Frame next(std::string& reason);
  /// Moves what is left of the buffer to its front.
  void compact();

  /// False: closed, failed, or too much unsent.
  bool send(const uint8_t* bytes, size_t count, int descriptor);
  /// Socket is writable. False: failed.
  bool flush();
  bool hasUnsent() const { return !outbound_.empty(); }

 private:
  struct Outbound {
    std::vector<uint8_t> bytes;
    size_t at;
    Descriptor descriptor;
  };
  Descriptor socket_;
  uint8_t* buffer_ = nullptr;
  size_t capacity_ = 0;
  size_t begin_ = 0;
  size_t end_ = 0;
  size_t neededBytes_ = 0;
  std::vector<int> descriptors_;
  std::deque<Outbound> outbound_;
  size_t unsentBytes_ = 0;
};

}  // namespace cairn
