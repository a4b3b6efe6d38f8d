import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { addChainedNamespace, bareLedger, chainKeys, fillChains } from "../../bench/ledger.ts";
import { isPayload, writePayload } from "../../bench/replay/payload.ts";
import { ON_DEMAND, PRODUCTION, replayPure, requestKeys } from "../../bench/replay/pure.ts";
import { replayTiers } from "../../bench/replay/tiers.ts";
import { idealHits, type Trace, TraceBuilder, traceKeys } from "../../bench/replay/trace.ts";
import { conversations } from "./workload.ts";

interface Resident {
  parent: number;
  time: number;
  children: number;
}

/** Leaf-first LRU told in the plainest way: every block of a request is as recent as the request. */
function naiveHits(trace: Trace, capacityBlocks: number): number {
  const resident = new Map<number, Resident>();
  let hits = 0;
  for (let request = 0; request < trace.requests; request += 1) {
    const from = trace.starts[request] as number;
    const chain = [...trace.blockIndexes.subarray(from, trace.starts[request + 1])];
    const miss = chain.findIndex((block) => !resident.has(block));
    const hit = miss < 0 ? chain.length : miss;
    hits += hit;
    for (const block of chain.slice(0, hit)) (resident.get(block) as Resident).time = request;
    for (let position = hit; position < chain.length; position += 1) {
      if (resident.size >= capacityBlocks && !evictOldest(resident, new Set(chain))) break;
      const parent = position === 0 ? -1 : (chain[position - 1] as number);
      resident.set(chain[position] as number, { parent, time: request, children: 0 });
      const above = resident.get(parent);
      if (above !== undefined) above.children += 1;
    }
  }
  return hits;
}

function evictOldest(resident: Map<number, Resident>, kept: ReadonlySet<number>): boolean {
  let oldest = -1;
  for (const [block, entry] of resident) {
    if (entry.children > 0 || kept.has(block)) continue;
    if (oldest < 0 || entry.time < (resident.get(oldest) as Resident).time) oldest = block;
  }
  if (oldest < 0) return false;
  const parent = resident.get((resident.get(oldest) as Resident).parent);
  resident.delete(oldest);
  if (parent !== undefined) parent.children -= 1;
  return true;
}

describe("the pure replay", () => {
  it.each([1, 2, 7, 40, 150, 600])(
    "has exactly the hits of plain leaf-first LRU at %i blocks",
    (capacityBlocks) => {
      for (const seed of [1, 2, 3]) {
        const trace = conversations(seed, 300);
        expect(replayPure(trace, { capacityBlocks, ...ON_DEMAND }).hits).toBe(
          naiveHits(trace, capacityBlocks),
        );
      }
    },
  );

  it("reaches the trace's ideal when the cache is infinite", () => {
    const trace = conversations(4, 400);
    const counts = replayPure(trace, { capacityBlocks: 0, ...ON_DEMAND });
    expect(counts.hits).toBe(idealHits(trace));
    expect(counts).toMatchObject({
      requests: 400,
      blocks: trace.blocks,
      hitRate: counts.hits / trace.blocks,
    });
  });

  it("keeps fewer blocks at production watermarks than on demand", () => {
    const trace = conversations(5, 600);
    const onDemand = replayPure(trace, { capacityBlocks: 60, ...ON_DEMAND });
    const production = replayPure(trace, { capacityBlocks: 60, ...PRODUCTION });
    expect(production.hits).toBeGreaterThan(0);
    expect(production.hits).toBeLessThanOrEqual(onDemand.hits);
  });

  it("counts an empty trace and requests without a full block", () => {
    const builder = new TraceBuilder();
    expect(replayPure(builder.build(), { capacityBlocks: 4, ...ON_DEMAND }).hitRate).toBe(0);
    builder.add('{"timestamp":0,"input_length":100,"output_length":1,"hash_ids":[]}', 1);
    expect(replayPure(builder.build(), { capacityBlocks: 4, ...ON_DEMAND })).toMatchObject({
      requests: 1,
      blocks: 0,
    });
  });
});

