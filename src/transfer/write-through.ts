/**
 * Write-through: blocks are copied down in the order in which they became visible, read from the ledger's own log.
 * What was refused comes again after a pause, which doubles for as long as nothing of a round is taken; so many such
 * blocks are remembered. Others, and what the log has already forgotten, are copied down when they grow old, as in
 * write-back.
 */
import type { Ledger } from "../ledger/ledger.ts";
import { LOG_KIND } from "../ledger/log.ts";
import { type Block, NO_BLOCK, STATE, TIER } from "../ledger/types.ts";
import { LedgerView } from "../ledger/view.ts";
import { LIMITS } from "../limits.ts";

export class WriteThrough {
  readonly #ledger: Ledger;
  readonly #view: LedgerView;
  /** Monotonic milliseconds. */
  readonly #now: () => number;
  #next: number;
  /** Refused since the round below began, in order: parents before children. */
  #refused = new Set<Block>();
  /** What is offered once more, from #at on. */
  #round: readonly Block[] = [];
  #at = 0;
  #pauseMs: number = LIMITS.writeThroughRetryMs;
  #retryAt = 0;

  constructor(ledger: Ledger, now: () => number) {
    this.#ledger = ledger;
    this.#now = now;
    this.#view = new LedgerView(ledger.share());
    this.#next = this.#view.firstSequence;
  }

  /** Up to `max` blocks that stand in DRAM alone, parents before children; fewer where the log has much else. */
  next(into: Uint32Array, max: number): number {
    let count = this.#again(into, max);
    let left = LIMITS.writeThroughLogEntriesMax;
    while (count < max && left > 0) {
      const entries = this.#view.readLog(this.#next, Math.min(left, max - count));
      if (entries === undefined) {
        this.#next = this.#view.firstSequence;
        continue;
      }
      if (entries.length === 0) break;
      this.#next += entries.length;
      left -= entries.length;
      for (const { kind, tier, namespace, key } of entries) {
        if (kind !== LOG_KIND.STORED || tier !== TIER.DRAM) continue;
        const block = this.#ledger.find(namespace, key, 0);
        if (this.#stays(block)) into[count++] = block;
      }
    }
    return count;
  }

  /** This block was not taken. Whatever stands in its record later is offered as well as it would have been. */
  refused(block: Block): void {
    if (this.#refused.size === 0) this.#retryAt = this.#now() + this.#pauseMs;
    if (this.#refused.size < LIMITS.writeThroughRetriesMax) this.#refused.add(block);
  }

  /** The next round begins when the one before it has been offered, and its time has come. */
  #again(into: Uint32Array, max: number): number {
    const over = this.#at === this.#round.length;
    if (over && this.#refused.size > 0 && this.#now() >= this.#retryAt) {
      const inVain = this.#round.length > 0 && this.#refused.size >= this.#round.length;
      const longer = Math.min(2 * this.#pauseMs, LIMITS.writeThroughRetryMsMax);
      this.#pauseMs = inVain ? longer : LIMITS.writeThroughRetryMs;
      this.#round = [...this.#refused];
      this.#at = 0;
      this.#refused = new Set();
    }
    let count = 0;
    while (this.#at < this.#round.length && count < max) {
      const block = this.#round[this.#at++]!;
      if (this.#ledger.core.inUse(block) && this.#stays(block)) into[count++] = block;
    }
    return count;
  }

  /** It stands in DRAM, and nothing of it below. */
  #stays(block: Block): boolean {
    if (block === NO_BLOCK) return false;
    const { DRAM, NVME } = TIER;
    const visible = this.#ledger.stateOf(block, DRAM) === STATE.VISIBLE;
    return visible && this.#ledger.stateOf(block, NVME) === STATE.ABSENT;
  }
}
