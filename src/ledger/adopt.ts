/**
 * Live adoption (rule 10 while serving): a backing store has content that the ledger does not know yet. Its
 * index was rebuilt in the background, a device came back, a directory was added. The caller begins every
 * slab, offers what stands in them (ordered by depth, then generation descending, over all slabs), and ends
 * every slab; other calls may come between.
 *
 * It differs from start-up (recover.ts) in that the tree around is alive: a parent may be pending, a hole or
 * an orphan, and a block may be known from another tier. So each block lands as if it were filled (rule 1)
 * and takes along what waited for it. A tier that is full by its cap, and a table without a record, take
 * nothing: nothing that is in use is dropped for something that was not missed.
 */
import { assert } from "../assert.ts";
import { purgeZombies } from "./ages.ts";
import type { Core, Namespace, Tier } from "./core.ts";
import { allLanded, beginCopy } from "./fill.ts";
import { FILL } from "./slots.ts";
import { EVENT } from "./states.ts";
import { fillFailed, land, releaseRecord, transition } from "./tree.ts";
import { NO_BLOCK, NO_SLOT, STATE, type Block, type RecoveredBlock, type Slot } from "./types.ts";

export class Adoption {
  readonly #core: Core;
  readonly #tier: Tier;
  /** Slabs begun and not ended. */
  readonly #slabs = new Set<number>();
  /** Blocks of several shards of which some have been offered; the slot of one. */
  readonly #partial = new Map<Block, Slot>();

  constructor(core: Core, tier: Tier) {
    this.#core = core;
    this.#tier = tier;
  }

  /** False: copies in flight still use slots of the slab; try again when they have ended. */
  begin(slab: number, payloadBytes: number): boolean {
    assert(!this.#core.recovering, "recovery takes slabs by recoverSlab()");
    if (!this.#tier.slots.adoptBegin(slab, payloadBytes)) return false;
    if (payloadBytes > 0) this.#slabs.add(slab);
    return true;
  }

  /** False: the slot leads nowhere; it will be free and its header invalidated. */
  offer(from: RecoveredBlock, words: Uint32Array, at: number, parentAt: number): boolean {
    const { slots } = this.#tier;
    if (!slots.isAdopting(slots.slabOf(from.slot))) return false;
    const block = this.#take(from, words, at, parentAt);
    if (block === NO_BLOCK && !slots.isTaken(from.slot)) slots.discard(from.slot);
    this.#core.flush();
    return block !== NO_BLOCK;
  }

  /** The slab gives out its free slots. With the last one, blocks that lack a shard are given up. */
  end(slab: number): void {
    this.#tier.slots.adoptEnd(slab);
    this.#slabs.delete(slab);
    if (this.#slabs.size === 0) this.#dropPartial();
    this.#core.flush();
  }

  #take(from: RecoveredBlock, words: Uint32Array, at: number, parentAt: number): Block {
    const core = this.#core;
    const namespace = core.namespaces[from.namespace];
    if (namespace === undefined || from.shard >= namespace.shards || from.depth < 1)
      return NO_BLOCK;
    if (!namespace.chained && from.depth !== 1) return NO_BLOCK;
    const { index, keyWords } = namespace;
    let parent = NO_BLOCK;
    if (from.depth > 1) {
      parent = core.table.find(index, keyWords, words, parentAt);
      if (parent === NO_BLOCK || core.depthOf(parent) !== from.depth - 1) return NO_BLOCK;
    }
    let block = core.table.find(index, keyWords, words, at);
    if (block === NO_BLOCK) {
      if (core.table.free === 0 || this.#capped()) return NO_BLOCK;
      if (!core.table.ready) {
        purgeZombies(core);
        core.table.find(index, keyWords, words, at);
      }
      block = core.table.insert(index, keyWords, words, at, parent, from.depth);
      core.linkWaiting(block);
    } else if (core.depthOf(block) !== from.depth || core.parentOf(block) !== parent) {
      return NO_BLOCK;
    }
    if (this.#takeSlot(from, namespace, block)) return block;
    releaseRecord(core, block);
    return NO_BLOCK;
  }

  #takeSlot(from: RecoveredBlock, namespace: Namespace, block: Block): boolean {
    const core = this.#core;
    const tier = this.#tier;
    const t = tier.index;
    const state = core.stateOf(block, t);
    const first = state === STATE.ABSENT;
    if (state > STATE.FILLING || (first && this.#capped())) return false;
    if (!first && core.slotOf(block, t, from.shard) !== NO_SLOT) return false;
    const classIndex = namespace.classOfTier[t]!;
    if (!tier.slots.take(from.slot, classIndex, block)) return false;
    if (first) beginCopy(core, block, tier, core.timeline.ageOf(from.lastAccess));
    core.setSlot(block, tier, from.shard, from.slot);
    transition(core, block, t, EVENT.START);
    if (!allLanded(core, block, tier)) {
      this.#partial.set(block, from.slot);
      return true;
    }
    this.#partial.delete(block);
    land(core, block, t);
    return true;
  }

  #capped(): boolean {
    const cap = this.#tier.options.blocksMax;
    return cap > 0 && this.#tier.blocks >= cap;
  }

  #dropPartial(): void {
    const core = this.#core;
    const t = this.#tier.index;
    for (const [block, slot] of this.#partial) {
      // It may have been aborted meanwhile, and its record or slot be another's.
      if (!this.#tier.slots.isTaken(slot) || this.#tier.slots.ownerOf(slot) !== block) continue;
      if (core.stateOf(block, t) !== STATE.FILLING) continue;
      if (!this.#onlyAdopted(block)) continue;
      fillFailed(core, block, this.#tier);
    }
    this.#partial.clear();
  }

  /** No copy job fills another shard of this copy, or will. */
  #onlyAdopted(block: Block): boolean {
    const { shards } = this.#core.namespaceOf(block);
    for (let shard = 0; shard < shards; shard += 1) {
      const slot = this.#core.slotOf(block, this.#tier.index, shard);
      if (slot !== NO_SLOT && this.#tier.slots.fillOf(slot) !== FILL.LANDED) return false;
    }
    return true;
  }
}
