import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  COPY,
  type CopyBatch,
  DISK,
  DISK_ITEM_WORDS,
  ITEM,
  ITEM_PROMOTED,
  ITEM_WORDS,
  NO_DRAM_SLOT,
} from "../../addon/binding.ts";
import type { DramItems, StagedRange } from "../../tiers/remote/types.ts";
import { TIER } from "../../src/ledger/types.ts";
import { Copies, DISK_PRIORITY } from "../../src/transfer/copies.ts";
import { StagingBatches } from "../../src/transfer/staging-copies.ts";
import { UploadSources } from "../../src/transfer/upload-sources.ts";
import { FakeDisks, FakeDiskTier } from "./fake-disk.ts";
import { settle } from "./fake-storage.ts";

const POOL = 1;
const OWN = 7;
const REGION = 3;
const STRIDE = 4_096;
const READ_WELL = ITEM.OK | ITEM_PROMOTED;

interface Copied {
  readonly request: CopyBatch;
  readonly items: number[][];
}

/** Both faces of the addon: what is submitted is kept. */
class FakeAddon extends FakeDisks {
  readonly copied: Copied[] = [];
  readonly calls: string[] = [];
  /** Slots of the arena. */
  room = 8;
  override copySubmit(request?: CopyBatch, items?: Uint32Array, count = 0): void {
    if (request === undefined || items === undefined) throw new Error("a batch was expected");
    const rows = Array.from({ length: count }, (_, item) => [
      ...items.subarray(item * ITEM_WORDS, (item + 1) * ITEM_WORDS),
    ]);
    this.copied.push({ request: { ...request }, items: rows });
  }
  arenaOpen({ path }: { path: string }) {
    this.calls.push(`open ${path}`);
    const slabs = 1;
    return {
      arena: OWN,
      reopened: false,
      clean: true,
      slabs,
      slabBytes: 2 ** 21,
      numaPolicySet: false,
    };
  }
  arenaClose(arena: number, keep: boolean): void {
    this.calls.push(`close ${arena} ${keep}`);
  }
  arenaAssign(_arena: number, slab: number, payloadBytes: number): number {
    this.calls.push(`assign ${slab} ${payloadBytes}`);
    return this.room;
  }
  arenaRelease(_arena: number, slab: number): void {
    this.calls.push(`release ${slab}`);
  }
  arenaSlotsPerSlab(): number {
    return this.room;
  }
  arenaPutNamespace(_arena: number, index: number, digest: Uint8Array): void {
    this.calls.push(`namespace ${index} ${digest[0]}`);
  }
}

let addon: FakeAddon;
let copies: Copies;
let tier: FakeDiskTier;
let sources: UploadSources;
let batches: StagingBatches;
let ms: number;
let digest: Uint8Array;
const bad: [number, number, number][] = [];

beforeEach(() => {
  ms = 0;
  digest = new Uint8Array(16).fill(5);
  bad.length = 0;
  addon = new FakeAddon();
  copies = new Copies(addon, () => ms);
  tier = new FakeDiskTier(100);
  sources = new UploadSources({
    addon,
    copies,
    tier,
    path: "/pool/uploads",
    slabBytes: 2 ** 21,
    namespaceOf: () => 2,
    digestOf: () => digest,
    now: () => ms,
  });
  batches = new StagingBatches(copies, POOL, REGION, {
    below: sources,
    bad: (block, from, status) => bad.push([block, from, status]),
  });
});
afterEach(async () => {
  expect(copies.batchesInFlight).toBe(0);
  sources.stop();
  await sources.close();
  expect(addon.calls.at(-1)).toBe(`close ${OWN} false`);
});

const RANGE: StagedRange = {
  offsetBytes: 65_536,
  strideBytes: STRIDE,
  payloadBytes: 1_000,
  shard: 1,
  shards: 2,
  deadlineMs: 500,
};

/** Blocks 10, 11, …; a number of 0 stands in DRAM (slot = block + 40), another is its slot on a disk. */
function itemsOf(...disk: number[]): DramItems {
  return {
    blocks: Uint32Array.from(disk, (_, item) => 10 + item),
    slots: Uint32Array.from(disk, (slot, item) => (slot === 0 ? 50 + item : NO_DRAM_SLOT)),
    diskSlots: Uint32Array.from(disk),
  };
}

