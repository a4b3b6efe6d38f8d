/**
 * Blocks that are on their way between DRAM and a disk: gathered into batches of one disk, row length and shard,
 * and put together again when all shards of a block have ended.
 */
import { assert } from "../assert.ts";
import type { Block } from "../ledger/types.ts";
import { LIMITS } from "../limits.ts";

/** Items of one batch that is being gathered or in flight. */
export class DiskGroup {
  disk = 0;
  payloadBytes = 0;
  shard = 0;
  shards = 1;
  count = 0;
  readonly blocks = new Uint32Array(LIMITS.writeBackItemsMax);
  /** Slots on the disk. */
  readonly slots = new Uint32Array(LIMITS.writeBackItemsMax);
  readonly dramSlots = new Uint32Array(LIMITS.writeBackItemsMax);

  get bytes(): number {
    return this.count * this.payloadBytes;
  }
}

/** Gathers items; a group that is full, and at the end every group, goes to `submit`, which owns it until free(). */
export class DiskGroups {
  readonly #submit: (group: DiskGroup) => void;
  readonly #open: DiskGroup[] = [];
  readonly #free: DiskGroup[] = [];

  constructor(submit: (group: DiskGroup) => void) {
    this.#submit = submit;
  }

  add(
    disk: number,
    payloadBytes: number,
    shard: number,
    shards: number,
    block: Block,
    slot: number,
    dramSlot: number,
  ): void {
    const group = this.#group(disk, payloadBytes, shard, shards);
    group.blocks[group.count] = block;
    group.slots[group.count] = slot;
    group.dramSlots[group.count] = dramSlot;
    group.count++;
    if (group.count < LIMITS.writeBackItemsMax) return;
    this.#open.splice(this.#open.indexOf(group), 1);
    this.#submit(group);
  }

  submitAll(): void {
    for (const group of this.#open.splice(0)) this.#submit(group);
  }

  free(group: DiskGroup): void {
    assert(!this.#open.includes(group), "a group that is being filled is not free");
    this.#free.push(group);
  }

  #group(disk: number, payloadBytes: number, shard: number, shards: number): DiskGroup {
    for (const group of this.#open) {
      const same = group.disk === disk && group.payloadBytes === payloadBytes;
      if (same && group.shard === shard && group.shards === shards) return group;
    }
    const group = this.#free.pop() ?? new DiskGroup();
    group.disk = disk;
    group.payloadBytes = payloadBytes;
    group.shard = shard;
    group.shards = shards;
    group.count = 0;
    this.#open.push(group);
    return group;
  }
}

/** Outcome of a block of which every shard went well. */
export const WELL = -1;

/** Blocks of several shards that are under way; those of one shard never come here. */
export class ShardTally {
  readonly #left = new Map<Block, { left: number; reason: number }>();

  begin(block: Block, shards: number): void {
    assert(!this.#left.has(block), "a block is under way once");
    if (shards > 1) this.#left.set(block, { left: shards, reason: WELL });
  }

  /** One shard ended, WELL or for a reason ≥ 0. The first reason once all have ended, undefined before. */
  end(block: Block, reason: number): number | undefined {
    const entry = this.#left.get(block);
    if (entry === undefined) return reason;
    if (entry.reason === WELL) entry.reason = reason;
    entry.left--;
    if (entry.left > 0) return undefined;
    this.#left.delete(block);
    return entry.reason;
  }
}
