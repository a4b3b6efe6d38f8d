/**
 * A ledger by itself, without a store behind it: what the in-process benches and the pure replay run on. It is the
 * daemon's ledger; only the slab callbacks, which would reach the addon, do nothing here.
 */
import { assert } from "../src/assert.ts";
import { Ledger } from "../src/ledger/ledger.ts";
import { type LedgerOptions, type SlabTierOptions, TIER } from "../src/ledger/types.ts";
import { LIMITS } from "../src/limits.ts";
import { LruPolicy } from "../src/policy/lru.ts";

export const KEY_WORDS = 8;
/** Payload declared to the ledger; it decides nothing here but the size class. */
const PAYLOAD_BYTES = 64;
const SLOTS_PER_SLAB = 1 << 16;

export interface BareLedgerOptions {
  /** Blocks the DRAM tier holds. */
  readonly capacityBlocks: number;
  /** Blocks the NVMe tier holds; absent: there is none. */
  readonly nvmeBlocks?: number;
  readonly highWatermark: number;
  readonly lowWatermark: number;
  /** Largest number of keys in one reservation; they hold records before victims are chosen. */
  readonly reserveBlocksMax: number;
  readonly logEntries?: number;
}

export function bareLedgerOptions(options: BareLedgerOptions): LedgerOptions {
  assert(options.capacityBlocks >= 1, "a ledger holds at least one block");
  assert(options.lowWatermark <= options.highWatermark, "watermarks are in order");
  const { nvmeBlocks } = options;
  const tier = (blocks: number): SlabTierOptions => ({
    slabs: Math.ceil(blocks / SLOTS_PER_SLAB),
    slotsPerSlab: () => SLOTS_PER_SLAB,
    assignSlab: () => true,
    releaseSlab: () => undefined,
    invalidate: () => undefined,
    blocksMax: blocks,
    highWatermark: options.highWatermark,
    lowWatermark: options.lowWatermark,
  });
  return {
    blocksMax: options.capacityBlocks + (nvmeBlocks ?? 0) + options.reserveBlocksMax,
    namespacesMax: 4,
    tenantsMax: 2,
    tiers: [tier(options.capacityBlocks), nvmeBlocks === undefined ? undefined : tier(nvmeBlocks)],
    holesMax: LIMITS.holesMax,
    splitSamplesMax: LIMITS.splitSamplesMax,
    logEntries: options.logEntries ?? LIMITS.visibilityLogEntries,
    observer: { settled: () => undefined, leaseReduced: () => undefined },
  };
}

export function bareLedger(options: BareLedgerOptions): Ledger {
  return new Ledger(bareLedgerOptions(options), new LruPolicy());
}

/** Adds the one chained namespace of 32-byte keys that these runs use. */
export function addChainedNamespace(ledger: Ledger): number {
  return ledger.addNamespace({
    keyWords: KEY_WORDS,
    shards: 1,
    chained: true,
    payloadBytes: PAYLOAD_BYTES,
    tenant: 0,
  });
}

/** Stores keys of depth startDepth + 1 … and lands each wanted one at once. Returns how many were taken. */
export function storeNow(
  ledger: Ledger,
  namespace: number,
  startDepth: number,
  words: Uint32Array,
  at: number,
  count: number,
  statuses: Uint8Array,
  blocks: Uint32Array,
): number {
  const parentAt = startDepth === 0 ? 0 : at - KEY_WORDS;
  const result = ledger.reserve(
    namespace,
    startDepth,
    words,
    parentAt,
    at,
    count,
    0,
    statuses,
    blocks,
  );
  assert(!result.parentAbsent, "the parent was looked up just now");
  for (let index = 0; index < count; index += 1) {
    if (statuses[index] !== 2) continue;
    const block = blocks[index] as number;
    ledger.fillStart(block, TIER.DRAM, 0);
    ledger.fillEnd(block, TIER.DRAM, 0, true);
  }
  return result.wanted;
}

