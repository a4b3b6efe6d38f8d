/** What nvme-read and nvme-write stand on: the rig moves whole blocks, and fio is asked for the same work. */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { DiskRig } from "../../bench/disk.ts";
import { fioArguments, fioResult } from "../../bench/fio.ts";
import { CAIRN } from "../../src/executable.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

describe("the disk rig", () => {
  const slots = 24;
  const shape = { blockBytes: 65_536, blocks: 8, slots, queueDepth: 4, writeDepth: 2 };
  let rig: DiskRig;
  beforeAll(async () => {
    rig = new DiskRig(shape);
    await rig.open();
  });
  afterAll(() => {
    rig.close();
    expect(existsSync(rig.directory)).toBe(false);
  });

  it("visits every slot once in an order that the seed decides", () => {
    expect([...rig.order(5)].toSorted((a, b) => a - b)).toEqual([...rig.order(0).toSorted()]);
    expect(rig.order(5)).toEqual(rig.order(5));
    expect(rig.order(5)).not.toEqual(rig.order(6));
  });

  it("reads back what it wrote, and counts a block that the disk changed", async () => {
    expect((await rig.write(rig.order(1))).failed).toBe(0);
    expect((await rig.read(rig.order(2))).failed).toBe(0);
    expect(await rig.wrong()).toBe(0);
    const bytes = readFileSync(rig.segmentFile);
    const at = 4_096 + 3 * rig.slotBytes + 1_000;
    bytes[at] = bytes[at]! ^ 1;
    writeFileSync(rig.segmentFile, bytes);
    expect((await rig.read(rig.order(3))).failed).toBe(1);
  });
});

describe("fio as the yardstick", () => {
  const pass = {
    file: "/d/segment-000000.cairn",
    write: false,
    blockBytes: 2_101_248,
    offsetBytes: 4_096,
    blocks: 10,
    depth: 16,
    direct: true,
    seed: 3,
  };

  it("does the same work as ours: every block once, same length, depth and order of chance", () => {
    const words = fioArguments(pass, "io_uring");
    for (const word of ["--rw=randread", "--bs=2101248", "--offset=4096", "--size=21012480"])
      expect(words).toContain(word);
    for (const word of ["--iodepth=16", "--direct=1", "--numjobs=1", "--allow_file_create=0"])
      expect(words).toContain(word);
    expect(fioArguments({ ...pass, write: true }, "libaio")).toContain("--rw=randwrite");
  });

  it("tells its speed and CPU, and a job that failed is no figure", () => {
    const side = { io_bytes: 3_000_000_000, runtime: 2_000 };
    const job = { error: 0, job_runtime: 2_000, usr_cpu: 5, sys_cpu: 15, read: side, write: side };
    const text = `note\n${JSON.stringify({ jobs: [job] })}`;
    expect(fioResult(text, false)).toEqual({ GBps: 1.5, cpuSeconds: 0.4 });
    expect(() => fioResult(JSON.stringify({ jobs: [{ ...job, error: 5 }] }), true)).toThrow(/fio/);
    expect(() => fioResult("no such engine", true)).toThrow(/fio/);
  });

  it("where it is not installed the command names its package and exits 2", () => {
    const words = [...CAIRN, "bench", "nvme-read", "--json"];
    const env = { PATH: "/nonexistent" };
    const done = spawnSync(process.execPath, words, { cwd: ROOT, env, encoding: "utf8" });
    expect(done.status).toBe(2);
    expect(done.stderr).toContain("install the package fio");
    expect(done.stdout).toBe("");
  });
});
