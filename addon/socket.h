// Unix stream sockets with descriptor passing: the few system calls that transport, client and bench share.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common.h"

namespace cairn {

constexpr size_t kFrameHeaderBytes = 32;

/// The fields of a frame header that framing needs (docs/protocol.md).
struct FrameHeader {
  uint32_t magic;
  uint8_t version;
  uint8_t operation;
  uint16_t flags;
  uint32_t bodyBytes;
};
constexpr uint16_t kFlagDescriptor = 8;
FrameHeader readFrameHeader(const uint8_t* bytes);

/// Binds and listens; a dead socket file in the way is replaced, a live one is EADDRINUSE.
Descriptor listenUnix(const std::string& path, mode_t mode, int backlog);
/// Connects; blocking or not. Throws an errno name (ENOENT, ECONNREFUSED, EAGAIN).
Descriptor connectUnix(const std::string& path, bool nonBlocking);

/// Sends without blocking and without SIGPIPE; the descriptor (if ≥ 0) goes with the first byte.
/// Returns bytes taken, or −errno.
ssize_t sendWithDescriptor(int socket, const uint8_t* bytes, size_t count, int descriptor);
/// Receives without blocking; descriptors that came along are appended, close-on-exec, at most one (more
/// are closed). Returns bytes, 0 at the end, or −errno.
ssize_t receiveWithDescriptors(int socket, uint8_t* into, size_t count, std::vector<int>& descriptors);

}  // namespace cairn
