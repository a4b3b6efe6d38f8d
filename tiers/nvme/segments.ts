/**
 * Segments of one device: which files it has, which slab each serves, and how the set grows and shrinks. New ones are
 * written once from end to end in the background, one at a time; a segment that is given back is emptied first.
 */
import type { Addon, SegmentInfo } from "../../addon/binding.ts";
import { assert } from "../../src/assert.ts";
import { mayLeave } from "../../src/ledger/ages.ts";
import type { Core } from "../../src/ledger/core.ts";
import { evict } from "../../src/ledger/evict.ts";
import { FILL, SLOT_INDEX_BITS } from "../../src/ledger/slots.ts";
import { TIER } from "../../src/ledger/types.ts";
import { LIMITS } from "../../src/limits.ts";
import { PAGES_PER_SEGMENT, SEGMENTS_MAX } from "./index-pages.ts";
import type { Marks } from "./marks.ts";
import type { Tasks } from "./tasks.ts";

export interface Segment {
  readonly segment: number;
  readonly slab: number;
  /** Payload bytes of its slots as the file says, 0 = free. */
  payloadBytes: number;
  /** The index names slots of it for namespaces that are not bound: it gives out none (held.ts). */
  held: boolean;
  /** Being emptied, to be taken away. */
  retiring: boolean;
  /** Slot at which emptying goes on; negative: from the last one. */
  cursor: number;
}

/** A segment that was taken away. */
export interface GoneSegment {
  readonly segment: number;
  /** Its pages [0, pages) may stand in the index. */
  readonly pages: number;
  /** Why its file could not be removed. */
  readonly kept: string | undefined;
}

/** What the tier does for a device: slab numbers are given out over all devices. */
export interface SlabNumbers {
  /** The next slab number, which will name this segment; −1: none is left. */
  take(segment: number): number;
  /** The ledger may use the slab from now on. */
  ready(slab: number): void;
  left(): number;
}

type SegmentAddon = Pick<
  Addon,
  "diskSegments" | "diskAttach" | "diskDetach" | "diskAssign" | "diskRelease" | "diskPrepare"
>;

export class Segments {
  readonly #addon: SegmentAddon;
  readonly #diskNow: () => number;
  readonly #marks: Marks;
  readonly #numbers: SlabNumbers;
  readonly #mayUse: (segment: number) => boolean;
  readonly #bySlab = new Map<number, Segment>();
  readonly #bySegment = new Map<number, Segment>();
  #next = 0;
  /** Segment being written: done and total in MiB. */
  preparing: { readonly segment: number; done: number; total: number } | undefined;

  /**
   * `disk`: the addon's number, which changes when the device is opened anew. `mayUse`: a number may be given to a
   * new file: the index holds no page of an earlier one.
   */
  constructor(
    addon: SegmentAddon,
    disk: () => number,
    marks: Marks,
    numbers: SlabNumbers,
    mayUse: (segment: number) => boolean,
  ) {
    this.#addon = addon;
    this.#diskNow = disk;
    this.#marks = marks;
    this.#numbers = numbers;
    this.#mayUse = mayUse;
  }

