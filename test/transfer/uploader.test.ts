import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { NO_DRAM_SLOT } from "../../addon/binding.ts";
import type { UploadResult } from "../../tiers/remote/types.ts";
import { NO_BLOCK, TIER } from "../../src/ledger/types.ts";
import { LIMITS } from "../../src/limits.ts";
import { Feed, METRIC } from "../../src/observe/feed.ts";
import { Links } from "../../src/transfer/links.ts";
import { UPLOAD, Uploader } from "../../src/transfer/uploader.ts";
import { Small, type SmallOptions } from "../ledger/small.ts";
import { type AskedUpload, FakeStorage, keysOf, settle, spaceOf } from "./fake-storage.ts";

const STORED: UploadResult = { outcome: "stored", bytes: 10_000 };
const PRESENT: UploadResult = { outcome: "present", bytes: 0 };

class Bench {
  ms = 0;
  settled = true;
  kept = true;
  readable = true;
  readonly small: Small;
  readonly storage = new FakeStorage();
  readonly feed = new Feed();
  readonly links = new Links(() => this.ms);
  readonly faults: unknown[] = [];
  readonly uploader: Uploader;

  constructor(options: SmallOptions = {}, offersOld = false, readsDisk = true) {
    this.small = new Small({ dram: 32, nvme: 32, ...options });
    this.uploader = new Uploader({
      ledger: this.small.ledger,
      storage: this.storage,
      links: this.links,
      feed: this.feed,
      spaceOf: () => (this.kept ? spaceOf(options.shards) : undefined),
      offersOld,
      readsDisk: readsDisk ? () => this.readable : undefined,
      settled: () => this.settled,
      fault: (error) => this.faults.push(error),
      now: () => this.ms,
    });
  }

  /** The look that follows a start is over: nothing was there. */
  empty(): this {
    this.uploader.step();
    return this;
  }

  /** Chains stored, and copied to NVMe. */
  below(...chains: readonly string[]): void {
    for (const chain of chains) {
      this.small.store(chain);
      expect(this.small.copy(chain, TIER.DRAM, TIER.NVME)).toBe(true);
    }
  }

  /** The block stands on NVMe alone, or nowhere. */
  leaves(chain: string, tier: number = TIER.DRAM): void {
    this.small.ledger.corrupt(this.small.block(chain), tier);
  }

  offer(chain: string): void {
    this.uploader.offer(this.small.block(chain));
  }

  asked(): AskedUpload {
    const [one] = this.storage.uploads.splice(0, 1);
    if (one === undefined) throw new Error("nothing is uploaded");
    return one;
  }

  counted(outcome: number): number {
    return this.feed.get(METRIC.uploadedChunks + outcome);
  }

  pins(chain: string, tier: number): number {
    return this.small.ledger.core.pinsOf(this.small.block(chain), tier);
  }
}

let bench: Bench;
beforeEach(() => {
  bench = new Bench().empty();
});
afterEach(() => {
  expect(bench.uploader.waiting).toBe(0);
  expect(bench.faults).toEqual([]);
  bench.small.ledger.audit();
});

