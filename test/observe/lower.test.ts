import { expect, test } from "vitest";
import { ITEM } from "../../addon/binding.ts";
import { Digests } from "../../src/edge/digest.ts";
import { buildMetrics } from "../../src/edge/prometheus.ts";
import { Feed, FeedReader, METRIC } from "../../src/observe/feed.ts";
import { type DeviceReading, publishDevices, publishRemote } from "../../src/observe/lower.ts";
import {
  DEVICE_METRICS,
  HEALTH_LABELS,
  ITEM_LABELS,
  REMOTE_OUTCOME_LABELS,
} from "../../src/observe/metrics-lower.ts";
import { HEALTH_STATES } from "../../tiers/nvme/health.ts";
import { FAULT_NAMES } from "../../tiers/remote/object-store.ts";
import { DEVICE, INFO, REMOTE } from "../edge/fixture.ts";

function scraped(feed: Feed, directories: readonly string[] = []): Promise<string> {
  const metrics = buildMetrics(new FeedReader(feed.buffer), INFO);
  metrics.devices(directories);
  return metrics.registry.metrics();
}

test("labels of the lower tiers are the names their owners use", () => {
  expect(HEALTH_LABELS).toEqual(HEALTH_STATES);
  expect(REMOTE_OUTCOME_LABELS).toEqual(["ok", ...FAULT_NAMES]);
  expect(ITEM_LABELS).toHaveLength(Object.keys(ITEM).length);
});

test("a scrape shows as many disks as there were, each figure under its device's number", async () => {
  const feed = new Feed();
  expect(await scraped(feed)).not.toContain("device=");
  const second: DeviceReading = { ...DEVICE, device: 1, health: "fenced", bytesRead: 77 };
  const unrated = { ...second, endurance: { ...DEVICE.endurance, lifeDays: undefined } };
  publishDevices(feed, [DEVICE, unrated]);
  const text = await scraped(feed, ["/mnt/a", '/mnt/"b']);
  expect(text).toContain('cairn_nvme_device_info{device="0",directory="/mnt/a"} 1');
  expect(text).toContain('cairn_nvme_device_info{device="1",directory="/mnt/\\"b"} 1');
  expect(text).toContain('cairn_nvme_read_bytes_total{device="0"} 10');
  expect(text).toContain('cairn_nvme_read_bytes_total{device="1"} 77');
  expect(text).toContain('cairn_nvme_health{device="1"} 3');
  expect(text).toContain('cairn_nvme_life_days{device="0"} 365');
  expect(text).toContain('cairn_nvme_life_days{device="1"} +Inf');
  expect(text).toContain('cairn_nvme_oldest_operation_seconds{device="0"} 2.5');
  expect(text).toContain('cairn_nvme_events_total{event="index_damaged"} 74');
  expect(text).not.toContain('device="2"');
});

test("counters of a disk that left are not taken back, and its room is no longer counted", async () => {
  const feed = new Feed();
  publishDevices(feed, [DEVICE, { ...DEVICE, device: 1 }]);
  publishDevices(feed, [{ ...DEVICE, device: 1 }]);
  const text = await scraped(feed);
  expect(text).toContain('cairn_nvme_read_bytes_total{device="0"} 10');
  expect(text).toContain('cairn_nvme_capacity_bytes{device="0"} 0');
  expect(text).toContain('cairn_nvme_events_total{event="fences"} 86');
});

/** Every number in a tree. */
function numbers(value: unknown): number[] {
  if (typeof value === "number") return [value];
  if (typeof value !== "object" || value === null) return [];
  return Object.values(value).flatMap(numbers);
}

test("every figure of a disk reaches its own row", () => {
  const feed = new Feed();
  publishDevices(feed, [DEVICE]);
  const reader = new FeedReader(feed.buffer);
  const names = Object.keys(DEVICE_METRICS) as (keyof typeof DEVICE_METRICS)[];
  const written = names.map((name) => reader.value(name, "0"));
  const { counters, ...figures } = DEVICE;
  const known = new Set([...numbers(figures), ...numbers(counters), 1, 2.5, 1.75, 1.5]);
  for (const [index, value] of written.entries())
    expect(known.has(value) || value === 0, names[index]).toBe(true);
  const distinct = written.filter((value) => value > 1);
  expect(new Set(distinct).size).toBe(distinct.length);
  expect(distinct).toHaveLength(names.length - 4);
});

test("the remote tier's requests are counted by outcome, its state and traffic are shown", async () => {
  const feed = new Feed();
  publishRemote(feed, REMOTE);
  const text = await scraped(feed);
  expect(text).toContain('cairn_remote_requests_total{outcome="ok"} 5');
  expect(text).toContain('cairn_remote_requests_total{outcome="timeout"} 2');
  expect(text).toContain('cairn_remote_requests_total{outcome="throttled"} 0');
  expect(text).toContain("\ncairn_remote_health 2\n");
  expect(text).toContain("\ncairn_remote_read_only_total 19\n");
  expect(text).toContain("\ncairn_remote_write_probes_failed_total 20\n");
  expect(text).toContain("\ncairn_remote_uploads_waiting 21\n");
  expect(text).toContain("\ncairn_remote_received_bytes_total 100\n");
});

test("a digest has the disks with their rates, and no remote tier where there is none", () => {
  const feed = new Feed();
  const digests = new Digests(new FeedReader(feed.buffer), 0);
  expect(digests.now(1_000)).toMatchObject({ devices: [], remote: null });
  publishDevices(feed, [{ ...DEVICE, bytesRead: 1_000, bytesWritten: 0 }]);
  digests.directories = ["/mnt/a"];
  // A device that came within the window starts at rate 0, whatever it did before.
  expect(digests.tick(1_000).devices[0]?.readBytesPerSecond).toBe(0);
  for (let second = 2; second <= 11; second++) digests.tick(second * 1_000);
  publishDevices(feed, [{ ...DEVICE, bytesRead: 6_000, bytesWritten: 10_000 }]);
  publishRemote(feed, REMOTE);
  feed.observe(METRIC.nvmeReadSeconds, 0.003);
  feed.observe(METRIC.nvmeCommitSeconds, 0.03);
  const { devices, remote, recent } = digests.now(12_000);
  const { nvmeReadSeconds: read, nvmeCommitSeconds: commit } = recent.latencySeconds;
  expect(read?.p99).toBeGreaterThan(0.002);
  expect(read?.p99).toBeLessThanOrEqual(0.005);
  expect(commit?.p50).toBeGreaterThan(0.02);
  // Nothing was written: no data, not zero.
  expect(recent.latencySeconds.nvmeWriteSeconds).toBeNull();
  expect(devices).toHaveLength(1);
  expect(devices[0]).toMatchObject({
    directory: "/mnt/a",
    health: "slow",
    readBytesPerSecond: 500,
    writeBytesPerSecond: 1_000,
    queuedReads: 6,
    lifeDays: 365,
  });
  const expected = { health: "readOnly", waiting: 11, uploadsWaiting: 21 };
  expect(remote).toMatchObject({ ...expected, receivedBytesPerSecond: 10 });
});
