// N-API face of the arena: pool file, slabs, namespaces, scan, pre-touch, and the bench references.
#include <cstring>

#include "bench.h"
#include "js_support.h"
#include "populate.h"

namespace cairn::js {
namespace {

constexpr uint32_t kHelperThreadsMax = 64;

void pushProgress(EventHub& hub, uint32_t task, uint32_t done, uint32_t total, ProgressState state) {
  Event event{};
  event.type = kProgress;
  event.id = task;
  event.a = done;
  event.b = total;
  event.c = state;
  hub.push(std::move(event));
}

/// Reports at most about a hundred steps of a long task.
auto progressReporter(EventHub& hub, uint32_t task) {
  return [&hub, task](uint32_t done, uint32_t total) {
    const uint32_t step = total / 100 + 1;
    if (done % step == 0 && done < total) pushProgress(hub, task, done, total, kRunning);
  };
}

uint32_t threadsArgument(const Call& call, size_t index) {
  const uint32_t threads = call.uint32(index);
  if (threads == 0 || threads > kHelperThreadsMax) fail("ARGUMENT", "threads must be 1 to 64");
  return threads;
}

/// The optional list of NUMA nodes to spread pages over.
void interleaveNodes(const Call& call, napi_value object, Arena::Options& options) {
  napi_value list = call.field(object, "interleaveNodes");
  bool isList = false;
  check(napi_is_array(call.env, list, &isList), "interleaveNodes");
  if (!isList) return;
  uint32_t count = 0;
  check(napi_get_array_length(call.env, list, &count), "interleaveNodes");
  for (uint32_t i = 0; i < count; i++) {
    napi_value entry;
    check(napi_get_element(call.env, list, i, &entry), "interleaveNodes");
    const uint32_t node = call.toUint32(entry, "interleaveNodes");
    if (node >= kNumaNodesMax) fail("ARGUMENT", "a NUMA node must be below 1024");
    options.interleaveNodes.push_back(node);
  }
}

napi_value arenaOpen(Call& call) {
  Instance& instance = call.instance();
  if (instance.stopped) fail("CLOSED", "the addon is stopped");
  napi_value object = call.value(0);
  Arena::Options options{};
  options.path = call.fieldString(object, "path");
  options.slabBytes = call.fieldSize(object, "slabBytes");
  options.slabs = call.fieldUint32(object, "slabs");
  double node = -1;
  check(napi_get_value_double(call.env, call.field(object, "numaNode"), &node), "numaNode");
  if (!(node >= -1) || node > 1023) fail("ARGUMENT", "numaNode must be -1 to 1023");
  options.numaNode = static_cast<int>(node);
  check(napi_get_value_bool(call.env, call.field(object, "hugePages"), &options.hugePages), "hugePages");
  interleaveNodes(call, object, options);
  const std::shared_ptr<Arena> arena = Arena::open(options);
  const uint32_t id = instance.nextArena++;
  instance.arenas.emplace(id, arena);
  napi_value info = call.object();
  call.set(info, "arena", id);
  call.set(info, "reopened", call.boolean(arena->reopened(), nullptr));
  call.set(info, "clean", call.boolean(arena->clean(), nullptr));
  call.set(info, "slabs", arena->slabs());
  call.set(info, "slabBytes", static_cast<double>(arena->slabBytes()));
  call.set(info, "numaPolicySet", call.boolean(arena->numaPolicySet(), nullptr));
  return info;
}

napi_value arenaClose(Call& call) {
  Instance& instance = call.instance();
  const uint32_t id = call.uint32(0);
  instance.arena(id)->close(call.boolean(1));
  instance.scans.erase(id);
  instance.arenas.erase(id);
  return call.nothing();
}

/// One of an arena's counts, raised while this lives or until release(): also given back when no thread can be had.
class CountHeld {
 public:
  CountHeld(std::shared_ptr<Arena> arena, std::atomic<uint32_t>& count) : arena_(std::move(arena)), count_(&count) {
    count_->fetch_add(1);
  }
  ~CountHeld() { release(); }
  CountHeld(const CountHeld&) = delete;
  CountHeld& operator=(const CountHeld&) = delete;
  void release() {
    if (count_ != nullptr) count_->fetch_sub(1);
    count_ = nullptr;
  }

