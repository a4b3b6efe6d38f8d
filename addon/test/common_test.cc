#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <thread>

#include "../common.h"
#include "check.h"

using namespace cairn;

namespace {

struct Schedule {
  uint32_t size;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  /// Nanoseconds. Kernels before 6.12 tell 0 of ordinary threads.
  uint64_t runtime;
  uint64_t deadline;
  uint64_t period;
};

Schedule scheduleOfThread() {
  Schedule schedule{};
  EXPECT(syscall(SYS_sched_getattr, 0, &schedule, sizeof schedule, 0) == 0);
  return schedule;
}

}  // namespace

TEST("a thread's time slice becomes short where the kernel has that, and its own threads have the kernel's") {
  std::thread([] {
    setTimeSlice(0);
    const Schedule before = scheduleOfThread();
    setTimeSlice(kAnswerSliceMicroseconds);
    const Schedule after = scheduleOfThread();
    EXPECT(after.runtime == (before.runtime == 0 ? 0 : kAnswerSliceMicroseconds * 1000));
    EXPECT(after.policy == before.policy);
    EXPECT(after.nice == before.nice);
    startThread([&] { EXPECT(scheduleOfThread().runtime == before.runtime); }).join();
    // Whoever begins it: Node's own threads, and children.
    if (before.nice >= 0) std::thread([&] { EXPECT(scheduleOfThread().runtime == before.runtime); }).join();
    setTimeSlice(0);
    EXPECT(scheduleOfThread().runtime == before.runtime);
  }).join();
}

TEST("a thread that runs nicely, or in the background, goes on so when its time slice changes") {
  std::thread([] {
    EXPECT(nice(3) != -1);
    const int before = scheduleOfThread().nice;
    EXPECT(before > 0);
    setTimeSlice(kAnswerSliceMicroseconds);
    EXPECT(scheduleOfThread().nice == before);
  }).join();
  std::thread([] {
    const sched_param none{};
    EXPECT(sched_setscheduler(0, SCHED_IDLE, &none) == 0);
    const Schedule before = scheduleOfThread();
    setTimeSlice(kAnswerSliceMicroseconds);
    EXPECT(scheduleOfThread().policy == SCHED_IDLE);
    EXPECT(scheduleOfThread().runtime == before.runtime);
  }).join();
}
