import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ITEM } from "../../addon/binding.ts";
import { type FetchResult, PRIORITY } from "../../tiers/remote/types.ts";
import { NO_BLOCK, STATE, TIER } from "../../src/ledger/types.ts";
import { LIMITS } from "../../src/limits.ts";
import { Links } from "../../src/transfer/links.ts";
import { RemoteFetcher } from "../../src/transfer/remote-fetcher.ts";
import { Small, type SmallOptions } from "../ledger/small.ts";
import {
  type AskedFetch,
  chainOf,
  CHUNK_BLOCKS,
  FakeStorage,
  keysOf,
  settle,
  spaceOf,
} from "./fake-storage.ts";

class Bench {
  ms = 0;
  kept = true;
  readonly small: Small;
  readonly storage = new FakeStorage();
  readonly links = new Links(() => this.ms);
  readonly imported: number[] = [];
  readonly faults: unknown[] = [];
  readonly control = new AbortController();
  /** [blocks, bytes] of each call of done. */
  readonly done: [number, number][] = [];
  readonly fetcher: RemoteFetcher;

  constructor(options: SmallOptions = {}) {
    this.small = new Small({ dram: 32, ...options });
    this.fetcher = new RemoteFetcher({
      ledger: this.small.ledger,
      storage: this.storage,
      links: this.links,
      spaceOf: () => (this.kept ? spaceOf(options.shards) : undefined),
      onImported: (namespace) => this.imported.push(namespace),
      fault: (error) => this.faults.push(error),
      now: () => this.ms,
    });
  }

  fetch(chain: string, from = 0, deadlineMs = 1_000): void {
    this.fetcher.fetch(
      chainOf(this.small, chain),
      from,
      deadlineMs,
      this.control.signal,
      (blocks, bytes) => this.done.push([blocks, bytes]),
    );
  }

  /** A fetch by somebody else: [blocks, bytes] of its end. */
  another(chain: string): [number, number][] {
    const ends: [number, number][] = [];
    const { signal } = new AbortController();
    this.fetcher.fetch(chainOf(this.small, chain), 0, 1_000, signal, (blocks, bytes) =>
      ends.push([blocks, bytes]),
    );
    return ends;
  }

  asked(): AskedFetch {
    const one = this.storage.fetches.shift();
    if (one === undefined) throw new Error("nothing is fetched");
    return one;
  }

  /** Ends the oldest fetch as this says. */
  async end(...statuses: number[]): Promise<AskedFetch> {
    const one = this.asked();
    const all = Uint8Array.from(one.items.slots, (_, item) => statuses[item] ?? ITEM.OK);
    one.end(resultOf(all));
    await settle();
    return one;
  }

  state(chain: string): number | undefined {
    const block = this.small.block(chain);
    return block === NO_BLOCK ? undefined : this.small.ledger.stateOf(block, TIER.DRAM);
  }
}

function resultOf(statuses: Uint8Array, fault?: FetchResult["fault"]): FetchResult {
  return { statuses, fault, bytes: 10_000, microseconds: 10 };
}

let bench: Bench;
beforeEach(() => {
  bench = new Bench();
});
afterEach(() => {
  expect(bench.storage.fetches).toEqual([]);
  expect(bench.done).toHaveLength(1);
  bench.small.ledger.audit();
});

