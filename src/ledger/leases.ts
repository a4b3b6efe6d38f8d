/**
 * Leases (rule 7). A lease holds the deepest block of a prefix; rule 2 keeps every ancestor readable for
 * it. It may wait for one deeper block that the same request stores, and moves there when that becomes
 * visible; if that block is given up, it waits for the parent instead, so that it ends on the deepest block
 * that made it. A hole below a lease sends it back to the hole's parent at once. When leases expire is the
 * caller's business.
 */
import { assert } from "../assert.ts";
import { offerBlock } from "./ages.ts";
import type { Core } from "./core.ts";
import * as R from "./table.ts";
import { NO_BLOCK, type Block } from "./types.ts";

const SPARES_MAX = 4_096;

interface Lease {
  instance: number;
  block: Block;
  /** Block it will move to, NO_BLOCK for none. */
  target: Block;
  /** Blocks of an unchained namespace, each held on its own. */
  held: Block[];
  /** Ancestors of `trailFrom` that a LOAD has walked past, from the deepest up; see ancestor(). */
  trail: Block[];
  trailFrom: Block;
}

/** Depths between two blocks of a trail. */
const TRAIL_STEP = 128;

export class LeaseTable {
  readonly #leases = new Map<number, Lease>();
  readonly #followers = new Map<Block, number[]>();
  /** Closed leases, used again: a look-up makes no garbage. */
  readonly #spare: Lease[] = [];

  get size(): number {
    return this.#leases.size;
  }

  has(lease: number): boolean {
    return this.#leases.has(lease);
  }

  open(core: Core, lease: number, instance: number, block: Block): void {
    assert(!this.#leases.has(lease), "lease numbers are unique");
    if (block !== NO_BLOCK) {
      assert(core.isVisible(block), "a lease holds a visible block");
      core.addLeases(block, 1);
    }
    const entry = this.#spare.pop() ?? newLease(instance, block);
    entry.instance = instance;
    entry.block = block;
    this.#leases.set(lease, entry);
  }

  /** Holds one more block of an unchained namespace. */
  hold(core: Core, lease: number, block: Block): void {
    const entry = this.#get(lease);
    assert(core.isVisible(block), "a lease holds visible blocks");
    core.addLeases(block, 1);
    entry.held.push(block);
  }

  holds(lease: number, block: Block): boolean {
    const entry = this.#get(lease);
    return entry.block === block || entry.held.includes(block);
  }

  close(core: Core, lease: number): void {
    const entry = this.#get(lease);
    this.#unfollow(core, lease, entry);
    this.#leases.delete(lease);
    if (entry.block !== NO_BLOCK) release(core, entry.block);
    for (const block of entry.held) release(core, block);
    entry.held.length = 0;
    entry.trail.length = 0;
    entry.trailFrom = NO_BLOCK;
    if (this.#spare.length < SPARES_MAX) this.#spare.push(entry);
  }

  blockOf(lease: number): Block {
    return this.#get(lease).block;
  }

  /**
   * The ancestor of the lease's block that stands at `depth` (at most that block's own). A long prefix is
   * loaded in many pieces, and each walks up from the lease's block: so the walk leaves every 128th block
   * behind as a trail, and the next begins at the nearest one below its depth. They are ancestors of a block
   * that is held, so their records stay; when the lease moves, the trail starts afresh.
   */
  ancestor(core: Core, lease: number, depth: number): Block {
    const entry = this.#get(lease);
    const { trail } = entry;
    if (entry.trailFrom !== entry.block) {
      trail.length = 0;
      entry.trailFrom = entry.block;
    }
    let block = entry.block;
    let at = core.depthOf(block);
    assert(depth > 0 && depth <= at, "an ancestor stands above its descendant");
    const top = Math.floor(at / TRAIL_STEP) * TRAIL_STEP;
    const wanted = Math.ceil(depth / TRAIL_STEP) * TRAIL_STEP;
    if (wanted <= top && trail.length > 0) {
      const index = Math.min((top - wanted) / TRAIL_STEP, trail.length - 1);
      block = trail[index]!;
      at = top - index * TRAIL_STEP;
    }
    for (; at > depth; at -= 1) {
      if (at === top - trail.length * TRAIL_STEP) trail.push(block);
      block = core.parentOf(block);
    }
    return block;
  }

  instanceOf(lease: number): number {
    return this.#get(lease).instance;
  }

  follow(core: Core, lease: number, block: Block): void {
    const entry = this.#get(lease);
    this.#unfollow(core, lease, entry);
    if (core.isVisible(block)) {
      if (reaches(core, block, entry.block)) moveTo(core, entry, block);
      return;
    }
    this.#wait(core, lease, entry, block);
  }

  /** `block` became visible: the leases that wait for it move. */
  arrived(core: Core, block: Block): void {
    for (const lease of this.#takeFollowers(core, block)) {
      const entry = this.#get(lease);
      entry.target = NO_BLOCK;
      if (reaches(core, block, entry.block)) moveTo(core, entry, block);
    }
  }

  /** `block` will not become visible: its followers wait for the deepest ancestor that may still. */
  missed(core: Core, block: Block): void {
    for (const lease of this.#takeFollowers(core, block)) {
      const entry = this.#get(lease);
      entry.target = NO_BLOCK;
      let next = core.parentOf(block);
      while (next !== NO_BLOCK && !core.isVisible(next) && !core.pending(next)) {
        next = core.parentOf(next);
      }
      if (next === NO_BLOCK || !deeper(core, next, entry.block)) continue;
      if (!core.isVisible(next)) this.#wait(core, lease, entry, next);
      else if (reaches(core, next, entry.block)) moveTo(core, entry, next);
    }
  }

  /**
   * Rule 8: blocks became unreadable. Every lease below one falls back to the deepest block that is still
   * whole.
   */
  reduce(core: Core, lost: (block: Block) => boolean, depthLeast: number): void {
    for (const [lease, entry] of this.#leases) {
      if (entry.held.length > 0) this.#reduceHeld(core, lease, entry, lost);
      if (entry.block === NO_BLOCK || core.depthOf(entry.block) < depthLeast) continue;
      let keep = entry.block;
      let block = entry.block;
      while (block !== NO_BLOCK && core.depthOf(block) >= depthLeast) {
        const parent = core.parentOf(block);
        if (lost(block)) keep = parent;
        block = parent;
      }
      if (keep === entry.block) continue;
      this.#unfollow(core, lease, entry);
      const before = entry.block;
      entry.block = keep;
      entry.trailFrom = NO_BLOCK;
      if (keep !== NO_BLOCK) core.addLeases(keep, 1);
      release(core, before);
      core.options.observer.leaseReduced(lease, keep === NO_BLOCK ? 0 : core.depthOf(keep));
    }
  }

  /** For the auditor: how many leases hold each block. */
  countByBlock(): Map<Block, number> {
    const counts = new Map<Block, number>();
    const add = (block: Block): void => {
      if (block !== NO_BLOCK) counts.set(block, (counts.get(block) ?? 0) + 1);
    };
    for (const entry of this.#leases.values()) {
      add(entry.block);
      for (const block of entry.held) add(block);
    }
    return counts;
  }

  /** For the auditor: blocks that some lease waits for. */
  targets(): Set<Block> {
    return new Set(this.#followers.keys());
  }

  #reduceHeld(core: Core, lease: number, entry: Lease, lost: (block: Block) => boolean): void {
    const gone = entry.held.filter((block) => lost(block));
    if (gone.length === 0) return;
    entry.held = entry.held.filter((block) => !lost(block));
    for (const block of gone) release(core, block);
    core.options.observer.leaseReduced(lease, entry.held.length);
  }

  #get(lease: number): Lease {
    const entry = this.#leases.get(lease);
    assert(entry !== undefined, "no such lease: the caller must have checked");
    return entry;
  }

  #wait(core: Core, lease: number, entry: Lease, block: Block): void {
    entry.target = block;
    core.setFlag(block, R.FLAG_FOLLOWED);
    const followers = this.#followers.get(block);
    if (followers === undefined) this.#followers.set(block, [lease]);
    else followers.push(lease);
  }

