/**
 * A real daemon in a child process with a directory of its own, as tests need it: started, watched through
 * /proc and its HTTP side, stopped or killed by its process id, and started again on the same pool.
 */
import { type ChildProcess, spawn } from "node:child_process";
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { request } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { mergeTrees } from "../../src/config/defaults.ts";
import { CAIRN, CAIRN_ENVIRONMENT } from "../../src/executable.ts";
import { METRICS, type MetricName } from "../../src/observe/metrics.ts";
import { eventually, within } from "./eventually.ts";

export const ROOT = new URL("../..", import.meta.url).pathname;
const MIB = 1024 * 1024;
const START_MS = 120_000;

/** A tree of settings as in cairn.yaml. */
export type Settings = Readonly<Record<string, unknown>>;

export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface HttpAnswer {
  readonly status: number;
  readonly text: string;
}

/** Small enough that a start takes no time to speak of, large enough for every case. */
function baseSettings(directory: string): Settings {
  return {
    engineApi: { socket: join(directory, "engine.sock"), proof: "off" },
    dram: {
      directory: join(directory, "pool"),
      capacityBytes: 32 * MIB,
      slabBytes: MIB,
      copyThreads: 1,
      populateThreads: 1,
    },
    edge: { listen: `unix:${join(directory, "edge.sock")}` },
    log: { level: "warn" },
  };
}

/** A directory in memory where the host has it, as the pool of a real node is. */
export function scratchDirectory(): string {
  try {
    return mkdtempSync("/dev/shm/cairn-test-");
  } catch {
    return mkdtempSync(join(tmpdir(), "cairn-test-"));
  }
}

/** This process's environment without settings of a daemon, or of another program, that may run beside the tests. */
export function cleanEnvironment(): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(
    ([name]) => !/^(?:CAIRN|DYN_KVBM|LMCACHE)_/.test(name) || name === "CAIRN_ADDON",
  );
  return Object.fromEntries(kept);
}

/** Whether somebody listens at this socket. */
export function accepts(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.on("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.on("error", () => resolve(false));
  });
}

export class TestDaemon {
  readonly directory: string;
  readonly socket: string;
  readonly configPath: string;
  /** Added to the environment of the next start. */
  environment: NodeJS.ProcessEnv = {};
  /** What node is started with, up to the words of the command line. */
  executable: readonly string[] = CAIRN;
  readonly #edgeSocket: string;
  readonly #logPath: string;
  #settings: Settings;
  #child: ChildProcess | undefined;
  #exit: Promise<Exit> = Promise.resolve({ code: null, signal: null });

  constructor(settings: Settings = {}, directory = scratchDirectory()) {
    this.directory = directory;
    this.socket = join(directory, "engine.sock");
    this.configPath = join(directory, "cairn.yaml");
    this.#edgeSocket = join(directory, "edge.sock");
    this.#logPath = join(directory, "daemon.log");
    this.#settings = mergeTrees(baseSettings(directory), settings) as Settings;
  }

  /** A new daemon, serving. Throws with the daemon's own words when it does not come up. */
  static async start(settings: Settings = {}): Promise<TestDaemon> {
    const daemon = new TestDaemon(settings);
    await daemon.launch();
    return daemon;
  }

  get pid(): number {
    const pid = this.#child?.pid;
    if (pid === undefined) throw new Error("the daemon does not run");
    return pid;
  }

  get running(): boolean {
    return this.#child !== undefined;
  }

  get settings(): Settings {
    return this.#settings;
  }

