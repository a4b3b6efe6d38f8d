/**
 * The prefix tree: how one copy's move changes its parent and children (DESIGN §5, rules 1, 2 and 4).
 *
 * transition() is the only writer of a copy's state. With each move it keeps the parent's counts (children
 * live at all, children in this tier), raises the parent's age when a child leaves, keeps the visible
 * flags, the waiting list and the visibility log, and offers blocks that may leave now to the age index.
 * The cascades (a block that becomes visible takes its landed children along, an aborted one its pending
 * descendants) run over work lists, never recursively.
 */
import { assert } from "../assert.ts";
import { offerBlock } from "./ages.ts";
import type { Core, Tier } from "./core.ts";
import { LOG_KIND } from "./log.ts";
import { EVENT, isComplete, isLive, isPending, nextState, type Event } from "./states.ts";
import * as R from "./table.ts";
import { NO_BLOCK, STATE, type Block, type TierIndex } from "./types.ts";

/** Moves one copy through the state table. Slots are the caller's business. */
export function transition(core: Core, block: Block, tier: TierIndex, event: Event): void {
  const records = core.records;
  const word = block * R.RECORD_WORDS + R.tierWord(tier) + R.STATUS;
  const before = core.stateOf(block, tier);
  const after = nextState(before, event);
  if (before === after) return;
  const other = core.stateOf(block, 1 - tier);
  records[word] = (records[word]! & ~R.STATE_MASK) | after;
  countState(core, block, tier, before, after);
  const parent = core.parentOf(block);
  if (parent !== NO_BLOCK) countChild(core, block, tier, parent, before, after, other);
  if (after === STATE.VISIBLE) becameVisible(core, block, tier);
  else if (before === STATE.VISIBLE) {
    leftVisible(core, block, tier, other === STATE.VISIBLE);
  }
  // Only a copy that is complete now can let itself, or the block's other copy, go.
  if (isComplete(after)) offerBlock(core, block);
}

function countState(core: Core, block: Block, t: TierIndex, before: number, after: number): void {
  const tier = core.tier(t);
  const counts = tier.stateBlocks;
  counts[after] = counts[after]! + 1;
  if (before !== STATE.ABSENT) counts[before] = counts[before]! - 1;
  if (after === STATE.ABSENT) {
    counts[STATE.ABSENT] = 0;
    tier.blocks -= 1;
    core.tenants.addBlocks(core.namespaceOf(block).tenant, t, -1);
  } else if (before === STATE.ABSENT) {
    tier.blocks += 1;
    core.tenants.addBlocks(core.namespaceOf(block).tenant, t, 1);
  }
}

function countChild(
  core: Core,
  block: Block,
  tier: TierIndex,
  parent: Block,
  before: number,
  after: number,
  other: number,
): void {
  const was = isLive(before);
  const is = isLive(after);
  if (was === is) return;
  const records = core.records;
  const base = parent * R.RECORD_WORDS;
  const children = base + R.tierWord(tier) + R.CHILDREN;
  records[children] = records[children]! + (is ? 1 : -1);
  if (!is) raiseAges(core, parent, core.records[ageWord(block, tier)]!);
  if (!isLive(other)) records[base + R.LIVE] = records[base + R.LIVE]! + (is ? 1 : -1);
  if (!is) offerBlock(core, parent);
}

function ageWord(block: Block, tier: TierIndex): number {
  return block * R.RECORD_WORDS + R.tierWord(tier) + R.AGE;
}

/** Rule 4: a child that leaves hands its time to the parent, in every tier. */
function raiseAges(core: Core, block: Block, age: number): void {
  const records = core.records;
  for (let tier = 0; tier < core.tiers.length; tier += 1) {
    const word = ageWord(block, tier);
    if (records[word]! < age) records[word] = age;
  }
}

function becameVisible(core: Core, block: Block, tier: TierIndex): void {
  const first = !core.isVisible(block);
  core.setFlag(block, R.FLAG_VISIBLE | (R.FLAG_TIER << tier));
  logMove(core, LOG_KIND.STORED, block, tier);
  if (!first) return;
  core.unlinkWaiting(block);
  if (core.hasFlag(block, R.FLAG_WATCHED)) {
    core.clearFlag(block, R.FLAG_WATCHED);
    core.options.observer.settled(block, true);
  }
  if (core.hasFlag(block, R.FLAG_FOLLOWED)) core.leases.arrived(core, block);
}

function leftVisible(core: Core, block: Block, tier: TierIndex, still: boolean): void {
  core.clearFlag(block, R.FLAG_TIER << tier);
  logMove(core, LOG_KIND.REMOVED, block, tier);
  if (still) return;
  core.clearFlag(block, R.FLAG_VISIBLE);
  // A dead record is released by whoever took its last copy.
  if (!isDead(core, block)) core.linkWaiting(block);
}

