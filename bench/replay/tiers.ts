/**
 * The replay over DRAM and NVMe, on the ledger alone. It does what the daemon does, exactly on demand: before a
 * DRAM copy is dropped it has been copied down (write-back ahead of eviction), everything is admitted, a hit on
 * NVMe is promoted root-first with the lower copy kept. Hits are the leading blocks that are in either tier; the
 * split is that before promotion. A write is one block copied down.
 */
import { assert } from "../../src/assert.ts";
import type { Ledger } from "../../src/ledger/ledger.ts";
import { STATE, TIER } from "../../src/ledger/types.ts";
import { addChainedNamespace, bareLedger, storeNow } from "../ledger.ts";
import { Progress } from "../progress.ts";
import { counts, ON_DEMAND, type ReplayCounts, requestKeys } from "./pure.ts";
import { KEY_WORDS, type Trace, traceKeys } from "./trace.ts";

export interface TierReplayOptions {
  /** Blocks DRAM holds; 0 = as many as the trace names. */
  readonly capacityBlocks: number;
  readonly nvmeBlocks: number;
}

export interface TierReplayCounts extends ReplayCounts {
  readonly dramHits: number;
  readonly nvmeHits: number;
  readonly promotions: number;
  readonly nvmeWrites: number;
  /** nvmeWrites ÷ blocks. */
  readonly nvmeWritesPerReference: number;
  /** DRAM copies dropped that had no copy on NVMe. */
  readonly evictedUnbacked: number;
}

/** Blocks copied down between two looks at what is still missing. */
const BATCH_BLOCKS = 256;

class TierReplay {
  readonly #trace: Trace;
  readonly #ledger: Ledger;
  readonly #capacityBlocks: number;
  readonly #namespace: number;
  readonly #keys: Uint32Array;
  readonly #words: Uint32Array;
  readonly #statuses: Uint8Array;
  readonly #blocks: Uint32Array;
  readonly #down = new Uint32Array(BATCH_BLOCKS);
  hits = 0;
  dramHits = 0;
  promotions = 0;
  writes = 0;

  constructor(trace: Trace, options: TierReplayOptions) {
    const { nvmeBlocks } = options;
    assert(nvmeBlocks >= 1, "a tier holds at least one block");
    this.#trace = trace;
    this.#capacityBlocks = Math.max(1, options.capacityBlocks || trace.hashIds.length);
    this.#ledger = bareLedger({
      capacityBlocks: this.#capacityBlocks,
      nvmeBlocks,
      ...ON_DEMAND,
      reserveBlocksMax: trace.requestBlocksMax + 1,
      logEntries: 1_024,
    });
    this.#namespace = addChainedNamespace(this.#ledger);
    this.#keys = traceKeys(trace);
    this.#words = new Uint32Array(Math.max(1, trace.requestBlocksMax) * KEY_WORDS);
    this.#statuses = new Uint8Array(trace.requestBlocksMax);
    this.#blocks = new Uint32Array(trace.requestBlocksMax);
  }

  /** One request: look-up under a lease, promotion, store of the rest. */
  serve(request: number): void {
    const ledger = this.#ledger;
    const count = requestKeys(this.#trace, this.#keys, request, this.#words);
    if (count === 0) return;
    const { depth, block } = ledger.lookup(this.#namespace, this.#words, 0, count);
    this.hits += depth;
    if (depth > 0) {
      ledger.leaseOpen(request + 1, 1, block);
      ledger.touch(block);
      const below = this.#belowDram(block, depth);
      this.dramHits += depth - below;
      this.#makeRoom(below + count - depth);
      this.#promote(below);
    } else this.#makeRoom(count);
    if (depth < count) {
      const at = depth * KEY_WORDS;
      const { length } = this.#blocks;
      assert(count - depth <= length, "the request fits its buffers");
      storeNow(
        ledger,
        this.#namespace,
        depth,
        this.#words,
        at,
        count - depth,
        this.#statuses,
        this.#blocks,
      );
    }
    if (depth > 0) ledger.leaseClose(request + 1);
  }

  /** Writes the blocks of the hit that are not in DRAM into #blocks, deepest first; how many. */
  #belowDram(deepest: number, depth: number): number {
    let below = 0;
    let block = deepest;
    for (; below < depth; below += 1) {
      if (this.#ledger.stateOf(block, TIER.DRAM) === STATE.VISIBLE) break;
      this.#blocks[below] = block;
      block = this.#ledger.parentOf(block);
    }
    // A touch climbs a limited way; the part in DRAM was used, too, and must not make room for its own tail.
    if (below > 0 && below < depth) this.#ledger.touch(block);
    return below;
  }

  /** Copies down what would otherwise be dropped unbacked when `blocks` more come into DRAM. */
  #makeRoom(blocks: number): void {
    const ledger = this.#ledger;
    const leaving = ledger.core.tier(TIER.DRAM).blocks + blocks - this.#capacityBlocks;
    if (leaving <= 0) return;
    // No block of DRAM needs to be written twice: more than that is NVMe dropping what it just took.
    for (let left = this.#capacityBlocks; left > 0; ) {
      const missing = ledger.unbacked(TIER.DRAM, TIER.NVME, leaving);
      if (missing === 0) return;
      const wanted = Math.min(missing, BATCH_BLOCKS);
      const found = ledger.demotable(TIER.DRAM, TIER.NVME, this.#down, wanted);
      if (found === 0) return;
      for (let i = 0; i < found; i += 1) this.#copyDown(this.#down[i] as number);
      left -= found;
    }
  }

  #copyDown(block: number): void {
    const ledger = this.#ledger;
    if (ledger.copyBegin(block, TIER.DRAM, TIER.NVME)) {
      ledger.copyEnd(block, TIER.DRAM, TIER.NVME, true);
      this.writes += 1;
    } else ledger.demotionRefused(block);
  }

  /** Root-first; below a block that finds no room nothing is promoted. */
  #promote(below: number): void {
    for (let i = below - 1; i >= 0; i -= 1) {
      const block = this.#blocks[i] as number;
      if (!this.#ledger.copyBegin(block, TIER.NVME, TIER.DRAM)) return;
      this.#ledger.copyEnd(block, TIER.NVME, TIER.DRAM, true);
      this.promotions += 1;
    }
  }

  end(): TierReplayCounts {
    this.#ledger.audit();
    const { blocks } = this.#trace;
    return {
      ...counts(this.#trace, this.hits),
      dramHits: this.dramHits,
      nvmeHits: this.hits - this.dramHits,
      promotions: this.promotions,
      nvmeWrites: this.writes,
      nvmeWritesPerReference: blocks === 0 ? 0 : this.writes / blocks,
      evictedUnbacked: this.#ledger.core.tier(TIER.DRAM).evictedUnbacked,
    };
  }
}

export function replayTiers(trace: Trace, options: TierReplayOptions): TierReplayCounts {
  const replay = new TierReplay(trace, options);
  const progress = new Progress("replay", trace.requests);
  for (let request = 0; request < trace.requests; request += 1) {
    replay.serve(request);
    const share = trace.blocks === 0 ? 0 : replay.hits / trace.blocks;
    progress.update(request + 1, `hit ${(share * 100).toFixed(1)} %`);
  }
  progress.end();
  return replay.end();
}
