/** Where the slots of a copy stand that has one for each of several shards. */
import { assert } from "../assert.ts";
import { NO_SLOT, type Slot } from "./types.ts";

/** Slots of blocks with several shards: the record's slot word names an entry of `shards` words here. */
export class ShardTable {
  #words = new Uint32Array(1024);
  #length = 0;
  readonly #free = new Map<number, number>();

  get bytes(): number {
    return this.#words.byteLength;
  }

  /** A new entry, every slot NO_SLOT. */
  allocate(shards: number): number {
    const free = this.#free.get(shards) ?? NO_SLOT;
    let entry = free;
    if (free !== NO_SLOT) this.#free.set(shards, this.#words[free]!);
    else {
      while (this.#length + shards > this.#words.length) this.#grow();
      entry = this.#length;
      this.#length += shards;
    }
    this.#words.fill(NO_SLOT, entry, entry + shards);
    return entry;
  }

  release(entry: number, shards: number): void {
    assert(entry + shards <= this.#length, "no such shard entry");
    this.#words[entry] = this.#free.get(shards) ?? NO_SLOT;
    this.#free.set(shards, entry);
  }

  get(entry: number, shard: number): Slot {
    return this.#words[entry + shard]!;
  }

  set(entry: number, shard: number, slot: Slot): void {
    this.#words[entry + shard] = slot;
  }

  #grow(): void {
    const wider = new Uint32Array(this.#words.length * 1.5);
    wider.set(this.#words);
    this.#words = wider;
  }
}
