/**
 * Live growth and shrinking of a tier. Growing adds slabs at the end. Shrinking closes slabs from the end:
 * what may leave and is not worth a copy is evicted by the caller's choice of `evictFirst`; the rest is
 * moved. The ledger plans moves (slot → slot), the caller copies, then reports each with moved(). A slot
 * that is pinned or filling is not moved; the caller asks again.
 */
import { assert } from "../assert.ts";
import type { Core, Tier } from "./core.ts";
import { pin, unpin } from "./fill.ts";
import { FILL, SLOT_INDEX_BITS } from "./slots.ts";
import { NO_SLOT, STATE, type Block, type Slot } from "./types.ts";

/** Words of one planned move: from slot, to slot, block, shard. */
export const MOVE_WORDS = 4;

/**
 * Closes the slab and plans up to `movesMax` moves out of it, MOVE_WORDS words each in `moves`. Sources are
 * pinned until moved(). Returns how many; 0 with slabEmpty() false means: pinned or no room, try later (or
 * evict).
 */
export function planMoves(
  core: Core,
  tier: Tier,
  slab: number,
  moves: Uint32Array,
  movesMax: number,
): number {
  const slots = tier.slots;
  slots.close(slab);
  const classIndex = slots.slabClass(slab);
  if (classIndex < 0) return 0;
  let planned = 0;
  for (let index = 0; index < slots.slabFresh(slab) && planned < movesMax; index += 1) {
    const from = ((slab << SLOT_INDEX_BITS) | index) >>> 0;
    if (slots.fillOf(from) !== FILL.LANDED) continue;
    const block = slots.ownerOf(from);
    if (core.stateOf(block, tier.index) !== STATE.VISIBLE) continue;
    if (core.pinsOf(block, tier.index) > 0) continue;
    const to = slots.allocate(classIndex, block, slots.deviceOfSlab(slab));
    if (to === NO_SLOT) break;
    pin(core, block, tier.index);
    tier.movesInFlight += 1;
    moves[planned * MOVE_WORDS] = from;
    moves[planned * MOVE_WORDS + 1] = to;
    moves[planned * MOVE_WORDS + 2] = block;
    moves[planned * MOVE_WORDS + 3] = shardOf(core, block, tier, from);
    planned += 1;
  }
  return planned;
}

/**
 * The copy of a planned move ended. ok: the block stands in the new slot; else the new slot is freed again.
 */
export function moved(
  core: Core,
  tier: Tier,
  block: Block,
  shard: number,
  from: Slot,
  to: Slot,
  ok: boolean,
): void {
  assert(core.slotOf(block, tier.index, shard) === from, "the block is not where the move began");
  const stays = core.stateOf(block, tier.index);
  const good = ok && (stays === STATE.VISIBLE || stays === STATE.ORPHAN);
  tier.slots.setFill(to, FILL.LANDED);
  if (good) {
    core.freeSlot(block, tier, shard);
    core.setSlot(block, tier, shard, to);
  } else tier.slots.free(to, true);
  tier.movesInFlight -= 1;
  unpin(core, block, tier.index);
  core.flush();
}

function shardOf(core: Core, block: Block, tier: Tier, slot: Slot): number {
  const shards = core.namespaceOf(block).shards;
  for (let shard = 0; shard < shards; shard += 1) {
    if (core.slotOf(block, tier.index, shard) === slot) return shard;
  }
  assert(false, "a slot's owner does not know it");
  return 0;
}
