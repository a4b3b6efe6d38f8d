/**
 * The ledger's contract with the rest of the daemon (DESIGN §5). Everything here is pure: time is a number
 * handed in, randomness is a function handed in, slots are freed through a callback.
 *
 * Block: index of a record. Slot: slab << 18 | index (addon/binding.ts). Depth of a chain's first block is
 * 1.
 */

export type Block = number;
export type Slot = number;
export type NamespaceIndex = number;
export const NO_BLOCK = 0xffff_ffff;
export const NO_SLOT = 0xffff_ffff;

export const TIER = { DRAM: 0, NVME: 1 } as const;
export type TierIndex = number;
export const TIER_NAMES = ["dram", "nvme"] as const;

/** State of one (block, tier). The table of legal moves is states.ts. */
export const STATE = {
  ABSENT: 0,
  RESERVED: 1,
  FILLING: 2,
  LANDED: 3,
  VISIBLE: 4,
  ORPHAN: 5,
  DRAINING: 6,
  QUARANTINED: 7,
} as const;
export type State = (typeof STATE)[keyof typeof STATE];

export interface NamespaceOptions {
  /** Key words compared and hashed: keyBytes / 4, at most 8. */
  readonly keyWords: number;
  readonly shards: number;
  readonly chained: boolean;
  /** Payload bytes of one shard; selects the size class. */
  readonly payloadBytes: number;
  readonly tenant: number;
}

export interface SlabTierOptions {
  readonly slabs: number;
  /**
   * Device a slab stands on, 0 ≤ device < 64; asked once for each slab, when it is added. Absent: the tier is
   * one device, number 0.
   */
  readonly deviceOf?: (slab: number) => number;
  /** Slots one slab holds for a payload size (the addon knows the header layout). */
  readonly slotsPerSlab: (payloadBytes: number) => number;
  /**
   * Assigns / releases a slab in the backing store. False: something still uses the slab there; it stays free, and is
   * asked for again by a later allocation.
   */
  readonly assignSlab: (slab: number, payloadBytes: number) => boolean;
  readonly releaseSlab: (slab: number) => void;
  /** Invalidates the headers of slots that were freed, before they can be allocated again. */
  readonly invalidate: (slots: Uint32Array, count: number) => void;
  /** Cap on blocks in this tier, 0 = as many as slots (replay of a capacity in blocks). */
  readonly blocksMax: number;
  /** Eviction starts above high and ends at low, as a share of slots; 1 and 1 = exactly on demand. */
  readonly highWatermark: number;
  readonly lowWatermark: number;
}

export interface LedgerOptions {
  readonly blocksMax: number;
  readonly namespacesMax: number;
  readonly tenantsMax: number;
  /** Index = TierIndex; undefined = tier absent (costs no memory). */
  readonly tiers: readonly (SlabTierOptions | undefined)[];
  readonly holesMax: number;
  readonly splitSamplesMax: number;
  readonly logEntries: number;
  readonly observer: LedgerObserver;
}

/** Called synchronously inside ledger calls; must not call back into the ledger. */
export interface LedgerObserver {
  /** A watched block became visible (ok) or will not (aborted, orphaned, lost). The watch ends. */
  settled(block: Block, visible: boolean): void;
  /** A lease fell back (hole, fence): `depth` blocks are still promised. */
  leaseReduced(lease: number, depth: number): void;
}

/**
 * What a STORE reservation found, one per key, written to the caller's status array (engine-api's
 * STORE_STATUS values).
 */
export const RESERVE = { PRESENT: 0, PENDING: 1, WANTED: 2, FULL: 3, PARENT_ABSENT: 4 } as const;

/** Results of the last call, kept in fields so that the hot path allocates nothing. */
export interface LookupResult {
  /** Longest visible prefix, in blocks. */
  depth: number;
  /** The block of that depth, NO_BLOCK when 0. */
  block: Block;
  dramBlocks: number;
  nvmeBlocks: number;
  sampled: boolean;
  /** Probes made; for the bench and the histograms. */
  probes: number;
}

