import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DISK, DISK_ITEM_WORDS, ITEM } from "../../addon/binding.ts";
import { NO_BLOCK, STATE, TIER } from "../../src/ledger/types.ts";
import { LIMITS } from "../../src/limits.ts";
import { Feed, FeedReader, METRIC } from "../../src/observe/feed.ts";
import { Copies } from "../../src/transfer/copies.ts";
import { Links } from "../../src/transfer/links.ts";
import { Mover, type MoverLedger } from "../../src/transfer/mover.ts";
import { REFUSAL, Refusals } from "../../src/transfer/refusals.ts";
import { KEY_WORDS, Small, type SmallOptions } from "../ledger/small.ts";
import { FakeDisks, FakeDiskTier } from "./fake-disk.ts";

class Bench {
  ms = 0;
  due = true;
  readonly small: Small;
  readonly disks = new FakeDisks();
  readonly tier: FakeDiskTier;
  readonly feed = new Feed();
  readonly refusals = new Refusals(() => 1_000 + this.ms);
  readonly diskSeconds: [kind: number, seconds: number][] = [];
  readonly copies = new Copies(
    this.disks,
    () => this.ms,
    (kind, seconds) => this.diskSeconds.push([kind, seconds]),
  );
  readonly mover: Mover;
  readonly refused: number[] = [];
  /** What demotable() offers, chains, in order. */
  offered: string[] = [];
  readonly written: number[] = [];
  readonly told: number[] = [];

  constructor(options: SmallOptions = {}, split?: number) {
    this.small = new Small({ dram: 16, nvme: 16, ...options });
    this.tier = new FakeDiskTier(split);
    const { ledger } = this.small;
    const face: MoverLedger = Object.assign(Object.create(ledger) as typeof ledger, {
      demotionRefused: (block: number) => this.refused.push(block),
      copyBegin: ledger.copyBegin.bind(ledger),
      worthRoom: ledger.worthRoom.bind(ledger),
      copyEnd: ledger.copyEnd.bind(ledger),
      corrupt: ledger.corrupt.bind(ledger),
      slotOf: ledger.slotOf.bind(ledger),
      namespaceOf: ledger.namespaceOf.bind(ledger),
      namespace: ledger.namespace.bind(ledger),
    });
    this.mover = new Mover({
      ledger: face,
      tier: this.tier,
      copies: this.copies,
      links: new Links(() => this.ms),
      feed: this.feed,
      refusals: this.refusals,
      arena: 1,
      due: () => this.due,
      candidates: (into, max) => {
        const blocks = this.offered.splice(0, max).map((chain) => this.small.block(chain));
        into.set(blocks);
        return blocks.length;
      },
      now: () => this.ms,
      onWritten: (block) => this.written.push(block),
      onRefused: (block) => this.told.push(block),
    });
  }

  state(chain: string, tier: number): number {
    return this.small.ledger.stateOf(this.small.block(chain), tier);
  }

  refusalOf(chain: string): number | undefined {
    const at = (chain.length - 1) * KEY_WORDS;
    const words = this.small.words(chain);
    return this.refusals.find(this.small.namespace, words, at, KEY_WORDS)?.reason;
  }

  counted(reason: number): number {
    return this.feed.get(METRIC.writeBackRefusals + reason);
  }
}

let bench: Bench;
beforeEach(() => {
  bench = new Bench();
});
afterEach(() => {
  expect(bench.mover.blocksInFlight).toBe(0);
  bench.small.ledger.audit();
});

