/**
 * What the store is known to hold: a bounded cache of yes and no, each with its own age, and the probes that fill
 * it. Objects that failed their checks are remembered apart, because the store still says that they exist.
 */
import { LRUCache } from "lru-cache";
import { assert } from "../../src/assert.ts";
import { LIMITS } from "../../src/limits.ts";
import type { ExistenceOptions } from "./types.ts";

/** Asks the store; undefined when it gave no answer. */
export type Probe = (name: string) => Promise<boolean | undefined>;

const QUARANTINE_MS = 3_600_000;

export class Existence {
  readonly #options: ExistenceOptions;
  readonly #probe: Probe;
  readonly #known: LRUCache<string, { readonly present: boolean }>;
  readonly #quarantined: LRUCache<string, true>;
  readonly #probing = new Map<string, Promise<boolean | undefined>>();
  #hits = 0;
  #misses = 0;
  #dropped = 0;

  constructor(options: ExistenceOptions, probe: Probe, now: () => number) {
    assert(options.entriesMax >= 1 && options.probesMax >= 1, "a cache has room");
    this.#options = options;
    this.#probe = probe;
    const perf = { now };
    this.#known = new LRUCache({ max: options.entriesMax, ttl: 1, perf, ttlResolution: 0 });
    this.#quarantined = new LRUCache({
      max: LIMITS.quarantinedObjectsMax,
      ttl: QUARANTINE_MS,
      perf,
      ttlResolution: 0,
    });
  }

  get hits(): number {
    return this.#hits;
  }

  get misses(): number {
    return this.#misses;
  }

  /** Probes that were not made because too many ran. */
  get dropped(): number {
    return this.#dropped;
  }

  get entries(): number {
    return this.#known.size;
  }

  get quarantined(): number {
    return this.#quarantined.size;
  }

  /** undefined: not known. */
  known(name: string): boolean | undefined {
    if (this.#quarantined.get(name) === true) return false;
    const entry = this.#known.get(name);
    if (entry === undefined) this.#misses += 1;
    else this.#hits += 1;
    return entry?.present;
  }

  isQuarantined(name: string): boolean {
    return this.#quarantined.get(name) === true;
  }

  /** From a transfer or a deletion. An object under quarantine stays absent whatever the store says. */
  learn(name: string, present: boolean): void {
    const ttl = present ? this.#options.presentMs : this.#options.absentMs;
    // lru-cache reads a ttl of 0 as "for ever"; here it means that nothing is remembered.
    if (ttl <= 0) this.#known.delete(name);
    else this.#known.set(name, { present }, { ttl });
  }

  quarantine(name: string): void {
    this.#quarantined.set(name, true);
    this.#known.delete(name);
  }

  /** The bad object is gone from the store: a good one may take its name. */
  pardon(name: string): void {
    this.#quarantined.delete(name);
    this.learn(name, false);
  }

  /** Asks the store unless the cache knows; the same question at the same time is asked once. */
  async resolve(name: string): Promise<boolean | undefined> {
    const known = this.known(name);
    if (known !== undefined) return known;
    const running = this.#probing.get(name);
    if (running !== undefined) return running;
    if (this.#probing.size >= this.#options.probesMax) {
      this.#dropped += 1;
      return undefined;
    }
    const asked = this.#ask(name);
    this.#probing.set(name, asked);
    try {
      return await asked;
    } finally {
      this.#probing.delete(name);
    }
  }

  async #ask(name: string): Promise<boolean | undefined> {
    const present = await this.#probe(name);
    if (present === undefined) return undefined;
    this.learn(name, present);
    return present && !this.isQuarantined(name);
  }
}

/** Weight of the newest upload. */
const SHARE_WEIGHT = 0.1;
/** Below this share of uploads whose object was there already, asking first costs more than it saves. */
const SHARE_MIN = 0.05;
/** One in so many is asked for all the same. */
const SAMPLE = 16;

/**
 * Whether an upload should ask for its object first. Where nodes store the same chains, a question saves a body; where
 * they do not, it only delays every upload by a round trip. Both show in how often the object was there.
 */
export class AskFirst {
  #share = 0;
  #uploads = 0;

  worthwhile(): boolean {
    this.#uploads += 1;
    return this.#share >= SHARE_MIN || this.#uploads % SAMPLE === 0;
  }

  /** What an upload found, by question or by its PUT. */
  learn(present: boolean): void {
    this.#share += SHARE_WEIGHT * ((present ? 1 : 0) - this.#share);
  }
}