export interface ReserveResult {
  wanted: number;
  pending: number;
  parentAbsent: boolean;
  residentDepth: number;
  /** Deepest block named that is (or will be) there; NO_BLOCK if none. */
  deepest: Block;
}

export interface RecoveredBlock {
  readonly namespace: NamespaceIndex;
  readonly depth: number;
  readonly shard: number;
  readonly slot: Slot;
  readonly generation: number;
  /** Milliseconds. */
  readonly lastAccess: number;
}

/**
 * Keys come as 32-bit words inside a larger array (the inbox): `words[at + i * keyWords …]`.
 * `throws` lists CairnError names.
 */
export interface LedgerApi {
  addNamespace(options: NamespaceOptions): NamespaceIndex;
  /** The index goes to another namespace; recordsIn(index) is 0. */
  replaceNamespace(index: NamespaceIndex, options: NamespaceOptions): void;
  /** Records that name the namespace, whatever their state. */
  recordsIn(index: NamespaceIndex): number;

  /**
   * Gallop + bisection on a chained namespace, linear walk otherwise or while the hole list overflows.
   * Touches nothing.
   */
  lookup(namespace: NamespaceIndex, words: Uint32Array, at: number, count: number): LookupResult;
  /** The oracle: probes every key in order. */
  lookupLinear(
    namespace: NamespaceIndex,
    words: Uint32Array,
    at: number,
    count: number,
  ): LookupResult;
  /** One key to its record, NO_BLOCK if none. */
  find(namespace: NamespaceIndex, words: Uint32Array, at: number): Block;
  isVisible(block: Block): boolean;
  /** Records a use of the chain that ends at `block` (rule 4). */
  touch(block: Block): void;

  /** Leases (rule 7). instance and lease are numbers chosen by the caller; leases are unique. */
  leaseOpen(lease: number, instance: number, block: Block): void;
  leaseClose(lease: number): void;
  /** The lease will move to `block` (deeper, same chain) once that is visible. */
  leaseFollow(lease: number, block: Block): void;
  leaseBlock(lease: number): Block;

  /**
   * STORE: reserves records and slots for keys of depth startDepth+1…; statuses[i] = RESERVE value;
   * blocks[i] = record (NO_BLOCK if none). parentAt = word offset of the parent key, ignored when
   * startDepth is 0. Each WANTED key has its slot (slotOf) and is RESERVED for `shard`. throws
   * chainMismatch, ledgerFull (nothing taken; records.ts let go what it could before), shardOutOfRange.
   */
  reserve(
    namespace: NamespaceIndex,
    startDepth: number,
    words: Uint32Array,
    parentAt: number,
    at: number,
    count: number,
    shard: number,
    statuses: Uint8Array,
    blocks: Uint32Array,
  ): ReserveResult;
  slotOf(block: Block, tier: TierIndex, shard: number): Slot;
  /** Reserved shard's copy starts (state RESERVED → FILLING). */
  fillStart(block: Block, tier: TierIndex, shard: number): void;
  /**
   * The copy ended. ok: landed (and visible if rule 1 says so); else the block and its pending descendants
   * are aborted.
   */
  fillEnd(block: Block, tier: TierIndex, shard: number, ok: boolean): void;
  /** A reserved shard will not be filled (deadline, CANCEL, EOF). */
  fillAbort(block: Block, tier: TierIndex, shard: number): void;
  /** Ask for one settled() call about this block. */
  watch(block: Block): void;

  /**
   * LOAD under a lease: walks up from the lease's block to depth startDepth+count, compares keys, pins the
   * slots it will copy from: blocks[i] (NO_BLOCK = key differs or not readable), tiers[i]. Returns how many
   * were pinned.
   */
  pinRange(
    lease: number,
    startDepth: number,
    words: Uint32Array,
    at: number,
    count: number,
    shard: number,
    blocks: Uint32Array,
    tiers: Uint8Array,
  ): number;
  unpin(block: Block, tier: TierIndex): void;

