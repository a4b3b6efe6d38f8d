/**
 * STORE and copies between tiers: reservation, fill, landing (rules 1, 2, 3, 5).
 */
import { assert } from "../assert.ts";
import { CairnError } from "../errors.ts";
import { classify, nextTick, offer, offerBlock, purgeZombies } from "./ages.ts";
import type { Core, Namespace, Tier } from "./core.ts";
import { homeOf, standsOnLost } from "./devices.ts";
import { roomForBlocks, takeSlot } from "./evict.ts";
import { makeRecordRoom } from "./records.ts";
import { FILL } from "./slots.ts";
import { EVENT, isPending } from "./states.ts";
import * as R from "./table.ts";
import { abortCopy, fillFailed, land, releaseRecord, transition } from "./tree.ts";
import {
  NO_BLOCK,
  NO_SLOT,
  RESERVE,
  STATE,
  TIER,
  type Block,
  type ReserveResult,
  type TierIndex,
} from "./types.ts";

/** Where the keys of one STORE stand and what they are. */
export interface ReserveCall {
  namespace: Namespace;
  startDepth: number;
  words: Uint32Array;
  parentAt: number;
  at: number;
  count: number;
  shard: number;
}

/** See LedgerApi.reserve. */
export function reserve(
  core: Core,
  call: ReserveCall,
  statuses: Uint8Array,
  blocks: Uint32Array,
  result: ReserveResult,
): void {
  const { namespace, count, shard } = call;
  assert(statuses.length >= count && blocks.length >= count, "status arrays are too short");
  if (shard < 0 || shard >= namespace.shards) {
    throw new CairnError("shardOutOfRange", `shard ${shard} of ${namespace.shards}`);
  }
  result.wanted = 0;
  result.pending = 0;
  result.parentAbsent = false;
  result.residentDepth = 0;
  result.deepest = NO_BLOCK;
  const parent = findParent(core, call, result);
  if (result.parentAbsent) {
    statuses.fill(RESERVE.PARENT_ABSENT, 0, count);
    blocks.fill(NO_BLOCK, 0, count);
    return;
  }
  checkKeys(core, call, parent);
  nextTick(core);
  try {
    reserveKeys(core, call, parent, statuses, blocks, result);
  } finally {
    core.flush();
  }
}

/** The record of the parent key; sets parentAbsent and residentDepth if nothing may be stored below it. */
function findParent(core: Core, call: ReserveCall, result: ReserveResult): Block {
  const { namespace, startDepth } = call;
  if (startDepth === 0 || !namespace.chained) return NO_BLOCK;
  const parent = core.table.find(namespace.index, namespace.keyWords, call.words, call.parentAt);
  if (parent !== NO_BLOCK && core.depthOf(parent) !== startDepth) {
    throw new CairnError(
      "chainMismatch",
      `the parent key stands at depth ${core.depthOf(parent)}, not ${startDepth}`,
    );
  }
  if (parent !== NO_BLOCK && (core.isVisible(parent) || core.pending(parent))) return parent;
  result.parentAbsent = true;
  let ancestor = parent;
  while (ancestor !== NO_BLOCK && !core.isVisible(ancestor)) ancestor = core.parentOf(ancestor);
  result.residentDepth = ancestor === NO_BLOCK ? 0 : core.depthOf(ancestor);
  return NO_BLOCK;
}

/** Rule 3, and room in the record table, before anything is taken. */
function checkKeys(core: Core, call: ReserveCall, parent: Block): void {
  const { namespace, startDepth, words, at, count } = call;
  const keyWords = namespace.keyWords;
  let above = parent;
  let missing = 0;
  for (let i = 0; i < count; i += 1) {
    const block = core.table.find(namespace.index, keyWords, words, at + i * keyWords);
    if (block === NO_BLOCK) missing += 1;
    // A record outlives its children, so a known key under an unknown one contradicts an earlier STORE,
    // too.
    else if (namespace.chained) checkPlace(core, block, above, startDepth + i + 1);
    above = block;
  }
  if (missing > core.table.free && !recordsFor(core, call, parent, missing)) {
    throw new CairnError("ledgerFull", `${missing} records wanted, ${core.table.free} free`);
  }
}

