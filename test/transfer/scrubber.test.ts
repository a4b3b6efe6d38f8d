import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DISK, DISK_ITEM_WORDS, ITEM, NO_DRAM_SLOT } from "../../addon/binding.ts";
import { NO_BLOCK, STATE, TIER } from "../../src/ledger/types.ts";
import { LIMITS } from "../../src/limits.ts";
import { Feed, METRIC } from "../../src/observe/feed.ts";
import { Copies, DISK_PRIORITY } from "../../src/transfer/copies.ts";
import { Scrubber } from "../../src/transfer/scrubber.ts";
import { Small, type SmallOptions } from "../ledger/small.ts";
import { FakeDisks, FakeDiskTier } from "./fake-disk.ts";

const PAYLOAD_BYTES = 64;

class Bench {
  ms = 0;
  idle = true;
  /** So much that a second pays for a whole batch. */
  rate: number = LIMITS.scrubBatchBytes;
  readonly small: Small;
  readonly disks = new FakeDisks();
  readonly tier = new FakeDiskTier();
  readonly feed = new Feed();
  readonly copies = new Copies(this.disks, () => this.ms);
  readonly scrubber: Scrubber;

  constructor(options: SmallOptions = {}) {
    this.small = new Small({ dram: 32, nvme: 32, ...options });
    this.scrubber = new Scrubber({
      ledger: this.small.ledger,
      tier: this.tier,
      copies: this.copies,
      feed: this.feed,
      arena: 1,
      bytesPerSecond: () => this.rate,
      idle: () => this.idle,
      now: () => this.ms,
    });
  }

  below(chain: string): void {
    this.small.store(chain);
    expect(this.small.copy(chain, TIER.DRAM, TIER.NVME)).toBe(true);
  }

  /** A step after so many milliseconds; blocks that are read. */
  step(ms = 1_000): number[] {
    this.ms += ms;
    this.scrubber.step();
    const [batch] = this.disks.batches;
    return Array.from({ length: batch?.count ?? 0 }, (_, item) => {
      return batch!.items[item * DISK_ITEM_WORDS + 3]!;
    });
  }

  end(status: number): void {
    this.disks.end(this.copies, () => status);
  }

  get counted(): [number, number] {
    return [this.feed.get(METRIC.scrubbedBlocks), this.feed.get(METRIC.scrubFailures)];
  }

  blocks(...chains: readonly string[]): number[] {
    return chains.map((chain) => this.small.block(chain)).toSorted((a, b) => a - b);
  }
}

let bench: Bench;
beforeEach(() => {
  bench = new Bench();
});
afterEach(() => {
  expect(bench.scrubber.inFlight).toBe(0);
  expect(bench.copies.batchesInFlight).toBe(0);
  bench.small.ledger.audit();
});

