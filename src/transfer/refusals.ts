/**
 * The last few thousand blocks that were not stored, or not copied to a lower tier, and why, for whoever asks about a key.
 * A ring in flat arrays: it is written while the daemon is busiest. Blocks are kept by a hash of their key, so an
 * answer may, once in some billions, speak of another block.
 */
import { LIMITS } from "../limits.ts";

/** Why a block was not written back. Labels: observe/metrics.ts WRITE_BACK_REFUSAL_LABELS. */
export const REFUSAL = {
  /** The ledger found no slot, or not all ancestors are there. */
  NO_ROOM: 0,
  /** The device takes no writes now. */
  READ_ONLY: 1,
  /** The device's endurance budget is used up. */
  WRITE_BUDGET: 2,
  WRITE_FAILED: 3,
  /** Sync or index commit failed. */
  NOT_DURABLE: 4,
  /** The copy in DRAM proved wrong. */
  SOURCE_CORRUPT: 5,
  /** The daemon stopped. */
  STOPPED: 6,
  /** The directory's table of namespaces is full. */
  NAMESPACES: 7,
  /** It left DRAM before its turn came; the ledger counts these. */
  EVICTED: 8,
} as const;
/** Why a key of a STORE was not taken, or not kept: in a ring of its own (engine-api/not-stored.ts). */
export const STORE_REFUSAL = {
  /** No slot could be freed in DRAM. */
  FULL: 0,
  /** No record could be freed. */
  LEDGER_FULL: 1,
  /** The block it continues was not here. */
  PARENT_ABSENT: 2,
  /** Its bytes did not come in time, or the call was cancelled before. */
  NOT_FILLED: 3,
} as const;
export type Refusal = (typeof REFUSAL)[keyof typeof REFUSAL];

export interface RefusalNote {
  readonly reason: number;
  readonly atMs: number;
}

export class Refusals {
  readonly #hashes = new Uint32Array(LIMITS.refusalsKept);
  readonly #reasons = new Uint8Array(LIMITS.refusalsKept);
  readonly #times = new Float64Array(LIMITS.refusalsKept);
  readonly #now: () => number;
  #next = 0;

  /** now: milliseconds of Unix time. */
  constructor(now: () => number) {
    this.#now = now;
  }

  /** words[at…]: the key, `keyWords` long. */
  add(namespace: number, words: Uint32Array, at: number, keyWords: number, reason: number): void {
    const index = this.#next;
    this.#next = (index + 1) % LIMITS.refusalsKept;
    this.#hashes[index] = hash(namespace, words, at, keyWords);
    this.#reasons[index] = reason;
    this.#times[index] = this.#now();
  }

  /** The newest note about this key. */
  find(
    namespace: number,
    words: Uint32Array,
    at: number,
    keyWords: number,
  ): RefusalNote | undefined {
    const wanted = hash(namespace, words, at, keyWords);
    for (let step = 1; step <= LIMITS.refusalsKept; step++) {
      const index = (this.#next - step + LIMITS.refusalsKept) % LIMITS.refusalsKept;
      const atMs = this.#times[index]!;
      if (atMs === 0) return undefined;
      if (this.#hashes[index] === wanted) return { reason: this.#reasons[index]!, atMs };
    }
    return undefined;
  }
}

function hash(namespace: number, words: Uint32Array, at: number, keyWords: number): number {
  let code = Math.imul(namespace + 1, 0x9e37_79b1);
  for (let word = 0; word < keyWords; word++) {
    code = Math.imul(code ^ words[at + word]!, 0x85eb_ca6b);
    code ^= code >>> 13;
  }
  return code >>> 0;
}
