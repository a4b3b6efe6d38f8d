/**
 * Slots of one tier: slabs, size classes, owners, free lists.
 *
 * A slab serves one size class. Each slot has one word: while it is taken its owner (record, and how far
 * the shard's fill has come), while it is free the next free index of its slab. Slabs of a class that have
 * a free slot form a list; slots of a new slab are handed out in order, so that a chain stored in order
 * lies in order.
 *
 * A freed slot is announced to the backing store (`invalidate`) in batches, before the ledger call that
 * freed it returns: no fill of the slot can begin earlier, so no two headers of one key are ever valid.
 */
import { assert } from "../assert.ts";
import { NO_SLOT, type Block, type Slot, type SlabTierOptions } from "./types.ts";

export const SLOT_INDEX_BITS = 18;
const SLOT_INDEX_MASK = 2 ** SLOT_INDEX_BITS - 1;
/** Slabs a slot number can name. */
export const SLABS_MAX = 2 ** (32 - SLOT_INDEX_BITS);

/** How far a taken slot is; FREE otherwise. Stands in the two high bits of the owner word. */
export const FILL = { RESERVED: 0, FILLING: 1, LANDED: 2, FREE: 3 } as const;
const FILL_SHIFT = 30;
const OWNER_MASK = 2 ** FILL_SHIFT - 1;
const FREE_WORD = FILL.FREE * 2 ** FILL_SHIFT;
const FREE_END = OWNER_MASK;
const NONE = -1;
const INVALIDATE_BATCH = 4_096;

/** Payload bytes rounded up to what one class serves: multiples of 64 B up to 4 KiB, of 4 KiB above. */
export function classBytes(payloadBytes: number): number {
  assert(Number.isInteger(payloadBytes) && payloadBytes > 0, "payload bytes must be positive");
  const step = payloadBytes <= 4096 ? 64 : 4096;
  return Math.ceil(payloadBytes / step) * step;
}

interface SlotClass {
  readonly payloadBytes: number;
  readonly slotsPerSlab: number;
  /** First slab with a free slot. */
  open: number;
  slabs: number;
  used: number;
}

export class SlotTable {
  readonly options: SlabTierOptions;
  readonly classes: SlotClass[] = [];
  /** Slabs this tier may use: [0, slabs). */
  slabs = 0;
  slotsUsed = 0;
  #owners: (Uint32Array | undefined)[] = [];
  #class: Int16Array;
  #head: Int32Array;
  #fresh: Int32Array;
  #usedOf: Int32Array;
  #next: Int32Array;
  #previous: Int32Array;
  /** 1 = gives out no slots: being emptied. */
  #closed: Uint8Array;
  #freeSlabs: number[] = [];
  readonly #freed = new Uint32Array(INVALIDATE_BATCH);
  #freedCount = 0;

  constructor(options: SlabTierOptions) {
    this.options = options;
    const none = new Int32Array(0);
    this.#class = new Int16Array(0);
    this.#head = none;
    this.#fresh = none;
    this.#usedOf = none;
    this.#next = none;
    this.#previous = none;
    this.#closed = new Uint8Array(0);
    this.grow(options.slabs);
  }