/** What a start brings back is logged at its end (recover.ts). */
function logMove(core: Core, kind: number, block: Block, tier: TierIndex): void {
  if (core.recovering) return;
  const records = core.records;
  const base = block * R.RECORD_WORDS;
  const parent = kind === LOG_KIND.STORED ? records[base + R.PARENT]! : NO_BLOCK;
  const namespace = records[base + R.NAMESPACE]! & R.NAMESPACE_MASK;
  const parentAt = parent === NO_BLOCK ? -1 : parent * R.RECORD_WORDS;
  core.log.append(kind, tier, namespace, core.depthOf(block), records, base, parentAt);
}

/** The log says of this copy what it would have said when it became visible. */
export function logShown(core: Core, block: Block, tier: TierIndex): void {
  assert(!core.recovering && core.hasFlag(block, R.FLAG_TIER << tier), "the copy is visible now");
  logMove(core, LOG_KIND.STORED, block, tier);
}

/** The watch on a block that will not become visible ends; leases that wanted it turn to its parent. */
export function giveUp(core: Core, block: Block): void {
  if (core.hasFlag(block, R.FLAG_FOLLOWED)) core.leases.missed(core, block);
  if (!core.hasFlag(block, R.FLAG_WATCHED)) return;
  core.clearFlag(block, R.FLAG_WATCHED);
  core.options.observer.settled(block, false);
}

/**
 * Rule 1 and 8: shows a complete block whose parent is visible, and below it whatever waited for it,
 * top-down.
 */
export function makeVisible(core: Core, block: Block): void {
  const bottom = core.stack.length;
  core.stack.push(block);
  showStacked(core, bottom);
}

/** Shows what stands on the stack above `bottom`, and what waited for it. */
function showStacked(core: Core, bottom: number): void {
  const stack = core.stack;
  while (stack.length > bottom) {
    const next = stack.pop()!;
    if (showOne(core, next)) pushCompleteChildren(core, next);
  }
}

function pushCompleteChildren(core: Core, block: Block): void {
  let child = core.records[block * R.RECORD_WORDS + R.WAITING]!;
  while (child !== NO_BLOCK) {
    if (core.complete(child, -1)) core.stack.push(child);
    child = core.records[child * R.RECORD_WORDS + R.NEXT]!;
  }
}

/**
 * LAND and SHOW in one step, which is what nearly every fill ends in: the only copy, under a visible parent. Landed and
 * visible are both live states, so the parent's counts stay as they are.
 */
function landAndShow(core: Core, block: Block, tier: TierIndex): void {
  const word = block * R.RECORD_WORDS + R.tierWord(tier) + R.STATUS;
  const before = core.stateOf(block, tier);
  const after = nextState(nextState(before, EVENT.LAND), EVENT.SHOW);
  assert(isLive(before) && after === STATE.VISIBLE, "a filling copy lands visible");
  core.records[word] = (core.records[word]! & ~R.STATE_MASK) | after;
  countState(core, block, tier, before, after);
  becameVisible(core, block, tier);
  offerBlock(core, block);
}

/** Shows one block's complete copies if it may be shown; true if it is visible now. */
function showOne(core: Core, block: Block): boolean {
  if (core.hasFlag(block, R.FLAG_HOLE) || !core.complete(block, -1)) return false;
  const parent = core.parentOf(block);
  if (parent !== NO_BLOCK && !core.isVisible(parent)) return false;
  for (let tier = 0; tier < core.tiers.length; tier += 1) {
    const state = core.stateOf(block, tier);
    if (state === STATE.LANDED || state === STATE.ORPHAN) {
      transition(core, block, tier, EVENT.SHOW);
    }
  }
  return core.isVisible(block);
}

/** Rule 1: hides all complete copies of a block, and the landed children that waited for it. */
export function hide(core: Core, block: Block): void {
  const stack = core.stack;
  const bottom = stack.length;
  stack.push(block);
  while (stack.length > bottom) {
    const next = stack.pop()!;
    const before = core.orphan(next);
    for (let tier = 0; tier < core.tiers.length; tier += 1) {
      const state = core.stateOf(next, tier);
      if (state === STATE.VISIBLE || state === STATE.LANDED) {
        transition(core, next, tier, EVENT.HIDE);
      }
    }
    if (!before && core.orphan(next)) core.orphaned += 1;
    if (!core.pending(next)) giveUp(core, next);
    pushLandedChildren(core, next, stack);
  }
}

/** Landed children of a block that is not visible and not on its way become orphans. */
export function hideLandedChildren(core: Core, block: Block): void {
  const children: Block[] = [];
  pushLandedChildren(core, block, children);
  for (const child of children) hide(core, child);
}

function pushLandedChildren(core: Core, block: Block, into: Block[]): void {
  let child = core.records[block * R.RECORD_WORDS + R.WAITING]!;
  while (child !== NO_BLOCK) {
    if (core.landed(child) && !core.hasFlag(child, R.FLAG_HOLE)) into.push(child);
    child = core.records[child * R.RECORD_WORDS + R.NEXT]!;
  }
}

