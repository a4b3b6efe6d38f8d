/**
 * Remembers which blocks left DRAM without a copy below. The ledger only counts them; when its count has grown, the
 * removals since are read from its log. While nothing is dropped this costs one comparison.
 */
import type { Ledger } from "../ledger/ledger.ts";
import { LOG_KIND } from "../ledger/log.ts";
import { NO_BLOCK, STATE, TIER } from "../ledger/types.ts";
import { LedgerView } from "../ledger/view.ts";
import { LIMITS } from "../limits.ts";
import { REFUSAL, type Refusals } from "./refusals.ts";

export class Dropped {
  readonly #ledger: Ledger;
  readonly #refusals: Refusals;
  readonly #view: LedgerView;
  #next: number;
  #seen = 0;

  constructor(ledger: Ledger, refusals: Refusals) {
    this.#ledger = ledger;
    this.#refusals = refusals;
    this.#view = new LedgerView(ledger.share());
    this.#next = this.#view.nextSequence;
  }

  /** Called by the coarse timer. */
  step(): void {
    const { evictedUnbacked } = this.#ledger.core.tier(TIER.DRAM);
    const from = Math.max(this.#next, this.#view.nextSequence - LIMITS.refusalsKept);
    this.#next = this.#view.nextSequence;
    if (evictedUnbacked === this.#seen) return;
    this.#seen = evictedUnbacked;
    for (const entry of this.#view.readLog(from, LIMITS.refusalsKept) ?? []) {
      const { kind, tier, namespace, key } = entry;
      if (kind !== LOG_KIND.REMOVED || tier !== TIER.DRAM) continue;
      const block = this.#ledger.find(namespace, key, 0);
      const there = block !== NO_BLOCK && this.#ledger.stateOf(block, TIER.NVME) !== STATE.ABSENT;
      if (there || (block !== NO_BLOCK && this.#ledger.isVisible(block))) continue;
      const { keyWords } = this.#ledger.namespace(namespace);
      this.#refusals.add(namespace, key, 0, keyWords, REFUSAL.EVICTED);
    }
  }
}
