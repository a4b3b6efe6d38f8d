// Touches windows before they serve, on one thread of its own, so that a window of many GiB keeps neither JS
// nor a copy thread waiting. Windows take turns slice by slice: a small one does not wait for a large one.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "events.h"
#include "region.h"

namespace cairn {

/// Outcome word of a PROGRESS event.
enum ProgressState : uint32_t { kRunning = 0, kEnded = 1, kFailed = 2 };

class RegionToucher {
 public:
  explicit RegionToucher(EventHub& hub) : hub_(hub) {}
  ~RegionToucher() { stop(); }

  /// One PROGRESS event under `task` follows: ended, or failed with an errno in `d` (ECANCELED: it was unmapped).
  void touch(std::shared_ptr<Region> region, uint32_t task);
  /// Ends the thread; what was not touched gets no event. Idempotent.
  void stop();

 private:
  struct Work {
    std::shared_ptr<Region> region;
    uint32_t task;
    uint64_t at;
  };
  void run();
  /// True when it wants another turn.
  bool step(Work& work);

  EventHub& hub_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Work> queue_;  // guarded by mutex_
  bool stopping_ = false;   // guarded by mutex_
  std::thread thread_;      // JS thread
};

}  // namespace cairn
