/** What the demo sets up and takes down: a private directory, a daemon's configuration, and all child processes. */
import { mkdirSync, mkdtempSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { assert } from "../../../src/assert.ts";
import { DaemonProcess, type EngineProcess } from "./children.ts";
import type { EngineName } from "./conversations.ts";

const MIB = 1024 * 1024;
export const POOL_BYTES = 128 * MIB;

/** Everything the running demo owns; `close` ends all of it, however far it got. */
export class Stage {
  readonly directory: string;
  readonly poolDirectory: string;
  readonly socket: string;
  readonly daemon: DaemonProcess;
  readonly engines = new Map<EngineName, EngineProcess>();
  reference: EngineProcess | undefined;

  constructor() {
    this.directory = mkdtempSync(path.join(roomyDirectory(), "cairn-demo-"));
    this.poolDirectory = path.join(this.directory, "pool");
    this.socket = path.join(this.directory, "engine.sock");
    mkdirSync(this.poolDirectory, { mode: 0o700 });
    const edgeSocket = path.join(this.directory, "edge.sock");
    const configPath = path.join(this.directory, "cairn.yaml");
    // JSON is YAML.
    const config = {
      node: { name: "demo" },
      engineApi: { socket: this.socket },
      dram: { directory: this.poolDirectory, capacityBytes: POOL_BYTES, slabBytes: 8 * MIB },
      edge: { listen: `unix:${edgeSocket}` },
      log: { level: "warn" },
    };
    writeFileSync(configPath, JSON.stringify(config, null, 2), { mode: 0o600 });
    const logPath = path.join(this.directory, "daemon.log");
    this.daemon = new DaemonProcess({ configPath, socket: this.socket, edgeSocket, logPath });
  }

  engine(name: EngineName): EngineProcess {
    const engine = this.engines.get(name);
    assert(engine !== undefined, "both engines run");
    return engine;
  }

  /** For an interrupt: at once, nothing awaited. */
  abandon(): void {
    for (const engine of this.engines.values()) engine.kill();
    this.reference?.kill();
    this.daemon.kill();
    rmSync(this.directory, { recursive: true, force: true });
  }

  async close(): Promise<void> {
    const engines = [...this.engines.values()];
    if (this.reference !== undefined) engines.push(this.reference);
    await Promise.all(engines.map((engine) => engine.stop()));
    await this.daemon.stop();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** tmpfs where it has room for the pool twice over, else the temporary directory. */
function roomyDirectory(): string {
  const sharedMemory = "/dev/shm";
  try {
    const { bavail, bsize } = statfsSync(sharedMemory);
    if (bavail * bsize > 2 * POOL_BYTES) return sharedMemory;
  } catch {
    // No such file system on this host.
  }
  return tmpdir();
}
