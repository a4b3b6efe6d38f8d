/** fio as the yardstick of a disk: one job, random order over every block of a file that is already written. */
import { spawn } from "node:child_process";
import { assert } from "../src/assert.ts";
import { UsageError } from "../src/cli/exit.ts";
import { CairnError } from "../src/errors.ts";

export interface FioPass {
  readonly file: string;
  readonly write: boolean;
  readonly blockBytes: number;
  readonly offsetBytes: number;
  readonly blocks: number;
  readonly depth: number;
  readonly direct: boolean;
  readonly seed: number;
}

export interface FioResult {
  readonly GBps: number;
  /** CPU of fio's job. */
  readonly cpuSeconds: number;
}

/** The bench cannot be held against anything without this tool. Exit code 2. */
export class MissingTool extends UsageError {
  constructor(tool: string, packageName: string) {
    super(`${tool} is not here; install the package ${packageName}`);
  }
}

/** fio's own words for what a pass does. */
export function fioArguments(pass: FioPass, engine: string): readonly string[] {
  return [
    "--name=pass",
    `--filename=${pass.file}`,
    `--rw=${pass.write ? "randwrite" : "randread"}`,
    `--bs=${pass.blockBytes}`,
    `--offset=${pass.offsetBytes}`,
    `--size=${pass.blocks * pass.blockBytes}`,
    `--direct=${pass.direct ? 1 : 0}`,
    `--ioengine=${engine}`,
    `--iodepth=${pass.depth}`,
    `--randseed=${pass.seed}`,
    "--numjobs=1",
    "--thread",
    "--allow_file_create=0",
    "--fallocate=none",
    "--output-format=json",
  ];
}

/** Speed and CPU out of fio's JSON. Throws CairnError internal when the job failed. */
export function fioResult(text: string, write: boolean): FioResult {
  const from = text.indexOf("{");
  const report = JSON.parse(from < 0 ? "{}" : text.slice(from)) as {
    readonly jobs?: readonly {
      readonly error: number;
      readonly job_runtime: number;
      readonly usr_cpu: number;
      readonly sys_cpu: number;
      readonly read: { readonly io_bytes: number; readonly runtime: number };
      readonly write: { readonly io_bytes: number; readonly runtime: number };
    }[];
  };
  const job = report.jobs?.[0];
  if (job === undefined || job.error !== 0)
    throw new CairnError("internal", `fio failed: error ${job?.error ?? text.slice(0, 200)}`);
  const side = write ? job.write : job.read;
  assert(side.runtime > 0, "fio moved something");
  const cpuSeconds = ((job.usr_cpu + job.sys_cpu) / 100) * (job.job_runtime / 1_000);
  return { GBps: side.io_bytes / side.runtime / 1e6, cpuSeconds };
}

function runFio(words: readonly string[]): Promise<{ code: number | null; text: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn("fio", words, { stdio: ["ignore", "pipe", "pipe"] });
    let text = "";
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding("utf8").on("data", (part: string) => {
        text += part;
      });
    child.on("error", (error: NodeJS.ErrnoException) =>
      reject(error.code === "ENOENT" ? new MissingTool("fio", "fio") : error),
    );
    child.on("close", (code) => resolve({ code, text }));
  });
}

/** Throws MissingTool where fio is not installed; else its version. */
export async function fioVersion(): Promise<string> {
  return (await runFio(["--version"])).text.trim();
}

/** One pass over all blocks; with io_uring, or libaio where a container forbids it. */
export async function fioPass(pass: FioPass): Promise<FioResult> {
  let last = "";
  for (const engine of ["io_uring", "libaio"]) {
    const { code, text } = await runFio(fioArguments(pass, engine));
    if (code === 0) return fioResult(text, pass.write);
    last = text;
  }
  throw new CairnError("internal", `fio failed: ${last.slice(0, 500)}`);
}
