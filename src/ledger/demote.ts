/**
 * Which blocks to copy down next, ahead of eviction (rule 5): the leaves that leave first, in the order of the
 * age index, that have no copy below; of each the ancestors that are missing there, from the root down.
 *
 * The index is a heap, so the oldest k are had by taking k entries off and putting them back: k log n, no sort
 * of everything, and entries that have fallen stale are dropped on the way. What one call looks at is bounded;
 * behind that many copies which are all backed, nothing is urgent.
 *
 * A block that was refused (not worth its bytes, no budget, no room) is stamped with a coarse logical time and
 * is not offered again until some time has passed, or it was used.
 */
import { assert } from "../assert.ts";
import { ageRank, oldestLeaf, oldestOrphan } from "./ages.ts";
import type { Core, Tier } from "./core.ts";
import { homeOf } from "./devices.ts";
import { AgeHeap } from "./heap.ts";
import { isLive } from "./states.ts";
import * as R from "./table.ts";
import { NO_BLOCK, STATE, type Block, type TierIndex } from "./types.ts";

/** Entries of the age indexes that one call looks at, and ancestors it climbs. */
const LEAVES_MAX = 1_024;
const CLIMB_MAX = 65_536;
/** Ticks that a refusal counts for, at least; at most twice as many. */
const REFUSED_TICKS_SHIFT = 14;

/** Entries taken off: [rank, block, class, device] each. */
const TAKEN_WORDS = 4;
const taken = new Float64Array(LEAVES_MAX * TAKEN_WORDS);

/**
 * Shows `visit` the copies of a tier that may leave, oldest first, until it returns false or LEAVES_MAX were
 * seen. The visitor changes nothing.
 */
function walkOldest(core: Core, tier: Tier, visit: (block: Block) => boolean): void {
  let count = 0;
  let more = true;
  while (more && count < LEAVES_MAX) {
    const at = count * TAKEN_WORDS;
    const best = oldestHeap(core, tier, at);
    if (best === undefined) break;
    const block = best.blockAt(0);
    taken[at] = best.rankAt(0);
    taken[at + 1] = block;
    best.pop();
    count += 1;
    more = visit(block);
  }
  for (let at = 0; at < count * TAKEN_WORDS; at += TAKEN_WORDS) {
    tier.heaps[taken[at + 2]!]![taken[at + 3]!]!.push(taken[at]!, taken[at + 1]!);
  }
}

/** The age index with the oldest copy that may leave on top; its class and device go to taken[at + 2 …]. */
function oldestHeap(core: Core, tier: Tier, at: number): AgeHeap | undefined {
  let best: AgeHeap | undefined;
  for (let c = 0; c < tier.heaps.length; c += 1) {
    for (let d = 0; d < tier.slots.devices; d += 1) {
      if (oldestLeaf(core, tier, c, d) === NO_BLOCK) continue;
      const heap = tier.heaps[c]![d]!;
      if (best !== undefined && heap.rankAt(0) >= best.rankAt(0)) continue;
      best = heap;
      taken[at + 2] = c;
      taken[at + 3] = d;
    }
  }
  return best;
}

/** See LedgerApi.demotable. */
export function demotable(
  core: Core,
  from: TierIndex,
  to: TierIndex,
  into: Uint32Array,
  max: number,
): number {
  assert(
    from !== to && into.length >= max,
    "a copy goes to another tier, and is written somewhere",
  );
  const offered = new Set<Block>();
  const missing: Block[] = [];
  let steps = CLIMB_MAX;
  let count = 0;
  walkOldest(core, core.tier(from), (leaf) => {
    missing.length = 0;
    let block = leaf;
    let admitted = true;
    while (block !== NO_BLOCK && steps > 0 && !offered.has(block)) {
      const state = core.stateOf(block, to);
      if (isLive(state)) break;
      steps -= 1;
      // In another state a copy of before is still going; below a refused block nothing is admitted.
      admitted &&= state === STATE.ABSENT && core.stateOf(block, from) === STATE.VISIBLE;
      admitted &&= !isRefused(core, block);
      missing.push(block);
      block = core.parentOf(block);
    }
    if (!admitted || steps === 0) return steps > 0;
    for (let i = missing.length - 1; i >= 0 && count < max; i -= 1) {
      into[count] = missing[i]!;
      offered.add(missing[i]!);
      count += 1;
    }
    return count < max;
  });
  return count;
}