  /**
   * The payload or header of this copy proved wrong: quarantine, hole if it was the last copy with
   * children.
   */
  corrupt(block: Block, tier: TierIndex): void;
  /** One slice of the orphan scan (rule 8); true while there is more to do. */
  sweep(records: number): boolean;
  /**
   * Evicts to the low watermark if above the high one; returns copies dropped. keepUnbacked: ends at the
   * first block that has no copy in the other tier.
   */
  evictToWatermark(tier: TierIndex, keepUnbacked?: boolean): number;

  /**
   * Start-up: offer scanned headers in order of depth (keys at `at`, parent at `parentAt`), then finish.
   * False = dropped (its slot is freed).
   */
  recover(
    block: RecoveredBlock,
    tier: TierIndex,
    words: Uint32Array,
    at: number,
    parentAt: number,
  ): boolean;
  /** now: milliseconds of Unix time; later times of last access are taken for now. Left out: all are believed. */
  recoverEnd(now?: number): void;

  /**
   * Devices of a tier (devices.ts). closeDevice: no new slots, reads go on (read-only); openDevice ends that.
   * loseDevice: fenced; every complete copy with a shard there is lost, its slabs give out no slots until
   * they are adopted, and freed slots there are not announced to the backing store. Copies in flight into
   * and out of it end by fillEnd / copyEnd as ever. Returns copies lost.
   */
  closeDevice(tier: TierIndex, device: number): void;
  openDevice(tier: TierIndex, device: number): void;
  loseDevice(tier: TierIndex, device: number): number;

  /**
   * Live adoption (adopt.ts): begin every slab, offer what stands in them (ordered by depth, then generation
   * descending), end every slab; other calls may come between. The slab serves no class: it is new, or was
   * lost. payloadBytes 0: it is a free slab at once. False: slots of it are still in use; try later.
   */
  adoptBegin(tier: TierIndex, slab: number, payloadBytes: number): boolean;
  /**
   * False: dropped (its slot is freed and invalidated): complete in this tier already, parent without a
   * record, no record or room left, or the slab is not being adopted (any more).
   */
  adopt(
    block: RecoveredBlock,
    tier: TierIndex,
    words: Uint32Array,
    at: number,
    parentAt: number,
  ): boolean;
  /** Builds the slab's free list and opens it. */
  adoptEnd(tier: TierIndex, slab: number): void;

  /**
   * Up to `max` blocks to copy from `from` to `to` next: of the copies that leave first, what has no copy in
   * `to`, missing ancestors first. Returns how many; the answer changes only when copies begin or are
   * refused (demotionRefused: not offered again for some logical time, or until it is used).
   */
  demotable(from: TierIndex, to: TierIndex, into: Uint32Array, max: number): number;
  /**
   * Whether a copy in `to` would stay longer than what leaves for it: there is room below the high watermark where it
   * would go, or the oldest that may leave there is older. Without this a lower tier that is smaller than the upper
   * one would be written for ever: each copy makes another one missing. While the tier is `growing` nothing leaves for
   * a copy: room comes by itself.
   */
  worthRoom(block: Block, from: TierIndex, to: TierIndex, growing?: boolean): boolean;
  demotionRefused(block: Block): void;
  /** Of the `depth` copies that would leave `from` first, how many have no complete copy in `to`. */
  unbacked(from: TierIndex, to: TierIndex, depth: number): number;

  /**
   * Live growth and shrinking. vacate returns moves {from slot, to slot, block} for the caller to copy,
   * then moved() each.
   */
  growTier(tier: TierIndex, slabs: number): void;

  /** Re-derives every count from scratch; throws AssertionFailure with the first difference. */
  audit(): void;
}
