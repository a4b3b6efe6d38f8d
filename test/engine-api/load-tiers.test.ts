import { afterEach, describe, expect, it } from "vitest";
import {
  COPY,
  DISK,
  DISK_ITEM_WORDS,
  ITEM,
  ITEM_PROMOTED,
  NO_DRAM_SLOT,
} from "../../addon/binding.ts";
import { coldFrame } from "../../src/engine-api/codec.ts";
import { OP } from "../../src/engine-api/protocol.ts";
import { ERRORS } from "../../src/errors.ts";
import { STATE, TIER } from "../../src/ledger/types.ts";
import { METRIC } from "../../src/observe/feed.ts";
import { keysOf } from "../e2e/support.ts";
import { FakeServer } from "./fake-server.ts";

let fake: FakeServer;

function states(keys: Uint8Array, tier: number): number[] {
  return fake.blocksOf(keys).map((block) => fake.ledger.stateOf(block, tier));
}

/** No pin, no job and no range is left behind. */
afterEach(() => {
  expect(fake.batches).toHaveLength(0);
  expect(fake.server.jobsInFlight).toBe(0);
  for (let block = 0; block < fake.ledger.core.table.touched; block++) {
    if (!fake.ledger.core.inUse(block)) continue;
    for (const tier of [TIER.DRAM, TIER.NVME]) expect(fake.ledger.core.pinsOf(block, tier)).toBe(0);
  }
  fake.ledger.audit();
});

const keys = keysOf(1, 6);

