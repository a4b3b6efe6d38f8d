/**
 * An engine that behaves: shares a window, stores chains whose bytes follow from their keys, and compares every
 * byte it loads. Tests use it beside hostile clients, and as the victim that must notice nothing.
 */
import { createHash } from "node:crypto";
import { loadAddon } from "../../addon/load.ts";
import { decodeCold } from "../../src/engine-api/codec.ts";
import {
  COMPLETION_FIXED_BYTES,
  FLAG,
  type HelloReply,
  type HelloRequest,
  type NamespaceDescriptor,
  OP,
  type RegisterReply,
  STORE_REPLY_FIXED_BYTES,
} from "../../src/engine-api/protocol.ts";
import { errorNameOfCode } from "../../src/errors.ts";
import {
  BLOCK_TOKENS,
  descriptorOf,
  frameOf,
  helloOf,
  loadBody,
  lookupBody,
  registerOf,
  storeBody,
} from "./frames.ts";
import { errorOf, type Frame, isError, Wire } from "./wire.ts";

/** Keys of a chain: each is the digest of the one before it. */
export function chainOf(seed: string, count: number, keyBytes = 32): Uint8Array[] {
  const keys: Uint8Array[] = [];
  let digest = createHash("sha256").update(seed).digest();
  for (let index = 0; index < count; index++) {
    keys.push(new Uint8Array(digest.subarray(0, keyBytes)));
    digest = createHash("sha256").update(digest).digest();
  }
  return keys;
}

/** What a block must hold: 32-bit words that follow from its key (xorshift), so that nothing need be kept. */
export function fillPayload(key: Uint8Array, into: Uint8Array): void {
  const words = new Uint32Array(into.buffer, into.byteOffset, into.byteLength >>> 2);
  let state = 0x9e3779b9;
  for (const byte of key) state = Math.imul(state ^ byte, 0x01000193) >>> 0;
  if (state === 0) state = 1;
  for (let index = 0; index < words.length; index++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[index] = state;
  }
}

export interface LookupAnswer {
  readonly lease: number;
  readonly hit: number;
  readonly proofWanted: boolean;
  readonly proofDepth: number;
  readonly proofKey: Uint8Array;
  readonly clipped: boolean;
}

export interface Failure {
  readonly index: number;
  readonly name: string;
}

export interface LoadAnswer {
  readonly landed: number;
  readonly failed: readonly Failure[];
  /** Rows that were reported good and hold something else. Must be 0, always. */
  readonly wrong: number;
}

export interface StoreAnswer {
  readonly job: number;
  readonly wanted: number;
  readonly pending: number;
  readonly residentDepth: number;
  readonly parentAbsent: boolean;
  readonly statuses: readonly number[];
  /** Absent when nothing was wanted or pending. */
  readonly completion:
    | { readonly visible: number; readonly failed: readonly Failure[] }
    | undefined;
}

export interface EngineOptions {
  readonly engineId?: string;
  readonly descriptor?: Partial<NamespaceDescriptor>;
  readonly rows?: number;
  readonly hello?: Partial<HelloRequest>;
}

export function failuresOf(completion: Frame): Failure[] {
  const failed: Failure[] = [];
  for (let at = COMPLETION_FIXED_BYTES; at < completion.body.byteLength; at += 8) {
    const index = completion.view.getUint32(at, true);
    failed.push({ index, name: errorNameOfCode(completion.view.getUint32(at + 4, true)) });
  }
  return failed;
}

export class TestEngine {
  readonly wire: Wire;
  readonly hello: HelloReply;
  readonly region: number;
  readonly rows: number;
  readonly rowBytes: number;
  readonly keyBytes: number;
  readonly window: Uint8Array;
  #lastRequest = 0;

  private constructor(
    wire: Wire,
    hello: HelloReply,
    region: number,
    rows: number,
    descriptor: NamespaceDescriptor,
    window: Uint8Array,
  ) {
    this.wire = wire;
    this.hello = hello;
    this.region = region;
    this.rows = rows;
    this.rowBytes = descriptor.rowBytes;
    this.keyBytes = descriptor.keyBytes;
    this.window = window;
  }

  static async start(socket: string, options: EngineOptions = {}): Promise<TestEngine> {
    const { engineId = "engine", rows = 64 } = options;
    const descriptor = descriptorOf(options.descriptor);
    const wire = Wire.open(socket);
    const greeted = await wire.cold(OP.HELLO, helloOf(engineId, [descriptor], options.hello));
    if (isError(greeted)) throw new Error(`HELLO: ${errorOf(greeted).name}`);
    const hello = decodeCold(greeted.body) as unknown as HelloReply;
    const sizeBytes = rows * descriptor.rowBytes;
    const memory = loadAddon().clientMemfd(sizeBytes, false);
    const request = registerOf({
      make: "client",
      sizeBytes,
      strideBytes: descriptor.rowBytes,
      blocks: rows,
    });
    const registered = await wire.cold(OP.REGISTER, request, 0, memory.descriptor);
    loadAddon().closeDescriptor(memory.descriptor);
    if (isError(registered)) throw new Error(`REGISTER: ${errorOf(registered).name}`);
    const { region } = decodeCold(registered.body) as unknown as RegisterReply;
    return new TestEngine(wire, hello, region, rows, descriptor, new Uint8Array(memory.buffer));
  }

