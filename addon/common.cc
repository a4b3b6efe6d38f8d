#include "common.h"

#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <system_error>
#include <utility>

namespace cairn {

void fail(std::string code, std::string message) {
  throw Failure{std::move(code), std::move(message)};
}

void failErrno(const std::string& what, int error) {
  const char* name = strerrorname_np(error);
  throw Failure{name == nullptr ? "EUNKNOWN" : name, what + ": " + strerrordesc_np(error)};
}

void assertionFailed(const char* condition, const char* message, const char* file, int line) {
  fprintf(stderr, "cairn: assertion failed: %s (%s) at %s:%d\n", message, condition, file, line);
  fflush(stderr);
  _exit(70);
}

std::optional<Failure> failureOf(const std::function<void()>& work) {
  try {
    work();
    return std::nullopt;
  } catch (const Failure& failure) {
    return failure;
  } catch (const std::exception& error) {
    return Failure{"ENOMEM", error.what()};
  }
}

namespace {

/// SCHED_FLAG_RESET_ON_FORK of linux/sched.h, whose other names are glibc's as well.
constexpr uint64_t kResetOnFork = 1;

}  // namespace

void setTimeSlice(uint32_t microseconds) {
  // struct sched_attr as of Linux 3.14; glibc 2.36 has none.
  struct {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime;
    uint64_t deadline;
    uint64_t period;
  } attributes{};
  static_assert(sizeof attributes == 48);
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return;
  // A thread that an operator gave real-time priority keeps it.
  if (attributes.policy != SCHED_OTHER && attributes.policy != SCHED_BATCH) return;
  attributes.size = sizeof attributes;
  // The flag would take away a priority above the ordinary from all that begins here, too.
  if (microseconds > 0 && attributes.nice >= 0) attributes.flags |= kResetOnFork;
  attributes.runtime = uint64_t{microseconds} * 1000;
  static_cast<void>(syscall(SYS_sched_setattr, 0, &attributes, 0));
}

std::thread startThread(std::function<void()> body) {
  try {
    return std::thread([body = std::move(body)] {
      // It has that of the thread that began it.
      setTimeSlice(0);
      body();
    });
  } catch (const std::system_error& error) {
    failErrno("start a thread", error.code().value());
  }
}

int64_t steadyMicroseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000 + now.tv_nsec / 1000;
}

uint64_t unixMilliseconds() {
  timespec now;
  clock_gettime(CLOCK_REALTIME_COARSE, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000 + static_cast<uint64_t>(now.tv_nsec) / 1'000'000;
}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = other.release();
  }
  return *this;
}

int Descriptor::release() { return std::exchange(fd_, -1); }

void Descriptor::reset() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

}  // namespace cairn