describe("the replay over two tiers", () => {
  it.each([5, 40, 150])(
    "has the DRAM hits of DRAM alone, and drops nothing unwritten, at %i blocks",
    (capacityBlocks) => {
      for (const seed of [1, 2, 3]) {
        const trace = conversations(seed, 300);
        const tiers = replayTiers(trace, { capacityBlocks, nvmeBlocks: trace.hashIds.length });
        const alone = replayPure(trace, { capacityBlocks, ...ON_DEMAND });
        // Write-back and promotion leave the order of DRAM as it is; a chain longer than DRAM is stored in part.
        if (trace.requestBlocksMax < capacityBlocks) expect(tiers.dramHits).toBe(alone.hits);
        expect(tiers.evictedUnbacked).toBe(0);
        expect(tiers.dramHits + tiers.nvmeHits).toBe(tiers.hits);
        expect(tiers.nvmeWrites).toBeLessThanOrEqual(trace.hashIds.length);
        expect(tiers.nvmeWritesPerReference).toBe(tiers.nvmeWrites / trace.blocks);
      }
    },
  );

  it("reaches the trace's ideal when NVMe holds everything, and writes each block at most once", () => {
    const trace = conversations(4, 400);
    const tiers = replayTiers(trace, { capacityBlocks: 150, nvmeBlocks: trace.hashIds.length });
    expect(tiers.hits).toBe(idealHits(trace));
    expect(tiers.nvmeHits).toBeGreaterThan(0);
    expect(tiers.promotions).toBe(tiers.nvmeHits);
    expect(tiers.nvmeWrites).toBeGreaterThan(trace.hashIds.length - 150 - 1);
  });

  it("writes nothing while DRAM holds everything", () => {
    const trace = conversations(5, 200);
    const tiers = replayTiers(trace, { capacityBlocks: 0, nvmeBlocks: 100 });
    expect(tiers).toMatchObject({ hits: idealHits(trace), nvmeHits: 0, nvmeWrites: 0 });
  });

  it("keeps its rules with an NVMe tier that is far too small", () => {
    const trace = conversations(6, 400);
    const alone = replayPure(trace, { capacityBlocks: 100, ...ON_DEMAND });
    const tiers = replayTiers(trace, { capacityBlocks: 100, nvmeBlocks: 20 });
    expect(tiers.hits).toBeGreaterThanOrEqual(alone.hits);
    expect(tiers.hits).toBeLessThan(idealHits(trace));
  });
});

describe("a filled ledger", () => {
  it("holds every block of every chain under the keys that requests are drawn from", () => {
    const blocks = 1_200;
    const ledger = bareLedger({ capacityBlocks: 5 * blocks, ...ON_DEMAND, reserveBlocksMax: 512 });
    const namespace = addChainedNamespace(ledger);
    expect(fillChains(ledger, namespace, 5, blocks, () => undefined)).toBe(5 * blocks);
    const words = new Uint32Array(blocks * 8);
    const seen = new Set<string>();
    for (let chain = 0; chain < 5; chain += 1) {
      chainKeys(words, chain, blocks);
      expect(ledger.lookup(namespace, words, 0, blocks).depth).toBe(blocks);
      for (let at = 0; at < words.length; at += 8) seen.add(words.subarray(at, at + 8).join());
    }
    expect(seen.size).toBe(5 * blocks);
    chainKeys(words, 5, blocks);
    expect(ledger.lookup(namespace, words, 0, blocks).depth).toBe(0);
    ledger.audit();
  });
});

describe("a replayed block's payload", () => {
  it("is told by its key, and differs in any word that is changed", () => {
    const key = fc.uint32Array({ minLength: 8, maxLength: 8 });
    fc.assert(
      fc.property(
        key,
        fc.nat(63),
        fc.integer({ min: 1, max: 0xffff_ffff }),
        (words, at, change) => {
          const payload = new Uint32Array(64);
          writePayload(payload, words, 0);
          expect(isPayload(payload, words, 0)).toBe(true);
          payload[at] = ((payload[at] as number) ^ change) >>> 0;
          expect(isPayload(payload, words, 0)).toBe(false);
        },
      ),
    );
  });

  it("differs between blocks of a trace", () => {
    const trace = conversations(6, 50);
    const keys = traceKeys(trace);
    const payload = new Uint32Array(16);
    writePayload(payload, keys, 0);
    for (let block = 1; block < trace.hashIds.length; block += 1)
      expect(isPayload(payload, keys, block * 8)).toBe(false);
  });

  it("belongs to the keys that a request names in order", () => {
    const trace = conversations(7, 20);
    const keys = traceKeys(trace);
    const words = new Uint32Array(trace.requestBlocksMax * 8);
    const count = requestKeys(trace, keys, 19, words);
    const from = trace.starts[19] as number;
    for (let position = 0; position < count; position += 1) {
      const block = trace.blockIndexes[from + position] as number;
      expect(words.slice(position * 8, position * 8 + 8)).toEqual(
        keys.slice(block * 8, block * 8 + 8),
      );
    }
  });
});
