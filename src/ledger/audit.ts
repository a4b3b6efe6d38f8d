/**
 * The auditor: re-derives every count, link and index from the records alone and compares. It runs after
 * every test and in the model; it is slow (several passes) and meant for that.
 */
import { assert } from "../assert.ts";
import { ageRank, mayLeave } from "./ages.ts";
import { auditSlotTable } from "./audit-slots.ts";
import type { Core, Tier } from "./core.ts";
import { FILL } from "./slots.ts";
import { isLive, STATE_COUNT } from "./states.ts";
import * as R from "./table.ts";
import { NO_BLOCK, NO_SLOT, STATE, type Block } from "./types.ts";

/** Throws AssertionFailure with the first difference. */
export function audit(core: Core): void {
  const blocks: Block[] = [];
  for (let block = 0; block < core.table.touched; block += 1) {
    if (core.inUse(block)) blocks.push(block);
  }
  assert(blocks.length === core.table.used, "audit: records in use differ from the count");
  auditLinks(core, blocks);
  auditCounts(core, blocks);
  for (const block of blocks) auditFlags(core, block);
  for (const block of blocks) auditVisibility(core, block);
  auditLeases(core, blocks);
  for (const tier of core.tiers) if (tier !== undefined) auditTier(core, tier, blocks);
  auditTenants(core, blocks);
  auditNamespaces(core, blocks);
  auditIndexes(core);
}

/** Index, parents, depths, waiting lists. */
function auditLinks(core: Core, blocks: readonly Block[]): void {
  const waiting = new Map<Block, number>();
  for (const block of blocks) {
    const base = block * R.RECORD_WORDS;
    const { index, keyWords, chained } = core.namespaceOf(block);
    const found = core.table.find(index, keyWords, core.records, base);
    assert(found === block, "audit: the index does not find a record by its key");
    const parent = core.parentOf(block);
    assert(parent === NO_BLOCK || chained, "audit: a block of an unchained namespace has a parent");
    if (parent === NO_BLOCK) assert(core.depthOf(block) === 1, "audit: a root has another depth");
    else {
      assert(core.inUse(parent), "audit: a parent's record is free");
      assert(core.depthOf(block) === core.depthOf(parent) + 1, "audit: depth is not parent + 1");
      assert(core.namespaceOf(parent).index === index, "audit: parent of another namespace");
      const listed = core.hasFlag(block, R.FLAG_WAITING);
      assert(listed === !core.isVisible(block), "audit: waiting list and visibility disagree");
      if (listed) waiting.set(parent, (waiting.get(parent) ?? 0) + 1);
    }
  }
  for (const block of blocks) {
    let length = 0;
    let previous = NO_BLOCK;
    let child = core.records[block * R.RECORD_WORDS + R.WAITING]!;
    while (child !== NO_BLOCK) {
      const base = child * R.RECORD_WORDS;
      assert(core.inUse(child) && core.parentOf(child) === block, "audit: a stranger waits here");
      assert(core.records[base + R.PREVIOUS] === previous, "audit: a waiting list is torn");
      previous = child;
      child = core.records[base + R.NEXT]!;
      length += 1;
      assert(length <= blocks.length, "audit: a waiting list is circular");
    }
    assert(length === (waiting.get(block) ?? 0), "audit: a child is missing in the waiting list");
  }
}

/** Children live, and children in each tier. */
function auditCounts(core: Core, blocks: readonly Block[]): void {
  const live = new Map<Block, number>();
  const inTier = [new Map<Block, number>(), new Map<Block, number>()];
  for (const block of blocks) {
    const parent = core.parentOf(block);
    if (parent === NO_BLOCK) continue;
    let any = false;
    for (let tier = 0; tier < 2; tier += 1) {
      if (!isLive(core.stateOf(block, tier))) continue;
      any = true;
      inTier[tier]!.set(parent, (inTier[tier]!.get(parent) ?? 0) + 1);
    }
    if (any) live.set(parent, (live.get(parent) ?? 0) + 1);
  }
  for (const block of blocks) {
    const base = block * R.RECORD_WORDS;
    const alive = live.get(block) ?? 0;
    assert(core.records[base + R.LIVE] === alive, "audit: live children differ from the count");
    for (let tier = 0; tier < 2; tier += 1) {
      const count = core.records[base + R.tierWord(tier) + R.CHILDREN]!;
      assert(count === (inTier[tier]!.get(block) ?? 0), "audit: children in a tier differ");
    }
  }
}

