#include <cstring>
#include <deque>
#include <random>
#include <thread>
#include <vector>

#include "../ring.h"
#include "check.h"
#include "fixture.h"

using namespace cairn;
using namespace cairn::test;

TEST("frames in the ring never overlap, stay contiguous and wrap around") {
  std::vector<uint8_t> bytes(1024);
  InboxRing ring(bytes.data(), bytes.size());
  struct Live {
    uint32_t offset;
    size_t length;
    uint64_t end;
    uint8_t mark;
  };
  std::deque<Live> live;
  std::mt19937 random(5);
  size_t wraps = 0;
  size_t full = 0;
  uint32_t last = 0;
  for (int i = 0; i < 20'000; i++) {
    const size_t length = 1 + random() % 512;
    const InboxRing::Space space = ring.allocate(length);
    if (space.at == nullptr) {
      full++;
      // An empty ring takes any frame of up to half its size.
      REQUIRE(!live.empty());
      const Live& oldest = live.front();
      for (size_t at = 0; at < oldest.length; at++) REQUIRE(bytes[oldest.offset + at] == oldest.mark);
      ring.release(oldest.end);
      live.pop_front();
      continue;
    }
    EXPECT(space.offset % 8 == 0 && space.offset + length <= bytes.size());
    wraps += space.offset < last;
    last = space.offset;
    memset(space.at, i & 0xff, length);
    live.push_back({space.offset, length, space.end, static_cast<uint8_t>(i)});
  }
  EXPECT(wraps > 100 && full > 100);
}

TEST("events come out in order, in several polls when the array is small, and ring once more for the rest") {
  EventPump pump;
  for (uint32_t i = 0; i < 11; i++) {
    Event event{};
    event.type = kProgress;
    event.id = i;
    pump.hub.push(std::move(event));
  }
  uint32_t next = 0;
  EXPECT(pump.until([&] { return next == 11; }, [&](const EventPump::Words& event) { EXPECT(event.id == next++); }));
  EXPECT(pump.hub.pending() == 0);
}

TEST("events of many threads all arrive, each thread's in order") {
  EventPump pump;
  std::vector<std::thread> threads;
  constexpr uint32_t kEach = 2000;
  for (uint32_t who = 0; who < 3; who++) {
    threads.emplace_back([&pump, who] {
      for (uint32_t i = 0; i < kEach; i++) {
        Event event{};
        event.type = kProgress;
        event.id = who;
        event.a = i;
        pump.hub.push(std::move(event));
      }
    });
  }
  uint32_t seen[3] = {};
  uint32_t total = 0;
  EXPECT(pump.until([&] { return total == 3 * kEach; },
                    [&](const EventPump::Words& event) {
                      EXPECT(event.a == seen[event.id]++);
                      total++;
                    }));
  for (std::thread& thread : threads) thread.join();
  EXPECT(total == 3 * kEach);
}
