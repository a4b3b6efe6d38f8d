import { describe, expect, it } from "vitest";
import { Feed, FeedReader } from "../../src/observe/feed.ts";
import { LINK_LABELS } from "../../src/observe/metrics.ts";
import { LINK, Link, Links } from "../../src/transfer/links.ts";

const PRIOR = { latencyMicroseconds: 200, bytesPerMicrosecond: 1_000 };
const MIB = 1024 * 1024;

class Clock {
  ms = 1_000;
  readonly now = (): number => this.ms;
  pass(microseconds: number): void {
    this.ms += microseconds / 1_000;
  }
}

/** One batch that begins now and takes what a device of this latency and bandwidth takes. */
function batch(clock: Clock, link: Link, bytes: number, latency: number, bandwidth: number): void {
  const began = clock.ms;
  clock.pass(latency + bytes / bandwidth);
  link.ended(bytes, began);
}

describe("a link", () => {
  it("answers with its prior before it has carried anything", () => {
    const link = new Link("a", PRIOR, new Clock().now);
    expect(link.microsecondsFor(1_000_000)).toBeCloseTo(1_200, 6);
    expect(link.microsecondsFor(0)).toBe(0);
    expect(link.quantile(0.5)).toBe(0);
  });

  it("learns latency and bandwidth from batches of different lengths", () => {
    const clock = new Clock();
    const link = new Link("a", PRIOR, clock.now);
    for (let index = 0; index < 400; index++) {
      batch(clock, link, MIB * (1 + (index % 8)), 500, 4_000);
      clock.pass(10_000);
    }
    expect(link.bytesPerMicrosecond).toBeGreaterThan(3_800);
    expect(link.bytesPerMicrosecond).toBeLessThan(4_200);
    expect(link.latencyMicroseconds).toBeGreaterThan(400);
    expect(link.latencyMicroseconds).toBeLessThan(600);
  });

  it("learns bandwidth from batches that are all of one length", () => {
    const clock = new Clock();
    const link = new Link("a", PRIOR, clock.now);
    for (let index = 0; index < 400; index++) {
      batch(clock, link, MIB, 0, 2_000);
      clock.pass(10_000);
    }
    expect(link.microsecondsFor(MIB)).toBeGreaterThan((0.9 * MIB) / 2_000);
    expect(link.microsecondsFor(MIB)).toBeLessThan((1.1 * MIB) / 2_000);
  });

  it("does not take a long queue for a slow device", () => {
    const clock = new Clock();
    const link = new Link("a", PRIOR, clock.now);
    for (let round = 0; round < 100; round++) {
      const began = clock.ms;
      // Sixteen batches go out at once and end one after the other.
      for (let index = 0; index < 16; index++) {
        clock.pass(MIB / 1_000);
        link.ended(MIB, began);
      }
    }
    expect(link.bytesPerMicrosecond).toBeGreaterThan(900);
    expect(link.bytesPerMicrosecond).toBeLessThan(1_100);
    // Who waits in the queue waits all the same: that is what the quantiles say.
    expect(link.quantile(0.99)).toBeGreaterThan((15 * MIB) / 1_000);
  });

  it("follows a device that became slow", () => {
    const clock = new Clock();
    const link = new Link("a", PRIOR, clock.now);
    for (let index = 0; index < 200; index++) batch(clock, link, MIB, 0, 4_000);
    for (let index = 0; index < 200; index++) batch(clock, link, MIB, 0, 100);
    expect(link.microsecondsFor(MIB)).toBeGreaterThan((0.9 * MIB) / 100);
  });

  it("lets its recent rate fall off when nothing goes over it", () => {
    const clock = new Clock();
    const link = new Link("a", PRIOR, clock.now);
    for (let index = 0; index < 100; index++) batch(clock, link, MIB, 0, 1_000);
    const busy = link.recentBytesPerSecond;
    clock.pass(60e6);
    expect(busy).toBeGreaterThan(0);
    expect(link.recentBytesPerSecond).toBeLessThan(busy / 100);
  });
});

describe("the links of a node", () => {
  it("reckon NVMe with the slowest device that was read", () => {
    const clock = new Clock();
    const links = new Links(clock.now);
    const read = (disk: number, bandwidth: number): void => {
      const began = clock.ms;
      clock.pass(MIB / bandwidth);
      links.readEnded(disk, MIB, began);
    };
    for (let index = 0; index < 100; index++) {
      read(0, 3_000);
      read(1, 300);
    }
    expect(links.nvmeToWindow).toBe(links.read(1));
    links.write(0).ended(MIB, clock.ms);
    const names = links.readings().map(({ link }) => link);
    expect(names).toContain("nvme1_to_window");
    expect(names).toContain("dram_to_nvme0");
    expect(new Set(names).size).toBe(names.length);
  });

  it("publish one estimate for each kind of way, under its label", () => {
    const clock = new Clock();
    const links = new Links(clock.now);
    const feed = new Feed();
    const reader = new FeedReader(feed.buffer);
    for (let index = 0; index < 50; index++) {
      const began = clock.ms;
      clock.pass(MIB / 500);
      links.write(1).ended(MIB, began);
    }
    links.publish(feed);
    expect(Object.keys(LINK)).toHaveLength(LINK_LABELS.length);
    expect(reader.value("linkBytesPerSecond", "dram_to_nvme")).toBeGreaterThan(400e6);
    expect(reader.value("linkBytesPerSecond", "dram_to_nvme")).toBeLessThan(600e6);
    // What was never used has no figure.
    expect(reader.value("linkBytesPerSecond", "remote_to_dram")).toBe(0);
  });
});