/** Room in the record table for a STORE, by blocks that it neither names nor continues. */
function recordsFor(core: Core, call: ReserveCall, parent: Block, missing: number): boolean {
  const { namespace, words, at, count } = call;
  const known = [parent];
  for (let i = 0; i < count; i += 1) {
    known.push(
      core.table.find(namespace.index, namespace.keyWords, words, at + i * namespace.keyWords),
    );
  }
  for (const block of known) hold(core, block, 1);
  const room = makeRecordRoom(core, missing);
  for (const block of known) hold(core, block, -1);
  // A record that lived for an orphan below it is given back only now: one more is wanted, one more is free.
  for (const block of known) {
    if (block === NO_BLOCK || !core.inUse(block)) continue;
    offerBlock(core, block);
    releaseRecord(core, block);
  }
  core.flush();
  return room;
}

function checkPlace(core: Core, block: Block, parent: Block, depth: number): void {
  if (core.depthOf(block) === depth && core.parentOf(block) === parent) return;
  throw new CairnError(
    "chainMismatch",
    `a key stands at depth ${core.depthOf(block)} or under another parent, not at ${depth}`,
  );
}

function reserveKeys(
  core: Core,
  call: ReserveCall,
  parent: Block,
  statuses: Uint8Array,
  blocks: Uint32Array,
  result: ReserveResult,
): void {
  const { namespace, startDepth, words, at, count, shard } = call;
  const keyWords = namespace.keyWords;
  let above = parent;
  for (let i = 0; i < count; i += 1) {
    const keyAt = at + i * keyWords;
    const depth = namespace.chained ? startDepth + i + 1 : 1;
    let block = core.table.find(namespace.index, keyWords, words, keyAt);
    if (block !== NO_BLOCK && namespace.chained) {
      if (core.depthOf(block) !== depth || core.parentOf(block) !== above) {
        rollBack(core, shard, statuses, blocks, i);
        checkPlace(core, block, above, depth);
      }
    }
    const status = block === NO_BLOCK ? RESERVE.WANTED : statusOf(core, block, shard);
    const taken =
      status !== RESERVE.WANTED ||
      (block = reserveOne(core, namespace, block, words, keyAt, above, depth, shard)) !== NO_BLOCK;
    if (!taken || status === RESERVE.FULL) {
      statuses.fill(RESERVE.FULL, i, count);
      blocks.fill(NO_BLOCK, i, count);
      return;
    }
    statuses[i] = status;
    blocks[i] = block;
    if (status === RESERVE.WANTED) result.wanted += 1;
    else if (status === RESERVE.PENDING) result.pending += 1;
    result.deepest = block;
    above = namespace.chained ? block : NO_BLOCK;
  }
}

/** A chain that contradicts itself: what this call has taken goes back. */
function rollBack(
  core: Core,
  shard: number,
  statuses: Uint8Array,
  blocks: Uint32Array,
  end: number,
): void {
  for (let i = end - 1; i >= 0; i -= 1) {
    if (statuses[i] !== RESERVE.WANTED || !core.inUse(blocks[i]!)) continue;
    if (isPending(core.stateOf(blocks[i]!, TIER.DRAM))) {
      fillEnd(core, blocks[i]!, TIER.DRAM, shard, false);
    }
  }
}

/**
 * What a STORE of this shard finds in a record that exists. FULL: a slot of the block is still in use by a
 * copy job.
 */
function statusOf(core: Core, block: Block, shard: number): number {
  if (core.isVisible(block)) return RESERVE.PRESENT;
  const dram = core.stateOf(block, TIER.DRAM);
  if (dram === STATE.RESERVED || dram === STATE.FILLING) {
    return core.slotOf(block, TIER.DRAM, shard) === NO_SLOT ? RESERVE.WANTED : RESERVE.PENDING;
  }
  if (core.pending(block) || core.orphan(block)) return RESERVE.PENDING;
  return dram === STATE.ABSENT ? RESERVE.WANTED : RESERVE.FULL;
}

