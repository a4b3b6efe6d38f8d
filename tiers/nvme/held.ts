/**
 * Blocks of namespaces that this life does not know: their table was full, or their descriptor was not understood.
 * Nobody can read them now, and the next start may. So a segment of which the index names such a slot is held: it
 * gives out no slots (the ledger's slab is closed), its pages stay in the index as they are, and what it holds of
 * namespaces that are known is read and evicted as ever. What was evicted there comes back with the next start: no
 * slot of it was written since. When a device has no more room elsewhere, held segments are used again, those first
 * that hold nothing else. A device that is fenced, or whose index begins anew, forgets what it holds for others.
 */
import type { Core } from "../../src/ledger/core.ts";
import type { SlotTable } from "../../src/ledger/slots.ts";
import { TIER } from "../../src/ledger/types.ts";
import type { Marks } from "./marks.ts";
import type { Segment, Segments } from "./segments.ts";

export class HeldSegments {
  readonly #segments: Segments;
  readonly #marks: Marks;

  constructor(segments: Segments, marks: Marks) {
    this.#segments = segments;
    this.#marks = marks;
  }

  get list(): Segment[] {
    return [...this.#segments.list].filter(({ held }) => held);
  }

  /** The index names this slot for a namespace that is not bound. While indexes are read. */
  hold(slot: number, slab: number): void {
    const segment = this.#segments.at(slab);
    if (segment === undefined) return;
    segment.held = true;
    this.#marks.freeze(slot);
  }

  /** All entries were offered: held segments give out no slots. */
  close(core: Core): void {
    for (const { slab } of this.list) core.tier(TIER.NVME).slots.close(slab);
  }

  /** Uses one held segment again if the device is short of room; its number, if it did. */
  useOne(core: Core, device: number, lowWatermark: number): number | undefined {
    const { slots } = core.tier(TIER.NVME);
    const held = this.list.filter(({ retiring }) => !retiring);
    if (held.length === 0 || freeSlabs(slots, device) > 0) return undefined;
    const empty = held.find(({ slab }) => slots.slabClass(slab) < 0);
    if (empty === undefined && !shortOfRoom(slots, device, lowWatermark)) return undefined;
    const segment = empty ?? held[0]!;
    this.#use(segment);
    slots.reopen(segment.slab);
    return segment.segment;
  }

  /** What is held is forgotten. `core`: segments are used again at once. */
  forget(core: Core | undefined): void {
    for (const segment of this.list) {
      this.#use(segment);
      if (!segment.retiring) core?.tier(TIER.NVME).slots.reopen(segment.slab);
    }
  }

  #use(segment: Segment): void {
    segment.held = false;
    this.#marks.thaw(segment.slab);
  }
}

function freeSlabs(slots: SlotTable, device: number): number {
  return slots.parts().freeSlabs[device]?.length ?? 0;
}

/** Some class has no more room on the device than eviction keeps free anyway. */
function shortOfRoom(slots: SlotTable, device: number, lowWatermark: number): boolean {
  return slots.classes.some(({ slabsOf, room, slotsPerSlab }) => {
    const total = slabsOf[device]! * slotsPerSlab;
    return total > 0 && room[device]! <= total * (1 - lowWatermark);
  });
}
