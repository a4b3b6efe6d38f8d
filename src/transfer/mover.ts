/**
 * Write-back: copies blocks from DRAM to NVMe ahead of their eviction, so that eviction only ever drops what
 * has a copy below. The ledger says which blocks are next (oldest leaves without a lower copy, missing ancestors
 * first); here it is decided how fast.
 *
 * A block's way: copyBegin reserves its slots → write batches, one for each disk, row length and shard → the tier
 * syncs and indexes what was written → copyEnd, from which on the copy counts. A block of several shards counts
 * when all of them are there.
 *
 * Stores never wait for this. What a device has been given is bounded (one batch at work, one behind it), so is
 * what waits for a commit. A device that takes no writes, or has used up its endurance budget, is left alone for a
 * while; blocks that would have gone there are refused, counted and remembered for `explain`. If eviction is
 * quicker than this, it drops copies that had none below; the ledger counts those.
 */
import { DISK, ITEM } from "../../addon/binding.ts";
import type { DiskTier } from "../../tiers/tier.ts";
import { assert } from "../assert.ts";
import type { Ledger } from "../ledger/ledger.ts";
import { KEY, RECORD_WORDS } from "../ledger/table.ts";
import { type Block, NO_SLOT, TIER, type TierIndex } from "../ledger/types.ts";
import { LIMITS } from "../limits.ts";
import { type Feed, METRIC } from "../observe/feed.ts";
import {
  type Copies,
  type CopyOwner,
  type CopyTicket,
  DISK_PRIORITY,
  type DiskSubmit,
} from "./copies.ts";
import type { Links } from "./links.ts";
import { REFUSAL, type Refusals } from "./refusals.ts";

export interface MoverLedger
  extends Pick<
    Ledger,
    "copyBegin" | "copyEnd" | "corrupt" | "slotOf" | "namespaceOf" | "namespace" | "core"
  > {
  /** The next blocks to copy down, oldest first, missing ancestors before their children; how many. */
  demotable(from: TierIndex, to: TierIndex, into: Uint32Array, max: number): number;
  /** This block will not be copied down now; nothing below it is offered. */
  demotionRefused(block: Block): void;
}

export interface MoverOptions {
  readonly ledger: MoverLedger;
  readonly tier: DiskTier;
  readonly copies: Copies;
  readonly links: Links;
  readonly feed: Feed;
  readonly refusals: Refusals;
  /** The DRAM arena. */
  readonly arena: number;
  /** Whether anything is to be copied down now; called at each step. */
  readonly due: () => boolean;
  /** Monotonic milliseconds. */
  readonly now: () => number;
  /** All shards of the block are on NVMe, durably. */
  readonly onWritten?: (block: Block) => void;
}

/** Items of one write batch that is being gathered or in flight. */
class WriteGroup {
  disk = 0;
  payloadBytes = 0;
  shard = 0;
  shards = 1;
  count = 0;
  readonly blocks = new Uint32Array(LIMITS.writeBackItemsMax);
  /** Slots on the disk. */
  readonly slots = new Uint32Array(LIMITS.writeBackItemsMax);
  readonly sources = new Uint32Array(LIMITS.writeBackItemsMax);
}

interface Device {
  /** Payload bytes given to it and not yet ended. */
  bytes: number;
  /** No candidates before this time, monotonic milliseconds. */
  pausedUntil: number;
}

/** What became of a block of several shards so far. */
interface Shards {
  left: number;
  reason: number;
}

const DONE = -1;

export class Mover implements CopyOwner {
  readonly #options: MoverOptions;
  readonly #candidates = new Uint32Array(LIMITS.writeBackItemsMax);
  readonly #devices = new Map<number, Device>();
  readonly #open: WriteGroup[] = [];
  readonly #free: WriteGroup[] = [];
  readonly #inFlight = new Set<number>();
  readonly #shards = new Map<Block, Shards>();
  /** Blocks between copyBegin and copyEnd. */
  #blocks = 0;
  #writingBytes = 0;
  #committingBytes = 0;
  #stopped = false;
  /** A round that found nothing: the next tick asks again, not the next completion. */
  #idle = false;

  constructor(options: MoverOptions) {
    this.#options = options;
  }

  /** Blocks on their way down. */
  get blocksInFlight(): number {
    return this.#blocks;
  }

  /** Starts what may start; called by the coarse timer and after each batch. */
  step(): void {
    this.#idle = false;
    this.#pump();
  }

  #pump(): void {
    const { due, ledger, feed } = this.#options;
    while (!this.#stopped && !this.#idle && this.#room() && due()) {
      const count = ledger.demotable(
        TIER.DRAM,
        TIER.NVME,
        this.#candidates,
        LIMITS.writeBackItemsMax,
      );
      this.#idle = count === 0 || !this.#begin(count);
    }
    feed.set(METRIC.writeBackBytesInFlight, this.#writingBytes + this.#committingBytes);
  }

