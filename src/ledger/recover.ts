/**
 * Start-up from headers (rule 10). The caller adopts the assigned slabs, offers every valid header (over
 * all tiers: ordered by depth, then generation descending), and ends. Of duplicates the first offered, that
 * is the highest generation, wins; a block without all its shards is dropped; a block whose parent has no
 * record is dropped; one whose parent is not visible is an orphan. Times of last access become ages in the
 * same order. The log is written at the end, and only what it can hold.
 */
import { assert } from "../assert.ts";
import { offer } from "./ages.ts";
import type { Core, Namespace, Tier } from "./core.ts";
import { EVENT, isPending } from "./states.ts";
import * as R from "./table.ts";
import { AGES_RECOVERED } from "./timeline.ts";
import { allLanded } from "./fill.ts";
import { abortCopy, hide, logShown, makeVisible, releaseRecord, transition } from "./tree.ts";
import { NO_BLOCK, NO_SLOT, STATE, type Block, type RecoveredBlock, type Slot } from "./types.ts";

/**
 * Times of last access that are believed: from this long before now up to now. One header whose time is a
 * bad clock's would otherwise squeeze all others into one tick.
 */
const BELIEVED_MILLISECONDS = 366 * 24 * 3_600_000;

/** Flags that only calls of engines set, and what they lead to. */
const OF_LIVE_CALLS = R.FLAG_HOLE | R.FLAG_WATCHED | R.FLAG_FOLLOWED;

export class Recovery {
  readonly #core: Core;
  readonly #lastAccess: Float64Array;
  /**
   * What was found last. Headers come depth by depth, chains in the same order in each, so the record behind it is the
   * likely next one: a look at it costs less than one into the index.
   */
  #lastBlock = 0;
  /** It had no record before. */
  #fresh = false;
  /** Copies shown in a row that are of one tier and namespace, and not in its accounts yet. */
  #run = 0;
  #runTier: Tier | undefined;
  #runNamespace: Namespace | undefined;
  #lastParent = 0;
  /** Times of last access run from here to there, over all that was taken. */
  #least = Number.POSITIVE_INFINITY;
  #most = 0;

  constructor(core: Core) {
    assert(core.table.used === 0, "recovery starts with an empty ledger");
    this.#core = core;
    this.#lastAccess = new Float64Array(core.table.blocksMax);
    core.recovering = true;
  }

  /** False: the header leads nowhere; its slot will be free and its header invalidated. */
  offer(
    from: RecoveredBlock,
    tier: Tier,
    words: Uint32Array,
    at: number,
    parentAt: number,
  ): boolean {
    const block = this.#take(from, tier, words, at, parentAt);
    if (block === NO_BLOCK) {
      tier.slots.discard(from.slot);
      return false;
    }
    const { lastAccess } = from;
    // Memory that is read before it is written costs two page faults.
    if (this.#fresh || this.#lastAccess[block]! < lastAccess) this.#lastAccess[block] = lastAccess;
    if (lastAccess < this.#least) this.#least = lastAccess;
    if (lastAccess > this.#most) this.#most = lastAccess;
    return true;
  }

  #take(from: RecoveredBlock, tier: Tier, words: Uint32Array, at: number, parentAt: number): Block {
    const core = this.#core;
    const namespace = core.namespaces[from.namespace];
    if (namespace === undefined || from.shard >= namespace.shards || from.depth < 1) {
      return NO_BLOCK;
    }
    const parent = this.#parent(from, namespace, words, parentAt);
    if (parent === NO_BLOCK && namespace.chained && from.depth > 1) return NO_BLOCK;
    if (!namespace.chained && from.depth !== 1) return NO_BLOCK;
    const { index, keyWords } = namespace;
    let block = this.#lastBlock + 1;
    if (!core.table.holds(block, index, keyWords, words, at)) {
      block = core.table.find(index, keyWords, words, at);
    }
    const fresh = block === NO_BLOCK;
    this.#fresh = fresh;
    if (fresh) {
      if (!core.table.ready || capped(tier)) return NO_BLOCK;
      block = core.table.insert(index, keyWords, words, at, parent, from.depth);
    } else if (core.depthOf(block) !== from.depth || core.parentOf(block) !== parent) {
      return NO_BLOCK;
    } else if (core.stateOf(block, tier.index) === STATE.ABSENT && capped(tier)) return NO_BLOCK;
    if (!this.#takeSlot(from, tier, namespace, block, fresh)) {
      releaseRecord(core, block);
      return NO_BLOCK;
    }
    this.#lastBlock = block;
    return block;
  }

  #parent(from: RecoveredBlock, namespace: Namespace, words: Uint32Array, parentAt: number): Block {
    if (!namespace.chained || from.depth === 1) return NO_BLOCK;
    const core = this.#core;
    const { index, keyWords } = namespace;
    let parent = this.#lastParent + 1;
    if (!core.table.holds(parent, index, keyWords, words, parentAt)) {
      parent = core.table.find(index, keyWords, words, parentAt);
    }
    if (parent !== NO_BLOCK) this.#lastParent = parent;
    return parent !== NO_BLOCK && core.depthOf(parent) === from.depth - 1 ? parent : NO_BLOCK;
  }

  /** `fresh`: the record was just made, and hangs in no waiting list yet; one that is shown at once never does. */
  #takeSlot(
    from: RecoveredBlock,
    tier: Tier,
    namespace: Namespace,
    block: Block,
    fresh: boolean,
  ): boolean {
    const core = this.#core;
    const t = tier.index;
    const first = core.stateOf(block, t) === STATE.ABSENT;
    if (core.stateOf(block, t) > STATE.FILLING) return false;
    if (!first && core.slotOf(block, t, from.shard) !== NO_SLOT) return false;
    if (!tier.slots.take(from.slot, namespace.classOfTier[t]!, block)) return false;
    if (first && namespace.shards === 1 && this.#show(from.slot, tier, namespace, block, fresh)) {
      return true;
    }
    if (first) core.openSlots(block, tier);
    core.setSlot(block, tier, from.shard, from.slot);
    if (fresh) core.linkWaiting(block);
    if (first) transition(core, block, t, EVENT.RESERVE);
    transition(core, block, t, EVENT.START);
    if (!allLanded(core, block, tier)) return true;
    transition(core, block, t, EVENT.LAND);
    makeVisible(core, block);
    if (!core.isVisible(block)) hide(core, block);
    return true;
  }

