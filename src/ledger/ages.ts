/**
 * Logical time and the age indexes: who may leave (rule 2), in which order (rule 4).
 */
import { assert } from "../assert.ts";
import { TICK_MAX, type Core, type Tier } from "./core.ts";
import { AgeHeap } from "./heap.ts";
import * as R from "./table.ts";
import { NO_BLOCK, STATE, type Block, type TierIndex } from "./types.ts";

/** Steps that a touch climbs in search of the deepest copy in a tier where the block itself has none. */
const TOUCH_CLIMB_MAX = 256;

/** Rule 2: may this copy leave its tier now? */
export function mayLeave(core: Core, block: Block, tier: TierIndex): boolean {
  const records = core.records;
  const base = block * R.RECORD_WORDS;
  const status = records[base + R.tierWord(tier) + R.STATUS]!;
  const state = status & R.STATE_MASK;
  if (state !== STATE.VISIBLE && state !== STATE.ORPHAN) return false;
  if (status >= R.PIN_ONE) return false;
  if (state === STATE.VISIBLE && records[base + R.tierWord(tier) + R.CHILDREN]! > 0) return false;
  const other = core.stateOf(block, 1 - tier);
  if (other >= STATE.LANDED && other <= STATE.ORPHAN) return true;
  if (records[base + R.LIVE]! > 0) return false;
  return state === STATE.ORPHAN || core.leasesOf(block) === 0;
}

/** Rank by which the policy orders this copy. */
export function ageRank(core: Core, block: Block, tier: TierIndex): number {
  const base = block * R.RECORD_WORDS;
  const age = core.records[base + R.tierWord(tier) + R.AGE]!;
  return core.policy.rank(age, core.records[base + R.DEPTH]! >>> R.CLASS_SHIFT);
}

/** Puts a copy that may leave into its age index, unless it is there. */
export function offer(core: Core, block: Block, tier: Tier): void {
  if (!mayLeave(core, block, tier.index)) return;
  const word = block * R.RECORD_WORDS + R.tierWord(tier.index) + R.STATUS;
  const status = core.records[word]!;
  const orphan = (status & R.STATE_MASK) === STATE.ORPHAN;
  const bit = orphan ? R.IN_ORPHANS : R.IN_HEAP;
  if ((status & bit) !== 0) return;
  const classIndex = core.namespaceOf(block).classOfTier[tier.index]!;
  const heaps = (orphan ? tier.orphans : tier.heaps)[classIndex]!;
  core.records[word] = status | bit;
  indexOf(heaps, core.deviceOf(block, tier)).push(ageRank(core, block, tier.index), block);
}

/** The age index of a device, made on first use. */
export function indexOf(heaps: AgeHeap[], device: number): AgeHeap {
  while (heaps.length <= device) heaps.push(new AgeHeap());
  return heaps[device]!;
}

/** offer() in every tier. */
export function offerBlock(core: Core, block: Block): void {
  if (core.recovering) return;
  for (let t = 0; t < core.tiers.length; t += 1) {
    const tier = core.tiers[t];
    if (tier !== undefined) offer(core, block, tier);
  }
}

/** The orphan of this class on this device that leaves next; NO_BLOCK if none may. It stays in its index. */
export function oldestOrphan(core: Core, tier: Tier, classIndex: number, device: number): Block {
  return settle(core, tier, tier.orphans[classIndex]!, device, R.IN_ORPHANS);
}

/** The visible copy of this class on this device that leaves next; NO_BLOCK if none may. It stays in its index. */
export function oldestLeaf(core: Core, tier: Tier, classIndex: number, device: number): Block {
  return settle(core, tier, tier.heaps[classIndex]!, device, R.IN_HEAP);
}

/** Drops and sinks entries at the top until it is one that may leave, with its true rank. */
function settle(core: Core, tier: Tier, heaps: AgeHeap[], device: number, bit: number): Block {
  const wanted = bit === R.IN_ORPHANS ? STATE.ORPHAN : STATE.VISIBLE;
  const heap = heaps[device];
  while (heap !== undefined && heap.length > 0) {
    const block = heap.blockAt(0);
    const fits =
      core.inUse(block) &&
      core.stateOf(block, tier.index) === wanted &&
      mayLeave(core, block, tier.index);
    if (!fits) {
      heap.pop();
      dropBit(core, block, tier.index, bit);
      continue;
    }
    const home = core.deviceOf(block, tier);
    if (home !== device) {
      // It left and came back on another device while its entry stayed here.
      const rank = heap.rankAt(0);
      heap.pop();
      indexOf(heaps, home).push(rank, block);
      continue;
    }
    const rank = ageRank(core, block, tier.index);
    if (rank <= heap.rankAt(0)) return block;
    heap.sinkTop(rank);
  }
  return NO_BLOCK;
}

