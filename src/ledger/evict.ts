/**
 * Making room (rules 2, 4 and 5). Eviction only drops; copies to a lower tier happen ahead of it and
 * elsewhere.
 *
 * A slot for a class is looked for in this order:
 *   1. a free slot of the class, or a free slab;
 *   2. the oldest copy of its own class that may leave (orphans first);
 *   3. with two tiers: the oldest leaf of the other tier below a block whose last copy stands here and
 *      could leave but for that leaf; then 2 again;
 *   4. a slab of another class: the one with the fewest live slots is closed (it gives out no more
 *      slots), and each call empties it a bit further, by evicting what may leave in it and the oldest
 *      of its class. Until it is empty the answer is "full", which a client retries. So a class that
 *      comes late is never starved, and no call runs long.
 */
import { assert } from "../assert.ts";
import { mayLeave, oldest } from "./ages.ts";
import type { Core, Tier } from "./core.ts";
import { EVENT } from "./states.ts";
import { SLOT_INDEX_BITS } from "./slots.ts";
import { giveUp, releaseRecord, transition } from "./tree.ts";
import * as R from "./table.ts";
import { NO_BLOCK, NO_SLOT, STATE, type Block, type TierIndex } from "./types.ts";

/** Slots looked at, and extra blocks evicted, by one call that empties a slab of another class. */
const VACATE_SLOTS = 4_096;
const VACATE_EVICTIONS = 256;

/** Drops a copy that may leave. */
export function evict(core: Core, block: Block, tier: Tier): void {
  assert(mayLeave(core, block, tier.index), "rule 2: this copy may not leave");
  tier.evictions += 1;
  if (core.stateOf(block, tier.index) === STATE.ORPHAN) tier.evictedOrphans += 1;
  core.freeSlots(block, tier);
  transition(core, block, tier.index, EVENT.EVICT);
  if (core.absent(block)) giveUp(core, block);
  releaseRecord(core, block);
}

/** Evicts the oldest copy of a class; false if none may leave. */
export function evictOldest(core: Core, tier: Tier, classIndex: number): boolean {
  const block = oldest(core, tier, classIndex);
  if (block === NO_BLOCK) return false;
  evict(core, block, tier);
  return true;
}

/** The same over all classes: the one whose oldest has the lowest rank; orphans of any class first. */
function evictOldestOfAny(core: Core, tier: Tier): boolean {
  let best = NO_BLOCK;
  let bestRank = Number.POSITIVE_INFINITY;
  for (let classIndex = 0; classIndex < tier.heaps.length; classIndex += 1) {
    const block = oldest(core, tier, classIndex);
    if (block === NO_BLOCK) continue;
    const orphan = core.stateOf(block, tier.index) === STATE.ORPHAN;
    const heap = (orphan ? tier.orphans : tier.heaps)[classIndex]!;
    const rank = orphan ? heap.rankAt(0) - 2 ** 33 : heap.rankAt(0);
    if (rank < bestRank) {
      best = block;
      bestRank = rank;
    }
  }
  if (best === NO_BLOCK) return false;
  evict(core, best, tier);
  return true;
}

/** Room under the tier's cap for `added` more copies. */
export function roomForBlocks(core: Core, tier: Tier, added: number): boolean {
  const cap = tier.options.blocksMax;
  while (cap > 0 && tier.blocks + added > cap) {
    if (!evictOldestOfAny(core, tier) && !evictBelow(core, tier)) return false;
  }
  return true;
}

/** A slot of the class for `owner`, evicting on demand; NO_SLOT = full. */
export function takeSlot(core: Core, tier: Tier, classIndex: number, owner: Block): number {
  let slot = tier.slots.allocate(classIndex, owner);
  while (slot === NO_SLOT) {
    const freed =
      evictOldest(core, tier, classIndex) ||
      evictBelow(core, tier) ||
      vacateOther(core, tier, classIndex);
    if (!freed) return NO_SLOT;
    slot = tier.slots.allocate(classIndex, owner);
  }
  return slot;
}

/**
 * Rule 5: drops the oldest leaf of the other tier below a block whose last copy stands in `tier`. False if
 * there is none.
 */