  /** Lays `settings` over the file that the next start or reload reads. */
  configure(settings: Settings): void {
    this.#settings = mergeTrees(this.#settings, settings) as Settings;
    this.writeConfig(JSON.stringify(this.#settings, undefined, 2));
  }

  /** Writes the configuration file as it stands (JSON is YAML). */
  writeConfig(text: string): void {
    writeFileSync(this.configPath, text);
  }

  /** Starts the process on the present directory and waits until it serves engines. */
  async launch(): Promise<void> {
    this.configure({});
    this.spawn();
    await this.serves();
  }

  /** Waits until a started process serves engines; throws with its own words when it ends instead. */
  async serves(): Promise<void> {
    await eventually("the daemon serves", () => this.#serves(), START_MS);
  }

  async #serves(): Promise<boolean> {
    if (this.#child === undefined) throw new Error(`the daemon ended at start:\n${this.log()}`);
    if (!(await accepts(this.socket))) return false;
    const ready = await this.get("/readyz").catch(() => undefined);
    return ready?.status === 200;
  }

  /** Starts the process and returns at once. */
  spawn(): void {
    if (this.#child !== undefined) throw new Error("one process at a time");
    const log = openSync(this.#logPath, "a");
    const child = spawn(
      process.execPath,
      [...this.executable, "daemon", "--config", this.configPath],
      {
        cwd: ROOT,
        env: {
          ...cleanEnvironment(),
          ...CAIRN_ENVIRONMENT,
          CAIRN_TEST_AUDIT: "1",
          ...this.environment,
        },
        stdio: ["ignore", log, log],
      },
    );
    closeSync(log);
    this.#child = child;
    this.#exit = new Promise((resolve) => {
      child.on("error", () => resolve({ code: null, signal: null }));
      child.on("exit", (code, signal) => {
        this.#child = undefined;
        resolve({ code, signal });
      });
    });
  }

  /** Starts a daemon that is expected to end by itself; its exit. */
  async failToStart(): Promise<Exit> {
    this.configure({});
    this.spawn();
    return this.exited();
  }

  exited(): Promise<Exit> {
    return within("the daemon ends", this.#exit, START_MS);
  }

  signal(name: NodeJS.Signals): void {
    process.kill(this.pid, name);
  }

  /** Sends the signal and waits for the end. */
  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<Exit> {
    this.signal(signal);
    return this.exited();
  }

  /** Ends the process whatever it does, and removes the directory. */
  async remove(): Promise<void> {
    if (this.#child !== undefined) await this.stop("SIGKILL");
    rmSync(this.directory, { recursive: true, force: true });
  }

  /** Everything the daemon has written, all starts. */
  log(): string {
    try {
      return readFileSync(this.#logPath, "utf8");
    } catch {
      return "";
    }
  }

  /** Files of the pool directory. */
  poolFiles(): string[] {
    const pool = join(this.directory, "pool");
    const names = readdirSync(pool).toSorted();
    return names.map((name) => join(pool, name));
  }

  /** Private memory of the process in bytes; shared windows and the pool are left out. */
  privateBytes(): number {
    const status = readFileSync(`/proc/${this.pid}/status`, "utf8");
    const found = /^RssAnon:\s+(\d+) kB$/m.exec(status);
    if (found === null) throw new Error("the kernel tells RssAnon");
    return Number(found[1]) * 1_024;
  }

  /** Open descriptors of the process. */
  descriptors(): number {
    return readdirSync(`/proc/${this.pid}/fd`).length;
  }

  get(path: string): Promise<HttpAnswer> {
    return this.#http("GET", path, undefined);
  }

  put(path: string, body: unknown): Promise<HttpAnswer> {
    return this.#http("PUT", path, JSON.stringify(body));
  }

  async json<T>(path: string): Promise<T> {
    const answer = await this.get(path);
    if (answer.status !== 200) throw new Error(`${path}: ${answer.status} ${answer.text}`);
    return JSON.parse(answer.text) as T;
  }

  #http(method: string, path: string, body: string | undefined): Promise<HttpAnswer> {
    const headers = {
      host: "localhost",
      ...(body === undefined ? {} : { "content-type": "application/json" }),
    };
    return new Promise((resolve, reject) => {
      const call = request(
        { socketPath: this.#edgeSocket, method, path, headers, agent: false },
        (answer) => {
          let text = "";
          answer.setEncoding("utf8");
          answer.on("data", (part: string) => {
            text += part;
          });
          answer.on("end", () => resolve({ status: answer.statusCode ?? 0, text }));
          answer.on("error", reject);
        },
      );
      call.setTimeout(10_000, () => call.destroy(new Error(`${path}: no answer`)));
      call.on("error", reject);
      call.end(body);
    });
  }

  /** One figure of /metrics; without a label value the sum over all of the row's. */
  async metric(name: MetricName, label?: string): Promise<number> {
    const { text } = await this.get("/metrics");
    const series = METRICS[name].name;
    let sum = 0;
    let seen = false;
    for (const line of text.split("\n")) {
      if (!line.startsWith(series)) continue;
      const found = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
      if (found === null || found[1] !== series) continue;
      if (label !== undefined && !(found[2] ?? "").includes(`="${label}"`)) continue;
      sum += Number(found[3]);
      seen = true;
    }
    if (!seen) throw new Error(`/metrics has no ${series} ${label ?? ""}`);
    return sum;
  }

  /** Runs `act` and waits until the named counter has grown by `least`; what `act` gave. */
  async counts<T>(
    name: MetricName,
    label: string | undefined,
    act: () => Promise<T>,
    least = 1,
  ): Promise<T> {
    const before = await this.metric(name, label);
    const result = await act();
    await eventually(
      `${name} ${label ?? ""} grows by ${least} from ${before}`,
      async () => (await this.metric(name, label)) >= before + least,
    );
    return result;
  }

  /** Waits until a gauge has this value. */
  async settles(name: MetricName, value: number): Promise<void> {
    await eventually(`${name} becomes ${value}`, async () => (await this.metric(name)) === value);
  }
}

/** Runs `use` with a daemon of its own and removes that daemon whatever happens. */
export async function withDaemon<T>(
  settings: Settings,
  use: (daemon: TestDaemon) => Promise<T>,
): Promise<T> {
  const daemon = new TestDaemon(settings);
  try {
    await daemon.launch();
    const result = await use(daemon);
    if (/a fault in cairn/.test(daemon.log())) throw new Error(daemon.log());
    return result;
  } finally {
    await daemon.remove();
  }
}
