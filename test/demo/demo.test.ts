/** The whole demo on its small model: real engines, a real daemon, real crashes. */
import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { describe, expect, test } from "vitest";
import { PHASES, systemPrompt, userMessage } from "../../connectors/node/demo/conversations.ts";
import type { LowerResult } from "../../connectors/node/demo/lower-tiers.ts";
import { flipStoredBit } from "../../connectors/node/demo/corruption.ts";
import {
  compareFloats,
  type Counters,
  type DemoResult,
  median,
  newCounters,
  type RequestRecord,
  resultOf,
} from "../../connectors/node/demo/result.ts";
import { CAIRN } from "../../src/executable.ts";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));

function base64(values: number[]): string {
  return Buffer.from(Float32Array.from(values).buffer).toString("base64");
}

describe("the demo", () => {
  test("restores without a differing probability, catches every flipped bit and survives the daemon's death", async () => {
    const args = [...CAIRN, "demo", "--quick", "--json"];
    const { stdout } = await promisify(execFile)(process.execPath, args, {
      cwd: ROOT,
      maxBuffer: 1 << 24,
    });
    const result = JSON.parse(stdout.trimEnd().split("\n").at(-1) ?? "") as DemoResult;
    expect(result).toMatchObject({
      ok: true,
      problems: [],
      requestsFailed: 0,
      probabilitiesDiffering: 0,
      corruptionsInjected: 3,
      corruptionsCaught: 3,
      corruptionsCounted: 3,
      proofsFailed: 0,
      daemonKills: 1,
      daemonExitCode: 0,
    });
    expect(result.requests).toBeGreaterThanOrEqual(20);
    expect(result.probabilitiesCompared).toBe(result.requests * 6 * 512);
    expect(result.tokensCached).toBeGreaterThan(result.tokensComputed / 2);
    expect(result.proofsPassed).toBeGreaterThanOrEqual(2);
    expect(result.hitsAfterRestart).toBeGreaterThanOrEqual(3);
  }, 180_000);
});

describe("the demo's second part", () => {
  test("serves hits from NVMe, and from a shared directory at another node, without a differing probability", async () => {
    const args = [...CAIRN, "demo", "--nvme", "--quick", "--json"];
    const { stdout } = await promisify(execFile)(process.execPath, args, {
      cwd: ROOT,
      maxBuffer: 1 << 24,
    });
    const result = JSON.parse(stdout.trimEnd().split("\n").at(-1) ?? "") as LowerResult;
    expect(result).toMatchObject({
      ok: true,
      problems: [],
      probabilitiesDiffering: 0,
      requests: 24,
    });
    expect(result.probabilitiesCompared).toBe(24 * 6 * 512);
    // Some of what was said had left node 1's pool.
    expect(result.nvmeBytes).toBeGreaterThan(0);
    expect(result.tokensCachedFromNvme).toBeGreaterThan(1_000);
    expect(result.blocksFetched).toBeGreaterThan(0);
    expect(result.tokensCachedFromShared).toBeGreaterThan(500);
  }, 180_000);
});

describe("the demo's arithmetic", () => {
  test("counts floats that differ in any bit, the sign of zero included", () => {
    expect(compareFloats(base64([1, 2, 0]), base64([1, 2, 0]))).toEqual({
      compared: 3,
      differing: 0,
    });
    expect(compareFloats(base64([1, 2, 0]), base64([1, 3, -0]))).toEqual({
      compared: 3,
      differing: 2,
    });
    expect(compareFloats(base64([1]), base64([1, 2]))).toEqual({ compared: 2, differing: 2 });
  });

  test("takes the middle of an odd count and the mean of the middle two of an even one", () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 2, 3])).toBe(2.5);
    expect(median([])).toBe(0);
  });
});

