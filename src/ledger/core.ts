/**
 * The ledger's state, and the few operations that every rule is built from: read a copy's state, move it
 * through the state table with all counts following, hang a record into its parent's waiting list, give
 * back slots and records. The rules themselves stand in tree.ts, fill.ts, evict.ts, leases.ts, holes.ts and
 * recover.ts as functions over Core.
 */
import { assert } from "../assert.ts";
import type { ClassFeatures, EvictionPolicy } from "../policy/policy.ts";
import type { AgeHeap } from "./heap.ts";
import type { LeaseTable } from "./leases.ts";
import { VisibilityLog } from "./log.ts";
import { ShardTable } from "./shards.ts";
import { FILL, SlotTable } from "./slots.ts";
import { TenantAccounts } from "./tenants.ts";
import { AGES_RECOVERED, Timeline } from "./timeline.ts";
import * as R from "./table.ts";
import { STATE_COUNT } from "./states.ts";
import {
  NO_BLOCK,
  NO_SLOT,
  type Block,
  type LedgerOptions,
  type NamespaceIndex,
  type NamespaceOptions,
  type Slot,
  type SlabTierOptions,
  type State,
  type TierIndex,
} from "./types.ts";

const TIERS_MAX = 2;
/** Ages are halved when the tick comes near the end of 32 bits (ages.ts). */
export const TICK_MAX = 0xffff_fff0;

export class Tier {
  readonly index: TierIndex;
  readonly options: SlabTierOptions;
  readonly slots: SlotTable;
  readonly shardTable = new ShardTable();
  /** Age indexes by size class and device: copies that may leave, and orphans, which leave first. */
  readonly heaps: AgeHeap[][] = [];
  readonly orphans: AgeHeap[][] = [];
  /** Copies with any state but absent. */
  blocks = 0;
  readonly stateBlocks = new Float64Array(new SharedArrayBuffer(STATE_COUNT * 8));
  /** Planned moves between slots that have not been reported yet: each holds a slot besides its block's. */
  movesInFlight = 0;
  evictions = 0;
  /** Evictions that took an orphan. */
  evictedOrphans = 0;
  /** Evictions that took the last copy of a block although a lower tier exists. */
  evictedUnbacked = 0;
  /** Age indexes of closed devices may name blocks that stand on open ones (devices.ts). */
  strays = false;
  /** Where evictBelow() goes on (evict.ts). */
  belowCursor = 0;

  constructor(index: TierIndex, options: SlabTierOptions) {
    this.index = index;
    this.options = options;
    this.slots = new SlotTable(options);
  }

  get bytes(): number {
    let bytes = this.slots.bytes + this.shardTable.bytes;
    for (const heaps of [this.heaps, this.orphans]) {
      for (const devices of heaps) for (const heap of devices) bytes += heap.bytes;
    }
    return bytes;
  }
}

export interface Namespace extends NamespaceOptions {
  readonly index: NamespaceIndex;
  /** Size class in each tier, by tier index. */
  readonly classOfTier: readonly number[];
  readonly classBytes: number;
}

export class Core {
  readonly options: LedgerOptions;
  readonly policy: EvictionPolicy;
  readonly table: R.Table;
  /** table.records, once more, for the hot paths. */
  readonly records: Uint32Array;
  readonly tiers: readonly (Tier | undefined)[];
  readonly namespaces: Namespace[] = [];
  readonly tenants: TenantAccounts;
  readonly log: VisibilityLog;
  readonly leases: LeaseTable;
  /** Blocks with FLAG_HOLE (rule 8); those beyond holesMax make look-ups walk. */
  holes: Block[] = [];
  sweepCursor = 0;
  /** Records the scan has passed since it last changed something. */
  sweepClean = 0;
  /** Ever since the start, for the metrics: pending blocks aborted, blocks turned orphan, holes made. */
  aborted = 0;
  orphaned = 0;
  holesMade = 0;
  /** Blocks that were let go because records ran out (records.ts). */
  recordEvictions = 0;
  /** Logical time; what comes before belongs to blocks of an earlier life (timeline.ts). */
  tick = AGES_RECOVERED + 1;
  readonly timeline = new Timeline();
  /** True between the first recover() and recoverEnd(): age indexes are built at the end. */
  recovering = false;
  /** Work lists that are reused, so that cascades neither recurse nor allocate. */
  readonly stack: Block[] = [];
  readonly descendants: Block[] = [];
  readonly features: ClassFeatures = {
    hits: 0,
    gap: 0,
    depth: 0,
    tenant: 0,
    namespace: 0,
    policyClass: 0,
  };

