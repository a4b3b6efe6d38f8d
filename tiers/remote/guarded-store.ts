/**
 * Any ObjectStore with retries, a retry budget and a breaker around it, and no PUTs while it takes none (store-writes.ts).
 *
 * Retries help against single faults and make an overload worse. So they are paid from a token bucket that successes
 * fill slowly: when most calls fail, the budget is soon empty and each call is tried once. Delays have full jitter,
 * so that many nodes do not come back in step. After several faults in a row the breaker opens and calls fail at
 * once (a miss) until a trial succeeds.
 */
import { randomBytes } from "node:crypto";
import { assert } from "../../src/assert.ts";
import { type Admission, Breaker, type BreakerState } from "./breaker.ts";
import { chunkName } from "./chunk.ts";
import {
  type CallLimits,
  FAULTS,
  type Fault,
  FAULT_NAMES,
  failure,
  type ObjectInfo,
  type ObjectPage,
  type ObjectStore,
  type Outcome,
} from "./object-store.ts";
import { StoreWrites } from "./store-writes.ts";
import { DIGEST_BYTES, KEY_BYTES } from "./types.ts";

export interface GuardOptions {
  readonly attemptsMax: number;
  /** One attempt may take this long; the call as a whole its own deadline. */
  readonly attemptDeadlineMs: number;
  readonly delayBaseMs: number;
  readonly delayMaxMs: number;
  readonly budgetTokens: number;
  /** What a success gives back; a retry costs 1 (a timeout 2). */
  readonly budgetRefill: number;
  readonly breakerFaultsMax: number;
  readonly breakerOpenMs: number;
  /** What the time it is open grows to by failed trials. */
  readonly breakerOpenMsMax: number;
  /** Wait before a read-only store is first asked whether it takes objects again, and what it grows to. */
  readonly writeProbeMs: number;
  readonly writeProbeMsMax: number;
  /** 0 ≤ random() < 1 */
  readonly random: () => number;
  /** Milliseconds of a monotonic clock. */
  readonly now: () => number;
  /** Is told each change of state, with what led to it. */
  readonly log?: ((line: string) => void) | undefined;
}

export const GUARD_DEFAULTS: GuardOptions = {
  attemptsMax: 4,
  attemptDeadlineMs: 10_000,
  delayBaseMs: 50,
  delayMaxMs: 2_000,
  budgetTokens: 20,
  budgetRefill: 0.1,
  breakerFaultsMax: 8,
  breakerOpenMs: 5_000,
  breakerOpenMsMax: 30_000,
  writeProbeMs: 2_000,
  writeProbeMsMax: 60_000,
  random: Math.random,
  now: () => performance.now(),
};

/** Token bucket of retries. */
export class RetryBudget {
  readonly #tokensMax: number;
  readonly #refill: number;
  #tokens: number;

  constructor(tokensMax: number, refill: number) {
    assert(tokensMax >= 0 && refill >= 0, "a budget is not negative");
    this.#tokensMax = tokensMax;
    this.#refill = refill;
    this.#tokens = tokensMax;
  }

  get tokens(): number {
    return this.#tokens;
  }

