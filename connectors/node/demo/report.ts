/** What the demo counts and how it shows it. */
import type { EngineName } from "./conversations.ts";

/** One request, measured. */
export interface RequestRecord {
  readonly number: number;
  readonly phase: string;
  readonly engine: EngineName;
  readonly conversation: number;
  readonly turn: number;
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly computedTokens: number;
  readonly ttftMs: number;
  /** The same prompt on the reference engine, which has no cache. */
  readonly ttftReferenceMs: number;
  readonly probabilitiesCompared: number;
  readonly probabilitiesDiffering: number;
  /** Empty, or what was special about this request. */
  readonly note: string;
}

/** The demo's JSON object. */
export interface DemoResult {
  readonly requests: number;
  readonly requestsFailed: number;
  readonly requestsWarm: number;
  readonly tokensCached: number;
  readonly tokensComputed: number;
  /** Medians over the warm requests: without the cache, and with it. */
  readonly ttftColdMs: number;
  readonly ttftWarmMs: number;
  readonly probabilitiesCompared: number;
  readonly probabilitiesDiffering: number;
  readonly corruptionsInjected: number;
  readonly corruptionsCaught: number;
  /** By the daemon's own metric. */
  readonly corruptionsCounted: number;
  readonly proofsPassed: number;
  readonly proofsFailed: number;
  readonly daemonKills: number;
  readonly requestsWithoutDaemon: number;
  readonly hitsAfterRestart: number;
  readonly tokensCachedAfterRestart: number;
  readonly daemonExitCode: number | null;
  readonly blockBytes: number;
  readonly seconds: number;
  readonly ok: boolean;
  readonly problems: readonly string[];
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((left, right) => left - right);
  const middle = sorted.length >> 1;
  if (sorted.length === 0) return 0;
  const upper = sorted[middle] ?? 0;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? 0)) / 2;
}

/** Floats of two equally long base64 texts that are not bit-equal; everything, if the lengths differ. */
export function compareFloats(
  left: string,
  right: string,
): { readonly compared: number; readonly differing: number } {
  const a = Buffer.from(left, "base64");
  const b = Buffer.from(right, "base64");
  const compared = Math.max(a.byteLength, b.byteLength) >>> 2;
  if (a.byteLength !== b.byteLength) return { compared, differing: compared };
  let differing = 0;
  for (let at = 0; at + 4 <= a.byteLength; at += 4) {
    if (a.readUInt32LE(at) !== b.readUInt32LE(at)) differing += 1;
  }
  return { compared, differing };
}

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
