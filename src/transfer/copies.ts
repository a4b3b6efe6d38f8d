/**
 * The copy-batch scheduler. A caller fills one batch of items, submits it to the addon's copy threads or to
 * the thread of one disk, and is called back once, when every item has ended. Items live in one reusable
 * array, because the addon copies them before a submit returns; batches are pooled and their numbers shared
 * by both kinds. Priorities (loads before stores before moves, reads before writes) are the addon's; what is
 * bounded here is how much may be outstanding.
 */
import { type Addon, DISK_ITEM_WORDS, ITEM_WORDS } from "../../addon/binding.ts";
import { assert } from "../assert.ts";
import { LIMITS } from "../limits.ts";
import { TWO_32 } from "../words.ts";

/** Called when a batch ended: status of item i is statuses[at + i] (addon/binding.ts ITEM). */
export interface CopyOwner {
  copied(batch: CopyTicket, statuses: Uint8Array, at: number): void;
}

/** Disk of a batch that the copy threads work on. */
export const NO_DISK = -1;

/** One batch in flight. positions[i] says which position of the owner's job item i is. */
export class CopyTicket {
  number = 0;
  /** COPY, or DISK when it went to a disk. */
  kind = 0;
  disk = NO_DISK;
  /** Monotonic milliseconds of the submit. */
  submittedAt = 0;
  /** How long the addon worked on it, once it ended. */
  microseconds = 0;
  /** Payload bytes of one item. */
  payloadBytes = 0;
  owner: CopyOwner | undefined;
  subject: object | undefined;
  count = 0;
  positions = new Uint32Array(64);
}

/** Mutable twin of the addon's CopyBatch, reused for every submit. */
const request = {
  kind: 0,
  batch: 0,
  arena: 0,
  region: 0,
  shard: 0,
  shards: 1,
  payloadBytes: 0,
  deadlineMs: 0,
  key: undefined as Uint8Array | undefined,
  keyId: undefined as Uint8Array | undefined,
};

/** The same of the addon's DiskBatch. */
const diskRequest = {
  kind: 0,
  batch: 0,
  disk: 0,
  arena: 0,
  region: 0,
  shard: 0,
  shards: 1,
  payloadBytes: 0,
  deadlineMs: 0,
  priority: 0,
};

/** What a disk batch has beside its items. */
export interface DiskSubmit {
  disk: number;
  arena: number;
  /** 0 = none. */
  region: number;
  shard: number;
  shards: number;
  payloadBytes: number;
  /** Milliseconds from now, 0 = none. */
  deadlineMs: number;
  /** DISK_PRIORITY; counts among READs. */
  priority: number;
}

/** Order of READs at a disk. */
export const DISK_PRIORITY = { DEMAND: 0, PREFETCH: 1, OTHER: 2 } as const;

type CopyAddon = Pick<Addon, "copySubmit" | "copyCancel" | "diskSubmit" | "diskCancel">;

export class Copies {
  readonly #addon: CopyAddon;
  readonly #now: () => number;
  readonly #diskEnded: (kind: number, seconds: number) => void;
  readonly #inFlight = new Map<number, CopyTicket>();
  readonly #free: CopyTicket[] = [];
  readonly #items = new Uint32Array(LIMITS.keysPerFrameMax * ITEM_WORDS);
  #ticket: CopyTicket | undefined;
  #lastBatch = 0;
  #itemsInFlight = 0;

  /** now: monotonic milliseconds. diskEnded: a batch of this DISK kind took so long from submit to end. */
  constructor(
    addon: CopyAddon,
    now: () => number,
    diskEnded: (kind: number, seconds: number) => void = () => undefined,
  ) {
    assert(ITEM_WORDS === DISK_ITEM_WORDS, "copy and disk items share one array");
    this.#addon = addon;
    this.#now = now;
    this.#diskEnded = diskEnded;
  }

  get batchesInFlight(): number {
    return this.#inFlight.size;
  }

  get itemsInFlight(): number {
    return this.#itemsInFlight;
  }

  /** True when `count` more items would exceed the bound; the caller refuses with overloaded. */
  full(count: number): boolean {
    return this.#itemsInFlight + count > LIMITS.copyItemsInFlightMax;
  }