/** Holds a slot for one shard; makes the record if there is none. NO_BLOCK = no room. */
function reserveOne(
  core: Core,
  namespace: Namespace,
  known: Block,
  words: Uint32Array,
  keyAt: number,
  parent: Block,
  depth: number,
  shard: number,
): Block {
  let block = known;
  if (block === NO_BLOCK) {
    if (!core.table.ready) purgeZombies(core);
    block = core.table.insert(namespace.index, namespace.keyWords, words, keyAt, parent, depth);
    core.linkWaiting(block);
  }
  const tier = core.tier(TIER.DRAM);
  const first = core.stateOf(block, TIER.DRAM) === STATE.ABSENT;
  // Rule 2: the reservation counts as a child before a victim is chosen. In this tier it counts once the
  // slot is held.
  // The block's own record is held too: evicting its last orphan child must not free it.
  hold(core, parent, 1);
  hold(core, block, 1);
  const room = !first || roomForBlocks(core, tier, 1);
  const classIndex = namespace.classOfTier[TIER.DRAM]!;
  const slot = room ? takeSlot(core, tier, classIndex, block, 0) : NO_SLOT;
  hold(core, parent, -1);
  hold(core, block, -1);
  if (slot === NO_SLOT) {
    if (parent !== NO_BLOCK) offerBlock(core, parent);
    releaseRecord(core, block);
    return NO_BLOCK;
  }
  if (first) beginCopy(core, block, tier, core.tick);
  core.setSlot(block, tier, shard, slot);
  return block;
}

function hold(core: Core, block: Block, count: number): void {
  if (block === NO_BLOCK) return;
  const word = block * R.RECORD_WORDS + R.LIVE;
  core.records[word] = core.records[word]! + count;
}

export function beginCopy(core: Core, block: Block, tier: Tier, age: number): void {
  core.openSlots(block, tier);
  // An earlier life of this copy may have left its (older) entry in the age index, so an age never goes
  // down.
  const word = block * R.RECORD_WORDS + R.tierWord(tier.index) + R.AGE;
  if (core.records[word]! < age) core.records[word] = age;
  transition(core, block, tier.index, EVENT.RESERVE);
  if (core.policy.classifies) classify(core, block, core.tick);
}

/** A reserved shard's copy job starts. */
export function fillStart(core: Core, block: Block, t: TierIndex, shard: number): void {
  const tier = core.tier(t);
  const slot = core.slotOf(block, t, shard);
  assert(slot !== NO_SLOT, "fillStart of a shard without a slot");
  assert(tier.slots.fillOf(slot) === FILL.RESERVED, "a shard is filled once");
  tier.slots.setFill(slot, FILL.FILLING);
  transition(core, block, t, EVENT.START);
}

/** A shard's copy job ended, or never started and will not. */
export function fillEnd(core: Core, block: Block, t: TierIndex, shard: number, ok: boolean): void {
  const tier = core.tier(t);
  const slot = core.slotOf(block, t, shard);
  assert(slot !== NO_SLOT, "fillEnd of a shard without a slot");
  const filling = tier.slots.fillOf(slot) === FILL.FILLING;
  assert(filling || !ok, "a shard cannot land before its copy started");
  if (core.stateOf(block, t) === STATE.DRAINING) {
    drained(core, block, tier, shard);
    return;
  }
  if (!ok || standsOnLost(core, tier, block)) {
    // The job is over: its slot may go at once. RESERVED and failed slots carry no valid header.
    if (filling) tier.slots.setFill(slot, FILL.LANDED);
    fillFailed(core, block, tier);
    return;
  }
  tier.slots.setFill(slot, FILL.LANDED);
  if (allLanded(core, block, tier)) land(core, block, t);
}

/** One copy job of a draining copy ended; with the last the copy is gone. */
function drained(core: Core, block: Block, tier: Tier, shard: number): void {
  const slot = core.slotOf(block, tier.index, shard);
  tier.slots.setFill(slot, FILL.LANDED);
  core.freeSlot(block, tier, shard);
  const shards = core.namespaceOf(block).shards;
  for (let other = 0; other < shards; other += 1) {
    if (core.slotOf(block, tier.index, other) !== NO_SLOT) return;
  }
  core.freeSlots(block, tier);
  transition(core, block, tier.index, EVENT.DRAINED);
  releaseRecord(core, block);
}

export function allLanded(core: Core, block: Block, tier: Tier): boolean {
  const shards = core.namespaceOf(block).shards;
  for (let shard = 0; shard < shards; shard += 1) {
    const slot = core.slotOf(block, tier.index, shard);
    if (slot === NO_SLOT || tier.slots.fillOf(slot) !== FILL.LANDED) return false;
  }
  return true;
}

/** A reserved shard will not be filled: like a failed fill. A filling one has to end first. */
export function fillAbort(core: Core, block: Block, t: TierIndex, shard: number): void {
  if (!core.inUse(block)) return;
  const slot = core.slotOf(block, t, shard);
  if (slot === NO_SLOT || core.stateOf(block, t) > STATE.FILLING) return;
  if (core.tier(t).slots.fillOf(slot) === FILL.RESERVED) fillEnd(core, block, t, shard, false);
}

