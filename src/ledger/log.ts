/**
 * The visibility log: a bounded ring, in shared memory, of every copy that became visible or stopped being
 * so. Events, metrics and the live page read it from other threads by sequence number (view.ts); the ledger
 * never waits for them.
 *
 * Entry of 20 words: 0 low word of its sequence · 1 kind | tier << 8 | namespace << 16 · 2 depth · 3 zero ·
 * 4–11 key · 12–19 parent key (zeros for a root, and when a copy goes). Header: next sequence, low and high
 * word, stored last and as a barrier: while it is below s + entries, nothing of entry s was overwritten.
 */
import { KEY_WORDS_MAX } from "./table.ts";

export const LOG_ENTRY_WORDS = 20;
export const LOG_HEADER_WORDS = 16;
export const LOG_KEY = 4;
export const LOG_PARENT = 12;
export const LOG_KIND = { STORED: 1, REMOVED: 2 } as const;

export class VisibilityLog {
  readonly words: Int32Array;
  readonly entries: number;
  /** Sequence the next entry gets; the first is 1. */
  sequence = 1;

  constructor(entries: number) {
    this.entries = entries;
    const size = LOG_HEADER_WORDS + Math.max(1, entries) * LOG_ENTRY_WORDS;
    this.words = new Int32Array(new SharedArrayBuffer(size * 4));
    this.words[0] = 1;
  }

  get bytes(): number {
    return this.words.byteLength;
  }

  /** keyAt and parentAt are word offsets in `records`; parentAt −1 for none. */
  append(
    kind: number,
    tier: number,
    namespace: number,
    depth: number,
    records: Uint32Array,
    keyAt: number,
    parentAt: number,
  ): void {
    if (this.entries === 0) return;
    const words = this.words;
    const sequence = this.sequence;
    const at = LOG_HEADER_WORDS + (sequence % this.entries) * LOG_ENTRY_WORDS;
    words[at] = sequence;
    words[at + 1] = kind | (tier << 8) | (namespace << 16);
    words[at + 2] = depth;
    for (let k = 0; k < KEY_WORDS_MAX; k += 1) {
      words[at + LOG_KEY + k] = records[keyAt + k]!;
      words[at + LOG_PARENT + k] = parentAt < 0 ? 0 : records[parentAt + k]!;
    }
    this.sequence = sequence + 1;
    if (((sequence + 1) | 0) === 0) Atomics.add(words, 1, 1);
    Atomics.store(words, 0, (sequence + 1) | 0);
  }
}
