/** How the demo shows what it counted. */
import type { DemoResult, RequestRecord } from "./result.ts";

const COLUMNS = [
  "#",
  "engine",
  "talk",
  "prompt",
  "cached",
  "computed",
  "ttft",
  "without",
  "gain",
  "differing",
] as const;
const WIDTHS = [3, 6, 5, 7, 7, 9, 9, 9, 7, 10] as const;

function cells(values: readonly string[]): string {
  return values.map((value, column) => value.padStart(WIDTHS[column] ?? 0)).join(" ");
}

export function tableHead(): string {
  return cells(COLUMNS);
}

export function tableRow(record: RequestRecord): string {
  const gain =
    record.cachedTokens === 0 ? "" : `${(record.ttftReferenceMs / record.ttftMs).toFixed(1)}x`;
  const row = cells([
    String(record.number),
    record.engine,
    `${record.conversation}.${record.turn}`,
    String(record.promptTokens),
    String(record.cachedTokens),
    String(record.computedTokens),
    `${record.ttftMs.toFixed(0)} ms`,
    `${record.ttftReferenceMs.toFixed(0)} ms`,
    gain,
    String(record.probabilitiesDiffering),
  ]);
  return record.note === "" ? row : `${row}  ${record.note}`;
}

/** The closing table. */
export function summary(result: DemoResult): string {
  const share =
    (100 * result.tokensCached) / Math.max(1, result.tokensCached + result.tokensComputed);
  const lines: readonly (readonly [string, string])[] = [
    [
      "requests",
      `${result.requests}, ${result.requestsFailed} failed, ${result.requestsWarm} warm`,
    ],
    [
      "prompt tokens",
      `${result.tokensCached} restored (${share.toFixed(0)} %), ${result.tokensComputed} computed`,
    ],
    [
      "time to first token",
      `warm ${result.ttftWarmMs.toFixed(1)} ms, the same prompts without the cache ${result.ttftColdMs.toFixed(1)} ms`,
    ],
    [
      "probabilities",
      `${result.probabilitiesCompared} compared bit for bit, ${result.probabilitiesDiffering} differ`,
    ],
    [
      "flipped bits",
      `${result.corruptionsInjected} injected, ${result.corruptionsCaught} caught as a miss, ${result.corruptionsCounted} on the daemon's counter`,
    ],
    ["incarnation proofs", `${result.proofsPassed} passed, ${result.proofsFailed} failed`],
    [
      "daemon killed",
      `${result.daemonKills} time, ${result.requestsWithoutDaemon} requests answered while it was gone`,
    ],
    [
      "after its restart",
      `${result.hitsAfterRestart} warm requests, ${result.tokensCachedAfterRestart} tokens from the surviving pool`,
    ],
    ["took", `${result.seconds.toFixed(1)} s`],
  ];
  const body = lines.map(([name, value]) => `  ${name.padEnd(20)} ${value}`);
  const verdict = result.ok
    ? "All as promised."
    : result.problems.map((problem) => `PROBLEM: ${problem}`).join("\n");
  return ["", ...body, "", verdict].join("\n");
}
