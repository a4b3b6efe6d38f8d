/** Starts engine processes and reads what they say. */
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { ROOT, cleanEnvironment } from "./daemon.ts";
import type { EngineProcessReady } from "./engine-process.ts";
import { within } from "./eventually.ts";

export interface EngineProcess {
  readonly child: ChildProcessByStdio<Writable, Readable, null>;
  readonly ready: EngineProcessReady;
  /** Sends the signal and waits for the end. */
  end(signal: NodeJS.Signals): Promise<void>;
}

export async function startEngineProcess(
  socket: string,
  engineId: string,
  seed: string,
): Promise<EngineProcess> {
  const script = `${ROOT}/test/harness/engine-process.ts`;
  const child = spawn(process.execPath, ["--import", "tsx", script, socket, engineId, seed], {
    cwd: ROOT,
    env: cleanEnvironment(),
    stdio: ["pipe", "pipe", "inherit"],
  });
  const lines = createInterface({ input: child.stdout });
  const said = new Promise<string>((resolve, reject) => {
    lines.once("line", resolve);
    child.once("exit", (code) =>
      reject(new Error(`the engine process ended with ${String(code)}`)),
    );
  });
  const text = await within("the engine process is ready", said, 60_000);
  return {
    child,
    ready: JSON.parse(text) as EngineProcessReady,
    async end(signal) {
      const exited = once(child, "exit");
      child.kill(signal);
      await within("the engine process ends", exited);
    },
  };
}
