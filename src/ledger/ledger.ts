/**
 * The ledger: which blocks this node holds, where, and who may read or drop them (DESIGN §5). This class is
 * its door; the rules stand beside it: states.ts (one copy's life), tree.ts (visibility along chains),
 * fill.ts (STORE and copies), evict.ts and ages.ts (who leaves), lookup.ts, leases.ts, holes.ts (loss),
 * recover.ts (start-up), resize.ts, audit.ts.
 *
 * Single-threaded and pure: no clock, no randomness, no I/O. All memory that grows with blocks is laid out
 * at the start (slot owners when a slab is assigned). Other threads read records, log and tenant accounts
 * through view.ts.
 */
import { assert } from "../assert.ts";
import type { HintRequest, HintVerdict } from "../policy/hints.ts";
import type { EvictionPolicy } from "../policy/policy.ts";
import { Adoption } from "./adopt.ts";
import { mayLeave, touch } from "./ages.ts";
import { audit } from "./audit.ts";
import { Core, type Namespace } from "./core.ts";
import * as demote from "./demote.ts";
import { loseDevice } from "./devices.ts";
import { evict, evictToWatermark } from "./evict.ts";
import * as fill from "./fill.ts";
import * as holes from "./holes.ts";
import { LeaseTable } from "./leases.ts";
import { lookup, lookupLinear, pinRange } from "./lookup.ts";
import { addNamespace, openClass, replaceNamespace } from "./namespaces.ts";
import { Recovery } from "./recover.ts";
import * as resize from "./resize.ts";
import * as R from "./table.ts";
import { giveUp } from "./tree.ts";
import {
  NO_BLOCK,
  type Block,
  type LedgerApi,
  type LedgerOptions,
  type LookupResult,
  type NamespaceIndex,
  type NamespaceOptions,
  type RecoveredBlock,
  type ReserveResult,
  type Slot,
  type State,
  type TierIndex,
} from "./types.ts";
import { shareLedger, type SharedLedger } from "./view.ts";

