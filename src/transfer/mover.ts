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
import { type Block, NO_SLOT, TIER } from "../ledger/types.ts";
import { LIMITS } from "../limits.ts";
import { type Feed, METRIC } from "../observe/feed.ts";
import {
  type Copies,
  type CopyOwner,
  type CopyTicket,
  DISK_PRIORITY,
  type DiskSubmit,
} from "./copies.ts";
import { type DiskGroup, DiskGroups, ShardTally, WELL } from "./disk-groups.ts";
import type { Links } from "./links.ts";
import { REFUSAL, type Refusals } from "./refusals.ts";

export type MoverLedger = Pick<
  Ledger,
  | "copyBegin"
  | "copyEnd"
  | "corrupt"
  | "demotionRefused"
  | "worthRoom"
  | "slotOf"
  | "namespaceOf"
  | "namespace"
  | "core"
>;

export interface MoverOptions {
  readonly ledger: MoverLedger;
  readonly tier: DiskTier;
  readonly copies: Copies;
  readonly links: Links;
  readonly feed: Feed;
  readonly refusals: Refusals;
  /** The DRAM arena. */
  readonly arena: number;
  /** Whether anything is to be copied down now; called at each tick. */
  readonly due: () => boolean;
  /** The next blocks to copy down, parents before children. */
  readonly candidates: (into: Uint32Array, max: number) => number;
  /** Monotonic milliseconds. */
  readonly now: () => number;
  /** All shards of the block are on NVMe, durably. */
  readonly onWritten?: (block: Block) => void;
  /** This candidate was not copied down. */
  readonly onRefused?: (block: Block) => void;
}

interface Device {
  /** Payload bytes given to it and not yet ended. */
  bytes: number;
  /** No candidates before this time, monotonic milliseconds. */
  pausedUntil: number;
}

/** Candidates of a round, however large blocks are. */
const CANDIDATES_MIN = 16;

export class Mover implements CopyOwner {
  readonly #options: MoverOptions;
  readonly #candidates = new Uint32Array(LIMITS.writeBackItemsMax);
  readonly #devices = new Map<number, Device>();
  readonly #groups = new DiskGroups((group) => this.#submit(group));
  readonly #tally = new ShardTally();
  readonly #inFlight = new Set<number>();
  /** Blocks between copyBegin and copyEnd. */
  #blocks = 0;
  #writingBytes = 0;
  #committingBytes = 0;
  #stopped = false;
  /** Nothing is due, or a round found nothing: the next tick asks again, not the next completion. */
  #idle = false;
  /** Bytes of a block, as lately seen: how many candidates fill a batch. */
  #blockBytes = LIMITS.writeBackBatchBytes / CANDIDATES_MIN;

  constructor(options: MoverOptions) {
    this.#options = options;
  }

  /** Blocks on their way down. */
  get blocksInFlight(): number {
    return this.#blocks;
  }

  /** Starts what may start; called by the coarse timer and after each batch. */
  step(): void {
    this.#idle = !this.#options.due();
    this.#pump();
  }

