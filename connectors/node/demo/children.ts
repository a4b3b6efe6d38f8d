/** The demo's child processes: engines spoken to by JSON lines, and a daemon that can be killed and started again. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readFileSync } from "node:fs";
import { type IncomingMessage, request as httpRequest } from "node:http";
import { connect } from "node:net";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { assert } from "../../../src/assert.ts";
import { CairnError } from "../../../src/errors.ts";
import { CAIRN, CAIRN_ENVIRONMENT } from "../../../src/executable.ts";
import type {
  EngineCommand,
  EngineReply,
  GenerateReply,
  PeekReply,
  ReadyLine,
  TokenizeReply,
} from "./engine-protocol.ts";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
const START_DEADLINE_MS = 60_000;
const CLOSE_DEADLINE_MS = 5_000;

/** This process's environment without CAIRN_*: the demo's daemon has its own configuration. */
function cleanEnvironment(extra: Record<string, string> = {}): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(
    ([name]) => !name.startsWith("CAIRN_") || name === "CAIRN_ADDON",
  );
  return { ...Object.fromEntries(kept), ...extra };
}

async function ended(child: ChildProcess, withinMs: number): Promise<boolean> {
  if (child.exitCode !== null || child.signalCode !== null) return true;
  const timer = new AbortController();
  const exit = once(child, "exit").then(() => true);
  const late = sleep(withinMs, false, { signal: timer.signal }).catch(() => true);
  const result = await Promise.race([exit, late]);
  timer.abort();
  return result;
}

/** One engine process. Requests are answered in order. */
export class EngineProcess {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<
    number,
    { resolve(value: unknown): void; reject(error: Error): void }
  >();
  #sequence = 0;
  readonly #started: Promise<void>;
  #ready: ReadyLine | undefined;