describe("a chain that is fetched", () => {
  it("asks for its chunks in order and is visible when they are in", async () => {
    bench.fetch("abcd");
    const { chunk, from, items, priority, limits } = bench.storage.fetches[0]!;
    expect(chunk).toMatchObject({ firstDepth: 1, shard: 0, parentKey: new Uint8Array(32) });
    expect(chunk.keys).toEqual(keysOf(bench.small, "ab", 2));
    expect([from, priority, limits.deadlineMs]).toEqual([0, PRIORITY.PREFETCH, 1_000]);
    const blocks = ["a", "ab"].map((one) => bench.small.block(one));
    expect([...items.blocks]).toEqual(blocks);
    const { ledger } = bench.small;
    expect([...items.slots]).toEqual(blocks.map((one) => ledger.slotOf(one, TIER.DRAM, 0)));
    expect(bench.state("ab")).toBe(STATE.FILLING);
    bench.ms = 5;
    await bench.end();
    expect(bench.small.hit("abcd")).toBe(2);
    const second = await bench.end();
    expect(second.chunk.firstDepth).toBe(3);
    expect(second.chunk.parentKey).toEqual(keysOf(bench.small, "ab", 1));
    expect(bench.done).toEqual([[4, 4 * 64]]);
    expect(bench.small.hit("abcd")).toBe(4);
    expect(bench.imported).toEqual([bench.small.namespace, bench.small.namespace]);
    expect(bench.links.remoteToDram.bytes).toBe(20_000);
    expect(bench.faults).toEqual([]);
  });

  it("has so many chunks under way at once, and no part of one", async () => {
    bench.fetch("abcdefghijklm");
    expect(bench.storage.fetches).toHaveLength(LIMITS.remoteChunksInFlight);
    let ended = 0;
    while (bench.done.length === 0) {
      await bench.end();
      ended++;
      expect(bench.storage.fetches.length).toBeLessThanOrEqual(LIMITS.remoteChunksInFlight);
    }
    // The thirteenth block is no chunk.
    expect([ended, bench.done]).toEqual([6, [[12, 12 * 64]]]);
  });

  it("begins in the middle of a chunk where the node has its beginning", async () => {
    bench.small.store("abc");
    bench.fetch("abcd", 3);
    const { chunk, from, items } = await bench.end();
    expect([chunk.firstDepth, from, items.slots.length]).toEqual([3, 1, 1]);
    expect(bench.done).toEqual([[1, 64]]);
  });

  it("leaves out what somebody else brought since", async () => {
    bench.small.store("abc");
    bench.fetch("abcd", 2);
    const { from, items } = await bench.end();
    expect([from, items.slots.length]).toEqual([1, 1]);
    expect(bench.done).toEqual([[2, 64]]);
  });

  it("is waited for by another fetch of its beginning, which goes on behind it", async () => {
    bench.fetch("abcd");
    const second = bench.another("abcdef");
    await settle();
    await bench.end();
    await bench.end();
    expect(bench.done).toEqual([[4, 4 * 64]]);
    expect(second).toEqual([]);
    await bench.end();
    expect(second).toEqual([[6, 2 * 64]]);
  });

  it("is taken over by another fetch of it when it fails", async () => {
    bench.fetch("ab");
    const second = bench.another("ab");
    await settle();
    await bench.end(ITEM.CORRUPT);
    expect(bench.done).toEqual([[0, 64]]);
    await bench.end();
    expect(second[0]?.[0]).toBe(2);
  });

  it("is taken over with all that lies behind it, whatever is still landing there", async () => {
    bench.fetch("abcdef");
    const second = bench.another("abcdef");
    await settle();
    // Its second and third chunk are under way when the first fails.
    await bench.end(ITEM.CORRUPT);
    expect(bench.storage.fetches).toHaveLength(3);
    await bench.end();
    await bench.end();
    expect(bench.done).toEqual([[0, 5 * 64]]);
    while (second.length === 0) await bench.end();
    expect(second[0]?.[0]).toBe(6);
  });

  it("is waited for no longer than the other fetch's time, or its end", async () => {
    const second: [number, number][] = [];
    const control = new AbortController();
    const done = (blocks: number, bytes: number): unknown => second.push([blocks, bytes]);
    bench.fetch("ab");
    const chain = chainOf(bench.small, "ab");
    bench.fetcher.fetch(chain, 0, 1_000, control.signal, done);
    bench.fetcher.fetch(chain, 0, 1, new AbortController().signal, done);
    await settle();
    expect(second).toEqual([]);
    bench.ms = 2;
    await vi.waitUntil(() => second.length === 1);
    control.abort();
    await settle();
    expect(second).toEqual([
      [0, 0],
      [0, 0],
    ]);
    await bench.end();
  });

  it("is done at once when there is nothing left to fetch, or the namespace is not kept", async () => {
    bench.small.store("ab");
    bench.fetch("ab", 0);
    await settle();
    expect(bench.done).toEqual([[2, 0]]);
    bench = new Bench();
    bench.kept = false;
    bench.fetch("ab");
    expect(bench.done).toEqual([]);
    await settle();
    expect(bench.done).toEqual([[0, 0]]);
  });
});

describe("a hole in a chain", () => {
  it.each(["before", "after"])(
    "is filled, and what stands below it comes back (%s the ledger has hidden that)",
    async (when) => {
      bench.small.store("abcdef");
      bench.small.ledger.corrupt(bench.small.block("abc"), TIER.DRAM);
      if (when === "after") bench.small.sweepAll();
      bench.fetch("abcdef", 2);
      const { chunk, from, items } = await bench.end();
      expect([chunk.firstDepth, from, items.slots.length]).toEqual([3, 0, 1]);
      await settle();
      bench.small.sweepAll();
      expect(bench.small.hit("abcdef")).toBe(6);
      expect(bench.storage.fetches).toEqual([]);
    },
  );

  it("behind another one is filled, too", async () => {
    bench.small.store("abcdef");
    for (const one of ["ab", "abcd"]) bench.small.ledger.corrupt(bench.small.block(one), TIER.DRAM);
    bench.small.sweepAll();
    bench.fetch("abcdef", 1);
    const depths: number[] = [];
    while (bench.storage.fetches.length > 0) depths.push((await bench.end()).chunk.firstDepth);
    await settle();
    bench.small.sweepAll();
    expect([depths, bench.small.hit("abcdef")]).toEqual([[1, 3], 6]);
  });
});

