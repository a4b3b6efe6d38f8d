import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { numaCheck } from "../../../src/cli/doctor/host.ts";
import { defaultConfig, resolveConfig } from "../../../src/config/defaults.ts";
import { thisHost } from "../../../src/config/load.ts";
import { interleaveNodes, memoryNodes, parseNodeList } from "../../../tiers/dram/numa.ts";
import { Pump, codeOf } from "../../addon/pump.ts";

const directory = mkdtempSync("/dev/shm/cairn-numa-");
/** On a file system that keeps pages on a disk, a policy holds for nothing. */
const onDisk = mkdtempSync(join(process.cwd(), "build/cairn-numa-"));
const pump = new Pump();
afterAll(() => {
  pump.close();
  for (const each of [directory, onDisk]) rmSync(each, { recursive: true, force: true });
});

describe("the kernel's list of nodes", () => {
  test.each([
    ["0\n", [0]],
    ["0-1\n", [0, 1]],
    ["0-3", [0, 1, 2, 3]],
    ["0,2\n", [0, 2]],
    ["0-1,4,6-7\n", [0, 1, 4, 6, 7]],
    ["1023\n", [1_023]],
  ])("%j is read", (text, nodes) => {
    expect(parseNodeList(text)).toEqual(nodes);
  });

  test.each(["", "\n", "a", "0-", "-1", "3-1", "0 1", "0,,1", "0-1024", "99999", "0-1,x"])(
    "%j is not a list",
    (text) => {
      expect(parseNodeList(text)).toEqual([]);
    },
  );

  test("is the first file that has one, and one node where none has", () => {
    const good = join(directory, "online");
    const bad = join(directory, "broken");
    writeFileSync(good, "0-1\n");
    writeFileSync(bad, "\n");
    expect(memoryNodes([join(directory, "absent"), bad, good])).toEqual([0, 1]);
    expect(memoryNodes([join(directory, "absent"), bad])).toEqual([0]);
    expect(memoryNodes()).toContain(0);
  });

  test("is spread over only when there is more than one node and numa is auto", () => {
    expect(interleaveNodes("auto", [0])).toEqual([]);
    expect(interleaveNodes("auto", [0, 2])).toEqual([0, 2]);
    expect(interleaveNodes("off", [0, 2])).toEqual([]);
  });
});

test("doctor says what the daemon does", () => {
  const config = resolveConfig(defaultConfig(), thisHost());
  expect(numaCheck(config, [0]).found).toBe("one node");
  expect(numaCheck(config, [0, 1])).toMatchObject({ status: "ok" });
  const off = { dram: { ...config.dram, numa: "off" as const } };
  expect(numaCheck(off, [0, 1]).fix).toContain("dram.numa");
});

describe("a pool with a NUMA policy", () => {
  const open = (name: string, interleave: readonly number[], directoryOf = directory) =>
    pump.addon.arenaOpen({
      path: join(directoryOf, name),
      slabBytes: 1 << 20,
      slabs: 2,
      numaNode: -1,
      interleaveNodes: interleave,
      hugePages: false,
    });
  /** The kernel's word on the mapping of this file; undefined where it does not tell. */
  const policyOf = (name: string): boolean => {
    const lines = readFileSync("/proc/self/numa_maps", "utf8").split("\n");
    return lines.some((line) => line.includes(`/${name} `) && line.includes("interleave:"));
  };

  test("has it in the kernel exactly where the addon says so, also when it grew and was opened again", () => {
    const info = open("spread", [0]);
    expect(policyOf("spread")).toBe(info.numaPolicySet);
    pump.addon.arenaResize(info.arena, 4);
    pump.addon.arenaClose(info.arena, true);
    const again = open("spread", [0]);
    expect(again).toMatchObject({ reopened: true, slabs: 4, numaPolicySet: info.numaPolicySet });
    pump.addon.arenaClose(again.arena, false);
    expect(open("plain", []).numaPolicySet).toBe(false);
    expect(policyOf("plain")).toBe(false);
  });

  test("does not claim one on a file system that ignores it", () => {
    expect(open("disk", [0], onDisk).numaPolicySet).toBe(policyOf("disk"));
  });

  test("opens all the same when the kernel does not know the nodes", () => {
    expect(open("absent", [1_023]).numaPolicySet).toBe(false);
    expect(codeOf(() => open("wrong", [1_024]))).toBe("ARGUMENT");
  });
});
