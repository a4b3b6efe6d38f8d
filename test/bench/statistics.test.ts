import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { progressLine } from "../../bench/progress.ts";
import {
  check,
  machineName,
  type Measurement,
  passed,
  ratioOf,
  toResult,
} from "../../bench/result.ts";
import { median, percentile, significant, summarize } from "../../bench/statistics.ts";

const cost: Measurement = {
  value: 20,
  unit: "µs",
  bar: 25,
  sense: "atMost",
  reference: null,
  referenceValue: null,
  repetitions: 5,
  checks: [],
  detail: {},
};

describe("statistics", () => {
  it("takes the middle sample, or the mean of the middle two", () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 2, 3])).toBe(2.5);
    expect(median([7])).toBe(7);
  });

  it("does not sort the caller's samples", () => {
    const samples = [3, 1, 2];
    summarize(samples);
    expect(samples).toEqual([3, 1, 2]);
  });

  it("takes percentiles by nearest rank", () => {
    const samples = Array.from({ length: 100 }, (_, index) => index + 1);
    expect(percentile(samples, 0.99)).toBe(99);
    expect(percentile(samples, 0.5)).toBe(50);
    expect(percentile(samples, 0)).toBe(1);
    expect(percentile(samples, 1)).toBe(100);
  });

  it("gives percentiles that are samples, in order of their share", () => {
    const samples = fc.array(fc.integer(), { minLength: 1 });
    const share = fc.double({ min: 0, max: 1, noNaN: true });
    fc.assert(
      fc.property(samples, share, share, (values, one, other) => {
        const low = percentile(values, Math.min(one, other));
        const high = percentile(values, Math.max(one, other));
        expect(values).toContain(low);
        expect(low).toBeLessThanOrEqual(high);
      }),
    );
  });

  it("refuses a statistic of nothing", () => {
    expect(() => median([])).toThrow("at least one sample");
    expect(() => percentile([], 0.5)).toThrow("at least one sample");
  });

  it("keeps significant digits", () => {
    expect(significant(123_456)).toBe(123_500);
    expect(significant(0.000_123_456, 2)).toBe(0.000_12);
  });
});

describe("a bench result", () => {
  it("has exactly the fields that the contract names, and two more", () => {
    expect(Object.keys(toResult("lookup", cost, 0.1))).toEqual([
      "scenario",
      "value",
      "unit",
      "bar",
      "ratio",
      "reference",
      "reference_value",
      "repetitions",
      "load",
      "machine",
      "checks",
      "detail",
    ]);
  });

  it("has a ratio that is higher when things are better", () => {
    expect(ratioOf(cost)).toBe(1.25);
    expect(ratioOf({ ...cost, sense: "atLeast", value: 2_000_000, bar: 1_000_000 })).toBe(2);
    const speed = { ...cost, sense: "atLeast", value: 9, bar: 0.9, referenceValue: 10 } as const;
    expect(ratioOf(speed)).toBe(0.9);
  });

  it("passes when every check does, and by its ratio when it has none", () => {
    expect(passed(toResult("a", cost, 0))).toBe(true);
    expect(passed(toResult("a", { ...cost, value: 26 }, 0))).toBe(false);
    const failing = check("b", 2, "ms", "atMost", 1);
    expect(failing.passed).toBe(false);
    expect(check("b", 1, "ms", "atMost", 1).passed).toBe(true);
    expect(check("b", 0.89, "", "atLeast", 0.9).passed).toBe(false);
    expect(passed(toResult("a", { ...cost, checks: [failing] }, 0))).toBe(false);
  });

  it("says which machine it ran on", () => {
    expect(machineName()).toMatch(/\d+ cores, \d+ GiB, \w+ .*, Node 20\./);
  });

  it("refuses a value that is not a number", () => {
    expect(() => toResult("a", { ...cost, value: Number.NaN }, 0)).toThrow("finite");
  });
});

describe("a progress line", () => {
  it("shows the share done and stays inside its bounds", () => {
    expect(progressLine("fill", 1, 2, "note")).toBe(
      `fill ${"█".repeat(15)}${"░".repeat(15)}  50 %  note`,
    );
    expect(progressLine("fill", 5, 2, "")).toContain("100 %");
    expect(progressLine("fill", 0, 0, "")).toContain("100 %");
  });
});