export class Ledger implements LedgerApi {
  /** For the modules of this folder, the auditor and the tests; others use the methods. */
  readonly core: Core;
  readonly #lookup: LookupResult = {
    depth: 0,
    block: NO_BLOCK,
    dramBlocks: 0,
    nvmeBlocks: 0,
    sampled: false,
    probes: 0,
  };
  readonly #reserve: ReserveResult = {
    wanted: 0,
    pending: 0,
    parentAbsent: false,
    residentDepth: 0,
    deepest: NO_BLOCK,
  };
  readonly #call: fill.ReserveCall;
  #recovery: Recovery | undefined;
  readonly #adoptions: (Adoption | undefined)[] = [];

  /** hashSeed: any integer; a secret one keeps clients from choosing keys that collide. */
  constructor(options: LedgerOptions, policy: EvictionPolicy, hashSeed = 0) {
    this.core = new Core(options, policy, hashSeed, new LeaseTable());
    this.#call = {
      namespace: NO_NAMESPACE,
      startDepth: 0,
      words: new Uint32Array(0),
      parentAt: 0,
      at: 0,
      count: 0,
      shard: 0,
    };
  }

  /** throws tooManyNamespaces. */
  addNamespace(options: NamespaceOptions): NamespaceIndex {
    return addNamespace(this.core, options);
  }

  /** Gives the index of a namespace that no record names (recordsIn() is 0) to another one. */
  replaceNamespace(index: NamespaceIndex, options: NamespaceOptions): void {
    replaceNamespace(this.core, index, options);
  }

  /** Records of this namespace: blocks with a copy in any state, holes, parents kept for their children. */
  recordsIn(index: NamespaceIndex): number {
    return this.core.table.recordsOf[this.#namespace(index).index]!;
  }

  namespace(index: NamespaceIndex): NamespaceOptions {
    return this.#namespace(index);
  }

  get namespaceCount(): number {
    return this.core.namespaces.length;
  }

  lookup(namespace: NamespaceIndex, words: Uint32Array, at: number, count: number): LookupResult {
    lookup(this.core, this.#namespace(namespace), words, at, count, this.#lookup);
    return this.#lookup;
  }

  lookupLinear(
    namespace: NamespaceIndex,
    words: Uint32Array,
    at: number,
    count: number,
  ): LookupResult {
    lookupLinear(this.core, this.#namespace(namespace), words, at, count, this.#lookup);
    return this.#lookup;
  }

  find(namespace: NamespaceIndex, words: Uint32Array, at: number): Block {
    const { index, keyWords } = this.#namespace(namespace);
    return this.core.table.find(index, keyWords, words, at);
  }

  isVisible(block: Block): boolean {
    return this.core.isVisible(block);
  }

  stateOf(block: Block, tier: TierIndex): State {
    return this.core.stateOf(block, tier);
  }

  depthOf(block: Block): number {
    return this.core.depthOf(block);
  }

  parentOf(block: Block): Block {
    return this.core.parentOf(block);
  }

  namespaceOf(block: Block): NamespaceIndex {
    return this.core.namespaceOf(block).index;
  }

  /**
   * Logical time of the copy's last use (rule 4: exact for leaves only); what a clean stop writes into
   * headers.
   */
  ageOf(block: Block, tier: TierIndex): number {
    return this.core.records[block * R.RECORD_WORDS + R.tierWord(tier) + R.AGE]!;
  }

  touch(block: Block): void {
    touch(this.core, block);
  }

  /** Every found key of an unchained namespace counts as used. */
  touchKeys(namespace: NamespaceIndex, words: Uint32Array, at: number, count: number): void {
    const { keyWords } = this.#namespace(namespace);
    for (let i = 0; i < count; i += 1) {
      const block = this.find(namespace, words, at + i * keyWords);
      if (block !== NO_BLOCK) touch(this.core, block);
    }
  }

  /** Advice about the chain that ends at `block`; see policy/hints.ts. */
  hint(block: Block, request: HintRequest): HintVerdict {
    const verdict = this.core.policy.hint(request);
    if (verdict.effect === "touch") touch(this.core, block);
    else if (verdict.effect === "expire") {
      for (const tier of this.core.tiers) {
        if (tier === undefined || !this.core.inUse(block)) continue;
        if (mayLeave(this.core, block, tier.index)) evict(this.core, block, tier);
      }
      this.core.flush();
    }
    return verdict;
  }

  leaseOpen(lease: number, instance: number, block: Block): void {
    this.core.leases.open(this.core, lease, instance, block);
  }

  /** Unchained namespaces: the lease holds each visible key; returns how many. */
  leaseHold(
    lease: number,
    namespace: NamespaceIndex,
    words: Uint32Array,
    at: number,
    count: number,
  ): number {
    const { keyWords } = this.#namespace(namespace);
    let held = 0;
    for (let i = 0; i < count; i += 1) {
      const block = this.find(namespace, words, at + i * keyWords);
      if (block === NO_BLOCK || !this.core.isVisible(block)) continue;
      if (this.core.leases.holds(lease, block)) continue;
      this.core.leases.hold(this.core, lease, block);
      held += 1;
    }
    return held;
  }

  leaseClose(lease: number): void {
    this.core.leases.close(this.core, lease);
  }

  leaseFollow(lease: number, block: Block): void {
    this.core.leases.follow(this.core, lease, block);
  }

  leaseBlock(lease: number): Block {
    return this.core.leases.blockOf(lease);
  }

  get leaseCount(): number {
    return this.core.leases.size;
  }

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
  ): ReserveResult {
    const call = this.#call;
    call.namespace = this.#namespace(namespace);
    call.startDepth = startDepth;
    call.words = words;
    call.parentAt = parentAt;
    call.at = at;
    call.count = count;
    call.shard = shard;
    fill.reserve(this.core, call, statuses, blocks, this.#reserve);
    return this.#reserve;
  }

  slotOf(block: Block, tier: TierIndex, shard: number): Slot {
    return this.core.slotOf(block, tier, shard);
  }

  fillStart(block: Block, tier: TierIndex, shard: number): void {
    fill.fillStart(this.core, block, tier, shard);
  }

  /** fillStart() of the blocks whose status is WANTED. */
  fillStartAll(
    blocks: Uint32Array,
    statuses: Uint8Array,
    count: number,
    tier: TierIndex,
    shard: number,
  ): void {
    for (let i = 0; i < count; i += 1) {
      if (statuses[i] === 2) fill.fillStart(this.core, blocks[i]!, tier, shard);
    }
  }

  /** A landed block is not shown to the log's readers at once: flush() follows after the last of a batch. */
  fillEnd(block: Block, tier: TierIndex, shard: number, ok: boolean): void {
    fill.fillEnd(this.core, block, tier, shard, ok);
    if (ok) this.core.flushSlots();
    else this.core.flush();
  }

  /** Shows readers of the log what fillEnd() made visible. */
  flush(): void {
    this.core.flush();
  }

  /** fillEnd() of many; failed[i] != 0: that copy failed. One announcement of freed slots. */
  fillEndAll(
    blocks: Uint32Array,
    failed: Uint8Array,
    count: number,
    tier: TierIndex,
    shard: number,
  ): void {
    for (let i = 0; i < count; i += 1) {
      fill.fillEnd(this.core, blocks[i]!, tier, shard, failed[i] === 0);
    }
    this.core.flush();
  }

  fillAbort(block: Block, tier: TierIndex, shard: number): void {
    fill.fillAbort(this.core, block, tier, shard);
    this.core.flush();
  }

  /** One settled() call follows; at once if the block is visible, or has nothing that could become so. */
  watch(block: Block): void {
    const core = this.core;
    if (core.isVisible(block)) core.options.observer.settled(block, true);
    else {
      core.setFlag(block, R.FLAG_WATCHED);
      if (!core.pending(block) && !core.orphan(block)) giveUp(core, block);
    }
  }

  /** Nobody waits for this block any more. */
  unwatch(block: Block): void {
    this.core.clearFlag(block, R.FLAG_WATCHED);
  }

  pinRange(
    lease: number,
    startDepth: number,
    words: Uint32Array,
    at: number,
    count: number,
    _shard: number,
    blocks: Uint32Array,
    tiers: Uint8Array,
  ): number {
    return pinRange(this.core, lease, startDepth, words, at, count, blocks, tiers, fill.pin);
  }

  pin(block: Block, tier: TierIndex): void {
    fill.pin(this.core, block, tier);
  }

  unpin(block: Block, tier: TierIndex): void {
    fill.unpin(this.core, block, tier);
    this.core.flush();
  }

  /** unpin() of every entry that is a block. */
  unpinAll(blocks: Uint32Array, tiers: Uint8Array, count: number): void {
    for (let i = 0; i < count; i += 1) {
      if (blocks[i] !== NO_BLOCK) fill.unpin(this.core, blocks[i]!, tiers[i]!);
    }
    this.core.flush();
  }

  /**
   * Demotion or promotion of one block (all shards): false = not now (see fill.ts); true: copyEnd() must
   * follow.
   */
  copyBegin(block: Block, from: TierIndex, to: TierIndex): boolean {
    return fill.copyBegin(this.core, block, from, to);
  }

  copyEnd(block: Block, from: TierIndex, to: TierIndex, ok: boolean): void {
    fill.copyEnd(this.core, block, from, to, ok);
  }

  corrupt(block: Block, tier: TierIndex): void {
    holes.corrupt(this.core, block, this.core.tier(tier));
  }

  /**
   * A tier was fenced: all its complete copies are lost. Copy jobs into it end with fillEnd or copyEnd as
   * ever.
   */
  loseTier(tier: TierIndex): number {
    return holes.loseCopies(this.core, this.core.tier(tier), () => true);
  }

  /** See LedgerApi. */
  loseDevice(tier: TierIndex, device: number): number {
    return loseDevice(this.core, this.core.tier(tier), device);
  }

  closeDevice(tier: TierIndex, device: number): void {
    const { core } = this;
    core.tier(tier).slots.setDeviceClosed(device, true);
    core.tier(tier).strays = true;
  }

  openDevice(tier: TierIndex, device: number): void {
    this.core.tier(tier).slots.setDeviceClosed(device, false);
  }

  sweep(records: number): boolean {
    return holes.sweep(this.core, records);
  }

  get holeCount(): number {
    return this.core.holes.length;
  }

  evictToWatermark(tier: TierIndex, keepUnbacked = false): number {
    return evictToWatermark(this.core, this.core.tier(tier), keepUnbacked);
  }

  /** Tables that `blocks` recovered blocks will write, and how many words of each: the host may get memory ready. */
  tablesFor(blocks: number): readonly (readonly [Uint32Array, number])[] {
    const { records, hash, blocksMax } = this.core.table;
    const count = Math.min(blocks, blocksMax);
    return [
      [records, count * R.RECORD_WORDS],
      [hash, hash.length],
    ];
  }

  /** Start-up: the backing store's slab already serves this payload. Before the first recover(). */
  recoverSlab(tier: TierIndex, slab: number, payloadBytes: number): void {
    this.#recovery ??= new Recovery(this.core);
    openClass(this.core.tier(tier), payloadBytes, () => -1);
    this.core.tier(tier).slots.adopt(slab, payloadBytes);
  }

  recover(
    block: RecoveredBlock,
    tier: TierIndex,
    words: Uint32Array,
    at: number,
    parentAt: number,
  ): boolean {
    this.#recovery ??= new Recovery(this.core);
    return this.#recovery.offer(block, this.core.tier(tier), words, at, parentAt);
  }

  /** recover() is asked next for `count` blocks, at most WARM_MAX, whose keys stand `stride` words apart from `at` on. */
  recoverSoon(
    namespace: NamespaceIndex,
    words: Uint32Array,
    at: number,
    stride: number,
    count: number,
  ): void {
    const { index, keyWords } = this.#namespace(namespace);
    this.core.table.warm(index, keyWords, words, at, stride, count);
  }

  recoverEnd(now = Number.POSITIVE_INFINITY): void {
    this.#recovery?.end(now);
    this.#recovery = undefined;
  }

  adoptBegin(tier: TierIndex, slab: number, payloadBytes: number): boolean {
    if (payloadBytes > 0) openClass(this.core.tier(tier), payloadBytes, () => -1);
    const adoption = (this.#adoptions[tier] ??= new Adoption(this.core, this.core.tier(tier)));
    return adoption.begin(slab, payloadBytes);
  }

  adopt(
    block: RecoveredBlock,
    tier: TierIndex,
    words: Uint32Array,
    at: number,
    parentAt: number,
  ): boolean {
    return this.#adoptions[tier]?.offer(block, words, at, parentAt) ?? false;
  }

  adoptEnd(tier: TierIndex, slab: number): void {
    this.#adoptions[tier]?.end(slab);
  }

  demotable(from: TierIndex, to: TierIndex, into: Uint32Array, max: number): number {
    return demote.demotable(this.core, from, to, into, max);
  }

  worthRoom(block: Block, from: TierIndex, to: TierIndex, growing = false): boolean {
    return demote.worthRoom(this.core, block, from, to, growing);
  }

  demotionRefused(block: Block): void {
    demote.refuse(this.core, block);
  }

  unbacked(from: TierIndex, to: TierIndex, depth: number): number {
    return demote.unbacked(this.core, from, to, depth);
  }

  /** It is `milliseconds` (wall time) now; call it at the start and about once a second (timeline.ts). */
  noteTime(milliseconds: number): void {
    this.core.timeline.note(this.core.tick, milliseconds);
  }

  /** Wall time of a copy's last use, in milliseconds: what headers and indexes carry. */
  lastAccessOf(block: Block, tier: TierIndex): number {
    return Math.floor(this.core.timeline.timeOf(this.ageOf(block, tier)));
  }

  growTier(tier: TierIndex, slabs: number): void {
    this.core.tier(tier).slots.grow(slabs);
  }

  /** See resize.ts; MOVE_WORDS words per move. */
  planMoves(tier: TierIndex, slab: number, moves: Uint32Array, movesMax: number): number {
    return resize.planMoves(this.core, this.core.tier(tier), slab, moves, movesMax);
  }

  moved(tier: TierIndex, block: Block, shard: number, from: Slot, to: Slot, ok: boolean): void {
    resize.moved(this.core, this.core.tier(tier), block, shard, from, to, ok);
  }

  /** Whether the slab serves no class (its slots are all free). */
  slabEmpty(tier: TierIndex, slab: number): boolean {
    return this.core.tier(tier).slots.slabClass(slab) < 0;
  }

  /** Ends a shrink: takes the (empty) last slab away. */
  removeLastSlab(tier: TierIndex): void {
    this.core.tier(tier).slots.removeLastSlab();
  }

  audit(): void {
    audit(this.core);
  }

  /** What a view on another thread needs. */
  share(): SharedLedger {
    return shareLedger(this.core);
  }

  /** Bytes of everything that grows with blocks: records, index, slot owners, age indexes, shard tables. */
  get bytes(): number {
    let bytes = this.core.table.bytes;
    for (const tier of this.core.tiers) bytes += tier?.bytes ?? 0;
    return bytes;
  }

  #namespace(index: NamespaceIndex): Namespace {
    const namespace = this.core.namespaces[index];
    assert(namespace !== undefined, "no such namespace: the caller must have checked");
    return namespace;
  }
}

const NO_NAMESPACE: Namespace = {
  index: 0,
  keyWords: 2,
  shards: 1,
  chained: true,
  payloadBytes: 1,
  tenant: 0,
  classOfTier: [],
  classBytes: 64,
};