describe("the mover", () => {
  it("lets a copy count only once it is durable", () => {
    bench.small.store("abc");
    bench.offered = ["a", "ab", "abc"];
    bench.mover.step();
    expect(bench.state("abc", TIER.NVME)).toBe(STATE.FILLING);
    const [batch] = bench.disks.batches;
    expect(batch?.request).toMatchObject({ kind: DISK.WRITE, disk: 0, arena: 1, region: 0 });
    expect(batch?.count).toBe(3);
    for (const [index, chain] of ["a", "ab", "abc"].entries()) {
      const block = bench.small.block(chain);
      const item = batch?.items.subarray(index * DISK_ITEM_WORDS, (index + 1) * DISK_ITEM_WORDS);
      const { ledger } = bench.small;
      const slot = ledger.slotOf(block, TIER.NVME, 0);
      expect([...(item ?? [])]).toEqual([slot, 0, 0, block, ledger.slotOf(block, TIER.DRAM, 0)]);
    }
    bench.disks.end(bench.copies);
    expect(bench.state("abc", TIER.NVME)).toBe(STATE.FILLING);
    expect(bench.tier.endings.map(({ kind }) => kind)).toEqual([
      DISK.WRITE,
      DISK.WRITE,
      DISK.WRITE,
    ]);
    bench.tier.commits.shift()?.done(true);
    expect(bench.state("abc", TIER.NVME)).toBe(STATE.VISIBLE);
    expect(bench.feed.get(METRIC.writtenBackBlocks)).toBe(3);
    expect(bench.feed.get(METRIC.writtenBackBytes)).toBe(3 * 64);
    expect(bench.written).toHaveLength(3);
  });

  it("measures how long a write takes, and from written to durable, each by itself", () => {
    const reader = new FeedReader(bench.feed.buffer);
    for (const [chain, durable] of [
      ["a", true],
      ["b", false],
    ] as const) {
      bench.small.store(chain);
      bench.offered = [chain];
      bench.mover.step();
      bench.ms += 30;
      bench.disks.end(bench.copies);
      bench.ms += 400;
      bench.tier.commits.shift()?.done(durable);
    }
    expect(bench.diskSeconds).toEqual([
      [DISK.WRITE, 0.03],
      [DISK.WRITE, 0.03],
    ]);
    // What did not become durable is no time to go by.
    expect(reader.histogram("nvmeCommitSeconds")).toMatchObject({ count: 1, sumSeconds: 0.4 });
  });

  it("counts nothing of a batch whose commit failed, and remembers why", () => {
    bench.small.store("ab");
    bench.offered = ["a", "ab"];
    bench.mover.step();
    bench.disks.end(bench.copies);
    bench.tier.commits.shift()?.done(false);
    expect(bench.state("ab", TIER.NVME)).toBe(STATE.ABSENT);
    expect(bench.small.hit("ab")).toBe(2);
    expect(bench.counted(REFUSAL.NOT_DURABLE)).toBe(2);
    expect(bench.refusalOf("ab")).toBe(REFUSAL.NOT_DURABLE);
    expect(bench.refused).toHaveLength(2);
  });

  it("keeps the rest of a batch when one write fails", () => {
    bench.small.store("abc");
    bench.offered = ["a", "ab", "abc"];
    bench.mover.step();
    bench.disks.end(bench.copies, (item) => (item === 1 ? ITEM.IO : ITEM.OK));
    expect(bench.tier.commits[0]?.slots).toHaveLength(2);
    bench.tier.commits.shift()?.done(true);
    expect(["a", "ab", "abc"].map((chain) => bench.state(chain, TIER.NVME))).toEqual([
      STATE.VISIBLE,
      STATE.ABSENT,
      STATE.VISIBLE,
    ]);
    expect(bench.counted(REFUSAL.WRITE_FAILED)).toBe(1);
    expect(bench.small.hit("abc")).toBe(3);
  });

  it("drops a source that proves wrong while it is read", () => {
    bench.small.store("ab");
    bench.offered = ["a", "ab"];
    bench.mover.step();
    bench.disks.end(bench.copies, (item) => (item === 1 ? ITEM.CORRUPT : ITEM.OK));
    bench.tier.commits.shift()?.done(true);
    expect(bench.small.hit("ab")).toBe(1);
    expect(bench.small.block("ab")).toBe(NO_BLOCK);
    expect(bench.told).toEqual([]);
    expect(bench.feed.get(METRIC.corruptBlocks)).toBe(1);
    expect(bench.refusalOf("ab")).toBe(REFUSAL.SOURCE_CORRUPT);
  });

  it("gives a device no more than one batch at work and one behind it", () => {
    bench = new Bench({ dram: 4_096, nvme: 4_096, blocksMax: 4_096 });
    const { ledger } = bench.small;
    // Blocks of 1 MiB: a batch holds eight.
    const namespace = ledger.addNamespace({
      keyWords: KEY_WORDS,
      shards: 1,
      chained: false,
      payloadBytes: 2 ** 20,
      tenant: 0,
    });
    const words = new Uint32Array(40 * KEY_WORDS).map((_, index) => index * 7 + 1);
    const blocks = new Uint32Array(40);
    const statuses = new Uint8Array(40);
    // The other class holds the only slab of the small ledger until it is empty.
    ledger.growTier(TIER.DRAM, 2);
    ledger.growTier(TIER.NVME, 2);
    ledger.reserve(namespace, 0, words, 0, 0, 40, 0, statuses, blocks);
    for (const block of blocks) ledger.fillStart(block, TIER.DRAM, 0);
    for (const block of blocks) ledger.fillEnd(block, TIER.DRAM, 0, true);
    const queue = [...blocks];
    const candidates = (into: Uint32Array, max: number): number => {
      const taken = queue.splice(0, Math.min(max, 8));
      into.set(taken);
      return taken.length;
    };
    const mover = new Mover({
      ledger,
      tier: bench.tier,
      copies: bench.copies,
      links: new Links(() => bench.ms),
      feed: bench.feed,
      refusals: bench.refusals,
      arena: 1,
      due: () => true,
      candidates,
      now: () => bench.ms,
    });
    mover.step();
    expect(bench.disks.batches.map(({ count }) => count)).toEqual([8, 8]);
    expect(bench.feed.get(METRIC.writeBackBytesInFlight)).toBe(16 * 2 ** 20);
    bench.disks.end(bench.copies);
    // The next one follows at once, also while the first waits for its commit.
    expect(bench.disks.batches.map(({ count }) => count)).toEqual([8, 8]);
    while (mover.blocksInFlight > 0) {
      if (bench.disks.batches.length > 0) bench.disks.end(bench.copies);
      for (const { done } of bench.tier.commits.splice(0)) done(true);
    }
    expect(bench.feed.get(METRIC.writtenBackBlocks)).toBe(40);
    mover.step();
    expect(bench.feed.get(METRIC.writeBackBytesInFlight)).toBe(0);
  });

  it("waits for commits when too many bytes are written and not durable", () => {
    const payloadBytes = 8 * 2 ** 20;
    bench = new Bench({ dram: 2_048, nvme: 2_048, blocksMax: 2_048, payloadBytes });
    const chains = Array.from({ length: 200 }, (_, index) => String.fromCharCode(0x100 + index));
    for (const chain of chains) bench.small.store(chain);
    bench.offered = [...chains];
    bench.mover.step();
    while (bench.disks.batches.length > 0) bench.disks.end(bench.copies);
    const waiting = bench.tier.commits.reduce((sum, { slots }) => sum + slots.length, 0);
    // The round that reaches the bound is ended: sixteen blocks at least, however large they are.
    const most = LIMITS.writeBackCommittingBytesMax + 16 * payloadBytes;
    expect(waiting * payloadBytes).toBeGreaterThanOrEqual(LIMITS.writeBackCommittingBytesMax);
    expect(waiting * payloadBytes).toBeLessThanOrEqual(most);
    expect(bench.offered.length).toBeGreaterThan(0);
    bench.mover.step();
    expect(bench.disks.batches).toEqual([]);
    while (bench.mover.blocksInFlight > 0) {
      if (bench.disks.batches.length > 0) bench.disks.end(bench.copies);
      else bench.tier.commits.shift()?.done(true);
      bench.mover.step();
    }
    expect(bench.written).toHaveLength(chains.length);
  });

  it("refuses what the directory's index cannot name, and goes on with other blocks there", () => {
    bench.small.store("a");
    bench.small.store("x");
    bench.tier.unnamed = 1;
    bench.offered = ["a", "x"];
    bench.mover.step();
    expect(bench.refusalOf("a")).toBe(REFUSAL.NAMESPACES);
    expect(bench.state("a", TIER.NVME)).toBe(STATE.ABSENT);
    expect(bench.refused).toEqual([bench.small.block("a")]);
    expect(bench.disks.batches.map(({ count }) => count)).toEqual([1]);
    bench.disks.end(bench.copies);
    bench.tier.commits.shift()?.done(true);
    expect(bench.state("x", TIER.NVME)).toBe(STATE.VISIBLE);
  });

  it("refuses for a device that is read-only, and leaves it alone for a while", () => {
    bench.small.store("abc");
    bench.tier.writable.delete(0);
    bench.offered = ["a"];
    bench.mover.step();
    expect(bench.disks.batches).toHaveLength(0);
    expect(bench.refusalOf("a")).toBe(REFUSAL.READ_ONLY);
    expect(bench.state("a", TIER.NVME)).toBe(STATE.ABSENT);
    bench.offered = ["a"];
    bench.mover.step();
    expect(bench.offered).toEqual(["a"]);
    bench.ms += 1_000;
    bench.tier.writable.add(0);
    bench.mover.step();
    bench.disks.end(bench.copies);
    bench.tier.commits.shift()?.done(true);
    expect(bench.state("a", TIER.NVME)).toBe(STATE.VISIBLE);
  });

  it("keeps to the endurance budget", () => {
    bench.small.store("abc");
    bench.tier.allowance = 2 * 64;
    bench.offered = ["a", "ab", "abc"];
    bench.mover.step();
    expect(bench.disks.batches[0]?.count).toBe(2);
    expect(bench.counted(REFUSAL.WRITE_BUDGET)).toBe(1);
    expect(bench.refusalOf("abc")).toBe(REFUSAL.WRITE_BUDGET);
    bench.disks.end(bench.copies);
    bench.tier.commits.shift()?.done(true);
  });

  it("counts what the ledger has no room for", () => {
    bench.small.store("ab");
    bench.offered = ["ab"];
    bench.mover.step();
    expect(bench.counted(REFUSAL.NO_ROOM)).toBe(1);
    expect(bench.refused).toEqual([bench.small.block("ab")]);
    expect(bench.told).toEqual([bench.small.block("ab")]);
  });

  it("does nothing while nothing is due", () => {
    bench.small.store("ab");
    bench.offered = ["a", "ab"];
    bench.due = false;
    bench.mover.step();
    expect(bench.disks.batches).toHaveLength(0);
    expect(bench.offered).toHaveLength(2);
  });

  it("counts a block of several shards when all of them are there", () => {
    bench = new Bench({ shards: 2 });
    for (const shard of [0, 1]) {
      bench.small.reserve("a", 0, shard);
      bench.small.start("a", shard);
    }
    for (const shard of [0, 1]) bench.small.end("a", true, shard);
    bench.offered = ["a"];
    bench.mover.step();
    expect(bench.disks.batches.map(({ request }) => request.shard)).toEqual([0, 1]);
    bench.disks.end(bench.copies);
    bench.tier.commits.shift()?.done(true);
    expect(bench.state("a", TIER.NVME)).toBe(STATE.FILLING);
    bench.disks.end(bench.copies);
    bench.tier.commits.shift()?.done(true);
    expect(bench.state("a", TIER.NVME)).toBe(STATE.VISIBLE);
    expect(bench.feed.get(METRIC.writtenBackBlocks)).toBe(1);
  });

  it("gives a block of several shards up when one of them fails", () => {
    bench = new Bench({ shards: 2 });
    for (const shard of [0, 1]) {
      bench.small.reserve("a", 0, shard);
      bench.small.start("a", shard);
    }
    for (const shard of [0, 1]) bench.small.end("a", true, shard);
    bench.offered = ["a"];
    bench.mover.step();
    bench.disks.end(bench.copies, () => ITEM.IO);
    expect(bench.state("a", TIER.NVME)).toBe(STATE.FILLING);
    bench.disks.end(bench.copies);
    bench.tier.commits.shift()?.done(true);
    expect(bench.state("a", TIER.NVME)).toBe(STATE.ABSENT);
    expect(bench.counted(REFUSAL.WRITE_FAILED)).toBe(1);
    expect(bench.small.hit("a")).toBe(1);
  });

  it("finishes what is in flight when it is drained, and starts nothing more", async () => {
    bench.small.store("ab");
    bench.offered = ["a"];
    bench.mover.step();
    const drained = bench.mover.drain(1_000);
    bench.disks.end(bench.copies);
    bench.offered = ["ab"];
    bench.mover.step();
    bench.tier.commits.shift()?.done(true);
    await drained;
    expect(bench.state("a", TIER.NVME)).toBe(STATE.VISIBLE);
    expect(bench.offered).toEqual(["ab"]);
  });

  it("cancels what does not end in time when it is drained", async () => {
    bench.small.store("a");
    bench.offered = ["a"];
    bench.mover.step();
    const [batch] = bench.disks.batches;
    const drained = bench.mover.drain(0);
    expect(bench.disks.cancelled).toEqual([batch?.request.batch]);
    bench.disks.end(bench.copies, () => ITEM.CANCELLED);
    await drained;
    expect(bench.refusalOf("a")).toBe(REFUSAL.STOPPED);
    expect(bench.state("a", TIER.NVME)).toBe(STATE.ABSENT);
  });

  it("has a label for every reason", () => {
    const reader = new FeedReader(bench.feed.buffer);
    bench.feed.addAt(METRIC.writeBackRefusals, REFUSAL.STOPPED, 5);
    expect(reader.value("writeBackRefusals", "stopped")).toBe(5);
  });
});
