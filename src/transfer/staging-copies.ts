/**
 * Copies between local slots and the staging region of the remote tier, as promises over copy batches. What an upload
 * needs from NVMe comes through UploadSources. A source that proves bad is told to whoever drops it.
 */
import { COPY, ITEM, NO_DRAM_SLOT } from "../../addon/binding.ts";
import type { DramItems, StagedRange, StagingCopies } from "../../tiers/remote/types.ts";
import { assert } from "../assert.ts";
import { type Block, TIER } from "../ledger/types.ts";
import type { Copies, CopyOwner, CopyTicket } from "./copies.ts";
import type { UploadSources } from "./upload-sources.ts";

interface Waiting {
  readonly resolve: (statuses: Uint8Array) => void;
}

export interface StagingBatchesOptions {
  /** Absent: blocks on NVMe alone are no sources. */
  readonly below?: UploadSources | undefined;
  /** This copy of a block, the source of an upload, proved bad: ITEM.CORRUPT, IDENTITY or IO. */
  readonly bad?: ((block: Block, tier: number, status: number) => void) | undefined;
}

export class StagingBatches implements StagingCopies, CopyOwner {
  readonly #copies: Copies;
  readonly #arena: number;
  readonly #region: number;
  readonly #options: StagingBatchesOptions;

  constructor(copies: Copies, arena: number, region: number, options: StagingBatchesOptions = {}) {
    this.#copies = copies;
    this.#arena = arena;
    this.#region = region;
    this.#options = options;
  }

  async exportBlocks(range: StagedRange, items: DramItems): Promise<Uint8Array> {
    const above: number[] = [];
    const below: number[] = [];
    items.slots.forEach((slot, item) => (slot === NO_DRAM_SLOT ? below : above).push(item));
    const statuses = new Uint8Array(items.slots.length);
    // Memory first: while a disk is read, blocks there cannot leave.
    if (above.length > 0) {
      const slots = above.map((item) => items.slots[item]!);
      const ended = await this.#submit(COPY.EXPORT, this.#arena, range, items, above, slots);
      this.#take(TIER.DRAM, items, above, ended, statuses);
    }
    if (below.length > 0) {
      const ended = await this.#exportBelow(range, items, below);
      this.#take(TIER.NVME, items, below, ended, statuses);
    }
    return statuses;
  }

  importBlocks(range: StagedRange, items: DramItems): Promise<Uint8Array> {
    const all = Array.from(items.slots.keys());
    return this.#submit(COPY.IMPORT, this.#arena, range, items, all, [...items.slots]);
  }

  #exportBelow(
    range: StagedRange,
    items: DramItems,
    below: readonly number[],
  ): Promise<Uint8Array> {
    const { diskSlots, blocks } = items;
    const sources = this.#options.below;
    assert(diskSlots !== undefined, "a block that is not in DRAM has a slot on a disk");
    if (sources === undefined) return Promise.resolve(cancelled(below.length));
    const { shard, shards, payloadBytes, deadlineMs } = range;
    const reads = {
      blocks: below.map((item) => blocks[item]!),
      slots: below.map((item) => diskSlots[item]!),
      shard,
      shards,
      payloadBytes,
      deadlineMs,
    };
    return sources.through(reads, (arena, read, slots) => {
      const positions = read.map((index) => below[index]!);
      return this.#submit(COPY.EXPORT, arena, range, items, positions, slots);
    });
  }

  #take(
    tier: number,
    { blocks }: DramItems,
    positions: readonly number[],
    ended: Uint8Array,
    statuses: Uint8Array,
  ): void {
    positions.forEach((item, index) => {
      const status = ended[index]!;
      statuses[item] = status;
      const bad = status === ITEM.CORRUPT || status === ITEM.IDENTITY || status === ITEM.IO;
      if (bad) this.#options.bad?.(blocks[item]!, tier, status);
    });
  }

  /** Copies the items at these positions, each with its slot; their statuses in this order. */
  #submit(
    kind: number,
    arena: number,
    range: StagedRange,
    { blocks }: DramItems,
    positions: readonly number[],
    slots: readonly number[],
  ): Promise<Uint8Array> {
    if (this.#copies.full(positions.length)) return Promise.resolve(cancelled(positions.length));
    return new Promise((resolve) => {
      const waiting: Waiting = { resolve };
      this.#copies.begin(kind, this, waiting);
      positions.forEach((item, index) => {
        const at = range.offsetBytes + item * range.strideBytes;
        this.#copies.add(slots[index]!, at, blocks[item]!, 0, item);
      });
      const { shard, shards, payloadBytes, deadlineMs, seal } = range;
      const left = Math.max(1, Math.ceil(deadlineMs));
      this.#copies.submit(arena, this.#region, shard, shards, payloadBytes, left, seal);
    });
  }

  copied(ticket: CopyTicket, statuses: Uint8Array, at: number): void {
    (ticket.subject as Waiting).resolve(statuses.slice(at, at + ticket.count));
  }
}

function cancelled(count: number): Uint8Array {
  return new Uint8Array(count).fill(ITEM.CANCELLED);
}
