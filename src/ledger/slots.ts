/**
 * Slots of one tier: slabs, size classes, owners, free lists.
 *
 * A slab serves one size class. Each slot has one word: while it is taken its owner (record, and how far
 * the shard's fill has come), while it is free the next free index of its slab. Slabs of a class that have
 * a free slot form a list; slots of a new slab are handed out in order, so that a chain stored in order
 * lies in order.
 *
 * A slab may stand on a device (devices.ts); the lists are kept per device, and a tier without devices is
 * one device, number 0.
 *
 * A freed slot is announced to the backing store (`invalidate`) in batches, before the ledger call that
 * freed it returns: no fill of the slot can begin earlier, so no two headers of one key are ever valid.
 */
import { assert } from "../assert.ts";
import {
  classBytes,
  DEVICES_MAX,
  emptyClass,
  NONE,
  SLOT_INDEX_BITS,
  type SlotClass,
  type SlotParts,
} from "./classes.ts";
import { NO_SLOT, type Block, type Slot, type SlabTierOptions } from "./types.ts";

export { classBytes, SLOT_INDEX_BITS, type SlotParts };

const SLOT_INDEX_MASK = 2 ** SLOT_INDEX_BITS - 1;
/** Slabs a slot number can name. */
export const SLABS_MAX = 2 ** (32 - SLOT_INDEX_BITS);

/** How far a taken slot is; FREE otherwise. Stands in the two high bits of the owner word. */
export const FILL = { RESERVED: 0, FILLING: 1, LANDED: 2, FREE: 3 } as const;
const FILL_SHIFT = 30;
/** One step of FILL in an owner word. Hot code multiplies by it: V8 computes a power anew each time. */
const FILL_ONE = 2 ** FILL_SHIFT;
const LANDED_WORD = FILL.LANDED * FILL_ONE;
export const OWNER_MASK = 2 ** FILL_SHIFT - 1;
export const FREE_WORD = FILL.FREE * 2 ** FILL_SHIFT;
export const FREE_END = OWNER_MASK;

/** What a slab does with its free slots; only OPEN ones are given out. */
export const SLAB = {
  OPEN: 0,
  /** Being emptied; free when its last slot is freed. */
  CLOSED: 1,
  /** Its device was fenced: slots that are freed are not announced, the backing store keeps what it has. */
  LOST: 2,
  /** Its slots are taken one by one from what the backing store holds. */
  ADOPTING: 3,
} as const;
const INVALIDATE_BATCH = 4_096;

