// Shared small things of the addon: typed failures, assertions that stay on, clocks.
//
// The core throws Failure on its set-up paths only; addon/js.cc turns it into a JS error with `code`.
// Worker threads never throw. A failed assertion is a bug in cairn: it is printed and the process ends
// with exit code 70, so that not even a bug ends it by a signal.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <thread>

namespace cairn {

/// What an operation could not do. `code` is a word of AddonErrorCode (binding.ts) or an errno name.
struct Failure {
  std::string code;
  std::string message;
};

[[noreturn]] void fail(std::string code, std::string message);
/// Throws Failure with the errno's name as code; `what` says which step failed.
[[noreturn]] void failErrno(const std::string& what, int error = errno);
[[noreturn]] void assertionFailed(const char* condition, const char* message, const char* file, int line);

/// Set-up on a thread, which must not throw: what `work` threw.
std::optional<Failure> failureOf(const std::function<void()>& work);

/// How long the calling thread may hold a processor before its turn is over; 0 = as long as the kernel likes (0.7 to
/// 3 ms). One with a short turn that wakes up goes before one with a long turn. Threads and children that Node begins
/// on it have the kernel's, unless its priority is above the ordinary (a negative nice value): then they have its own.
/// Linux has this since 6.12; where it is not to be had, nothing changes.
void setTimeSlice(uint32_t microseconds);
/// Of the two threads that answer engines: the shortest there is, so that they never wait for one that copies and
/// hashes. Waits of more than half a millisecond on two busy cores: 335 of 3,000 without it, 30 with it.
constexpr uint32_t kAnswerSliceMicroseconds = 100;

/// Begins a thread, whose time slice is the kernel's own. Throws EAGAIN where the process may have no more of them.
std::thread startThread(std::function<void()> body);

/// Monotonic clock.
int64_t steadyMicroseconds();
inline int64_t steadyMilliseconds() { return steadyMicroseconds() / 1000; }
/// Milliseconds of Unix time, coarse (a few milliseconds), for last-access stamps.
uint64_t unixMilliseconds();

constexpr size_t roundUp(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

/// An open descriptor, closed when it goes out of scope.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor() { reset(); }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release();
  void reset();

 private:
  int fd_ = -1;
};

}  // namespace cairn

#define CAIRN_ASSERT(condition, message) \
  ((condition) ? static_cast<void>(0) : ::cairn::assertionFailed(#condition, message, __FILE__, __LINE__))
