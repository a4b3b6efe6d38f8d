/**
 * One index page: what a restart needs to know of 32 slots of a segment. Pages are written afresh from the ledger
 * and never read to be changed; only the child at a start reads them (addon/index_reader/page.cc, the other half of
 * this codec; test/golden/nvme-index-page.hex holds both together). Little-endian words:
 *
 *   0 magic  1 version  2 key of the page  3 payload bytes of the segment's class  4 slots present (bit per slot)
 *   5 CRC-32 of the page with this word 0  6 words of the page  7 zero
 *   then for each present slot, ascending: ENTRY_WORDS words, and 8 more where the parent's key is spelled out
 *
 * Chains are stored in order, so a block's parent mostly stands in the same page and is named by its position.
 */
import { crc32 } from "node:zlib";
import { assert } from "../../src/assert.ts";
import { TWO_32 } from "../../src/words.ts";

export const PAGE_SLOTS = 32;
/** Pages of a segment: 2 ** SLOT_INDEX_BITS slots. A page's key is segment × PAGES_PER_SEGMENT + page. */
export const PAGES_PER_SEGMENT = 8_192;
/** Segment numbers: a record names slots by segment << SLOT_INDEX_BITS | index. */
export const SEGMENTS_MAX = 16_384;
export const PAGE_MAGIC = 0x5849_5243; // "CRIX"
export const PAGE_VERSION = 1;
export const HEAD_WORDS = 8;
export const ENTRY_WORDS = 13;
export const KEY_WORDS = 8;
/** Positions of the parent in an entry's first word. */
export const PARENT = { NONE: 254, SPELLED: 255 } as const;
export const PAGE_WORDS_MAX = HEAD_WORDS + PAGE_SLOTS * (ENTRY_WORDS + KEY_WORDS);

const CRC_WORD = 5;

/** What begin() … add() … end() writes; one writer is reused for all pages. */
export class PageWriter {
  readonly #words = new Uint32Array(PAGE_WORDS_MAX);
  #at = HEAD_WORDS;
  #last = -1;

  begin(key: number, payloadBytes: number): void {
    assert(key >= 0 && key < SEGMENTS_MAX * PAGES_PER_SEGMENT, "no such page");
    const words = this.#words;
    words.fill(0, 0, HEAD_WORDS);
    words[0] = PAGE_MAGIC;
    words[1] = PAGE_VERSION;
    words[2] = key;
    words[3] = payloadBytes;
    this.#at = HEAD_WORDS;
    this.#last = -1;
  }

  /**
   * Adds the slot at `position`, in ascending order. The block's key is eight words at `keyAt` of `keys`. `parent`:
   * its position in this page, PARENT.NONE, or PARENT.SPELLED with its key at `parentAt`.
   * @param lastAccess milliseconds of Unix time
   */
  add(
    position: number,
    row: number,
    shard: number,
    depth: number,
    generation: number,
    lastAccess: number,
    keys: Uint32Array,
    keyAt: number,
    parent: number,
    parentAt: number,
  ): void {
    assert(position > this.#last && position < PAGE_SLOTS, "slots of a page come in order");
    assert(row >= 0 && row <= 0xffff && shard >= 0 && shard <= 0xff, "row or shard out of range");
    const words = this.#words;
    let at = this.#at;
    this.#last = position;
    words[4] = words[4]! | (1 << position);
    words[at++] = row | (shard << 16) | (parent << 24);
    words[at++] = depth;
    words[at++] = generation;
    words[at++] = lastAccess % TWO_32;
    words[at++] = Math.floor(lastAccess / TWO_32);
    for (let k = 0; k < KEY_WORDS; k++) words[at++] = keys[keyAt + k]!;
    if (parent === PARENT.SPELLED) {
      for (let k = 0; k < KEY_WORDS; k++) words[at++] = keys[parentAt + k]!;
    }
    this.#at = at;
  }

  /** The page's bytes, or undefined when it has no slot: its entry is then removed. */
  end(): Buffer | undefined {
    if (this.#last < 0) return undefined;
    const words = this.#words;
    words[6] = this.#at;
    words[CRC_WORD] = 0;
    const bytes = Buffer.from(words.buffer, 0, this.#at * 4);
    words[CRC_WORD] = crc32(bytes);
    // LMDB's thread reads the bytes later: they must not be the writer's own.
    return Buffer.from(bytes);
  }
}