  #unfollow(core: Core, lease: number, entry: Lease): void {
    if (entry.target === NO_BLOCK) return;
    const left = this.#followers.get(entry.target)!.filter((other) => other !== lease);
    if (left.length > 0) this.#followers.set(entry.target, left);
    else {
      this.#followers.delete(entry.target);
      core.clearFlag(entry.target, R.FLAG_FOLLOWED);
    }
    entry.target = NO_BLOCK;
  }

  #takeFollowers(core: Core, block: Block): number[] {
    const followers = this.#followers.get(block) ?? [];
    this.#followers.delete(block);
    core.clearFlag(block, R.FLAG_FOLLOWED);
    return followers;
  }
}

function newLease(instance: number, block: Block): Lease {
  return { instance, block, target: NO_BLOCK, held: [], trail: [], trailFrom: NO_BLOCK };
}

function deeper(core: Core, block: Block, than: Block): boolean {
  return than === NO_BLOCK || core.depthOf(block) > core.depthOf(than);
}

/**
 * May a lease on `from` move to the visible `block`? It is deeper and, while holes exist (below which
 * blocks stay visible until the scan has passed), everything between them is visible.
 */
function reaches(core: Core, block: Block, from: Block): boolean {
  if (!deeper(core, block, from)) return false;
  if (core.holes.length === 0) return true;
  let next = block;
  while (next !== NO_BLOCK && next !== from && core.isVisible(next)) next = core.parentOf(next);
  return next === from;
}

function moveTo(core: Core, entry: Lease, block: Block): void {
  const before = entry.block;
  entry.block = block;
  entry.trailFrom = NO_BLOCK;
  core.addLeases(block, 1);
  if (before !== NO_BLOCK) release(core, before);
}

function release(core: Core, block: Block): void {
  core.addLeases(block, -1);
  offerBlock(core, block);
}
