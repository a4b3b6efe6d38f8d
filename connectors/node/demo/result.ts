/** What the demo counts, and what it demands of the counts. */
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

/** Counters of the run; the records hold the rest. */
export interface Counters {
  requestsFailed: number;
  corruptionsInjected: number;
  corruptionsCaught: number;
  /** By the daemon's own metric. */
  corruptionsCounted: number;
  proofsPassed: number;
  proofsFailed: number;
  daemonKills: number;
}

export function newCounters(): Counters {
  return {
    requestsFailed: 0,
    corruptionsInjected: 0,
    corruptionsCaught: 0,
    corruptionsCounted: 0,
    proofsPassed: 0,
    proofsFailed: 0,
    daemonKills: 0,
  };
}

/** The demo's JSON object. */
export interface DemoResult extends Readonly<Counters> {
  readonly requests: number;
  readonly requestsWarm: number;
  readonly tokensCached: number;
  readonly tokensComputed: number;
  /** Medians over the warm requests: without the cache, and with it. */
  readonly ttftColdMs: number;
  readonly ttftWarmMs: number;
  readonly probabilitiesCompared: number;
  readonly probabilitiesDiffering: number;
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

/** How the run ended. */
export interface RunEnd {
  readonly blockBytes: number;
  /** Of the daemon after SIGTERM; null if a signal ended it. */
  readonly daemonExitCode: number | null;
  readonly seconds: number;
  /** What went wrong on the way. */
  readonly problems: readonly string[];
}

/** Sums up, and says whether every promise held. */
export function resultOf(
  records: readonly RequestRecord[],
  counters: Readonly<Counters>,
  end: RunEnd,
): DemoResult {
  const warm = records.filter((record) => record.cachedTokens > 0);
  const ofPhase = (name: string) => records.filter((record) => record.phase === name);
  const sum = (of: readonly RequestRecord[], pick: (record: RequestRecord) => number): number =>
    of.reduce((total, record) => total + pick(record), 0);
  const warmAfterRestart = ofPhase("restart").filter((record) => record.cachedTokens > 0);
  const differing = sum(records, (record) => record.probabilitiesDiffering);
  const { daemonExitCode } = end;
  const { corruptionsInjected, corruptionsCaught, corruptionsCounted, proofsFailed } = counters;
  const problems = [...end.problems];
  const demand = (condition: boolean, problem: string): void => {
    if (!condition) problems.push(problem);
  };
  demand(differing === 0, `${differing} probabilities differ`);
  demand(
    corruptionsInjected > 0 && corruptionsCaught === corruptionsInjected,
    "a flipped bit was not caught",
  );
  demand(
    corruptionsCounted === corruptionsInjected,
    `the daemon counted ${corruptionsCounted} corrupt blocks`,
  );
  demand(counters.requestsFailed === 0, `${counters.requestsFailed} requests failed`);
  demand(proofsFailed === 0, "an incarnation proof failed");
  demand(
    ofPhase("reuse").some((record) => record.cachedTokens > 0),
    "engine B reused nothing of engine A's",
  );
  demand(warmAfterRestart.length > 0, "no hit after the restart");
  demand(
    daemonExitCode === 0,
    `the daemon's exit code after SIGTERM is ${daemonExitCode ?? "a signal"}`,
  );
  return {
    requests: records.length + counters.requestsFailed,
    requestsWarm: warm.length,
    tokensCached: sum(records, (record) => record.cachedTokens),
    tokensComputed: sum(records, (record) => record.computedTokens),
    ttftColdMs: median(warm.map((record) => record.ttftReferenceMs)),
    ttftWarmMs: median(warm.map((record) => record.ttftMs)),
    probabilitiesCompared: sum(records, (record) => record.probabilitiesCompared),
    probabilitiesDiffering: differing,
    ...counters,
    requestsWithoutDaemon: ofPhase("kill").length,
    hitsAfterRestart: warmAfterRestart.length,
    tokensCachedAfterRestart: sum(warmAfterRestart, (record) => record.cachedTokens),
    daemonExitCode,
    blockBytes: end.blockBytes,
    seconds: end.seconds,
    ok: problems.length === 0,
    problems,
  };
}