  /** Starts the process; `ready` tells when its model is loaded. `socket` "-" makes a reference engine. */
  constructor(options: {
    readonly modelPath: string;
    readonly contextTokens: number;
    readonly threads: number;
    readonly stateDirectory: string;
    readonly engineId: string;
    readonly socket: string;
    readonly remoteWaitMs?: number;
  }) {
    const script = fileURLToPath(new URL("./engine-process.ts", import.meta.url));
    const { modelPath, contextTokens, threads, stateDirectory, engineId, socket } = options;
    const values = [
      modelPath,
      String(contextTokens),
      String(threads),
      stateDirectory,
      engineId,
      socket,
      String(options.remoteWaitMs ?? 0),
    ];
    this.#child = spawn(process.execPath, ["--import", "tsx", script, ...values], {
      cwd: ROOT,
      env: cleanEnvironment(),
      stdio: ["pipe", "pipe", "inherit"],
    });
    this.#started = this.#listen();
    // Whoever awaits `ready` gets the error; an engine that is stopped before is not awaited by anybody.
    this.#started.catch(() => undefined);
  }

  /** Resolves once the model is loaded; rejects if the process ends before. */
  async ready(): Promise<void> {
    await this.#started;
  }

  get blockBytes(): number {
    assert(this.#ready !== undefined, "a started engine has said so");
    return this.#ready.blockBytes;
  }

  get vocabulary(): number {
    assert(this.#ready !== undefined, "a started engine has said so");
    return this.#ready.vocabulary;
  }

  async tokenize(text: string): Promise<readonly number[]> {
    const reply = (await this.#ask({ command: "tokenize", text })) as TokenizeReply;
    return reply.tokens;
  }

  async generate(tokens: readonly number[], newTokens: number): Promise<GenerateReply> {
    return (await this.#ask({ command: "generate", tokens, newTokens })) as GenerateReply;
  }

  /** The last `bytes` bytes of a stored block; empty if it cannot be loaded. */
  async peek(tokens: readonly number[], depth: number, bytes: number): Promise<Buffer> {
    const reply = (await this.#ask({ command: "peek", tokens, depth, bytes })) as PeekReply;
    return Buffer.from(reply.bytes, "base64");
  }

  async stop(): Promise<void> {
    this.#child.stdin?.end();
    if (!(await ended(this.#child, CLOSE_DEADLINE_MS))) this.#child.kill("SIGKILL");
  }

  /** At once; for clean-up after an interrupt. */
  kill(): void {
    this.#child.kill("SIGKILL");
  }

  async #listen(): Promise<void> {
    const output = this.#child.stdout;
    assert(output !== null, "the engine's output is a pipe");
    const lines = createInterface({ input: output });
    const started = new Promise<void>((resolve, reject) => {
      lines.on("line", (line) => {
        // Written by our own engine process.
        const message = JSON.parse(line) as ReadyLine | EngineReply;
        if ("ready" in message) {
          this.#ready = message;
          resolve();
          return;
        }
        const waiter = this.#waiting.get(message.sequence);
        this.#waiting.delete(message.sequence);
        if (message.ok) waiter?.resolve(message.value);
        else waiter?.reject(new Error(message.message));
      });
      this.#child.once("exit", (code, signal) => {
        const error = new Error(`an engine process ended (${signal ?? `code ${code ?? "?"}`})`);
        reject(error);
        for (const waiter of this.#waiting.values()) waiter.reject(error);
        this.#waiting.clear();
      });
      this.#child.once("error", reject);
      this.#child.stdin?.on("error", () => undefined);
    });
    await started;
  }

  async #ask(command: EngineCommand): Promise<unknown> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null)
      throw new Error("the engine process is gone");
    this.#sequence += 1;
    const sequence = this.#sequence;
    const reply = new Promise<unknown>((resolve, reject) =>
      this.#waiting.set(sequence, { resolve, reject }),
    );
    this.#child.stdin?.write(`${JSON.stringify({ ...command, sequence })}\n`);
    return await reply;
  }
}

/** The daemon under test. One at a time; `start` after `killHard` brings it back on the same directory. */
export class DaemonProcess {
  readonly #configPath: string;
  readonly #socket: string;
  readonly #edgeSocket: string;
  readonly #logPath: string;
  #child: ChildProcess | undefined;

  constructor(options: {
    readonly configPath: string;
    readonly socket: string;
    readonly edgeSocket: string;
    readonly logPath: string;
  }) {
    this.#configPath = options.configPath;
    this.#socket = options.socket;
    this.#edgeSocket = options.edgeSocket;
    this.#logPath = options.logPath;
  }

  /**
   * Starts `cairn daemon` and waits until its engine socket accepts.
   * @throws CairnError unavailable, with the end of the daemon's log
   */
  async start(): Promise<void> {
    assert(this.#child === undefined, "one daemon at a time");
    const log = openSync(this.#logPath, "a", 0o600);
    const child = spawn(process.execPath, [...CAIRN, "daemon"], {
      cwd: ROOT,
      env: cleanEnvironment({ ...CAIRN_ENVIRONMENT, CAIRN_CONFIG: this.#configPath }),
      stdio: ["ignore", log, log],
    });
    closeSync(log);
    this.#child = child;
    const giveUpAtMs = performance.now() + START_DEADLINE_MS;
    while (!(await accepts(this.#socket))) {
      const gone = child.exitCode !== null || child.signalCode !== null;
      if (gone || performance.now() > giveUpAtMs) {
        throw new CairnError("unavailable", `the daemon did not start:\n${this.logTail()}`);
      }
      await sleep(20);
    }
  }

  /** SIGKILL, as a crash would end it. */
  async killHard(): Promise<void> {
    const child = this.#child;
    assert(child !== undefined, "there is a daemon to kill");
    this.#child = undefined;
    child.kill("SIGKILL");
    if (!(await ended(child, CLOSE_DEADLINE_MS)))
      throw new CairnError("internal", "the daemon outlived SIGKILL");
  }

  /** SIGTERM; resolves with the exit code, undefined if it had to be killed. */
  async stop(): Promise<number | undefined> {
    const child = this.#child;
    if (child === undefined) return undefined;
    this.#child = undefined;
    child.kill("SIGTERM");
    if (await ended(child, CLOSE_DEADLINE_MS)) return child.exitCode ?? undefined;
    child.kill("SIGKILL");
    return undefined;
  }

  kill(): void {
    this.#child?.kill("SIGKILL");
  }

  /**
   * Value of a metric without labels, as the daemon publishes it.
   * @throws CairnError notFound if /metrics does not name it; errno errors if nobody answers
   */
  async metric(name: string): Promise<number> {
    const page = await httpGet(this.#edgeSocket, "/metrics");
    const line = page.split("\n").find((candidate) => candidate.startsWith(`${name} `));
    if (line === undefined) throw new CairnError("notFound", `/metrics has no ${name}`);
    return Number(line.slice(name.length + 1));
  }

  /** Last lines of the daemon's log. */
  logTail(): string {
    return readFileSync(this.#logPath, "utf8").trimEnd().split("\n").slice(-12).join("\n");
  }
}

async function accepts(socketPath: string): Promise<boolean> {
  const socket = connect(socketPath);
  try {
    await once(socket, "connect");
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

async function httpGet(socketPath: string, resource: string): Promise<string> {
  const request = httpRequest({ socketPath, path: resource, timeout: CLOSE_DEADLINE_MS });
  request.on("timeout", () => request.destroy(new CairnError("deadlineExceeded", resource)));
  request.end();
  const [response] = (await once(request, "response")) as [IncomingMessage];
  let text = "";
  for await (const piece of response.setEncoding("utf8")) text += String(piece);
  return text;
}
