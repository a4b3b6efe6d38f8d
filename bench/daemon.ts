/**
 * A private daemon for one bench: its own directory, socket, pool file and log, started as a child and ended by its
 * process id. Nothing is shared with a daemon that may already run on this host.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stringify } from "yaml";
import { assert } from "../src/assert.ts";
import { CairnError } from "../src/errors.ts";
import { CAIRN, CAIRN_ENVIRONMENT } from "../src/executable.ts";
import { METRICS, type MetricName } from "../src/observe/metrics.ts";

export const ROOT = new URL("..", import.meta.url).pathname;
/** How a child of a bench is started from its source. */
export const NODE_FLAGS = ["--no-memory-reducer", "--import", "tsx"] as const;
const START_MS_MAX = 60_000;
const STOP_MS_MAX = 30_000;
const POLL_MS = 5;
const LOG_TAIL_BYTES = 2_000;

/** One directory of the NVMe tier. */
export interface DaemonDisk {
  readonly path: string;
  readonly capacityBytes: number;
  readonly segmentBytes: number;
  /** Copy blocks down as they are stored. */
  readonly writeThrough: boolean;
}

export interface DaemonOptions {
  readonly capacityBytes: number;
  readonly slabBytes?: number;
  readonly disk?: DaemonDisk;
  /** Cap on blocks in DRAM; 0 = as many as the slots. */
  readonly blocksMax?: number;
  readonly ledgerBlocksMax?: number;
  readonly highWatermark?: number;
  readonly lowWatermark?: number;
  readonly copyThreads?: number;
}

function nvmeConfiguration({
  path,
  capacityBytes,
  segmentBytes,
  writeThrough,
}: DaemonDisk): object {
  return { enabled: true, directories: [{ path, capacityBytes }], segmentBytes, writeThrough };
}

function configuration(directory: string, options: DaemonOptions): object {
  return {
    engineApi: {
      socket: join(directory, "engine.sock"),
      // One harness stands for one engine build, so the proof of an earlier life would prove nothing here.
      proof: "off",
      pinnedBytesMax: options.capacityBytes,
    },
    ledger: { blocksMax: options.ledgerBlocksMax ?? 0 },
    dram: {
      directory: join(directory, "pool"),
      capacityBytes: options.capacityBytes,
      blocksMax: options.blocksMax ?? 0,
      highWatermark: options.highWatermark ?? 0.98,
      lowWatermark: options.lowWatermark ?? 0.95,
      copyThreads: options.copyThreads ?? 1,
      ...(options.slabBytes === undefined ? {} : { slabBytes: options.slabBytes }),
    },
    ...(options.disk === undefined ? {} : { nvme: nvmeConfiguration(options.disk) }),
    edge: { listen: `unix:${join(directory, "edge.sock")}` },
    log: { level: "warn" },
  };
}

/** The directory under which pools live: memory-backed where the host has it. */
function scratchParent(): string {
  try {
    const probe = mkdtempSync("/dev/shm/cairn-bench-");
    rmSync(probe, { recursive: true });
    return "/dev/shm";
  } catch {
    return tmpdir();
  }
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, milliseconds);
  });
}