  constructor(options: LedgerOptions, policy: EvictionPolicy, seed: number, leases: LeaseTable) {
    assert(options.tiers.length <= TIERS_MAX, "the record holds two tiers");
    assert(options.namespacesMax <= R.NAMESPACE_MASK + 1, "namespace indexes have 16 bits");
    this.options = options;
    this.policy = policy;
    this.table = new R.Table(options.blocksMax, options.namespacesMax, seed);
    this.records = this.table.records;
    this.tiers = options.tiers.map((tier, index) =>
      tier === undefined ? undefined : new Tier(index, tier),
    );
    this.tenants = new TenantAccounts(options.tenantsMax, TIERS_MAX);
    this.log = new VisibilityLog(options.logEntries);
    this.leases = leases;
  }

  tier(index: TierIndex): Tier {
    const tier = this.tiers[index];
    assert(tier !== undefined, "the tier is absent");
    return tier;
  }

  namespaceOf(block: Block): Namespace {
    const index = this.records[block * R.RECORD_WORDS + R.NAMESPACE]! & R.NAMESPACE_MASK;
    return this.namespaces[index]!;
  }

  inUse(block: Block): boolean {
    return (this.records[block * R.RECORD_WORDS + R.NAMESPACE]! & R.IN_USE) !== 0;
  }

  stateOf(block: Block, tier: TierIndex): State {
    const word = block * R.RECORD_WORDS + R.TIER_FIRST + tier * R.TIER_WORDS + R.STATUS;
    return (this.records[word]! & R.STATE_MASK) as State;
  }

  pinsOf(block: Block, tier: TierIndex): number {
    const word = block * R.RECORD_WORDS + R.TIER_FIRST + tier * R.TIER_WORDS + R.STATUS;
    return this.records[word]! >>> 8;
  }

  parentOf(block: Block): Block {
    return this.records[block * R.RECORD_WORDS + R.PARENT]!;
  }

  depthOf(block: Block): number {
    return this.records[block * R.RECORD_WORDS + R.DEPTH]! & R.DEPTH_MASK;
  }

  isVisible(block: Block): boolean {
    return (this.records[block * R.RECORD_WORDS + R.NAMESPACE]! & R.FLAG_VISIBLE) !== 0;
  }

  hasFlag(block: Block, flag: number): boolean {
    return (this.records[block * R.RECORD_WORDS + R.NAMESPACE]! & flag) !== 0;
  }

  setFlag(block: Block, flag: number): void {
    const word = block * R.RECORD_WORDS + R.NAMESPACE;
    this.records[word] = this.records[word]! | flag;
  }

  clearFlag(block: Block, flag: number): void {
    const word = block * R.RECORD_WORDS + R.NAMESPACE;
    this.records[word] = this.records[word]! & ~flag;
  }

  leasesOf(block: Block): number {
    return this.records[block * R.RECORD_WORDS + R.LEASES]! & R.LEASES_MASK;
  }

  addLeases(block: Block, count: number): void {
    const word = block * R.RECORD_WORDS + R.LEASES;
    const leases = (this.records[word]! & R.LEASES_MASK) + count;
    assert(leases >= 0 && leases <= R.LEASES_MASK, "lease count out of range");
    this.records[word] = this.records[word]! + count;
  }

  /** Some tier holds all shards: landed, visible or orphan. `not`: a tier that does not count. */
  complete(block: Block, not: TierIndex): boolean {
    for (let tier = 0; tier < TIERS_MAX; tier += 1) {
      const state = this.stateOf(block, tier);
      if (tier !== not && state >= 3 && state <= 5) return true;
    }
    return false;
  }

  /** Reserved, filling or landed in some tier. */
  pending(block: Block): boolean {
    const a = this.stateOf(block, 0);
    const b = this.stateOf(block, 1);
    return (a >= 1 && a <= 3) || (b >= 1 && b <= 3);
  }

  landed(block: Block): boolean {
    return this.stateOf(block, 0) === 3 || this.stateOf(block, 1) === 3;
  }

  filling(block: Block): boolean {
    const a = this.stateOf(block, 0);
    const b = this.stateOf(block, 1);
    return a === 1 || a === 2 || b === 1 || b === 2;
  }

  orphan(block: Block): boolean {
    return this.stateOf(block, 0) === 5 || this.stateOf(block, 1) === 5;
  }

  absent(block: Block): boolean {
    return this.stateOf(block, 0) === 0 && this.stateOf(block, 1) === 0;
  }

