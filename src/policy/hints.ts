/**
 * Hints are advice: an engine says what it expects, the policy says what it made of it. None of them can
 * pin a block (leases do) or hurt another tenant.
 *
 * - retain: the chain will be used again; `ttlMs` says how long to believe it.
 * - drop: the chain will not be used again.
 * - priority: `value` from 0 (none) to 100 (most).
 * - sessionEnd: the conversation is over; the tail of the chain is likely dead, the shared head is not.
 * - nextUse: expected in `ttlMs`.
 */
export const HINT_KINDS = ["retain", "drop", "priority", "sessionEnd", "nextUse"] as const;
export type HintKind = (typeof HINT_KINDS)[number];

export interface HintRequest {
  readonly kind: HintKind;
  readonly ttlMs?: number;
  readonly value?: number;
}

/** What the ledger does at once because of a hint. */
export type HintEffect = "none" | "touch" | "expire";

export interface HintVerdict {
  readonly verdict: "accepted" | "clipped" | "refused";
  readonly effect: HintEffect;
  readonly reason?: string;
}
