/**
 * What a backing store would hold: per slot a header that is valid or not. Ledger tests run on it, so that
 * rule 10 (a header is invalid before its slot is used again, no two valid headers of one key) is checked
 * by what was written, not by what the ledger believes.
 */
import { assert } from "../../src/assert.ts";
import type { SlabTierOptions } from "../../src/ledger/types.ts";

export interface Header {
  readonly key: number;
  readonly shard: number;
  readonly generation: number;
  readonly lastAccess: number;
}

export class FakeStore {
  /** Valid headers by slot. */
  readonly headers = new Map<number, Header>();
  readonly slabs = new Map<number, number>();
  /** Slabs that are still in use here: they are not given. */
  readonly busy = new Set<number>();
  /** Slots with a valid header that the ledger does not know of: their device was lost. */
  readonly unknown = new Set<number>();
  /** Slots in the order they were freed, since the test last cleared it. */
  readonly freed: number[] = [];
  generation = 0;
  readonly devices: number;
  readonly options: SlabTierOptions;

  constructor(
    slabs: number,
    slotsPerSlab: number,
    blocksMax = 0,
    watermarks: readonly [number, number] = [1, 1],
    devices = 1,
  ) {
    this.devices = devices;
    this.options = {
      slabs,
      deviceOf: (slab) => slab % devices,
      slotsPerSlab: () => slotsPerSlab,
      assignSlab: (slab, payloadBytes) => {
        assert(!this.slabs.has(slab), "store: a slab was assigned twice");
        if (this.busy.has(slab)) return false;
        this.slabs.set(slab, payloadBytes);
        return true;
      },
      releaseSlab: (slab) => {
        assert(this.slabs.delete(slab), "store: a free slab was released");
        for (const slot of this.headers.keys()) {
          assert(slot >>> 18 !== slab, "store: a released slab has valid headers");
        }
      },
      invalidate: (slots, count) => {
        for (let i = 0; i < count; i += 1) {
          this.headers.delete(slots[i]!);
          this.unknown.delete(slots[i]!);
          this.freed.push(slots[i]!);
        }
      },
      blocksMax,
      highWatermark: watermarks[0],
      lowWatermark: watermarks[1],
    };
  }

  fillStart(slot: number): void {
    assert(!this.headers.has(slot), "store: a slot is filled over a valid header");
    assert(this.slabs.has(slot >>> 18), "store: a slot of a free slab is filled");
  }

  /** The device was lost: what stands there is still there, but the ledger forgets it. */
  lose(device: number): void {
    for (const slot of this.headers.keys()) {
      if ((slot >>> 18) % this.devices === device) this.unknown.add(slot);
    }
  }

  fillEnd(slot: number, key: number, shard: number, lastAccess: number): void {
    for (const [other, header] of this.headers) {
      if (this.unknown.has(other)) continue;
      const same = header.key === key && header.shard === shard;
      assert(!same || other === slot, "store: two valid headers of one key");
    }
    this.generation += 1;
    this.headers.set(slot, { key, shard, generation: this.generation, lastAccess });
  }
}
