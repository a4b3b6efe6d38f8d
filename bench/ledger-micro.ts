/**
 * Micro-benchmark of the ledger alone, for tuning: look-up, linear walk, STORE path, memory. `node --import
 * tsx bench/ledger-micro.ts [RESIDENT]`. Blocks are stored in shuffled chain order, 512 keys a call, so
 * that records of one chain do not lie beside each other but in runs of 512.
 */
import { Ledger } from "../src/ledger/ledger.ts";
import type { SlabTierOptions } from "../src/ledger/types.ts";
import { LruPolicy } from "../src/policy/lru.ts";

const KEY_WORDS = 8;
const CHAIN = 32_768;
const BATCH = 512;

let state = 12345;
function random(): number {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state;
}

function tier(blocks: number): SlabTierOptions {
  const slotsPerSlab = 131_072;
  return {
    slabs: Math.ceil(blocks / slotsPerSlab),
    slotsPerSlab: () => slotsPerSlab,
    assignSlab: () => true,
    releaseSlab: () => undefined,
    invalidate: () => undefined,
    blocksMax: blocks,
    highWatermark: 1,
    lowWatermark: 1,
  };
}

/** Keys of one chain: reproducible, spread over all words. */
function chainKeys(chain: number, from: number, count: number, words: Uint32Array): void {
  for (let i = 0; i < count; i += 1) {
    let x = (Math.imul(chain, 0x9e3779b1) ^ Math.imul(from + i + 1, 0x85ebca6b)) >>> 0;
    for (let k = 0; k < KEY_WORDS; k += 1) {
      x = Math.imul(x ^ (x >>> 15), 0x2c1b3c6d) + k + chain;
      words[i * KEY_WORDS + k] = x;
    }
  }
}

function percentile(values: number[], share: number): number {
  values.sort((a, b) => a - b);
  return values[Math.min(values.length - 1, Math.floor(values.length * share))] ?? 0;
}

const words = new Uint32Array((BATCH + 1) * KEY_WORDS);
const statuses = new Uint8Array(BATCH);
const blocks = new Uint32Array(BATCH);
const failed = new Uint8Array(BATCH);

/**
 * Stores `runs` batches, round robin over the chains; returns processor nanoseconds per block, key making
 * excluded.
 */
function store(ledger: Ledger, namespace: number, order: Uint32Array, depths: Uint32Array): number {
  let spent = 0;
  for (const chain of order) {
    const depth = depths[chain]!;
    if (depth > 0) chainKeys(chain, depth - 1, BATCH + 1, words);
    else chainKeys(chain, 0, BATCH, words.subarray(KEY_WORDS));
    const start = process.cpuUsage();
    const result = ledger.reserve(
      namespace,
      depth,
      words,
      0,
      KEY_WORDS,
      BATCH,
      0,
      statuses,
      blocks,
    );
    ledger.fillStartAll(blocks, statuses, BATCH, 0, 0);
    ledger.fillEndAll(blocks, failed, result.wanted, 0, 0);
    ledger.touch(result.deepest);
    const used = process.cpuUsage(start);
    spent += used.user + used.system;
    depths[chain] = depth + BATCH;
  }
  return (spent * 1e3) / (order.length * BATCH);
}

function shuffledOrder(chains: number): Uint32Array {
  const order = new Uint32Array((chains * CHAIN) / BATCH).map((_, i) => i % chains);
  for (let i = order.length - 1; i > 0; i -= 1) {
    const j = random() % (i + 1);
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

function main(): void {
  const chains = Math.max(1, Math.round(Number(process.argv[2] ?? 1_000_000) / CHAIN));
  const resident = chains * CHAIN;
  const ledger = new Ledger(
    {
      blocksMax: resident + BATCH,
      namespacesMax: 16,
      tenantsMax: 4,
      tiers: [tier(resident), tier(resident)],
      holesMax: 1024,
      splitSamplesMax: 64,
      logEntries: 65_536,
      observer: { settled: () => undefined, leaseReduced: () => undefined },
    },
    new LruPolicy(),
  );
  const namespace = ledger.addNamespace({
    keyWords: KEY_WORDS,
    shards: 1,
    chained: true,
    payloadBytes: 64,
    tenant: 0,
  });
  const depths = new Uint32Array(chains * 2);
  const order = shuffledOrder(chains);
  console.log(
    `resident ${resident}, store ${store(ledger, namespace, order, depths).toFixed(0)} ns/block`,
  );
  console.log(`memory ${(ledger.bytes / resident).toFixed(1)} B/block`);
  const full = new Uint32Array(CHAIN * KEY_WORDS);
  const lookups: number[] = [];
  const walks: number[] = [];
  for (let i = 0; i < 300; i += 1) {
    const cut = 1 + (random() % CHAIN);
    chainKeys(random() % chains, 0, CHAIN, full);
    full.fill(7, cut * KEY_WORDS);
    const start = performance.now();
    const result = ledger.lookup(namespace, full, 0, CHAIN);
    ledger.leaseOpen(i + 1, 1, result.block);
    lookups.push((performance.now() - start) * 1e3);
    if (result.depth !== cut) throw new Error(`depth ${result.depth}, wanted ${cut}`);
    ledger.leaseClose(i + 1);
    const walkStart = performance.now();
    ledger.lookupLinear(namespace, full, 0, CHAIN);
    walks.push(((performance.now() - walkStart) * 1e6) / cut);
  }
  console.log(
    `lookup p10 ${percentile(lookups, 0.1).toFixed(1)} µs, p50 ${percentile(lookups, 0.5).toFixed(1)} µs, p99 ${percentile(lookups, 0.99).toFixed(1)} µs`,
  );
  console.log(
    `walk p10 ${percentile(walks, 0.1).toFixed(1)}, p50 ${percentile(walks, 0.5).toFixed(1)} ns/block`,
  );
  const more = shuffledOrder(Math.min(chains, 8)).map((chain) => chain + chains);
  console.log(`store while evicting ${store(ledger, namespace, more, depths).toFixed(0)} ns/block`);
}

main();