  /** Takes the price of one retry; false when it is not there. */
  take(fault: Fault): boolean {
    const price = fault === "timeout" ? 2 : 1;
    if (this.#tokens < price) return false;
    this.#tokens -= price;
    return true;
  }

  succeeded(): void {
    this.#tokens = Math.min(this.#tokensMax, this.#tokens + this.#refill);
  }
}

/** Delay before retry number `retry` (0, 1, …): anything from 0 to an exponentially growing bound. */
export function retryDelayMs(retry: number, options: GuardOptions): number {
  const bound = Math.min(options.delayMaxMs, options.delayBaseMs * 2 ** retry);
  return options.random() * bound;
}

export interface GuardCounters {
  readonly calls: number;
  /** Calls that ended well. */
  readonly succeeded: number;
  readonly retries: number;
  readonly retriesDenied: number;
  readonly breakerOpened: number;
  /** Times it stopped taking objects, and probes that found that it still takes none. */
  readonly readOnlyTurns: number;
  readonly writeProbesFailed: number;
  /** By the fault of each attempt, retried ones included. */
  readonly faults: Readonly<Record<Fault, number>>;
}

type Attempt<T> = (limits: CallLimits) => Promise<Outcome<T>>;

/** What an outcome speaks of. A refusal of anything but a read says nothing against reads. */
type Kind = "read" | "put" | "probe" | "remove";

const PROBE_BODY = new Uint8Array(4_096);
/** A chunk of no namespace: whoever collects garbage takes a probe that its node could not remove. */
const PROBE_SPACE = {
  namespace: new Uint8Array(DIGEST_BYTES),
  chunkBlocks: 1,
  payloadBytes: PROBE_BODY.length,
  shards: 1,
};

export class GuardedStore implements ObjectStore {
  readonly description: string;
  readonly #store: ObjectStore;
  readonly #options: GuardOptions;
  readonly #budget: RetryBudget;
  readonly #breaker: Breaker;
  readonly #writes: StoreWrites;
  readonly #faults = Object.fromEntries(FAULT_NAMES.map((name) => [name, 0])) as Record<
    Fault,
    number
  >;
  #calls = 0;
  #succeeded = 0;
  #retries = 0;
  #retriesDenied = 0;
  #lastFault = "";
  #told: "ok" | "readOnly" | "fenced" = "ok";

  constructor(store: ObjectStore, options: Partial<GuardOptions> = {}) {
    this.#store = store;
    this.description = store.description;
    this.#options = { ...GUARD_DEFAULTS, ...options };
    const { budgetTokens, budgetRefill, breakerFaultsMax: faultsMax, now } = this.#options;
    const { breakerOpenMs, breakerOpenMsMax, writeProbeMs, writeProbeMsMax } = this.#options;
    this.#budget = new RetryBudget(budgetTokens, budgetRefill);
    const open = { openMs: breakerOpenMs, openMsMax: breakerOpenMsMax };
    this.#breaker = new Breaker({ faultsMax, ...open, now });
    const probe = { probeMs: writeProbeMs, probeMsMax: writeProbeMsMax };
    this.#writes = new StoreWrites({ faultsMax, ...probe, now });
  }

  get breakerState(): BreakerState {
    return this.#breaker.state;
  }

  /** It takes no objects: PUTs are refused here, as "open". */
  get readOnly(): boolean {
    return this.#writes.readOnly;
  }

  /** Of the last attempt that failed with something that speaks against the store; "" before the first. */
  get lastFault(): string {
    return this.#lastFault;
  }

