/**
 * Whether DRAM may take a block that stands on NVMe already: there is a free slot, or what would leave for it has a
 * copy below. A promotion saves a read; a block that leaves without a copy has to be computed again.
 */
import type { Ledger } from "../ledger/ledger.ts";
import { TIER } from "../ledger/types.ts";

export function mayPromote(ledger: Ledger): boolean {
  const { slots, options, blocks } = ledger.core.tier(TIER.DRAM);
  const capped = options.blocksMax > 0 && blocks >= options.blocksMax;
  if (!capped && (slots.slabsFree > 0 || slots.slotsUsed < slots.slotsTotal)) return true;
  return ledger.unbacked(TIER.DRAM, TIER.NVME, 1) === 0;
}
