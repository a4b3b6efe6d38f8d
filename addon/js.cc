// The module: life cycle, transport, regions. With its js_* siblings the only code that sees N-API. Every function checks its arguments before it touches anything native.
//
// Clean-up: the environment hook is registered after the thread-safe function, so it runs before Node
// tears that down; it joins every thread first. So process.exit, worker termination and a plain end all
// take the same path.
#include "js_support.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstring>

namespace cairn::js {

Instance& instanceOf(napi_env env) {
  void* data = nullptr;
  check(napi_get_instance_data(env, &data), "instance");
  CAIRN_ASSERT(data != nullptr, "the instance exists while JS runs");
  return *static_cast<Instance*>(data);
}

void check(napi_status status, const char* what) {
  if (status != napi_ok) throw Failure{"ARGUMENT", std::string("N-API refused: ") + what};
}

void throwFailure(napi_env env, const Failure& failure) {
  bool pending = false;
  napi_is_exception_pending(env, &pending);
  if (!pending) napi_throw_error(env, failure.code.c_str(), failure.message.c_str());
}

napi_value Call::value(size_t index) const {
  if (index >= count_) fail("ARGUMENT", name(index) + " is missing");
  return values_[index];
}

uint32_t Call::toUint32(napi_value value, const std::string& name) const {
  double number = 0;
  const bool isNumber = napi_get_value_double(env, value, &number) == napi_ok;
  if (!isNumber || !(number >= 0) || number > UINT32_MAX || number != std::floor(number)) {
    fail("ARGUMENT", name + " must be an integer from 0 to 4294967295");
  }
  return static_cast<uint32_t>(number);
}

int32_t Call::int32(size_t index) const {
  double number = 0;
  const bool isNumber = napi_get_value_double(env, value(index), &number) == napi_ok;
  if (!isNumber || !(number >= INT32_MIN) || number > INT32_MAX || number != std::floor(number)) {
    fail("ARGUMENT", name(index) + " must be a 32-bit integer");
  }
  return static_cast<int32_t>(number);
}

uint64_t Call::toSize(napi_value value, const std::string& name) const {
  constexpr double kMax = 1ull << 47;
  double number = 0;
  const bool isNumber = napi_get_value_double(env, value, &number) == napi_ok;
  if (!isNumber || !(number >= 0) || number > kMax || number != std::floor(number)) {
    fail("ARGUMENT", name + " must be a number of bytes below 2^47");
  }
  return static_cast<uint64_t>(number);
}

bool Call::boolean(size_t index) const {
  bool result = false;
  if (napi_get_value_bool(env, value(index), &result) != napi_ok) {
    fail("ARGUMENT", name(index) + " must be a boolean");
  }
  return result;
}

std::string Call::string(size_t index) const { return toString(value(index), name(index)); }

std::string Call::toString(napi_value value, const std::string& name) const {
  char text[4097];
  size_t length = 0;
  if (napi_get_value_string_utf8(env, value, text, sizeof text, &length) != napi_ok) {
    fail("ARGUMENT", name + " must be a string");
  }
  if (length >= sizeof text - 1) fail("ARGUMENT", name + " is longer than 4095 bytes");
  if (memchr(text, 0, length) != nullptr) fail("ARGUMENT", name + " contains a zero byte");
  return std::string(text, length);
}

napi_value Call::function(size_t index) const {
  napi_valuetype type = napi_undefined;
  check(napi_typeof(env, value(index), &type), "typeof");
  if (type != napi_function) fail("ARGUMENT", name(index) + " must be a function");
  return values_[index];
}

Call::View Call::typedArray(napi_value value, napi_typedarray_type type, const std::string& name) const {
  bool is = false;
  napi_typedarray_type actual = napi_int8_array;
  View view{nullptr, 0};
  if (napi_is_typedarray(env, value, &is) == napi_ok && is) {
    check(napi_get_typedarray_info(env, value, &actual, &view.length, &view.data, nullptr, nullptr), "array");
  }
  if (!is || actual != type) fail("ARGUMENT", name + " is not the typed array it must be");
  return view;
}

Call::Bytes Call::toBytes(napi_value value, const std::string& name) const {
  const View view = typedArray(value, napi_uint8_array, name);
  return {static_cast<uint8_t*>(view.data), view.length};
}

napi_value Call::field(napi_value object, const char* key) const {
  napi_valuetype type = napi_undefined;
  check(napi_typeof(env, object, &type), "typeof");
  if (type != napi_object) fail("ARGUMENT", std::string("expected an object with ") + key);
  napi_value value;
  check(napi_get_named_property(env, object, key, &value), key);
  return value;
}

napi_value Call::number(double value) const {
  napi_value result;
  check(napi_create_double(env, value, &result), "number");
  return result;
}

napi_value Call::boolean(bool value, std::nullptr_t) const {
  napi_value result;
  check(napi_get_boolean(env, value, &result), "boolean");
  return result;
}

napi_value Call::object() const {
  napi_value result;
  check(napi_create_object(env, &result), "object");
  return result;
}

void Call::set(napi_value object, const char* key, napi_value value) const {
  check(napi_set_named_property(env, object, key, value), key);
}

napi_value Call::copyOf(const uint8_t* bytes, size_t length) const {
  void* data = nullptr;
  napi_value buffer;
  napi_value view;
  check(napi_create_arraybuffer(env, length, &data, &buffer), "array buffer");
  if (length > 0) memcpy(data, bytes, length);
  check(napi_create_typedarray(env, napi_uint8_array, length, buffer, 0, &view), "view");
  return view;
}

void addMethod(napi_env env, napi_value exports, const char* name, Method method) {
  napi_value function;
  check(napi_create_function(env, name, NAPI_AUTO_LENGTH, method, nullptr, &function), name);
  check(napi_set_named_property(env, exports, name, function), name);
}

// ---- batches --------------------------------------------------------------------------------------------

BatchItems batchItems(const Call& call) {
  const auto words = call.words(1);
  const uint32_t count = call.uint32(2);
  if (count == 0 || uint64_t{count} * kBatchItemWords > words.length) {
    fail("ARGUMENT", "count does not fit the items");
  }
  if (count > call.instance().statusBytes) fail("ARGUMENT", "count is more than the status array holds");
  return {words.data, count};
}

std::shared_ptr<Region> batchRegion(const Call& call, napi_value object) {
  const auto& regions = call.instance().regions;
  const auto found = regions.find(call.fieldUint32(object, "region"));
  return found == regions.end() ? nullptr : found->second;
}

uint8_t* itemRange(const Region& region, const uint32_t* words, uint64_t bytes) {
  const uint64_t offset = uint64_t{words[2]} << 32 | words[1];
  return region.contains(offset, bytes) ? region.base() + offset : nullptr;
}

// ---- the instance ---------------------------------------------------------------------------------------

std::shared_ptr<Arena> Instance::arena(uint32_t id) const {
  const auto found = arenas.find(id);
  if (found == arenas.end()) fail("CLOSED", "no such arena: " + std::to_string(id));
  return found->second;
}

std::shared_ptr<Region> Instance::region(uint32_t id) const {
  const auto found = regions.find(id);
  if (found == regions.end()) fail("CLOSED", "no such region: " + std::to_string(id));
  return found->second;
}

void Instance::needRunning() const {
  if (!started || stopped) fail("CLOSED", started ? "the addon is stopped" : "start() was not called");
}

void Instance::join(Helper& helper) const {
  helper.thread.join();
  if (helper.keeps != nullptr) napi_delete_reference(env, helper.keeps);
}

void Instance::addHelper(std::thread thread, std::shared_ptr<std::atomic<bool>> done, napi_ref keeps) {
  std::erase_if(helpers, [this](Helper& helper) {
    if (!helper.done->load()) return false;
    join(helper);
    return true;
  });
  helpers.push_back({std::move(thread), std::move(done), keeps});
}

void stopInstance(Instance& instance) {
  if (instance.stopped) return;
  instance.stopped = true;
  instance.stopHelpers.store(true);
  for (Helper& helper : instance.helpers) instance.join(helper);
  instance.helpers.clear();
  // Before the arenas and the hub, which their threads use.
  instance.disks.clear();
  if (instance.toucher != nullptr) instance.toucher->stop();
  if (instance.transport != nullptr) instance.transport->stop();
  if (instance.engine != nullptr) instance.engine->stop();
  instance.regions.clear();
  instance.scans.clear();
  // Not marked clean: an arena is closed in order by arenaClose only.
  instance.arenas.clear();
  if (instance.doorbell != nullptr) instance.doorbell->close();
  instance.doorbell = nullptr;
}

namespace {

void cleanUp(void* data) { stopInstance(*static_cast<Instance*>(data)); }

void destroyInstance(napi_env, void* data, void*) {
  auto* instance = static_cast<Instance*>(data);
  stopInstance(*instance);
  delete instance;
}

void keep(Instance& instance, napi_value value) {
  napi_ref reference;
  check(napi_create_reference(instance.env, value, 1, &reference), "reference");
  instance.kept.push_back(reference);
}

std::vector<uint8_t> optionalBytes(const Call& call, napi_value value, const std::string& name) {
  napi_valuetype type = napi_undefined;
  check(napi_typeof(call.env, value, &type), "typeof");
  if (type == napi_undefined) return {};
  const Call::Bytes bytes = call.toBytes(value, name);
  return std::vector<uint8_t>(bytes.data, bytes.data + bytes.length);
}

/// The frames that say why a connection is closed, by CLOSE_REASON; absent ones stay empty.
void farewells(const Call& call, napi_value object, TransportOptions& options) {
  options.refusal = optionalBytes(call, call.field(object, "refusal"), "refusal");
  napi_value list = call.field(object, "farewells");
  bool isList = false;
  check(napi_is_array(call.env, list, &isList), "farewells");
  if (!isList) return;
  for (uint32_t reason = 0; reason < options.farewells.size(); reason++) {
    napi_value entry;
    check(napi_get_element(call.env, list, reason, &entry), "farewells");
    options.farewells[reason] = optionalBytes(call, entry, "farewells");
  }
}

TransportOptions transportOptions(const Call& call, napi_value object) {
  TransportOptions options{};
  options.frameBodyBytesMax = call.fieldUint32(object, "frameBodyBytesMax");
  options.connectionsMax = call.fieldUint32(object, "connectionsMax");
  options.outboundBytesMax = call.fieldUint32(object, "outboundBytesMax");
  options.frameTimeoutMs = call.fieldUint32(object, "frameTimeoutMs");
  options.helloTimeoutMs = call.fieldUint32(object, "helloTimeoutMs");
  options.magic = call.fieldUint32(object, "magic");
  options.version = call.fieldUint32(object, "version");
  farewells(call, object, options);
  if (options.frameBodyBytesMax > (1u << 30)) fail("ARGUMENT", "frameBodyBytesMax must be at most 1 GiB");
  return options;
}

void makeDoorbell(Instance& instance, napi_value onReady) {
  instance.doorbell = Doorbell::make(instance.env, onReady, [&instance] { return instance.hub->answered(); });
  // After the doorbell: hooks run in reverse order, and the threads that ring it must end before it does.
  check(napi_add_env_cleanup_hook(instance.env, cleanUp, &instance), "clean-up hook");
}

napi_value start(Call& call) {
  Instance& instance = call.instance();
  if (instance.stopped) fail("CLOSED", "the addon was stopped; it starts once per process life");
  if (instance.started) fail("ARGUMENT", "start() was called before");
  napi_value options = call.value(0);
  const uint32_t copyThreads = call.fieldUint32(options, "copyThreads");
  if (copyThreads == 0 || copyThreads > 256) fail("ARGUMENT", "copyThreads must be 1 to 256");
  napi_value inbox = call.field(options, "inbox");
  void* inboxData = nullptr;
  size_t inboxBytes = 0;
  if (napi_get_arraybuffer_info(call.env, inbox, &inboxData, &inboxBytes) != napi_ok || inboxBytes % 8 != 0 ||
      inboxBytes == 0 || inboxBytes > UINT32_MAX) {
    fail("ARGUMENT", "inbox must be an ArrayBuffer of a multiple of 8 bytes, below 4 GiB");
  }
  napi_value events = call.field(options, "events");
  const auto eventView = call.typedArray(events, napi_uint32_array, "events");
  if (eventView.length < kEventWords) fail("ARGUMENT", "events must hold at least one event");
  napi_value statuses = call.field(options, "statuses");
  const auto statusView = call.toBytes(statuses, "statuses");
  if (statusView.length == 0) fail("ARGUMENT", "statuses must not be empty");
  const TransportOptions transport = transportOptions(call, call.field(options, "transport"));
  napi_value onReady = call.field(options, "onReady");
  napi_valuetype type = napi_undefined;
  check(napi_typeof(call.env, onReady, &type), "typeof");
  if (type != napi_function) fail("ARGUMENT", "onReady must be a function");

  instance.events = static_cast<uint32_t*>(eventView.data);
  instance.eventsMax = eventView.length / kEventWords;
  instance.statuses = statusView.data;
  instance.statusBytes = statusView.length;
  instance.ring = std::make_unique<InboxRing>(static_cast<uint8_t*>(inboxData), inboxBytes);
  instance.hub = std::make_unique<EventHub>([&instance] { instance.doorbell->ring(); });
  makeDoorbell(instance, onReady);
  try {
    instance.transport = std::make_unique<Transport>(transport, *instance.ring, *instance.hub);
    instance.doorbell->watch(instance.transport->pollDescriptor(), [&instance] {
      instance.hub->expect();
      instance.transport->serve();
    });
    instance.engine = std::make_unique<CopyEngine>(copyThreads, *instance.hub);
    instance.toucher = std::make_unique<RegionToucher>(*instance.hub);
  } catch (...) {
    stopInstance(instance);
    throw;
  }
  for (napi_value value : {inbox, events, statuses}) keep(instance, value);
  setTimeSlice(kAnswerSliceMicroseconds);
  instance.started = true;
  return call.nothing();
}

napi_value stop(Call& call) {
  stopInstance(call.instance());
  return call.nothing();
}

napi_value poll(Call& call) {
  Instance& instance = call.instance();
  if (!instance.started || instance.stopped) return call.number(0);
  const size_t count = instance.hub->poll(instance.events, instance.eventsMax, instance.statuses,
                                          instance.statusBytes, *instance.ring);
  instance.transport->resume();
  return call.number(static_cast<double>(count));
}

// ---- transport ------------------------------------------------------------------------------------------

napi_value listen(Call& call) {
  Instance& instance = call.instance();
  instance.needRunning();
  const uint32_t mode = call.uint32(1);
  if (mode > 0777) fail("ARGUMENT", "mode must be at most 0777");
  instance.transport->listen(call.string(0), mode, call.uint32(2));
  return call.nothing();
}

napi_value unlisten(Call& call) {
  call.instance().needRunning();
  call.instance().transport->unlisten(call.uint32(0));
  return call.nothing();
}

/// The checked [offset, offset + length) of a byte array.
const uint8_t* slice(const Call::Bytes& from, uint32_t offset, uint32_t length) {
  if (offset > from.length || length > from.length - offset) {
    fail("ARGUMENT", "offset and length lie outside the array");
  }
  return from.data + offset;
}

napi_value send(Call& call) {
  Instance& instance = call.instance();
  if (!instance.started || instance.stopped) return call.boolean(false, nullptr);
  const uint32_t length = call.uint32(3);
  const uint8_t* from = slice(call.bytes(1), call.uint32(2), length);
  if (length == 0) fail("ARGUMENT", "length must be positive");
  return call.boolean(instance.transport->send(call.uint32(0), from, length, call.int32(4)), nullptr);
}

napi_value established(Call& call) {
  call.instance().needRunning();
  call.instance().transport->established(call.uint32(0));
  return call.nothing();
}

napi_value closeConnection(Call& call) {
  call.instance().needRunning();
  const uint32_t reason = call.uint32(1);
  if (reason > static_cast<uint32_t>(CloseReason::kVersion)) fail("ARGUMENT", "no such close reason");
  call.instance().transport->close(call.uint32(0), static_cast<CloseReason>(reason));
  return call.nothing();
}

napi_value closeDescriptor(Call& call) {
  const int32_t fd = call.int32(0);
  if (fd < 0) fail("ARGUMENT", "a descriptor is not negative");
  if (fd <= 2) fail("ARGUMENT", "the standard streams are not ours to close");
  if (::close(fd) != 0) failErrno("close");
  return call.nothing();
}

// ---- regions --------------------------------------------------------------------------------------------

napi_value regionInfo(const Call& call, Instance& instance, std::shared_ptr<Region> region) {
  const uint32_t id = instance.nextRegion++;
  napi_value info = call.object();
  call.set(info, "region", id);
  call.set(info, "sizeBytes", static_cast<double>(region->sizeBytes()));
  instance.regions.emplace(id, std::move(region));
  return info;
}

napi_value regionMap(Call& call) {
  const int32_t fd = call.int32(0);
  if (fd < 0) fail("ARGUMENT", "a descriptor is not negative");
  Descriptor file(fd);
  Instance& instance = call.instance();
  if (instance.stopped) fail("CLOSED", "the addon is stopped");
  return regionInfo(call, instance, Region::map(std::move(file), call.size(1)));
}

napi_value regionCreate(Call& call) {
  Instance& instance = call.instance();
  if (instance.stopped) fail("CLOSED", "the addon is stopped");
  auto [region, file] = Region::create(call.size(0));
  napi_value info = regionInfo(call, instance, std::move(region));
  call.set(info, "descriptor", file.get());
  static_cast<void>(file.release());
  return info;
}

napi_value regionTouch(Call& call) {
  Instance& instance = call.instance();
  instance.needRunning();
  std::shared_ptr<Region> region = instance.region(call.uint32(0));
  instance.toucher->touch(std::move(region), call.uint32(1));
  return call.nothing();
}

napi_value regionUnmap(Call& call) {
  Instance& instance = call.instance();
  const uint32_t id = call.uint32(0);
  instance.region(id)->close();
  instance.regions.erase(id);
  return call.nothing();
}

napi_value regionProve(Call& call) {
  const std::shared_ptr<Region> region = call.instance().region(call.uint32(0));
  return call.boolean(region->prove(call.size(1), call.size(2), call.uint32(3)), nullptr);
}

napi_value counters(Call& call) {
  Instance& instance = call.instance();
  static const TransportCounters kNoTransport;
  static const CopyCounters kNoCopies;
  const TransportCounters& transport = instance.transport ? instance.transport->counters() : kNoTransport;
  const CopyCounters& copies = instance.engine ? instance.engine->counters() : kNoCopies;
  napi_value result = call.object();
  const auto set = [&](const char* key, const std::atomic<uint64_t>& value) {
    call.set(result, key, static_cast<double>(value.load(std::memory_order_relaxed)));
  };
  set("framesReceived", transport.framesReceived);
  set("bytesReceived", transport.bytesReceived);
  set("framesSent", transport.framesSent);
  set("bytesSent", transport.bytesSent);
  set("connections", transport.connections);
  set("connectionsRefused", transport.connectionsRefused);
  set("inboxFullStalls", transport.inboxFullStalls);
  set("copyQueueItems", copies.queueItems);
  set("copyQueueBytes", copies.queueBytes);
  set("bytesStored", copies.bytesStored);
  set("bytesLoaded", copies.bytesLoaded);
  set("copyBusyMicroseconds", copies.busyMicroseconds);
  set("itemsCorrupt", copies.itemsCorrupt);
  set("itemsIdentity", copies.itemsIdentity);
  call.set(result, "faultsInjected", static_cast<double>(instance.faultsInjected));
  return result;
}

void addMethods(napi_env env, napi_value exports) {
  addMethod(env, exports, "start", entry<start>);
  addMethod(env, exports, "stop", entry<stop>);
  addMethod(env, exports, "poll", entry<poll>);
  addMethod(env, exports, "listen", entry<listen>);
  addMethod(env, exports, "unlisten", entry<unlisten>);
  addMethod(env, exports, "send", entry<send>);
  addMethod(env, exports, "established", entry<established>);
  addMethod(env, exports, "closeConnection", entry<closeConnection>);
  addMethod(env, exports, "closeDescriptor", entry<closeDescriptor>);
  addMethod(env, exports, "regionMap", entry<regionMap>);
  addMethod(env, exports, "regionCreate", entry<regionCreate>);
  addMethod(env, exports, "regionTouch", entry<regionTouch>);
  addMethod(env, exports, "regionUnmap", entry<regionUnmap>);
  addMethod(env, exports, "regionProve", entry<regionProve>);
  addMethod(env, exports, "counters", entry<counters>);
}

}  // namespace
}  // namespace cairn::js

extern "C" __attribute__((visibility("default"))) napi_value napi_register_module_v1(napi_env env,
                                                                                       napi_value exports) {
  using namespace cairn::js;
  auto* instance = new Instance();
  instance->env = env;
  if (napi_set_instance_data(env, instance, destroyInstance, nullptr) != napi_ok) {
    delete instance;
    return nullptr;
  }
  try {
    addMethods(env, exports);
    addCopyMethods(env, exports);
    addArenaMethods(env, exports);
    addClientMethods(env, exports);
    addDiskMethods(env, exports);
  } catch (const cairn::Failure& failure) {
    throwFailure(env, failure);
    return nullptr;
  }
  return exports;
}

extern "C" __attribute__((visibility("default"))) int32_t node_api_module_get_api_version_v1() {
  return NAPI_VERSION;
}