describe("a chunk that is offered", () => {
  it("is named by its own blocks and their parent, however deep it lies", async () => {
    bench.below("abcdef");
    bench.offer("abcdef");
    bench.uploader.step();
    const { chunk, items, limits, end } = bench.asked();
    expect(chunk).toMatchObject({ firstDepth: 5, shard: 0 });
    expect(chunk.keys).toEqual(keysOf(bench.small, "abcdef", 2));
    expect(chunk.parentKey).toEqual(keysOf(bench.small, "abcd", 1));
    expect(limits.deadlineMs).toBe(LIMITS.uploadDeadlineMs);
    const blocks = ["abcde", "abcdef"].map((chain) => bench.small.block(chain));
    const { ledger } = bench.small;
    expect([...items.blocks]).toEqual(blocks);
    expect([...items.slots]).toEqual(blocks.map((block) => ledger.slotOf(block, TIER.DRAM, 0)));
    expect([bench.pins("abcde", TIER.DRAM), bench.pins("abcdef", TIER.DRAM)]).toEqual([1, 1]);
    bench.ms = 20;
    end(STORED);
    await settle();
    expect(bench.pins("abcde", TIER.DRAM)).toBe(0);
    expect(bench.counted(UPLOAD.STORED)).toBe(1);
    expect(bench.links.dramToRemote.bytes).toBe(10_000);
  });

  it("has no parent at the root", async () => {
    bench.below("ab");
    bench.offer("ab");
    bench.uploader.step();
    const { chunk, end } = bench.asked();
    expect(chunk.firstDepth).toBe(1);
    expect(chunk.parentKey).toEqual(new Uint8Array(32));
    end(PRESENT);
    await settle();
    expect(bench.counted(UPLOAD.EXISTS)).toBe(1);
  });

  it("is read from NVMe where its blocks have left DRAM", async () => {
    bench.below("abcd");
    bench.offer("abcd");
    bench.leaves("abcd");
    bench.uploader.step();
    const { items, end } = bench.asked();
    const { ledger } = bench.small;
    const [above, below] = ["abc", "abcd"].map((chain) => bench.small.block(chain));
    expect([...items.slots]).toEqual([ledger.slotOf(above!, TIER.DRAM, 0), NO_DRAM_SLOT]);
    expect(items.diskSlots?.[1]).toBe(ledger.slotOf(below!, TIER.NVME, 0));
    expect([bench.pins("abc", TIER.DRAM), bench.pins("abcd", TIER.NVME)]).toEqual([1, 1]);
    end(STORED);
    await settle();
    expect([bench.pins("abc", TIER.DRAM), bench.pins("abcd", TIER.NVME)]).toEqual([0, 0]);
    // What a disk took is no figure of the store's.
    expect(bench.links.dramToRemote.bytes).toBe(0);
  });

  it("is dropped, and counted, when a block of it can be read nowhere", async () => {
    bench.below("ab", "cd", "ef");
    for (const chain of ["ab", "cd", "ef"]) bench.offer(chain);
    bench.leaves("ab");
    bench.leaves("ab", TIER.NVME);
    bench.leaves("cd");
    bench.kept = true;
    bench.readable = false;
    bench.uploader.step();
    bench.asked().end(STORED);
    await settle();
    expect([bench.counted(UPLOAD.DROPPED), bench.counted(UPLOAD.STORED)]).toEqual([2, 1]);
  });

  it("is dropped when there is nothing to read disks with", async () => {
    bench = new Bench({}, false, false).empty();
    bench.below("ab");
    bench.offer("ab");
    bench.leaves("ab");
    bench.uploader.step();
    await settle();
    expect(bench.storage.uploads).toEqual([]);
    expect(bench.counted(UPLOAD.DROPPED)).toBe(1);
  });

  it("is dropped when its record has become another block's", async () => {
    bench = new Bench({ blocksMax: 4 }).empty();
    bench.below("ab");
    const block = bench.small.block("ab");
    bench.offer("ab");
    bench.leaves("ab");
    bench.leaves("ab", TIER.NVME);
    expect(bench.small.block("ab")).toBe(NO_BLOCK);
    bench.small.store("xyz");
    expect(["x", "xy", "xyz"].map((chain) => bench.small.block(chain))).toContain(block);
    bench.uploader.step();
    await settle();
    expect(bench.storage.uploads).toEqual([]);
    expect(bench.counted(UPLOAD.DROPPED)).toBe(1);
  });

  it("is dropped when its namespace is not kept any more", () => {
    bench.below("ab");
    bench.offer("ab");
    bench.kept = false;
    bench.uploader.step();
    expect(bench.counted(UPLOAD.DROPPED)).toBe(1);
  });

  it("is none when the block does not end one, or the namespace is not kept", () => {
    bench.below("abc");
    bench.offer("abc");
    bench.kept = false;
    bench.offer("ab");
    expect(bench.uploader.waiting).toBe(0);
  });
});

describe("a chunk of several shards", () => {
  beforeEach(() => {
    bench = new Bench({ shards: 3 }).empty();
    const shards = [0, 1, 2];
    for (const shard of shards) bench.small.reserve("ab", 0, shard);
    for (const chain of ["a", "ab"]) {
      for (const shard of shards) bench.small.start(chain, shard);
      for (const shard of shards) bench.small.end(chain, true, shard);
    }
    bench.offer("ab");
    bench.uploader.step();
  });

  it("is stored once every shard is, by whomever", async () => {
    for (const [shard, result] of [PRESENT, STORED, PRESENT].entries()) {
      const { chunk, items, end } = bench.asked();
      expect(chunk.shard).toBe(shard);
      const slots = [...items.blocks].map((one) =>
        bench.small.ledger.slotOf(one, TIER.DRAM, shard),
      );
      expect([...items.slots]).toEqual(slots);
      end(result);
      await settle();
    }
    expect(bench.counted(UPLOAD.STORED)).toBe(1);
    expect(bench.counted(UPLOAD.EXISTS)).toBe(0);
  });

  it("fails with its first failure, and asks for no further shard", async () => {
    bench.asked().end(STORED);
    await settle();
    bench.asked().end({ outcome: "failed", fault: "timeout" });
    await settle();
    expect(bench.storage.uploads).toEqual([]);
    expect(bench.counted(UPLOAD.FAILED)).toBe(1);
    expect(bench.pins("ab", TIER.DRAM)).toBe(0);
  });
});

