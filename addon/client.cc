#include "client.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace cairn {

void ClientSocket::close() {
  socket_.reset();
  for (const int fd : descriptors_) ::close(fd);
  descriptors_.clear();
  outbound_.clear();
  unsentBytes_ = 0;
}

void ClientSocket::setBuffer(uint8_t* buffer, size_t bytes) {
  const size_t held = end_ - begin_;
  CAIRN_ASSERT(held <= bytes, "a new buffer holds what the old one did");
  if (held > 0) memcpy(buffer, buffer_ + begin_, held);
  buffer_ = buffer;
  capacity_ = bytes;
  begin_ = 0;
  end_ = held;
}

std::string ClientSocket::receive() {
  if (!socket_) return "LOCAL";
  CAIRN_ASSERT(end_ < capacity_, "there is room to receive into");
  const ssize_t got = receiveWithDescriptors(socket_.get(), buffer_ + end_, capacity_ - end_, descriptors_);
  if (got == -EAGAIN) return "";
  if (got == 0 || got == -ECONNRESET) return "PEER";
  if (got < 0) {
    const char* name = strerrorname_np(static_cast<int>(-got));
    return name == nullptr ? "SYSTEM" : name;
  }
  end_ += static_cast<size_t>(got);
  return "";
}

ClientSocket::Frame ClientSocket::next(std::string& reason) {
  const Frame none{nullptr, 0, 0, -1};
  neededBytes_ = 0;
  if (!socket_ || end_ - begin_ < kFrameHeaderBytes) return none;
  const FrameHeader header = readFrameHeader(buffer_ + begin_);
  if (header.magic != kClientMagic) {
    reason = "BAD_MAGIC";
    return none;
  }
  const size_t total = kFrameHeaderBytes + size_t{header.bodyBytes};
  if (total > kClientFrameBytesMax) {
    reason = "FRAME_TOO_LARGE";
    return none;
  }
  if (end_ - begin_ < total) {
    neededBytes_ = total;
    return none;
  }
  Frame frame{buffer_ + begin_, begin_, total, -1};
  if ((header.flags & kFlagDescriptor) != 0 && !descriptors_.empty()) {
    frame.descriptor = descriptors_.front();
    descriptors_.erase(descriptors_.begin());
  }
  begin_ += total;
  return frame;
}

void ClientSocket::compact() {
  if (begin_ == 0) return;
  if (end_ > begin_) memmove(buffer_, buffer_ + begin_, end_ - begin_);
  end_ -= begin_;
  begin_ = 0;
}

bool ClientSocket::send(const uint8_t* bytes, size_t count, int descriptor) {
  if (!socket_) return false;
  size_t sent = 0;
  if (outbound_.empty()) {
    const ssize_t result = sendWithDescriptor(socket_.get(), bytes, count, descriptor);
    if (result < 0 && result != -EAGAIN) return false;
    sent = result > 0 ? static_cast<size_t>(result) : 0;
  }
  if (sent == count) return true;
  if (unsentBytes_ + (count - sent) > kClientUnsentBytesMax) return false;
  Descriptor copy;
  if (descriptor >= 0 && sent == 0) {
    copy = Descriptor(fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
    // Out of descriptors: no frame goes out without the one it announces.
    if (!copy) return false;
  }
  outbound_.push_back({{bytes + sent, bytes + count}, 0, std::move(copy)});
  unsentBytes_ += count - sent;
  return true;
}

bool ClientSocket::flush() {
  while (!outbound_.empty()) {
    Outbound& item = outbound_.front();
    const ssize_t sent = sendWithDescriptor(socket_.get(), item.bytes.data() + item.at,
                                            item.bytes.size() - item.at, item.descriptor.get());
    if (sent == -EAGAIN) return true;
    if (sent < 0) return false;
    if (sent > 0) item.descriptor.reset();
    item.at += static_cast<size_t>(sent);
    unsentBytes_ -= static_cast<size_t>(sent);
    if (item.at == item.bytes.size()) outbound_.pop_front();
  }
  return true;
}

}  // namespace cairn
