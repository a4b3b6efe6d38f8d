/**
 * The copy-batch scheduler. A caller fills one batch of items, submits it to the addon's threads and is
 * called back once, when every item has ended. Items live in one reusable array, because the addon copies
 * them before copySubmit returns; batches are pooled. Priorities (loads before stores before moves) are
 * the addon's; what is bounded here is how much may be outstanding.
 */
import { type Addon, ITEM_WORDS } from "../../addon/binding.ts";
import { assert } from "../assert.ts";
import { LIMITS } from "../limits.ts";

/** Called when a batch ended: status of item i is statuses[at + i] (addon/binding.ts ITEM). */
export interface CopyOwner {
  copied(batch: CopyTicket, statuses: Uint8Array, at: number): void;
}

/** One batch in flight. positions[i] says which position of the owner's job item i is. */
export class CopyTicket {
  number = 0;
  kind = 0;
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
};

const TWO_32 = 2 ** 32;

export class Copies {
  readonly #addon: Pick<Addon, "copySubmit" | "copyCancel">;
  readonly #inFlight = new Map<number, CopyTicket>();
  readonly #free: CopyTicket[] = [];
  readonly #items = new Uint32Array(LIMITS.keysPerFrameMax * ITEM_WORDS);
  #ticket: CopyTicket | undefined;
  #lastBatch = 0;
  #itemsInFlight = 0;

  constructor(addon: Pick<Addon, "copySubmit" | "copyCancel">) {
    this.#addon = addon;
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

  /** Starts filling a batch of at most keysPerFrameMax items. */
  begin(kind: number, owner: CopyOwner, subject: object): void {
    assert(this.#ticket === undefined, "one batch is filled at a time");
    const ticket = this.#free.pop() ?? new CopyTicket();
    ticket.kind = kind;
    ticket.owner = owner;
    ticket.subject = subject;
    ticket.count = 0;
    this.#ticket = ticket;
  }

  /** range: byte offset in the region; for MOVE the target slot. */
  add(slot: number, range: number, block: number, generation: number, position: number): void {
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
    items[at + 4] = generation;
  }

  /** Submits what was added; the batch's number, or 0 when nothing was added. */
  submit(
    arena: number,
    region: number,
    shard: number,
    shards: number,
    payloadBytes: number,
    deadlineMs: number,
  ): number {
    const ticket = this.#ticket;
    assert(ticket !== undefined, "submit() follows begin()");
    this.#ticket = undefined;
    if (ticket.count === 0) {
      this.#recycle(ticket);
      return 0;
    }
    ticket.number = this.#nextNumber();
    this.#inFlight.set(ticket.number, ticket);
    this.#itemsInFlight += ticket.count;
    request.kind = ticket.kind;
    request.batch = ticket.number;
    request.arena = arena;
    request.region = region;
    request.shard = shard;
    request.shards = shards;
    request.payloadBytes = payloadBytes;
    request.deadlineMs = deadlineMs;
    this.#addon.copySubmit(request, this.#items, ticket.count);
    return ticket.number;
  }

  /** Items not begun end CANCELLED; copied() still comes. */
  cancel(batch: number): void {
    if (this.#inFlight.has(batch)) this.#addon.copyCancel(batch);
  }

  /** A COPIED event arrived. */
  ended(batch: number, statuses: Uint8Array, at: number): void {
    const ticket = this.#inFlight.get(batch);
    assert(ticket !== undefined, "a batch ends once");
    this.#inFlight.delete(batch);
    this.#itemsInFlight -= ticket.count;
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
    if (this.#free.length < 256 && ticket.positions.length <= 4_096) this.#free.push(ticket);
  }
}

function grow(ticket: CopyTicket): void {
  const positions = new Uint32Array(ticket.positions.length * 2);
  positions.set(ticket.positions);
  ticket.positions = positions;
}