/**
 * 32-bit xorshift: fast, and the same keys for the same seed on every machine. Its state is kept signed, since an unsigned
 * one above 2^31 would be a heap number, and the bench's own garbage would count as the ledger's.
 */
export class XorShift {
  #state: number;

  constructor(seed: number) {
    this.#state = (seed ^ 0x9e37_79b9) | 0 || 1;
    for (let round = 0; round < 8; round += 1) this.#step();
  }

  #step(): number {
    let state = this.#state;
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    this.#state = state;
    return state;
  }

  /** The next unsigned 32-bit number. */
  next(): number {
    return this.#step() >>> 0;
  }

  /** Writes the next numbers over words [from, to). */
  fill(words: Uint32Array, from: number, to: number): void {
    let state = this.#state;
    for (let index = from; index < to; index += 1) {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      words[index] = state;
    }
    this.#state = state;
  }

  /** True when words [from, to) are the next numbers. */
  matches(words: Uint32Array, from: number, to: number): boolean {
    let state = this.#state;
    let difference = 0;
    for (let index = from; index < to; index += 1) {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      difference |= state ^ (words[index] as number);
    }
    this.#state = state;
    return difference === 0;
  }
}

/** Blocks stored by one call of the fill; keys are drawn a segment at a time. */
const SEGMENT_BLOCKS = 512;

/** Writes keys [segment · 512, …) of a chain from word `at` on, at most `blocks` of them. */
function segmentKeys(
  words: Uint32Array,
  at: number,
  chain: number,
  segment: number,
  blocks: number,
): void {
  const seed = Math.imul(chain, 0x9e37_79b1) ^ Math.imul(segment + 1, 0x85eb_ca6b);
  const count = Math.min(blocks, SEGMENT_BLOCKS);
  new XorShift(seed).fill(words, at, at + count * KEY_WORDS);
  // A 32-bit generator has one orbit, on which segments may overlap: the first two words make each key unique.
  for (let index = 0; index < count; index += 1) {
    words[at + index * KEY_WORDS] = chain;
    words[at + index * KEY_WORDS + 1] = segment * SEGMENT_BLOCKS + index;
  }
}

/** Keys of chain `chain`, written from word 0: no key stands twice in a chain or in two chains. */
export function chainKeys(words: Uint32Array, chain: number, blocks: number): void {
  assert(words.length >= blocks * KEY_WORDS, "the array holds the chain");
  for (let depth = 0; depth < blocks; depth += SEGMENT_BLOCKS) {
    segmentKeys(words, depth * KEY_WORDS, chain, depth / SEGMENT_BLOCKS, blocks - depth);
  }
}

/**
 * Fills the ledger with `chains` chains of `chainBlocks` blocks each; returns blocks made visible. All chains grow in
 * turn, a segment at a time, so that records of one chain lie in runs of 512 and not in one piece, as they do when many
 * engines store long prompts by chunks.
 */
export function fillChains(
  ledger: Ledger,
  namespace: number,
  chains: number,
  chainBlocks: number,
  onSegment: (segment: number) => void,
): number {
  // The last key of the segment before, then the keys of this one.
  const words = new Uint32Array((2 * SEGMENT_BLOCKS + 1) * KEY_WORDS);
  const at = SEGMENT_BLOCKS * KEY_WORDS;
  const statuses = new Uint8Array(SEGMENT_BLOCKS);
  const blocks = new Uint32Array(SEGMENT_BLOCKS);
  let visible = 0;
  for (let depth = 0; depth < chainBlocks; depth += SEGMENT_BLOCKS) {
    const segment = depth / SEGMENT_BLOCKS;
    const count = Math.min(SEGMENT_BLOCKS, chainBlocks - depth);
    for (let chain = 0; chain < chains; chain += 1) {
      if (depth > 0) segmentKeys(words, 0, chain, segment - 1, SEGMENT_BLOCKS);
      segmentKeys(words, at, chain, segment, count);
      visible += storeNow(ledger, namespace, depth, words, at, count, statuses, blocks);
    }
    onSegment(segment);
  }
  return visible;
}
