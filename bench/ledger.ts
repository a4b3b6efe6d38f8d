/**
 * A ledger by itself, without a store behind it: what the in-process benches and the pure replay run on. It is the
 * daemon's ledger; only the slab callbacks, which would reach the addon, do nothing here.
 */
import { assert } from "../src/assert.ts";
import { Ledger } from "../src/ledger/ledger.ts";
import { type LedgerOptions, TIER } from "../src/ledger/types.ts";
import { LIMITS } from "../src/limits.ts";
import { LruPolicy } from "../src/policy/lru.ts";

export const KEY_WORDS = 8;
/** Payload declared to the ledger; it decides nothing here but the size class. */
const PAYLOAD_BYTES = 64;
const SLOTS_PER_SLAB = 1 << 16;

export interface BareLedgerOptions {
  /** Blocks the DRAM tier holds. */
  readonly capacityBlocks: number;
  readonly highWatermark: number;
  readonly lowWatermark: number;
  /** Largest number of keys in one reservation; they hold records before victims are chosen. */
  readonly reserveBlocksMax: number;
  readonly logEntries?: number;
}

export function bareLedgerOptions(options: BareLedgerOptions): LedgerOptions {
  assert(options.capacityBlocks >= 1, "a ledger holds at least one block");
  assert(options.lowWatermark <= options.highWatermark, "watermarks are in order");
  return {
    blocksMax: options.capacityBlocks + options.reserveBlocksMax,
    namespacesMax: 4,
    tenantsMax: 2,
    tiers: [
      {
        slabs: Math.ceil(options.capacityBlocks / SLOTS_PER_SLAB),
        slotsPerSlab: () => SLOTS_PER_SLAB,
        assignSlab: () => undefined,
        releaseSlab: () => undefined,
        invalidate: () => undefined,
        blocksMax: options.capacityBlocks,
        highWatermark: options.highWatermark,
        lowWatermark: options.lowWatermark,
      },
      undefined,
    ],
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

/** Keys of chain `chain`, written from word 0. Distinct chains share no key (but by a 2^-256 chance). */
export function chainKeys(words: Uint32Array, chain: number, blocks: number): void {
  assert(words.length >= blocks * KEY_WORDS, "the array holds the chain");
  new XorShift(chain * 2_654_435_761 + 1).fill(words, 0, blocks * KEY_WORDS);
}

/** Fills the ledger with `chains` chains of `chainBlocks` blocks each. Returns blocks made visible. */
export function fillChains(
  ledger: Ledger,
  namespace: number,
  chains: number,
  chainBlocks: number,
  onChain: (chain: number) => void,
): number {
  const batch = 512;
  const words = new Uint32Array(chainBlocks * KEY_WORDS);
  const statuses = new Uint8Array(batch);
  const blocks = new Uint32Array(batch);
  let visible = 0;
  for (let chain = 0; chain < chains; chain += 1) {
    chainKeys(words, chain, chainBlocks);
    for (let depth = 0; depth < chainBlocks; depth += batch) {
      const count = Math.min(batch, chainBlocks - depth);
      visible += storeNow(
        ledger,
        namespace,
        depth,
        words,
        depth * KEY_WORDS,
        count,
        statuses,
        blocks,
      );
    }
    onChain(chain);
  }
  return visible;
}
