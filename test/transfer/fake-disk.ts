/** A tier of disks and the addon's disk calls, both without bytes: what is submitted is kept for the test to end. */
import { type DiskBatch, DISK_ITEM_WORDS, ITEM } from "../../addon/binding.ts";
import type { DiskTier, TierLimits } from "../../tiers/tier.ts";
import { type SlabTierOptions, TIER } from "../../src/ledger/types.ts";
import type { Copies } from "../../src/transfer/copies.ts";

export interface Submitted {
  readonly request: DiskBatch;
  /** DISK_ITEM_WORDS each. */
  readonly items: Uint32Array;
  readonly count: number;
}

export class FakeDisks {
  readonly batches: Submitted[] = [];
  readonly cancelled: number[] = [];
  copySubmit(): void {
    throw new Error("no copy was expected");
  }
  copyCancel(): void {
    throw new Error("no copy was expected");
  }
  diskSubmit(request: DiskBatch, items: Uint32Array, count: number): void {
    const kept = items.slice(0, count * DISK_ITEM_WORDS);
    this.batches.push({ request: { ...request }, items: kept, count });
  }
  diskCancel(_disk: number, batch: number): void {
    this.cancelled.push(batch);
  }

  /** Ends the oldest batch; statusOf(item) says how. */
  end(copies: Copies, statusOf: (item: number) => number = () => ITEM.OK): Submitted {
    const batch = this.batches.shift();
    if (batch === undefined) throw new Error("nothing was submitted");
    const statuses = Uint8Array.from({ length: batch.count }, (_, item) => statusOf(item));
    copies.ended(batch.request.batch, statuses, 0, 1_000);
    return batch;
  }
}

/** Slabs below `split` stand on disk 0, the others on disk 1. */
export class FakeDiskTier implements DiskTier {
  readonly index = TIER.NVME;
  readonly name = "nvme";
  growing = false;
  readable = true;
  readonly writable = new Set([0, 1]);
  /** So many of the next blocks cannot be named by the index. */
  unnamed = 0;
  allowance = Number.POSITIVE_INFINITY;
  readonly endings: { readonly slot: number; readonly kind: number; readonly status: number }[] =
    [];
  readonly commits: { readonly slots: number[]; readonly done: (durable: boolean) => void }[] = [];
  readonly #split: number;

  constructor(split = 2 ** 31) {
    this.#split = split;
  }

  slotsPerSlab(): number {
    return 1;
  }
  ledgerOptions(_limits: TierLimits): SlabTierOptions {
    throw new Error("the test made the ledger");
  }
  diskOf(slot: number): number {
    return slot < this.#split ? 0 : 1;
  }
  mayRead(): boolean {
    return this.readable;
  }
  mayWrite(slot: number): boolean {
    return this.writable.has(this.diskOf(slot));
  }
  admits(): boolean {
    return this.unnamed-- <= 0;
  }
  commit(slots: Uint32Array, count: number, done: (durable: boolean) => void): void {
    this.commits.push({ slots: [...slots.subarray(0, count)], done });
  }
  ended(slot: number, kind: number, status: number): void {
    this.endings.push({ slot, kind, status });
  }
  writeAllowanceBytes(): number {
    return this.allowance;
  }
}
