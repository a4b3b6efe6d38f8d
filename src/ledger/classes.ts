/** Size classes of slots: which payloads share one, and where its slabs with free slots are; the arrays behind them. */
import { assert } from "../assert.ts";

export const SLOT_INDEX_BITS = 18;
/** Devices a tier can have: [0, DEVICES_MAX). */
export const DEVICES_MAX = 64;
/** No slab; no class. */
export const NONE = -1;

/** Payload bytes rounded up to what one class serves: multiples of 64 B up to 4 KiB, of 4 KiB above. */
export function classBytes(payloadBytes: number): number {
  assert(Number.isInteger(payloadBytes) && payloadBytes > 0, "payload bytes must be positive");
  const step = payloadBytes <= 4096 ? 64 : 4096;
  return Math.ceil(payloadBytes / step) * step;
}

export interface SlotClass {
  readonly payloadBytes: number;
  readonly slotsPerSlab: number;
  /** By device: first slab with a free slot, the free slots of that list, slabs. */
  readonly open: Int32Array;
  readonly room: Float64Array;
  readonly slabsOf: Int32Array;
  slabs: number;
  used: number;
}

/** A class that no slab serves yet. */
export function emptyClass(
  payloadBytes: number,
  slotsPerSlabOf: (payloadBytes: number) => number,
): SlotClass {
  const bytes = classBytes(payloadBytes);
  const slotsPerSlab = Math.min(slotsPerSlabOf(bytes), 2 ** SLOT_INDEX_BITS);
  assert(slotsPerSlab >= 1, "a slab holds no slot of this payload");
  return {
    payloadBytes: bytes,
    slotsPerSlab,
    open: new Int32Array(DEVICES_MAX).fill(NONE),
    room: new Float64Array(DEVICES_MAX),
    slabsOf: new Int32Array(DEVICES_MAX),
    slabs: 0,
    used: 0,
  };
}

/** Arrays by slab, and the stacks of free slabs by device. */
export interface SlotParts {
  readonly class: Int16Array;
  readonly status: Uint8Array;
  readonly device: Uint8Array;
  readonly head: Int32Array;
  readonly fresh: Int32Array;
  readonly used: Int32Array;
  readonly next: Int32Array;
  readonly owners: readonly (Uint32Array | undefined)[];
  readonly freeSlabs: readonly (readonly number[])[];
  /** Freed slots that the backing store has not been told of. */
  readonly unannounced: number;
}
