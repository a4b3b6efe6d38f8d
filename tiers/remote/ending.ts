/** How a call ends: once, by its deadline at the latest, whoever holds it then. */
import { assert } from "../../src/assert.ts";
import { type CallLimits, failure, type Outcome } from "./object-store.ts";

export class Ending<T> {
  readonly ended: Promise<Outcome<T>>;
  readonly #limits: CallLimits;
  readonly #timer: NodeJS.Timeout;
  readonly #onAbort = (): void => this.finish(failure("cancelled", "cancelled"));
  #resolve: (outcome: Outcome<T>) => void = () => undefined;
  #letGo: () => void = () => undefined;
  #done = false;

  /** Has ended already where the signal has fired. */
  constructor(limits: CallLimits) {
    this.#limits = limits;
    this.ended = new Promise((resolve) => {
      this.#resolve = resolve;
    });
    const late = (): void => this.finish(failure("timeout", "past the deadline"));
    this.#timer = setTimeout(late, limits.deadlineMs);
    limits.signal?.addEventListener("abort", this.#onAbort, { once: true });
    if (limits.signal?.aborted === true) this.#onAbort();
  }

  get done(): boolean {
    return this.#done;
  }

  /** letGo: called when it ends; after that its holder touches the caller's memory no more. */
  holdBy(letGo: () => void): void {
    assert(!this.#done, "what has ended is held by nobody");
    this.#letGo = letGo;
  }

  /** Only the first time counts. */
  finish(outcome: Outcome<T>): void {
    if (this.#done) return;
    this.#done = true;
    clearTimeout(this.#timer);
    this.#limits.signal?.removeEventListener("abort", this.#onAbort);
    this.#letGo();
    this.#resolve(outcome);
  }
}
