/** Order statistics for benches: exact, over all samples, never over a histogram. */
import { assert } from "../src/assert.ts";

/** Value below or at which `share` (0…1) of the samples lie; nearest-rank on a sorted copy. */
export function percentile(samples: ArrayLike<number>, share: number): number {
  assert(samples.length > 0, "a percentile needs at least one sample");
  assert(share >= 0 && share <= 1, "a share lies between 0 and 1");
  const sorted = Float64Array.from(samples).sort();
  const rank = Math.max(1, Math.ceil(share * sorted.length));
  return sorted[rank - 1] as number;
}

/** Middle sample; the mean of the two middle ones when their number is even. */
export function median(samples: ArrayLike<number>): number {
  assert(samples.length > 0, "a median needs at least one sample");
  const sorted = Float64Array.from(samples).sort();
  const half = sorted.length >> 1;
  if (sorted.length % 2 === 1) return sorted[half] as number;
  return ((sorted[half - 1] as number) + (sorted[half] as number)) / 2;
}

export interface Summary {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  readonly p99: number;
}

/** Median, spread and p99 of one set of samples. */
export function summarize(samples: ArrayLike<number>): Summary {
  return {
    median: median(samples),
    min: percentile(samples, 0),
    max: percentile(samples, 1),
    p99: percentile(samples, 0.99),
  };
}

/** Keeps `digits` significant digits, so that JSON shows what was measured and no more. */
export function significant(value: number, digits = 4): number {
  return Number.isFinite(value) ? Number(value.toPrecision(digits)) : value;
}
