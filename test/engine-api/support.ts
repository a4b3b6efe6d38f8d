/** A daemon inside the test's process, and a client that sends frames byte by byte. */
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Addon } from "../../addon/binding.ts";
import { loadAddon } from "../../addon/load.ts";
import { errorOf } from "../../connectors/node/link.ts";
import { defaultConfig, resolveConfig } from "../../src/config/defaults.ts";
import { thisHost } from "../../src/config/load.ts";
import { overlayConfig } from "../../src/config/reload.ts";
import { createDaemon, type Daemon, type DaemonParts, type Logger } from "../../src/daemon.ts";
import {
  coldFrame,
  type ColdMap,
  decodeCold,
  emptyHeader,
  type FrameHeader,
  readHeader,
  writeHeader,
} from "../../src/engine-api/codec.ts";
import { FLAG, HEADER_BYTES, OP } from "../../src/engine-api/protocol.ts";
import type { CairnError } from "../../src/errors.ts";
import { descriptor } from "../e2e/support.ts";

const MIB = 1024 * 1024;

export class Harness {
  readonly directory = mkdtempSync("/dev/shm/cairn-test-");
  readonly socket = join(this.directory, "engine.sock");
  readonly lines: string[] = [];
  readonly daemon: Daemon;

  constructor(over: Record<string, unknown> = {}, addon?: Addon) {
    const log = (fields: object, message: string): void => {
      this.lines.push(`${message} ${JSON.stringify(fields)}`);
    };
    const logger: Logger = { level: "info", debug: () => {}, info: log, warn: log, error: log };
    const config = overlayConfig(
      resolveConfig(defaultConfig(), thisHost()),
      {
        engineApi: { socket: this.socket, ...(over["engineApi"] as object | undefined) },
        ledger: { blocksMax: 65_536, ...(over["ledger"] as object | undefined) },
        dram: {
          directory: join(this.directory, "pool"),
          capacityBytes: 16 * MIB,
          slabBytes: MIB,
          copyThreads: 1,
          ...(over["dram"] as object | undefined),
        },
        // No edge runs here; tenants demand one that does not listen on TCP all the same.
        edge: { listen: `unix:${this.directory}/edge.sock` },
        ...(over["nvme"] === undefined ? {} : { nvme: over["nvme"] }),
        ...(over["tenants"] === undefined ? {} : { tenants: over["tenants"] }),
      },
      "test",
    );
    const options = { logger, version: "test", edge: false };
    this.daemon = createDaemon(config, addon === undefined ? options : { ...options, addon });
  }

  async start(): Promise<this> {
    await this.daemon.start();
    return this;
  }

  get parts(): DaemonParts {
    const { parts } = this.daemon;
    if (parts === undefined) throw new Error("not started");
    return parts;
  }

  /** Stops, and re-derives every count of the ledger. */
  async stop(): Promise<void> {
    this.parts.ledger.audit();
    await this.daemon.stop();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

export interface RawFrame {
  /** Header and body. */
  readonly bytes: Uint8Array;
  readonly header: FrameHeader;
  readonly body: Uint8Array;
  readonly descriptor: number;
  /** Set when the frame is an error reply. */
  readonly error: CairnError | undefined;
}

export class RawClient {
  readonly #addon = loadAddon();
  readonly #frames: RawFrame[] = [];
  readonly #waiting: ((frame: RawFrame | undefined) => void)[] = [];
  readonly #client: number;
  closedBy: string | undefined;

  constructor(socket: string) {
    this.#client = this.#addon.clientOpen(
      socket,
      (bytes, carried) => this.#arrived(bytes, carried),
      (reason) => {
        this.closedBy = reason;
        for (const waiting of this.#waiting.splice(0)) waiting(undefined);
      },
    );
  }

  #arrived(bytes: Uint8Array, carried: number): void {
    const copy = bytes.slice();
    const header = emptyHeader();
    readHeader(new DataView(copy.buffer), 0, header);
    const body = copy.subarray(HEADER_BYTES);
    const error = (header.flags & FLAG.ERROR) === 0 ? undefined : errorOf(body);
    const frame = { bytes: copy, header, body, descriptor: carried, error };
    const waiting = this.#waiting.shift();
    if (waiting === undefined) this.#frames.push(frame);
    else waiting(frame);
  }

  send(bytes: Uint8Array, carried = -1): void {
    this.#addon.clientSend(this.#client, bytes, 0, bytes.byteLength, carried);
  }

  /** The next frame; undefined when the daemon closed the connection. */
  async next(): Promise<RawFrame | undefined> {
    const ready = this.#frames.shift();
    if (ready !== undefined) return ready;
    if (this.closedBy !== undefined) return undefined;
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
    });
  }

  /** The next frame as bytes. */
  async nextBytes(): Promise<Uint8Array> {
    const frame = await this.next();
    if (frame === undefined) throw new Error(`closed: ${this.closedBy}`);
    return frame.bytes;
  }

  async ask(bytes: Uint8Array, carried = -1): Promise<RawFrame> {
    this.send(bytes, carried);
    const frame = await this.next();
    if (frame === undefined) throw new Error(`closed: ${this.closedBy}`);
    return frame;
  }

  /** Says HELLO; handle 1 is the test's namespace. */
  async hello(engineId: string, over: ColdMap = {}): Promise<RawFrame> {
    return this.ask(coldFrame(OP.HELLO, 0, 1, 0, 0, helloBody(engineId, over)));
  }

  async register(blocks: number, over: ColdMap = {}, carried?: number): Promise<RawFrame> {
    const sizeBytes = blocks * 4_096;
    const memfd = carried ?? this.#addon.clientMemfd(sizeBytes, false).descriptor;
    const body = { ...registerBody(blocks), sizeBytes, ...over };
    return this.ask(coldFrame(OP.REGISTER, FLAG.DESCRIPTOR, 2, 0, 0, body), memfd);
  }

  close(): void {
    if (this.closedBy === undefined) this.#addon.clientClose(this.#client);
  }
}

