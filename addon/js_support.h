// What the N-API files share: argument reading with typed errors, the entry wrapper that lets no C++
// exception cross into JS, and the per-environment instance that owns every native thing.
#pragma once

#include <node_api.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "arena.h"
#include "common.h"
#include "copy.h"
#include "disk.h"
#include "events.h"
#include "js_doorbell.h"
#include "region.h"
#include "ring.h"
#include "scan.h"
#include "toucher.h"
#include "transport.h"

namespace cairn::js {

/// The ledger's record table as attachLedger described it.
struct Ledger {
  const uint32_t* records = nullptr;
  size_t words = 0;
  uint32_t recordWords = 0;
  uint32_t keyWord = 0;
  uint32_t parentWord = 0;
  uint32_t depthWord = 0;
  uint32_t depthMask = 0;
  uint32_t namespaceWord = 0;
  uint32_t namespaceMask = 0;
};

/// A scan's result, filled by its helper thread; read by JS once `ended` is set.
struct ScanState {
  ScanResult result;
  std::atomic<bool> ended{false};
};

struct Helper {
  std::thread thread;
  std::shared_ptr<std::atomic<bool>> done;
  /// What the thread uses is not collected before it was joined; nullptr: nothing of JS.
  napi_ref keeps = nullptr;
};

/// One per environment (main thread or worker). Lives from module load to environment clean-up.
struct Instance {
  napi_env env = nullptr;
  bool started = false;
  bool stopped = false;
  Doorbell* doorbell = nullptr;
  std::vector<napi_ref> kept;
  uint32_t* events = nullptr;
  size_t eventsMax = 0;
  uint8_t* statuses = nullptr;
  size_t statusBytes = 0;
  std::unique_ptr<InboxRing> ring;
  std::unique_ptr<EventHub> hub;
  std::unique_ptr<Transport> transport;
  std::unique_ptr<CopyEngine> engine;
  std::unique_ptr<RegionToucher> toucher;
  Ledger ledger;
  napi_ref ledgerRecords = nullptr;
  std::map<uint32_t, std::shared_ptr<Arena>> arenas;
  std::map<uint32_t, std::shared_ptr<ScanState>> scans;
  std::map<uint32_t, std::shared_ptr<Region>> regions;
  std::map<uint32_t, std::unique_ptr<Disk>> disks;
  uint32_t nextArena = 1;
  uint32_t nextRegion = 1;
  uint32_t nextDisk = 1;
  std::atomic<bool> stopHelpers{false};
  std::vector<Helper> helpers;
  uint64_t faultsInjected = 0;

  std::shared_ptr<Arena> arena(uint32_t id) const;
  std::shared_ptr<Region> region(uint32_t id) const;
  /// Throws CLOSED before start() and after stop().
  void needRunning() const;
  void addHelper(std::thread thread, std::shared_ptr<std::atomic<bool>> done, napi_ref keeps = nullptr);
  /// Waits for its end. On the JS thread.
  void join(Helper& helper) const;
};

Instance& instanceOf(napi_env env);
/// Throws Failure when a N-API call failed.
void check(napi_status status, const char* what);
void throwFailure(napi_env env, const Failure& failure);

/// Arguments of one call, read with checks; a wrong one throws ARGUMENT and names its position.
class Call {
 public:
  static constexpr size_t kArgumentsMax = 8;

  Call(napi_env env, napi_callback_info info) : env(env) {
    check(napi_get_cb_info(env, info, &count_, values_, nullptr, nullptr), "arguments");
  }

  Instance& instance() const { return instanceOf(env); }
  napi_value value(size_t index) const;
  uint32_t uint32(size_t index) const { return toUint32(value(index), name(index)); }
  int32_t int32(size_t index) const;
  uint64_t size(size_t index) const { return toSize(value(index), name(index)); }
  bool boolean(size_t index) const;
  std::string string(size_t index) const;
  napi_value function(size_t index) const;

  struct Bytes {
    uint8_t* data;
    size_t length;
  };
  Bytes bytes(size_t index) const { return toBytes(value(index), name(index)); }
  template <class T>
  struct Words {
    T* data;
    size_t length;
  };
  Words<uint32_t> words(size_t index) const {
    const auto view = typedArray(value(index), napi_uint32_array, name(index));
    return {static_cast<uint32_t*>(view.data), view.length};
  }
  Words<double> doubles(size_t index) const {
    const auto view = typedArray(value(index), napi_float64_array, name(index));
    return {static_cast<double*>(view.data), view.length};
  }