  /** Ties the record into its parent's waiting list; nothing for roots. */
  linkWaiting(block: Block): void {
    const records = this.records;
    const base = block * R.RECORD_WORDS;
    const parent = records[base + R.PARENT]!;
    if (parent === NO_BLOCK || this.hasFlag(block, R.FLAG_WAITING)) return;
    const head = parent * R.RECORD_WORDS + R.WAITING;
    const first = records[head]!;
    records[base + R.NEXT] = first;
    records[base + R.PREVIOUS] = NO_BLOCK;
    if (first !== NO_BLOCK) records[first * R.RECORD_WORDS + R.PREVIOUS] = block;
    records[head] = block;
    this.setFlag(block, R.FLAG_WAITING);
  }

  unlinkWaiting(block: Block): void {
    if (!this.hasFlag(block, R.FLAG_WAITING)) return;
    const records = this.records;
    const base = block * R.RECORD_WORDS;
    const next = records[base + R.NEXT]!;
    const previous = records[base + R.PREVIOUS]!;
    if (previous !== NO_BLOCK) records[previous * R.RECORD_WORDS + R.NEXT] = next;
    else records[records[base + R.PARENT]! * R.RECORD_WORDS + R.WAITING] = next;
    if (next !== NO_BLOCK) records[next * R.RECORD_WORDS + R.PREVIOUS] = previous;
    this.clearFlag(block, R.FLAG_WAITING);
  }

  /** Slot of one shard, NO_SLOT if it has none. */
  slotOf(block: Block, tier: TierIndex, shard: number): Slot {
    if (this.stateOf(block, tier) === 0) return NO_SLOT;
    const word = this.records[block * R.RECORD_WORDS + R.tierWord(tier) + R.SLOT]!;
    const namespace = this.namespaceOf(block);
    if (shard < 0 || shard >= namespace.shards) return NO_SLOT;
    return namespace.shards === 1 ? word : this.tier(tier).shardTable.get(word, shard);
  }

  /** Device in whose age index a complete copy stands: that of its first shard. */
  deviceOf(block: Block, tier: Tier): number {
    if (tier.slots.devices === 1) return 0;
    const slot = this.slotOf(block, tier.index, 0);
    assert(slot !== NO_SLOT, "a complete copy has a slot for each shard");
    return tier.slots.deviceOf(slot);
  }

  /** Prepares the slot word of a copy that is about to be reserved. */
  openSlots(block: Block, tier: Tier): void {
    const word = block * R.RECORD_WORDS + R.tierWord(tier.index) + R.SLOT;
    const shards = this.namespaceOf(block).shards;
    this.records[word] = shards === 1 ? NO_SLOT : tier.shardTable.allocate(shards);
  }

  setSlot(block: Block, tier: Tier, shard: number, slot: Slot): void {
    const word = block * R.RECORD_WORDS + R.tierWord(tier.index) + R.SLOT;
    const namespace = this.namespaceOf(block);
    if (namespace.shards === 1) this.records[word] = slot;
    else tier.shardTable.set(this.records[word]!, shard, slot);
    if (slot !== NO_SLOT) this.tenants.addBytes(namespace.tenant, tier.index, namespace.classBytes);
  }

  /** Frees one shard's slot, if it has one. */
  freeSlot(block: Block, tier: Tier, shard: number): void {
    const word = block * R.RECORD_WORDS + R.tierWord(tier.index) + R.SLOT;
    const namespace = this.namespaceOf(block);
    const single = namespace.shards === 1;
    const slot = single ? this.records[word]! : tier.shardTable.get(this.records[word]!, shard);
    if (slot === NO_SLOT) return;
    const { devices } = tier.slots;
    if (devices > 1 && tier.slots.isDeviceClosed(tier.slots.deviceOf(slot))) tier.strays = true;
    tier.slots.free(slot, tier.slots.fillOf(slot) !== FILL.RESERVED);
    if (single) this.records[word] = NO_SLOT;
    else tier.shardTable.set(this.records[word]!, shard, NO_SLOT);
    this.tenants.addBytes(namespace.tenant, tier.index, -namespace.classBytes);
  }

  /** Frees all slots of a copy that is going, and its entry in the shard table. */
  freeSlots(block: Block, tier: Tier): void {
    const shards = this.namespaceOf(block).shards;
    for (let shard = 0; shard < shards; shard += 1) this.freeSlot(block, tier, shard);
    if (shards === 1) return;
    const word = block * R.RECORD_WORDS + R.tierWord(tier.index) + R.SLOT;
    tier.shardTable.release(this.records[word]!, shards);
    this.records[word] = NO_SLOT;
  }

  /** Announces freed slots and log entries; ends every public call that may have made some. */
  flush(): void {
    this.flushSlots();
    this.log.publish();
  }

  flushSlots(): void {
    for (let t = 0; t < this.tiers.length; t += 1) this.tiers[t]?.slots.flush();
  }
}
