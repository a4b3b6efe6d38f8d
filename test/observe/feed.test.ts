import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { CLOSE_REASON, ITEM } from "../../addon/binding.ts";
import { STORE_STATUS } from "../../src/engine-api/protocol.ts";
import { TIER_NAMES } from "../../src/ledger/types.ts";
import {
  BUCKET_BOUNDS_SECONDS,
  FEED_BYTES,
  Feed,
  FeedReader,
  METRIC,
  quantile,
} from "../../src/observe/feed.ts";
import {
  CLOSE_LABELS,
  ITEM_LABELS,
  METRICS,
  type MetricRow,
  STORE_STATUS_LABELS,
  TIER_LABELS,
} from "../../src/observe/metrics.ts";

const rows: [string, MetricRow][] = Object.entries(METRICS);

describe("the table of metrics", () => {
  test("no two rows share a Prometheus name", () => {
    const names = rows.map(([, { name }]) => name);
    expect(new Set(names).size).toBe(names.length);
  });

  test("every row is written somewhere", () => {
    const root = new URL("../../src", import.meta.url).pathname;
    const files = readdirSync(root, { recursive: true, encoding: "utf8" }).filter((name) =>
      name.endsWith(".ts"),
    );
    const source = files.map((name) => readFileSync(join(root, name), "utf8")).join("\n");
    const unwritten = rows.filter(([name]) => !new RegExp(`METRIC\\.${name}\\b`).test(source));
    expect(unwritten.map(([name]) => name)).toEqual([]);
  });

  test("names follow the Prometheus conventions", () => {
    for (const [, { name, kind, help }] of rows) {
      expect(name).toMatch(/^cairn_[a-z0-9_]+$/);
      expect(name.endsWith("_total"), name).toBe(kind === "counter");
      if (kind === "histogram") expect(name).toMatch(/_seconds$/);
      expect(help, name).toMatch(/\.$/);
    }
  });

  test("label values stand in the order of the numbers they are written with", () => {
    const snake = (names: Record<string, number>): string[] =>
      Object.entries(names)
        .toSorted(([, left], [, right]) => left - right)
        .map(([name]) => name.toLowerCase());
    expect(STORE_STATUS_LABELS).toEqual(snake(STORE_STATUS));
    expect(CLOSE_LABELS).toEqual(snake(CLOSE_REASON));
    expect(ITEM_LABELS).toEqual(snake(ITEM));
    expect(TIER_LABELS).toEqual(TIER_NAMES);
  });
});

describe("the feed", () => {
  test("what a writer adds in one row changes no other row", () => {
    for (const [name, row] of rows) {
      const feed = new Feed();
      const handle = METRIC[name as keyof typeof METRICS];
      const variants = row.values?.length ?? 1;
      if (row.kind === "histogram") feed.observe(handle, 1_000);
      else for (let index = 0; index < variants; index++) feed.addAt(handle, index, index + 1);
      const reader = new FeedReader(feed.buffer);
      for (const [other, otherRow] of rows) {
        const key = other as keyof typeof METRICS;
        const isSame = other === name;
        if (otherRow.kind === "histogram") {
          expect(reader.histogram(key).count, other).toBe(isSame ? 1 : 0);
        } else {
          expect(reader.value(key), other).toBe(isSame ? (variants * (variants + 1)) / 2 : 0);
        }
      }
    }
  });

  test("a value on a bound falls into the bucket of that bound, the next larger one into the next", () => {
    BUCKET_BOUNDS_SECONDS.forEach((bound, index) => {
      const feed = new Feed();
      feed.observe(METRIC.lookupSeconds, bound);
      feed.observe(METRIC.lookupSeconds, bound * 1.000_001);
      const { buckets, count, sumSeconds } = new FeedReader(feed.buffer).histogram("lookupSeconds");
      expect(buckets[index]).toBe(1);
      expect(buckets[index + 1]).toBe(1);
      expect(count).toBe(2);
      expect(sumSeconds).toBeCloseTo(bound * 2.000_001, 12);
    });
  });

  test("quantiles lie inside the bucket that holds them", () => {
    const feed = new Feed();
    for (let index = 0; index < 99; index++) feed.observe(METRIC.loadSeconds, 0.000_015);
    feed.observe(METRIC.loadSeconds, 0.15);
    const reading = new FeedReader(feed.buffer).histogram("loadSeconds");
    expect(quantile(reading, 0.5)).toBeGreaterThan(0.000_01);
    expect(quantile(reading, 0.5)).toBeLessThanOrEqual(0.000_02);
    expect(quantile(reading, 1)).toBeGreaterThan(0.1);
    expect(quantile(reading, 1)).toBeLessThanOrEqual(0.2);
    expect(quantile({ count: 0, sumSeconds: 0, buckets: [] }, 0.99)).toBe(0);
  });

  test("another thread's view of the same buffer sees the writer's values", () => {
    const feed = new Feed();
    const reader = new FeedReader(feed.buffer);
    feed.set(METRIC.instances, 3);
    feed.add(METRIC.loadedBytes, 2 ** 40);
    expect(reader.value("instances")).toBe(3);
    expect(reader.value("loadedBytes")).toBe(2 ** 40);
  });

  test("a buffer of another layout is refused", () => {
    expect(() => new Feed(new SharedArrayBuffer(FEED_BYTES - 8))).toThrow(/layout/);
    expect(() => new FeedReader(new SharedArrayBuffer(8))).toThrow(/layout/);
  });
});
