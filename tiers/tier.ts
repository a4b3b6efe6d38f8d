/**
 * What the core asks of a tier. A tier owns bytes in slots and what survives with them; which block is in
 * which slot is the ledger's business. Each tier's README states its failure model as a table.
 */
import type { NamespaceInfo } from "../addon/binding.ts";
import type { SlabTierOptions, TierIndex } from "../src/ledger/types.ts";

/** Called as work proceeds: header scans and pre-touching. */
export type TierProgress = (stage: "scan" | "populate", done: number, total: number) => void;

/** What a start found of the life before. */
export interface RecoveryReport {
  /** The backing store existed and was readable. */
  readonly reopened: boolean;
  /** The last owner closed it in order. */
  readonly clean: boolean;
  /** Valid headers scanned. */
  readonly headers: number;
  /** Blocks (shard copies) taken back into the ledger. */
  readonly recovered: number;
  readonly dropped: number;
  readonly milliseconds: number;
}

export interface Tier {
  readonly index: TierIndex;
  readonly name: string;
  readonly slabs: number;
  readonly slabBytes: number;
  readonly capacityBytes: number;
  /** Arena number by which copies name this tier's slots. */
  readonly arena: number;

  /** Slots that one slab holds for rows of this length; 0 = none. */
  slotsPerSlab(payloadBytes: number): number;
  /** How the ledger drives slabs and slots of this tier. */
  ledgerOptions(limits: TierLimits): SlabTierOptions;

  /** The persisted namespace table. */
  namespaces(): readonly NamespaceInfo[];
  putNamespace(index: number, digest: Uint8Array, descriptor: Uint8Array): void;

  /** Pre-touches fresh slabs in the background; the tier serves meanwhile. */
  populate(): void;
  /** PROGRESS event of the addon; true when the task is one of this tier. */
  onProgress(task: number, done: number, total: number, outcome: number): boolean;
  /** Closes the backing store; `keep` leaves it for the next start. */
  close(keep: boolean): void;
}

export interface TierLimits {
  readonly blocksMax: number;
  readonly highWatermark: number;
  readonly lowWatermark: number;
}

/** Health of one device, as a table in tiers/nvme/health.ts. */
export type DeviceHealth = "ok" | "slow" | "readOnly" | "fenced";

/** A tier on block devices, as the mover and the engine API see it. Slots are read and written by disk batches (addon/binding.ts). */
export interface DiskTier {
  readonly index: TierIndex;
  readonly name: string;
  /** Slabs are still to come: a copy that finds no room waits for them instead of pushing another one out. */
  readonly growing: boolean;
  slotsPerSlab(payloadBytes: number): number;
  ledgerOptions(limits: TierLimits): SlabTierOptions;
  /** The addon's disk that holds this slot. */
  diskOf(slot: number): number;
  mayRead(slot: number): boolean;
  mayWrite(slot: number): boolean;
  /** What survives can name the block that this slot is reserved for; false: its table of namespaces is full. */
  admits(slot: number): boolean;
  /**
   * These slots (all of one disk) were written. `done(true)`: they are synced and indexed, so the copy may count;
   * `done(false)`: they may not. Called once, later; commits are batched.
   */
  commit(slots: Uint32Array, count: number, done: (durable: boolean) => void): void;
  /** An item of this slot ended with this ITEM status: feeds the device's health. */
  ended(slot: number, kind: number, status: number, microseconds: number): void;
  /** Bytes this device may still write now under its endurance budget (Infinity without one). */
  writeAllowanceBytes(disk: number): number;
}