describe("a scrub", () => {
  it("verifies every copy on NVMe, behind all other reads, and holds it meanwhile", () => {
    bench.below("ab");
    bench.small.store("xy");
    const read = bench.step();
    expect(read.toSorted((a, b) => a - b)).toEqual(bench.blocks("a", "ab"));
    const { request, items } = bench.disks.batches[0]!;
    const wanted = { kind: DISK.VERIFY, disk: 0, arena: 1, region: 0, payloadBytes: PAYLOAD_BYTES };
    expect(request).toMatchObject({ ...wanted, priority: DISK_PRIORITY.OTHER });
    const { ledger } = bench.small;
    expect(items[0]).toBe(ledger.slotOf(read[0]!, TIER.NVME, 0));
    expect(items[4]).toBe(NO_DRAM_SLOT);
    expect(ledger.core.pinsOf(read[0]!, TIER.NVME)).toBe(1);
    bench.end(ITEM.OK);
    expect(ledger.core.pinsOf(read[0]!, TIER.NVME)).toBe(0);
    expect(bench.counted).toEqual([2, 0]);
    expect(bench.tier.endings.map(({ kind, status }) => [kind, status])).toEqual([
      [DISK.VERIFY, ITEM.OK],
      [DISK.VERIFY, ITEM.OK],
    ]);
  });

  it("goes over the table again and again", () => {
    bench.below("ab");
    for (let pass = 1; pass <= 3; pass++) {
      bench.step();
      bench.end(ITEM.OK);
      expect(bench.counted).toEqual([2 * pass, 0]);
    }
  });

  it.each([ITEM.CORRUPT, ITEM.IDENTITY, ITEM.IO])(
    "drops and counts a copy that proves bad (status %i); the other tier's stays",
    (status) => {
      bench.below("ab");
      bench.step();
      bench.end(status);
      expect(bench.counted).toEqual([2, 2]);
      const { ledger } = bench.small;
      expect(ledger.stateOf(bench.small.block("ab"), TIER.NVME)).toBe(STATE.ABSENT);
      expect(bench.small.hit("ab")).toBe(2);
    },
  );

  it("drops a block whose last copy proves bad", () => {
    bench.below("ab");
    bench.small.ledger.corrupt(bench.small.block("ab"), TIER.DRAM);
    bench.step();
    bench.disks.end(bench.copies, () => ITEM.CORRUPT);
    expect(bench.small.block("ab")).toBe(NO_BLOCK);
    expect(bench.small.hit("ab")).toBe(1);
  });

  it.each([ITEM.CANCELLED, ITEM.DEADLINE])(
    "learns nothing from a read that did not end (status %i)",
    (status) => {
      bench.below("ab");
      bench.step();
      bench.end(status);
      expect(bench.counted).toEqual([0, 0]);
      expect(bench.small.ledger.stateOf(bench.small.block("ab"), TIER.NVME)).toBe(STATE.VISIBLE);
      expect(bench.tier.endings).toHaveLength(2);
    },
  );

  it("reads each shard of a block from its own slot", () => {
    bench = new Bench({ shards: 2 });
    for (const shard of [0, 1]) {
      bench.small.reserve("a", 0, shard);
      bench.small.start("a", shard);
    }
    for (const shard of [0, 1]) bench.small.end("a", true, shard);
    expect(bench.small.copy("a", TIER.DRAM, TIER.NVME)).toBe(true);
    bench.step();
    const { ledger } = bench.small;
    const block = bench.small.block("a");
    expect(bench.disks.batches.map(({ request, items }) => [request.shard, items[0]])).toEqual([
      [0, ledger.slotOf(block, TIER.NVME, 0)],
      [1, ledger.slotOf(block, TIER.NVME, 1)],
    ]);
    expect(ledger.core.pinsOf(block, TIER.NVME)).toBe(2);
    bench.end(ITEM.OK);
    bench.end(ITEM.CORRUPT);
    expect(bench.counted).toEqual([2, 1]);
    expect(ledger.stateOf(block, TIER.NVME)).toBe(STATE.ABSENT);
  });
});

describe("a scrub waits", () => {
  it("while something else is to be done", () => {
    bench.below("ab");
    bench.idle = false;
    expect(bench.step()).toEqual([]);
    bench.idle = true;
    expect(bench.step()).toHaveLength(2);
    bench.end(ITEM.OK);
  });

  it("while a batch of it is under way", () => {
    bench.below("ab");
    bench.step();
    bench.step();
    expect(bench.disks.batches).toHaveLength(1);
    bench.end(ITEM.OK);
  });

  it("for what its rate pays for, and forgets what it did not use", () => {
    bench.below("abcd");
    bench.rate = 0;
    expect(bench.step(1e9)).toEqual([]);
    bench.rate = PAYLOAD_BYTES;
    expect(bench.step(1_000)).toHaveLength(1);
    bench.end(ITEM.OK);
    expect(bench.step(0)).toEqual([]);
    expect(bench.step(2_000)).toHaveLength(2);
    bench.end(ITEM.OK);
    // A day without a chance to read is worth one batch.
    bench.idle = false;
    bench.rate = LIMITS.scrubBatchBytes;
    bench.step(86_400_000);
    bench.idle = true;
    bench.rate = 0;
    expect(bench.step(0)).toHaveLength(4);
    bench.end(ITEM.OK);
  });

  it("for ever once it is stopped; what is under way ends by itself", () => {
    bench.below("ab");
    bench.step();
    bench.scrubber.stop();
    bench.end(ITEM.OK);
    expect(bench.step()).toEqual([]);
    expect(bench.counted).toEqual([2, 0]);
  });

  it("where the device serves no reads", () => {
    bench.below("ab");
    bench.tier.readable = false;
    expect(bench.step()).toEqual([]);
    expect(bench.small.ledger.core.pinsOf(bench.small.block("ab"), TIER.NVME)).toBe(0);
  });

  it("on a node that holds nothing", () => {
    expect(bench.step()).toEqual([]);
  });
});