  /**
   * A copy that is complete in its first header becomes visible in one step if its parent is, and if it is the block's
   * only one or the other is visible: what transition() would do move by move, which is most of what a start takes.
   * False: it takes the long way. The slot was taken.
   */
  #show(slot: Slot, tier: Tier, namespace: Namespace, block: Block, fresh: boolean): boolean {
    const core = this.#core;
    const { records } = core;
    const base = block * R.RECORD_WORDS;
    const flags = records[base + R.NAMESPACE]!;
    const visible = (flags & R.FLAG_VISIBLE) !== 0;
    const parent = records[base + R.PARENT]!;
    if (parent !== NO_BLOCK && !core.isVisible(parent)) return false;
    if (!fresh && (!visible || core.stateOf(block, 1 - tier.index) !== STATE.VISIBLE)) return false;
    if (records[base + R.WAITING] !== NO_BLOCK) return false;
    assert(core.recovering && (flags & OF_LIVE_CALLS) === 0, "nobody waits for a recovered block");
    const part = R.tierWord(tier.index);
    records[base + part + R.SLOT] = slot;
    records[base + part + R.STATUS] = STATE.VISIBLE;
    records[base + R.NAMESPACE] = flags | R.FLAG_VISIBLE | (R.FLAG_TIER << tier.index);
    if (parent !== NO_BLOCK) {
      const above = parent * R.RECORD_WORDS;
      records[above + part + R.CHILDREN] = records[above + part + R.CHILDREN]! + 1;
      if (!visible) records[above + R.LIVE] = records[above + R.LIVE]! + 1;
    }
    this.#count(tier, namespace);
    return true;
  }

  /** One more visible copy; told to the accounts when the next one is of another kind, or a cap looks at them. */
  #count(tier: Tier, namespace: Namespace): void {
    if (tier !== this.#runTier || namespace !== this.#runNamespace) {
      this.#settleRun();
      this.#runTier = tier;
      this.#runNamespace = namespace;
    }
    this.#run += 1;
    if (tier.options.blocksMax > 0) this.#settleRun();
  }

  #settleRun(): void {
    const tier = this.#runTier;
    const namespace = this.#runNamespace;
    const count = this.#run;
    if (tier === undefined || namespace === undefined || count === 0) return;
    tier.stateBlocks[STATE.VISIBLE] = tier.stateBlocks[STATE.VISIBLE]! + count;
    tier.blocks += count;
    const { tenants } = this.#core;
    tenants.addBlocks(namespace.tenant, tier.index, count);
    tenants.addBytes(namespace.tenant, tier.index, count * namespace.classBytes);
    this.#run = 0;
  }

  /** Drops what is incomplete, builds free lists, ages and age indexes. now: milliseconds of Unix time. */
  end(now: number): void {
    const core = this.#core;
    this.#settleRun();
    if (this.#anyPending()) this.#dropPending();
    core.recovering = false;
    for (const tier of core.tiers) tier?.slots.takeEnd();
    this.#index(now);
    logRecovered(core);
    core.tick = AGES_RECOVERED + 1;
    core.flush();
  }

  #anyPending(): boolean {
    for (const tier of this.#core.tiers) {
      if (tier === undefined) continue;
      for (const state of [STATE.RESERVED, STATE.FILLING, STATE.LANDED]) {
        if (tier.stateBlocks[state]! > 0) return true;
      }
    }
    return false;
  }

  /** A block without all its shards goes, and its record if nothing needs that. */
  #dropPending(): void {
    const core = this.#core;
    for (let block = 0; block < core.table.touched; block += 1) {
      for (const tier of core.tiers) {
        if (tier === undefined || !core.inUse(block)) continue;
        if (!isPending(core.stateOf(block, tier.index))) continue;
        abortCopy(core, block, tier);
      }
    }
    for (let block = 0; block < core.table.touched; block += 1) releaseRecord(core, block);
  }

  /**
   * Times (milliseconds) to ticks, keeping their order; equal or nearly equal ones may become equal. In the same pass
   * over the records (each is read from memory anew) what may leave goes into the age indexes.
   */
  #index(now: number): void {
    const core = this.#core;
    const { records, tiers } = core;
    const times = this.#lastAccess;
    const earliest = Number.isFinite(now) ? now - BELIEVED_MILLISECONDS : 0;
    const believed = (time: number): number => Math.min(now, Math.max(earliest, time));
    if (this.#least > this.#most) return; // Nothing was taken.
    const least = believed(this.#least);
    const most = believed(this.#most);
    const scale = most > least ? Math.min(1, (AGES_RECOVERED - 1) / (most - least)) : 1;
    core.timeline.recovered(least, most, 1 + Math.floor((most - least) * scale));
    for (let block = 0; block < core.table.touched; block += 1) {
      const base = block * R.RECORD_WORDS;
      if ((records[base + R.NAMESPACE]! & R.IN_USE) === 0) continue;
      const age = 1 + Math.floor((believed(times[block]!) - least) * scale);
      for (let t = 0; t < tiers.length; t += 1) {
        const tier = tiers[t];
        if (tier === undefined) continue;
        const part = base + R.tierWord(t);
        const state = records[part + R.STATUS]! & R.STATE_MASK;
        records[part + R.AGE] = state === STATE.ABSENT ? 0 : age;
        // Most have a child and may not leave (ages.ts): that is seen at once.
        if (state === STATE.VISIBLE && records[part + R.CHILDREN]! > 0) continue;
        offer(core, block, tier);
      }
    }
  }
}

/**
 * What became visible goes into the log, the lowest tier's copies first, each tier's by depth. Of more than the log
 * keeps, the first would be overwritten by the last: they take their numbers and are not written.
 */
function logRecovered(core: Core): void {
  const { log, tiers } = core;
  let total = 0;
  for (const tier of tiers) total += tier?.stateBlocks[STATE.VISIBLE] ?? 0;
  let skipped = Math.max(0, total - log.readable);
  log.skip(skipped);
  for (let t = tiers.length - 1; t >= 0; t -= 1) {
    const visible = tiers[t]?.stateBlocks[STATE.VISIBLE] ?? 0;
    let left = visible - skipped;
    skipped = Math.max(0, -left);
    // Records were taken by depth: the last ones that count are found from the end.
    let block = core.table.touched;
    for (let found = 0; found < left; ) {
      assert(block > 0, "a tier counts no more visible copies than there are");
      block -= 1;
      if (core.stateOf(block, t) === STATE.VISIBLE) found += 1;
    }
    for (; left > 0; block += 1) {
      if (core.stateOf(block, t) !== STATE.VISIBLE) continue;
      logShown(core, block, t);
      left -= 1;
    }
  }
}

/** The tier holds as many blocks as it may. */
function capped(tier: Tier): boolean {
  const cap = tier.options.blocksMax;
  return cap > 0 && tier.blocks >= cap;
}
