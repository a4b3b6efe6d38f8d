// N-API face of the client: a socket polled on the JS loop, and memfd windows as ArrayBuffers.
//
// Life of a handle: opened → (closing) → closed. Every way out goes through beginClose: the poll stops, the
// socket closes at once, and uv_close calls back later; only then JS hears onClose and the handle is freed.
// At environment clean-up the same path runs without calling JS; Node waits for it.
#include <sys/mman.h>
#include <uv.h>

#include <cstring>

#include "client.h"
#include "js_support.h"
#include "region.h"

namespace cairn::js {
namespace {

constexpr size_t kReceiveBytes = 256 * 1024;
constexpr uint64_t kArrayBufferBytesMax = 1ull << 32;

struct Client {
  napi_env env;
  uint32_t id;
  std::unique_ptr<ClientSocket> socket;
  uv_poll_t poll;
  napi_async_context context = nullptr;
  napi_async_cleanup_hook_handle hook = nullptr;
  napi_ref onFrame = nullptr;
  napi_ref onClose = nullptr;
  napi_ref buffer = nullptr;
  bool closing = false;
  bool tearingDown = false;
  int interest = 0;
  std::string reason;
};

/// Clients by number, one table per environment (each runs on its own thread).
thread_local std::map<uint32_t, Client*> clients;
thread_local uint32_t nextClient = 1;

Client* find(uint32_t id) {
  const auto found = clients.find(id);
  return found == clients.end() ? nullptr : found->second;
}

/// Calls into JS from the loop; an exception becomes an uncaught one, as from any event.
void callJs(Client& client, napi_ref function, size_t count, const napi_value* values) {
  napi_value target;
  napi_value receiver;
  if (napi_get_reference_value(client.env, function, &target) != napi_ok || target == nullptr) return;
  if (napi_get_global(client.env, &receiver) != napi_ok) return;
  napi_make_callback(client.env, client.context, receiver, target, count, values, nullptr);
  bool pending = false;
  napi_is_exception_pending(client.env, &pending);
  if (!pending) return;
  napi_value error;
  if (napi_get_and_clear_last_exception(client.env, &error) == napi_ok) napi_fatal_exception(client.env, error);
}

class Scope {
 public:
  explicit Scope(napi_env env) : env_(env) { napi_open_handle_scope(env, &scope_); }
  ~Scope() { napi_close_handle_scope(env_, scope_); }
  Scope(const Scope&) = delete;

