import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it, vi } from "vitest";
import { benchMain, benchUsage, humanLines, parseBench, SCENARIOS } from "../../bench/cli.ts";
import {
  cpuSeconds,
  cpuSecondsOfStat,
  GcWatch,
  nextTurn,
  residentMemoryOfStatus,
} from "../../bench/processes.ts";
import { parseReplay, replayMain } from "../../bench/replay/cli.ts";
import { check, type Measurement, toResult } from "../../bench/result.ts";
import { rivalRow } from "../../bench/rivals.ts";
import { pipelined } from "../../bench/scenarios/dram.ts";
import { lookupFrame } from "../../bench/scenarios/lookup-socket.ts";

const directory = mkdtempSync(join(tmpdir(), "cairn-commands-"));
afterAll(() => rmSync(directory, { recursive: true }));

/** Runs `command` and returns its exit code with what it wrote. */
async function captured(command: () => Promise<number>) {
  const written = { out: "", error: "" };
  const out = vi.spyOn(process.stdout, "write").mockImplementation((text) => {
    written.out += String(text);
    return true;
  });
  const error = vi.spyOn(process.stderr, "write").mockImplementation((text) => {
    written.error += String(text);
    return true;
  });
  try {
    return { code: await command(), ...written };
  } finally {
    out.mockRestore();
    error.mockRestore();
  }
}

describe("cairn bench", () => {
  it("offers the scenarios that the claims are made of", () => {
    const names = SCENARIOS.map((one) => one.name);
    expect(names).toEqual([
      "lookup",
      "lookup-walk",
      "lookup-socket",
      "dram",
      "commit",
      "memory",
      "restart",
      "nvme-read",
      "nvme-write",
      "restart-nvme",
      "restart-index",
      "remote-get",
      "remote-put",
      "lookup-python",
      "vllm-overhead",
    ]);
    for (const name of [...names, "all", "rivals"]) expect(benchUsage()).toContain(`  ${name}`);
  });

  it("reads its flags", () => {
    expect(parseBench(["lookup", "--json", "--resident", "10000000"])).toEqual({
      name: "lookup",
      json: true,
      enforce: false,
      options: { residentBlocks: 10_000_000, repetitions: 5 },
    });
    expect(parseBench(["--help"])).toBeUndefined();
    expect(parseBench([])).toBeUndefined();
  });

  const bad = [
    ["nothing-like-it"],
    ["lookup", "dram"],
    ["lookup", "--resident", "0"],
    ["lookup", "--speed", "9"],
  ];
  it.each(bad)("refuses %s %s", async (...args) => {
    const { code, out, error } = await captured(() =>
      benchMain(args.filter((one) => one !== undefined)),
    );
    expect(code).toBe(2);
    expect(out).toBe("");
    expect(error).toMatch(/^cairn bench: .+\n$/);
  });

  it("shows a person which bar was missed", () => {
    const measurement: Measurement = {
      value: 30,
      unit: "µs",
      bar: 25,
      sense: "atMost",
      reference: null,
      referenceValue: null,
      repetitions: 5,
      checks: [check("median", 30, "µs", "atMost", 25), check("pause", 1, "ms", "atMost", 2)],
      detail: {},
    };
    const text = humanLines(toResult("lookup", measurement, 0));
    expect(text).toContain("MISS median: 30 µs ≤ 25");
    expect(text).toContain("ok   pause: 1 ms ≤ 2");
  });

  it("builds a look-up frame of 1,024 full keys as the protocol lays it out", () => {
    const words = Uint32Array.from({ length: 1_024 * 8 }, (_, index) => index);
    const frame = lookupFrame(words, 3);
    const view = new DataView(frame.buffer);
    expect(frame.length).toBe(32 + 8 + 1_024 * 32);
    expect(Buffer.from(frame.subarray(0, 4)).toString()).toBe("CRN1");
    expect(view.getUint8(5)).toBe(5);
    expect(view.getUint32(8, true)).toBe(frame.length - 32);
    expect(view.getUint32(24, true)).toBe(1_024);
    expect(view.getUint16(28, true)).toBe(3);
    expect(view.getUint32(32, true)).toBe(0);
    expect(view.getUint32(40 + 4 * 8_191, true)).toBe(8_191);
  });

  it("starts calls in order and never more at once than asked", async () => {
    const started: number[] = [];
    let running = 0;
    let most = 0;
    await pipelined(20, 3, async (index) => {
      started.push(index);
      running += 1;
      most = Math.max(most, running);
      await nextTurn();
      running -= 1;
    });
    expect(started).toEqual(Array.from({ length: 20 }, (_, index) => index));
    expect(most).toBe(3);
  });

  it("prints the fields that the side-by-side comparison reads", () => {
    const row = rivalRow("1", {
      scenario: "s",
      variant: "v",
      values: [3, 1, 2],
      unit: "ms",
      n: 9,
      callMs: [1, 2],
    });
    expect(row).toMatchObject({
      system: "cairn",
      value: 2,
      min: 1,
      max: 3,
      runs: 3,
      n: 9,
      p50: 1,
      p99: 2,
      note: "",
    });
    expect(Object.keys(row).join()).toBe(
      "system,version,scenario,variant,value,unit,n,runs,min,max,p50,p99,load1,note",
    );
    expect(
      rivalRow("1", { scenario: "s", variant: "v", values: [1], unit: "B", n: 1 }).p99,
    ).toBeNull();
  });
});

