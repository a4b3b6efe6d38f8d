/**
 * The record table and its hash index.
 *
 * A record is 24 words (96 bytes). Its first 64 bytes answer a probe (key, depth, namespace, visible flag);
 * the last 32 hold two tiers of {slot, state + pins, children in this tier, age}. Records stand in one
 * SharedArrayBuffer, so the addon reads keys and depths from it, and other threads may locate blocks
 * (view.ts).
 *
 * The index is open addressing over 32-bit entries: record + 1 in the low bits, a tag of the hash in the
 * spare high bits, so that a probe reads a foreign record once in 2^(tag bits) collisions only. Linear
 * probing, deletion by backward shift (no tombstones), at least 1.45 entries per record, never rehashed.
 * The hash takes the *last* eight key bytes and the namespace: engines publish just those eight, so both
 * kinds of key find their block.
 *
 * Children that are visible are only counted (LIVE). All others (pending, orphan, draining, without a copy)
 * hang in their parent's doubly linked waiting list: that is what landing, aborting and re-attaching walk.
 * So a record needs no links for the common case, and has children exactly when LIVE > 0 or the list is not
 * empty.
 */
import { assert } from "../assert.ts";
import { NO_BLOCK, type Block } from "./types.ts";

export const RECORD_WORDS = 24;
export const KEY_WORDS_MAX = 8;
/** Word offsets in a record. */
export const KEY = 0;
export const PARENT = 8;
/** depth (24 bits) | policy class << 24 */
export const DEPTH = 9;
/** namespace (16 bits) | flags */
export const NAMESPACE = 10;
/** Children reserved, filling, landed or visible in any tier. */
export const LIVE = 11;
/** Head of the list of children that are not visible. */
export const WAITING = 12;
/** Links in the parent's waiting list; NEXT also links free records. */
export const NEXT = 13;
export const PREVIOUS = 14;
/** leases (20 bits) | hits (12 bits, saturating) << 20 */
export const LEASES = 15;
export const TIER_FIRST = 16;
export const TIER_WORDS = 4;
/** Word offsets in a tier's part of a record. */
export const SLOT = 0;
/** state (3 bits) | IN_HEAP | IN_ORPHANS | pins << 8 */
export const STATUS = 1;
export const CHILDREN = 2;
export const AGE = 3;

export const DEPTH_MASK = 0xff_ffff;
export const CLASS_SHIFT = 24;
export const NAMESPACE_MASK = 0xffff;
export const LEASES_MASK = 0xf_ffff;
export const HITS_SHIFT = 20;
export const HITS_ONE = 2 ** HITS_SHIFT;
export const HITS_MAX = 0xfff;
export const STATE_MASK = 7;
export const IN_HEAP = 8;
export const IN_ORPHANS = 16;
export const PIN_ONE = 256;

export const IN_USE = 1 << 16;
export const FLAG_VISIBLE = 1 << 17;
export const FLAG_HOLE = 1 << 18;
export const FLAG_WATCHED = 1 << 19;
/** The record hangs in its parent's waiting list. */
export const FLAG_WAITING = 1 << 20;
/** Some lease will move here. */
export const FLAG_FOLLOWED = 1 << 21;
/** Visible in tier t: FLAG_TIER << t. */
export const FLAG_TIER = 1 << 22;
/** Seven bits (24–30): when a copy down was last refused (demote.ts), 0 = never. */
export const REFUSED_ONE = 1 << 24;
export const REFUSED_SHIFT = 24;
export const REFUSED_MAX = 127;

/** Word index of a tier's part inside a record. */
export function tierWord(tier: number): number {
  return TIER_FIRST + tier * TIER_WORDS;
}

/** Keys of one warm(). */
export const WARM_MAX = 16;
const warmed = new Uint32Array(WARM_MAX);

/** Records above this would make word indexes leave the 31-bit integers that V8 keeps unboxed. */
export const BLOCKS_MAX = 80_000_000;

/** Mixes the last two key words and the namespace into 32 bits (signed). */
export function hashKey(last: number, beforeLast: number, namespace: number, seed: number): number {
  let x = Math.imul(last, 0x85ebca6b) ^ Math.imul(beforeLast ^ seed, 0x9e3779b1);
  x = Math.imul(x ^ (x >>> 15) ^ Math.imul(namespace + 1, 0xc2b2ae35), 0x2c1b3c6d);
  x = Math.imul(x ^ (x >>> 12), 0x297a2d39);
  return x ^ (x >>> 15);
}

