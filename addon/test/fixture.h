// Helpers of the C++ tests: a directory that goes away, slots filled as a STORE fills them, an event pump.
#pragma once

#include <stdlib.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "../arena.h"
#include "../events.h"

namespace cairn::test {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    char name[] = "/tmp/cairn-test-XXXXXX";
    path_ = mkdtemp(name);
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  std::string file(const char* name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// Compares bytes with a golden file of 32 bytes a line; prints what it should say when they differ.
inline bool goldenHolds(const char* path, const uint8_t* bytes, size_t count) {
  std::string hex;
  for (size_t i = 0; i < count; i++) {
    char pair[3];
    snprintf(pair, sizeof pair, "%02x", bytes[i]);
    hex += pair;
    if (i % 32 == 31 || i + 1 == count) hex += '\n';
  }
  std::string golden;
  if (FILE* file = fopen(path, "r")) {
    char piece[1024];
    for (size_t got = 0; (got = fread(piece, 1, sizeof piece, file)) > 0;) golden.append(piece, got);
    fclose(file);
  }
  if (golden != hex) printf("%s should be:\n%s", path, hex.c_str());
  return golden == hex;
}

/// Writes a valid block of namespace 0 into a slot, in the order a STORE does.
inline void fillSlot(Arena& arena, uint32_t slot, uint32_t generation, uint32_t depth) {
  SlotHeader& header = *arena.header(slot);
  setSlotState(header, kSlotFree);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const uint32_t bytes = arena.slab(slot >> kSlotIndexBits).payloadBytes;
  const std::vector<uint8_t> payload(bytes, static_cast<uint8_t>(generation * 31 + slot));
  header.payloadHash = copyAndHash(arena.payload(slot), payload.data(), bytes);
  header.magic = kHeaderMagic;
  header.namespaceIndex = 0;
  header.depth = depth;
  header.shard = 1 << 16;
  header.generation = generation;
  header.length = bytes;
  header.version = kHeaderVersion;
  header.lastAccess = 1;
  memset(header.key, static_cast<int>(slot + 1), kKeyBytes);
  header.headerHash = headerHash(header, arena.namespaces()[0].seed);
  setSlotState(header, kSlotValid);
}

/// An event hub whose events a test can wait for, as JS would poll them.
class EventPump {
 public:
  explicit EventPump(size_t inboxBytes = 1 << 20)
      : inbox(inboxBytes), ring(inbox.data(), inboxBytes), hub([this] {
          std::lock_guard lock(mutex_);
          rung_ = true;
          wake_.notify_all();
        }) {}

  struct Words {
    uint32_t type, id, offset, length, a, b, c, d;
  };

  /// Waits up to five seconds for events; each is handed to `onEvent` while its bytes are valid.
  bool pump(const std::function<void(const Words&)>& onEvent) {
    {
      std::unique_lock lock(mutex_);
      if (!wake_.wait_for(lock, std::chrono::seconds(5), [this] { return rung_; })) return false;
      rung_ = false;
    }
    hub.answered();
    Words events[4];
    const size_t count = hub.poll(reinterpret_cast<uint32_t*>(events), 4, statuses, sizeof statuses, ring);
    if (afterPoll) afterPoll();
    for (size_t i = 0; i < count; i++) onEvent(events[i]);
    return true;
  }

  /// Pumps until `done` says so; false after five silent seconds.
  bool until(const std::function<bool()>& done, const std::function<void(const Words&)>& onEvent) {
    while (!done()) {
      if (!pump(onEvent)) return done();
    }
    return true;
  }

  std::vector<uint8_t> inbox;
  uint8_t statuses[4096];
  InboxRing ring;
  EventHub hub;
  std::function<void()> afterPoll;

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  bool rung_ = false;
};

}  // namespace cairn::test