  // Fields of an options object.
  napi_value field(napi_value object, const char* key) const;
  uint32_t fieldUint32(napi_value object, const char* key) const { return toUint32(field(object, key), key); }
  uint64_t fieldSize(napi_value object, const char* key) const { return toSize(field(object, key), key); }
  std::string fieldString(napi_value object, const char* key) const { return toString(field(object, key), key); }

  struct View {
    void* data;
    size_t length;
  };
  View typedArray(napi_value value, napi_typedarray_type type, const std::string& name) const;
  Bytes toBytes(napi_value value, const std::string& name) const;
  uint32_t toUint32(napi_value value, const std::string& name) const;
  uint64_t toSize(napi_value value, const std::string& name) const;
  std::string toString(napi_value value, const std::string& name) const;

  // Results.
  napi_value number(double value) const;
  napi_value boolean(bool value, std::nullptr_t) const;
  napi_value object() const;
  void set(napi_value object, const char* key, napi_value value) const;
  void set(napi_value object, const char* key, double value) const { set(object, key, number(value)); }
  napi_value copyOf(const uint8_t* bytes, size_t length) const;
  napi_value nothing() const { return nullptr; }

  const napi_env env;

 private:
  static std::string name(size_t index) { return "argument " + std::to_string(index + 1); }
  size_t count_ = kArgumentsMax;
  napi_value values_[kArgumentsMax] = {};
};

/// Wraps a function body so that failures become JS errors with `code` and nothing else gets out.
template <napi_value (*Body)(Call&)>
napi_value entry(napi_env env, napi_callback_info info) noexcept {
  try {
    Call call(env, info);
    return Body(call);
  } catch (const Failure& failure) {
    throwFailure(env, failure);
  } catch (const std::bad_alloc&) {
    throwFailure(env, Failure{"ENOMEM", "out of memory"});
  } catch (const std::exception& error) {
    throwFailure(env, Failure{"INTERNAL", error.what()});
  }
  return nullptr;
}

using Method = napi_callback;
/// Adds a function to the module's exports.
void addMethod(napi_env env, napi_value exports, const char* name, Method method);

// ---- batches, of copies and of disk items ----

constexpr size_t kBatchItemWords = 5;
struct BatchItems {
  const uint32_t* words;
  uint32_t count;
  const uint32_t* at(uint32_t item) const { return words + item * kBatchItemWords; }
};
/// Arguments 2 and 3: the items' words, their count. Throws ARGUMENT when they do not fit each other or the statuses.
BatchItems batchItems(const Call& call);

/// The fields that options of all batches have; kinds are 1 to `kinds`. Throws ARGUMENT.
template <class Options>
Options batchOptions(const Call& call, napi_value object, uint32_t kinds) {
  Options options{};
  const uint32_t kind = call.fieldUint32(object, "kind");
  if (kind < 1 || kind > kinds) fail("ARGUMENT", "kind must be 1 to " + std::to_string(kinds));
  options.kind = static_cast<decltype(options.kind)>(kind);
  options.id = call.fieldUint32(object, "batch");
  options.shard = call.fieldUint32(object, "shard");
  options.shards = call.fieldUint32(object, "shards");
  options.payloadBytes = call.fieldUint32(object, "payloadBytes");
  options.deadlineMs = call.fieldUint32(object, "deadlineMs");
  if (options.shards == 0 || options.shards > UINT16_MAX || options.shard >= options.shards) {
    fail("ARGUMENT", "shard must be below shards, shards at most 65535");
  }
  if (options.payloadBytes == 0) fail("ARGUMENT", "payloadBytes must be positive");
  return options;
}

/// The region a batch names, nullptr when it is gone: an answer (REGION for every item), not an error, for it raced
/// with an unmap.
std::shared_ptr<Region> batchRegion(const Call& call, napi_value object);
/// Where an item's words 1 and 2 (offset, low word first) point in its region; nullptr when the range lies outside.
uint8_t* itemRange(const Region& region, const uint32_t* words, uint64_t bytes);

/// Throws ARGUMENT for a slot that does not exist or is smaller than the payload.
void checkSlot(const Arena& arena, uint32_t slot, uint32_t payloadBytes);
/// A block's identity from its ledger record. Throws ARGUMENT for a record or namespace that does not exist.
void resolveName(const Ledger& ledger, const Arena& arena, uint32_t block, BlockName& name);

/// Ends threads, connections and mappings of this environment; idempotent.
void stopInstance(Instance& instance);

// Each file's functions.
void addCopyMethods(napi_env env, napi_value exports);
void addArenaMethods(napi_env env, napi_value exports);
void addClientMethods(napi_env env, napi_value exports);
void addDiskMethods(napi_env env, napi_value exports);

}  // namespace cairn::js
