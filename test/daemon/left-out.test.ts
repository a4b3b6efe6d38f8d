/** Directories that could not be opened: what is asked of them, when, and what is never done to them. */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { LeftOut } from "../../src/daemon/left-out.ts";
import { LIMITS } from "../../src/limits.ts";

let root: string;
let path: string;
let nowMs: number;
let lines: string[];
let works: string[];
let leftOut: LeftOut;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "cairn-left-out-"));
  path = join(root, "mount", "cairn");
  nowMs = 0;
  lines = [];
  works = [];
  leftOut = new LeftOut({
    note: (_level, line) => lines.push(line),
    works: (one) => works.push(one),
    now: () => nowMs,
  });
  leftOut.add(path);
});
afterEach(() => rmSync(root, { recursive: true }));

/** Lets the check that is due run to its end. */
async function asked(): Promise<void> {
  const before = lines.length + works.length;
  leftOut.step();
  await vi.waitUntil(() => lines.length + works.length > before, { timeout: 20_000 });
}

describe("a directory that was left out", () => {
  it("is asked at doubling intervals, once at a time, and is not made", async () => {
    for (const waitMs of [LIMITS.nvmeProbeMs, 2 * LIMITS.nvmeProbeMs, 4 * LIMITS.nvmeProbeMs]) {
      nowMs += waitMs - 1;
      const before = lines.length;
      leftOut.step();
      nowMs += 1;
      leftOut.step();
      leftOut.step();
      await vi.waitUntil(() => lines.length > before, { timeout: 20_000 });
      expect(lines).toHaveLength(before + 1);
    }
    expect(lines.every((line) => line.includes(`still left out: ${path}: `))).toBe(true);
    expect(existsSync(join(root, "mount"))).toBe(false);
    expect([leftOut.count, works]).toEqual([1, []]);
  });

  it("is not taken where it exists and was never in use: it may lie below a mount point", async () => {
    mkdirSync(path, { recursive: true });
    nowMs = LIMITS.nvmeProbeMs;
    await asked();
    expect(works).toEqual([]);
    expect(readdirSync(path)).toEqual([]);
  });

  it("is opened when it works and was in use before; asked again when that fails", async () => {
    mkdirSync(path, { recursive: true });
    writeFileSync(join(path, "directory.cairn"), "");
    nowMs = LIMITS.nvmeProbeMs;
    await asked();
    expect(works).toEqual([path]);
    expect(readdirSync(path)).toEqual(["directory.cairn"]);
    // Until it is known whether it could be opened it is not asked.
    nowMs += LIMITS.nvmeProbeMsMax;
    leftOut.step();
    expect(leftOut.count).toBe(1);
    leftOut.add(path);
    nowMs += LIMITS.nvmeProbeMsMax;
    await asked();
    expect(works).toEqual([path, path]);
    leftOut.remove(path);
    expect(leftOut.count).toBe(0);
  });

  it("that is no longer wanted while it is asked is not opened", async () => {
    mkdirSync(path, { recursive: true });
    writeFileSync(join(path, "directory.cairn"), "");
    nowMs = LIMITS.nvmeProbeMs;
    leftOut.step();
    leftOut.remove(path);
    const other = join(root, "other");
    leftOut.add(other);
    nowMs += LIMITS.nvmeProbeMsMax;
    await asked();
    await vi.waitUntil(() => !existsSync(join(path, "check.cairn")), { timeout: 20_000 });
    expect(works).toEqual([]);
  });
});