/** See LedgerApi.unbacked. */
export function unbacked(core: Core, from: TierIndex, to: TierIndex, depth: number): number {
  assert(from !== to && depth >= 0, "a lower copy stands in another tier");
  // Each block of a LOAD from a disk asks for the next one alone: nothing is taken off for that.
  if (depth === 1) {
    const next = oldestHeap(core, core.tier(from), 0);
    return next === undefined || core.complete(next.blockAt(0), from) ? 0 : 1;
  }
  const count = new LeavingCount(core, from, depth);
  walkOldest(core, core.tier(from), (leaf) => count.leaf(leaf));
  return count.end();
}

/** Follows the order of leaving: a block whose last child here has left is the next leaf at its own age. */
class LeavingCount {
  readonly #core: Core;
  readonly #tier: TierIndex;
  readonly #depth: number;
  /** Children that have left, of blocks that have several. */
  readonly #gone = new Map<Block, number>();
  readonly #released = new AgeHeap();
  #left = 0;
  #missing = 0;

  constructor(core: Core, tier: TierIndex, depth: number) {
    this.#core = core;
    this.#tier = tier;
    this.#depth = depth;
  }

  /** The next leaf of the age index; false: enough have left. */
  leaf(block: Block): boolean {
    const rank = ageRank(this.#core, block, this.#tier);
    this.#leaveReleased(rank);
    if (this.#left < this.#depth) this.#leave(block, rank);
    return this.#left < this.#depth;
  }

  /** How many of those that left had no copy elsewhere. */
  end(): number {
    this.#leaveReleased(Number.POSITIVE_INFINITY);
    return this.#missing;
  }

  #leaveReleased(rank: number): void {
    const released = this.#released;
    while (this.#left < this.#depth && released.length > 0 && released.rankAt(0) <= rank) {
      const block = released.blockAt(0);
      const own = released.rankAt(0);
      released.pop();
      this.#leave(block, own);
    }
  }

  #leave(block: Block, rank: number): void {
    const core = this.#core;
    this.#left += 1;
    if (!core.complete(block, this.#tier)) this.#missing += 1;
    const parent = core.parentOf(block);
    if (parent === NO_BLOCK || core.stateOf(parent, this.#tier) !== STATE.VISIBLE) return;
    const word = parent * R.RECORD_WORDS + R.tierWord(this.#tier) + R.CHILDREN;
    const children = core.records[word]!;
    if (children > 1) {
      const gone = (this.#gone.get(parent) ?? 0) + 1;
      this.#gone.set(parent, gone);
      if (gone < children) return;
    }
    if (core.pinsOf(parent, this.#tier) > 0) return;
    if (core.leasesOf(parent) > 0 && !core.complete(parent, this.#tier)) return;
    this.#released.push(Math.max(rank, ageRank(core, parent, this.#tier)), parent);
  }
}

/** See LedgerApi.worthRoom. */
export function worthRoom(
  core: Core,
  block: Block,
  from: TierIndex,
  to: TierIndex,
  growing: boolean,
): boolean {
  assert(from !== to, "a copy goes to another tier");
  const tier = core.tier(to);
  const classIndex = core.namespaceOf(block).classOfTier[to]!;
  const home = homeOf(core, tier, block, classIndex);
  const { blocksMax, highWatermark } = tier.options;
  const total = blocksMax > 0 ? blocksMax : tier.slots.slotsTotalOf(home);
  const used = blocksMax > 0 ? tier.blocks : tier.slots.slotsUsedOf(home);
  if (used + 1 <= total * highWatermark) return true;
  if (growing) return false;
  if (oldestOrphan(core, tier, classIndex, home) !== NO_BLOCK) return true;
  const leaf = oldestLeaf(core, tier, classIndex, home);
  return leaf === NO_BLOCK || ageRank(core, leaf, to) < ageRank(core, block, from);
}

/** The block is not offered by demotable() for a while. */
export function refuse(core: Core, block: Block): void {
  if (!core.inUse(block)) return;
  const word = block * R.RECORD_WORDS + R.NAMESPACE;
  const flags = core.records[word]! & (R.REFUSED_ONE - 1);
  core.records[word] = flags + epochOf(core) * R.REFUSED_ONE;
}

function isRefused(core: Core, block: Block): boolean {
  const stamp = core.records[block * R.RECORD_WORDS + R.NAMESPACE]! >>> R.REFUSED_SHIFT;
  if (stamp === 0) return false;
  const passed = (epochOf(core) - stamp + R.REFUSED_MAX) % R.REFUSED_MAX;
  return passed <= 1;
}

/** Coarse logical time from 1 to REFUSED_MAX, over and over. */
function epochOf(core: Core): number {
  return 1 + ((core.tick >>> REFUSED_TICKS_SHIFT) % R.REFUSED_MAX);
}