/** Are the key words at `a` in `left` and at `b` in `right` equal? Unrolled for 32-byte keys. */
export function sameWords(
  left: Uint32Array,
  a: number,
  right: Uint32Array,
  b: number,
  keyWords: number,
): boolean {
  if (keyWords === KEY_WORDS_MAX) {
    return (
      left[a + 7] === right[b + 7] &&
      left[a + 6] === right[b + 6] &&
      left[a + 5] === right[b + 5] &&
      left[a + 4] === right[b + 4] &&
      left[a + 3] === right[b + 3] &&
      left[a + 2] === right[b + 2] &&
      left[a + 1] === right[b + 1] &&
      left[a] === right[b]
    );
  }
  let k = keyWords - 1;
  while (k >= 0 && left[a + k] === right[b + k]) k -= 1;
  return k < 0;
}

/** Where the view on another thread finds the table. */
export interface TableShape {
  readonly records: Uint32Array;
  readonly hash: Uint32Array;
  /** [0] is odd while entries move (a reader tries again), [1] counts records ever used. */
  readonly guard: Int32Array;
  readonly indexBits: number;
  readonly seed: number;
}

export class Table implements TableShape {
  readonly blocksMax: number;
  readonly records: Uint32Array;
  readonly hash: Uint32Array;
  readonly guard: Int32Array;
  readonly indexBits: number;
  readonly seed: number;
  readonly mask: number;
  /** Key words of each namespace, written when one is added. */
  readonly keyWords: Uint8Array;
  /** Records in use of each namespace. */
  readonly recordsOf: Uint32Array;
  readonly indexMask: number;
  readonly tagMask: number;
  /** Records in use. */
  used = 0;
  /** Records [0, touched) were in use at some time. */
  touched = 0;
  /** Free records that an age index still names (heap.ts); they cannot be used again yet. */
  zombies = 0;
  /** Of what warm() read: of no use, but without one the reads would be left out. */
  warmSum = 0;
  #free = NO_BLOCK;
  /** Where the last find() that found nothing ended, and its hash. */
  #gap = 0;
  #gapCode = 0;

  constructor(blocksMax: number, namespacesMax: number, seed: number) {
    assert(Number.isInteger(blocksMax) && blocksMax > 0, "blocksMax must be a positive integer");
    assert(blocksMax <= BLOCKS_MAX, "blocksMax is larger than the record table can be");
    this.blocksMax = blocksMax;
    this.seed = seed | 0;
    let entries = 16;
    while (entries < blocksMax * 1.45) entries *= 2;
    this.records = new Uint32Array(new SharedArrayBuffer(blocksMax * RECORD_WORDS * 4));
    this.hash = new Uint32Array(new SharedArrayBuffer(entries * 4));
    this.guard = new Int32Array(new SharedArrayBuffer(8));
    this.mask = entries - 1;
    this.keyWords = new Uint8Array(namespacesMax);
    this.recordsOf = new Uint32Array(namespacesMax);
    this.indexBits = 32 - Math.clz32(blocksMax);
    this.indexMask = 2 ** this.indexBits - 1;
    this.tagMask = ~this.indexMask;
  }

  get bytes(): number {
    return this.records.byteLength + this.hash.byteLength + this.guard.byteLength;
  }

  /** Records that can still be allocated, those held back by an age index included. */
  get free(): number {
    return this.blocksMax - this.used;
  }

  /** The record of a key, NO_BLOCK if there is none. */
  find(namespace: number, keyWords: number, words: Uint32Array, at: number): Block {
    const records = this.records;
    const hash = this.hash;
    const mask = this.mask;
    const tagMask = this.tagMask;
    const last = at + keyWords - 1;
    const code = hashKey(words[last]!, words[last - 1]!, namespace, this.seed);
    for (let i = code & mask; ; i = (i + 1) & mask) {
      const entry = hash[i]!;
      if (entry === 0) {
        this.#gap = i;
        this.#gapCode = code;
        return NO_BLOCK;
      }
      if (((entry ^ code) & tagMask) !== 0) continue;
      const block = (entry & this.indexMask) - 1;
      const base = block * RECORD_WORDS;
      if ((records[base + NAMESPACE]! & NAMESPACE_MASK) !== namespace) continue;
      if (sameWords(records, base, words, at, keyWords)) return block;
    }
  }

  /**
   * Reads what find() will read first for `count` keys, at most WARM_MAX, that stand `stride` words apart: the reads of
   * a batch wait for memory together, those of one find() after another do not.
   */
  warm(
    namespace: number,
    keyWords: number,
    words: Uint32Array,
    at: number,
    stride: number,
    count: number,
  ): void {
    assert(count >= 0 && count <= WARM_MAX, "a batch has at most WARM_MAX keys");
    const { records, hash, mask, indexMask, seed } = this;
    for (let i = 0, last = at + keyWords - 1; i < count; i += 1, last += stride) {
      const entry = hash[hashKey(words[last]!, words[last - 1]!, namespace, seed) & mask]!;
      // An empty entry guesses record 0, which is at hand.
      warmed[i] = Math.max(0, (entry & indexMask) - 1);
    }
    let sum = 0;
    for (let i = 0; i < count; i += 1) sum ^= records[warmed[i]! * RECORD_WORDS + NAMESPACE]!;
    this.warmSum ^= sum;
  }

