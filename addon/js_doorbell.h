// What wakes the JS loop for the addon: the sockets' own epoll descriptor, which the loop polls so that an idle JS
// thread serves a request without a second thread, and the doorbell of the other native threads, a pipe.
//
// Why a pipe and not a thread-safe function: that one rings an eventfd, whose wake-up may place the JS thread on
// another, sleeping core (tens of microseconds in a virtual machine). A pipe's writer announces that it is about to
// sleep, so the kernel runs the reader on the writer's core next. Measurements: docs/design-decisions.md.
//
// Life: made by start(), closed by stop() or at environment clean-up; the handles free themselves once libuv let go.
#pragma once

#include <node_api.h>

#include <functional>

namespace cairn::js {

class Doorbell {
 public:
  /// JS thread. onReady is called with no arguments when `answered` says that something rang. Throws Failure.
  static Doorbell* make(napi_env env, napi_value onReady, std::function<bool()> answered);
  /// JS thread, once: calls `serve` whenever the descriptor is readable, then onReady as above. The descriptor stays
  /// the caller's and open until close(). Throws Failure.
  void watch(int descriptor, std::function<void()> serve);
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