describe("the demo's requests", () => {
  test("are at least twenty, over both engines, with several turns and shared system prompts", () => {
    const requests = PHASES.flatMap((phase) => phase.requests);
    expect(requests.length).toBeGreaterThanOrEqual(20);
    expect(new Set(requests.map((request) => request.engine))).toEqual(new Set(["A", "B"]));
    expect(systemPrompt(1, 300)).toBe(systemPrompt(3, 300));
    expect(systemPrompt(1, 300)).not.toBe(systemPrompt(2, 300));
    expect(systemPrompt(1, 300)).toHaveLength(301);
    expect(userMessage(1, 2)).not.toBe(userMessage(1, 3));
  });
});

describe("the flip of a stored bit", () => {
  test("changes exactly that bit, wherever the block stands, also across the pieces it reads", () => {
    const directory = mkdtempSync(path.join(tmpdir(), "cairn-flip-"));
    try {
      mkdirSync(path.join(directory, "inner"));
      const tail = Buffer.from(Array.from({ length: 64 }, (_, index) => index + 1));
      const pool = Buffer.alloc(17 * 1024 * 1024);
      const offset = 16 * 1024 * 1024 - 10;
      tail.copy(pool, offset);
      const file = path.join(directory, "inner", "pool");
      writeFileSync(file, pool);
      expect(flipStoredBit(directory, tail, 13)).toBe(1);
      pool[offset + 1] = (pool[offset + 1] ?? 0) ^ (1 << 5);
      expect(readFileSync(file).equals(pool)).toBe(true);
      expect(flipStoredBit(directory, tail, 13)).toBe(0);
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  });
});

describe("the demo's verdict", () => {
  const record = (phase: string, more: Partial<RequestRecord> = {}): RequestRecord => ({
    number: 1,
    phase,
    engine: "B",
    conversation: 1,
    turn: 1,
    promptTokens: 40,
    cachedTokens: 32,
    computedTokens: 8,
    ttftMs: 2,
    ttftReferenceMs: 10,
    probabilitiesCompared: 100,
    probabilitiesDiffering: 0,
    note: "",
    ...more,
  });
  const records = [
    record("reuse"),
    record("kill", { cachedTokens: 0, computedTokens: 40 }),
    record("restart"),
  ];
  const counters: Counters = {
    ...newCounters(),
    corruptionsInjected: 2,
    corruptionsCaught: 2,
    corruptionsCounted: 2,
  };
  const end = { blockBytes: 64, daemonExitCode: 0, seconds: 1, problems: [] };

  test("is good when everything held, and sums up", () => {
    expect(resultOf(records, counters, end)).toMatchObject({
      ok: true,
      requests: 3,
      requestsWarm: 2,
      tokensCached: 64,
      tokensComputed: 56,
      ttftColdMs: 10,
      ttftWarmMs: 2,
      probabilitiesCompared: 300,
      hitsAfterRestart: 1,
      requestsWithoutDaemon: 1,
    });
  });

  const cold = { cachedTokens: 0, computedTokens: 40 };
  const bad: readonly [string, readonly RequestRecord[], Partial<Counters>, Partial<typeof end>][] =
    [
      [
        "a probability differs",
        [...records, record("store", { probabilitiesDiffering: 1 })],
        {},
        {},
      ],
      ["a flipped bit was not caught", records, { corruptionsCaught: 1 }, {}],
      [
        "no bit was flipped",
        records,
        { corruptionsInjected: 0, corruptionsCaught: 0, corruptionsCounted: 0 },
        {},
      ],
      [
        "the daemon counted another number of corrupt blocks",
        records,
        { corruptionsCounted: 1 },
        {},
      ],
      ["a proof failed", records, { proofsFailed: 1 }, {}],
      ["a request failed", records, { requestsFailed: 1 }, {}],
      ["nothing was reused", [record("reuse", cold), record("restart")], {}, {}],
      ["nothing survived the restart", [record("reuse"), record("restart", cold)], {}, {}],
      ["the daemon did not stop in order", records, {}, { daemonExitCode: 1 }],
    ];
  test.each(bad)("is bad when %s", (_, given, count, ending) => {
    const result = resultOf(given, { ...counters, ...count }, { ...end, ...ending });
    expect(result.ok).toBe(false);
    expect(result.problems).toHaveLength(1);
  });
});