  counters(): GuardCounters {
    return {
      calls: this.#calls,
      succeeded: this.#succeeded,
      retries: this.#retries,
      retriesDenied: this.#retriesDenied,
      breakerOpened: this.#breaker.opened,
      readOnlyTurns: this.#writes.turns,
      writeProbesFailed: this.#writes.probesFailed,
      faults: { ...this.#faults },
    };
  }

  get(name: string, from: number, into: Uint8Array, limits: CallLimits): Promise<Outcome<number>> {
    return this.#call("read", limits, (one) => this.#store.get(name, from, into, one));
  }

  put(name: string, body: Uint8Array, limits: CallLimits): Promise<Outcome<"stored" | "present">> {
    return this.#call("put", limits, (one) => this.#store.put(name, body, one));
  }

  head(name: string, limits: CallLimits): Promise<Outcome<ObjectInfo>> {
    return this.#call("read", limits, (one) => this.#store.head(name, one));
  }

  list(
    prefix: string,
    cursor: string | undefined,
    limits: CallLimits,
  ): Promise<Outcome<ObjectPage>> {
    return this.#call("read", limits, (one) => this.#store.list(prefix, cursor, one));
  }

  delete(name: string, limits: CallLimits): Promise<Outcome<"deleted" | "missing">> {
    return this.#call("remove", limits, (one) => this.#store.delete(name, one));
  }

  check(limits: CallLimits): Promise<Outcome<"reachable">> {
    return this.#call("read", limits, (one) => this.#store.check(one));
  }

  sweep(beforeMs: number, limits: CallLimits): Promise<Outcome<number>> {
    return this.#call("remove", limits, (one) => this.#store.sweep(beforeMs, one));
  }

  /** For a timer: asks a store that is away whether it is back, and one that takes no objects whether it does again. */
  async probe(limits: CallLimits): Promise<void> {
    if (this.#breaker.state !== "closed") await this.check(limits);
    if (this.#breaker.state !== "closed" || !this.#writes.probeDue) return;
    const name = chunkName(PROBE_SPACE, 0, randomBytes(KEY_BYTES), "");
    const put = (one: CallLimits) => this.#store.put(name, PROBE_BODY, one);
    const outcome = await this.#attempt("probe", limits, limits.deadlineMs, put);
    if (!outcome.ok && outcome.fault === "cancelled") return;
    this.#writes.probed(outcome.ok);
    this.#tell();
    if (outcome.ok) await this.delete(name, limits);
  }

  close(): Promise<void> {
    return this.#store.close();
  }

  async #call<T>(kind: Kind, limits: CallLimits, attempt: Attempt<T>): Promise<Outcome<T>> {
    this.#calls += 1;
    const { now, attemptsMax } = this.#options;
    const end = now() + limits.deadlineMs;
    for (let retry = 0; ; retry += 1) {
      const outcome = await this.#attempt(kind, limits, end - now(), attempt);
      if (outcome.ok || !FAULTS[outcome.fault].retry) return outcome;
      // A buffer that is still being written to must not be given to a second attempt.
      if (retry + 1 >= attemptsMax || outcome.released !== undefined) return outcome;
      const delayMs = retryDelayMs(retry, this.#options);
      if (now() + delayMs >= end) return outcome;
      if (!this.#budget.take(outcome.fault)) {
        this.#retriesDenied += 1;
        return outcome;
      }
      this.#retries += 1;
      if (!(await pause(delayMs, limits.signal))) return failure("cancelled", "cancelled");
    }
  }

  async #attempt<T>(
    kind: Kind,
    limits: CallLimits,
    leftMs: number,
    attempt: Attempt<T>,
  ): Promise<Outcome<T>> {
    if (leftMs <= 0) return failure("timeout", "past the deadline");
    const taken = kind !== "put" || !this.#writes.readOnly;
    const admission = taken ? this.#breaker.admit() : "refused";
    if (admission === "refused") {
      this.#faults.open += 1;
      return failure("open", this.#lastFault);
    }
    const deadlineMs = Math.min(leftMs, this.#options.attemptDeadlineMs);
    const outcome = await attempt({ deadlineMs, signal: limits.signal });
    this.#count(kind, outcome, admission);
    this.#tell();
    return outcome;
  }

  #count<T>(kind: Kind, outcome: Outcome<T>, admission: Exclude<Admission, "refused">): void {
    if (outcome.ok) {
      this.#succeeded += 1;
      this.#budget.succeeded();
      this.#breaker.ended(admission, "success");
      if (kind === "put" && outcome.value === "stored") this.#writes.stored();
      return;
    }
    const { fault, message } = outcome;
    this.#faults[fault] += 1;
    if (kind === "put") this.#writes.failed(fault);
    if (FAULTS[fault].health || fault === "full") this.#lastFault = `${fault}: ${message}`;
    if (FAULTS[fault].health && (kind === "read" || fault !== "refused")) {
      this.#breaker.ended(admission, "fault");
    } else {
      // The store answered: that an object is missing speaks for it.
      const answered = fault === "missing" || fault === "short" || fault === "full";
      this.#breaker.ended(admission, answered ? "success" : "trialLost");
    }
  }

  #tell(): void {
    const taking = this.#writes.readOnly ? "readOnly" : "ok";
    const state = this.#breaker.state === "closed" ? taking : "fenced";
    if (state === this.#told) return;
    const why = state === "ok" ? "" : ` (${this.#lastFault})`;
    this.#options.log?.(`remote: ${this.description}: ${this.#told} → ${state}${why}`);
    this.#told = state;
  }
}

/** Waits; false when the signal fired. */
function pause(milliseconds: number, signal: AbortSignal | undefined): Promise<boolean> {
  if (signal?.aborted === true) return Promise.resolve(false);
  return new Promise((resolve) => {
    const onAbort = (): void => finish(false);
    const timer = setTimeout(() => finish(true), milliseconds);
    const finish = (whole: boolean): void => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
      resolve(whole);
    };
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}
