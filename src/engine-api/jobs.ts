/**
 * Jobs: LOADs and STOREs in flight. A job is a row of flat arrays, one position per key, and is pooled:
 * the hot path makes no object per block. Positions move through POSITION; the job ends in one
 * completion when no position is open and no copy batch is outstanding.
 */
import { assert } from "../assert.ts";
import type { Lease } from "./leases.ts";
import type { Namespace } from "./namespaces.ts";
import type { Region } from "./regions.ts";
import type { Connection } from "./sessions.ts";

export const JOB_KIND = { LOAD: 1, STORE: 2 } as const;

/** State of one position of a job. */
export const POSITION = {
  /** Not part of the job (STORE: present or full). */
  NONE: 0,
  /** STORE: reserved for us, its bytes not named yet. */
  UNFILLED: 1,
  /** A copy runs or waits for a thread. */
  COPYING: 2,
  /** STORE: another fills it, or it is an orphan; the ledger will tell. */
  WAITING: 3,
  DONE: 4,
  FAILED: 5,
  /** STORE: the ledger aborted the block while our copy runs; it fails when the copy ends. */
  DRAINING: 6,
  /** STORE: our copy is done, the block is not visible yet (parent or other shards); the ledger will tell. */
  COPIED: 7,
  /** LOAD: pinned, its copy not submitted yet. */
  QUEUED: 8,
} as const;

/** Rows of a job that no range belongs to. */
export const NO_ROW = 0xffff_ffff;
const FIRST_CAPACITY = 64;
const POOLED_MAX = 256;
const POOLED_CAPACITY_MAX = 4_096;

export class Job {
  kind = 0;
  /** Name on the wire: a LOAD's tag, a STORE's job id. */
  number = 0;
  tag = 0;
  connection: Connection | undefined;
  namespace: Namespace | undefined;
  region: Region | undefined;
  lease: Lease | undefined;
  shard = 0;
  count = 0;
  capacity = FIRST_CAPACITY;
  blocks = new Uint32Array(FIRST_CAPACITY);
  /** Region row of each position, NO_ROW while none is held. */
  rows = new Uint32Array(FIRST_CAPACITY);
  states = new Uint8Array(FIRST_CAPACITY);
  tiers = new Uint8Array(FIRST_CAPACITY);
  /** Error code of each failed position. */
  codes = new Uint16Array(FIRST_CAPACITY);
  unfilled = 0;
  waiting = 0;
  landed = 0;
  failed = 0;
  bytes = 0;
  /** Copy batches not ended; their numbers for cancelling. */
  readonly batches: number[] = [];
  startedAt = 0;
  deadlineAt = 0;
  fillAt = 0;
  cancelled = false;
  /** In flight: named and in the tables. A LOAD's name may be 0, so the number does not tell. */
  entered = false;
  /** STORE: position whose block the ledger watches for us from the start; see store.ts. */
  watchedPosition = -1;
  /** In the list of jobs that wait to be completed. */
  finishing = false;
  readonly cancelTags: number[] = [];

  get open(): boolean {
    return this.unfilled > 0 || this.waiting > 0 || this.batches.length > 0;
  }

  fail(position: number, code: number): void {
    assert(this.states[position] !== POSITION.FAILED, "a position fails once");
    this.states[position] = POSITION.FAILED;
    this.codes[position] = code;
    this.failed++;
  }

  land(position: number): void {
    assert(this.states[position] !== POSITION.DONE, "a position lands once");
    this.states[position] = POSITION.DONE;
    this.landed++;
  }

  /** Gives the region row of a position back. */
  giveRow(position: number): void {
    const row = this.rows[position]!;
    if (row === NO_ROW || this.region === undefined) return;
    this.region.give(row);
    this.rows[position] = NO_ROW;
  }

  reserve(count: number): void {
    if (count <= this.capacity) return;
    let capacity = this.capacity;
    while (capacity < count) capacity *= 2;
    this.capacity = capacity;
    this.blocks = new Uint32Array(capacity);
    this.rows = new Uint32Array(capacity);
    this.states = new Uint8Array(capacity);
    this.tiers = new Uint8Array(capacity);
    this.codes = new Uint16Array(capacity);
  }
}

export class Jobs {
  readonly #free: Job[] = [];
  /** All STOREs in flight; the coarse timer walks them for deadlines. */
  readonly stores = new Set<Job>();
  #lastStore = 2 ** 32;
  inFlight = 0;

  /** A blank job with room for `count` positions; rows are NO_ROW, states NONE. */
  take(kind: number, connection: Connection, tag: number, count: number, now: number): Job {
    const job = this.#free.pop() ?? new Job();
    assert(job.connection === undefined && job.batches.length === 0, "a free job is blank");
    job.reserve(count);
    job.kind = kind;
    job.connection = connection;
    job.tag = tag;
    job.count = count;
    job.startedAt = now;
    job.states.fill(POSITION.NONE, 0, count);
    job.rows.fill(NO_ROW, 0, count);
    return job;
  }

  /** Gives the job its name and counts it as in flight. */
  enter(job: Job): void {
    const connection = job.connection;
    assert(connection !== undefined, "a job has a connection");
    if (job.kind === JOB_KIND.STORE) {
      job.number = ++this.#lastStore;
      this.stores.add(job);
    } else {
      job.number = job.tag;
    }
    assert(!connection.jobs.has(job.number), "job names are unique on a connection");
    connection.jobs.set(job.number, job);
    job.entered = true;
    this.inFlight++;
    if (job.region !== undefined) job.region.jobs++;
  }

  /** The job is over: out of every table. The caller then recycles it. */
  leave(job: Job): void {
    const connection = job.connection;
    assert(connection !== undefined && connection.jobs.get(job.number) === job, "job is entered");
    assert(!job.open, "a job leaves when nothing of it is open");
    connection.jobs.delete(job.number);
    job.entered = false;
    if (job.kind === JOB_KIND.STORE) this.stores.delete(job);
    this.inFlight--;
    if (job.region !== undefined) job.region.jobs--;
  }

  recycle(job: Job): void {
    job.connection = undefined;
    job.namespace = undefined;
    job.region = undefined;
    job.lease = undefined;
    job.number = 0;
    job.entered = false;
    job.unfilled = 0;
    job.waiting = 0;
    job.landed = 0;
    job.failed = 0;
    job.bytes = 0;
    job.cancelled = false;
    job.watchedPosition = -1;
    job.finishing = false;
    job.cancelTags.length = 0;
    assert(job.batches.length === 0, "no batch outlives its job");
    if (this.#free.length < POOLED_MAX && job.capacity <= POOLED_CAPACITY_MAX) this.#free.push(job);
  }
}