describe("the queue", () => {
  it("waits while the store takes nothing, and goes on when it does", async () => {
    bench.below("ab");
    bench.offer("ab");
    bench.storage.open = false;
    bench.uploader.step();
    expect(bench.storage.uploads).toEqual([]);
    expect(bench.uploader.waiting).toBe(1);
    bench.storage.open = true;
    bench.uploader.step();
    bench.asked().end(STORED);
    await settle();
  });

  it("looks at once for what failed, when a store that took nothing takes chunks again", async () => {
    bench.below("ab");
    bench.offer("ab");
    bench.uploader.step();
    bench.asked().end({ outcome: "failed", fault: "refused" });
    bench.storage.health = "readOnly";
    bench.storage.open = false;
    await settle();
    bench.uploader.step();
    expect(bench.storage.uploads).toEqual([]);
    bench.storage.health = "ok";
    bench.storage.open = true;
    bench.uploader.step();
    bench.asked().end(STORED);
    await settle();
    expect(bench.counted(UPLOAD.STORED)).toBe(1);
  });

  it("lets so many chunks be under way, and begins the next as one ends", async () => {
    const chains = ["ab", "cd", "ef", "gh", "ij", "kl"];
    bench.below(...chains);
    for (const chain of chains) bench.offer(chain);
    bench.uploader.step();
    expect(bench.storage.uploads).toHaveLength(LIMITS.remoteChunksInFlight);
    bench.asked().end(STORED);
    await settle();
    expect(bench.storage.uploads).toHaveLength(LIMITS.remoteChunksInFlight);
    while (bench.uploader.waiting > 0) {
      bench.asked().end(STORED);
      await settle();
    }
    expect(bench.counted(UPLOAD.STORED)).toBe(chains.length);
  });

  it("begins only so many in one turn, however quickly they end", async () => {
    bench.below("ab");
    bench.storage.answer = PRESENT;
    const offered = LIMITS.uploadStartsPerTick + 5;
    for (let index = 0; index < offered; index++) bench.offer("ab");
    bench.uploader.step();
    await settle();
    expect(bench.counted(UPLOAD.EXISTS)).toBe(LIMITS.uploadStartsPerTick);
    bench.uploader.step();
    await settle();
    expect(bench.counted(UPLOAD.EXISTS)).toBe(offered);
  });

  it("costs an offer nothing that grows with the chain, and an entry its words alone", async () => {
    const chain = Array.from({ length: 60 }, (_, at) => String.fromCharCode(65 + at)).join("");
    bench = new Bench({ dram: 64, nvme: 64 }).empty();
    bench.below(chain);
    const { ledger } = bench.small;
    const climb = vi.spyOn(ledger, "parentOf");
    bench.offer(chain);
    expect(climb).not.toHaveBeenCalled();
    bench.uploader.step();
    // The chunk's two blocks, and the block in front of them twice: for its key and as the end of the climb.
    expect(climb.mock.calls.length).toBeLessThanOrEqual(4);
    bench.asked().end(STORED);
    await settle();
  });

  it("forgets its oldest entry at its bound, and finds it again later", async () => {
    bench.below("ab", "cd");
    bench.storage.open = false;
    bench.offer("ab");
    for (let index = 0; index < LIMITS.uploadQueueMax; index++) bench.offer("cd");
    expect(bench.uploader.waiting).toBe(LIMITS.uploadQueueMax);
    expect(bench.counted(UPLOAD.DROPPED)).toBe(1);
    bench.storage.open = true;
    bench.storage.answer = PRESENT;
    while (bench.uploader.waiting > 0) {
      bench.uploader.step();
      await settle();
    }
    bench.storage.answer = undefined;
    bench.ms = LIMITS.uploadScanMs;
    bench.uploader.step();
    const keys = bench.storage.uploads.map(({ chunk }) => chunk.keys);
    expect(keys).toContainEqual(keysOf(bench.small, "ab", 2));
    for (const { end } of bench.storage.uploads.splice(0)) end(PRESENT);
    await settle();
  });
});