function auditFlags(core: Core, block: Block): void {
  let visible = false;
  for (let tier = 0; tier < 2; tier += 1) {
    const here = core.stateOf(block, tier) === STATE.VISIBLE;
    assert(core.hasFlag(block, R.FLAG_TIER << tier) === here, "audit: a tier's visible flag");
    visible ||= here;
  }
  assert(core.isVisible(block) === visible, "audit: the visible flag");
  const hole = core.hasFlag(block, R.FLAG_HOLE);
  assert(hole === core.holes.includes(block), "audit: hole flag and hole list disagree");
  const base = block * R.RECORD_WORDS;
  const children = core.records[base + R.LIVE]! > 0 || core.records[base + R.WAITING] !== NO_BLOCK;
  assert(!core.absent(block) || children || hole, "audit: a dead record was kept");
}

/** Rule 1 with rule 8: visible under visible; nothing waits for ever; no orphan under a visible parent. */
function auditVisibility(core: Core, block: Block): void {
  const parent = core.parentOf(block);
  const above = parent === NO_BLOCK || core.isVisible(parent);
  if (core.isVisible(block)) {
    assert(
      above || underHole(core, parent),
      "audit: a block is visible under a parent that is not",
    );
    for (let tier = 0; tier < 2; tier += 1) {
      const state = core.stateOf(block, tier);
      const hidden = state === STATE.LANDED || state === STATE.ORPHAN;
      assert(!hidden, "audit: a visible block has a complete copy that is not");
    }
  } else if (above && core.complete(block, -1)) {
    assert(
      core.hasFlag(block, R.FLAG_HOLE),
      "audit: a complete block under a visible parent is hidden",
    );
  }
  if (!core.landed(block) || core.isVisible(block)) return;
  const waits = core.hasFlag(block, R.FLAG_HOLE) || (parent !== NO_BLOCK && core.pending(parent));
  assert(waits || core.holes.length > 0, "audit: a landed block waits for ever");
}

function underHole(core: Core, block: Block): boolean {
  for (let a = block; a !== NO_BLOCK; a = core.parentOf(a)) {
    if (core.hasFlag(a, R.FLAG_HOLE)) return true;
  }
  return false;
}

function auditLeases(core: Core, blocks: readonly Block[]): void {
  const counts = core.leases.countByBlock();
  const targets = core.leases.targets();
  for (const block of blocks) {
    const leases = counts.get(block) ?? 0;
    assert(core.leasesOf(block) === leases, "audit: leases on a block differ from the count");
    const followed = core.hasFlag(block, R.FLAG_FOLLOWED);
    assert(followed === targets.has(block), "audit: the followed flag");
    for (let a = block; leases > 0 && a !== NO_BLOCK; a = core.parentOf(a)) {
      assert(core.isVisible(a), "audit: a leased prefix is not readable");
    }
  }
  for (const block of counts.keys()) assert(core.inUse(block), "audit: a lease on a free record");
}

/** Slots, states and the cap of one tier. */
function auditTier(core: Core, tier: Tier, blocks: readonly Block[]): void {
  const t = tier.index;
  const states: number[] = Array.from({ length: STATE_COUNT }, () => 0);
  let slots = 0;
  for (const block of blocks) {
    const state = core.stateOf(block, t);
    states[state] = states[state]! + 1;
    if (state !== STATE.ABSENT) slots += auditSlots(core, tier, block, state);
    else assert(core.pinsOf(block, t) === 0, "audit: pins on an absent copy");
  }
  states[STATE.ABSENT] = 0;
  for (let state = 0; state < STATE_COUNT; state += 1) {
    assert(tier.stateBlocks[state] === states[state], "audit: copies by state differ");
  }
  const copies = states.reduce((sum, count) => sum + count, 0);
  assert(tier.blocks === copies, "audit: copies in a tier differ from the count");
  const cap = tier.options.blocksMax;
  assert(cap === 0 || copies <= cap, "audit: a tier holds more copies than its cap");
  const expected = tier.slots.slotsUsed - tier.movesInFlight;
  assert(slots === expected, "audit: slots held by records differ from slots used");
  auditSlotTable(tier.slots);
}

/** Slots of one copy; returns how many it holds. */
function auditSlots(core: Core, tier: Tier, block: Block, state: number): number {
  let held = 0;
  let filling = 0;
  let landed = 0;
  const { shards } = core.namespaceOf(block);
  for (let shard = 0; shard < shards; shard += 1) {
    const slot = core.slotOf(block, tier.index, shard);
    if (slot === NO_SLOT) continue;
    held += 1;
    assert(tier.slots.ownerOf(slot) === block, "audit: a slot has another owner");
    const fill = tier.slots.fillOf(slot);
    assert(fill !== FILL.FREE, "audit: a record names a free slot");
    if (fill === FILL.FILLING) filling += 1;
    if (fill === FILL.LANDED) landed += 1;
  }
  assert(held > 0, "audit: a copy without a slot");
  const complete = state >= STATE.LANDED && state <= STATE.ORPHAN;
  if (complete) assert(landed === shards, "audit: a complete copy lacks a shard");
  if (state === STATE.RESERVED) assert(filling + landed === 0, "audit: reserved, yet filling");
  if (state === STATE.FILLING) assert(filling + landed > 0, "audit: filling without a fill");
  if (state === STATE.FILLING) assert(landed < shards, "audit: all landed, yet filling");
  if (state === STATE.DRAINING) assert(filling === held, "audit: draining keeps an idle slot");
  return held;
}