/** All shards of a copy are in: visible, waiting, or orphan (rule 1). */
export function land(core: Core, block: Block, tier: TierIndex): void {
  const parent = core.parentOf(block);
  const open = parent === NO_BLOCK || core.isVisible(parent);
  const only = core.stateOf(block, 1 - tier) === STATE.ABSENT;
  if (open && only && !core.hasFlag(block, R.FLAG_HOLE)) {
    const bottom = core.stack.length;
    landAndShow(core, block, tier);
    pushCompleteChildren(core, block);
    showStacked(core, bottom);
    return;
  }
  transition(core, block, tier, EVENT.LAND);
  if (core.isVisible(block)) {
    transition(core, block, tier, EVENT.SHOW);
    return;
  }
  makeVisible(core, block);
  if (core.isVisible(block) || core.hasFlag(block, R.FLAG_HOLE)) return;
  if (parent !== NO_BLOCK && core.pending(parent)) return;
  hide(core, block);
}

/** Gives up one pending copy: frees what no job writes into, drains the rest. */
export function abortCopy(core: Core, block: Block, tier: Tier): void {
  const inFlight = freeIdleSlots(core, block, tier);
  if (inFlight) {
    transition(core, block, tier.index, EVENT.DRAIN);
    return;
  }
  core.freeSlots(block, tier);
  transition(core, block, tier.index, EVENT.ABORT);
}

/** Frees every slot that no copy job writes into; true if such a job remains. */
function freeIdleSlots(core: Core, block: Block, tier: Tier): boolean {
  const shards = core.namespaceOf(block).shards;
  let inFlight = false;
  for (let shard = 0; shard < shards; shard += 1) {
    const slot = core.slotOf(block, tier.index, shard);
    if (slot === 0xffff_ffff) continue;
    if (tier.slots.fillOf(slot) === 1) inFlight = true;
    else core.freeSlot(block, tier, shard);
  }
  return inFlight;
}

/** Rule 1: a fill failed. The copy goes; with it, if no other is left or coming, all that waited for it. */
export function fillFailed(core: Core, block: Block, tier: Tier): void {
  abortCopy(core, block, tier);
  core.aborted += 1;
  if (core.isVisible(block) || core.pending(block)) return;
  if (core.complete(block, -1)) {
    giveUp(core, block);
    hideLandedChildren(core, block);
  } else {
    abortDescendants(core, block);
    giveUp(core, block);
  }
  releaseRecord(core, block);
}

/**
 * Aborts every pending descendant, deepest first; below one that keeps an orphan copy, landed children turn
 * orphan.
 */
function abortDescendants(core: Core, block: Block): void {
  const list = core.descendants;
  assert(list.length === 0, "aborts do not nest");
  pushPendingChildren(core, block, list);
  for (let i = 0; i < list.length; i += 1) {
    if (!core.orphan(list[i]!)) pushPendingChildren(core, list[i]!, list);
  }
  for (let i = list.length - 1; i >= 0; i -= 1) {
    const next = list[i]!;
    core.aborted += 1;
    for (let t = 0; t < core.tiers.length; t += 1) {
      const tier = core.tiers[t];
      if (tier !== undefined && isPending(core.stateOf(next, t))) abortCopy(core, next, tier);
    }
    giveUp(core, next);
    if (core.complete(next, -1)) hideLandedChildren(core, next);
    releaseOne(core, next);
  }
  list.length = 0;
}

function pushPendingChildren(core: Core, block: Block, into: Block[]): void {
  let child = core.records[block * R.RECORD_WORDS + R.WAITING]!;
  while (child !== NO_BLOCK) {
    if (core.pending(child)) into.push(child);
    child = core.records[child * R.RECORD_WORDS + R.NEXT]!;
  }
}

/** Rule 10: a record lives while it has a copy, a child, a lease or a hole. */
function isDead(core: Core, block: Block): boolean {
  const records = core.records;
  const base = block * R.RECORD_WORDS;
  return (
    core.absent(block) &&
    records[base + R.LIVE] === 0 &&
    records[base + R.WAITING] === NO_BLOCK &&
    !core.hasFlag(block, R.FLAG_HOLE)
  );
}

/**
 * Frees the record if nothing needs it; then its parent's, if that lived for this child only, and so on.
 */
export function releaseRecord(core: Core, block: Block): void {
  let next = block;
  while (next !== NO_BLOCK && core.inUse(next)) {
    const parent = core.parentOf(next);
    if (!releaseOne(core, next)) return;
    next = parent;
  }
}

function releaseOne(core: Core, block: Block): boolean {
  if (!isDead(core, block)) return false;
  assert(core.leasesOf(block) === 0, "a leased block lost its record");
  giveUp(core, block);
  core.unlinkWaiting(block);
  core.table.remove(block);
  const records = core.records;
  const base = block * R.RECORD_WORDS;
  const indexed =
    (records[base + R.TIER_FIRST + R.STATUS]! |
      records[base + R.TIER_FIRST + R.TIER_WORDS + R.STATUS]!) &
    (R.IN_HEAP | R.IN_ORPHANS);
  if (indexed === 0) core.table.recycle(block);
  else core.table.zombies += 1;
  return true;
}
