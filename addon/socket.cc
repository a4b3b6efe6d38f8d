#include "socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

namespace cairn {
namespace {

constexpr size_t kDescriptorRoom = 4;
/// Descriptors held for frames that are not complete; a peer that sends one with every byte gets no more.
constexpr size_t kDescriptorsHeldMax = 8;

sockaddr_un addressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty()) fail("ARGUMENT", "the socket path is empty");
  if (path.size() >= sizeof address.sun_path) failErrno("socket path " + path, ENAMETOOLONG);
  memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Descriptor newSocket(bool nonBlocking) {
  Descriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (nonBlocking ? SOCK_NONBLOCK : 0), 0));
  if (!socket) failErrno("socket");
  return socket;
}

bool bindTo(int socket, const sockaddr_un& address) {
  return bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
}

/// True when the path is a socket of ours that nobody listens on.
bool isDeadSocket(const std::string& path) {
  struct stat status;
  if (lstat(path.c_str(), &status) != 0 || !S_ISSOCK(status.st_mode) || status.st_uid != geteuid()) return false;
  const Descriptor probe = newSocket(true);
  const sockaddr_un address = addressOf(path);
  if (connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return false;
  return errno == ECONNREFUSED;
}

}  // namespace

FrameHeader readFrameHeader(const uint8_t* bytes) {
  FrameHeader header;
  memcpy(&header.magic, bytes, 4);
  header.version = bytes[4];
  header.operation = bytes[5];
  memcpy(&header.flags, bytes + 6, 2);
  memcpy(&header.bodyBytes, bytes + 8, 4);
  return header;
}

Descriptor listenUnix(const std::string& path, mode_t mode, int backlog) {
  const sockaddr_un address = addressOf(path);
  Descriptor socket = newSocket(true);
  if (!bindTo(socket.get(), address)) {
    if (errno != EADDRINUSE || !isDeadSocket(path)) failErrno("bind " + path, errno == 0 ? EADDRINUSE : errno);
    if (unlink(path.c_str()) != 0 || !bindTo(socket.get(), address)) failErrno("bind " + path);
  }
  // The mode is set before listen(): until then a connect is refused whatever the mode is.
  if (chmod(path.c_str(), mode) != 0 || listen(socket.get(), backlog) != 0) {
    const int error = errno;
    unlink(path.c_str());
    failErrno("listen on " + path, error);
  }
  return socket;
}

Descriptor connectUnix(const std::string& path, bool nonBlocking) {
  const sockaddr_un address = addressOf(path);
  Descriptor socket = newSocket(nonBlocking);
  while (connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (errno != EINTR) failErrno("connect " + path);
  }
  return socket;
}

ssize_t sendWithDescriptor(int socket, const uint8_t* bytes, size_t count, int descriptor) {
  iovec part{const_cast<uint8_t*>(bytes), count};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (descriptor >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &descriptor, sizeof descriptor);
  }
  for (;;) {
    const ssize_t sent = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) return sent;
    if (errno != EINTR) return -errno;
  }
}

ssize_t receiveWithDescriptors(int socket, uint8_t* into, size_t count, std::vector<int>& descriptors) {
  iovec part{into, count};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(kDescriptorRoom * sizeof(int))];
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got;
  do {
    got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return -errno;
  bool first = true;
  for (cmsghdr* head = CMSG_FIRSTHDR(&message); head != nullptr; head = CMSG_NXTHDR(&message, head)) {
    if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) continue;
    const size_t here = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < here; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(head) + i * sizeof fd, sizeof fd);
      if (first && descriptors.size() < kDescriptorsHeldMax) {
        descriptors.push_back(fd);
      } else {
        ::close(fd);
      }
      first = false;
    }
  }
  return got;
}

}  // namespace cairn