  get #disk(): number {
    return this.#diskNow();
  }

  get count(): number {
    return this.#bySlab.size;
  }

  /** Attached ones and the one being written. */
  get planned(): number {
    return this.#bySlab.size + (this.preparing === undefined ? 0 : 1);
  }

  get list(): IterableIterator<Segment> {
    return this.#bySlab.values();
  }

  at(slab: number): Segment | undefined {
    return this.#bySlab.get(slab);
  }

  ofSegment(segment: number): Segment | undefined {
    return this.#bySegment.get(segment);
  }

  /** Key in the index of a page, by the slab it stands in. */
  keyOf(slab: number, index: number): number {
    const segment = this.#bySlab.get(slab);
    assert(segment !== undefined, "a page lies in an attached segment");
    return segment.segment * PAGES_PER_SEGMENT + index;
  }

  /** At open: every prepared file gets a slab. Returns segments that were not finished. */
  attachFound(): SegmentInfo[] {
    const unfinished: SegmentInfo[] = [];
    for (const info of this.#addon.diskSegments(this.#disk)) {
      this.#next = Math.max(this.#next, info.segment + 1);
      if (!info.prepared || info.segment >= SEGMENTS_MAX) unfinished.push(info);
      else this.#attach(info.segment, info.payloadBytes);
    }
    return unfinished;
  }

  #attach(segment: number, payloadBytes: number): Segment | undefined {
    const slab = this.#numbers.take(segment);
    if (slab < 0) return undefined;
    this.#addon.diskAttach(this.#disk, segment, slab);
    this.#marks.addSlab(slab);
    const entry: Segment = {
      segment,
      slab,
      payloadBytes,
      held: false,
      retiring: false,
      cursor: -1,
    };
    this.#bySlab.set(slab, entry);
    this.#bySegment.set(segment, entry);
    return entry;
  }

  /** Writes one more segment and hands it to the ledger. Unfinished ones are written again first. @throws TaskError */
  async prepareNext(tasks: Tasks, owner: object): Promise<void> {
    assert(this.preparing === undefined, "one segment at a time");
    if (this.#numbers.left() < 1) return;
    const unfinished = this.#addon
      .diskSegments(this.#disk)
      .find(
        ({ segment, prepared }) => !prepared && segment < SEGMENTS_MAX && this.#mayUse(segment),
      );
    const segment = unfinished?.segment ?? this.#freeNumber();
    if (segment < 0) return;
    const state = { segment, done: 0, total: 0 };
    this.preparing = state;
    try {
      await tasks.run(
        owner,
        (task) => this.#addon.diskPrepare(this.#disk, segment, task),
        (done, total) => Object.assign(state, { done, total }),
      );
    } finally {
      this.preparing = undefined;
    }
    this.#next = Math.max(this.#next, segment + 1);
    const attached = this.#attach(segment, 0);
    if (attached !== undefined) this.#numbers.ready(attached.slab);
  }

  /** The device was opened anew: all segments under their old slab numbers. @throws the addon's errors */
  attachAgain(): void {
    const found = new Map(this.#addon.diskSegments(this.#disk).map((info) => [info.segment, info]));
    for (const entry of this.#bySlab.values()) {
      assert(found.has(entry.segment), "the device came back without one of its segments");
      this.#addon.diskAttach(this.#disk, entry.segment, entry.slab);
      // A class whose first slot was not written yet is not in the file.
      const { payloadBytes } = entry;
      entry.payloadBytes = found.get(entry.segment)!.payloadBytes;
      const assigned = payloadBytes === 0 || this.assign(entry.slab, payloadBytes);
      assert(assigned, "nothing uses a disk that was just opened");
    }
  }

  /** Numbers of files that were deleted are used again when all others are, and after a start. */
  #freeNumber(): number {
    for (let segment = this.#next; segment < SEGMENTS_MAX; segment++) {
      if (this.#mayUse(segment)) return segment;
    }
    const files = new Set(this.#addon.diskSegments(this.#disk).map(({ segment }) => segment));
    for (let segment = 0; segment < this.#next; segment++) {
      if (!files.has(segment) && this.#mayUse(segment)) return segment;
    }
    return -1;
  }

  /**
   * The ledger gives the slab to a size class. After a start it may stand assigned although no block of it came
   * back: the ledger counts it free. False: the device still owes answers for it.
   */
  assign(slab: number, payloadBytes: number): boolean {
    const segment = this.#bySlab.get(slab);
    assert(segment !== undefined, "only an attached segment is assigned");
    if (segment.payloadBytes === payloadBytes) return true;
    if (segment.payloadBytes !== 0) this.release(slab);
    if (segment.payloadBytes !== 0) return false;
    if (!whileIdle(() => this.#addon.diskAssign(this.#disk, slab, payloadBytes))) return false;
    segment.payloadBytes = payloadBytes;
    return true;
  }

  release(slab: number): void {
    const segment = this.#bySlab.get(slab);
    if (segment === undefined || segment.payloadBytes === 0 || segment.held) return;
    // A read that the device still owes an answer to keeps the segment's class: assign() releases it.
    if (whileIdle(() => this.#addon.diskRelease(this.#disk, slab))) segment.payloadBytes = 0;
  }

  /** Chooses the segment that costs least to give back: a free one, else the one with the fewest live slots. */
  retireOne(core: Core): void {
    const { slots } = core.tier(TIER.NVME);
    let best: Segment | undefined;
    for (const segment of this.#bySlab.values()) {
      if (segment.retiring) return;
      const used = slots.slabClass(segment.slab) < 0 ? 0 : slots.slabUsed(segment.slab);
      const least = best === undefined ? Number.POSITIVE_INFINITY : usedSlots(core, best.slab);
      if (used < least) best = segment;
    }
    if (best !== undefined) best.retiring = true;
  }

  retireAll(): void {
    for (const segment of this.#bySlab.values()) segment.retiring = true;
  }

  /** Segments that are being emptied are used again. */
  keepAll(core: Core): void {
    for (const segment of this.#bySlab.values()) {
      if (!segment.retiring) continue;
      segment.retiring = false;
      segment.cursor = -1;
      if (!segment.held) core.tier(TIER.NVME).slots.reopen(segment.slab);
    }
  }

  get retiring(): number {
    let count = 0;
    for (const segment of this.#bySlab.values()) if (segment.retiring) count += 1;
    return count;
  }

  /**
   * One slice of emptying: evicts what may leave, calls back for what may not, takes away what is empty. Files are
   * deleted if `remove`. Returns the segments taken away, each with the pages of it that the index may name.
   */
  retireStep(core: Core, remove: boolean, stays: (block: number) => void): GoneSegment[] {
    const gone: GoneSegment[] = [];
    const until = performance.now() + LIMITS.nvmeSliceMs;
    for (const segment of [...this.#bySlab.values()]) {
      if (!segment.retiring || performance.now() >= until) continue;
      emptySlab(core, segment, until, stays);
      core.flush();
      if (core.tier(TIER.NVME).slots.slabClass(segment.slab) >= 0) continue;
      const pages = this.#marks.pagesOf(segment.slab);
      let kept: string | undefined;
      try {
        if (!this.#detach(segment, remove)) continue;
      } catch (error) {
        // Gone already, or on a disk that takes no more: what cannot be removed is let go of all the same.
        kept = String(error);
        if (!this.#letGo(segment)) continue;
      }
      gone.push({ segment: segment.segment, pages, kept });
    }
    return gone;
  }

  /** Detaches it without its file; a disk that was opened anew may not have it attached. False: it is in use. */
  #letGo(segment: Segment): boolean {
    try {
      return this.#detach(segment, false);
    } catch (error) {
      if ((error as { code?: unknown }).code !== "ARGUMENT") throw error;
      this.#forget(segment);
      return true;
    }
  }

  /** False: items still use it; the next slice tries again. */
  #detach(segment: Segment, remove: boolean): boolean {
    if (!whileIdle(() => this.#addon.diskDetach(this.#disk, segment.slab, remove))) return false;
    this.#forget(segment);
    return true;
  }

  #forget(segment: Segment): void {
    this.#bySlab.delete(segment.slab);
    this.#bySegment.delete(segment.segment);
    this.#marks.removeSlab(segment.slab);
  }
}

/** False: the segment is in use, or its disk waits to be opened anew; nothing was changed. */
function whileIdle(change: () => unknown): boolean {
  try {
    change();
  } catch (error) {
    const { code } = error as { code?: unknown };
    if (code !== "BUSY" && code !== "CLOSED") throw error;
    return false;
  }
  return true;
}

function usedSlots(core: Core, slab: number): number {
  const { slots } = core.tier(TIER.NVME);
  return slots.slabClass(slab) < 0 ? 0 : slots.slabUsed(slab);
}

/** Closes the slab and evicts what may leave, deepest blocks first, until `until`; the next slice goes on there. */
function emptySlab(
  core: Core,
  segment: Segment,
  until: number,
  stays: (block: number) => void,
): void {
  const tier = core.tier(TIER.NVME);
  const { slots } = tier;
  const { slab } = segment;
  slots.close(slab);
  const classIndex = slots.slabClass(slab);
  if (classIndex < 0) return;
  if (segment.cursor < 0) segment.cursor = slots.slabFresh(slab) - 1;
  for (; segment.cursor >= 0; segment.cursor--) {
    if (slots.slabClass(slab) !== classIndex) return;
    if ((segment.cursor & 63) === 0 && performance.now() >= until) return;
    const slot = ((slab << SLOT_INDEX_BITS) | segment.cursor) >>> 0;
    if (slots.fillOf(slot) === FILL.FREE) continue;
    const block = slots.ownerOf(slot);
    if (mayLeave(core, block, TIER.NVME)) evict(core, block, tier);
    else stays(block);
  }
}
