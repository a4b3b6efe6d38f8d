/**
 * The one shape in which a bench reports. Field names are a contract (docs/claims.md quotes them).
 *
 * `ratio` is always "higher is better, at least its bar is good":
 * - a speed with a named reference of the same run: value ÷ reference_value, and `bar` is a ratio;
 * - otherwise: bar ÷ value for costs (time, bytes), value ÷ bar for rates; then 1 is the bar.
 * A scenario with more than one bar lists each of them in `checks`; `ratio` is then the worst of them.
 */
import { cpus, loadavg, release, totalmem } from "node:os";
import { assert } from "../src/assert.ts";
import { median, significant } from "./statistics.ts";

export interface Check {
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  readonly bar: number;
  /** "atMost": a cost; "atLeast": a speed or a share. */
  readonly sense: "atMost" | "atLeast";
  readonly passed: boolean;
}

export interface BenchResult {
  readonly scenario: string;
  readonly value: number;
  readonly unit: string;
  readonly bar: number;
  readonly ratio: number;
  readonly reference: string | null;
  readonly reference_value: number | null;
  readonly repetitions: number;
  /** One-minute load average before and after. */
  readonly load: readonly [number, number];
  readonly machine: string;
  readonly checks: readonly Check[];
  readonly detail: Readonly<Record<string, unknown>>;
}

/** What a scenario hands to the runner, which adds load and machine. */
export interface Measurement {
  readonly value: number;
  readonly unit: string;
  readonly bar: number;
  readonly sense: "atMost" | "atLeast";
  /** Named reference measured in the same run; null where the bar is absolute. */
  readonly reference: string | null;
  readonly referenceValue: number | null;
  readonly repetitions: number;
  readonly checks: readonly Check[];
  readonly detail: Readonly<Record<string, unknown>>;
}

export function check(
  name: string,
  value: number,
  unit: string,
  sense: "atMost" | "atLeast",
  bar: number,
): Check {
  assert(Number.isFinite(bar) && bar >= 0, "a bar is a finite number");
  const passed = sense === "atMost" ? value <= bar : value >= bar;
  return { name, value: significant(value), unit, bar: significant(bar), sense, passed };
}

/** "AMD EPYC 7B13, 2 cores, 24 GiB, Linux 6.1, Node 20.20.2" */
export function machineName(): string {
  const processors = cpus();
  const model = processors[0]?.model.trim().replace(/\s+/g, " ") ?? "unknown processor";
  const memoryGiB = Math.round(totalmem() / 2 ** 30);
  const system = `${process.platform} ${release()}`;
  return `${model}, ${processors.length} cores, ${memoryGiB} GiB, ${system}, Node ${process.versions.node}`;
}

export function loadNow(): number {
  return significant(loadavg()[0] ?? 0, 3);
}

/** The ratio by the rule at the top of this file. */
export function ratioOf(measurement: Measurement): number {
  const { value, bar, sense, referenceValue } = measurement;
  if (referenceValue !== null && sense === "atLeast") return value / referenceValue;
  return sense === "atMost" ? bar / value : value / bar;
}

/** Builds the printed object. */
export function toResult(
  scenario: string,
  measurement: Measurement,
  loadBefore: number,
): BenchResult {
  assert(measurement.repetitions >= 1, "a result has at least one repetition");
  assert(Number.isFinite(measurement.value), "a result has a finite value");
  return {
    scenario,
    value: significant(measurement.value),
    unit: measurement.unit,
    bar: measurement.bar,
    ratio: significant(ratioOf(measurement)),
    reference: measurement.reference,
    reference_value:
      measurement.referenceValue === null ? null : significant(measurement.referenceValue),
    repetitions: measurement.repetitions,
    load: [loadBefore, loadNow()],
    machine: machineName(),
    checks: measurement.checks,
    detail: measurement.detail,
  };
}

/** True when every check passed; a scenario without checks is held to its ratio. */
export function passed(result: BenchResult): boolean {
  if (result.checks.length > 0) return result.checks.every((one) => one.passed);
  return result.ratio >= (result.reference === null ? 1 : result.bar);
}

/** Median of a repeated measurement with all values kept for the detail field. */
export function repeated(values: readonly number[]): { median: number; all: readonly number[] } {
  return { median: median(values), all: values.map((value) => significant(value)) };
}
