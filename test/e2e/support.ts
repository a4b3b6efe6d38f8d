/** A daemon with its own directory, and clients that speak to it over its real socket. */
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync, openSync, closeSync } from "node:fs";
import { join } from "node:path";
import { stringify } from "yaml";
import { CairnClient, chainKeys } from "../../connectors/node/index.ts";
import type { ClientOptions } from "../../connectors/node/types.ts";
import { CAIRN, CAIRN_ENVIRONMENT } from "../../src/executable.ts";
import type { NamespaceDescriptor } from "../../src/engine-api/protocol.ts";

const ROOT = new URL("../..", import.meta.url).pathname;
const MIB = 1024 * 1024;

export const BLOCK_TOKENS = 16;
export const ROW_BYTES = 4_096;

export function descriptor(over: Partial<NamespaceDescriptor> = {}): NamespaceDescriptor {
  return {
    model: "test/model",
    revision: "1",
    kvDtype: "bf16",
    quantScales: false,
    layout: "opaque",
    rowBytes: ROW_BYTES,
    groupKinds: ["full"],
    draft: false,
    blockTokens: BLOCK_TOKENS,
    hashAlgorithm: "sha256",
    hashSeed: "seed",
    engineBuild: "test",
    keyBytes: 32,
    shards: 1,
    chained: true,
    ...over,
  };
}

/** Keys of a chain of `blocks` blocks; chains of one `family` share nothing with another's. */
export function keysOf(family: number, blocks: number): Uint8Array {
  const tokens = Array.from(
    { length: blocks * BLOCK_TOKENS },
    (_, index) => family * 1_000_003 + index,
  );
  return chainKeys(tokens, BLOCK_TOKENS, "seed");
}

/** The bytes a block must hold: made from its key, its shard and nothing else. */
export function payloadOf(key: Uint8Array, bytes = ROW_BYTES, shard = 0): Uint8Array {
  const seed = createHash("sha256")
    .update(key)
    .update(Buffer.from([shard]))
    .digest();
  const out = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; at += seed.length) seed.copy(out, at);
  for (let at = 0; at + 4 <= bytes; at += 4)
    out.writeUInt32LE((out.readUInt32LE(at) + at) >>> 0, at);
  return new Uint8Array(out.buffer, out.byteOffset, bytes);
}

export function keyAt(keys: Uint8Array, index: number): Uint8Array {
  return keys.subarray(index * 32, index * 32 + 32);
}

export function rowsFrom(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, index) => first + index);
}

export class TestDaemon {
  readonly directory: string;
  readonly socket: string;
  readonly #logPath: string;
  readonly #configPath: string;
  #child: ChildProcess | undefined;
  exitCode: Promise<number | string> = Promise.resolve(0);

  constructor(over: Record<string, Record<string, unknown>> = {}) {
    this.directory = mkdtempSync("/dev/shm/cairn-test-");
    this.socket = join(this.directory, "engine.sock");
    this.#logPath = join(this.directory, "log");
    this.#configPath = join(this.directory, "cairn.yaml");
    const base: Record<string, Record<string, unknown>> = {
      engineApi: { socket: this.socket, proof: "off" },
      ledger: { blocksMax: 65_536 },
      dram: { directory: join(this.directory, "pool"), capacityBytes: 16 * MIB, slabBytes: MIB },
      edge: { listen: `unix:${join(this.directory, "edge.sock")}` },
    };
    const config: Record<string, unknown> = {};
    for (const name of new Set([...Object.keys(base), ...Object.keys(over)])) {
      const extra = over[name];
      config[name] = Array.isArray(extra) ? extra : { ...base[name], ...extra };
    }
    writeFileSync(this.#configPath, stringify(config));
  }

  async start(): Promise<this> {
    const log = openSync(this.#logPath, "a");
    const args = [...CAIRN, "daemon", "--config", this.#configPath];
    const child = spawn(process.execPath, args, {
      cwd: ROOT,
      env: { ...process.env, ...CAIRN_ENVIRONMENT },
      stdio: ["ignore", log, log],
    });
    closeSync(log);
    this.#child = child;
    this.exitCode = new Promise((resolve) => {
      child.on("exit", (code, signal) => resolve(code ?? signal ?? "?"));
    });
    const until = performance.now() + 30_000;
    while (performance.now() < until && child.exitCode === null) {
      const probe = new CairnClient({ ...PROBE, socket: this.socket });
      try {
        await probe.connect();
        return this;
      } catch {
        await sleep(20);
      } finally {
        probe.close();
      }
    }
    throw new Error(`the daemon did not start:\n${this.log()}`);
  }

  log(): string {
    return readFileSync(this.#logPath, "utf8");
  }

  get pid(): number {
    return this.#child?.pid ?? 0;
  }

  signal(name: NodeJS.Signals): void {
    this.#child?.kill(name);
  }

  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<number | string> {
    this.signal(signal);
    return this.exitCode;
  }

  async remove(): Promise<void> {
    if (this.#child?.exitCode === null && this.#child.signalCode === null)
      await this.stop("SIGKILL");
    rmSync(this.directory, { recursive: true, force: true });
  }
}

const PROBE = { engineId: "probe", namespaces: [descriptor({ model: "probe" })], reconnect: false };

export function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, milliseconds);
  });
}

/** Waits until `check` holds; fails loudly after `limitMs`. */
export async function eventually(check: () => boolean | Promise<boolean>, limitMs = 60_000) {
  const until = performance.now() + limitMs;
  while (!(await check())) {
    if (performance.now() > until) throw new Error("what was waited for did not come");
    await sleep(10);
  }
}

export function clientOf(socket: string, over: Partial<ClientOptions> = {}): Promise<CairnClient> {
  const base = { socket, engineId: "engine-a", namespaces: [descriptor()], strict: true };
  return CairnClient.connect({ ...base, ...over });
}
