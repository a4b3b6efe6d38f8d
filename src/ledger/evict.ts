/**
 * Making room (rules 2, 4 and 5). Eviction only drops; copies to a lower tier happen ahead of it and
 * elsewhere.
 *
 * A slot for a class is looked for in this order:
 *   1. a free slot of the class, or a free slab, at home or else on another device (devices.ts);
 *   2. the oldest copy of its own class that may leave: orphans, then at home, then on other devices;
 *   3. with two tiers: the oldest leaf of the other tier below a block whose last copy stands here and
 *      could leave but for that leaf; then 2 again;
 *   4. a slab of another class: the one with the fewest live slots is closed (it gives out no more
 *      slots), and each call empties it a bit further, by evicting what may leave in it and the oldest
 *      of its class. Until it is empty the answer is "full", which a client retries. So a class that
 *      comes late is never starved, and no call runs long;
 *   5. the oldest leaf on a closed device below a block on an open one.
 */
import { assert } from "../assert.ts";
import { mayLeave, oldestLeaf, oldestOrphan } from "./ages.ts";
import type { Core, Tier } from "./core.ts";
import { gatherStrays } from "./devices.ts";
import { EVENT } from "./states.ts";
import { SLOT_INDEX_BITS } from "./slots.ts";
import { giveUp, releaseRecord, transition } from "./tree.ts";
import * as R from "./table.ts";
import { NO_BLOCK, NO_SLOT, STATE, type Block, type TierIndex } from "./types.ts";

/** Slots looked at, and extra blocks evicted, by one call that empties a slab of another class. */
const VACATE_SLOTS = 4_096;
const VACATE_EVICTIONS = 256;
/** Entries looked at, and ancestors climbed, by one call in search of a leaf that holds another block up. */
const BELOW_ENTRIES = 4_096;
const BELOW_STEPS = 65_536;
const SPILLED_STEPS = 64;

/** Drops a copy that may leave. */
export function evict(core: Core, block: Block, tier: Tier): void {
  assert(mayLeave(core, block, tier.index), "rule 2: this copy may not leave");
  tier.evictions += 1;
  if (core.stateOf(block, tier.index) === STATE.ORPHAN) tier.evictedOrphans += 1;
  const lower = core.tiers[tier.index + 1];
  if (lower !== undefined && !core.complete(block, tier.index)) tier.evictedUnbacked += 1;
  core.freeSlots(block, tier);
  transition(core, block, tier.index, EVENT.EVICT);
  if (core.absent(block)) giveUp(core, block);
  releaseRecord(core, block);
}

/** Any class, or any device. */
const ANY = -1;
/** Below every rank: orphans leave before all others. */
const ORPHAN_RANK = -(2 ** 33);

/**
 * The copy that leaves next among those of a class (or ANY) on a device (or ANY that is `closed` or not),
 * orphans before others; NO_BLOCK if none may. Devices that are being adopted give none: their parents come back
 * first, and would leave as leaves before their children are read.
 */
function victim(
  core: Core,
  tier: Tier,
  classIndex: number,
  device: number,
  closed: boolean,
): Block {
  let best = NO_BLOCK;
  let bestRank = Number.POSITIVE_INFINITY;
  const classFirst = classIndex === ANY ? 0 : classIndex;
  const classEnd = classIndex === ANY ? tier.heaps.length : classIndex + 1;
  const deviceFirst = device === ANY ? 0 : device;
  const deviceEnd = device === ANY ? tier.slots.devices : device + 1;
  for (let d = deviceFirst; d < deviceEnd; d += 1) {
    if (device === ANY && tier.slots.isDeviceClosed(d) !== closed) continue;
    if (tier.slots.isDeviceAdopting(d)) continue;
    for (let c = classFirst; c < classEnd; c += 1) {
      let block = oldestOrphan(core, tier, c, d);
      let rank = ORPHAN_RANK;
      if (block !== NO_BLOCK) rank += tier.orphans[c]![d]!.rankAt(0);
      else {
        block = oldestLeaf(core, tier, c, d);
        if (block === NO_BLOCK) continue;
        rank = tier.heaps[c]![d]!.rankAt(0);
      }
      if (rank >= bestRank) continue;
      best = block;
      bestRank = rank;
    }
  }
  return best;
}

function evictOne(core: Core, block: Block, tier: Tier): boolean {
  if (block === NO_BLOCK) return false;
  evict(core, block, tier);
  return true;
}

/** Evicts the oldest copy of a class so that a slot becomes free at `home`, or else elsewhere. */
function evictOldest(core: Core, tier: Tier, classIndex: number, home: number): boolean {
  if (tier.slots.devices === 1) {
    return evictOne(core, victim(core, tier, classIndex, 0, false), tier);
  }
  const any = victim(core, tier, classIndex, ANY, false);
  if (any === NO_BLOCK) return false;
  // An orphan serves nobody: it leaves first, wherever it stands.
  const orphan = core.stateOf(any, tier.index) === STATE.ORPHAN;
  const elsewhere = orphan || tier.slots.isDeviceClosed(home) || tier.slots.isDeviceAdopting(home);
  const atHome = elsewhere ? NO_BLOCK : oldestLeaf(core, tier, classIndex, home);
  return evictOne(core, atHome === NO_BLOCK ? any : atHome, tier);
}

