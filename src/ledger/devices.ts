/**
 * Devices of a tier (NVMe: one directory each). Every slab stands on one, so every slot does.
 *
 * A block goes where its parent stands, so that a chain lies on one device and a device that fails costs its
 * share of the chains, not a piece of every one. Roots go where most room is. When the home device is full, a
 * free slot on another comes before evicting: while the tier fills, dropping blocks beside unused room would be
 * waste. Once all are full, the home device's own oldest leave (evict.ts): evicting the oldest of the whole
 * tier instead would put every new block of a chain on another device. The devices are so many
 * LRUs side by side, and roots, which go to the device with the oldest leaf, keep their ages alike. For the same
 * reason the watermarks are kept per device: room at home is what makes the next block stay there.
 *
 * A closed device (read-only, draining) gives out no slots and is not evicted from, but where its blocks keep
 * the ancestors on other devices from leaving. A lost one (fenced) has no block any more.
 */
import { dropBit, offer, oldestLeaf } from "./ages.ts";
import type { Core, Tier } from "./core.ts";
import { loseCopies } from "./holes.ts";
import * as R from "./table.ts";
import { NO_BLOCK, NO_SLOT, STATE, type Block } from "./types.ts";

/** Where a new copy of the block should go. */
export function homeOf(core: Core, tier: Tier, block: Block, classIndex: number): number {
  const { slots } = tier;
  if (slots.devices === 1) return 0;
  const parent = core.parentOf(block);
  const slot = parent === NO_BLOCK ? NO_SLOT : core.slotOf(parent, tier.index, 0);
  if (slot !== NO_SLOT) {
    const device = slots.deviceOf(slot);
    if (!slots.isDeviceClosed(device) && !slots.isLost(slots.slabOf(slot))) return device;
  }
  const roomiest = slots.roomiest(classIndex);
  return roomiest >= 0 ? roomiest : oldestDevice(core, tier, classIndex);
}

/** The device that gives out slots and has the oldest leaf of this class; 0 if none may leave. */
function oldestDevice(core: Core, tier: Tier, classIndex: number): number {
  let best = 0;
  let bestRank = Number.POSITIVE_INFINITY;
  for (let device = 0; device < tier.slots.devices; device += 1) {
    if (tier.slots.isDeviceClosed(device)) continue;
    const block = oldestLeaf(core, tier, classIndex, device);
    if (block === NO_BLOCK) continue;
    const rank = tier.heaps[classIndex]![device]!.rankAt(0);
    if (rank >= bestRank) continue;
    best = device;
    bestRank = rank;
  }
  return best;
}

/** Does any shard of this copy stand in a slab that `holds`? */
function anyShard(core: Core, tier: Tier, block: Block, holds: (slab: number) => boolean): boolean {
  const { shards } = core.namespaceOf(block);
  for (let shard = 0; shard < shards; shard += 1) {
    const slot = core.slotOf(block, tier.index, shard);
    if (slot !== NO_SLOT && holds(tier.slots.slabOf(slot))) return true;
  }
  return false;
}

/** A copy into a slab that was lost meanwhile has failed, whatever its job says. */
export function standsOnLost(core: Core, tier: Tier, block: Block): boolean {
  const { slots } = tier;
  return slots.anyLost && anyShard(core, tier, block, (slab) => slots.isLost(slab));
}

/**
 * The device was fenced: every complete copy with a shard there is lost (rule 8). Its slabs give out nothing
 * until they are adopted; slots freed there are not announced. Copies in flight end with their jobs. Returns
 * copies lost.
 */
export function loseDevice(core: Core, tier: Tier, device: number): number {
  const { slots } = tier;
  slots.loseDevice(device);
  const lost = loseCopies(core, tier, (block) =>
    anyShard(
      core,
      tier,
      block,
      (slab) => slots.deviceOfSlab(slab) === device && slots.isLost(slab),
    ),
  );
  forget(core, tier, device, () => false);
  return lost;
}

/**
 * A block that left a device and came back on another keeps its entry in the first one's age index until that comes
 * up (ages.ts); on a closed device it never does, and the block could not leave. Moves such entries to where their
 * blocks are; false: there was none. Reads the indexes of closed devices from end to end, so it is asked only where
 * no room can be made otherwise, and answers at once while no copy has left a closed device since.
 */
export function gatherStrays(core: Core, tier: Tier): boolean {
  if (!tier.strays) return false;
  tier.strays = false;
  let moved = false;
  for (let device = 0; device < tier.slots.devices; device += 1) {
    if (!tier.slots.isDeviceClosed(device)) continue;
    const stands = (block: Block, state: number): boolean =>
      core.inUse(block) &&
      core.stateOf(block, tier.index) === state &&
      core.deviceOf(block, tier) === device;
    moved = forget(core, tier, device, stands) || moved;
  }
  return moved;
}

/**
 * Drops from the age indexes of a device what may not stay (`stays` is told the state that the index is of), and
 * offers those blocks anew. True if any is in use.
 */
function forget(
  core: Core,
  tier: Tier,
  device: number,
  stays: (block: Block, state: number) => boolean,
): boolean {
  const dropped: Block[] = [];
  for (const [heaps, bit, state] of [
    [tier.heaps, R.IN_HEAP, STATE.VISIBLE],
    [tier.orphans, R.IN_ORPHANS, STATE.ORPHAN],
  ] as const) {
    const keep = (block: Block): boolean => {
      if (stays(block, state)) return true;
      dropBit(core, block, tier.index, bit);
      dropped.push(block);
      return false;
    };
    for (const devices of heaps) devices[device]?.rebuild(keep, (rank) => rank);
  }
  // An entry may be that of a block which came back on another device.
  const used = dropped.filter((block) => core.inUse(block));
  for (const block of used) offer(core, block, tier);
  return used.length > 0;
}