/** Ends the oldest copy batch. */
function endCopy(statusOf: (item: number) => number = () => ITEM.OK): Copied {
  const one = addon.copied.shift();
  if (one === undefined) throw new Error("nothing is copied");
  const statuses = Uint8Array.from(one.items, (_, item) => statusOf(item));
  copies.ended(one.request.batch, statuses, 0);
  return one;
}

/** Range of a copy item: where its block goes in the region. */
const at = (position: number): number => RANGE.offsetBytes + position * STRIDE;

describe("an export", () => {
  it("of blocks in DRAM reads no disk", async () => {
    const ended = batches.exportBlocks(RANGE, itemsOf(0, 0));
    const { request, items } = endCopy();
    expect(request).toMatchObject({ kind: COPY.EXPORT, arena: POOL, region: REGION, shard: 1 });
    expect(items).toEqual([
      [50, at(0), 0, 10, 0],
      [51, at(1), 0, 11, 0],
    ]);
    expect([...(await ended)]).toEqual([ITEM.OK, ITEM.OK]);
    expect(addon.batches).toEqual([]);
  });

  it("reads what is on NVMe alone into an arena of its own, behind all other reads, and exports it from there", async () => {
    const ended = batches.exportBlocks(RANGE, itemsOf(0, 21, 0, 23));
    expect(endCopy().items.map(([slot]) => slot)).toEqual([50, 52]);
    await settle();
    const { request, items } = addon.end(copies, () => READ_WELL);
    const wanted = { kind: DISK.READ, disk: 0, arena: OWN, region: 0, shard: 1, shards: 2 };
    expect(request).toMatchObject({ ...wanted, priority: DISK_PRIORITY.OTHER, deadlineMs: 500 });
    expect([...items.subarray(0, DISK_ITEM_WORDS)]).toEqual([21, 0, 0, 11, 0]);
    expect([...items.subarray(DISK_ITEM_WORDS, 2 * DISK_ITEM_WORDS)]).toEqual([23, 0, 0, 13, 1]);
    await settle();
    const exported = endCopy();
    expect(exported.request).toMatchObject({ kind: COPY.EXPORT, arena: OWN, region: REGION });
    expect(exported.items).toEqual([
      [0, at(1), 0, 11, 0],
      [1, at(3), 0, 13, 0],
    ]);
    expect([...(await ended)]).toEqual([ITEM.OK, ITEM.OK, ITEM.OK, ITEM.OK]);
    const calls = ["open /pool/uploads", "assign 0 1024", "namespace 2 5", "release 0"];
    expect(addon.calls).toEqual(calls);
    expect(tier.endings.map(({ slot, status }) => [slot, status])).toEqual([
      [21, ITEM.OK],
      [23, ITEM.OK],
    ]);
    expect(bad).toEqual([]);
  });

  it("reads disks beside each other, and in parts what the arena cannot hold at once", async () => {
    addon.room = 2;
    const ended = batches.exportBlocks(RANGE, itemsOf(21, 121, 23));
    await settle();
    expect(addon.batches.map(({ request }) => request.disk)).toEqual([0, 1]);
    addon.end(copies, () => READ_WELL);
    addon.end(copies, () => READ_WELL);
    await settle();
    expect(endCopy().items.map(([slot]) => slot)).toEqual([0, 1]);
    await settle();
    expect(addon.batches.map(({ count }) => count)).toEqual([1]);
    addon.end(copies, () => READ_WELL);
    await settle();
    expect(endCopy().items).toEqual([[0, at(2), 0, 12, 0]]);
    expect([...(await ended)]).toEqual([ITEM.OK, ITEM.OK, ITEM.OK]);
    expect(addon.calls.filter((call) => call.startsWith("release"))).toHaveLength(2);
  });

  it("tells of every source that proved bad, and of no other failure", async () => {
    const statuses = [ITEM.CORRUPT, ITEM.IDENTITY, ITEM.IO, ITEM.DEADLINE, ITEM.CANCELLED];
    const ended = batches.exportBlocks(RANGE, itemsOf(0, 21, 22, 23, 24, 25, 26));
    endCopy(() => ITEM.CORRUPT);
    await settle();
    addon.end(copies, (item) => statuses[item] ?? READ_WELL);
    await settle();
    endCopy();
    expect([...(await ended)]).toEqual([ITEM.CORRUPT, ...statuses, ITEM.OK]);
    expect(bad).toEqual([
      [10, TIER.DRAM, ITEM.CORRUPT],
      [11, TIER.NVME, ITEM.CORRUPT],
      [12, TIER.NVME, ITEM.IDENTITY],
      [13, TIER.NVME, ITEM.IO],
    ]);
    expect(tier.endings).toHaveLength(6);
  });

  it("of blocks that were all unreadable copies nothing, and frees the arena", async () => {
    const ended = batches.exportBlocks(RANGE, itemsOf(21));
    await settle();
    addon.end(copies, () => ITEM.IO);
    expect([...(await ended)]).toEqual([ITEM.IO]);
    expect(addon.copied).toEqual([]);
    expect(addon.calls.at(-1)).toBe("release 0");
  });

  it("waits for the arena, and does not read when its time is over by then", async () => {
    const first = batches.exportBlocks(RANGE, itemsOf(21));
    const second = batches.exportBlocks(RANGE, itemsOf(22));
    await settle();
    expect(addon.batches).toHaveLength(1);
    ms = RANGE.deadlineMs;
    addon.end(copies, () => ITEM.DEADLINE);
    expect([...(await first)]).toEqual([ITEM.DEADLINE]);
    expect([...(await second)]).toEqual([ITEM.DEADLINE]);
    expect(addon.batches).toEqual([]);
  });

  it("of a block that no arena holds, or without an arena, fails", async () => {
    addon.room = 0;
    expect([...(await batches.exportBlocks(RANGE, itemsOf(21)))]).toEqual([ITEM.CANCELLED]);
    const without = new StagingBatches(copies, POOL, REGION);
    expect([...(await without.exportBlocks(RANGE, itemsOf(21)))]).toEqual([ITEM.CANCELLED]);
    expect(addon.calls).toEqual(["open /pool/uploads"]);
  });

  it("binds a namespace to its slots once, and anew when the index is another's", async () => {
    const one = async (): Promise<void> => {
      const ended = batches.exportBlocks(RANGE, itemsOf(21));
      await settle();
      addon.end(copies, () => ITEM.CANCELLED);
      await ended;
    };
    await one();
    await one();
    digest = new Uint8Array(16).fill(6);
    await one();
    const bound = addon.calls.filter((call) => call.startsWith("namespace"));
    expect(bound).toEqual(["namespace 2 5", "namespace 2 6"]);
  });

  it("ends when the daemon stops: reads are cancelled, waiting ones do not begin", async () => {
    const first = batches.exportBlocks(RANGE, itemsOf(21));
    const second = batches.exportBlocks(RANGE, itemsOf(22));
    await settle();
    sources.stop();
    expect(addon.cancelled).toHaveLength(1);
    addon.end(copies, () => ITEM.CANCELLED);
    expect([...(await first)]).toEqual([ITEM.CANCELLED]);
    expect([...(await second)]).toEqual([ITEM.CANCELLED]);
  });
});

describe("an import", () => {
  it("goes into slots of the pool", async () => {
    const ended = batches.importBlocks(RANGE, itemsOf(0, 0));
    const { request, items } = endCopy((item) => (item === 1 ? ITEM.CORRUPT : ITEM.OK));
    expect(request).toMatchObject({ kind: COPY.IMPORT, arena: POOL, payloadBytes: 1_000 });
    expect(items.map(([slot]) => slot)).toEqual([50, 51]);
    expect([...(await ended)]).toEqual([ITEM.OK, ITEM.CORRUPT]);
    expect(bad).toEqual([]);
  });

  it("is refused when the copy queue is full", async () => {
    const full = new StagingBatches(
      Object.assign(Object.create(copies) as Copies, { full: () => true }),
      POOL,
      REGION,
    );
    expect([...(await full.importBlocks(RANGE, itemsOf(0)))]).toEqual([ITEM.CANCELLED]);
    expect(addon.copied).toEqual([]);
  });
});