  /** Whether this record is the key's: then find() would answer it. For callers that guess well. */
  holds(
    block: Block,
    namespace: number,
    keyWords: number,
    words: Uint32Array,
    at: number,
  ): boolean {
    if (block >= this.touched) return false;
    const base = block * RECORD_WORDS;
    const used = this.records[base + NAMESPACE]! & (NAMESPACE_MASK | IN_USE);
    if (used !== (namespace | IN_USE)) return false;
    return sameWords(this.records, base, words, at, keyWords);
  }

  /**
   * Takes a record for the key that the find() right before did not find; key, namespace, parent and depth
   * are written, all else is zero.
   */
  insert(
    namespace: number,
    keyWords: number,
    words: Uint32Array,
    at: number,
    parent: Block,
    depth: number,
  ): Block {
    const records = this.records;
    let block = this.#free;
    if (block !== NO_BLOCK) this.#free = records[block * RECORD_WORDS + NEXT]!;
    else {
      assert(this.touched < this.blocksMax, "no free record: the caller must have checked");
      block = this.touched;
      this.touched += 1;
      this.guard[1] = this.touched;
    }
    const base = block * RECORD_WORDS;
    for (let k = 0; k < KEY_WORDS_MAX; k += 1) {
      records[base + k] = k < keyWords ? words[at + k]! : 0;
    }
    records[base + PARENT] = parent;
    records[base + DEPTH] = depth;
    records[base + NAMESPACE] = namespace | IN_USE;
    records[base + LIVE] = 0;
    records[base + WAITING] = NO_BLOCK;
    records[base + NEXT] = NO_BLOCK;
    records[base + PREVIOUS] = NO_BLOCK;
    for (let k = LEASES; k < RECORD_WORDS; k += 1) records[base + k] = 0;
    this.used += 1;
    this.recordsOf[namespace] = this.recordsOf[namespace]! + 1;
    const gap = this.#gap;
    const code = this.#gapCode;
    assert(this.hash[gap] === 0, "nothing was inserted since the find()");
    assert(code === this.#codeOf(base), "the key of the find() is inserted");
    this.hash[gap] = (code & this.tagMask) | (block + 1);
    return block;
  }

  /** Takes the record out of the index; it may be allocated again after recycle(). */
  remove(block: Block): void {
    const records = this.records;
    const hash = this.hash;
    const mask = this.mask;
    const base = block * RECORD_WORDS;
    assert((records[base + NAMESPACE]! & IN_USE) !== 0, "a free record was removed");
    let i = this.#codeOf(base) & mask;
    while ((hash[i]! & this.indexMask) !== block + 1) {
      assert(hash[i] !== 0, "a record in use is missing in the index");
      i = (i + 1) & mask;
    }
    Atomics.add(this.guard, 0, 1);
    // Backward shift: an entry moves into the gap unless its home lies behind the gap.
    for (let j = (i + 1) & mask; hash[j] !== 0; j = (j + 1) & mask) {
      const other = ((hash[j]! & this.indexMask) - 1) * RECORD_WORDS;
      const home = this.#codeOf(other) & mask;
      if (((j - home) & mask) >= ((j - i) & mask)) {
        hash[i] = hash[j]!;
        i = j;
      }
    }
    hash[i] = 0;
    const namespace = records[base + NAMESPACE]! & NAMESPACE_MASK;
    records[base + NAMESPACE] = namespace;
    this.recordsOf[namespace] = this.recordsOf[namespace]! - 1;
    Atomics.add(this.guard, 0, 1);
    this.used -= 1;
  }

  /** Puts a removed record on the free list. */
  recycle(block: Block): void {
    const base = block * RECORD_WORDS;
    assert((this.records[base + NAMESPACE]! & IN_USE) === 0, "a record in use was recycled");
    this.records[base + NEXT] = this.#free;
    this.#free = block;
  }

  /** Whether insert() finds a record without the age indexes giving back zombies. */
  get ready(): boolean {
    return this.#free !== NO_BLOCK || this.touched < this.blocksMax;
  }

  #codeOf(base: number): number {
    const records = this.records;
    const namespace = records[base + NAMESPACE]! & NAMESPACE_MASK;
    const last = base + this.keyWords[namespace]! - 1;
    return hashKey(records[last]!, records[last - 1]!, namespace, this.seed);
  }
}