export function helloBody(engineId: string, over: ColdMap = {}): object {
  return {
    protocol: [1],
    engineId,
    role: "scheduler",
    rank: 0,
    ranks: 1,
    engine: { name: "test", version: "1" },
    namespaces: [descriptor()],
    ...over,
  };
}

export function registerBody(blocks: number): ColdMap {
  return {
    kind: "window",
    make: "client",
    namespace: 1,
    sizeBytes: blocks * 4_096,
    offsetBytes: 0,
    strideBytes: 4_096,
    blocks,
    proof: false,
  };
}

/** A frame from words and byte arrays. */
export function hotFrame(
  op: number,
  flags: number,
  tag: number,
  id: number,
  count: number,
  parts: readonly (number | Uint8Array)[],
  namespace = 1,
): Uint8Array {
  const bodyBytes = parts.reduce<number>(
    (sum, part) => sum + (typeof part === "number" ? 4 : part.byteLength),
    0,
  );
  const frame = new Uint8Array(HEADER_BYTES + bodyBytes);
  const view = new DataView(frame.buffer);
  writeHeader(view, 0, op, flags, bodyBytes, tag, id, count, namespace);
  let at = HEADER_BYTES;
  for (const part of parts) {
    if (typeof part === "number") {
      view.setUint32(at, part, true);
      at += 4;
    } else {
      frame.set(part, at);
      at += part.byteLength;
    }
  }
  return frame;
}

export function storeFrame(
  tag: number,
  region: number,
  keys: Uint8Array,
  rows: readonly number[] | undefined,
  over: {
    startDepth?: number;
    tokens?: number;
    shard?: number;
    lease?: number;
    parent?: Uint8Array;
  } = {},
): Uint8Array {
  const count = keys.byteLength / 32;
  return hotFrame(OP.STORE, rows === undefined ? 0 : FLAG.DATA_READY, tag, over.lease ?? 0, count, [
    over.startDepth ?? 0,
    region,
    0,
    over.shard ?? 0,
    over.tokens ?? count * 16,
    0,
    over.parent ?? new Uint8Array(32),
    keys,
    ...(rows ?? []),
  ]);
}

export function loadFrame(
  tag: number,
  lease: number,
  region: number,
  keys: Uint8Array,
  rows: readonly number[],
  deadlineMs = 0,
): Uint8Array {
  const count = keys.byteLength / 32;
  return hotFrame(OP.LOAD, 0, tag, lease, count, [0, region, deadlineMs, 0, keys, ...rows]);
}

export function lookupFrame(tag: number, requestId: number, keys: Uint8Array, flags = 0, held = 0) {
  return hotFrame(OP.LOOKUP, flags, tag, requestId, keys.byteLength / 32, [held, 0, keys]);
}

export function coldOf(frame: RawFrame): ColdMap {
  return decodeCold(frame.body);
}