  #pump(): void {
    const { candidates, feed } = this.#options;
    while (!this.#stopped && !this.#idle && this.#room()) {
      const filling = Math.ceil(LIMITS.writeBackBatchBytes / this.#blockBytes);
      const most = Math.min(LIMITS.writeBackItemsMax, this.#blocksMax - this.#blocks);
      const max = Math.min(most, Math.max(CANDIDATES_MIN, filling));
      const count = candidates(this.#candidates, max);
      this.#idle = count === 0 || !this.#begin(count);
    }
    feed.set(METRIC.writeBackBytesInFlight, this.#writingBytes + this.#committingBytes);
  }

  /** A block on its way down cannot leave DRAM: a small pool must keep room for STOREs. */
  get #blocksMax(): number {
    const { slots } = this.#options.ledger.core.tier(TIER.DRAM);
    return Math.max(CANDIDATES_MIN, Math.floor(slots.slotsTotal * LIMITS.writeBackPinnedShare));
  }

  /** Bytes for one more batch, at some device that is not paused. */
  #room(): boolean {
    if (this.#committingBytes >= LIMITS.writeBackCommittingBytesMax) return false;
    if (this.#blocks >= this.#blocksMax) return false;
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
      const worth = ledger.worthRoom(block, TIER.DRAM, TIER.NVME, this.#options.tier.growing);
      if (!worth || !ledger.copyBegin(block, TIER.DRAM, TIER.NVME)) {
        this.#refuse(block, REFUSAL.NO_ROOM);
        continue;
      }
      this.#blocks++;
      const refusal = this.#admit(block);
      if (refusal !== WELL) {
        this.#end(block, refusal);
        continue;
      }
      begun++;
      bytes += this.#gather(block);
      // Every candidate is begun: write-through names each only once.
      if (bytes < LIMITS.writeBackBatchBytes) continue;
      this.#groups.submitAll();
      bytes = 0;
    }
    this.#groups.submitAll();
    return begun > 0;
  }

  /** Whether the devices of its slots take this block now; WELL if so. */
  #admit(block: Block): number {
    const { ledger, tier } = this.#options;
    const { shards, payloadBytes } = ledger.namespace(ledger.namespaceOf(block));
    for (let shard = 0; shard < shards; shard++) {
      const slot = ledger.slotOf(block, TIER.NVME, shard);
      if (!tier.admits(slot)) return REFUSAL.NAMESPACES;
      const disk = tier.diskOf(slot);
      const device = this.#device(disk);
      const pending = device.bytes + payloadBytes * shards;
      const allowed = tier.writeAllowanceBytes(disk) >= pending;
      if (tier.mayWrite(slot) && allowed) continue;
      device.pausedUntil = this.#options.now() + LIMITS.writeBackPauseMs;
      return allowed ? REFUSAL.READ_ONLY : REFUSAL.WRITE_BUDGET;
    }
    return WELL;
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
    this.#tally.begin(block, shards);
    this.#blockBytes = shards * payloadBytes;
    for (let shard = 0; shard < shards; shard++) {
      const slot = ledger.slotOf(block, TIER.NVME, shard);
      const source = ledger.slotOf(block, TIER.DRAM, shard);
      assert(slot !== NO_SLOT && source !== NO_SLOT, "a block that is copied has both slots");
      const disk = tier.diskOf(slot);
      this.#device(disk).bytes += payloadBytes;
      this.#writingBytes += payloadBytes;
      this.#groups.add(disk, payloadBytes, shard, shards, block, slot, source);
    }
    return shards * payloadBytes;
  }

  #submit(group: DiskGroup): void {
    const { copies, arena } = this.#options;
    assert(group.count > 0, "a group is opened for an item");
    copies.begin(DISK.WRITE, this, group);
    for (let item = 0; item < group.count; item++) {
      copies.add(group.slots[item]!, 0, group.blocks[item]!, group.dramSlots[item]!, item);
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
    const group = ticket.subject as DiskGroup;
    this.#inFlight.delete(ticket.number);
    const { bytes } = group;
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
    this.#groups.free(group);
    if (written > 0) this.#commit(slots, blocks, written, ticket.payloadBytes);
    if (!this.#idle) this.#pump();
  }

  #commit(slots: Uint32Array, blocks: Uint32Array, count: number, payloadBytes: number): void {
    const { tier, feed, now } = this.#options;
    this.#committingBytes += count * payloadBytes;
    const began = now();
    tier.commit(slots, count, (durable) => {
      if (durable) feed.observe(METRIC.nvmeCommitSeconds, (now() - began) / 1e3);
      this.#committingBytes -= count * payloadBytes;
      assert(this.#committingBytes >= 0, "a commit calls back once");
      for (let index = 0; index < count; index++) {
        this.#settle(blocks[index]!, durable ? WELL : REFUSAL.NOT_DURABLE);
      }
      if (durable) feed.add(METRIC.writtenBackBytes, count * payloadBytes);
      if (!this.#idle) this.#pump();
    });
  }

  /** One shard's way is over. */
  #settle(block: Block, reason: number): void {
    const outcome = this.#tally.end(block, reason);
    if (outcome !== undefined) this.#end(block, outcome);
  }

  #end(block: Block, reason: number): void {
    const { ledger, feed, onWritten } = this.#options;
    this.#blocks--;
    assert(this.#blocks >= 0, "a copy ends once");
    // Before copyEnd: the record may go with its last pin.
    if (reason !== WELL) this.#refuse(block, reason);
    ledger.copyEnd(block, TIER.DRAM, TIER.NVME, reason === WELL);
    // The source may have proved wrong meanwhile: then the copy went, and perhaps the record with it.
    const counts = ledger.core.inUse(block) && ledger.core.complete(block, TIER.DRAM);
    if (reason !== WELL || !counts) return;
    feed.add(METRIC.writtenBackBlocks, 1);
    onWritten?.(block);
  }

  #refuse(block: Block, reason: number): void {
    const { ledger, feed, refusals, onRefused } = this.#options;
    feed.addAt(METRIC.writeBackRefusals, reason, 1);
    if (reason !== REFUSAL.SOURCE_CORRUPT) onRefused?.(block);
    const namespace = ledger.namespaceOf(block);
    const { keyWords } = ledger.namespace(namespace);
    refusals.add(namespace, ledger.core.records, block * RECORD_WORDS + KEY, keyWords, reason);
    // A device that takes no writes for now gives out no slots either: the block's next turn is elsewhere.
    if (reason !== REFUSAL.READ_ONLY) ledger.demotionRefused(block);
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
