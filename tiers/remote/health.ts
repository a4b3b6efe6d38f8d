/**
 * Health of the store, by the names that disks have: fenced while the breaker is not closed, read-only while it takes no
 * objects (store-writes.ts), slow while transfers take too long on average, else ok. On a timer a fenced store is asked
 * whether it is back and a read-only one whether it takes objects again, so that it returns without traffic; the
 * average of an idle one fades, so that a store that was slow yesterday is tried today.
 */
import type { DeviceHealth } from "../tier.ts";
import type { BreakerState } from "./breaker.ts";

const MIB = 2 ** 20;
/** Weight of the newest transfer. */
const WEIGHT = 0.2;

export function healthOf(
  breaker: BreakerState,
  readOnly: boolean,
  msPerMiB: number,
  slowMsPerMiB: number,
): DeviceHealth {
  if (breaker !== "closed") return "fenced";
  if (readOnly) return "readOnly";
  return msPerMiB > slowMsPerMiB ? "slow" : "ok";
}

/** Average pace of one direction. */
export class Pace {
  #msPerMiB = 0;
  #moved = false;

  get msPerMiB(): number {
    return this.#msPerMiB;
  }

  /** Of one transfer alone; 0 before the first. */
  get bytesPerSecond(): number {
    return this.#msPerMiB === 0 ? 0 : (MIB * 1_000) / this.#msPerMiB;
  }

  add(bytes: number, milliseconds: number): void {
    // Small ranges show latency, not pace.
    const pace = milliseconds / Math.max(bytes / MIB, 1);
    this.#msPerMiB =
      this.#msPerMiB === 0 ? pace : this.#msPerMiB + WEIGHT * (pace - this.#msPerMiB);
    this.#moved = true;
  }

  /** Once per probe interval: halves the average when nothing moved since the last call. */
  fade(): void {
    if (!this.#moved) this.#msPerMiB /= 2;
    this.#moved = false;
  }
}
