/**
 * Garbage collection of a store that many nodes share, without a lock and without knowing each other.
 *
 * Every node finds by itself from which age on objects have to go (a histogram of ages over the listing: constant
 * memory for any number of objects) and removes those of them that this round's salted hash gives it. So nodes
 * that run at the same time do different work, none is needed, and an object that another node has removed is no
 * error. Only names of our format are counted or touched, and never an object younger than the grace time, which
 * also covers clocks that differ.
 */
import { createHash } from "node:crypto";
import { assert } from "../../src/assert.ts";
import { LIMITS } from "../../src/limits.ts";
import { CHUNK_PREFIX, isChunkName } from "./chunk.ts";
import { type CallLimits, type Fault, FAULTS, type ObjectStore } from "./object-store.ts";
import type { GarbageOptions } from "./types.ts";

/** Buckets of a histogram in steps of 1/32 octave from one second on: 68 years, each 2 % wide. */
const STEPS_PER_OCTAVE = 32;
const BUCKETS = 31 * STEPS_PER_OCTAVE;
const DELETIONS_AT_ONCE = 4;
const FAULTS_MAX = 16;

export interface GarbageRound {
  readonly store: ObjectStore;
  readonly options: GarbageOptions;
  /** Unix time. */
  readonly nowMs: number;
  /** Differs per node and round. */
  readonly salt: string;
  /** Of each call. */
  readonly limits: CallLimits;
  readonly deleted: (name: string) => void;
}

export interface GarbageReport {
  readonly objects: number;
  readonly bytes: number;
  /** Objects at least so old had to go; Infinity: none had. */
  readonly cutoffAgeMs: number;
  readonly removed: number;
  readonly removedBytes: number;
  /** Files of dead writers. */
  readonly swept: number;
  /** Why the round ended early; undefined: it did not. */
  readonly fault: Fault | undefined;
}

function bucketOf(ageMs: number): number {
  const seconds = Math.max(1, ageMs / 1_000);
  return Math.min(BUCKETS - 1, Math.floor(Math.log2(seconds) * STEPS_PER_OCTAVE));
}

function ageOfBucket(bucket: number): number {
  return 2 ** (bucket / STEPS_PER_OCTAVE) * 1_000;
}

/** Youngest age that has to go so that the rest fits the budget; Infinity when all fits. */
export function cutoffOf(bytesByBucket: Float64Array, bytesMax: number): number {
  let kept = 0;
  for (let bucket = 0; bucket < bytesByBucket.length; bucket += 1) {
    kept += bytesByBucket[bucket] ?? 0;
    if (kept > bytesMax) return ageOfBucket(bucket);
  }
  return Number.POSITIVE_INFINITY;
}

/** Whether this round's node removes the object. */
export function isOurPart(name: string, salt: string, parts: number): boolean {
  if (parts <= 1) return true;
  const word = createHash("sha256").update(salt).update("\n").update(name).digest().readUInt32LE(0);
  return word % parts === 0;
}

interface Found {
  readonly name: string;
  readonly bytes: number;
  readonly ageMs: number;
}

/** Calls `each` for every object of ours; the fault that stopped it, if one did. */
async function everyObject(
  round: GarbageRound,
  each: (found: Found) => Promise<void> | undefined,
): Promise<Fault | undefined> {
  let cursor: string | undefined;
  do {
    const page = await round.store.list(CHUNK_PREFIX, cursor, round.limits);
    if (!page.ok) return page.fault;
    for (const { name, bytes, modifiedMs } of page.value.entries) {
      if (!isChunkName(name)) continue;
      const waited = each({ name, bytes, ageMs: Math.max(0, round.nowMs - modifiedMs) });
      if (waited !== undefined) await waited;
    }
    cursor = page.value.cursor;
  } while (cursor !== undefined && round.limits.signal?.aborted !== true);
  return undefined;
}

/** One round. Never throws; stops early when the store fails. */
export async function collectGarbage(round: GarbageRound): Promise<GarbageReport> {
  const { options } = round;
  assert(options.graceMs >= 0 && options.parts >= 1, "a round has a grace time and parts");
  const bytesByBucket = new Float64Array(BUCKETS);
  let objects = 0;
  let bytes = 0;
  let fault = await everyObject(round, (found) => {
    objects += 1;
    bytes += found.bytes;
    const bucket = bucketOf(found.ageMs);
    bytesByBucket[bucket] = (bytesByBucket[bucket] ?? 0) + found.bytes;
    return undefined;
  });
  const byAge = options.ageMsMax > 0 ? options.ageMsMax : Number.POSITIVE_INFINITY;
  const bytesMax = options.bytesMax > 0 ? options.bytesMax : Number.POSITIVE_INFINITY;
  const byBytes = cutoffOf(bytesByBucket, bytesMax);
  const cutoffAgeMs = Math.max(options.graceMs, Math.min(byAge, byBytes));
  const removal = new Removal(round);
  if (fault === undefined && Number.isFinite(cutoffAgeMs)) {
    fault = await everyObject(round, (found) =>
      found.ageMs >= cutoffAgeMs ? removal.add(found) : undefined,
    );
    fault = (await removal.end()) ?? fault;
  }
  const before = round.nowMs - Math.max(options.graceMs, LIMITS.remoteSweepMs);
  const swept = await round.store.sweep(before, round.limits);
  return {
    objects,
    bytes,
    cutoffAgeMs,
    removed: removal.removed,
    removedBytes: removal.removedBytes,
    swept: swept.ok ? swept.value : 0,
    fault,
  };
}

/** Deletes a few objects at a time; gives up when the store keeps failing. */
class Removal {
  removed = 0;
  removedBytes = 0;
  readonly #round: GarbageRound;
  readonly #running = new Set<Promise<void>>();
  #faults = 0;
  #lastFault: Fault | undefined;

  constructor(round: GarbageRound) {
    this.#round = round;
  }

  async add(found: Found): Promise<void> {
    const { options, salt } = this.#round;
    if (this.#faults >= FAULTS_MAX || !isOurPart(found.name, salt, options.parts)) return;
    if (this.#running.size >= DELETIONS_AT_ONCE) await Promise.race(this.#running);
    const one = this.#delete(found);
    this.#running.add(one);
    void one.then(() => this.#running.delete(one));
  }

  async end(): Promise<Fault | undefined> {
    await Promise.all(this.#running);
    return this.#lastFault;
  }

  async #delete(found: Found): Promise<void> {
    const outcome = await this.#round.store.delete(found.name, this.#round.limits);
    if (outcome.ok) {
      if (outcome.value === "missing") return;
      this.removed += 1;
      this.removedBytes += found.bytes;
      this.#round.deleted(found.name);
      return;
    }
    this.#lastFault = outcome.fault;
    if (FAULTS[outcome.fault].health || outcome.fault === "open") this.#faults += 1;
  }
}