export function pin(core: Core, block: Block, tier: TierIndex): void {
  const word = block * R.RECORD_WORDS + R.tierWord(tier) + R.STATUS;
  assert(core.stateOf(block, tier) === STATE.VISIBLE, "only a visible copy is read");
  core.records[word] = core.records[word]! + R.PIN_ONE;
  assert(core.records[word]! >= R.PIN_ONE, "too many pins on one copy");
}

/** A reader of this copy ended; a quarantined slot is freed with its last reader. */
export function unpin(core: Core, block: Block, t: TierIndex): void {
  const word = block * R.RECORD_WORDS + R.tierWord(t) + R.STATUS;
  assert(core.pinsOf(block, t) > 0, "unpin without pin");
  core.records[word] = core.records[word]! - R.PIN_ONE;
  if (core.pinsOf(block, t) > 0) return;
  const tier = core.tier(t);
  if (core.stateOf(block, t) === STATE.QUARANTINED) {
    core.freeSlots(block, tier);
    transition(core, block, t, EVENT.RELEASE);
    releaseRecord(core, block);
  } else offer(core, block, tier);
}

/**
 * Demotion or promotion: pins the source and reserves all shards in the target. False (nothing changed): no
 * visible source, a copy is there already, the parent is not there (missing ancestors go first), or no
 * room.
 */
export function copyBegin(core: Core, block: Block, from: TierIndex, to: TierIndex): boolean {
  const tier = core.tier(to);
  assert(from !== to, "a copy goes to another tier");
  if (core.stateOf(block, from) !== STATE.VISIBLE) return false;
  if (core.stateOf(block, to) !== STATE.ABSENT) return false;
  const parent = core.parentOf(block);
  if (parent !== NO_BLOCK) {
    const above = core.stateOf(parent, to);
    if (above < STATE.RESERVED || above > STATE.VISIBLE) return false;
  }
  pin(core, block, from);
  const age = to < from ? core.tick : core.records[ageWord(block, from)]!;
  // A promotion comes of a use: where the touch did not climb as far as the upper copies (ages.ts), the
  // prefix that this block continues would else be the next to leave.
  if (to < from && parent !== NO_BLOCK) {
    const above = ageWord(parent, to);
    if (core.records[above]! < age) core.records[above] = age;
  }
  // Here the reservation counts in the target tier at once: its parent's copy must not leave for it.
  beginCopy(core, block, tier, age);
  const namespace = core.namespaceOf(block);
  const classIndex = namespace.classOfTier[to]!;
  let room = roomForBlocks(core, tier, 0);
  const home = homeOf(core, tier, block, classIndex);
  for (let shard = 0; room && shard < namespace.shards; shard += 1) {
    const slot = takeSlot(core, tier, classIndex, block, home);
    if (slot === NO_SLOT) room = false;
    else core.setSlot(block, tier, shard, slot);
  }
  if (!room) {
    abortCopy(core, block, tier);
    unpin(core, block, from);
    core.flush();
    return false;
  }
  for (let shard = 0; shard < namespace.shards; shard += 1) fillStart(core, block, to, shard);
  core.flush();
  return true;
}

function ageWord(block: Block, tier: TierIndex): number {
  return block * R.RECORD_WORDS + R.tierWord(tier) + R.AGE;
}

/** The copy job ended (all shards together). A source that proved wrong meanwhile makes it fail. */
export function copyEnd(
  core: Core,
  block: Block,
  from: TierIndex,
  to: TierIndex,
  ok: boolean,
): void {
  const tier = core.tier(to);
  const sound = core.stateOf(block, from) !== STATE.QUARANTINED;
  const good = ok && sound && !standsOnLost(core, tier, block);
  const shards = core.namespaceOf(block).shards;
  const draining = core.stateOf(block, to) === STATE.DRAINING;
  // The pin goes last: it keeps the record while the target's state settles.
  for (let shard = 0; shard < shards; shard += 1) {
    if (good || draining) fillEnd(core, block, to, shard, good);
    else tier.slots.setFill(core.slotOf(block, to, shard), FILL.LANDED);
  }
  if (!good && !draining) fillFailed(core, block, tier);
  unpin(core, block, from);
  core.flush();
}