/** Evicts the oldest copy of all classes and devices; orphans first. */
function evictOldestOfAny(core: Core, tier: Tier): boolean {
  const open = victim(core, tier, ANY, ANY, false);
  if (tier.slots.devices === 1) return evictOne(core, open, tier);
  return evictOne(core, open === NO_BLOCK ? victim(core, tier, ANY, ANY, true) : open, tier);
}

/** Room under the tier's cap for `added` more copies. */
export function roomForBlocks(core: Core, tier: Tier, added: number): boolean {
  const cap = tier.options.blocksMax;
  while (cap > 0 && tier.blocks + added > cap) {
    if (!evictOldestOfAny(core, tier) && !evictBelow(core, tier)) return false;
  }
  return true;
}

function givesOut({ slots }: Tier): boolean {
  for (let device = 0; device < slots.devices; device += 1) {
    if (!slots.isDeviceClosed(device) && !slots.isDeviceAdopting(device)) return true;
  }
  return false;
}

/** A slot of the class for `owner`, on its home device if there is room, evicting on demand; NO_SLOT = full. */
export function takeSlot(
  core: Core,
  tier: Tier,
  classIndex: number,
  owner: Block,
  home: number,
): number {
  let slot = tier.slots.allocate(classIndex, owner, home);
  // Where no device gives out slots, evicting frees none: it would only empty the tier.
  if (slot === NO_SLOT && !givesOut(tier)) return NO_SLOT;
  while (slot === NO_SLOT) {
    const freed =
      evictOldest(core, tier, classIndex, home) ||
      evictBelow(core, tier) ||
      (mayVacate(tier, classIndex) && vacateOther(core, tier, classIndex)) ||
      evictSpilled(core, tier, classIndex) ||
      gatherStrays(core, tier);
    if (!freed) return NO_SLOT;
    slot = tier.slots.allocate(classIndex, owner, home);
  }
  return slot;
}

/**
 * Rule 5: drops the oldest leaf of the other tier below a block whose last copy stands in `tier`, among the
 * next BELOW_ENTRIES of its age indexes. False if there is none: the next call looks at the next ones, so
 * that no call runs long however large the other tier is.
 */
function evictBelow(core: Core, tier: Tier): boolean {
  const other = core.tiers[1 - tier.index];
  if (other === undefined || other.blocks === 0) return false;
  const heaps = [...other.heaps, ...other.orphans].flat();
  const entries = heaps.reduce((sum, heap) => sum + heap.length, 0);
  if (tier.belowCursor >= entries) tier.belowCursor = 0;
  const end = Math.min(entries, tier.belowCursor + BELOW_ENTRIES);
  let best = NO_BLOCK;
  let bestAge = Number.POSITIVE_INFINITY;
  let first = 0;
  let steps = BELOW_STEPS;
  for (const heap of heaps) {
    const from = Math.max(0, tier.belowCursor - first);
    for (let i = from; i < heap.length && first + i < end && steps > 0; i += 1) {
      tier.belowCursor = first + i + 1;
      const block = heap.blockAt(i);
      if (!core.inUse(block) || !mayLeave(core, block, other.index)) continue;
      const age = core.records[block * R.RECORD_WORDS + R.tierWord(other.index) + R.AGE]!;
      if (age >= bestAge) continue;
      const climbed = holdsUp(core, block, tier.index, steps);
      steps -= Math.abs(climbed);
      if (climbed <= 0) continue;
      best = block;
      bestAge = age;
    }
    first += heap.length;
  }
  if (best === NO_BLOCK) return false;
  evict(core, best, other);
  return true;
}

/**
 * Is there an ancestor whose last copy stands in `tier`? Steps climbed to it; if there is none among the
 * `steps` next ones, minus the steps.
 */
function holdsUp(core: Core, block: Block, tier: TierIndex, steps: number): number {
  let climbed = 0;
  for (let a = core.parentOf(block); a !== NO_BLOCK && climbed < steps; a = core.parentOf(a)) {
    climbed += 1;
    const state = core.stateOf(a, tier);
    const complete = state === STATE.VISIBLE || state === STATE.ORPHAN;
    if (complete && !core.complete(a, tier)) return climbed;
  }
  return -climbed;
}

/**
 * Blocks on a closed device keep their ancestors on open ones from leaving. When nothing else may leave,
 * drops the oldest such leaf (among the first BELOW_ENTRIES of each index); false if there is none.
 */
