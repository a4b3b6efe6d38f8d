/**
 * Bench clients run as processes of their own (bench/children/), as engines do. A child reads one JSON value from its
 * command line, writes one JSON value to standard output, and ends.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { join } from "node:path";
import { assert } from "../src/assert.ts";
import { NODE_FLAGS, ROOT } from "./daemon.ts";

export type ChildProgram =
  | "bench/children/round-trips.ts"
  | "bench/children/echo.ts"
  | "bench/children/copies.ts";

/** A started child: its process, and what it will have written when it ends. */
export interface Child<T> {
  readonly process: ChildProcess;
  readonly result: Promise<T>;
}

/** `cpu`: the one processor it may run on (placement.ts); undefined = any. */
export function startChild<T>(program: ChildProgram, input: unknown, cpu?: number): Child<T> {
  const node = [process.execPath, ...NODE_FLAGS, join(ROOT, program), JSON.stringify(input)];
  const [command, ...args] = cpu === undefined ? node : ["taskset", "-c", String(cpu), ...node];
  assert(command !== undefined, "a command has a name");
  const child = spawn(command, args, { cwd: ROOT, stdio: ["ignore", "pipe", "inherit"] });
  let text = "";
  child.stdout.setEncoding("utf8");
  child.stdout.on("data", (chunk: string) => {
    text += chunk;
  });
  const result = new Promise<T>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, signal) => {
      if (code !== 0) reject(new Error(`${program} ended with ${String(signal ?? code)}`));
      else resolve(JSON.parse(text === "" ? "null" : text) as T);
    });
  });
  // A child may be stopped on purpose and its result never awaited.
  result.catch(() => undefined);
  return { process: child, result };
}

export function runChild<T>(program: ChildProgram, input: unknown, cpu?: number): Promise<T> {
  return startChild<T>(program, input, cpu).result;
}

/** In a child: its input. */
export function childInput<T>(): T {
  return JSON.parse(process.argv[2] ?? "null") as T;
}

/** In a child: its answer. */
export function childAnswer(value: unknown): void {
  process.stdout.write(JSON.stringify(value));
}
