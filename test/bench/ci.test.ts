import { spawnSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import * as ci from "../../.ci/check.ts";

const file = (name: string, ...statuses: string[]) => ({
  name,
  status: statuses.includes("failed") ? "failed" : "passed",
  assertionResults: statuses.map((status) => ({ status })),
});
const good = file("a.test.ts", "passed", "passed", "passed");
const report: ci.VitestReport = { testResults: [good] };
const replay = { ...ci.TRACE, capacityBlocks: 5_000, hits: 34_300, hitRate: 0.124 };
const daemon = { ...replay, wrongBlocks: 0, comparedBlocks: 34_300, pure: { hits: 34_300 } };
const demo = {
  requests: 20,
  tokensCached: 1,
  probabilitiesCompared: 1,
  probabilitiesDiffering: 0,
  corruptionsInjected: 1,
  corruptionsCaught: 1,
};
const json = (value: object): string => `some words\n${JSON.stringify(value)}\n`;

describe("the check run counts", () => {
  it("vitest's cases, with skipped ones and files that do not load as failures", () => {
    expect(ci.count("vitest", 0, "", report)).toEqual([3, 0]);
    const skipped = file("b.test.ts", "passed", "pending");
    expect(ci.count("vitest", 0, "", { testResults: [good, skipped] })).toEqual([4, 1]);
    const failing = file("b.test.ts", "passed", "failed");
    expect(ci.count("vitest", 1, "", { testResults: [good, failing] })).toEqual([4, 1]);
    const broken = { name: "b.test.ts", status: "failed", assertionResults: [] };
    expect(ci.count("vitest", 1, "", { testResults: [good, broken] })).toEqual([3, 1]);
    const page = file("page.browser.test.ts", "passed", "skipped");
    expect(ci.count("vitest", 0, "", { testResults: [good, page] })).toEqual([4, 0]);
  });

  it("reads the last line of the Python suite, and fails a run that did not reach it", () => {
    expect(ci.count("python", 0, "ok   wheel\n93 passed, 0 failed\n", undefined)).toEqual([93, 0]);
    expect(ci.count("python", 1, "FAIL ruff\n92 passed, 1 failed\n", undefined)).toEqual([92, 1]);
    expect(ci.count("python", 1, "93 passed, 0 failed\n", undefined)).toEqual([93, 1]);
    expect(ci.count("python", 137, "ok   wheel\n", undefined)).toEqual([0, 1]);
  });

  it("a suite that ends badly or tells nothing as a failure", () => {
    expect(ci.count("vitest", 1, "", report)).toEqual([3, 1]);
    expect(ci.count("vitest", 0, "", undefined)).toEqual([0, 1]);
    const native = "== plain\nok   one case\nok   another\n";
    const end = "2 cases, 0 failed checks\n";
    expect(ci.count("native", 0, native + end, undefined)).toEqual([2, 0]);
    expect(ci.count("native", 1, `${native}  a.cc:1: x\nFAIL third\n${end}`, undefined)).toEqual([
      2, 1,
    ]);
    expect(ci.count("native", 134, native + end, undefined)).toEqual([2, 1]);
    expect(ci.count("native", 134, native, undefined)).toEqual([2, 1]);
    expect(ci.count("native", 0, "", undefined)).toEqual([0, 1]);
    expect(ci.count("replay", 0, "no object here", undefined)).toEqual([0, 1]);
    expect(ci.count("replay", 1, json(replay), undefined)).toEqual([0, 1]);
    expect(ci.count("unheard", 0, json(replay), undefined)).toEqual([0, 1]);
  });

  it("a replay that keeps every count and comes within a tenth of a point", () => {
    expect(ci.count("replay", 0, json(replay), undefined)).toEqual([1, 0]);
    expect(ci.replayProblems({ ...replay, hitRate: 0.1251 })).toHaveLength(1);
    expect(ci.replayProblems({ ...replay, hitRate: 0.1249 })).toEqual([]);
    expect(ci.replayProblems({ ...replay, requests: 12_030 })).toHaveLength(1);
    expect(ci.replayProblems({ ...replay, capacityBlocks: 7 })).toHaveLength(1);
    expect(ci.replayProblems({})).toHaveLength(3);
  });

  it("a replay over two tiers that reaches the trace's hit rate within its NVMe writes", () => {
    const tiers = { requests: 44_483, hitRate: 0.9627, nvmeWritesPerReference: 0.037 };
    expect(ci.replayTiersProblems(tiers)).toEqual([]);
    expect(ci.replayTiersProblems({ ...tiers, hitRate: 0.96 })).toHaveLength(1);
    expect(ci.replayTiersProblems({ ...tiers, nvmeWritesPerReference: 0.041 })).toHaveLength(1);
    expect(ci.replayTiersProblems({ ...tiers, nvmeWritesPerReference: 0 })).toHaveLength(1);
    expect(ci.replayTiersProblems({ ...tiers, requests: 44_482 })).toHaveLength(1);
  });

  it("a replay through the daemon with no wrong block and the hits of the pure one", () => {
    expect(ci.count("replay-daemon", 0, json(daemon), undefined)).toEqual([1, 0]);
    expect(ci.replayDaemonProblems({ ...daemon, wrongBlocks: 1 })).toHaveLength(1);
    expect(ci.replayDaemonProblems({ ...daemon, comparedBlocks: 0 })).toHaveLength(1);
    expect(ci.replayDaemonProblems({ ...daemon, hits: 34_301 })).toHaveLength(1);
    expect(ci.replayDaemonProblems(replay)).toHaveLength(3);
  });

  it("a demo whose restored probabilities equal the recomputed ones and whose corruption was caught", () => {
    expect(ci.count("demo", 0, json(demo), undefined)).toEqual([1, 0]);
    const worse = [
      { requests: 19 },
      { tokensCached: 0 },
      { probabilitiesCompared: 0 },
      { probabilitiesDiffering: 1 },
      { corruptionsInjected: 0, corruptionsCaught: 0 },
      { corruptionsCaught: 0 },
    ];
    for (const change of worse)
      expect(ci.demoProblems({ ...demo, ...change }), JSON.stringify(change)).toHaveLength(1);
    expect(ci.demoProblems({})).toHaveLength(6);
  });

  it("a demo of the lower tiers whose pool was too small and whose other node was served", () => {
    const lower = {
      requests: 24,
      poolBytes: 100,
      nvmeBytes: 101,
      blocksFetched: 1,
      tokensCachedFromShared: 1,
      probabilitiesCompared: 1,
      probabilitiesDiffering: 0,
    };
    expect(ci.count("demo-nvme", 0, json(lower), undefined)).toEqual([1, 0]);
    for (const change of [
      { requests: 19 },
      { nvmeBytes: 100 },
      { blocksFetched: 0 },
      { tokensCachedFromShared: 0 },
      { probabilitiesCompared: 0 },
      { probabilitiesDiffering: 1 },
    ])
      expect(ci.demoNvmeProblems({ ...lower, ...change }), JSON.stringify(change)).toHaveLength(1);
    expect(ci.demoNvmeProblems({})).toHaveLength(6);
  });

  it("in a script whose syntax bash accepts", () => {
    const path = new URL("../../.ci/run", import.meta.url).pathname;
    expect(spawnSync("bash", ["-n", path]).status).toBe(0);
  });
});