 private:
  const std::shared_ptr<Arena> arena_;
  std::atomic<uint32_t>* count_;
};

napi_value arenaPopulate(Call& call) {
  Instance& instance = call.instance();
  instance.needRunning();
  const std::shared_ptr<Arena> arena = instance.arena(call.uint32(0));
  const uint32_t from = call.uint32(1);
  const uint32_t to = call.uint32(2);
  const uint32_t threads = threadsArgument(call, 3);
  const uint32_t task = call.uint32(4);
  if (from > to || to > arena->slabs()) fail("ARGUMENT", "slabs are out of range");
  const auto held = std::make_shared<CountHeld>(arena, arena->helpers());
  auto done = std::make_shared<std::atomic<bool>>(false);
  instance.addHelper(startThread([&instance, arena, from, to, threads, task, held, done] {
    EventHub& hub = *instance.hub;
    const int error =
        populateArena(*arena, from, to, threads, instance.stopHelpers, progressReporter(hub, task));
    held->release();
    pushProgress(hub, task, error == 0 ? to - from : 0, to - from, error == 0 ? kEnded : kFailed);
    done->store(true);
  }), done);
  return call.nothing();
}

napi_value arenaScan(Call& call) {
  Instance& instance = call.instance();
  instance.needRunning();
  const uint32_t id = call.uint32(0);
  const std::shared_ptr<Arena> arena = instance.arena(id);
  const uint32_t threads = threadsArgument(call, 1);
  const uint32_t task = call.uint32(2);
  if (arena->scans().load() != 0) fail("BUSY", "the arena is being scanned");
  auto state = std::make_shared<ScanState>();
  instance.scans[id] = state;
  const auto held = std::make_shared<CountHeld>(arena, arena->helpers());
  const auto scanning = std::make_shared<CountHeld>(arena, arena->scans());
  auto done = std::make_shared<std::atomic<bool>>(false);
  instance.addHelper(startThread([&instance, arena, threads, task, state, held, scanning, done] {
    EventHub& hub = *instance.hub;
    state->result = scanArena(*arena, threads, instance.stopHelpers, progressReporter(hub, task));
    const auto valid = static_cast<uint32_t>(state->result.entries.size());
    const auto total = static_cast<uint32_t>(valid + state->result.invalid);
    state->ended.store(true);
    scanning->release();
    held->release();
    pushProgress(hub, task, valid, total, kEnded);
    done->store(true);
  }), done);
  return call.nothing();
}

napi_value arenaScanRead(Call& call) {
  Instance& instance = call.instance();
  const uint32_t id = call.uint32(0);
  const std::shared_ptr<Arena> arena = instance.arena(id);
  const auto into = call.words(1);
  const auto found = instance.scans.find(id);
  if (found == instance.scans.end() || !found->second->ended.load()) {
    fail("ARGUMENT", "no scan of this arena has ended");
  }
  if (into.length < kScanWords) fail("ARGUMENT", "the array holds no header");
  const size_t count = found->second->result.read(*arena, into.data, into.length / kScanWords);
  if (count == 0) instance.scans.erase(found);
  return call.number(static_cast<double>(count));
}

napi_value arenaSlabs(Call& call) {
  const std::shared_ptr<Arena> arena = call.instance().arena(call.uint32(0));
  napi_value list;
  check(napi_create_array_with_length(call.env, arena->slabs(), &list), "array");
  for (uint32_t i = 0; i < arena->slabs(); i++) {
    napi_value entry = call.object();
    call.set(entry, "slab", i);
    call.set(entry, "payloadBytes", arena->slab(i).payloadBytes);
    call.set(entry, "slots", arena->slab(i).slots);
    check(napi_set_element(call.env, list, i, entry), "element");
  }
  return list;
}

napi_value arenaAssign(Call& call) {
  return call.number(call.instance().arena(call.uint32(0))->assign(call.uint32(1), call.uint32(2)));
}

napi_value arenaRelease(Call& call) {
  call.instance().arena(call.uint32(0))->release(call.uint32(1));
  return call.nothing();
}

napi_value arenaSlotsPerSlab(Call& call) { return call.number(slotsPerSlab(call.size(0), call.uint32(1))); }

napi_value arenaResize(Call& call) {
  call.instance().arena(call.uint32(0))->resize(call.uint32(1));
  return call.nothing();
}

napi_value arenaNamespaces(Call& call) {
  const std::shared_ptr<Arena> arena = call.instance().arena(call.uint32(0));
  napi_value list;
  check(napi_create_array(call.env, &list), "array");
  uint32_t count = 0;
  for (uint32_t i = 0; i < kNamespacesMax; i++) {
    const ArenaNamespace& ns = arena->namespaces()[i];
    if (!ns.used) continue;
    napi_value entry = call.object();
    call.set(entry, "index", i);
    call.set(entry, "digest", call.copyOf(ns.digest, kDigestBytes));
    call.set(entry, "descriptor", call.copyOf(ns.descriptor.data(), ns.descriptor.size()));
    check(napi_set_element(call.env, list, count++, entry), "element");
  }
  return list;
}

napi_value arenaPutNamespace(Call& call) {
  const auto digest = call.bytes(2);
  const auto descriptor = call.bytes(3);
  if (digest.length != kDigestBytes) fail("ARGUMENT", "a digest has 16 bytes");
  call.instance().arena(call.uint32(0))->putNamespace(call.uint32(1), digest.data, descriptor.data,
                                                      descriptor.length);
  return call.nothing();
}

SlotHeader& headerOf(const Arena& arena, uint32_t slot) {
  if (!arena.slotExists(slot)) fail("ARGUMENT", "no such slot: " + std::to_string(slot));
  return *arena.header(slot);
}

napi_value arenaInvalidate(Call& call) {
  const std::shared_ptr<Arena> arena = call.instance().arena(call.uint32(0));
  const auto slots = call.words(1);
  const uint32_t count = call.uint32(2);
  if (count > slots.length) fail("ARGUMENT", "count does not fit the slots");
  for (uint32_t i = 0; i < count; i++) setSlotState(headerOf(*arena, slots.data[i]), kSlotFree);
  return call.nothing();
}

napi_value arenaTouch(Call& call) {
  const std::shared_ptr<Arena> arena = call.instance().arena(call.uint32(0));
  const auto slots = call.words(1);
  const auto times = call.doubles(2);
  const uint32_t count = call.uint32(3);
  if (count > slots.length || count > times.length) fail("ARGUMENT", "count does not fit the arrays");
  for (uint32_t i = 0; i < count; i++) {
    const double time = times.data[i];
    if (!(time >= 0) || time > 9e15) fail("ARGUMENT", "last access must be milliseconds of Unix time");
    headerOf(*arena, slots.data[i]).lastAccess = static_cast<uint64_t>(time);
  }
  return call.nothing();
}

napi_value arenaFlipBit(Call& call) {
  Instance& instance = call.instance();
  const std::shared_ptr<Arena> arena = instance.arena(call.uint32(0));
  const uint32_t slot = call.uint32(1);
  const SlotHeader& header = headerOf(*arena, slot);
  const uint32_t bit = call.uint32(2);
  const uint32_t bytes = arena->slab(slot >> kSlotIndexBits).payloadBytes;
  static_cast<void>(header);
  if (bit / 8 >= bytes) fail("ARGUMENT", "the bit lies outside the payload");
  arena->payload(slot)[bit / 8] ^= static_cast<uint8_t>(1u << (bit % 8));
  instance.faultsInjected++;
  return call.nothing();
}

napi_value benchMemcpy(Call& call) {
  const std::vector<double> rates =
      benchMemcpyRates(call.size(0), call.size(1), call.uint32(2), call.boolean(3));
  napi_value list;
  check(napi_create_array_with_length(call.env, rates.size(), &list), "array");
  for (uint32_t i = 0; i < rates.size(); i++) {
    check(napi_set_element(call.env, list, i, call.number(rates[i])), "element");
  }
  return list;
}

napi_value benchRoundTrips(Call& call) {
  const auto hello = call.bytes(1);
  const auto request = call.bytes(2);
  const std::vector<double> times =
      benchRoundTripMicroseconds(call.string(0), {hello.data, hello.data + hello.length},
                                 {request.data, request.data + request.length}, call.uint32(3), call.uint32(4));
  void* data = nullptr;
  napi_value buffer;
  napi_value view;
  check(napi_create_arraybuffer(call.env, times.size() * sizeof(double), &data, &buffer), "array buffer");
  if (!times.empty()) memcpy(data, times.data(), times.size() * sizeof(double));
  check(napi_create_typedarray(call.env, napi_float64_array, times.size(), buffer, 0, &view), "view");
  return view;
}

napi_value benchEcho(Call& call) {
  benchEchoServe(call.string(0), call.uint32(1), call.uint32(2));
  return call.nothing();
}

}  // namespace

void addArenaMethods(napi_env env, napi_value exports) {
  addMethod(env, exports, "arenaOpen", entry<arenaOpen>);
  addMethod(env, exports, "arenaClose", entry<arenaClose>);
  addMethod(env, exports, "arenaPopulate", entry<arenaPopulate>);
  addMethod(env, exports, "arenaScan", entry<arenaScan>);
  addMethod(env, exports, "arenaScanRead", entry<arenaScanRead>);
  addMethod(env, exports, "arenaSlabs", entry<arenaSlabs>);
  addMethod(env, exports, "arenaAssign", entry<arenaAssign>);
  addMethod(env, exports, "arenaRelease", entry<arenaRelease>);
  addMethod(env, exports, "arenaSlotsPerSlab", entry<arenaSlotsPerSlab>);
  addMethod(env, exports, "arenaResize", entry<arenaResize>);
  addMethod(env, exports, "arenaNamespaces", entry<arenaNamespaces>);
  addMethod(env, exports, "arenaPutNamespace", entry<arenaPutNamespace>);
  addMethod(env, exports, "arenaInvalidate", entry<arenaInvalidate>);
  addMethod(env, exports, "arenaTouch", entry<arenaTouch>);
  addMethod(env, exports, "arenaFlipBit", entry<arenaFlipBit>);
  addMethod(env, exports, "benchMemcpy", entry<benchMemcpy>);
  addMethod(env, exports, "benchRoundTrips", entry<benchRoundTrips>);
  addMethod(env, exports, "benchEcho", entry<benchEcho>);
}

}  // namespace cairn::js
