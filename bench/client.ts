/**
 * The benches' engine: the TypeScript client with one chained namespace of 32-byte keys and one window of opaque rows.
 * Chains are given as the words of all their keys from depth 1 on, as the ledger benches keep them.
 */
import { BatchPort } from "../connectors/node/batch.ts";
import { CairnClient } from "../connectors/node/client.ts";
import type { Window } from "../connectors/node/window.ts";
import { assert } from "../src/assert.ts";
import {
  type HelloRequest,
  type NamespaceDescriptor,
  PROTOCOL_VERSION,
  STORE_STATUS,
} from "../src/engine-api/protocol.ts";

const KEY_BYTES = 32;
const BLOCK_TOKENS = 512;
/** Handles are given out in the order of HELLO's namespaces, from 1. */
const FIRST_HANDLE = 1;
const CALL_MS_MAX = 60_000;

export function benchDescriptor(rowBytes: number): NamespaceDescriptor {
  return {
    model: "bench",
    revision: "1",
    kvDtype: "opaque",
    quantScales: false,
    layout: "opaque",
    rowBytes,
    groupKinds: ["full"],
    draft: false,
    blockTokens: BLOCK_TOKENS,
    hashAlgorithm: "opaque",
    hashSeed: "0",
    engineBuild: "bench",
    keyBytes: KEY_BYTES,
    shards: 1,
    chained: true,
  };
}

/** The HELLO that a client of `engineId` sends: for native clients, which send ready-made frames. */
export function benchHello(engineId: string, rowBytes: number): HelloRequest {
  return {
    protocol: [PROTOCOL_VERSION],
    engineId,
    role: "scheduler",
    rank: 0,
    ranks: 1,
    engine: { name: "bench", version: "1" },
    namespaces: [benchDescriptor(rowBytes)],
  };
}

export interface BenchClient {
  readonly handle: number;
  readonly rowBytes: number;
  /** The window: row r at r · rowBytes. */
  readonly rows: Uint8Array<ArrayBuffer>;
  lookup(
    requestId: number,
    words: Uint32Array,
    count: number,
  ): Promise<{ readonly hit: number; readonly lease: number }>;
  /** Loads blocks [start, start + count) of the chain into rows from `row` on. Returns positions in the chain that failed. */
  load(
    lease: number,
    words: Uint32Array,
    start: number,
    count: number,
    row?: number,
  ): Promise<readonly number[]>;
  /** Stores blocks [start, start + count) from rows from `row` on. Returns how many of them are visible now. */
  store(
    lease: number,
    words: Uint32Array,
    start: number,
    count: number,
    row?: number,
  ): Promise<number>;
  /** The same for fresh blocks by the client's batch port, which makes no garbage per block. */
  storeFresh(words: Uint32Array, start: number, count: number, row: number): Promise<number>;
  endRequest(requestId: number): void;
  close(): void;
}

function keyBytes(words: Uint32Array, start: number, count: number): Uint8Array {
  assert((start + count) * KEY_BYTES <= words.byteLength, "the chain names these blocks");
  return new Uint8Array(words.buffer, words.byteOffset + start * KEY_BYTES, count * KEY_BYTES);
}

const rowNumbers = (row: number, count: number): Uint32Array =>
  Uint32Array.from({ length: count }, (_, index) => row + index);

class WindowClient implements BenchClient {
  readonly handle = FIRST_HANDLE;
  readonly rowBytes: number;
  readonly rows: Uint8Array<ArrayBuffer>;
  readonly #client: CairnClient;
  readonly #window: Window;
  readonly #port: BatchPort;

  constructor(client: CairnClient, window: Window) {
    this.#client = client;
    this.#window = window;
    this.#port = new BatchPort(client);
    this.rowBytes = window.strideBytes;
    const { buffer, byteOffset } = window.bytes;
    assert(buffer instanceof ArrayBuffer, "a window is a mapped buffer");
    const from = byteOffset + window.offsetBytes;
    this.rows = new Uint8Array(buffer, from, window.blocks * this.rowBytes);
  }

  async lookup(requestId: number, words: Uint32Array, count: number) {
    const { hit, lease } = await this.#client.lookup(requestId, keyBytes(words, 0, count));
    return { hit, lease };
  }

  async load(lease: number, words: Uint32Array, start: number, count: number, row = start) {
    const { failed } = await this.#client.load({
      lease,
      window: this.#window,
      startDepth: start,
      keys: keyBytes(words, start, count),
      rows: rowNumbers(row, count),
    });
    return failed.map((one) => start + one.index);
  }

  async store(lease: number, words: Uint32Array, start: number, count: number, row = start) {
    const { landed, statuses } = await this.#client.store({
      lease,
      window: this.#window,
      startDepth: start,
      ...(start === 0 ? {} : { parentKey: keyBytes(words, start - 1, 1) }),
      keys: keyBytes(words, start, count),
      rows: rowNumbers(row, count),
    });
    let present = 0;
    for (const status of statuses) if (status === STORE_STATUS.PRESENT) present += 1;
    return landed + present;
  }

  storeFresh(words: Uint32Array, start: number, count: number, row: number): Promise<number> {
    const keys = keyBytes(words, 0, words.byteLength / KEY_BYTES);
    return new Promise((resolve) => {
      this.#port.store(this.#window, start, keys, start, count, row, resolve);
    });
  }

  endRequest(requestId: number): void {
    this.#client.endRequest(requestId);
  }

  close(): void {
    this.#client.close();
  }
}

/** Connects an engine whose blocks are `rowBytes` long, with a window of `rows` rows. Throws CairnError. */
export async function connectBench(
  socket: string,
  engineId: string,
  rowBytes: number,
  rows: number,
): Promise<BenchClient> {
  const client = await CairnClient.connect({
    socket,
    engineId,
    engine: { name: "bench", version: "1" },
    namespaces: [benchDescriptor(rowBytes)],
    timeoutMs: CALL_MS_MAX,
    strict: true,
    reconnect: false,
  });
  try {
    const window = await client.createWindow({ blocks: rows });
    return new WindowClient(client, window);
  } catch (error) {
    client.close();
    throw error;
  }
}