describe("process figures", () => {
  it("reads times after a command name that holds spaces and parentheses", () => {
    const stat = "42 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20";
    expect(cpuSecondsOfStat(stat)).toBe(2);
    expect(cpuSeconds(process.pid)).toBeGreaterThan(0);
  });

  it("reads resident and shared memory", () => {
    const status = "Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t 1 kB\nRssShmem:\t    1024 kB\n";
    expect(residentMemoryOfStatus(status)).toEqual({
      totalBytes: 2 * 2 ** 20,
      sharedBytes: 2 ** 20,
    });
    expect(() => residentMemoryOfStatus("")).toThrow("names the field");
  });

  it("sees the garbage collector work", async () => {
    const watch = new GcWatch();
    const kept: object[] = [];
    for (let round = 0; round < 200; round += 1) {
      for (let index = 0; index < 20_000; index += 1) kept[index] = { index };
      await nextTurn();
    }
    const { pauses, longestMs } = watch.end();
    expect(pauses).toBeGreaterThan(0);
    expect(longestMs).toBeGreaterThan(0);
  });
});

describe("cairn replay", () => {
  const path = join(directory, "trace.jsonl");
  const line = '{"timestamp":0,"input_length":1024,"output_length":1,"hash_ids":[1,2]}\n';
  writeFileSync(path, line.repeat(3));

  it("prints one object with the counts", async () => {
    const { code, out } = await captured(() =>
      replayMain([path, "--capacity-blocks", "2", "--policy", "lru", "--json"]),
    );
    expect(code).toBe(0);
    expect(out.split("\n")).toHaveLength(2);
    expect(JSON.parse(out)).toMatchObject({
      mode: "pure",
      policy: "lru",
      capacityBlocks: 2,
      requests: 3,
      blocks: 6,
      hits: 4,
      hitRate: 4 / 6,
      idealHits: 4,
    });
  });

  it("takes the word inf for a cache without bounds", () => {
    expect(parseReplay(["t", "--capacity-blocks", "inf"])?.capacityBlocks).toBe(0);
    expect(parseReplay(["t"])).toMatchObject({
      capacityBlocks: 0,
      daemon: false,
      blockBytes: 4_096,
    });
    expect(parseReplay(["t", "--socket", "/tmp/s"])?.daemon).toBe(true);
    expect(parseReplay(["t", "--nvme-blocks", "100000"])?.nvmeBlocks).toBe(100_000);
    expect(() => parseReplay(["t", "--daemon", "--nvme-blocks", "9"])).toThrow("pure ledger");
  });

  const bad: readonly string[][] = [
    ["t", "--policy", "arc"],
    ["t", "--capacity-blocks", "-1"],
    ["t", "--capacity-blocks", ""],
    ["t", "--block-bytes", "66"],
    ["t", "--block-bytes", "8"],
    ["t", "u"],
    ["t", "--nothing"],
    [join(directory, "absent.jsonl")],
  ];
  it("refuses what it does not know, in one line and with exit code 2", async () => {
    for (const args of bad) {
      const { code, out, error } = await captured(() => replayMain(args));
      expect([code, out], args.join(" ")).toEqual([2, ""]);
      expect(error).toMatch(/^cairn replay: .+\n$/);
    }
  });

  it("names the line that is malformed and prints no figure", async () => {
    const broken = join(directory, "broken.jsonl");
    writeFileSync(broken, `${line}${line.replace("1024", "9999")}`);
    const { code, out, error } = await captured(() => replayMain([broken, "--json"]));
    expect([code, out]).toEqual([2, ""]);
    expect(error).toContain("line 2: hash_ids has 2 entries");
  });
});

describe("the heavier check run", () => {
  it("refuses a native variant that it does not know", () => {
    const script = new URL("../../.ci/native", import.meta.url).pathname;
    expect(spawnSync("bash", [script, "valgrind"]).status).toBe(2);
  });
});
