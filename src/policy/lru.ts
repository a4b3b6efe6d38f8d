/**
 * Leaf-first LRU: the default, and the floor that every other policy is measured against. The order is age
 * alone; that leaves go before their parents is a rule of the ledger, not of the policy.
 */
import type { HintRequest, HintVerdict } from "./hints.ts";
import type { ClassFeatures, EvictionPolicy, ValueFeatures } from "./policy.ts";

const TOUCHED: HintVerdict = {
  verdict: "clipped",
  effect: "touch",
  reason: "lru has no time to live: the block counts as just used",
};
const EXPIRED: HintVerdict = { verdict: "accepted", effect: "expire" };
const REFUSED: HintVerdict = {
  verdict: "refused",
  effect: "none",
  reason: "lru orders by last use only",
};

export class LruPolicy implements EvictionPolicy {
  readonly name = "lru";
  readonly classifies = false;

  classify(_features: ClassFeatures): number {
    return 0;
  }

  rank(age: number, _policyClass: number): number {
    return age;
  }

  /** LRU admits whatever is quicker to load than to compute. */
  value(value: ValueFeatures): number {
    const saved = value.recomputeMicroseconds - value.loadMicroseconds;
    return saved > 0 && value.bytes > 0 ? saved / value.bytes : 0;
  }

  hint(request: HintRequest): HintVerdict {
    if (request.kind === "retain") return TOUCHED;
    if (request.kind === "drop" || request.kind === "sessionEnd") return EXPIRED;
    return REFUSED;
  }
}
