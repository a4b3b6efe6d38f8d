/**
 * Reads what a suite printed and answers "PASSED FAILED" on one line. A suite that ended badly, printed nothing to
 * count, or broke a promise that its output states, counts as failed.
 *
 * usage: check.ts KIND EXIT_CODE OUTPUT_FILE VITEST_JSON
 */
import { existsSync, readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

export type Fields = Readonly<Record<string, unknown>>;
export type Counts = readonly [passed: number, failed: number];

/** Leaf-first LRU on the conversation trace: hit rate in percent by capacity in 512-token blocks; 0 = infinite. */
export const EXPECTED_PERCENT: Readonly<Record<number, number>> = {
  5_000: 12.4,
  10_000: 22.4,
  20_000: 30.6,
  0: 38.2,
};
const TOLERANCE_POINTS = 0.1;
export const TRACE = { requests: 12_031, blocks: 276_491 } as const;
const DEMO_REQUESTS_MIN = 20;

/** The last line that is a JSON object, or undefined. */
export function lastObject(text: string): Fields | undefined {
  for (const line of text.trimEnd().split("\n").reverse()) {
    try {
      const value: unknown = JSON.parse(line);
      if (typeof value === "object" && value !== null) return value as Fields;
    } catch {
      continue;
    }
  }
  return undefined;
}

export interface VitestReport {
  readonly testResults: readonly {
    /** Path of the file. */
    readonly name: string;
    readonly status: string;
    readonly assertionResults: readonly { readonly status: string }[];
  }[];
}

/**
 * Cases of vitest's JSON report. A file that failed to load counts as one failure, and so does a case that did not run;
 * only a page test may stay away where no browser is installed (CI_FULL=1 installs one, and then it runs).
 */
export function vitestCounts(report: VitestReport): Counts {
  let passed = 0;
  let failed = 0;
  for (const file of report.testResults) {
    if (file.status === "failed" && file.assertionResults.length === 0) failed += 1;
    for (const { status } of file.assertionResults) {
      if (status === "passed") passed += 1;
      else if (status === "failed" || !file.name.endsWith(".browser.test.ts")) failed += 1;
    }
  }
  return [passed, failed];
}

export function replayProblems(result: Fields): string[] {
  const problems: string[] = [];
  for (const field of ["requests", "blocks"] as const) {
    if (result[field] !== TRACE[field]) problems.push(`${field} ${String(result[field])}`);
  }
  const expected = EXPECTED_PERCENT[Number(result["capacityBlocks"])] ?? Number.NaN;
  const distance = Math.abs(Number(result["hitRate"]) * 100 - expected);
  if (!(distance <= TOLERANCE_POINTS)) problems.push(`hitRate ${String(result["hitRate"])}`);
  return problems;
}

export function replayDaemonProblems(result: Fields): string[] {
  const problems = replayProblems(result);
  const pure = result["pure"] as Fields | undefined;
  if (result["wrongBlocks"] !== 0) problems.push(`wrongBlocks ${String(result["wrongBlocks"])}`);
  if (!(Number(result["comparedBlocks"]) > 0)) problems.push("nothing was compared");
  if (pure === undefined || result["hits"] !== pure["hits"]) {
    problems.push(`hits ${String(result["hits"])}, pure ${String(pure?.["hits"])}`);
  }
  return problems;
}

/** DRAM of 5,000 and NVMe of 100,000 blocks: least total hit rate and most NVMe writes per reference, by trace (its requests). */
export const TIERS: Readonly<Record<number, { readonly hit: number; readonly writes: number }>> = {
  12_031: { hit: 0.379, writes: 0.61 },
  44_483: { hit: 0.961, writes: 0.04 },
};

export function replayTiersProblems(result: Fields): string[] {
  const bar = TIERS[Number(result["requests"])];
  if (bar === undefined) return [`requests ${String(result["requests"])}`];
  const problems: string[] = [];
  if (!(Number(result["hitRate"]) >= bar.hit))
    problems.push(`hitRate ${String(result["hitRate"])}`);
  const writes = result["nvmeWritesPerReference"];
  if (!(Number(writes) <= bar.writes && Number(writes) > 0)) {
    problems.push(`nvmeWritesPerReference ${String(writes)}`);
  }
  return problems;
}

export function demoProblems(result: Fields): string[] {
  const is = (field: string): number => Number(result[field] ?? Number.NaN);
  return broken(result, [
    ["requests", is("requests") >= DEMO_REQUESTS_MIN],
    ["tokensCached", is("tokensCached") > 0],
    ["probabilitiesCompared", is("probabilitiesCompared") > 0],
    ["probabilitiesDiffering", is("probabilitiesDiffering") === 0],
    ["corruptionsInjected", is("corruptionsInjected") > 0],
    ["corruptionsCaught", is("corruptionsCaught") === is("corruptionsInjected")],
  ]);
}

export function demoNvmeProblems(result: Fields): string[] {
  const is = (field: string): number => Number(result[field] ?? Number.NaN);
  return broken(result, [
    ["requests", is("requests") >= DEMO_REQUESTS_MIN],
    ["nvmeBytes", is("nvmeBytes") > is("poolBytes")],
    ["blocksFetched", is("blocksFetched") > 0],
    ["tokensCachedFromShared", is("tokensCachedFromShared") > 0],
    ["probabilitiesCompared", is("probabilitiesCompared") > 0],
    ["probabilitiesDiffering", is("probabilitiesDiffering") === 0],
  ]);
}

/** Rules that do not hold, each with what its field says. */
function broken(result: Fields, rules: readonly (readonly [string, boolean])[]): string[] {
  return rules.filter(([, holds]) => !holds).map(([field]) => `${field} ${String(result[field])}`);
}

const PROBLEMS: Readonly<Record<string, (result: Fields) => string[]>> = {
  replay: replayProblems,
  "replay-daemon": replayDaemonProblems,
  "replay-tiers": replayTiersProblems,
  demo: demoProblems,
  "demo-nvme": demoNvmeProblems,
};

/** Passed and failed cases of one suite. */
export function count(
  kind: string,
  exitCode: number,
  output: string,
  report: VitestReport | undefined,
): Counts {
  // A suite that ends badly without a failed case (a crash at the end, a time-out) is one failure.
  const settle = (passed: number, failed: number): Counts => [
    passed,
    exitCode !== 0 && failed === 0 ? 1 : failed,
  ];
  if (kind === "vitest") return report === undefined ? [0, 1] : settle(...vitestCounts(report));
  if (kind === "native") {
    const cases = (mark: string): number =>
      [...output.matchAll(new RegExp(`^${mark} +\\S`, "gm"))].length;
    const ended = /^\d+ cases, \d+ failed checks$/m.test(output);
    return ended ? settle(cases("ok"), cases("FAIL")) : [cases("ok"), cases("FAIL") + 1];
  }
  if (kind === "python") {
    const found = /^(\d+) passed, (\d+) failed$/.exec(output.trimEnd().split("\n").at(-1) ?? "");
    return found === null ? [0, 1] : settle(Number(found[1]), Number(found[2]));
  }
  const result = lastObject(output);
  const problems = PROBLEMS[kind];
  if (exitCode !== 0 || result === undefined || problems === undefined) return [0, 1];
  const found = problems(result);
  if (found.length > 0) process.stderr.write(`${kind}: ${found.join("; ")}\n`);
  return found.length === 0 ? [1, 0] : [0, 1];
}

function main(args: readonly string[]): void {
  const [kind = "", exitCode = "1", outputPath = "", reportPath = ""] = args;
  const report = existsSync(reportPath)
    ? (JSON.parse(readFileSync(reportPath, "utf8")) as VitestReport)
    : undefined;
  const counts = count(kind, Number(exitCode), readFileSync(outputPath, "utf8"), report);
  process.stdout.write(`${counts.join(" ")}\n`);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) main(process.argv.slice(2));