  row(index: number): Uint8Array {
    return this.window.subarray(index * this.rowBytes, (index + 1) * this.rowBytes);
  }

  /** Writes into rows what the keys say. */
  gather(keys: readonly Uint8Array[], firstRow = 0): number[] {
    return keys.map((key, index) => {
      fillPayload(key, this.row(firstRow + index));
      return firstRow + index;
    });
  }

  /** STORE of keys[from …] with its data ready, up to the completion. The chain is keys from depth 1 on. */
  async store(
    chain: readonly Uint8Array[],
    from = 0,
    lease = 0,
    deadlineMs = 0,
  ): Promise<StoreAnswer> {
    const keys = chain.slice(from);
    const parentKey = from === 0 ? new Uint8Array(this.keyBytes) : chain[from - 1]!;
    const body = storeBody({
      region: this.region,
      startDepth: from,
      deadlineMs,
      keys,
      parentKey,
      tokens: keys.length * BLOCK_TOKENS,
      rows: this.gather(keys),
    });
    const tag = this.wire.nextTag();
    const fields = { op: OP.STORE, flags: FLAG.DATA_READY, id: lease, count: keys.length };
    const reply = await this.wire.call({ ...fields, namespace: 1, tag, body });
    if (isError(reply)) throw new Error(`STORE: ${errorOf(reply).name}`);
    return this.storeAnswer(reply);
  }

  async storeAnswer(reply: Frame): Promise<StoreAnswer> {
    const { view } = reply;
    const completion = reply.id === 0 ? undefined : await this.wire.completion(reply.tag);
    return {
      job: reply.id,
      wanted: view.getUint32(0, true),
      pending: view.getUint32(4, true),
      residentDepth: view.getUint32(8, true),
      parentAbsent: (view.getUint32(12, true) & 1) !== 0,
      statuses: [...reply.body.subarray(STORE_REPLY_FIXED_BYTES)],
      completion:
        completion === undefined
          ? undefined
          : { visible: completion.count, failed: failuresOf(completion) },
    };
  }

  async lookup(
    keys: readonly Uint8Array[],
    requestId = ++this.#lastRequest,
    flags = 0,
  ): Promise<LookupAnswer> {
    const reply = await this.wire.call({
      op: OP.LOOKUP,
      flags,
      id: requestId,
      count: keys.length,
      namespace: 1,
      body: lookupBody(keys),
    });
    if (isError(reply)) throw new Error(`LOOKUP: ${errorOf(reply).name}`);
    const bits = reply.view.getUint32(24, true);
    return {
      lease: reply.id,
      hit: reply.count,
      proofWanted: (bits & 1) !== 0,
      clipped: (bits & 4) !== 0,
      proofDepth: reply.view.getUint32(28, true),
      proofKey: reply.body.slice(32, 32 + this.keyBytes),
    };
  }

  /** LOAD of keys at depths startDepth + 1 … into rows firstRow …, each good row compared byte by byte. */
  async load(
    lease: number,
    keys: readonly Uint8Array[],
    startDepth = 0,
    firstRow = 0,
  ): Promise<LoadAnswer> {
    const rows = keys.map((_key, index) => firstRow + index);
    for (const row of rows) this.row(row).fill(0xee);
    const tag = this.wire.nextTag();
    const body = loadBody({ region: this.region, startDepth, keys, rows });
    const reply = this.wire.take((frame) => frame.tag === tag);
    this.wire.send(frameOf({ op: OP.LOAD, tag, id: lease, count: keys.length, body }));
    const completion = await reply;
    if ((completion.flags & FLAG.COMPLETION) === 0) {
      throw new Error(`LOAD: ${errorOf(completion).name}`);
    }
    const failed = failuresOf(completion);
    const bad = new Set(failed.map(({ index }) => index));
    const expected = new Uint8Array(this.rowBytes);
    let wrong = 0;
    for (const [index, key] of keys.entries()) {
      if (bad.has(index)) continue;
      fillPayload(key, expected);
      if (Buffer.compare(expected, this.row(rows[index]!)) !== 0) wrong += 1;
    }
    return { landed: completion.count, failed, wrong };
  }

  /** Looks the chain up, loads what is there in steps of the window, ends the request. */
  async read(chain: readonly Uint8Array[]): Promise<{ readonly hit: number } & LoadAnswer> {
    const requestId = ++this.#lastRequest;
    const found = await this.lookup(chain, requestId);
    let landed = 0;
    let wrong = 0;
    const failed: Failure[] = [];
    for (let at = 0; at < found.hit; at += this.rows) {
      const keys = chain.slice(at, Math.min(found.hit, at + this.rows));
      const answer = await this.load(found.lease, keys, at);
      landed += answer.landed;
      wrong += answer.wrong;
      failed.push(...answer.failed.map(({ index, name }) => ({ index: index + at, name })));
    }
    await this.endRequest(requestId);
    return { hit: found.hit, landed, failed, wrong };
  }

  async endRequest(requestId: number): Promise<void> {
    await this.wire.call({ op: OP.END_REQUEST, id: requestId });
  }

  close(): void {
    this.wire.close();
  }
}