  /** Bytes for one more batch, at some device that is not paused. */
  #room(): boolean {
    if (this.#committingBytes >= LIMITS.writeBackCommittingBytesMax) return false;
    if (this.#options.copies.full(LIMITS.writeBackItemsMax)) return false;
    if (this.#devices.size === 0) return true;
    const now = this.#options.now();
    for (const device of this.#devices.values()) {
      if (device.pausedUntil <= now && device.bytes < 2 * LIMITS.writeBackBatchBytes) return true;
    }
    return false;
  }

  /** Reserves and submits the candidates; false when none of them could begin. */
  #begin(count: number): boolean {
    const { ledger } = this.#options;
    let begun = 0;
    let bytes = 0;
    for (let index = 0; index < count; index++) {
      const block = this.#candidates[index]!;
      if (!ledger.copyBegin(block, TIER.DRAM, TIER.NVME)) {
        this.#refuse(block, REFUSAL.NO_ROOM);
        continue;
      }
      this.#blocks++;
      const refusal = this.#admit(block);
      if (refusal !== DONE) {
        this.#end(block, refusal);
        continue;
      }
      begun++;
      bytes += this.#gather(block);
      if (bytes >= LIMITS.writeBackBatchBytes) break;
    }
    for (const group of this.#open.splice(0)) this.#submit(group);
    return begun > 0;
  }

  /** Whether the devices of its slots take this block now; DONE if so. */
  #admit(block: Block): number {
    const { ledger, tier } = this.#options;
    const { shards, payloadBytes } = ledger.namespace(ledger.namespaceOf(block));
    for (let shard = 0; shard < shards; shard++) {
      const slot = ledger.slotOf(block, TIER.NVME, shard);
      const disk = tier.diskOf(slot);
      const device = this.#device(disk);
      const pending = device.bytes + payloadBytes * shards;
      const allowed = tier.writeAllowanceBytes(disk) >= pending;
      if (tier.mayWrite(slot) && allowed) continue;
      device.pausedUntil = this.#options.now() + LIMITS.writeBackPauseMs;
      return allowed ? REFUSAL.READ_ONLY : REFUSAL.WRITE_BUDGET;
    }
    return DONE;
  }

  #device(disk: number): Device {
    let device = this.#devices.get(disk);
    if (device === undefined) {
      device = { bytes: 0, pausedUntil: 0 };
      this.#devices.set(disk, device);
    }
    return device;
  }