function evictBelow(core: Core, tier: Tier): boolean {
  const other = core.tiers[1 - tier.index];
  if (other === undefined || other.blocks === 0) return false;
  let best = NO_BLOCK;
  let bestAge = Number.POSITIVE_INFINITY;
  for (const heap of [...other.heaps, ...other.orphans]) {
    for (let i = 0; i < heap.length; i += 1) {
      const block = heap.blockAt(i);
      if (!core.inUse(block) || !mayLeave(core, block, other.index)) continue;
      const age = core.records[block * R.RECORD_WORDS + R.tierWord(other.index) + R.AGE]!;
      if (age < bestAge && holdsUp(core, block, tier.index)) {
        best = block;
        bestAge = age;
      }
    }
  }
  if (best === NO_BLOCK) return false;
  evict(core, best, other);
  return true;
}

/** Is there an ancestor whose last copy stands in `tier`? */
function holdsUp(core: Core, block: Block, tier: TierIndex): boolean {
  for (let a = core.parentOf(block); a !== NO_BLOCK; a = core.parentOf(a)) {
    const state = core.stateOf(a, tier);
    const complete = state === STATE.VISIBLE || state === STATE.ORPHAN;
    if (complete && !core.complete(a, tier)) return true;
  }
  return false;
}

/** Empties a slab of another class a bit further; true when one became free. */
function vacateOther(core: Core, tier: Tier, classIndex: number): boolean {
  const slots = tier.slots;
  const slab = slabToVacate(core, tier, classIndex);
  if (slab < 0) return false;
  const free = slots.slabsFree;
  const victimClass = slots.slabClass(slab);
  slots.close(slab);
  sweepSlab(core, tier, slab, VACATE_SLOTS);
  for (let i = 0; i < VACATE_EVICTIONS && slots.slabsFree === free; i += 1) {
    if (!evictOldest(core, tier, victimClass)) break;
  }
  if (slots.slabsFree === free) sweepSlab(core, tier, slab, VACATE_SLOTS);
  if (slots.slabsFree === free) return false;
  slots.reopen(slab);
  return true;
}

/**
 * A slab of another class that is being emptied already, else the one with the fewest live slots, of equal
 * ones the one where its class's next victim stands; −1 if none.
 */
function slabToVacate(core: Core, tier: Tier, classIndex: number): number {
  const slots = tier.slots;
  let best = -1;
  for (let slab = 0; slab < slots.slabs; slab += 1) {
    const other = slots.slabClass(slab);
    if (other < 0 || other === classIndex) continue;
    if (slots.isClosed(slab)) return slab;
    if (best < 0 || slots.slabUsed(slab) < slots.slabUsed(best)) best = slab;
  }
  if (best < 0) return -1;
  for (let other = 0; other < tier.heaps.length; other += 1) {
    const block = other === classIndex ? NO_BLOCK : oldest(core, tier, other);
    if (block === NO_BLOCK) continue;
    const slab = slots.slabOf(core.slotOf(block, tier.index, 0));
    if (slots.slabUsed(slab) === slots.slabUsed(best)) return slab;
  }
  return best;
}

/**
 * Evicts what may leave among the slots of a slab, from the last slot (the deepest blocks of a chain) down.
 */
function sweepSlab(core: Core, tier: Tier, slab: number, slotsMax: number): void {
  const slots = tier.slots;
  const classIndex = slots.slabClass(slab);
  if (classIndex < 0) return; // It was empty: closing it made it free.
  let looked = 0;
  for (let index = slots.slabFresh(slab) - 1; index >= 0 && looked < slotsMax; index -= 1) {
    if (slots.slabClass(slab) !== classIndex) return;
    const slot = ((slab << SLOT_INDEX_BITS) | index) >>> 0;
    if (slots.fillOf(slot) === 3) continue;
    looked += 1;
    const block = slots.ownerOf(slot);
    if (mayLeave(core, block, tier.index)) evict(core, block, tier);
  }
}

/** Evicts from above the high watermark to the low one; copies dropped. */
export function evictToWatermark(core: Core, tier: Tier): number {
  const { blocksMax, highWatermark, lowWatermark } = tier.options;
  const capacity = blocksMax > 0 ? blocksMax : tier.slots.slotsTotal;
  const used = (): number => (blocksMax > 0 ? tier.blocks : tier.slots.slotsUsed);
  if (used() <= capacity * highWatermark) return 0;
  let dropped = 0;
  while (used() > capacity * lowWatermark && evictOldestOfAny(core, tier)) dropped += 1;
  core.flush();
  return dropped;
}
