#include "js_doorbell.h"

#include <fcntl.h>
#include <unistd.h>
#include <uv.h>

#include <memory>

#include "js_support.h"

namespace cairn::js {

struct Doorbell::Handle {
  napi_env env;
  Doorbell* owner = nullptr;
  std::function<bool()> answered;
  std::function<void()> serve;
  napi_ref onReady = nullptr;
  napi_async_context context = nullptr;
  napi_async_cleanup_hook_handle hook = nullptr;
  uv_poll_t poll;
  uv_poll_t sockets;
  bool watching = false;
  int open = 1;  // handles that libuv still holds
  int readEnd = -1;
  int writeEnd = -1;
  bool closing = false;
  bool tearingDown = false;

  void callReady();
  static void onPoll(uv_poll_t* poll, int status, int events);
  static void onSockets(uv_poll_t* poll, int status, int events);
  static void onClosed(uv_handle_t* handle);
  static void onTearDown(napi_async_cleanup_hook_handle hook, void* data);
};

/// Runs on the JS loop. An exception of onReady becomes an uncaught one, as from any event.
void Doorbell::Handle::callReady() {
  napi_handle_scope scope;
  if (napi_open_handle_scope(env, &scope) != napi_ok) return;
  napi_value target;
  napi_value receiver;
  if (napi_get_reference_value(env, onReady, &target) == napi_ok && target != nullptr &&
      napi_get_global(env, &receiver) == napi_ok) {
    napi_make_callback(env, context, receiver, target, 0, nullptr, nullptr);
    bool pending = false;
    napi_is_exception_pending(env, &pending);
    napi_value error;
    if (pending && napi_get_and_clear_last_exception(env, &error) == napi_ok) napi_fatal_exception(env, error);
  }
  napi_close_handle_scope(env, scope);
}

void Doorbell::Handle::onPoll(uv_poll_t* poll, int, int) {
  auto* handle = static_cast<Handle*>(poll->data);
  char rung[8];
  static_cast<void>(!read(handle->readEnd, rung, sizeof rung));
  // Nothing is due when the sockets were served since it rang: that answered it.
  if (!handle->closing && handle->answered()) handle->callReady();
}

void Doorbell::Handle::onSockets(uv_poll_t* poll, int, int) {
  auto* handle = static_cast<Handle*>(poll->data);
  if (handle->closing) return;
  handle->serve();
  if (handle->answered()) handle->callReady();
}

void Doorbell::Handle::onClosed(uv_handle_t* closed) {
  auto* one = static_cast<Handle*>(closed->data);
  if (--one->open > 0) return;
  std::unique_ptr<Handle> handle(one);
  ::close(handle->readEnd);
  ::close(handle->writeEnd);
  if (!handle->tearingDown) {
    napi_handle_scope scope;
    if (napi_open_handle_scope(handle->env, &scope) == napi_ok) {
      napi_delete_reference(handle->env, handle->onReady);
      napi_async_destroy(handle->env, handle->context);
      napi_close_handle_scope(handle->env, scope);
    }
  }
  napi_remove_async_cleanup_hook(handle->hook);
}

void Doorbell::Handle::onTearDown(napi_async_cleanup_hook_handle, void* data) {
  auto* handle = static_cast<Handle*>(data);
  handle->tearingDown = true;
  if (handle->owner != nullptr) handle->owner->close();
}

Doorbell* Doorbell::make(napi_env env, napi_value onReady, std::function<bool()> answered) {
  uv_loop_s* loop = nullptr;
  check(napi_get_uv_event_loop(env, &loop), "event loop");
  int ends[2];
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) failErrno("pipe2");
  auto handle = std::make_unique<Handle>();
  handle->env = env;
  handle->answered = std::move(answered);
  handle->readEnd = ends[0];
  handle->writeEnd = ends[1];
  napi_value name;
  check(napi_create_string_utf8(env, "cairn", NAPI_AUTO_LENGTH, &name), "name");
  check(napi_create_reference(env, onReady, 1, &handle->onReady), "reference");
  check(napi_async_init(env, nullptr, name, &handle->context), "async context");
  const int result = uv_poll_init(loop, &handle->poll, handle->readEnd);
  if (result != 0) {
    ::close(ends[0]);
    ::close(ends[1]);
    fail(uv_err_name(result), "cannot poll the doorbell");
  }
  handle->poll.data = handle.get();
  uv_poll_start(&handle->poll, UV_READABLE, Handle::onPoll);
  Handle* raw = handle.release();
  raw->owner = new Doorbell(raw);
  check(napi_add_async_cleanup_hook(env, Handle::onTearDown, raw, &raw->hook), "clean-up hook");
  return raw->owner;
}

void Doorbell::watch(int descriptor, std::function<void()> serve) {
  Handle* handle = handle_;
  CAIRN_ASSERT(!handle->watching && !handle->closing, "sockets are watched once");
  const int result = uv_poll_init(handle->poll.loop, &handle->sockets, descriptor);
  if (result != 0) fail(uv_err_name(result), "cannot poll the sockets");
  handle->serve = std::move(serve);
  handle->watching = true;
  handle->open++;
  handle->sockets.data = handle;
  uv_poll_start(&handle->sockets, UV_READABLE, Handle::onSockets);
}

void Doorbell::ring() {
  const char one = 1;
  // A full pipe has rung already.
  static_cast<void>(!write(handle_->writeEnd, &one, 1));
}

void Doorbell::close() {
  Handle* handle = handle_;
  CAIRN_ASSERT(!handle->closing, "a doorbell is closed once");
  handle->closing = true;
  handle->owner = nullptr;
  uv_poll_stop(&handle->poll);
  uv_close(reinterpret_cast<uv_handle_t*>(&handle->poll), Handle::onClosed);
  if (handle->watching) {
    uv_poll_stop(&handle->sockets);
    uv_close(reinterpret_cast<uv_handle_t*>(&handle->sockets), Handle::onClosed);
  }
  delete this;
}

}  // namespace cairn::js
