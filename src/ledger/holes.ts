/**
 * Loss and what follows (rule 8). A block that loses its last copy while it has live children keeps its
 * record as a hole. Look-ups are cut there at once; a cyclic scan of the table turns every visible or
 * landed block under a non-visible parent into an orphan; when one whole pass changed nothing, all holes
 * end together.
 */
import { assert } from "../assert.ts";
import type { Core, Tier } from "./core.ts";
import { EVENT, isComplete } from "./states.ts";
import * as R from "./table.ts";
import { giveUp, hide, makeVisible, releaseRecord, transition } from "./tree.ts";
import { NO_BLOCK, type Block } from "./types.ts";

/** One copy proved wrong. Nothing happens for a copy that is not complete: its own job will fail it. */
export function corrupt(core: Core, block: Block, tier: Tier): void {
  if (!core.inUse(block) || !isComplete(core.stateOf(block, tier.index))) return;
  loseCopy(core, block, tier);
  if (!core.complete(block, -1)) {
    core.leases.reduce(core, (other) => other === block, core.depthOf(block));
    lostLast(core, block);
  }
  core.flush();
}

/** Every complete copy in the tier that `gone` names is lost. Copies being filled end with their jobs. */
export function loseCopies(core: Core, tier: Tier, gone: (block: Block) => boolean): number {
  const lost: Block[] = [];
  for (let block = 0; block < core.table.touched; block += 1) {
    if (!core.inUse(block) || !isComplete(core.stateOf(block, tier.index))) continue;
    if (!gone(block)) continue;
    loseCopy(core, block, tier);
    lost.push(block);
  }
  core.leases.reduce(core, (block) => !core.isVisible(block), 0);
  for (const block of lost) {
    if (core.inUse(block) && !core.complete(block, -1)) lostLast(core, block);
  }
  core.flush();
  return lost.length;
}

/** The slot goes, or waits in quarantine for its readers. */
function loseCopy(core: Core, block: Block, tier: Tier): void {
  if (core.pinsOf(block, tier.index) > 0) {
    transition(core, block, tier.index, EVENT.QUARANTINE);
    return;
  }
  core.freeSlots(block, tier);
  transition(core, block, tier.index, EVENT.LOSE);
}

function lostLast(core: Core, block: Block): void {
  assert(!core.isVisible(block), "a block without a complete copy is visible");
  if (!core.pending(block)) giveUp(core, block);
  if (core.records[block * R.RECORD_WORDS + R.LIVE]! > 0) makeHole(core, block);
  else releaseRecord(core, block);
}

function makeHole(core: Core, block: Block): void {
  core.sweepClean = 0;
  if (core.hasFlag(block, R.FLAG_HOLE)) return;
  core.setFlag(block, R.FLAG_HOLE);
  core.holesMade += 1;
  core.holes.push(block);
}

/** Looks at `records` records; true while holes remain. */
export function sweep(core: Core, records: number): boolean {
  const size = core.table.touched;
  for (let i = 0; i < records && core.holes.length > 0; i += 1) {
    core.sweepCursor = core.sweepCursor + 1 < size ? core.sweepCursor + 1 : 0;
    if (sweepOne(core, core.sweepCursor)) core.sweepClean = 0;
    else core.sweepClean += 1;
    if (core.sweepClean >= size) endHoles(core);
  }
  core.flush();
  return core.holes.length > 0;
}

/** Hides a block that stands under a parent which is not visible; true if it did. */
function sweepOne(core: Core, block: Block): boolean {
  if (!core.inUse(block)) return false;
  const parent = core.parentOf(block);
  if (parent === NO_BLOCK || core.isVisible(parent)) return false;
  const waitsInVain =
    core.landed(block) && !core.hasFlag(block, R.FLAG_HOLE) && !core.pending(parent);
  if (!core.isVisible(block) && !waitsInVain) return false;
  hide(core, block);
  return true;
}

/**
 * A pass changed nothing: no block is visible under a hole any more, so holes that were refilled may show.
 */
function endHoles(core: Core): void {
  const holes = core.holes;
  core.holes = [];
  core.sweepClean = 0;
  holes.sort((a, b) => core.depthOf(a) - core.depthOf(b));
  for (const block of holes) core.clearFlag(block, R.FLAG_HOLE);
  for (const block of holes) {
    if (!core.complete(block, -1) || core.isVisible(block)) continue;
    makeVisible(core, block);
    if (core.isVisible(block) || !core.landed(block)) continue;
    const parent = core.parentOf(block);
    if (parent === NO_BLOCK || !core.pending(parent)) hide(core, block);
  }
  for (const block of holes) releaseRecord(core, block);
}
