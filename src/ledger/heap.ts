/**
 * Age index of one (tier, size class): a four-way min-heap of [rank, block] pairs, the ranks held inline so
 * that a sift reads consecutive memory and not one record per comparison.
 *
 * It is lazy in one direction. Ranks only grow while a block stays (a touch makes it younger), so a touch
 * writes the age into the record and leaves the heap alone; an entry that surfaces with an old rank is
 * sifted down then, and one whose block may no longer leave is dropped then. So the heap holds every block
 * that rule 2 lets go, each once, with a rank not above its true one, plus entries that fall away when they
 * come up. A touch costs two writes, and a chain that is stored in order puts its last block in only.
 */
import { assert } from "../assert.ts";

const ENTRIES_FIRST = 64;

export class AgeHeap {
  #entries = new Uint32Array(ENTRIES_FIRST * 2);
  length = 0;

  get bytes(): number {
    return this.#entries.byteLength;
  }

  rankAt(i: number): number {
    return this.#entries[i * 2]!;
  }

  blockAt(i: number): number {
    return this.#entries[i * 2 + 1]!;
  }

  push(rank: number, block: number): void {
    if (this.length * 2 === this.#entries.length) this.#grow();
    this.length += 1;
    this.#siftUp(this.length - 1, rank, block);
  }

  /** Removes the oldest entry. */
  pop(): void {
    assert(this.length > 0, "pop of an empty age index");
    this.length -= 1;
    const at = this.length * 2;
    if (this.length > 0) this.#siftDown(0, this.#entries[at]!, this.#entries[at + 1]!);
  }

  /** The oldest entry turned out to be younger. */
  sinkTop(rank: number): void {
    assert(this.length > 0 && rank >= this.rankAt(0), "a rank went down");
    this.#siftDown(0, rank, this.blockAt(0));
  }

  /**
   * Keeps the entries that `keep` accepts and restores the order; for purges and rank changes of all
   * entries.
   */
  rebuild(keep: (block: number) => boolean, rankOf: (rank: number, block: number) => number): void {
    const entries = this.#entries;
    let kept = 0;
    for (let i = 0; i < this.length; i += 1) {
      const block = entries[i * 2 + 1]!;
      if (!keep(block)) continue;
      entries[kept * 2] = rankOf(entries[i * 2]!, block);
      entries[kept * 2 + 1] = block;
      kept += 1;
    }
    this.length = kept;
    for (let i = (kept - 2) >> 2; i >= 0; i -= 1) {
      this.#siftDown(i, entries[i * 2]!, entries[i * 2 + 1]!);
    }
  }

  #grow(): void {
    const wider = new Uint32Array(Math.ceil(this.#entries.length / 2 / 2) * 3 * 2);
    wider.set(this.#entries);
    this.#entries = wider;
  }

  #siftUp(from: number, rank: number, block: number): void {
    const entries = this.#entries;
    let i = from;
    while (i > 0) {
      const up = (i - 1) >> 2;
      if (entries[up * 2]! <= rank) break;
      entries[i * 2] = entries[up * 2]!;
      entries[i * 2 + 1] = entries[up * 2 + 1]!;
      i = up;
    }
    entries[i * 2] = rank;
    entries[i * 2 + 1] = block;
  }

  #siftDown(from: number, rank: number, block: number): void {
    const entries = this.#entries;
    const length = this.length;
    let i = from;
    for (;;) {
      const first = i * 4 + 1;
      if (first >= length) break;
      let least = first;
      const end = Math.min(first + 4, length);
      for (let k = first + 1; k < end; k += 1) {
        if (entries[k * 2]! < entries[least * 2]!) least = k;
      }
      if (entries[least * 2]! >= rank) break;
      entries[i * 2] = entries[least * 2]!;
      entries[i * 2 + 1] = entries[least * 2 + 1]!;
      i = least;
    }
    entries[i * 2] = rank;
    entries[i * 2 + 1] = block;
  }
}