describe("a LOAD of blocks on NVMe", () => {
  it("reads them into the window and promotes them, root first", () => {
    fake = new FakeServer(64, 64);
    fake.store(keys);
    fake.demote(keys, true);
    const lease = fake.lease(keys);
    expect(fake.replies.at(-1)?.body.getUint32(4, true)).toBe(6);
    fake.load(lease, keys);
    const batch = fake.end(() => ITEM.OK | ITEM_PROMOTED);
    expect(batch.disk).toBe(true);
    expect(batch.request).toMatchObject({ kind: DISK.READ, region: 7, priority: 0 });
    expect(batch.request.deadlineMs).toBeGreaterThan(0);
    for (let item = 0; item < 6; item++) {
      const target = batch.items[item * DISK_ITEM_WORDS + 4];
      expect(target).not.toBe(NO_DRAM_SLOT);
      expect(batch.items[item * DISK_ITEM_WORDS + 1]).toBe(item * 4_096);
    }
    expect(fake.completion()).toEqual({ landed: 6, failed: [] });
    expect(states(keys, TIER.DRAM)).toEqual(Array(6).fill(STATE.VISIBLE));
    expect(states(keys, TIER.NVME)).toEqual(Array(6).fill(STATE.VISIBLE));
    expect(fake.feed.get(METRIC.promotedBlocks)).toBe(6);
    expect(fake.feed.get(METRIC.loadedTierBytes + TIER.NVME)).toBe(6 * 4_096);
  });

  it("passes them through where DRAM has no room that may be taken", () => {
    fake = new FakeServer(6, 64);
    fake.store(keys);
    fake.demote(keys, true);
    const others = keysOf(2, 6);
    fake.store(others);
    fake.lease(others, 6);
    const lease = fake.lease(keys);
    fake.load(lease, keys);
    const batch = fake.end();
    for (let item = 0; item < 6; item++) {
      expect(batch.items[item * DISK_ITEM_WORDS + 4]).toBe(NO_DRAM_SLOT);
    }
    expect(fake.completion().landed).toBe(6);
    expect(fake.feed.get(METRIC.passThroughBlocks)).toBe(6);
    expect(states(keys, TIER.DRAM)).toEqual(Array(6).fill(STATE.ABSENT));
  });

  it("takes each block from the tier that has it", () => {
    fake = new FakeServer(64, 64);
    fake.store(keys);
    fake.demote(keys, false);
    for (const block of fake.blocksOf(keys).slice(3).toReversed()) {
      fake.ledger.corrupt(block, TIER.DRAM);
    }
    fake.load(fake.lease(keys), keys);
    expect(fake.batches.map(({ disk, count }) => [disk, count])).toEqual([
      [false, 3],
      [true, 3],
    ]);
    expect(fake.end().request.kind).toBe(COPY.LOAD);
    expect(() => fake.completion()).toThrow("0 completions");
    fake.end(() => ITEM.OK | ITEM_PROMOTED);
    expect(fake.completion().landed).toBe(6);
  });

  it("is cut into batches of a few MiB, so that the first rows come early", () => {
    fake = new FakeServer(64, 64, { rowBytes: 2 ** 20 });
    const chain = keysOf(3, 10);
    fake.store(chain);
    fake.demote(chain, true);
    fake.load(fake.lease(chain), chain);
    expect(fake.batches.map(({ count }) => count)).toEqual([4, 4, 2]);
    while (fake.batches.length > 0) fake.end(() => ITEM.OK | ITEM_PROMOTED);
    expect(fake.completion().landed).toBe(10);
    expect(fake.server.context.links.read(0).batches).toBe(3);
  });

  it("drops a bad copy and fails its position alone when there is no other", () => {
    fake = new FakeServer(64, 64);
    fake.store(keys);
    fake.demote(keys, true);
    fake.load(fake.lease(keys), keys);
    fake.end((item) => (item === 4 ? ITEM.CORRUPT : ITEM.OK | ITEM_PROMOTED));
    const code = ERRORS.checksumMismatch.code;
    expect(fake.completion()).toEqual({ landed: 5, failed: [[4, code]] });
    expect(fake.feed.get(METRIC.corruptBlocks)).toBe(1);
    expect(states(keys.subarray(4 * 32, 5 * 32), TIER.NVME)).toEqual([STATE.ABSENT]);
    fake.lease(keys, 9);
    expect(fake.replies.at(-1)?.header.count).toBe(4);
  });

  it("reads a bad copy's other one once, in both directions", () => {
    fake = new FakeServer(64, 64);
    fake.store(keys);
    fake.demote(keys, false);
    fake.load(fake.lease(keys), keys);
    // DRAM's copy of block 2 is bad: NVMe has it. There it is bad, too: the position fails.
    fake.end((item) => (item === 2 || item === 5 ? ITEM.CORRUPT : ITEM.OK));
    const retry = fake.end((item) => (item === 0 ? ITEM.IDENTITY : ITEM.OK));
    expect(retry.disk).toBe(true);
    expect(retry.count).toBe(2);
    const code = ERRORS.staleGeneration.code;
    expect(fake.completion()).toEqual({ landed: 5, failed: [[2, code]] });
    expect(fake.feed.get(METRIC.loadRetries)).toBe(2);
    // Block 5 is read from NVMe now; next time that copy is bad and DRAM has it again.
    const last = keys.subarray(5 * 32);
    expect(states(last, TIER.NVME)).toEqual([STATE.VISIBLE]);
  });

  it("fails with deviceFailed when the device cannot read, and forgets the copy", () => {
    fake = new FakeServer(64, 64);
    fake.store(keys);
    fake.demote(keys, true);
    fake.load(fake.lease(keys), keys);
    fake.end((item) => (item === 5 ? ITEM.IO : ITEM.OK | ITEM_PROMOTED));
    const code = ERRORS.deviceFailed.code;
    expect(fake.completion()).toEqual({ landed: 5, failed: [[5, code]] });
    expect(fake.feed.get(METRIC.deviceReadErrors)).toBe(1);
    expect(fake.tier.endings.at(-1)).toMatchObject({ kind: DISK.READ, status: ITEM.IO });
  });

  it("keeps the copy when only the deadline passed", () => {
    fake = new FakeServer(64, 64);
    fake.store(keys);
    fake.demote(keys, true);
    fake.load(fake.lease(keys), keys);
    fake.end(() => ITEM.DEADLINE);
    expect(fake.completion().failed).toHaveLength(6);
    expect(states(keys, TIER.NVME)).toEqual(Array(6).fill(STATE.VISIBLE));
    expect(states(keys, TIER.DRAM)).toEqual(Array(6).fill(STATE.ABSENT));
    expect(fake.feed.get(METRIC.deadlineMisses)).toBe(1);
  });

  it("fails what lies on a fenced device, without asking it", () => {
    fake = new FakeServer(64, 64);
    fake.store(keys);
    fake.demote(keys, true);
    fake.tier.readable = false;
    fake.load(fake.lease(keys), keys);
    expect(fake.batches).toHaveLength(0);
    const { failed } = fake.completion();
    expect(failed.map(([, code]) => code)).toEqual(Array(6).fill(ERRORS.tierUnavailable.code));
    expect(states(keys, TIER.NVME)).toEqual(Array(6).fill(STATE.VISIBLE));
  });

  it("keeps a promotion whose engine died while it was read", () => {
    fake = new FakeServer(64, 64);
    fake.store(keys);
    fake.demote(keys, true);
    fake.load(fake.lease(keys), keys);
    const [batch] = fake.batches;
    fake.hangUp();
    expect(fake.cancelled).toEqual([batch?.request.batch]);
    fake.end((item) => (item < 3 ? ITEM.REGION | ITEM_PROMOTED : ITEM.CANCELLED));
    expect(states(keys, TIER.DRAM)).toEqual([
      ...Array(3).fill(STATE.VISIBLE),
      ...Array(3).fill(STATE.ABSENT),
    ]);
  });

  it("is cancelled at the disk, and retries nothing afterwards", () => {
    fake = new FakeServer(64, 64);
    fake.store(keys);
    fake.demote(keys, false);
    fake.load(fake.lease(keys), keys, 30);
    fake.send(coldFrame(OP.CANCEL, 0, 31, 30, 0, undefined));
    expect(fake.cancelled).toHaveLength(1);
    fake.end((item) => (item === 0 ? ITEM.CORRUPT : ITEM.CANCELLED));
    expect(fake.completion().landed).toBe(0);
    expect(fake.replies.at(-1)?.header).toMatchObject({ op: OP.CANCEL, count: 1 });
    expect(fake.feed.get(METRIC.loadRetries)).toBe(0);
  });

  it("passes a rank's shard through, because a promotion needs all of them", () => {
    fake = new FakeServer(64, 64, { shards: 2 });
    const one = keysOf(4, 1);
    fake.ledger.reserve(
      0,
      0,
      new Uint32Array(one.slice().buffer),
      0,
      0,
      1,
      0,
      new Uint8Array(1),
      new Uint32Array(1),
    );
    const words = new Uint32Array(one.slice().buffer);
    fake.ledger.reserve(0, 0, words, 0, 0, 1, 1, new Uint8Array(1), new Uint32Array(1));
    const [block = 0] = fake.blocksOf(one);
    for (const shard of [0, 1]) fake.ledger.fillStart(block, TIER.DRAM, shard);
    for (const shard of [0, 1]) fake.ledger.fillEnd(block, TIER.DRAM, shard, true);
    fake.demote(one, true);
    fake.load(fake.lease(one), one, 30, 1);
    const batch = fake.end();
    expect(batch.request.shard).toBe(1);
    expect(batch.items[0]).toBe(fake.ledger.slotOf(block, TIER.NVME, 1));
    expect(batch.items[4]).toBe(NO_DRAM_SLOT);
    expect(fake.completion().landed).toBe(1);
  });
});

describe("a LOOKUP's gate", () => {
  it("says which part of a hit is worth its load, and why not the rest", () => {
    fake = new FakeServer(64, 64);
    fake.store(keys);
    fake.demote(keys, false);
    for (const block of fake.blocksOf(keys).slice(2).toReversed()) {
      fake.ledger.corrupt(block, TIER.DRAM);
    }
    fake.lease(keys);
    const worth = (): [number, number] => {
      const body = fake.replies.at(-1)?.body;
      return [body?.getUint32(20, true) ?? -1, body?.getUint32(24, true) ?? -1];
    };
    expect(worth()).toEqual([6, 0]);
    // 16 tokens in 4 µs: slower than DRAM's 4 KiB, quicker than the disk's latency.
    fake.server.context.links.dramToWindow.latencyMicroseconds = 0;
    fake.lease(keys, 5, 0, 4_000_000);
    expect(worth()).toEqual([2, 8]);
    fake.lease(keys, 5, 0, 1_000_000_000);
    expect(worth()).toEqual([0, 16]);
    fake.lease(keys, 5, 0, 1_000);
    expect(worth()).toEqual([6, 0]);
  });
});
