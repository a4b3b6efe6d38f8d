import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";

const STAGES = [
  "loaded",
  "started",
  "failedStart",
  "listening",
  "connected",
  "poolOpen",
  "poolOpenUnstarted",
  "failedOpen",
  "populating",
  "scanning",
  "regionMapped",
  "callInFlight",
  "closing",
  "diskOpen",
  "diskFailedOpen",
  "diskPreparing",
  "diskReading",
  "diskWriting",
  "diskScanning",
  "diskClosing",
  "stopped",
] as const;

interface Ended {
  readonly code: number | null;
  readonly signal: string | null;
  readonly errors: string;
}

async function cutShort(stage: string, ending: string, directory: string): Promise<Ended> {
  const script = join(import.meta.dirname, "lifecycle-child.ts");
  const child = spawn(process.execPath, ["--import", "tsx", script, stage, ending, directory], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  let errors = "";
  child.stderr.on("data", (data: Buffer) => (errors += data.toString()));
  return new Promise((resolve) => {
    child.once("close", (code, signal) => resolve({ code, signal, errors }));
  });
}

describe.each([
  ["process.exit", "exit", 0],
  ["an uncaught error", "throw", 1],
  ["the end of its worker", "worker", 0],
] as const)("a process cut short by %s", (_name, ending, code) => {
  test.each(STAGES)("at the stage %s ends with its code and no signal", async (stage) => {
    const directory = mkdtempSync(join(tmpdir(), "cairn-life-"));
    try {
      const ended = await cutShort(stage, ending, directory);
      expect(ended).toMatchObject({ code, signal: null });
      expect(ended.errors.includes("cut short")).toBe(ending === "throw");
      expect(ended.errors).not.toContain("assertion failed");
      // Whatever happened, the next process finds a pool it can open, and a disk.
      const nextStage = stage.startsWith("disk") ? "diskOpen" : "poolOpenUnstarted";
      const next = await cutShort(nextStage, "exit", directory);
      expect(next).toMatchObject({ code: 0, signal: null, errors: "" });
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  });
});

test("stop() lets a process end by itself, with copies and writes in flight and clients connected", async () => {
  for (const stage of ["loaded", "connected", "callInFlight", "populating", "diskWriting"]) {
    const directory = mkdtempSync(join(tmpdir(), "cairn-life-"));
    try {
      expect(await cutShort(stage, "stop", directory)).toMatchObject({ code: 0, signal: null });
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  }
});