function auditTenants(core: Core, blocks: readonly Block[]): void {
  for (const tier of core.tiers) {
    if (tier === undefined) continue;
    const copies = new Map<number, number>();
    const bytes = new Map<number, number>();
    for (const block of blocks) {
      if (core.stateOf(block, tier.index) === STATE.ABSENT) continue;
      const { tenant, shards, classBytes } = core.namespaceOf(block);
      copies.set(tenant, (copies.get(tenant) ?? 0) + 1);
      for (let shard = 0; shard < shards; shard += 1) {
        if (core.slotOf(block, tier.index, shard) === NO_SLOT) continue;
        bytes.set(tenant, (bytes.get(tenant) ?? 0) + classBytes);
      }
    }
    for (let tenant = 0; tenant < core.tenants.tenantsMax; tenant += 1) {
      const blocksOf = core.tenants.blocksOf(tenant, tier.index);
      const bytesOf = core.tenants.bytesOf(tenant, tier.index);
      assert(blocksOf === (copies.get(tenant) ?? 0), "audit: a tenant's blocks differ");
      assert(bytesOf === (bytes.get(tenant) ?? 0), "audit: a tenant's bytes differ");
    }
  }
}

/** Records of each namespace, and that its key length and size classes are its own. */
function auditNamespaces(core: Core, blocks: readonly Block[]): void {
  const records = new Uint32Array(core.options.namespacesMax);
  for (const block of blocks) {
    const { index } = core.namespaceOf(block);
    records[index] = records[index]! + 1;
  }
  for (let index = 0; index < records.length; index += 1) {
    const counted = core.table.recordsOf[index];
    assert(counted === records[index], "audit: records of a namespace differ from the count");
  }
  for (const [index, namespace] of core.namespaces.entries()) {
    assert(namespace.index === index, "audit: a namespace stands at another index");
    assert(core.table.keyWords[index] === namespace.keyWords, "audit: another key length");
    for (const tier of core.tiers) {
      if (tier === undefined) continue;
      const entry = tier.slots.classes[namespace.classOfTier[tier.index]!];
      assert(entry?.payloadBytes === namespace.classBytes, "audit: another size class");
    }
  }
}

/**
 * Rule 4: what may leave is indexed once, not younger than it is; bits and entries agree; zombies are
 * counted.
 */
function auditIndexes(core: Core): void {
  const zombies = new Set<Block>();
  for (const tier of core.tiers) {
    if (tier === undefined) continue;
    for (const [heaps, bit, state] of [
      [tier.heaps, R.IN_HEAP, STATE.VISIBLE],
      [tier.orphans, R.IN_ORPHANS, STATE.ORPHAN],
    ] as const) {
      const entries = new Map<Block, number>();
      heaps.forEach((devices, classIndex) => {
        for (const heap of devices)
          for (let i = 0; i < heap.length; i += 1) {
            const block = heap.blockAt(i);
            assert(!entries.has(block), "audit: a block stands in an age index twice");
            entries.set(block, heap.rankAt(i));
            if (i > 0) assert(heap.rankAt((i - 1) >> 2) <= heap.rankAt(i), "audit: heap order");
            if (!core.inUse(block)) zombies.add(block);
            else {
              const own = core.namespaceOf(block).classOfTier[tier.index];
              assert(own === classIndex, "audit: a block in the index of another class");
            }
          }
      });
      for (let block = 0; block < core.table.touched; block += 1) {
        const word = block * R.RECORD_WORDS + R.tierWord(tier.index) + R.STATUS;
        const marked = (core.records[word]! & bit) !== 0;
        assert(marked === entries.has(block), "audit: index bit and index entry disagree");
        if (!core.inUse(block) || core.stateOf(block, tier.index) !== state) continue;
        if (!mayLeave(core, block, tier.index)) continue;
        assert(marked, "audit: a copy that may leave is in no age index");
        const rank = ageRank(core, block, tier.index);
        assert(entries.get(block)! <= rank, "audit: an index entry is younger than its block");
      }
    }
  }
  assert(zombies.size === core.table.zombies, "audit: zombies differ from the count");
}