export class SlotTable {
  readonly options: SlabTierOptions;
  readonly classes: SlotClass[] = [];
  /** Slabs this tier may use: [0, slabs). */
  slabs = 0;
  slotsUsed = 0;
  /** 1 + the highest device that a slab ever stood on. */
  devices = 1;
  #anyLost = false;
  readonly #deviceUsed = new Float64Array(DEVICES_MAX);
  /** Slabs of the device that are being adopted. */
  readonly #deviceAdopting = new Uint32Array(DEVICES_MAX);
  /** 1 = gives out no slots. */
  readonly #deviceClosed = new Uint8Array(DEVICES_MAX);
  #owners: (Uint32Array | undefined)[] = [];
  #class: Int16Array;
  #head: Int32Array;
  #fresh: Int32Array;
  #usedOf: Int32Array;
  #next: Int32Array;
  #previous: Int32Array;
  #status: Uint8Array;
  #device: Uint8Array;
  /** By device: open slabs without a class; the last one is taken first. */
  readonly #freeSlabs: number[][] = [[]];
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
    this.#status = new Uint8Array(0);
    this.#device = new Uint8Array(0);
    this.grow(options.slabs);
  }

  /** Bytes of owners and free lists. */
  get bytes(): number {
    let bytes = this.#freed.byteLength + this.slabs * (2 + 5 * 4 + 2);
    for (const owners of this.#owners) bytes += owners?.byteLength ?? 0;
    return bytes;
  }

  /** Slabs that any class may take. */
  get slabsFree(): number {
    let free = 0;
    for (const stack of this.#freeSlabs) free += stack.length;
    return free;
  }

  /** Slots of assigned slabs plus, for free slabs, those the largest class in use would give. */
  get slotsTotal(): number {
    let total = 0;
    for (let device = 0; device < this.devices; device += 1) total += this.slotsTotalOf(device);
    return total;
  }

  /** slotsTotal of one device. */
  slotsTotalOf(device: number): number {
    let total = 0;
    let most = 0;
    for (const entry of this.classes) {
      total += entry.slabsOf[device]! * entry.slotsPerSlab;
      if (entry.slabs > 0 || most === 0) most = Math.max(most, entry.slotsPerSlab);
    }
    return total + (this.#freeSlabs[device]?.length ?? 0) * most;
  }

  slotsUsedOf(device: number): number {
    return this.#deviceUsed[device]!;
  }

  /** Adds slabs [this.slabs, slabs); each one's device is asked for now. */
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
    this.#status = widen(new Uint8Array(slabs), this.#status);
    this.#device = widen(new Uint8Array(slabs), this.#device);
    const added: number[][] = [];
    for (let slab = slabs - 1; slab >= this.slabs; slab -= 1) {
      const device = this.options.deviceOf?.(slab) ?? 0;
      assert(device >= 0 && device < DEVICES_MAX, "a tier has at most DEVICES_MAX devices");
      this.#device[slab] = device;
      (added[device] ??= []).push(slab);
      while (this.devices <= device) this.devices = this.#freeSlabs.push([]);
    }
    added.forEach((slabsOf, device) => this.#freeSlabs[device]!.unshift(...slabsOf));
    this.#owners.length = slabs;
    this.slabs = slabs;
  }

  /** Takes the (free) last slab away. */
  removeLastSlab(): void {
    const last = this.slabs - 1;
    assert(last >= 0 && this.#class[last] === NONE, "only a free slab can be taken away");
    this.#unfree(last);
    this.#status[last] = SLAB.OPEN;
    this.slabs = last;
    this.#owners.length = last;
  }

  /** Index of the class that serves this payload; made on first use. */
  classOf(payloadBytes: number): number {
    const bytes = classBytes(payloadBytes);
    const found = this.classes.findIndex((entry) => entry.payloadBytes === bytes);
    if (found >= 0) return found;
    this.classes.push(emptyClass(payloadBytes, this.options.slotsPerSlab));
    return this.classes.length - 1;
  }

  /** Gives the index of a class that no slab serves to another payload. */
  replaceClass(index: number, payloadBytes: number): void {
    const entry = this.classes[index];
    assert(entry !== undefined && entry.slabs === 0, "only a class without slabs can be replaced");
    assert(
      entry.used === 0 && entry.open.every((slab) => slab === NONE),
      "a class without slabs has no slots",
    );
    this.classes[index] = emptyClass(payloadBytes, this.options.slotsPerSlab);
  }

  /**
   * A free slot for `owner` (state RESERVED) on `device`: from the class's slabs there or a free slab; if
   * there is none, on the device with the most room; NO_SLOT if all are full.
   */
  allocate(classIndex: number, owner: Block, device = 0): Slot {
    const entry = this.classes[classIndex]!;
    let slab = this.#deviceClosed[device] === 0 ? entry.open[device]! : NONE;
    if (slab === NONE) slab = this.#openSlab(classIndex, device);
    if (slab === NONE) return NO_SLOT;
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

  /** Device with the most room for the class among those that give out slots; −1 if all are full. */
  roomiest(classIndex: number): number {
    const entry = this.classes[classIndex]!;
    let best = -1;
    let most = 0;
    for (let device = 0; device < this.devices; device += 1) {
      if (this.#deviceClosed[device] === 1) continue;
      const room = entry.room[device]! + this.#freeSlabs[device]!.length * entry.slotsPerSlab;
      if (room <= most) continue;
      best = device;
      most = room;
    }
    return best;
  }

  /** A slab of the class with a free slot, on `device` or else where most room is; −1 if there is none. */
  #openSlab(classIndex: number, device: number): number {
    const entry = this.classes[classIndex]!;
    if (this.#deviceClosed[device] === 0 && this.#assignFree(classIndex, device)) {
      return entry.open[device]!;
    }
    if (this.devices === 1) return NONE;
    const other = this.roomiest(classIndex);
    if (other < 0) return NONE;
    if (entry.open[other] !== NONE || this.#assignFree(classIndex, other))
      return entry.open[other]!;
    // The backing store keeps what is free there: any device that has an open slab, or gives one.
    for (let next = 0; next < this.devices; next += 1) {
      if (this.#deviceClosed[next] === 1) continue;
      if (entry.open[next] !== NONE || this.#assignFree(classIndex, next)) return entry.open[next]!;
    }
    return NONE;
  }

  /** Gives a free slab of the device to the class; false if none is free, or the backing store gives none of them. */
  #assignFree(classIndex: number, device: number): boolean {
    const { payloadBytes } = this.classes[classIndex]!;
    const stack = this.#freeSlabs[device] ?? [];
    for (let at = stack.length - 1; at >= 0; at -= 1) {
      const slab = stack[at]!;
      // Asked first: a slab that is refused, or an error, leaves everything as it was.
      if (!this.options.assignSlab(slab, payloadBytes)) continue;
      stack.splice(at, 1);
      this.#assign(slab, classIndex);
      return true;
    }
    return false;
  }

  /**
   * Start-up: the backing store already serves this payload from the slab. Its slots are taken by take().
   */
  adopt(slab: number, payloadBytes: number): void {
    assert(slab < this.slabs && this.#class[slab] === NONE, "a slab can be adopted once");
    this.#unfree(slab);
    this.#assign(slab, this.classOf(payloadBytes));
  }

  /**
   * Live: the same for a slab that serves no class (new, or lost with its device); it gives out no slots
   * until adoptEnd(). Payload 0: the slab is a free one. False: slots of it are still in use.
   */
  adoptBegin(slab: number, payloadBytes: number): boolean {
    assert(slab < this.slabs, "no such slab");
    if (this.#class[slab] !== NONE) return false;
    this.#unfree(slab);
    if (payloadBytes === 0) {
      this.#status[slab] = SLAB.OPEN;
      this.#freeSlabs[this.#device[slab]!]!.push(slab);
      return true;
    }
    this.#status[slab] = SLAB.ADOPTING;
    this.#deviceAdopting[this.#device[slab]!]! += 1;
    this.#assign(slab, this.classOf(payloadBytes));
    return true;
  }

  /** Builds the slab's free list and opens it; nothing if the device was lost meanwhile. */
  adoptEnd(slab: number): void {
    if (this.#status[slab] !== SLAB.ADOPTING) return;
    const entry = this.classes[this.#class[slab]!]!;
    this.#status[slab] = SLAB.OPEN;
    this.#deviceAdopting[this.#device[slab]!]! -= 1;
    this.#linkFree(slab);
    if (this.#usedOf[slab]! < entry.slotsPerSlab) this.#open(slab, entry);
    if (this.#usedOf[slab] === 0) this.#release(slab);
  }

  isAdopting(slab: number): boolean {
    return slab < this.slabs && this.#status[slab] === SLAB.ADOPTING;
  }

  /** What is evicted there gives no slot yet, and takes the place of what has still to be adopted. */
  isDeviceAdopting(device: number): boolean {
    return this.#deviceAdopting[device]! > 0;
  }

  /** Takes one slot of an adopted slab in state LANDED; false if it is out of range or taken. */
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
      owners[index] = owner + LANDED_WORD;
      this.#took(slab, entry);
      return true;
    }
    return false;
  }

  /** Start-up, after the last take(): builds the free lists; empty slabs become free ones. */
  takeEnd(): void {
    for (let slab = 0; slab < this.slabs; slab += 1) {
      if (this.#class[slab] === NONE) continue;
      this.#linkFree(slab);
      if (this.#usedOf[slab] === 0) this.#release(slab);
    }
  }

  /** Links the free ones among the slots that were ever taken. */
  #linkFree(slab: number): void {
    const owners = this.#owners[slab]!;
    this.#head[slab] = FREE_END;
    for (let index = this.#fresh[slab]! - 1; index >= 0; index -= 1) {
      if (owners[index]! < FREE_WORD) continue;
      owners[index] = FREE_WORD + this.#head[slab]!;
      this.#head[slab] = index;
    }
  }

  /** `written`: the header may be valid, so the backing store has to be told. */
  free(slot: Slot, written: boolean): void {
    const slab = slot >>> SLOT_INDEX_BITS;
    const index = slot & SLOT_INDEX_MASK;
    const owners = this.#owners[slab]!;
    const status = this.#status[slab]!;
    assert(owners[index]! < FREE_WORD, "a slot was freed twice");
    const entry = this.classes[this.#class[slab]!]!;
    if (written && status !== SLAB.LOST) this.discard(slot);
    const full = this.#usedOf[slab] === entry.slotsPerSlab;
    // While a slab is adopted its free slots stand in no list: adoptEnd() makes it.
    owners[index] = FREE_WORD + (status === SLAB.ADOPTING ? FREE_END : this.#head[slab]!);
    if (status !== SLAB.ADOPTING) this.#head[slab] = index;
    const device = this.#device[slab]!;
    this.#usedOf[slab] = this.#usedOf[slab]! - 1;
    this.#deviceUsed[device] = this.#deviceUsed[device]! - 1;
    entry.used -= 1;
    this.slotsUsed -= 1;
    if (status === SLAB.OPEN) {
      if (full) this.#open(slab, entry);
      else entry.room[device] = entry.room[device]! + 1;
    } else if (status !== SLAB.ADOPTING && this.#usedOf[slab] === 0) this.#release(slab);
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
    if (this.#status[slab] === SLAB.OPEN) this.#shut(slab, SLAB.CLOSED);
  }

  /** Ends close(): the slab takes part again. */
  reopen(slab: number): void {
    if (this.#status[slab] !== SLAB.CLOSED) return;
    this.#status[slab] = SLAB.OPEN;
    const classIndex = this.#class[slab]!;
    if (classIndex === NONE) {
      this.#freeSlabs[this.#device[slab]!]!.push(slab);
      return;
    }
    const entry = this.classes[classIndex]!;
    if (this.#usedOf[slab]! < entry.slotsPerSlab) this.#open(slab, entry);
  }

  isOpen(slab: number): boolean {
    return this.#status[slab] === SLAB.OPEN;
  }

  /** Being emptied. */
  isClosed(slab: number): boolean {
    return this.#status[slab] === SLAB.CLOSED;
  }

  /** Every slab of the device is lost; it forgets its class when its last slot is freed. */
  loseDevice(device: number): void {
    this.#anyLost = true;
    for (let slab = 0; slab < this.slabs; slab += 1) {
      if (this.#device[slab] === device) this.#shut(slab, SLAB.LOST);
    }
  }

  /** Some slab may be lost. */
  get anyLost(): boolean {
    return this.#anyLost;
  }

  isLost(slab: number): boolean {
    return this.#status[slab] === SLAB.LOST;
  }

  /** The device gives out no slots while `closed`; what it holds stays. */
  setDeviceClosed(device: number, closed: boolean): void {
    assert(device >= 0 && device < DEVICES_MAX, "no such device");
    this.#deviceClosed[device] = closed ? 1 : 0;
  }

  isDeviceClosed(device: number): boolean {
    return this.#deviceClosed[device] === 1;
  }

  deviceOf(slot: Slot): number {
    return this.#device[slot >>> SLOT_INDEX_BITS]!;
  }

  deviceOfSlab(slab: number): number {
    return this.#device[slab]!;
  }

  isTaken(slot: Slot): boolean {
    const slab = slot >>> SLOT_INDEX_BITS;
    const index = slot & SLOT_INDEX_MASK;
    if (slab >= this.slabs || this.#class[slab] === NONE) return false;
    return index < this.#fresh[slab]! && this.#owners[slab]![index]! < FREE_WORD;
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
    owners[index] = (owners[index]! & OWNER_MASK) + fill * FILL_ONE;
  }

  /** For the auditor. */
  parts(): SlotParts {
    return {
      class: this.#class,
      status: this.#status,
      device: this.#device,
      head: this.#head,
      fresh: this.#fresh,
      used: this.#usedOf,
      next: this.#next,
      owners: this.#owners,
      freeSlabs: this.#freeSlabs,
      unannounced: this.#freedCount,
    };
  }

  #assign(slab: number, classIndex: number): void {
    const entry = this.classes[classIndex]!;
    this.#class[slab] = classIndex;
    this.#head[slab] = FREE_END;
    this.#fresh[slab] = 0;
    this.#usedOf[slab] = 0;
    this.#owners[slab] = new Uint32Array(entry.slotsPerSlab);
    const device = this.#device[slab]!;
    entry.slabs += 1;
    entry.slabsOf[device] = entry.slabsOf[device]! + 1;
    if (this.#status[slab] === SLAB.OPEN) this.#open(slab, entry);
  }

  #release(slab: number): void {
    const entry = this.classes[this.#class[slab]!]!;
    const device = this.#device[slab]!;
    const status = this.#status[slab]!;
    assert(this.#usedOf[slab] === 0, "a slab with live slots was released");
    this.flush();
    if (status === SLAB.OPEN) this.#unlink(slab, entry);
    entry.slabs -= 1;
    entry.slabsOf[device] = entry.slabsOf[device]! - 1;
    this.#class[slab] = NONE;
    this.#owners[slab] = undefined;
    if (status === SLAB.OPEN) this.#freeSlabs[device]!.push(slab);
    if (status !== SLAB.LOST) this.options.releaseSlab(slab);
  }

  /** Closed or lost from now on. */
  #shut(slab: number, status: number): void {
    const before = this.#status[slab]!;
    const classIndex = this.#class[slab]!;
    if (before === SLAB.OPEN) {
      if (classIndex === NONE) this.#unfree(slab);
      else {
        const entry = this.classes[classIndex]!;
        if (this.#usedOf[slab]! < entry.slotsPerSlab) this.#unlink(slab, entry);
      }
    }
    if (before === SLAB.ADOPTING) {
      this.#deviceAdopting[this.#device[slab]!]! -= 1;
      this.#linkFree(slab);
    }
    this.#status[slab] = status;
    if (classIndex !== NONE && this.#usedOf[slab] === 0) this.#release(slab);
  }

  /** Takes a slab without a class from among the free ones, if it is there. */
  #unfree(slab: number): void {
    const stack = this.#freeSlabs[this.#device[slab]!]!;
    const at = stack.lastIndexOf(slab);
    if (at >= 0) stack.splice(at, 1);
  }

  #took(slab: number, entry: SlotClass): void {
    const device = this.#device[slab]!;
    const used = this.#usedOf[slab]! + 1;
    this.#usedOf[slab] = used;
    this.#deviceUsed[device] = this.#deviceUsed[device]! + 1;
    entry.used += 1;
    this.slotsUsed += 1;
    if (this.#status[slab] !== SLAB.OPEN) return;
    entry.room[device] = entry.room[device]! - 1;
    if (used === entry.slotsPerSlab) this.#unlink(slab, entry);
  }

  #open(slab: number, entry: SlotClass): void {
    const device = this.#device[slab]!;
    const first = entry.open[device]!;
    this.#previous[slab] = NONE;
    this.#next[slab] = first;
    if (first !== NONE) this.#previous[first] = slab;
    entry.open[device] = slab;
    entry.room[device] = entry.room[device]! + entry.slotsPerSlab - this.#usedOf[slab]!;
  }

  #unlink(slab: number, entry: SlotClass): void {
    const device = this.#device[slab]!;
    const next = this.#next[slab]!;
    const previous = this.#previous[slab]!;
    if (previous === NONE) entry.open[device] = next;
    else this.#next[previous] = next;
    if (next !== NONE) this.#previous[next] = previous;
    this.#next[slab] = NONE;
    this.#previous[slab] = NONE;
    entry.room[device] = entry.room[device]! - entry.slotsPerSlab + this.#usedOf[slab]!;
  }
}