describe("a chain ends", () => {
  it("at a chunk that the store has not, and holds nothing of what was begun below it", async () => {
    bench.fetch("abcdef");
    await bench.end();
    await bench.end(ITEM.IO, ITEM.IO);
    expect(bench.done).toEqual([]);
    await bench.end(); // The third came; it stands on nothing.
    expect(bench.done[0]?.[0]).toBe(2);
    expect(["ab", "abc", "abcdef"].map((one) => bench.state(one))).toEqual([
      STATE.VISIBLE,
      undefined,
      undefined,
    ]);
    // Only whole chunks say what the link carries.
    expect(bench.links.remoteToDram.bytes).toBe(20_000);
  });

  it.each([ITEM.CORRUPT, ITEM.IDENTITY, ITEM.IO, ITEM.CANCELLED, ITEM.DEADLINE])(
    "in front of a block that did not come well (status %i)",
    async (status) => {
      bench.fetch("abcd");
      await bench.end(ITEM.OK, status);
      await bench.end();
      expect(bench.done).toEqual([[1, 3 * 64]]);
      expect(bench.small.hit("abcd")).toBe(1);
      expect(bench.state("abcd")).toBeUndefined();
    },
  );

  it("where DRAM has no room, and gives back what it took of that chunk", async () => {
    bench = new Bench({ dram: 3 });
    bench.fetch("abcd");
    expect(bench.storage.fetches).toHaveLength(1);
    expect(bench.state("abc")).toBeUndefined();
    await bench.end();
    expect(bench.done).toEqual([[2, 2 * 64]]);
  });

  it("where no record is free", async () => {
    bench = new Bench({ blocksMax: 3 });
    bench.small.store("xyz");
    bench.small.lease(1, "xyz");
    bench.fetch("ab");
    await settle();
    expect(bench.done).toEqual([[0, 0]]);
    bench.small.ledger.leaseClose(1);
  });

  it("where its parent has gone", async () => {
    bench.fetch("abcd", 2);
    await settle();
    expect(bench.done).toEqual([[0, 0]]);
  });

  it("where its keys are another chain's", async () => {
    bench.small.store("abc");
    const chain = chainOf(bench.small, "xbcd");
    chain.words.set(bench.small.words("abc").subarray(8, 16), 0);
    const end = (blocks: number, bytes: number): number => bench.done.push([blocks, bytes]);
    bench.fetcher.fetch(chain, 0, 1_000, bench.control.signal, end);
    await settle();
    expect(bench.done).toEqual([[1, 0]]);
  });

  it("at its deadline: nothing begins after it, and what runs may take what is left", async () => {
    bench.fetch("abcdefghijkl", 0, 100);
    bench.ms = 60;
    await bench.end();
    expect(bench.storage.fetches.at(-1)?.limits.deadlineMs).toBe(40);
    bench.ms = 100;
    while (bench.storage.fetches.length > 0) await bench.end();
    expect(bench.done).toEqual([[10, 10 * 64]]);
  });

  it("when it is cancelled, once nothing of it is under way", async () => {
    bench.fetch("abcdefghijkl");
    const [first] = bench.storage.fetches;
    bench.control.abort();
    expect(first?.limits.signal?.aborted).toBe(true);
    while (bench.storage.fetches.length > 0) {
      expect(bench.done).toEqual([]);
      await bench.end(ITEM.CANCELLED, ITEM.CANCELLED);
    }
    expect(bench.done).toEqual([[0, 0]]);
    expect(bench.state("a")).toBeUndefined();
  });
});

describe("blocks of several shards", () => {
  beforeEach(() => {
    bench = new Bench({ shards: 2 });
  });

  it("are visible when every shard has come", async () => {
    bench.fetch("ab");
    expect(bench.storage.fetches.map(({ chunk }) => chunk.shard)).toEqual([0, 1]);
    const [first, second] = bench.storage.fetches;
    expect([...(first?.items.blocks ?? [])]).toEqual([...(second?.items.blocks ?? [])]);
    expect([...(first?.items.slots ?? [])]).not.toEqual([...(second?.items.slots ?? [])]);
    await bench.end();
    expect(bench.small.hit("ab")).toBe(0);
    await bench.end();
    expect(bench.done).toEqual([[2, 2 * 2 * 64]]);
  });

  it("do not come when one shard fails", async () => {
    bench.fetch("ab");
    await bench.end(ITEM.OK, ITEM.CORRUPT);
    await bench.end();
    expect(bench.done[0]?.[0]).toBe(1);
    expect(bench.small.hit("ab")).toBe(1);
  });

  it("are not begun when there is room for one shard only", async () => {
    bench = new Bench({ shards: 2, dram: CHUNK_BLOCKS + 1 });
    bench.fetch("ab");
    await settle();
    expect(bench.done).toEqual([[0, 0]]);
    expect(bench.state("a")).toBeUndefined();
  });
});

describe("an exception in the tier", () => {
  it("is told, and the chain is done only when its other chunks are", async () => {
    bench.fetch("abcdef");
    const [first, second, third] = bench.storage.fetches.splice(0);
    const errors = [new Error("one"), new Error("two")] as const;
    first?.fail(errors[0]);
    await settle();
    expect(bench.done).toEqual([]);
    second?.fail(errors[1]);
    third?.end(resultOf(new Uint8Array([ITEM.IO, ITEM.IO])));
    await settle();
    expect(bench.done).toEqual([[0, 0]]);
    expect(bench.faults).toEqual([...errors]);
    // No byte may land in them any more: they are given back.
    expect(bench.state("a")).toBeUndefined();
  });
});
