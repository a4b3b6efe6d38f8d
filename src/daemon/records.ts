/**
 * Whether the ledger has a record for every block that the tiers could hold. How large a block is comes with its
 * namespace, so this is asked when one is opened, at the start for those that the pool knows.
 */
import { assert } from "../assert.ts";
import type { Ledger } from "../ledger/ledger.ts";
import { BLOCKS_MAX } from "../ledger/table.ts";
import { TIER, type NamespaceIndex, type SlabTierOptions } from "../ledger/types.ts";

/** Blocks of one payload size that fill a tier of `slabs` slabs, one slot each shard. */
function blocksOf(options: SlabTierOptions, slabs: number, bytes: number, shards: number): number {
  const blocks = Math.floor((slabs * options.slotsPerSlab(bytes)) / shards);
  return options.blocksMax > 0 ? Math.min(blocks, options.blocksMax) : blocks;
}

export class RecordsCheck {
  readonly #ledger: Ledger;
  readonly #nvmeSlabs: number;
  readonly #warn: (line: string) => void;
  #told: number;

  /** nvmeSlabs: segments that the directories may grow to; 0 without the tier. */
  constructor(ledger: Ledger, nvmeSlabs: number, warn: (line: string) => void) {
    assert(Number.isInteger(nvmeSlabs) && nvmeSlabs >= 0, "a number of segments");
    this.#ledger = ledger;
    this.#nvmeSlabs = nvmeSlabs;
    this.#warn = warn;
    this.#told = ledger.core.table.blocksMax;
  }

  /** Warns if blocks of this namespace could fill the tiers with more blocks than any before, and than there are records. */
  opened(namespace: NamespaceIndex): void {
    const { core } = this.#ledger;
    const { payloadBytes, shards } = this.#ledger.namespace(namespace);
    let blocks = 0;
    for (const tier of core.tiers) {
      if (tier === undefined) continue;
      const planned = tier.index === TIER.NVME ? this.#nvmeSlabs : 0;
      blocks += blocksOf(tier.options, Math.max(tier.slots.slabs, planned), payloadBytes, shards);
    }
    if (blocks <= this.#told) return;
    this.#told = blocks;
    const wanted = Math.min(blocks, BLOCKS_MAX);
    this.#warn(
      `ledger: ${core.table.blocksMax} records, but the tiers have room for ${blocks} blocks of ` +
        `${payloadBytes * shards} bytes: old blocks will go for want of records; set ledger.blocksMax to ${wanted}`,
    );
  }
}
