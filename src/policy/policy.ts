/**
 * What decides who leaves, who enters and what a hint means. The ledger keeps the rules of the tree (who
 * *may* leave); the policy only orders those.
 *
 * The ledger asks for a rank when a block enters the age index and once more when it surfaces there, never
 * per touch. That asks one thing of a policy: while a block stays, its rank does not go down but by
 * `reRank`, on which the ledger rebuilds the indexes. A learned policy gives each block a class of up to
 * 256 (hit count × gap × hint × tenant) and ranks by (age, class); LRU ranks by age and ignores classes.
 */
import type { HintRequest, HintVerdict } from "./hints.ts";

/** What is known of a block when it is classified; one reused object, copy what must outlive the call. */
export interface ClassFeatures {
  /** Earlier uses, saturating at 4095. */
  hits: number;
  /** Logical ticks since the last use. */
  gap: number;
  depth: number;
  tenant: number;
  namespace: number;
  /** Class the block had before. */
  policyClass: number;
}

/** What a tier move or an admission would cost and save. */
export interface ValueFeatures {
  readonly features: ClassFeatures;
  readonly recomputeMicroseconds: number;
  readonly loadMicroseconds: number;
  readonly bytes: number;
}

export interface EvictionPolicy {
  readonly name: string;
  /** False: order is by age alone, and the ledger never calls classify(). */
  readonly classifies: boolean;
  /** New class (0…255) of a block that was stored or used. */
  classify(features: ClassFeatures): number;
  /**
   * Order of leaving, lowest first; a 32-bit unsigned integer, not falling while `age` rises within one
   * class.
   */
  rank(age: number, policyClass: number): number;
  /** Worth of keeping (or writing) the block, microseconds saved per byte; 0 = never. */
  value(value: ValueFeatures): number;
  /** What the policy makes of a hint; advisory. */
  hint(request: HintRequest): HintVerdict;
}