  /** Starts filling a batch of at most keysPerFrameMax items; kind: COPY, or DISK before submitDisk(). */
  begin(kind: number, owner: CopyOwner, subject: object): void {
    assert(this.#ticket === undefined, "one batch is filled at a time");
    const ticket = this.#free.pop() ?? new CopyTicket();
    ticket.kind = kind;
    ticket.owner = owner;
    ticket.subject = subject;
    ticket.count = 0;
    this.#ticket = ticket;
  }

  /** Items of the batch that is being filled, 0 when none is. */
  get filled(): number {
    return this.#ticket?.count ?? 0;
  }

  /**
   * range: byte offset in the region; for MOVE the target slot. last: the generation of a copy item, the DRAM
   * slot (or NO_DRAM_SLOT) of a disk item.
   */
  add(slot: number, range: number, block: number, last: number, position: number): void {
    const ticket = this.#ticket;
    assert(ticket !== undefined, "add() follows begin()");
    const index = ticket.count++;
    assert(index < LIMITS.keysPerFrameMax, "a batch is bounded");
    if (index === ticket.positions.length) grow(ticket);
    ticket.positions[index] = position;
    const at = index * ITEM_WORDS;
    const items = this.#items;
    items[at] = slot;
    items[at + 1] = range % TWO_32;
    items[at + 2] = Math.floor(range / TWO_32);
    items[at + 3] = block;
    items[at + 4] = last;
  }

  /** Submits what was added; the batch's number, or 0 when nothing was added. seal: of EXPORT and IMPORT. */
  submit(
    arena: number,
    region: number,
    shard: number,
    shards: number,
    payloadBytes: number,
    deadlineMs: number,
    seal?: { readonly id: Uint8Array; readonly bytes: Uint8Array },
  ): number {
    const ticket = this.#take(NO_DISK, payloadBytes);
    if (ticket === undefined) return 0;
    request.kind = ticket.kind;
    request.batch = ticket.number;
    request.arena = arena;
    request.region = region;
    request.shard = shard;
    request.shards = shards;
    request.payloadBytes = payloadBytes;
    request.deadlineMs = deadlineMs;
    request.key = seal?.bytes;
    request.keyId = seal?.id;
    this.#addon.copySubmit(request, this.#items, ticket.count);
    return ticket.number;
  }

  /** The same for a disk. */
  submitDisk(batch: DiskSubmit): number {
    const ticket = this.#take(batch.disk, batch.payloadBytes);
    if (ticket === undefined) return 0;
    diskRequest.kind = ticket.kind;
    diskRequest.batch = ticket.number;
    diskRequest.disk = batch.disk;
    diskRequest.arena = batch.arena;
    diskRequest.region = batch.region;
    diskRequest.shard = batch.shard;
    diskRequest.shards = batch.shards;
    diskRequest.payloadBytes = batch.payloadBytes;
    diskRequest.deadlineMs = batch.deadlineMs;
    diskRequest.priority = batch.priority;
    this.#addon.diskSubmit(diskRequest, this.#items, ticket.count);
    return ticket.number;
  }

  /** Names the batch that was filled and counts it as in flight; undefined when it is empty. */
  #take(disk: number, payloadBytes: number): CopyTicket | undefined {
    const ticket = this.#ticket;
    assert(ticket !== undefined, "submit() follows begin()");
    this.#ticket = undefined;
    if (ticket.count === 0) {
      this.#recycle(ticket);
      return undefined;
    }
    ticket.number = this.#nextNumber();
    ticket.disk = disk;
    ticket.payloadBytes = payloadBytes;
    ticket.submittedAt = this.#now();
    this.#inFlight.set(ticket.number, ticket);
    this.#itemsInFlight += ticket.count;
    return ticket;
  }

  /** Items not begun end CANCELLED; copied() still comes. */
  cancel(batch: number): void {
    const ticket = this.#inFlight.get(batch);
    if (ticket === undefined) return;
    if (ticket.disk === NO_DISK) this.#addon.copyCancel(batch);
    else this.#addon.diskCancel(ticket.disk, batch);
  }

  /** A COPIED event arrived. */
  ended(batch: number, statuses: Uint8Array, at: number, microseconds = 0): void {
    const ticket = this.#inFlight.get(batch);
    assert(ticket !== undefined, "a batch ends once");
    this.#inFlight.delete(batch);
    this.#itemsInFlight -= ticket.count;
    ticket.microseconds = microseconds;
    if (ticket.disk !== NO_DISK) {
      this.#diskEnded(ticket.kind, (this.#now() - ticket.submittedAt) / 1e3);
    }
    assert(ticket.owner !== undefined, "a batch has an owner");
    ticket.owner.copied(ticket, statuses, at);
    this.#recycle(ticket);
  }

  /** Batch numbers are 32 bits on the event queue; they wrap and skip what is in flight. */
  #nextNumber(): number {
    do this.#lastBatch = (this.#lastBatch + 1) >>> 0;
    while (this.#lastBatch === 0 || this.#inFlight.has(this.#lastBatch));
    return this.#lastBatch;
  }

  #recycle(ticket: CopyTicket): void {
    ticket.owner = undefined;
    ticket.subject = undefined;
    ticket.number = 0;
    ticket.disk = NO_DISK;
    if (this.#free.length < 256 && ticket.positions.length <= 4_096) this.#free.push(ticket);
  }
}

function grow(ticket: CopyTicket): void {
  const positions = new Uint32Array(ticket.positions.length * 2);
  positions.set(ticket.positions);
  ticket.positions = positions;
}
