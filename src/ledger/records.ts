/**
 * Room in the record table. A tier below DRAM may have far more slots than the table has records; then records run
 * out while every tier could still evict. So a STORE that needs records lets blocks go as one that needs bytes does,
 * only wholly, since a record lives while any copy does: orphans first, then the leaves that the lowest tier would
 * evict next, nearly always blocks that stand there alone, then those of the tier above.
 *
 * A record whose block left stays out of use while an age index still names it (heap.ts). The entry that led here is
 * taken out at once; what other indexes hold on to may wait until it is a few per cent of the table, so that purging
 * them, which reads every index, is rare.
 */
import { assert } from "../assert.ts";
import { dropBit, mayLeave, oldestLeaf, oldestOrphan, purgeZombies } from "./ages.ts";
import type { Core, Tier } from "./core.ts";
import { evict } from "./evict.ts";
import type { AgeHeap } from "./heap.ts";
import * as R from "./table.ts";
import { NO_BLOCK, STATE, type Block } from "./types.ts";

/** Entries that one call sets aside in one kind of index because their blocks may not go wholly. */
const ASIDE_MAX = 1_024;
/** Shares of the table: records made free at a time beyond those wanted, and zombies borne before a purge. */
const AHEAD_SHIFT = 10;
const AHEAD_MAX = 64;
const ZOMBIES_SHIFT = 6;

/**
 * Lets blocks go until `wanted` records can be allocated; false: what is left is needed. The caller holds what it
 * relies on (LIVE), and flushes.
 */
export function makeRecordRoom(core: Core, wanted: number): boolean {
  const { table } = core;
  assert(wanted >= 0, "a number of records is wanted");
  if (table.free >= wanted) return true;
  if (wanted > table.blocksMax) return false;
  const target = wanted + Math.min(AHEAD_MAX, table.blocksMax >>> AHEAD_SHIFT);
  const enough = (): boolean => {
    if (table.zombies > table.blocksMax >>> ZOMBIES_SHIFT) purgeZombies(core);
    return table.free - table.zombies >= target;
  };
  // A block that goes from DRAM may have been what its parent on a lower tier was needed for.
  for (let before = -1; before < core.recordEvictions && !enough(); ) {
    before = core.recordEvictions;
    for (const bit of [R.IN_ORPHANS, R.IN_HEAP]) {
      for (const tier of core.tiers.toReversed()) {
        if (tier !== undefined) letGo(core, tier, bit, enough);
      }
    }
  }
  return table.free >= wanted;
}

/** Takes entries off the age indexes of a tier, oldest first, and lets their blocks go where they may. */
function letGo(core: Core, tier: Tier, bit: number, enough: () => boolean): void {
  const heaps: AgeHeap[] = [];
  const entries: number[] = [];
  while (heaps.length < ASIDE_MAX && !enough()) {
    const heap = oldestHeap(core, tier, bit);
    if (heap === undefined) break;
    const block = heap.blockAt(0);
    const rank = heap.rankAt(0);
    heap.pop();
    if (mayVanish(core, block)) {
      dropBit(core, block, tier.index, bit);
      vanish(core, block);
      continue;
    }
    heaps.push(heap);
    entries.push(rank, block);
  }
  for (const [i, heap] of heaps.entries()) heap.push(entries[i * 2]!, entries[i * 2 + 1]!);
}

/** Of all classes and devices, the index whose first entry is the oldest and may leave the tier. */
function oldestHeap(core: Core, tier: Tier, bit: number): AgeHeap | undefined {
  const orphans = bit === R.IN_ORPHANS;
  const all = orphans ? tier.orphans : tier.heaps;
  const oldest = orphans ? oldestOrphan : oldestLeaf;
  let best: AgeHeap | undefined;
  for (let c = 0; c < all.length; c += 1) {
    for (let d = 0; d < tier.slots.devices; d += 1) {
      if (oldest(core, tier, c, d) === NO_BLOCK) continue;
      const heap = all[c]![d]!;
      if (best === undefined || heap.rankAt(0) < best.rankAt(0)) best = heap;
    }
  }
  return best;
}

/** May all copies leave, and does nothing else need the block? */
function mayVanish(core: Core, block: Block): boolean {
  const base = block * R.RECORD_WORDS;
  if (core.records[base + R.LIVE]! > 0 || core.leasesOf(block) > 0) return false;
  // An orphan serves nobody; a block that is visible goes for its record's sake alone.
  if (!core.orphan(block) && core.records[base + R.WAITING]! !== NO_BLOCK) return false;
  return core.tiers.every(
    (tier) =>
      tier === undefined ||
      core.stateOf(block, tier.index) === STATE.ABSENT ||
      mayLeave(core, block, tier.index),
  );
}

function vanish(core: Core, block: Block): void {
  core.recordEvictions += 1;
  for (const tier of core.tiers) {
    if (tier === undefined || core.stateOf(block, tier.index) === STATE.ABSENT) continue;
    evict(core, block, tier);
  }
}
