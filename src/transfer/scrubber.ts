/**
 * Scrub: reads what lies on NVMe and verifies it while the node has nothing else to do, so that a bad sector is
 * found before an engine waits for the block in it. One small batch at a time, at the configured rate; a pass goes
 * over the block table and begins anew at its end. A copy that proves bad is dropped and counted.
 */
import { DISK, ITEM, NO_DRAM_SLOT } from "../../addon/binding.ts";
import type { DiskTier } from "../../tiers/tier.ts";
import { assert } from "../assert.ts";
import type { Ledger } from "../ledger/ledger.ts";
import { STATE, TIER } from "../ledger/types.ts";
import { LIMITS } from "../limits.ts";
import { type Feed, METRIC } from "../observe/feed.ts";
import {
  type Copies,
  type CopyOwner,
  type CopyTicket,
  DISK_PRIORITY,
  type DiskSubmit,
} from "./copies.ts";
import { type DiskGroup, DiskGroups } from "./disk-groups.ts";

export interface ScrubberOptions {
  readonly ledger: Ledger;
  readonly tier: DiskTier;
  readonly copies: Copies;
  readonly feed: Feed;
  /** The DRAM arena. */
  readonly arena: number;
  /** 0 = off; read at each step. */
  readonly bytesPerSecond: () => number;
  /** The node has nothing else to do. */
  readonly idle: () => boolean;
  /** Monotonic milliseconds. */
  readonly now: () => number;
}

export class Scrubber implements CopyOwner {
  readonly #options: ScrubberOptions;
  readonly #groups = new DiskGroups((group) => this.#submit(group));
  #cursor = 0;
  #inFlight = 0;
  /** Bytes that may be read now; at most one batch. */
  #allowance = 0;
  #at: number;
  #stopped = false;

  constructor(options: ScrubberOptions) {
    this.#options = options;
    this.#at = options.now();
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  /** Called by the coarse timer. */
  step(): void {
    const { now, bytesPerSecond, idle } = this.#options;
    const passed = now() - this.#at;
    this.#at += passed;
    const earned = this.#allowance + (passed / 1_000) * bytesPerSecond();
    this.#allowance = Math.min(LIMITS.scrubBatchBytes, earned);
    if (this.#stopped || this.#inFlight > 0 || this.#allowance <= 0 || !idle()) return;
    this.#gather();
    this.#groups.submitAll();
  }

  /** No batch follows; one in flight ends by itself. */
  stop(): void {
    this.#stopped = true;
  }

  #gather(): void {
    const { core } = this.#options.ledger;
    const size = core.table.touched;
    for (let looked = 0; looked < Math.min(size, LIMITS.scrubRecordsPerStep); looked++) {
      if (this.#allowance <= 0) return;
      this.#cursor = this.#cursor + 1 < size ? this.#cursor + 1 : 0;
      const block = this.#cursor;
      if (!core.inUse(block) || core.stateOf(block, TIER.NVME) !== STATE.VISIBLE) continue;
      this.#add(block);
    }
  }

  #add(block: number): void {
    const { ledger, tier } = this.#options;
    const { shards, payloadBytes } = ledger.namespace(ledger.namespaceOf(block));
    for (let shard = 0; shard < shards; shard++) {
      const slot = ledger.slotOf(block, TIER.NVME, shard);
      if (!tier.mayRead(slot)) continue;
      ledger.pin(block, TIER.NVME);
      this.#allowance -= payloadBytes;
      this.#groups.add(tier.diskOf(slot), payloadBytes, shard, shards, block, slot, NO_DRAM_SLOT);
    }
  }

  #submit(group: DiskGroup): void {
    const { copies, arena } = this.#options;
    copies.begin(DISK.VERIFY, this, group);
    for (let item = 0; item < group.count; item++) {
      copies.add(group.slots[item]!, 0, group.blocks[item]!, NO_DRAM_SLOT, item);
    }
    verify.disk = group.disk;
    verify.arena = arena;
    verify.shard = group.shard;
    verify.shards = group.shards;
    verify.payloadBytes = group.payloadBytes;
    this.#inFlight++;
    copies.submitDisk(verify);
  }

  copied(ticket: CopyTicket, statuses: Uint8Array, at: number): void {
    const { ledger, tier, feed } = this.#options;
    const group = ticket.subject as DiskGroup;
    this.#inFlight--;
    assert(this.#inFlight >= 0, "a batch ends once");
    for (let item = 0; item < group.count; item++) {
      const block = group.blocks[item]!;
      const status = statuses[at + item]!;
      tier.ended(group.slots[item]!, DISK.VERIFY, status, ticket.microseconds);
      const bad = status === ITEM.CORRUPT || status === ITEM.IDENTITY || status === ITEM.IO;
      if (status === ITEM.OK || bad) feed.add(METRIC.scrubbedBlocks, 1);
      if (bad) {
        feed.add(METRIC.scrubFailures, 1);
        ledger.corrupt(block, TIER.NVME);
      }
      ledger.unpin(block, TIER.NVME);
    }
    this.#groups.free(group);
  }
}

/** Reused for every batch. */
const verify: DiskSubmit = {
  disk: 0,
  arena: 0,
  region: 0,
  shard: 0,
  shards: 1,
  payloadBytes: 0,
  deadlineMs: LIMITS.writeBackDeadlineMs,
  priority: DISK_PRIORITY.OTHER,
};
