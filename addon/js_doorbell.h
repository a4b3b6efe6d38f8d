// The doorbell between native threads and the JS loop: a pipe that the loop polls.
//
// Why not a thread-safe function: that one rings an eventfd, whose wake-up may place the JS thread on another, sleeping
// core (tens of microseconds in a virtual machine). A pipe's writer announces that it is about to sleep, so the
// kernel runs the reader on the writer's core next. Measured on a look-up over the socket: docs/design-decisions.md.
//
// Life: made by start(), closed by stop() or at environment clean-up; the handle frees itself once libuv let go of it.
#pragma once

#include <node_api.h>

#include <functional>

namespace cairn::js {

class Doorbell {
 public:
  /// JS thread. onReady is called with no arguments, after `answered`, once per ring or less. Throws Failure.
  static Doorbell* make(napi_env env, napi_value onReady, std::function<void()> answered);
  /// Any thread, until close().
  void ring();
  /// JS thread; no native thread may ring any more. onReady is not called again.
  void close();

 private:
  struct Handle;
  explicit Doorbell(Handle* handle) : handle_(handle) {}
  ~Doorbell() = default;

  Handle* handle_;
};

}  // namespace cairn::js
