/** One read of payload, as its caller sees it: it ends once, by its deadline at the latest, whoever holds it then. */
import type { IncomingHttpHeaders } from "node:http";
import { assert } from "../../src/assert.ts";
import type { HttpAnswer } from "./http-answer.ts";
import { type CallLimits, type Failure, failure, type Outcome } from "./object-store.ts";

/**
 * Looks at status and headers before the body is received; a failure ends the exchange. Queues no microtask that could
 * end it later: over TLS, bytes of the same read may land until those have run.
 */
export type Accept = (status: number, headers: IncomingHttpHeaders) => Failure | undefined;

export class Receiving {
  readonly ended: Promise<Outcome<HttpAnswer>>;
  /** The whole request. */
  readonly request: Buffer;
  /** Where the body of a 2xx answer goes: exactly so many bytes. */
  readonly into: Uint8Array;
  readonly accept: Accept;
  readonly #limits: CallLimits;
  readonly #timer: NodeJS.Timeout;
  readonly #onAbort = (): void => this.finish(failure("cancelled", "cancelled"));
  #resolve: (outcome: Outcome<HttpAnswer>) => void = () => undefined;
  #letGo: () => void = () => undefined;
  #done = false;

  constructor(request: Buffer, into: Uint8Array, accept: Accept, limits: CallLimits) {
    assert(into.length > 0, "payload has bytes");
    this.request = request;
    this.into = into;
    this.accept = accept;
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

  /** letGo: called when it ends; after that its holder touches `into` no more. */
  holdBy(letGo: () => void): void {
    assert(!this.#done, "what has ended is held by nobody");
    this.#letGo = letGo;
  }

  /** Only the first time counts. */
  finish(outcome: Outcome<HttpAnswer>): void {
    if (this.#done) return;
    this.#done = true;
    clearTimeout(this.#timer);
    this.#limits.signal?.removeEventListener("abort", this.#onAbort);
    this.#letGo();
    this.#resolve(outcome);
  }
}
