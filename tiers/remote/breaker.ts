/**
 * The circuit breaker of a store, as a table. Closed: calls pass. Open: none does, until `openMs` have passed,
 * twice as long after each trial that failed. Half-open: one call passes as the trial and decides. Only faults that speak against the store count.
 */
import { assert } from "../../src/assert.ts";
import { Backoff } from "../backoff.ts";

export type BreakerState = "closed" | "open" | "halfOpen";
export type BreakerEvent = "success" | "fault" | "elapsed" | "trialLost";

/** `tripped`: faults in a row have reached the bound, this one included. */
export const BREAKER_TABLE: Readonly<
  Record<BreakerState, Readonly<Record<BreakerEvent, (tripped: boolean) => BreakerState>>>
> = {
  closed: {
    success: () => "closed",
    fault: (tripped) => (tripped ? "open" : "closed"),
    elapsed: () => "closed",
    trialLost: () => "closed",
  },
  open: {
    // Calls that were in flight when it opened prove nothing about now.
    success: () => "open",
    fault: () => "open",
    elapsed: () => "halfOpen",
    trialLost: () => "open",
  },
  halfOpen: {
    success: () => "closed",
    fault: () => "open",
    elapsed: () => "halfOpen",
    // Cancelled by its caller: no verdict, the next call is the trial.
    trialLost: () => "halfOpen",
  },
};

export interface BreakerOptions {
  /** Faults in a row that open it. */
  readonly faultsMax: number;
  readonly openMs: number;
  readonly openMsMax: number;
  /** Milliseconds of a monotonic clock. */
  readonly now: () => number;
}

/** What a call may do: pass, be the trial, or not be made. */
export type Admission = "pass" | "trial" | "refused";

export class Breaker {
  readonly #options: BreakerOptions;
  readonly #backoff: Backoff;
  #state: BreakerState = "closed";
  #faultsInRow = 0;
  #trialAt = 0;
  #trialRunning = false;
  #opened = 0;

  constructor(options: BreakerOptions) {
    assert(options.faultsMax >= 1 && options.openMs > 0, "a breaker has bounds");
    this.#options = options;
    this.#backoff = new Backoff(options.openMs, options.openMsMax);
  }

  get state(): BreakerState {
    return this.#state;
  }

  /** How often it opened. */
  get opened(): number {
    return this.#opened;
  }

  admit(): Admission {
    if (this.#state === "open" && this.#options.now() >= this.#trialAt)
      this.#apply("elapsed", false);
    if (this.#state === "closed") return "pass";
    if (this.#state === "open" || this.#trialRunning) return "refused";
    this.#trialRunning = true;
    return "trial";
  }

  /** The call that was admitted so has ended. */
  ended(admission: Admission, event: "success" | "fault" | "trialLost"): void {
    assert(admission !== "refused", "a refused call does not end");
    const trial = admission === "trial";
    if (trial) this.#trialRunning = false;
    // Once it is not closed, only the trial decides.
    if (this.#state !== "closed" && !trial) return;
    if (event === "success") this.#faultsInRow = 0;
    if (event === "fault") this.#faultsInRow += 1;
    this.#apply(event, this.#faultsInRow >= this.#options.faultsMax);
  }

  #apply(event: BreakerEvent, tripped: boolean): void {
    const next = BREAKER_TABLE[this.#state][event](tripped);
    if (next === "open" && this.#state !== "open") {
      this.#trialAt = this.#options.now() + this.#backoff.failed();
      this.#opened += 1;
    }
    if (next === "closed" && this.#state !== "closed") {
      this.#faultsInRow = 0;
      this.#backoff.reset();
    }
    this.#state = next;
  }
}