/** The entry of a block left an index; a record that only the index still named becomes free. */
export function dropBit(core: Core, block: Block, tier: TierIndex, bit: number): void {
  const records = core.records;
  const first = block * R.RECORD_WORDS + R.TIER_FIRST + R.STATUS;
  const word = first + tier * R.TIER_WORDS;
  assert((records[word]! & bit) !== 0, "an age index and a record disagree");
  records[word] = records[word]! & ~bit;
  if (core.inUse(block)) return;
  const left = records[first]! | records[first + R.TIER_WORDS]!;
  if ((left & (R.IN_HEAP | R.IN_ORPHANS)) !== 0) return;
  core.table.recycle(block);
  core.table.zombies -= 1;
}

/** Throws records that are no longer in use out of every age index, so that they can be allocated. */
export function purgeZombies(core: Core): void {
  for (const tier of core.tiers) {
    if (tier === undefined) continue;
    for (const [heaps, bit] of [
      [tier.heaps, R.IN_HEAP],
      [tier.orphans, R.IN_ORPHANS],
    ] as const) {
      for (const heap of heaps.flat()) {
        const keep = (block: Block): boolean => {
          if (core.inUse(block)) return true;
          dropBit(core, block, tier.index, bit);
          return false;
        };
        heap.rebuild(keep, (rank) => rank);
      }
    }
  }
  assert(core.table.zombies === 0, "a zombie stands in no age index");
}

/**
 * The next logical time; halves all ages when 32 bits run out (order is kept, the oldest may become equal).
 */
export function nextTick(core: Core): number {
  if (core.tick >= TICK_MAX) halveAges(core);
  core.tick += 1;
  return core.tick;
}

function halveAges(core: Core): void {
  const records = core.records;
  for (let block = 0; block < core.table.touched; block += 1) {
    for (let tier = 0; tier < core.tiers.length; tier += 1) {
      const word = block * R.RECORD_WORDS + R.tierWord(tier) + R.AGE;
      records[word] = records[word]! >>> 1;
    }
  }
  core.tick >>>= 1;
  core.timeline.halve();
  reRank(core);
}

/** Ranks of all indexed blocks are asked for anew: after halving, and when a policy changes its mind. */
export function reRank(core: Core): void {
  for (const tier of core.tiers) {
    if (tier === undefined) continue;
    for (const heap of [...tier.heaps, ...tier.orphans].flat()) {
      heap.rebuild(
        () => true,
        (_rank, block) => ageRank(core, block, tier.index),
      );
    }
  }
}

/** Rule 4: a use of the chain that ends at `block` makes the deepest copy in each tier the youngest. */
export function touch(core: Core, block: Block): void {
  assert(core.inUse(block), "touch of a free record");
  const records = core.records;
  const now = nextTick(core);
  const uses = block * R.RECORD_WORDS + R.LEASES;
  if (records[uses]! >>> R.HITS_SHIFT < R.HITS_MAX) {
    records[uses] = records[uses]! + R.HITS_ONE;
  }
  forgetRefusal(core, block);
  if (core.policy.classifies) classify(core, block, now);
  for (let tier = 0; tier < core.tiers.length; tier += 1) {
    if (core.tiers[tier] === undefined || core.tiers[tier]!.blocks === 0) continue;
    let deepest = block;
    for (let step = 0; step < TOUCH_CLIMB_MAX && deepest !== NO_BLOCK; step += 1) {
      if (core.stateOf(deepest, tier) !== STATE.ABSENT) {
        records[deepest * R.RECORD_WORDS + R.tierWord(tier) + R.AGE] = now;
        break;
      }
      deepest = core.parentOf(deepest);
    }
  }
}

/** A block that is used is worth another look (demote.ts). */
function forgetRefusal(core: Core, block: Block): void {
  const word = block * R.RECORD_WORDS + R.NAMESPACE;
  const flags = core.records[word]!;
  if (flags >= R.REFUSED_ONE) core.records[word] = flags & (R.REFUSED_ONE - 1);
}

/** Asks the policy for the block's class; its rank follows when it next surfaces. */
export function classify(core: Core, block: Block, now: number): void {
  const base = block * R.RECORD_WORDS;
  const records = core.records;
  const namespace = core.namespaceOf(block);
  const features = core.features;
  let last = 0;
  for (let tier = 0; tier < core.tiers.length; tier += 1) {
    last = Math.max(last, records[base + R.tierWord(tier) + R.AGE]!);
  }
  features.hits = records[base + R.LEASES]! >>> R.HITS_SHIFT;
  features.gap = last === 0 ? 0 : now - last;
  features.depth = core.depthOf(block);
  features.tenant = namespace.tenant;
  features.namespace = namespace.index;
  features.policyClass = records[base + R.DEPTH]! >>> R.CLASS_SHIFT;
  const policyClass = core.policy.classify(features);
  assert(policyClass >= 0 && policyClass <= 255, "a policy class has eight bits");
  records[base + R.DEPTH] = (features.depth | (policyClass << R.CLASS_SHIFT)) >>> 0;
}