 private:
  napi_env env_;
  napi_handle_scope scope_ = nullptr;
};

void onClosed(uv_handle_t* handle) {
  std::unique_ptr<Client> client(static_cast<Client*>(handle->data));
  if (!client->tearingDown) {
    const Scope scope(client->env);
    napi_value reason;
    napi_create_string_utf8(client->env, client->reason.c_str(), NAPI_AUTO_LENGTH, &reason);
    callJs(*client, client->onClose, 1, &reason);
    for (napi_ref reference : {client->onFrame, client->onClose, client->buffer}) {
      napi_delete_reference(client->env, reference);
    }
    napi_async_destroy(client->env, client->context);
  }
  napi_remove_async_cleanup_hook(client->hook);
}

void beginClose(Client& client, const std::string& reason) {
  if (client.closing) return;
  client.closing = true;
  client.reason = reason;
  clients.erase(client.id);
  uv_poll_stop(&client.poll);
  uv_close(reinterpret_cast<uv_handle_t*>(&client.poll), onClosed);
  client.socket->close();
}

void onTearDown(napi_async_cleanup_hook_handle, void* data) {
  auto* client = static_cast<Client*>(data);
  client->tearingDown = true;
  beginClose(*client, "LOCAL");
}

/// A receive buffer of this size that JS can see.
void makeBuffer(Client& client, size_t bytes) {
  void* data = nullptr;
  napi_value buffer;
  napi_ref reference;
  check(napi_create_arraybuffer(client.env, bytes, &data, &buffer), "receive buffer");
  check(napi_create_reference(client.env, buffer, 1, &reference), "reference");
  client.socket->setBuffer(static_cast<uint8_t*>(data), bytes);
  if (client.buffer != nullptr) napi_delete_reference(client.env, client.buffer);
  client.buffer = reference;
}

void deliver(Client& client, const ClientSocket::Frame& frame) {
  const Scope scope(client.env);
  napi_value buffer;
  napi_value values[2];
  if (napi_get_reference_value(client.env, client.buffer, &buffer) != napi_ok) return;
  if (napi_create_typedarray(client.env, napi_uint8_array, frame.length, buffer, frame.offset, &values[0]) != napi_ok) {
    return;
  }
  napi_create_int32(client.env, frame.descriptor, &values[1]);
  callJs(client, client.onFrame, 2, values);
}

void readFrames(Client& client) {
  std::string reason = client.socket->receive();
  std::string bad;
  for (;;) {
    const ClientSocket::Frame frame = client.socket->next(bad);
    if (frame.data == nullptr) break;
    deliver(client, frame);
    if (client.closing) return;
  }
  if (reason.empty()) reason = bad;
  if (!reason.empty()) {
    beginClose(client, reason);
    return;
  }
  client.socket->compact();
  if (client.socket->neededBytes() > kReceiveBytes) {
    const Scope scope(client.env);
    try {
      makeBuffer(client, client.socket->neededBytes() + kReceiveBytes);
    } catch (const Failure&) {
      beginClose(client, "ENOMEM");
    }
  }
}

void onPoll(uv_poll_t* handle, int status, int events);

void updateInterest(Client& client) {
  if (client.closing) return;
  const int wanted = UV_READABLE | (client.socket->hasUnsent() ? UV_WRITABLE : 0);
  if (wanted == client.interest) return;
  client.interest = wanted;
  uv_poll_start(&client.poll, wanted, onPoll);
}

void onPoll(uv_poll_t* handle, int status, int events) {
  auto& client = *static_cast<Client*>(handle->data);
  if (client.closing) return;
  if (status < 0) {
    // libuv calls any error state of the socket EBADF; here it is a peer that died with our bytes unread. What it
    // had sent before comes first.
    readFrames(client);
    beginClose(client, status == UV_EBADF ? "PEER" : uv_err_name(status));
    return;
  }
  if ((events & UV_WRITABLE) != 0 && !client.socket->flush()) {
    beginClose(client, "PEER");
    return;
  }
  if ((events & UV_READABLE) != 0) readFrames(client);
  updateInterest(client);
}

napi_ref reference(napi_env env, napi_value value) {
  napi_ref result;
  check(napi_create_reference(env, value, 1, &result), "reference");
  return result;
}

napi_value clientOpen(Call& call) {
  napi_value onFrame = call.function(1);
  napi_value onClose = call.function(2);
  uv_loop_s* loop = nullptr;
  check(napi_get_uv_event_loop(call.env, &loop), "event loop");
  auto client = std::make_unique<Client>();
  client->env = call.env;
  client->socket = std::make_unique<ClientSocket>(call.string(0));
  makeBuffer(*client, kReceiveBytes);
  client->onFrame = reference(call.env, onFrame);
  client->onClose = reference(call.env, onClose);
  napi_value name;
  check(napi_create_string_utf8(call.env, "cairnClient", NAPI_AUTO_LENGTH, &name), "name");
  check(napi_async_init(call.env, nullptr, name, &client->context), "async context");
  const int result = uv_poll_init(loop, &client->poll, client->socket->descriptor());
  if (result != 0) fail(uv_err_name(result), "cannot poll the socket");
  client->poll.data = client.get();
  client->id = nextClient++;
  // From here on uv and the clean-up hook know the handle: it is freed by onClosed only.
  Client& opened = *client.release();
  clients.emplace(opened.id, &opened);
  if (napi_add_async_cleanup_hook(call.env, onTearDown, &opened, &opened.hook) != napi_ok) {
    CAIRN_ASSERT(false, "the environment takes clean-up hooks");
  }
  updateInterest(opened);
  return call.number(opened.id);
}

napi_value clientSend(Call& call) {
  Client* client = find(call.uint32(0));
  const auto bytes = call.bytes(1);
  const uint32_t offset = call.uint32(2);
  const uint32_t length = call.uint32(3);
  if (offset > bytes.length || length > bytes.length - offset || length == 0) {
    fail("ARGUMENT", "offset and length lie outside the array");
  }
  if (client == nullptr) return call.boolean(false, nullptr);
  const bool taken = client->socket->send(bytes.data + offset, length, call.int32(4));
  updateInterest(*client);
  return call.boolean(taken, nullptr);
}

napi_value clientClose(Call& call) {
  Client* client = find(call.uint32(0));
  if (client != nullptr) beginClose(*client, "LOCAL");
  return call.nothing();
}

struct Window {
  uint8_t* base;
  uint64_t sizeBytes;
};

void unmapWindow(napi_env, void*, void* hint) {
  auto* window = static_cast<Window*>(hint);
  munmap(window->base, window->sizeBytes);
  delete window;
}

napi_value bufferOver(const Call& call, int file, uint64_t sizeBytes, bool huge) {
  if (sizeBytes == 0 || sizeBytes > kArrayBufferBytesMax) fail("ARGUMENT", "a window in JS is at most 4 GiB");
  auto* window = new Window{mapShared(file, sizeBytes, huge), sizeBytes};
  napi_value buffer;
  const napi_status status =
      napi_create_external_arraybuffer(call.env, window->base, sizeBytes, unmapWindow, window, &buffer);
  if (status != napi_ok) {
    unmapWindow(call.env, nullptr, window);
    fail("ENOMEM", "JS cannot hold an array buffer of this size");
  }
  return buffer;
}

napi_value clientMemfd(Call& call) {
  const uint64_t sizeBytes = call.size(0);
  const bool huge = call.boolean(1);
  Descriptor file = makeSealedMemfd("cairn-client-window", sizeBytes);
  napi_value result = call.object();
  call.set(result, "buffer", bufferOver(call, file.get(), sizeBytes, huge));
  call.set(result, "descriptor", file.get());
  static_cast<void>(file.release());
  return result;
}

napi_value clientMap(Call& call) {
  const int32_t fd = call.int32(0);
  if (fd < 0) fail("ARGUMENT", "a descriptor is not negative");
  const uint64_t sizeBytes = call.size(1);
  const off_t actual = lseek(fd, 0, SEEK_END);
  if (actual < 0) failErrno("window descriptor");
  if (static_cast<uint64_t>(actual) < sizeBytes) fail("TOO_SMALL", "the memfd is shorter than the window");
  return bufferOver(call, fd, sizeBytes, false);
}

napi_value clientDetach(Call& call) {
  bool detachable = false;
  if (napi_is_arraybuffer(call.env, call.value(0), &detachable) != napi_ok || !detachable) {
    fail("ARGUMENT", "argument 1 must be an ArrayBuffer");
  }
  check(napi_detach_arraybuffer(call.env, call.value(0)), "detach");
  return call.nothing();
}

}  // namespace

void addClientMethods(napi_env env, napi_value exports) {
  addMethod(env, exports, "clientMemfd", entry<clientMemfd>);
  addMethod(env, exports, "clientMap", entry<clientMap>);
  addMethod(env, exports, "clientDetach", entry<clientDetach>);
  addMethod(env, exports, "clientOpen", entry<clientOpen>);
  addMethod(env, exports, "clientSend", entry<clientSend>);
  addMethod(env, exports, "clientClose", entry<clientClose>);
}

}  // namespace cairn::js
