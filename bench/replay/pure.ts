/**
 * Replays a trace on the ledger alone: one request at a time in trace order. A hit is the number of leading
 * resident blocks; the rest is stored at once. The request's lease holds the prefix while its tail is stored, as
 * an engine's does, so that the daemon run (daemon.ts) must give the same count.
 */
import { assert } from "../../src/assert.ts";
import { addChainedNamespace, bareLedger, storeNow } from "../ledger.ts";
import { Progress } from "../progress.ts";
import { KEY_WORDS, type Trace, traceKeys } from "./trace.ts";

export interface ReplayOptions {
  /** Blocks the cache holds; 0 = as many as the trace names (an infinite cache). */
  readonly capacityBlocks: number;
  readonly highWatermark: number;
  readonly lowWatermark: number;
}

export interface ReplayCounts {
  readonly requests: number;
  readonly blocks: number;
  readonly hits: number;
  /** hits ÷ blocks. */
  readonly hitRate: number;
}

/** Exactly on demand: nothing leaves before its slot is needed. */
export const ON_DEMAND = { highWatermark: 1, lowWatermark: 1 } as const;
/** Defaults of dram.highWatermark and dram.lowWatermark. */
export const PRODUCTION = { highWatermark: 0.98, lowWatermark: 0.95 } as const;

/** Writes the keys of request `request` from word 0 of `into`; returns how many. */
export function requestKeys(
  trace: Trace,
  keys: Uint32Array,
  request: number,
  into: Uint32Array,
): number {
  const from = trace.starts[request] as number;
  const count = (trace.starts[request + 1] as number) - from;
  assert(count * KEY_WORDS <= into.length, "the request fits its buffer");
  for (let position = 0; position < count; position += 1) {
    const block = (trace.blockIndexes[from + position] as number) * KEY_WORDS;
    for (let word = 0; word < KEY_WORDS; word += 1) {
      into[position * KEY_WORDS + word] = keys[block + word] as number;
    }
  }
  return count;
}

export function counts(trace: Trace, hits: number): ReplayCounts {
  return {
    requests: trace.requests,
    blocks: trace.blocks,
    hits,
    hitRate: trace.blocks === 0 ? 0 : hits / trace.blocks,
  };
}

export function replayPure(trace: Trace, options: ReplayOptions): ReplayCounts {
  const distinct = trace.hashIds.length;
  const capacityBlocks = options.capacityBlocks === 0 ? distinct : options.capacityBlocks;
  const ledger = bareLedger({
    capacityBlocks: Math.max(1, capacityBlocks),
    highWatermark: options.highWatermark,
    lowWatermark: options.lowWatermark,
    reserveBlocksMax: trace.requestBlocksMax + 1,
    logEntries: 1_024,
  });
  const namespace = addChainedNamespace(ledger);
  const keys = traceKeys(trace);
  const words = new Uint32Array(Math.max(1, trace.requestBlocksMax) * KEY_WORDS);
  const statuses = new Uint8Array(trace.requestBlocksMax);
  const blocks = new Uint32Array(trace.requestBlocksMax);
  const progress = new Progress("replay", trace.requests);
  let hits = 0;
  for (let request = 0; request < trace.requests; request += 1) {
    const count = requestKeys(trace, keys, request, words);
    if (count === 0) continue;
    const { depth, block } = ledger.lookup(namespace, words, 0, count);
    hits += depth;
    if (depth > 0) {
      ledger.leaseOpen(request + 1, 1, block);
      ledger.touch(block);
    }
    if (depth < count) {
      const at = depth * KEY_WORDS;
      storeNow(ledger, namespace, depth, words, at, count - depth, statuses, blocks);
    }
    if (depth > 0) ledger.leaseClose(request + 1);
    if (options.highWatermark < 1) ledger.evictToWatermark(0);
    progress.update(request + 1, `hit ${((hits / trace.blocks) * 100).toFixed(1)} %`);
  }
  progress.end();
  ledger.audit();
  return counts(trace, hits);
}
