#include "toucher.h"

#include <algorithm>
#include <cerrno>

#include "populate.h"

namespace cairn {
namespace {

constexpr uint64_t kSliceBytes = 16u << 20;

}  // namespace

void RegionToucher::touch(std::shared_ptr<Region> region, uint32_t task) {
  CAIRN_ASSERT(region != nullptr, "a window to touch");
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    queue_.push_back({std::move(region), task, 0});
  }
  if (!thread_.joinable()) thread_ = startThread([this] { run(); });
  wake_.notify_one();
}

void RegionToucher::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    queue_.clear();
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

bool RegionToucher::step(Work& work) {
  Region& region = *work.region;
  int error = region.closing() ? ECANCELED : 0;
  if (error == 0) {
    const uint64_t bytes = std::min(kSliceBytes, region.sizeBytes() - work.at);
    error = populateRange(region.base() + work.at, bytes);
    work.at += bytes;
  }
  if (error == 0 && work.at < region.sizeBytes()) return true;
  Event event{};
  event.type = kProgress;
  event.id = work.task;
  event.a = error == 0 ? 1 : 0;
  event.b = 1;
  event.c = error == 0 ? kEnded : kFailed;
  event.d = static_cast<uint32_t>(error);
  hub_.push(std::move(event));
  return false;
}

void RegionToucher::run() {
  for (;;) {
    Work work;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (stopping_) return;
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    if (!step(work)) continue;
    std::lock_guard lock(mutex_);
    if (!stopping_) queue_.push_back(std::move(work));
  }
}

}  // namespace cairn