function evictSpilled(core: Core, tier: Tier, classIndex: number): boolean {
  const { slots } = tier;
  let best = NO_BLOCK;
  let bestRank = Number.POSITIVE_INFINITY;
  for (let device = 0; device < slots.devices && slots.devices > 1; device += 1) {
    const heap = tier.heaps[classIndex]![device];
    if (heap === undefined || !slots.isDeviceClosed(device)) continue;
    if (slots.isDeviceAdopting(device)) continue;
    for (let i = 0; i < Math.min(heap.length, BELOW_ENTRIES); i += 1) {
      const block = heap.blockAt(i);
      if (heap.rankAt(i) >= bestRank || !core.inUse(block)) continue;
      if (!mayLeave(core, block, tier.index) || !spilled(core, tier, block)) continue;
      best = block;
      bestRank = heap.rankAt(i);
    }
  }
  return evictOne(core, best, tier);
}

/** Is there an ancestor on a device that gives out slots? Looks at the next few. */
function spilled(core: Core, tier: Tier, block: Block): boolean {
  let a = core.parentOf(block);
  for (let step = 0; step < SPILLED_STEPS && a !== NO_BLOCK; step += 1) {
    const slot = core.slotOf(a, tier.index, 0);
    if (slot !== NO_SLOT && !tier.slots.isDeviceClosed(tier.slots.deviceOf(slot))) return true;
    a = core.parentOf(a);
  }
  return false;
}

/**
 * Not while a slab is free that the backing store still uses: the class gets it when it is idle there, and the slabs
 * of other classes may be just as busy.
 */
function mayVacate({ slots }: Tier, classIndex: number): boolean {
  return slots.roomiest(classIndex) < 0;
}

/** Empties a slab of another class a bit further; true when it became free. */
function vacateOther(core: Core, tier: Tier, classIndex: number): boolean {
  const slots = tier.slots;
  const slab = slabToVacate(core, tier, classIndex);
  if (slab < 0) return false;
  const victimClass = slots.slabClass(slab);
  const device = slots.deviceOfSlab(slab);
  slots.close(slab);
  const empty = (): boolean => slots.slabClass(slab) < 0;
  if (!empty()) sweepSlab(core, tier, slab, VACATE_SLOTS);
  for (let i = 0; i < VACATE_EVICTIONS && !empty(); i += 1) {
    if (!evictOldest(core, tier, victimClass, device)) break;
  }
  if (!empty()) sweepSlab(core, tier, slab, VACATE_SLOTS);
  if (!empty()) return false;
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
    if (slots.isDeviceClosed(slots.deviceOfSlab(slab))) continue;
    if (slots.isClosed(slab)) return slab;
    if (!slots.isOpen(slab)) continue;
    if (best < 0 || slots.slabUsed(slab) < slots.slabUsed(best)) best = slab;
  }
  if (best < 0) return -1;
  for (let other = 0; other < tier.heaps.length; other += 1) {
    const block = other === classIndex ? NO_BLOCK : victim(core, tier, other, ANY, false);
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

/**
 * Evicts from above the high watermark to the low one; copies dropped. keepUnbacked: ends at a block that has no copy
 * below, since making room ahead of need is no reason to lose one (a STORE that needs the slot is).
 */
export function evictToWatermark(core: Core, tier: Tier, keepUnbacked: boolean): number {
  const { blocksMax, highWatermark, lowWatermark } = tier.options;
  let dropped = 0;
  if (blocksMax > 0) {
    if (tier.blocks <= blocksMax * highWatermark) return 0;
    while (tier.blocks > blocksMax * lowWatermark) {
      if (keepUnbacked && !backed(core, victim(core, tier, ANY, ANY, false), tier)) break;
      if (!evictOldestOfAny(core, tier)) break;
      dropped += 1;
    }
  } else {
    for (let device = 0; device < tier.slots.devices; device += 1) {
      dropped += relieve(core, tier, device, keepUnbacked);
    }
  }
  if (dropped > 0) core.flush();
  return dropped;
}

/** evictToWatermark() of one device. */
function relieve(core: Core, tier: Tier, device: number, keepUnbacked: boolean): number {
  const { slots, options } = tier;
  if (slots.isDeviceClosed(device)) return 0;
  const total = slots.slotsTotalOf(device);
  if (slots.slotsUsedOf(device) <= total * options.highWatermark) return 0;
  let dropped = 0;
  while (slots.slotsUsedOf(device) > total * options.lowWatermark) {
    const block = victim(core, tier, ANY, device, false);
    if (keepUnbacked && !backed(core, block, tier)) break;
    if (!evictOne(core, block, tier)) break;
    dropped += 1;
  }
  return dropped;
}

/** An orphan is of no use to anybody; any other block needs a complete copy elsewhere. */
function backed(core: Core, block: Block, tier: Tier): boolean {
  if (block === NO_BLOCK) return true;
  return core.stateOf(block, tier.index) === STATE.ORPHAN || core.complete(block, tier.index);
}
