/**
 * The visibility log: a bounded ring, in shared memory, of every copy that became visible or stopped being
 * so. Events, metrics and the live page read it from other threads by sequence number (view.ts); the ledger
 * never waits for them.
 *
 * Entry of 20 words: 0 low word of its sequence · 1 kind | tier << 8 | namespace << 16 · 2 depth · 3 zero ·
 * 4–11 key · 12–19 parent key (zeros for a root, and when a copy goes). Header: next sequence, low and high
 * word, stored last and as a barrier. The barrier costs as much as the entry, so up to LOG_UNPUBLISHED_MAX entries
 * share one; readers therefore keep that distance: while the header is at most s + entries − LOG_UNPUBLISHED_MAX,
 * nothing of entry s was overwritten.
 */
import { assert } from "../assert.ts";
import { BLOCKS_MAX, KEY_WORDS_MAX } from "./table.ts";

export const LOG_ENTRY_WORDS = 20;
export const LOG_HEADER_WORDS = 16;
export const LOG_KEY = 4;
export const LOG_PARENT = 12;
/** Entries that may be written before the header says so. */
export const LOG_UNPUBLISHED_MAX = 64;
/** A copy in each of two tiers of every record. */
const SKIP_MAX = 2 * BLOCKS_MAX + 1;
export const LOG_KIND = { STORED: 1, REMOVED: 2 } as const;

export class VisibilityLog {
  readonly words: Int32Array;
  readonly entries: number;
  /** Sequence the next entry gets; the first is 1. */
  sequence = 1;
  #published = 1;

  constructor(entries: number) {
    this.entries = entries === 0 ? 0 : Math.max(entries, 2 * LOG_UNPUBLISHED_MAX);
    const size = LOG_HEADER_WORDS + Math.max(1, this.entries) * LOG_ENTRY_WORDS;
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
    if (this.sequence - this.#published === LOG_UNPUBLISHED_MAX) this.publish();
  }

  /** Entries that a reader finds, of those that were appended last. */
  get readable(): number {
    return Math.max(0, this.entries - LOG_UNPUBLISHED_MAX);
  }

  /** Gives out so many numbers without an entry: to readers they were overwritten. */
  skip(count: number): void {
    assert(count >= 0 && count < SKIP_MAX, "more entries are skipped than a ledger has copies");
    if (this.entries === 0) return;
    this.publish();
    this.sequence += count;
    this.publish();
  }

  /** Shows readers what was appended. */
  publish(): void {
    const sequence = this.sequence;
    if (sequence === this.#published) return;
    // The low word wraps at most once here: fewer than SKIP_MAX entries are shown at a time.
    if (sequence >>> 0 < this.#published >>> 0) Atomics.add(this.words, 1, 1);
    this.#published = sequence;
    Atomics.store(this.words, 0, sequence | 0);
  }
}
