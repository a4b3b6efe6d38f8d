/**
 * Health of one device as a table: state × event → state. Nothing here has a clock or a device; the owner
 * (device.ts) turns what it sees into events and acts on the moves.
 *
 *   ok        reads and writes
 *   slow      an operation has been at the device for too long: no writes, reads only as a last resort
 *   readOnly  a write or a sync failed: what is there may be read; probed
 *   fenced    reads fail or hang: nothing goes there, its copies are given up; probed
 *
 * A full file system is no illness of the device: it leaves the state as it is and is tracked beside it.
 */
import type { DeviceHealth } from "../tier.ts";

export const HEALTH_EVENTS = [
  /** An item ended well. */
  "itemOk",
  /** A read failed. Single ones are misses. */
  "readError",
  /** Too many failed reads within the window (FaultWindow). */
  "readErrors",
  "writeError",
  /** Sync or index commit failed, not for want of room: what was written may be lost. */
  "syncFailed",
  /** An operation has been at the device longer than nvmeSlowMs. */
  "stall",
  /** … longer than nvmeFenceMs. */
  "hang",
  /** No room left. */
  "full",
  /** The device's own test file was written, synced and read back. */
  "probeOk",
  "probeFailed",
] as const;
export type HealthEvent = (typeof HEALTH_EVENTS)[number];

export const HEALTH_STATES = ["ok", "slow", "readOnly", "fenced"] as const;

const FENCED: Readonly<Record<HealthEvent, DeviceHealth>> = {
  itemOk: "fenced",
  readError: "fenced",
  readErrors: "fenced",
  writeError: "fenced",
  syncFailed: "fenced",
  stall: "fenced",
  hang: "fenced",
  full: "fenced",
  probeOk: "ok",
  probeFailed: "fenced",
};

export const HEALTH_TABLE: Readonly<
  Record<DeviceHealth, Readonly<Record<HealthEvent, DeviceHealth>>>
> = {
  ok: {
    itemOk: "ok",
    readError: "ok",
    readErrors: "fenced",
    writeError: "readOnly",
    syncFailed: "readOnly",
    stall: "slow",
    hang: "fenced",
    full: "ok",
    probeOk: "ok",
    probeFailed: "readOnly",
  },
  slow: {
    itemOk: "slow",
    readError: "slow",
    readErrors: "fenced",
    writeError: "readOnly",
    syncFailed: "readOnly",
    stall: "slow",
    hang: "fenced",
    full: "slow",
    probeOk: "ok",
    probeFailed: "readOnly",
  },
  readOnly: {
    itemOk: "readOnly",
    readError: "readOnly",
    readErrors: "fenced",
    writeError: "readOnly",
    syncFailed: "readOnly",
    stall: "readOnly",
    hang: "fenced",
    full: "readOnly",
    probeOk: "ok",
    probeFailed: "readOnly",
  },
  fenced: FENCED,
};

export function nextHealth(state: DeviceHealth, event: HealthEvent): DeviceHealth {
  return HEALTH_TABLE[state][event];
}

/** Counts faults within a sliding window: true when a fault is one too many. */
export class FaultWindow {
  readonly #countMax: number;
  readonly #windowMs: number;
  #times: number[] = [];

  constructor(countMax: number, windowMs: number) {
    this.#countMax = countMax;
    this.#windowMs = windowMs;
  }

  fault(nowMs: number): boolean {
    this.#times = this.#times.filter((time) => nowMs - time < this.#windowMs);
    this.#times.push(nowMs);
    return this.#times.length >= this.#countMax;
  }

  clear(): void {
    this.#times = [];
  }
}
