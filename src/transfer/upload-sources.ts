/**
 * Blocks that stand on NVMe alone, on their way to the remote tier. They are read into a small arena of their own and
 * exported from there: the pool evicts nothing for an upload, and identity and hash are checked on both steps as ever.
 * One chunk is read at a time, behind all other reads of the disk.
 */
import { type Addon, DISK, ITEM, ITEM_PROMOTED, SLOT_INDEX_BITS } from "../../addon/binding.ts";
import type { DiskTier } from "../../tiers/tier.ts";
import { assert } from "../assert.ts";
import { classBytes } from "../ledger/classes.ts";
import type { Block } from "../ledger/types.ts";
import { LIMITS } from "../limits.ts";
import {
  type Copies,
  type CopyOwner,
  type CopyTicket,
  DISK_PRIORITY,
  type DiskSubmit,
} from "./copies.ts";

export type UploadArenaAddon = Pick<
  Addon,
  | "arenaOpen"
  | "arenaClose"
  | "arenaAssign"
  | "arenaRelease"
  | "arenaSlotsPerSlab"
  | "arenaPutNamespace"
>;

export interface UploadSourcesOptions {
  readonly addon: UploadArenaAddon;
  readonly copies: Copies;
  readonly tier: DiskTier;
  /** File of the arena; nothing of an earlier one is read. */
  readonly path: string;
  /** Its one slab: at least the largest block, better the largest chunk. */
  readonly slabBytes: number;
  readonly namespaceOf: (block: Block) => number;
  /** DIGEST_BYTES bytes. */
  readonly digestOf: (namespace: number) => Uint8Array;
  /** Monotonic milliseconds. */
  readonly now: () => number;
}

/** Blocks of one chunk and shard. */
export interface DiskReads {
  readonly blocks: readonly Block[];
  readonly slots: readonly number[];
  readonly shard: number;
  readonly shards: number;
  readonly payloadBytes: number;
  readonly deadlineMs: number;
}

/** Takes the blocks of `items` (indexes of the reads) out of slots[i] of the arena. Resolves with their statuses. */
export type TakeOut = (
  arena: number,
  items: readonly number[],
  slots: readonly number[],
) => Promise<Uint8Array>;

/** The part of the reads that the arena holds at once, [from, to). */
interface Part {
  readonly reads: DiskReads;
  readonly from: number;
  readonly to: number;
  /** Monotonic milliseconds. */
  readonly until: number;
  /** Of all reads. */
  readonly statuses: Uint8Array;
}

/** Those of one disk. */
interface Reading {
  readonly part: Part;
  readonly resolve: () => void;
}

const SLAB = 0;

export class UploadSources implements CopyOwner {
  readonly #options: UploadSourcesOptions;
  readonly #arena: number;
  readonly #digests: (Uint8Array | undefined)[] = [];
  readonly #inFlight = new Set<number>();
  #last: Promise<unknown> = Promise.resolve();
  #stopped = false;

  /** Throws what arenaOpen() throws. */
  constructor(options: UploadSourcesOptions) {
    this.#options = options;
    const { addon, path, slabBytes } = options;
    const memory = { path, slabBytes, slabs: 1, numaNode: -1, hugePages: false };
    this.#arena = addon.arenaOpen(memory).arena;
  }

  /** Statuses of the reads, and of `take` where they went well. Waits for its turn. */
  through(reads: DiskReads, take: TakeOut): Promise<Uint8Array> {
    assert(reads.blocks.length === reads.slots.length, "each block has its slot");
    const until = this.#options.now() + reads.deadlineMs;
    const mine = this.#last.then(() => this.#through(reads, until, take));
    this.#last = mine.catch(() => {});
    return mine;
  }

