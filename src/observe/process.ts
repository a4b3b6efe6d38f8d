/**
 * What the daemon measures of itself: how late its event loop runs, CPU, memory. The delay is taken by a
 * timer of our own and not by perf_hooks, because it belongs into the same buckets as every other latency.
 */
import { METRIC, type Feed } from "./feed.ts";

const TICK_MS = 20;
const SLOW_EVERY_TICKS = 50;

/** Samples until the returned function is called. The timer does not keep the process alive. */
export function sampleProcess(feed: Feed): () => void {
  let due = performance.now() + TICK_MS;
  let ticks = 0;
  const timer = setInterval(() => {
    const now = performance.now();
    feed.observe(METRIC.eventLoopSeconds, Math.max(0, now - due) / 1_000);
    due = now + TICK_MS;
    ticks += 1;
    if (ticks % SLOW_EVERY_TICKS === 1) sampleUsage(feed);
  }, TICK_MS);
  timer.unref();
  return () => clearInterval(timer);
}

/** CPU and memory of the whole process. */
export function sampleUsage(feed: Feed): void {
  const { user, system } = process.cpuUsage();
  const { heapUsed, rss } = process.memoryUsage();
  feed.set(METRIC.cpuSeconds, (user + system) / 1e6);
  feed.set(METRIC.heapUsedBytes, heapUsed);
  feed.set(METRIC.residentBytes, rss);
}
