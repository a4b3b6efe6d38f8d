import { expect, test } from "vitest";
import { HINT_KINDS, type HintRequest, type HintVerdict } from "../../src/policy/hints.ts";
import { LruPolicy } from "../../src/policy/lru.ts";
import type { ClassFeatures, EvictionPolicy, ValueFeatures } from "../../src/policy/policy.ts";
import { Small } from "../ledger/small.ts";

const FEATURES: ClassFeatures = {
  hits: 0,
  gap: 0,
  depth: 1,
  tenant: 0,
  namespace: 0,
  policyClass: 0,
};

test("lru ranks by age alone", () => {
  const lru = new LruPolicy();
  for (const age of [0, 1, 77, 2 ** 31, 2 ** 32 - 1]) {
    expect(lru.rank(age, 0)).toBe(age);
    expect(lru.rank(age, 200)).toBe(age);
  }
  expect(lru.classifies).toBe(false);
  expect(lru.classify(FEATURES)).toBe(0);
});

test("lru values a block by the time a load saves per byte, never below zero", () => {
  const lru = new LruPolicy();
  const value = (
    recomputeMicroseconds: number,
    loadMicroseconds: number,
    bytes: number,
  ): number => {
    const features: ValueFeatures = {
      features: FEATURES,
      recomputeMicroseconds,
      loadMicroseconds,
      bytes,
    };
    return lru.value(features);
  };
  expect(value(1_000, 200, 400)).toBe(2);
  expect(value(100, 200, 400)).toBe(0);
  expect(value(1_000, 200, 0)).toBe(0);
});

test("every hint has an answer, and none of them is an error", () => {
  const lru = new LruPolicy();
  const verdicts = HINT_KINDS.map((kind) => lru.hint({ kind }).verdict);
  expect(verdicts).toEqual(["clipped", "accepted", "refused", "accepted", "refused"]);
});

/** A policy with two classes: blocks used more than once outlive all others. */
class TwoClasses implements EvictionPolicy {
  readonly name = "two-classes";
  readonly classifies = true;

  classify(features: ClassFeatures): number {
    return features.hits > 1 ? 1 : 0;
  }

  rank(age: number, policyClass: number): number {
    return Math.min(2 ** 32 - 1, age + policyClass * 2 ** 31);
  }

  value(_value: ValueFeatures): number {
    return 1;
  }

  hint(_request: HintRequest): HintVerdict {
    return { verdict: "refused", effect: "none" };
  }
}

test("a policy with classes decides the order through the same interface", () => {
  const run = (policy: EvictionPolicy): number[] => {
    const s = new Small({ dram: 3, policy });
    for (const chain of ["a", "b", "c"]) s.store(chain);
    s.ledger.touch(s.block("a"));
    for (const chain of ["b", "c"]) s.ledger.touch(s.block(chain));
    s.ledger.touch(s.block("a"));
    for (const chain of ["x", "y", "z"]) s.store(chain);
    s.ledger.audit();
    return ["a", "b", "c", "x", "y", "z"].map((chain) => s.hit(chain));
  };
  expect(run(new LruPolicy())).toEqual([0, 0, 0, 1, 1, 1]);
  // a, b and c were used twice: b, the oldest of them, makes room for x; then the newcomers leave for one
  // another.
  expect(run(new TwoClasses())).toEqual([1, 0, 1, 0, 0, 1]);
});
