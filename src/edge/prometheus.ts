/** /metrics: the feed and the edge's own counters as one prom-client registry. Values are read at the scrape. */
import { Counter, Gauge, type Metric, Registry } from "prom-client";
import { BUCKET_BOUNDS_SECONDS, type FeedReader } from "../observe/feed.ts";
import { METRICS, type MetricName, type MetricRow } from "../observe/metrics.ts";
import type { NodeInfo } from "./contract.ts";

interface Sample {
  readonly value: number;
  readonly labels: Readonly<Record<string, string | number>>;
  readonly metricName?: string;
}

function plainSamples(feed: FeedReader, name: MetricName, row: MetricRow): Sample[] {
  const { label, values, shown } = row;
  if (label === undefined || values === undefined) return [{ labels: {}, value: feed.value(name) }];
  const there = shown === undefined ? values : values.slice(0, feed.value(shown));
  return there.map((value) => ({ labels: { [label]: value }, value: feed.value(name, value) }));
}

function histogramSamples(feed: FeedReader, name: MetricName, row: MetricRow): Sample[] {
  const reading = feed.histogram(name);
  const samples: Sample[] = [];
  let below = 0;
  reading.buckets.forEach((count, index) => {
    below += count;
    const le = BUCKET_BOUNDS_SECONDS[index] ?? "+Inf";
    samples.push({ metricName: `${row.name}_bucket`, labels: { le }, value: below });
  });
  samples.push({ metricName: `${row.name}_sum`, labels: {}, value: reading.sumSeconds });
  samples.push({ metricName: `${row.name}_count`, labels: {}, value: reading.count });
  return samples;
}

/** A row of the feed in the shape that a prom-client registry asks for at each scrape. */
function feedMetric(feed: FeedReader, name: MetricName): Metric {
  const row: MetricRow = METRICS[name];
  const values = row.kind === "histogram" ? histogramSamples : plainSamples;
  const metric = {
    name: row.name,
    help: row.help,
    type: row.kind,
    aggregator: "sum",
    get: () =>
      Promise.resolve({
        name: row.name,
        help: row.help,
        type: row.kind,
        aggregator: "sum",
        values: values(feed, name, row),
      }),
  };
  return metric as unknown as Metric;
}

export interface EdgeMetrics {
  readonly registry: Registry;
  readonly requests: Counter<"route" | "status">;
  readonly eventClients: Gauge;
  readonly eventClientsCut: Counter;
  readonly logEntriesLost: Counter;
  /** Names the disks behind the device numbers. */
  devices(directories: readonly string[]): void;
}

export function buildMetrics(feed: FeedReader, info: NodeInfo): EdgeMetrics {
  const registry = new Registry();
  for (const name of Object.keys(METRICS) as MetricName[])
    registry.registerMetric(feedMetric(feed, name));
  const registers = [registry];
  const build = new Gauge({
    name: "cairn_build_info",
    help: "1, with the version and node as labels.",
    labelNames: ["version", "node"],
    registers,
  });
  build.set({ version: info.version, node: info.node }, 1);
  const device = new Gauge({
    name: "cairn_nvme_device_info",
    help: "1, with the directory behind each device number.",
    labelNames: ["device", "directory"],
    registers,
  });
  return {
    registry,
    requests: new Counter({
      name: "cairn_edge_requests_total",
      help: "HTTP requests answered, by route and status.",
      labelNames: ["route", "status"],
      registers,
    }),
    eventClients: new Gauge({
      name: "cairn_edge_event_clients",
      help: "Clients of /v1/events.",
      registers,
    }),
    eventClientsCut: new Counter({
      name: "cairn_edge_event_clients_cut_total",
      help: "Clients of /v1/events cut off because they read too slowly.",
      registers,
    }),
    logEntriesLost: new Counter({
      name: "cairn_visibility_log_lost_total",
      help: "Entries of the visibility log that were overwritten before the edge read them.",
      registers,
    }),
    devices: (directories) => {
      device.reset();
      for (const [index, directory] of directories.entries())
        device.set({ device: String(index), directory }, 1);
    },
  };
}