  /** Bytes of owners and free lists. */
  get bytes(): number {
    let bytes = this.#freed.byteLength + this.slabs * (2 + 5 * 4 + 1);
    for (const owners of this.#owners) bytes += owners?.byteLength ?? 0;
    return bytes;
  }

  get slabsFree(): number {
    return this.#freeSlabs.length;
  }

  /** Slots of assigned slabs plus, for free slabs, those the largest class in use would give. */
  get slotsTotal(): number {
    let total = 0;
    let most = 0;
    for (const entry of this.classes) {
      total += entry.slabs * entry.slotsPerSlab;
      if (entry.slabs > 0 || most === 0) most = Math.max(most, entry.slotsPerSlab);
    }
    return total + this.#freeSlabs.length * most;
  }

  /** Adds slabs [this.slabs, slabs). */
  grow(slabs: number): void {
    assert(slabs >= this.slabs && slabs <= SLABS_MAX, "slab count out of range");
    const widen = <T extends Int32Array | Int16Array | Uint8Array>(wide: T, narrow: T): T => {
      // After a shrink the arrays are longer than the tier: what lies beyond is stale.
      wide.set(narrow.subarray(0, this.slabs));
      return wide;
    };
    this.#class = widen(new Int16Array(slabs).fill(NONE), this.#class);
    this.#head = widen(new Int32Array(slabs), this.#head);
    this.#fresh = widen(new Int32Array(slabs), this.#fresh);
    this.#usedOf = widen(new Int32Array(slabs), this.#usedOf);
    this.#next = widen(new Int32Array(slabs).fill(NONE), this.#next);
    this.#previous = widen(new Int32Array(slabs).fill(NONE), this.#previous);
    this.#closed = widen(new Uint8Array(slabs), this.#closed);
    const added: number[] = [];
    for (let slab = slabs - 1; slab >= this.slabs; slab -= 1) added.push(slab);
    this.#freeSlabs = [...added, ...this.#freeSlabs];
    this.#owners.length = slabs;
    this.slabs = slabs;
  }

  /** Takes the (free) last slab away. */
  removeLastSlab(): void {
    const last = this.slabs - 1;
    assert(last >= 0 && this.#class[last] === NONE, "only a free slab can be taken away");
    this.#freeSlabs = this.#freeSlabs.filter((slab) => slab !== last);
    this.#closed[last] = 0;
    this.slabs = last;
    this.#owners.length = last;
  }

  /** Index of the class that serves this payload; made on first use. */
  classOf(payloadBytes: number): number {
    const bytes = classBytes(payloadBytes);
    const found = this.classes.findIndex((entry) => entry.payloadBytes === bytes);
    if (found >= 0) return found;
    this.classes.push(this.#emptyClass(payloadBytes));
    return this.classes.length - 1;
  }

  /** Gives the index of a class that no slab serves to another payload. */
  replaceClass(index: number, payloadBytes: number): void {
    const entry = this.classes[index];
    assert(entry !== undefined && entry.slabs === 0, "only a class without slabs can be replaced");
    assert(entry.used === 0 && entry.open === NONE, "a class without slabs has no slots");
    this.classes[index] = this.#emptyClass(payloadBytes);
  }

  #emptyClass(payloadBytes: number): SlotClass {
    const bytes = classBytes(payloadBytes);
    const slotsPerSlab = Math.min(this.options.slotsPerSlab(bytes), SLOT_INDEX_MASK + 1);
    assert(slotsPerSlab >= 1, "a slab holds no slot of this payload");
    return { payloadBytes: bytes, slotsPerSlab, open: NONE, slabs: 0, used: 0 };
  }

  /**
   * A free slot for `owner` (state RESERVED) from the class's slabs or a free slab; NO_SLOT if there is
   * none.
   */
  allocate(classIndex: number, owner: Block): Slot {
    const entry = this.classes[classIndex]!;
    if (entry.open === NONE && !this.assignFreeSlab(classIndex)) return NO_SLOT;
    const slab = entry.open;
    const owners = this.#owners[slab]!;
    let index = this.#head[slab]!;
    if (index !== FREE_END) this.#head[slab] = owners[index]! & OWNER_MASK;
    else {
      index = this.#fresh[slab]!;
      assert(index < entry.slotsPerSlab, "a full slab stands in the list of open ones");
      this.#fresh[slab] = index + 1;
    }
    owners[index] = owner;
    this.#took(slab, entry);
    return ((slab << SLOT_INDEX_BITS) | index) >>> 0;
  }

  /** Gives a free slab to the class; false if none is free. */
  assignFreeSlab(classIndex: number): boolean {
    let slab = this.#freeSlabs.pop();
    const held: number[] = [];
    while (slab !== undefined && this.#closed[slab] === 1) {
      held.push(slab);
      slab = this.#freeSlabs.pop();
    }
    this.#freeSlabs.push(...held);
    if (slab === undefined) return false;
    this.#assign(slab, classIndex);
    this.options.assignSlab(slab, this.classes[classIndex]!.payloadBytes);
    return true;
  }

  /**
   * Start-up: the backing store already serves this payload from the slab. Its slots are taken by take().
   */
  adopt(slab: number, payloadBytes: number): void {
    assert(slab < this.slabs && this.#class[slab] === NONE, "a slab can be adopted once");
    this.#freeSlabs = this.#freeSlabs.filter((free) => free !== slab);
    this.#assign(slab, this.classOf(payloadBytes));
  }

  /** Start-up: takes one slot of an adopted slab in state LANDED; false if it is out of range or taken. */
  take(slot: Slot, classIndex: number, owner: Block): boolean {
    const slab = slot >>> SLOT_INDEX_BITS;
    const index = slot & SLOT_INDEX_MASK;
    if (slab >= this.slabs || this.#class[slab] !== classIndex) return false;
    const entry = this.classes[classIndex]!;
    if (index >= entry.slotsPerSlab) return false;
    const owners = this.#owners[slab]!;
    while (this.#fresh[slab]! <= index) {
      owners[this.#fresh[slab]!] = FREE_WORD + FREE_END;
      this.#fresh[slab] = this.#fresh[slab]! + 1;
    }
    if (owners[index]! >= FREE_WORD) {
      owners[index] = owner + FILL.LANDED * 2 ** FILL_SHIFT;
      this.#took(slab, entry);
      return true;
    }
    return false;
  }

  /** Start-up, after the last take(): builds the free lists; empty slabs become free ones. */
  takeEnd(): void {
    for (let slab = 0; slab < this.slabs; slab += 1) {
      if (this.#class[slab] === NONE) continue;
      const owners = this.#owners[slab]!;
      this.#head[slab] = FREE_END;
      for (let index = this.#fresh[slab]! - 1; index >= 0; index -= 1) {
        if (owners[index]! < FREE_WORD) continue;
        owners[index] = FREE_WORD + this.#head[slab]!;
        this.#head[slab] = index;
      }
      if (this.#usedOf[slab] === 0) this.#release(slab);
    }
  }

  /** `written`: the header may be valid, so the backing store has to be told. */
  free(slot: Slot, written: boolean): void {
    const slab = slot >>> SLOT_INDEX_BITS;
    const index = slot & SLOT_INDEX_MASK;
    const owners = this.#owners[slab]!;
    assert(owners[index]! < FREE_WORD, "a slot was freed twice");
    const entry = this.classes[this.#class[slab]!]!;
    if (written) this.discard(slot);
    const full = this.#usedOf[slab] === entry.slotsPerSlab;
    owners[index] = FREE_WORD + this.#head[slab]!;
    this.#head[slab] = index;
    this.#usedOf[slab] = this.#usedOf[slab]! - 1;
    entry.used -= 1;
    this.slotsUsed -= 1;
    if (this.#closed[slab] === 1) {
      if (this.#usedOf[slab] === 0) this.#release(slab);
    } else if (full) this.#open(slab, entry);
  }

  /**
   * Notes a slot whose header is to be invalidated: it was freed, or (start-up) its header leads nowhere.
   */
  discard(slot: Slot): void {
    this.#freed[this.#freedCount] = slot;
    this.#freedCount += 1;
    if (this.#freedCount === INVALIDATE_BATCH) this.flush();
  }

  /** Hands the batch of freed slots to the backing store. */
  flush(): void {
    if (this.#freedCount === 0) return;
    this.options.invalidate(this.#freed, this.#freedCount);
    this.#freedCount = 0;
  }

  /** The slab gives out no slot any more; it becomes free when its last slot is freed. */
  close(slab: number): void {
    assert(slab < this.slabs, "no such slab");
    if (this.#closed[slab] === 1) return;
    this.#closed[slab] = 1;
    const classIndex = this.#class[slab]!;
    if (classIndex === NONE) return;
    const entry = this.classes[classIndex]!;
    if (this.#usedOf[slab]! < entry.slotsPerSlab) this.#unlink(slab, entry);
    if (this.#usedOf[slab] === 0) this.#release(slab);
  }

  /** Ends close(): the slab takes part again. */
  reopen(slab: number): void {
    if (this.#closed[slab] === 0) return;
    this.#closed[slab] = 0;
    const classIndex = this.#class[slab]!;
    if (classIndex === NONE) return;
    const entry = this.classes[classIndex]!;
    if (this.#usedOf[slab]! < entry.slotsPerSlab) this.#open(slab, entry);
  }

  isClosed(slab: number): boolean {
    return this.#closed[slab] === 1;
  }

  slabOf(slot: Slot): number {
    return slot >>> SLOT_INDEX_BITS;
  }

  /** Class of a slab, -1 for a free one. */
  slabClass(slab: number): number {
    return this.#class[slab]!;
  }

  slabUsed(slab: number): number {
    return this.#usedOf[slab]!;
  }

  /** Slots of the slab that were ever handed out: the range worth scanning. */
  slabFresh(slab: number): number {
    return this.#fresh[slab]!;
  }

  ownerOf(slot: Slot): Block {
    return this.#owners[slot >>> SLOT_INDEX_BITS]![slot & SLOT_INDEX_MASK]! & OWNER_MASK;
  }

  fillOf(slot: Slot): number {
    return this.#owners[slot >>> SLOT_INDEX_BITS]![slot & SLOT_INDEX_MASK]! >>> FILL_SHIFT;
  }

  setFill(slot: Slot, fill: number): void {
    const owners = this.#owners[slot >>> SLOT_INDEX_BITS]!;
    const index = slot & SLOT_INDEX_MASK;
    assert(owners[index]! < FREE_WORD && fill < FILL.FREE, "a free slot cannot fill");
    owners[index] = (owners[index]! & OWNER_MASK) + fill * 2 ** FILL_SHIFT;
  }

  /** Re-derives used counts and free lists. */
  audit(): void {
    let used = 0;
    for (let slab = 0; slab < this.slabs; slab += 1) {
      const classIndex = this.#class[slab]!;
      if (classIndex === NONE) continue;
      used += this.#auditSlab(slab, this.classes[classIndex]!);
    }
    assert(used === this.slotsUsed, "audit: used slots differ from the count");
    assert(this.#freedCount === 0, "audit: freed slots were not announced");
    assert(new Set(this.#freeSlabs).size === this.#freeSlabs.length, "audit: slab free twice");
    for (const slab of this.#freeSlabs) {
      assert(this.#class[slab] === NONE, "audit: a slab in use stands among the free ones");
    }
  }

  #auditSlab(slab: number, entry: SlotClass): number {
    const owners = this.#owners[slab]!;
    const fresh = this.#fresh[slab]!;
    let used = 0;
    for (let index = 0; index < fresh; index += 1) if (owners[index]! < FREE_WORD) used += 1;
    let listed = 0;
    for (let index = this.#head[slab]!; index !== FREE_END; index = owners[index]! & OWNER_MASK) {
      assert(owners[index]! >= FREE_WORD, "audit: a taken slot stands in the free list");
      listed += 1;
      assert(listed <= fresh, "audit: a free list is circular");
    }
    assert(used + listed === fresh, "audit: slots leaked from the free list");
    assert(used === this.#usedOf[slab], "audit: used slots of a slab differ");
    let open = false;
    for (let s = entry.open; s !== NONE; s = this.#next[s]!) if (s === slab) open = true;
    const expected = used < entry.slotsPerSlab && this.#closed[slab] === 0;
    assert(open === expected, "audit: a slab's place in the list of open slabs is wrong");
    return used;
  }

  #assign(slab: number, classIndex: number): void {
    const entry = this.classes[classIndex]!;
    this.#class[slab] = classIndex;
    this.#head[slab] = FREE_END;
    this.#fresh[slab] = 0;
    this.#usedOf[slab] = 0;
    this.#owners[slab] = new Uint32Array(entry.slotsPerSlab);
    entry.slabs += 1;
    this.#open(slab, entry);
  }

  #release(slab: number): void {
    const entry = this.classes[this.#class[slab]!]!;
    assert(this.#usedOf[slab] === 0, "a slab with live slots was released");
    this.flush();
    if (this.#closed[slab] === 0) this.#unlink(slab, entry);
    entry.slabs -= 1;
    this.#class[slab] = NONE;
    this.#owners[slab] = undefined;
    this.#freeSlabs.push(slab);
    this.options.releaseSlab(slab);
  }

  #took(slab: number, entry: SlotClass): void {
    this.#usedOf[slab] = this.#usedOf[slab]! + 1;
    entry.used += 1;
    this.slotsUsed += 1;
    if (this.#usedOf[slab] === entry.slotsPerSlab) this.#unlink(slab, entry);
  }

  #open(slab: number, entry: SlotClass): void {
    this.#previous[slab] = NONE;
    this.#next[slab] = entry.open;
    if (entry.open !== NONE) this.#previous[entry.open] = slab;
    entry.open = slab;
  }

  #unlink(slab: number, entry: SlotClass): void {
    const next = this.#next[slab]!;
    const previous = this.#previous[slab]!;
    if (previous === NONE) entry.open = next;
    else this.#next[previous] = next;
    if (next !== NONE) this.#previous[next] = previous;
    this.#next[slab] = NONE;
    this.#previous[slab] = NONE;
  }
}

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
