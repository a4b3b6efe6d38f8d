/**
 * What the index of one device is owed: for each slot whether its copy is durable (written, synced), for each page of
 * 32 slots whether the index still says something else. One word and one byte per page; no more is kept, for all else
 * that an index entry needs is in the ledger.
 */
import { assert } from "../../src/assert.ts";
import { PAGE_SLOTS } from "./index-pages.ts";

const SLOT_INDEX_BITS = 18;
const SLOT_INDEX_MASK = 2 ** SLOT_INDEX_BITS - 1;
/** Pages of a slab in a page reference: slab × PAGES + page. */
const PAGES = 2 ** SLOT_INDEX_BITS / PAGE_SLOTS;

/** The page in which a slot stands. */
export function pageOfSlot(slot: number): number {
  return Math.floor(slot / PAGE_SLOTS);
}

export function slabOfPage(page: number): number {
  return Math.floor(page / PAGES);
}

export function indexOfPage(page: number): number {
  return page % PAGES;
}

/** First slot of a page. */
export function firstSlotOfPage(page: number): number {
  return page * PAGE_SLOTS;
}

export class Marks {
  /** By slab: one bit a slot. */
  readonly #durable = new Map<number, Uint32Array>();
  readonly #dirty = new Map<number, Uint8Array>();
  /** Dirty pages in the order in which they became so; entries that are clean again are skipped. */
  #queue: number[] = [];
  #head = 0;
  #dirtyCount = 0;
  /** Slabs whose pages stay in the index as they are. */
  readonly #frozen = new Set<number>();

  get dirtyPages(): number {
    return this.#dirtyCount;
  }

  /** The slab is one of this device. */
  addSlab(slab: number): void {
    assert(!this.#durable.has(slab), "a slab is added once");
    this.#durable.set(slab, new Uint32Array(0));
    this.#dirty.set(slab, new Uint8Array(0));
  }

  /** Whether the slab of this page is still one of the device. */
  hasSlab(page: number): boolean {
    return this.#durable.has(slabOfPage(page));
  }

  /** Pages [0, …) of the slab that the index may name. */
  pagesOf(slab: number): number {
    return this.#durable.get(slab)?.length ?? 0;
  }

  removeSlab(slab: number): void {
    for (const flag of this.#dirty.get(slab) ?? []) this.#dirtyCount -= flag;
    this.#durable.delete(slab);
    this.#dirty.delete(slab);
    this.#frozen.delete(slab);
  }

  /** The index names this slot for somebody who is not here: its slab's pages are not written until thaw(). */
  freeze(slot: number): void {
    const slab = slot >>> SLOT_INDEX_BITS;
    this.#room(slot);
    if (this.#frozen.has(slab)) return;
    this.#frozen.add(slab);
    const flags = this.#dirty.get(slab)!;
    for (const flag of flags) this.#dirtyCount -= flag;
    flags.fill(0);
  }

  /** The slab's pages are written as the ledger knows them. */
  thaw(slab: number): void {
    if (!this.#frozen.delete(slab)) return;
    for (let page = 0; page < this.pagesOf(slab); page++) this.setDirty(slab * PAGES + page);
  }

  /** All slots that hold a durable copy. */
  durableSlots(): Uint32Array {
    const found: number[] = [];
    for (const slab of this.slabs()) {
      for (const page of this.pagesInUse(slab, 0, Number.POSITIVE_INFINITY)) {
        const bits = this.durableBits(page);
        for (let position = 0; position < PAGE_SLOTS; position++) {
          if ((bits & (1 << position)) !== 0) found.push(firstSlotOfPage(page) + position);
        }
      }
    }
    return Uint32Array.from(found);
  }

  /** Durable bits of a page. */
  durableBits(page: number): number {
    return this.#durable.get(slabOfPage(page))?.[indexOfPage(page)] ?? 0;
  }

  isDurable(slot: number): boolean {
    return ((this.durableBits(pageOfSlot(slot)) >>> (slot % PAGE_SLOTS)) & 1) === 1;
  }

  /** The copy in this slot counts. The index has to say so, unless it did (a start). */
  setDurable(slot: number, indexed: boolean): void {
    const words = this.#room(slot);
    const at = Math.floor((slot & SLOT_INDEX_MASK) / PAGE_SLOTS);
    words[at] = words[at]! | (1 << (slot % PAGE_SLOTS));
    if (!indexed) this.setDirty(pageOfSlot(slot));
  }

  /** The slot holds no copy any more. A slot that never counted owes the index nothing. */
  clearDurable(slot: number): void {
    if (!this.isDurable(slot)) return;
    const words = this.#durable.get(slot >>> SLOT_INDEX_BITS)!;
    const at = Math.floor((slot & SLOT_INDEX_MASK) / PAGE_SLOTS);
    words[at] = words[at]! & ~(1 << (slot % PAGE_SLOTS));
    this.setDirty(pageOfSlot(slot));
  }

  setDirty(page: number): void {
    this.#room(firstSlotOfPage(page));
    const flags = this.#dirty.get(slabOfPage(page))!;
    const index = indexOfPage(page);
    if (flags[index] === 1 || this.#frozen.has(slabOfPage(page))) return;
    flags[index] = 1;
    this.#dirtyCount += 1;
    this.#queue.push(page);
  }

  /** This page is about to be written; false if it was clean. */
  take(page: number): boolean {
    const flags = this.#dirty.get(slabOfPage(page));
    const index = indexOfPage(page);
    if (flags?.[index] !== 1) return false;
    flags[index] = 0;
    this.#dirtyCount -= 1;
    return true;
  }

  /** Takes up to `count` dirty pages, the longest dirty first, behind what `into` holds. */
  takeOldest(count: number, into: number[]): void {
    let taken = 0;
    while (taken < count && this.#head < this.#queue.length) {
      const page = this.#queue[this.#head++]!;
      if (!this.take(page)) continue;
      into.push(page);
      taken += 1;
    }
    if (this.#head === this.#queue.length) this.#queue = [];
    else if (this.#head > 65_536) this.#queue = this.#queue.slice(this.#head);
    else return;
    this.#head = 0;
  }

  /** Pages of the slab that hold durable slots, from page `from` on. */
  pagesInUse(slab: number, from: number, countMax: number): number[] {
    const words = this.#durable.get(slab);
    const pages: number[] = [];
    if (words === undefined) return pages;
    for (let index = from; index < words.length && pages.length < countMax; index++) {
      if (words[index] !== 0) pages.push(slab * PAGES + index);
    }
    return pages;
  }

  slabs(): number[] {
    return [...this.#durable.keys()];
  }

  /** The slab's words, long enough for the slot. */
  #room(slot: number): Uint32Array {
    const slab = slot >>> SLOT_INDEX_BITS;
    const words = this.#durable.get(slab);
    assert(words !== undefined, "marks are kept for the device's own slabs");
    const needed = Math.floor((slot & SLOT_INDEX_MASK) / PAGE_SLOTS) + 1;
    if (words.length >= needed) return words;
    const length = Math.min(PAGES, Math.max(16, needed, words.length * 2));
    const wider = new Uint32Array(length);
    wider.set(words);
    const flags = new Uint8Array(length);
    flags.set(this.#dirty.get(slab)!);
    this.#durable.set(slab, wider);
    this.#dirty.set(slab, flags);
    return wider;
  }
}