/** True once something accepts connections at the path. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.on("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.on("error", () => resolve(false));
  });
}

export class BenchDaemon {
  readonly directory: string;
  readonly socket: string;
  readonly edgeSocket: string;
  readonly #configPath: string;
  readonly #logPath: string;
  #child: ChildProcess | undefined;
  #exited: Promise<void> = Promise.resolve();

  private constructor(options: DaemonOptions) {
    this.directory = mkdtempSync(join(scratchParent(), "cairn-bench-"));
    this.socket = join(this.directory, "engine.sock");
    this.edgeSocket = join(this.directory, "edge.sock");
    this.#configPath = join(this.directory, "cairn.yaml");
    this.#logPath = join(this.directory, "daemon.log");
    writeFileSync(this.#configPath, stringify(configuration(this.directory, options)));
  }

  /** Starts a daemon and waits until it accepts engines. Throws CairnError unavailable with its log. */
  static async start(options: DaemonOptions): Promise<BenchDaemon> {
    const daemon = new BenchDaemon(options);
    try {
      daemon.launch();
      await daemon.ready();
    } catch (error) {
      await daemon.remove();
      throw error;
    }
    return daemon;
  }

  get pid(): number {
    const pid = this.#child?.pid;
    assert(pid !== undefined, "the daemon was started");
    return pid;
  }

  /** Starts the process and returns at once (the restart bench times what follows). */
  launch(): void {
    assert(this.#child === undefined, "one process at a time");
    const log = openSync(this.#logPath, "a");
    const args = [...CAIRN, "daemon", "--config", this.#configPath];
    const child = spawn(process.execPath, args, {
      cwd: ROOT,
      env: { ...process.env, ...CAIRN_ENVIRONMENT },
      stdio: ["ignore", log, log],
    });
    closeSync(log);
    this.#child = child;
    this.#exited = new Promise((resolve) => {
      child.on("error", () => resolve());
      child.on("exit", () => {
        this.#child = undefined;
        resolve();
      });
    });
  }

  /** Engines can connect. */
  serves(): Promise<boolean> {
    return answers(this.socket);
  }

  /** Waits until engines and the edge are served, so that nothing of the start runs beside a measurement. */
  async ready(): Promise<void> {
    const endMs = performance.now() + START_MS_MAX;
    while (performance.now() < endMs) {
      if (this.#child === undefined) break;
      if ((await this.serves()) && (await answers(this.edgeSocket))) return;
      await sleep(POLL_MS);
    }
    throw new CairnError("unavailable", `the bench daemon did not start: ${this.logTail()}`);
  }

  /** One figure of /metrics, summed over its labels or of one. Throws CairnError unavailable without an answer. */
  metric(name: MetricName, label?: string): Promise<number> {
    const row = METRICS[name].name;
    return new Promise((resolve, reject) => {
      const call = request(
        { socketPath: this.edgeSocket, path: "/metrics", agent: false },
        (answer) => {
          let text = "";
          answer.setEncoding("utf8").on("data", (part: string) => {
            text += part;
          });
          answer.on("end", () => resolve(metricSum(text, row, label)));
        },
      );
      call.on("error", (error) => reject(new CairnError("unavailable", String(error))));
      call.end();
    });
  }

  logTail(): string {
    return readFileSync(this.#logPath, "utf8").slice(-LOG_TAIL_BYTES).trim();
  }

  /** kill -9, and waits until the process is gone. */
  async kill(): Promise<void> {
    this.#child?.kill("SIGKILL");
    await this.#exited;
  }

  /** Stops the process in order (SIGKILL after a limit) and removes its directory. */
  async remove(): Promise<void> {
    const child = this.#child;
    if (child !== undefined) {
      child.kill("SIGTERM");
      const limit = setTimeout(() => child.kill("SIGKILL"), STOP_MS_MAX);
      await this.#exited;
      clearTimeout(limit);
    }
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** Sum of all series of one row in the Prometheus text, or of those with this label value. */
export function metricSum(text: string, row: string, label?: string): number {
  let sum = 0;
  for (const line of text.split("\n")) {
    const [series = "", value = ""] = line.split(" ");
    const named = series === row || series.startsWith(`${row}{`);
    if (named && (label === undefined || series.includes(`="${label}"`))) sum += Number(value);
  }
  return sum;
}

/** Runs `use` with a daemon of its own and removes that daemon whatever happens. */
export async function withDaemon<T>(
  options: DaemonOptions,
  use: (daemon: BenchDaemon) => Promise<T>,
): Promise<T> {
  const daemon = await BenchDaemon.start(options);
  try {
    return await use(daemon);
  } finally {
    await daemon.remove();
  }
}