  /** Nothing more is read; what is under way ends CANCELLED. */
  stop(): void {
    this.#stopped = true;
    for (const batch of this.#inFlight) this.#options.copies.cancel(batch);
  }

  /** After stop(), once nothing is under way. */
  async close(): Promise<void> {
    assert(this.#stopped, "stop() comes first");
    await this.#last;
    this.#options.addon.arenaClose(this.#arena, false);
  }

  async #through(reads: DiskReads, until: number, take: TakeOut): Promise<Uint8Array> {
    const { addon, slabBytes } = this.#options;
    const count = reads.blocks.length;
    const statuses = new Uint8Array(count).fill(ITEM.CANCELLED);
    const payloadBytes = classBytes(reads.payloadBytes);
    const room = addon.arenaSlotsPerSlab(slabBytes, payloadBytes);
    for (let from = 0; from < count && room > 0 && !this.#stopped; from += room) {
      addon.arenaAssign(this.#arena, SLAB, payloadBytes);
      const to = Math.min(count, from + room);
      await this.#pass({ reads, from, to, until, statuses }, take);
      addon.arenaRelease(this.#arena, SLAB);
    }
    return statuses;
  }

  async #pass(part: Part, take: TakeOut): Promise<void> {
    const { reads, from, to, statuses } = part;
    const byDisk = new Map<number, number[]>();
    for (let item = from; item < to; item++) {
      const disk = this.#options.tier.diskOf(reads.slots[item]!);
      const items = byDisk.get(disk) ?? [];
      items.push(item);
      byDisk.set(disk, items);
    }
    await Promise.all([...byDisk].map(([disk, items]) => this.#read(part, disk, items)));
    const good: number[] = [];
    for (let item = from; item < to; item++) if (statuses[item] === ITEM.OK) good.push(item);
    if (good.length === 0) return;
    const slots = good.map((item) => slotOf(item - from));
    const taken = await take(this.#arena, good, slots);
    assert(taken.length === good.length, "each item has a status");
    good.forEach((item, index) => {
      statuses[item] = taken[index]!;
    });
  }

  #read(part: Part, disk: number, items: readonly number[]): Promise<void> {
    const { copies, now } = this.#options;
    const { reads, from, until, statuses } = part;
    const left = Math.min(until - now(), LIMITS.writeBackDeadlineMs);
    if (left <= 0 || this.#stopped || copies.full(items.length)) {
      for (const item of items) statuses[item] = left <= 0 ? ITEM.DEADLINE : ITEM.CANCELLED;
      return Promise.resolve();
    }
    for (const item of items) this.#bind(reads.blocks[item]!);
    return new Promise((resolve) => {
      const reading: Reading = { part, resolve };
      copies.begin(DISK.READ, this, reading);
      for (const item of items) {
        copies.add(reads.slots[item]!, 0, reads.blocks[item]!, slotOf(item - from), item);
      }
      read.disk = disk;
      read.arena = this.#arena;
      read.shard = reads.shard;
      read.shards = reads.shards;
      read.payloadBytes = reads.payloadBytes;
      read.deadlineMs = Math.ceil(left);
      this.#inFlight.add(copies.submitDisk(read));
    });
  }

  copied(ticket: CopyTicket, statuses: Uint8Array, at: number): void {
    const { part, resolve } = ticket.subject as Reading;
    const { tier } = this.#options;
    this.#inFlight.delete(ticket.number);
    for (let index = 0; index < ticket.count; index++) {
      const item = ticket.positions[index]!;
      const status = statuses[at + index]!;
      const outcome = status & ~ITEM_PROMOTED;
      assert(outcome !== ITEM.OK || status !== outcome, "a block that was read stands in its slot");
      tier.ended(part.reads.slots[item]!, DISK.READ, outcome, ticket.microseconds);
      part.statuses[item] = outcome;
    }
    resolve();
  }

  /** Names of slots are checked against the namespace's digest, which the arena must know. */
  #bind(block: Block): void {
    const { addon, namespaceOf, digestOf } = this.#options;
    const namespace = namespaceOf(block);
    const digest = digestOf(namespace);
    if (this.#digests[namespace] === digest) return;
    addon.arenaPutNamespace(this.#arena, namespace, digest, new Uint8Array(1));
    this.#digests[namespace] = digest;
  }
}

function slotOf(index: number): number {
  return SLAB * 2 ** SLOT_INDEX_BITS + index;
}

/** Reused for every batch. */
const read: DiskSubmit = {
  disk: 0,
  arena: 0,
  region: 0,
  shard: 0,
  shards: 1,
  payloadBytes: 0,
  deadlineMs: 0,
  priority: DISK_PRIORITY.OTHER,
};
