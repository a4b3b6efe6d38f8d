/**
 * Whether a store takes objects. The breaker speaks of the store as a whole, and cannot see this: without permission to
 * write, with its quota used up, on a full or read-only file system, a store answers every read, and a PUT that it
 * refuses says nothing against them. So PUTs have a state of their own: after one that was refused or found no room,
 * or several in a row that failed otherwise, none is made until a probe, a small object, could be stored.
 *
 * A probe that succeeds does not shorten the waits between probes, an object of the tier's own does: where there is
 * room for the one and not for the other, the state would else change at the pace of the timer.
 */
import { assert } from "../../src/assert.ts";
import { Backoff } from "../backoff.ts";
import { type Fault, FAULTS } from "./object-store.ts";

export interface StoreWritesOptions {
  /** PUTs in a row that failed neither as refused nor as full. */
  readonly faultsMax: number;
  readonly probeMs: number;
  readonly probeMsMax: number;
  /** Milliseconds of a monotonic clock. */
  readonly now: () => number;
}

export class StoreWrites {
  readonly #options: StoreWritesOptions;
  readonly #backoff: Backoff;
  #readOnly = false;
  #faultsInRow = 0;
  #probeAtMs = 0;
  #turns = 0;
  #probesFailed = 0;

  constructor(options: StoreWritesOptions) {
    assert(options.faultsMax >= 1 && options.probeMs > 0, "writes have bounds");
    this.#options = options;
    this.#backoff = new Backoff(options.probeMs, options.probeMsMax);
  }

  get readOnly(): boolean {
    return this.#readOnly;
  }

  /** How often it turned read-only. */
  get turns(): number {
    return this.#turns;
  }

  get probesFailed(): number {
    return this.#probesFailed;
  }

  get probeDue(): boolean {
    return this.#readOnly && this.#options.now() >= this.#probeAtMs;
  }

  /** A PUT has stored its object. Once read-only, only a probe decides. */
  stored(): void {
    if (this.#readOnly) return;
    this.#faultsInRow = 0;
    this.#backoff.reset();
  }

  /** A PUT has failed. */
  failed(fault: Fault): void {
    if (this.#readOnly) return;
    const atOnce = fault === "refused" || fault === "full";
    if (!atOnce && !FAULTS[fault].health) return;
    this.#faultsInRow += 1;
    if (!atOnce && this.#faultsInRow < this.#options.faultsMax) return;
    this.#readOnly = true;
    this.#turns += 1;
    this.#probeLater();
  }

  /** A probe has ended. */
  probed(stored: boolean): void {
    assert(this.#readOnly, "only a read-only store is probed");
    this.#faultsInRow = 0;
    this.#readOnly = !stored;
    if (stored) return;
    this.#probesFailed += 1;
    this.#probeLater();
  }

  #probeLater(): void {
    this.#probeAtMs = this.#options.now() + this.#backoff.failed();
  }
}
