/**
 * Write-through: blocks are copied down in the order in which they became visible, read from the ledger's own log.
 * What the log has already forgotten is copied down when it grows old, as in write-back.
 */
import type { Ledger } from "../ledger/ledger.ts";
import { LOG_KIND } from "../ledger/log.ts";
import { NO_BLOCK, STATE, TIER } from "../ledger/types.ts";
import { LedgerView } from "../ledger/view.ts";

export class WriteThrough {
  readonly #ledger: Ledger;
  readonly #view: LedgerView;
  #next: number;

  constructor(ledger: Ledger) {
    this.#ledger = ledger;
    this.#view = new LedgerView(ledger.share());
    this.#next = this.#view.firstSequence;
  }

  /** Up to `max` blocks that stand in DRAM alone, parents before children. */
  next(into: Uint32Array, max: number): number {
    let count = 0;
    while (count < max) {
      const entries = this.#view.readLog(this.#next, max - count);
      if (entries === undefined) {
        this.#next = this.#view.firstSequence;
        continue;
      }
      if (entries.length === 0) break;
      this.#next += entries.length;
      for (const { kind, tier, namespace, key } of entries) {
        if (kind !== LOG_KIND.STORED || tier !== TIER.DRAM) continue;
        const block = this.#ledger.find(namespace, key, 0);
        if (block === NO_BLOCK || this.#ledger.stateOf(block, TIER.DRAM) !== STATE.VISIBLE)
          continue;
        if (this.#ledger.stateOf(block, TIER.NVME) === STATE.ABSENT) into[count++] = block;
      }
    }
    return count;
  }
}
