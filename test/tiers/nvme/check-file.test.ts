import { execFileSync } from "node:child_process";
import { closeSync, constants, existsSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { CHECK_FILE, checkDevice } from "../../../tiers/nvme/check-file.ts";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "cairn-check-"));
});
afterEach(() => {
  rmSync(root, { recursive: true, force: true });
});

describe("a check of a device", () => {
  it("passes where a sector is written, synced and read back, and leaves nothing behind", async () => {
    await checkDevice(root);
    expect(existsSync(join(root, CHECK_FILE))).toBe(false);
  });

  it("fails with the words of the file system where the directory is gone", async () => {
    await expect(checkDevice(join(root, "gone"))).rejects.toThrow(/ENOENT/);
  });

  it("that hangs holds none of the threads that files and names are looked up with", async () => {
    // More than libuv has threads. A pipe that nobody reads keeps whoever opens it for writing.
    const directories = Array.from({ length: 6 }, () => mkdtempSync(join(root, "hangs-")));
    for (const directory of directories) execFileSync("mkfifo", [join(directory, CHECK_FILE)]);
    const open: number[] = [];
    const ended: string[] = [];
    const checks = directories.map((directory) =>
      checkDevice(directory).catch((error: unknown) => ended.push(String(error))),
    );
    try {
      const text = await readFile(new URL(import.meta.url), "utf8");
      expect(text.length).toBeGreaterThan(1_000);
      expect(ended).toEqual([]);
    } finally {
      for (const directory of directories) {
        const path = join(directory, CHECK_FILE);
        open.push(openSync(path, constants.O_RDONLY | constants.O_NONBLOCK));
      }
    }
    // The pipes let them go: a pipe can be written, but has no sectors.
    await Promise.all(checks);
    expect(ended).toHaveLength(directories.length);
    for (const file of open) closeSync(file);
  });
});