describe("the look through the block table", () => {
  beforeEach(() => {
    bench = new Bench();
  });

  it("finds what an earlier life left on NVMe, once all of it is in the ledger", async () => {
    bench.below("abcd", "xy");
    bench.small.store("pq");
    bench.settled = false;
    bench.uploader.step();
    expect(bench.uploader.waiting).toBe(0);
    bench.settled = true;
    bench.storage.answer = STORED;
    bench.uploader.step();
    await settle();
    // Two of one chain and one of the other; "pq" is not below.
    expect(bench.counted(UPLOAD.STORED)).toBe(3);
    bench.ms = 10 * LIMITS.uploadScanMs;
    bench.uploader.step();
    await settle();
    expect(bench.counted(UPLOAD.STORED)).toBe(3);
  });

  it.each(["unavailable", "timeout", "busy", "full", "source", "sealing"] as const)(
    "comes back to a chunk that failed (%s), not before its time",
    async (fault) => {
      bench.below("ab");
      bench.uploader.step();
      bench.asked().end({ outcome: "failed", fault });
      await settle();
      bench.ms = LIMITS.uploadScanMs - 1;
      bench.uploader.step();
      expect(bench.storage.uploads).toEqual([]);
      bench.ms = LIMITS.uploadScanMs;
      bench.uploader.step();
      bench.asked().end(STORED);
      await settle();
      expect([bench.counted(UPLOAD.FAILED), bench.counted(UPLOAD.STORED)]).toEqual([1, 1]);
    },
  );

  it("does not come back for a name under quarantine", async () => {
    bench.below("ab");
    bench.uploader.step();
    bench.asked().end({ outcome: "failed", fault: "quarantined" });
    await settle();
    bench.ms = 10 * LIMITS.uploadScanMs;
    bench.uploader.step();
    expect(bench.storage.uploads).toEqual([]);
  });

  it("pauses longer each time that nothing was stored, until something is or is said to be better", async () => {
    bench.below("ab");
    bench.storage.answer = { outcome: "failed", fault: "sealing" };
    /** Milliseconds from one attempt to the next. */
    const next = async (): Promise<number> => {
      const [before, from] = [bench.counted(UPLOAD.FAILED), bench.ms];
      for (;;) {
        bench.uploader.step();
        await settle();
        if (bench.counted(UPLOAD.FAILED) > before) return bench.ms - from;
        bench.ms += LIMITS.uploadScanMs;
      }
    };
    await next();
    const pauses = [await next(), await next(), await next()];
    expect(pauses).toEqual([1, 2, 4].map((times) => times * LIMITS.uploadScanMs));
    for (let round = 0; round < 8; round++) await next();
    expect(await next()).toBe(LIMITS.uploadScanMsMax);
    bench.uploader.lookAgain();
    expect(await next()).toBe(0);
    expect(await next()).toBe(LIMITS.uploadScanMs);
    bench.storage.answer = STORED;
    bench.below("cd");
    bench.offer("cd");
    bench.uploader.step();
    await settle();
    bench.storage.answer = { outcome: "failed", fault: "sealing" };
    await next();
    expect(await next()).toBe(LIMITS.uploadScanMs);
  });

  it("reads so many records a step, and waits for what it found", () => {
    bench = new Bench({ dram: 2_048, nvme: 2_048, blocksMax: 4_096 });
    const chains = Array.from({ length: 600 }, (_, at) => String.fromCharCode(256 + at));
    for (const first of chains) bench.below(`${first}z`);
    bench.storage.open = false;
    bench.uploader.step();
    expect(bench.uploader.waiting).toBe(LIMITS.uploadScanWaitingMax);
    bench.uploader.step();
    expect(bench.uploader.waiting).toBe(LIMITS.uploadScanWaitingMax);
    return bench.uploader.stop();
  });
});

describe("a node without NVMe", () => {
  it("offers what grows old in DRAM, each block once in a while", async () => {
    bench = new Bench({}, true, false);
    bench.small.store("abcd");
    bench.storage.answer = STORED;
    bench.uploader.step();
    await settle();
    expect(bench.counted(UPLOAD.STORED)).toBe(2);
    bench.uploader.step();
    await settle();
    expect(bench.counted(UPLOAD.STORED)).toBe(2);
  });
});

describe("the end of the uploader", () => {
  it("cancels what runs, forgets what waits, and holds no block afterwards", async () => {
    bench.below("ab", "cd");
    bench.offer("ab");
    bench.uploader.step();
    bench.offer("cd");
    const { limits, end } = bench.storage.uploads[0]!;
    const stopped = bench.uploader.stop();
    expect(limits.signal?.aborted).toBe(true);
    for (const one of bench.storage.uploads) one.end({ outcome: "failed", fault: "cancelled" });
    end({ outcome: "failed", fault: "cancelled" });
    await stopped;
    expect(bench.pins("ab", TIER.DRAM)).toBe(0);
    bench.storage.uploads.length = 0;
    bench.offer("cd");
    bench.uploader.step();
    expect(bench.storage.uploads).toEqual([]);
    await bench.uploader.stop();
  });

  it("tells of an exception, and gives the blocks back", async () => {
    bench.below("ab");
    bench.offer("ab");
    bench.uploader.step();
    const error = new Error("a fault in the tier");
    for (const one of bench.storage.uploads) one.fail(error);
    await settle();
    expect(bench.faults).toContain(error);
    expect(bench.pins("ab", TIER.DRAM)).toBe(0);
    bench.faults.length = 0;
  });
});
