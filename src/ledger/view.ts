/**
 * A read-only view of the ledger for another thread: where blocks are, by 32- or 8-byte keys, and the
 * visibility log from a sequence number on. Reads race with the ledger's writes; `guard` (odd or changed
 * while entries move) makes a torn look-up repeat, an entry that was overwritten meanwhile is noticed by
 * the log's header. A view never blocks the ledger. What it says may be a moment old: it locates, it does
 * not promise.
 */
import type { Core } from "./core.ts";
import {
  LOG_ENTRY_WORDS,
  LOG_HEADER_WORDS,
  LOG_KEY,
  LOG_PARENT,
  LOG_UNPUBLISHED_MAX,
  type VisibilityLog,
} from "./log.ts";
import * as R from "./table.ts";
import { NO_BLOCK } from "./types.ts";

/** Structured-cloneable; the buffers are shared. */
export interface SharedLedger {
  readonly records: Uint32Array;
  readonly hash: Uint32Array;
  readonly guard: Int32Array;
  readonly indexBits: number;
  readonly seed: number;
  readonly log: Int32Array;
  readonly logEntries: number;
  /** [tenant × tiers + tier] */
  readonly tenantBlocks: Float64Array;
  readonly tenantBytes: Float64Array;
  /** Copies by state, one array per tier; undefined = tier absent. */
  readonly stateBlocks: readonly (Float64Array | undefined)[];
}

export function shareLedger(core: Core): SharedLedger {
  const { records, hash, guard, indexBits, seed } = core.table;
  const log: VisibilityLog = core.log;
  return {
    records,
    hash,
    guard,
    indexBits,
    seed,
    log: log.words,
    logEntries: log.entries,
    tenantBlocks: core.tenants.blocks,
    tenantBytes: core.tenants.bytes,
    stateBlocks: core.tiers.map((tier) => tier?.stateBlocks),
  };
}

export interface Located {
  /** All key words that were compared, zero-padded to eight. */
  readonly key: Uint32Array;
  readonly depth: number;
  /** Bit t: visible in tier t. */
  readonly tiers: number;
}

export interface LogEntry {
  readonly sequence: number;
  /** LOG_KIND */
  readonly kind: number;
  readonly tier: number;
  readonly namespace: number;
  readonly depth: number;
  readonly key: Uint32Array;
  /** All zeros for a root, and when a copy goes. */
  readonly parent: Uint32Array;
}

/** Attempts against concurrent removals before the last answer is taken. */
const ATTEMPTS = 16;

const TWO_32 = 2 ** 32;

export class LedgerView {
  readonly #shared: SharedLedger;
  readonly #indexMask: number;
  readonly #tagMask: number;

  constructor(shared: SharedLedger) {
    this.#shared = shared;
    this.#indexMask = 2 ** shared.indexBits - 1;
    this.#tagMask = ~this.#indexMask;
  }

  /**
   * Visible blocks whose key ends in `words` (keyWords of the namespace, or the last 2): at most one for a
   * full key, several where 8 bytes are ambiguous.
   */
  locate(
    namespace: number,
    words: Uint32Array,
    at: number,
    count: number,
    keyWords: number,
  ): Located[] {
    for (let attempt = 0; ; attempt += 1) {
      const before = Atomics.load(this.#shared.guard, 0);
      const found = this.#scan(namespace, words, at, count, keyWords);
      const after = Atomics.load(this.#shared.guard, 0);
      if ((before === after && (before & 1) === 0) || attempt >= ATTEMPTS) return found;
    }
  }

  #scan(
    namespace: number,
    words: Uint32Array,
    at: number,
    count: number,
    keyWords: number,
  ): Located[] {
    const { records, hash, seed } = this.#shared;
    const mask = hash.length - 1;
    const code = R.hashKey(words[at + count - 1]!, words[at + count - 2]!, namespace, seed);
    const found: Located[] = [];
    for (let i = code & mask, steps = 0; steps <= mask; i = (i + 1) & mask, steps += 1) {
      const entry = hash[i]!;
      if (entry === 0) break;
      if (((entry ^ code) & this.#tagMask) !== 0) continue;
      const block = (entry & this.#indexMask) - 1;
      if (block === NO_BLOCK) continue;
      const base = block * R.RECORD_WORDS;
      const flags = records[base + R.NAMESPACE]!;
      if ((flags & R.NAMESPACE_MASK) !== namespace || (flags & R.FLAG_VISIBLE) === 0) continue;
      const first = base + keyWords - count;
      let k = 0;
      while (k < count && records[first + k]! === words[at + k]!) k += 1;
      if (k < count) continue;
      const depth = records[base + R.DEPTH]! & R.DEPTH_MASK;
      const key = records.slice(base, base + R.KEY_WORDS_MAX);
      found.push({ key, depth, tiers: (flags >>> 22) & 3 });
    }
    return found;
  }

  /** Sequence the next entry will get. */
  get nextSequence(): number {
    const log = this.#shared.log;
    for (;;) {
      const high = Atomics.load(log, 1);
      const low = Atomics.load(log, 0) >>> 0;
      if (Atomics.load(log, 1) === high) return high * TWO_32 + low;
    }
  }

  /** Sequence of the oldest entry that can still be read. */
  get firstSequence(): number {
    const readable = this.#shared.logEntries - LOG_UNPUBLISHED_MAX;
    return Math.max(1, this.nextSequence - readable);
  }

  /**
   * Up to `max` entries from `from` on. Undefined: some were overwritten before they could be read
   * (resynchronise).
   */
  readLog(from: number, max: number): LogEntry[] | undefined {
    const entries: LogEntry[] = [];
    const end = Math.min(this.nextSequence, from + max);
    for (let sequence = from; sequence < end; sequence += 1) {
      const entry = this.#entry(sequence);
      if (entry === undefined) return undefined;
      entries.push(entry);
    }
    return entries;
  }

  #entry(sequence: number): LogEntry | undefined {
    const { log, logEntries } = this.#shared;
    const at = LOG_HEADER_WORDS + (sequence % logEntries) * LOG_ENTRY_WORDS;
    const kind = log[at + 1]!;
    const entry: LogEntry = {
      sequence,
      kind: kind & 0xff,
      tier: (kind >>> 8) & 0xff,
      namespace: kind >>> 16,
      depth: log[at + 2]!,
      key: new Uint32Array(log.slice(at + LOG_KEY, at + LOG_PARENT)),
      parent: new Uint32Array(log.slice(at + LOG_PARENT, at + LOG_ENTRY_WORDS)),
    };
    const whole = log[at] === (sequence | 0) && sequence >= this.firstSequence;
    return whole ? entry : undefined;
  }
}