  /** Puts every shard of a block that has begun into a batch; its bytes. */
  #gather(block: Block): number {
    const { ledger, tier } = this.#options;
    const { shards, payloadBytes } = ledger.namespace(ledger.namespaceOf(block));
    if (shards > 1) this.#shards.set(block, { left: shards, reason: DONE });
    for (let shard = 0; shard < shards; shard++) {
      const slot = ledger.slotOf(block, TIER.NVME, shard);
      const source = ledger.slotOf(block, TIER.DRAM, shard);
      assert(slot !== NO_SLOT && source !== NO_SLOT, "a block that is copied has both slots");
      const group = this.#group(tier.diskOf(slot), payloadBytes, shard, shards);
      group.blocks[group.count] = block;
      group.slots[group.count] = slot;
      group.sources[group.count] = source;
      group.count++;
      this.#device(group.disk).bytes += payloadBytes;
      this.#writingBytes += payloadBytes;
      if (group.count < LIMITS.writeBackItemsMax) continue;
      this.#open.splice(this.#open.indexOf(group), 1);
      this.#submit(group);
    }
    return shards * payloadBytes;
  }

  #group(disk: number, payloadBytes: number, shard: number, shards: number): WriteGroup {
    for (const group of this.#open) {
      const same = group.disk === disk && group.payloadBytes === payloadBytes;
      if (same && group.shard === shard && group.shards === shards) return group;
    }
    const group = this.#free.pop() ?? new WriteGroup();
    group.disk = disk;
    group.payloadBytes = payloadBytes;
    group.shard = shard;
    group.shards = shards;
    group.count = 0;
    this.#open.push(group);
    return group;
  }

  #submit(group: WriteGroup): void {
    const { copies, arena } = this.#options;
    assert(group.count > 0, "a group is opened for an item");
    copies.begin(DISK.WRITE, this, group);
    for (let item = 0; item < group.count; item++) {
      copies.add(group.slots[item]!, 0, group.blocks[item]!, group.sources[item]!, item);
    }
    write.disk = group.disk;
    write.arena = arena;
    write.shard = group.shard;
    write.shards = group.shards;
    write.payloadBytes = group.payloadBytes;
    this.#inFlight.add(copies.submitDisk(write));
  }

  /** A write batch ended: what is on the disk goes to the tier, which calls back when it is durable. */
  copied(ticket: CopyTicket, statuses: Uint8Array, at: number): void {
    const { tier, ledger, links, feed } = this.#options;
    const group = ticket.subject as WriteGroup;
    this.#inFlight.delete(ticket.number);
    const bytes = group.count * group.payloadBytes;
    const device = this.#device(group.disk);
    device.bytes -= bytes;
    this.#writingBytes -= bytes;
    assert(device.bytes >= 0 && this.#writingBytes >= 0, "bytes in flight never go below zero");
    const slots = new Uint32Array(group.count);
    const blocks = new Uint32Array(group.count);
    let written = 0;
    for (let item = 0; item < group.count; item++) {
      const status = statuses[at + item]!;
      const block = group.blocks[item]!;
      tier.ended(group.slots[item]!, DISK.WRITE, status, ticket.microseconds);
      if (status === ITEM.OK) {
        slots[written] = group.slots[item]!;
        blocks[written++] = block;
        continue;
      }
      const corrupt = status === ITEM.CORRUPT || status === ITEM.IDENTITY;
      if (corrupt) {
        feed.add(status === ITEM.CORRUPT ? METRIC.corruptBlocks : METRIC.identityFailures, 1);
        ledger.corrupt(block, TIER.DRAM);
      }
      this.#settle(block, corrupt ? REFUSAL.SOURCE_CORRUPT : failureOf(status));
    }
    if (written === group.count) links.write(group.disk).ended(bytes, ticket.submittedAt);
    this.#free.push(group);
    if (written > 0) this.#commit(slots, blocks, written, ticket.payloadBytes);
    if (!this.#idle) this.#pump();
  }

  #commit(slots: Uint32Array, blocks: Uint32Array, count: number, payloadBytes: number): void {
    const { tier, feed } = this.#options;
    this.#committingBytes += count * payloadBytes;
    tier.commit(slots, count, (durable) => {
      this.#committingBytes -= count * payloadBytes;
      assert(this.#committingBytes >= 0, "a commit calls back once");
      for (let index = 0; index < count; index++) {
        this.#settle(blocks[index]!, durable ? DONE : REFUSAL.NOT_DURABLE);
      }
      if (durable) feed.add(METRIC.writtenBackBytes, count * payloadBytes);
      if (!this.#idle) this.#pump();
    });
  }

  /** One shard's way is over. */
  #settle(block: Block, reason: number): void {
    const shards = this.#shards.get(block);
    if (shards === undefined) {
      this.#end(block, reason);
      return;
    }
    if (shards.reason === DONE) shards.reason = reason;
    shards.left--;
    if (shards.left > 0) return;
    this.#shards.delete(block);
    this.#end(block, shards.reason);
  }

  #end(block: Block, reason: number): void {
    const { ledger, feed, onWritten } = this.#options;
    this.#blocks--;
    assert(this.#blocks >= 0, "a copy ends once");
    // Before copyEnd: the record may go with its last pin.
    if (reason !== DONE) this.#refuse(block, reason);
    ledger.copyEnd(block, TIER.DRAM, TIER.NVME, reason === DONE);
    if (reason !== DONE) return;
    feed.add(METRIC.writtenBackBlocks, 1);
    onWritten?.(block);
  }

  #refuse(block: Block, reason: number): void {
    const { ledger, feed, refusals } = this.#options;
    feed.addAt(METRIC.writeBackRefusals, reason, 1);
    const namespace = ledger.namespaceOf(block);
    const { keyWords } = ledger.namespace(namespace);
    refusals.add(namespace, ledger.core.records, block * RECORD_WORDS + KEY, keyWords, reason);
    ledger.demotionRefused(block);
  }

  /**
   * Nothing new begins; resolves when everything in flight has ended, which after `withinMs` is cancelled.
   * Call it while events are still drained.
   */
  async drain(withinMs: number): Promise<void> {
    this.#stopped = true;
    const until = this.#options.now() + withinMs;
    while (this.#blocks > 0 && this.#options.now() < until) await pause();
    for (const batch of this.#inFlight) this.#options.copies.cancel(batch);
    const cut = this.#options.now() + withinMs;
    while (this.#blocks > 0 && this.#options.now() < cut) await pause();
  }
}

/** Reused for every write batch. */
const write: DiskSubmit = {
  disk: 0,
  arena: 0,
  region: 0,
  shard: 0,
  shards: 1,
  payloadBytes: 0,
  deadlineMs: LIMITS.writeBackDeadlineMs,
  priority: DISK_PRIORITY.OTHER,
};

function failureOf(status: number): number {
  return status === ITEM.CANCELLED ? REFUSAL.STOPPED : REFUSAL.WRITE_FAILED;
}

function pause(): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, 2);
  });
}
