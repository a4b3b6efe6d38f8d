/** Last use of each DRAM copy into its header, so that the next start evicts in the same order. */
import type { Addon } from "../../addon/binding.ts";
import type { Ledger } from "../ledger/ledger.ts";
import { NO_SLOT, STATE, TIER } from "../ledger/types.ts";

const BATCH = 65_536;

/** Ages are logical; only their order is kept, as milliseconds that end now. */
export function persistAges(ledger: Ledger, addon: Pick<Addon, "arenaTouch">, arena: number): void {
  const slots = new Uint32Array(BATCH);
  const times = new Float64Array(BATCH);
  const { core } = ledger;
  const origin = Date.now() - core.tick;
  let count = 0;
  for (let block = 0; block < core.table.touched; block++) {
    if (!core.inUse(block) || core.stateOf(block, TIER.DRAM) !== STATE.VISIBLE) continue;
    const { shards } = core.namespaceOf(block);
    for (let shard = 0; shard < shards; shard++) {
      const slot = core.slotOf(block, TIER.DRAM, shard);
      if (slot === NO_SLOT) continue;
      slots[count] = slot;
      times[count] = Math.max(1, origin + ledger.ageOf(block, TIER.DRAM));
      count++;
      if (count < BATCH) continue;
      addon.arenaTouch(arena, slots, times, count);
      count = 0;
    }
  }
  if (count > 0) addon.arenaTouch(arena, slots, times, count);
}
