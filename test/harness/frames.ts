/** Frames as an engine writes them, and as a hostile one does: every header field can be said outright. */
import { coldFrame, encodeCold, writeHeader } from "../../src/engine-api/codec.ts";
import {
  HEADER_BYTES,
  type HelloRequest,
  LOAD_FIXED_BYTES,
  LOOKUP_FIXED_BYTES,
  type NamespaceDescriptor,
  type RegisterRequest,
  STORE_FIXED_BYTES,
} from "../../src/engine-api/protocol.ts";

export interface FrameFields {
  readonly op: number;
  readonly flags?: number;
  readonly tag?: number;
  readonly id?: number;
  readonly count?: number;
  readonly namespace?: number;
  readonly body?: Uint8Array;
  /** What the header says of the body; its true length when left out. */
  readonly bodyBytes?: number;
}

export function frameOf(fields: FrameFields): Uint8Array {
  const { op, flags = 0, tag = 0, id = 0, count = 0, namespace = 0 } = fields;
  const body = fields.body ?? new Uint8Array(0);
  const frame = new Uint8Array(HEADER_BYTES + body.byteLength);
  const bodyBytes = fields.bodyBytes ?? body.byteLength;
  writeHeader(new DataView(frame.buffer), 0, op, flags, bodyBytes, tag, id, count, namespace);
  frame.set(body, HEADER_BYTES);
  return frame;
}

export function join(parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.byteLength, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.byteLength;
  }
  return out;
}

function words(...values: readonly number[]): Uint8Array {
  return new Uint8Array(Uint32Array.from(values).buffer);
}

export function lookupBody(keys: readonly Uint8Array[], heldKeys = 0): Uint8Array {
  const fixed = words(heldKeys, 0);
  if (fixed.byteLength !== LOOKUP_FIXED_BYTES) throw new Error("the fixed part has changed");
  return join([fixed, ...keys]);
}

export interface RangeFields {
  readonly region: number;
  readonly startDepth?: number;
  readonly deadlineMs?: number;
  readonly shard?: number;
  readonly keys: readonly Uint8Array[];
}

export function loadBody(fields: RangeFields & { readonly rows: readonly number[] }): Uint8Array {
  const { region, startDepth = 0, deadlineMs = 0, shard = 0, keys, rows } = fields;
  const fixed = words(startDepth, region, deadlineMs, shard);
  if (fixed.byteLength !== LOAD_FIXED_BYTES) throw new Error("the fixed part has changed");
  return join([fixed, ...keys, words(...rows)]);
}

export interface StoreFields extends RangeFields {
  readonly parentKey?: Uint8Array;
  readonly tokens: number;
  /** Only with dataReady. */
  readonly rows?: readonly number[];
  readonly keyBytes?: number;
}

export function storeBody(fields: StoreFields): Uint8Array {
  const { region, startDepth = 0, deadlineMs = 0, shard = 0, keys, rows, tokens } = fields;
  const parent = fields.parentKey ?? new Uint8Array(fields.keyBytes ?? 32);
  const fixed = words(startDepth, region, deadlineMs, shard, tokens, 0);
  if (fixed.byteLength !== STORE_FIXED_BYTES) throw new Error("the fixed part has changed");
  return join([fixed, parent, ...keys, ...(rows === undefined ? [] : [words(...rows)])]);
}

export function fillBody(pairs: readonly (readonly [index: number, row: number])[]): Uint8Array {
  return words(...pairs.flat());
}

export const BLOCK_TOKENS = 16;

/** A namespace descriptor of the tests; one row is 4 KiB. */
export function descriptorOf(changes: Partial<NamespaceDescriptor> = {}): NamespaceDescriptor {
  return {
    model: "test-model",
    revision: "1",
    kvDtype: "f16",
    quantScales: false,
    layout: "test",
    rowBytes: 4_096,
    groupKinds: ["full"],
    draft: false,
    blockTokens: BLOCK_TOKENS,
    hashAlgorithm: "sha256",
    hashSeed: "0",
    engineBuild: "test",
    keyBytes: 32,
    shards: 1,
    chained: true,
    ...changes,
  };
}

export function helloOf(
  engineId: string,
  namespaces: readonly NamespaceDescriptor[] = [descriptorOf()],
  changes: Partial<HelloRequest> = {},
): HelloRequest {
  return {
    protocol: [1],
    engineId,
    role: "scheduler",
    rank: 0,
    ranks: 1,
    engine: { name: "test", version: "1" },
    namespaces,
    ...changes,
  };
}

export function registerOf(changes: Partial<RegisterRequest> = {}): RegisterRequest {
  return {
    kind: "window",
    make: "daemon",
    namespace: 1,
    sizeBytes: 64 * 4_096,
    offsetBytes: 0,
    strideBytes: 4_096,
    blocks: 64,
    proof: false,
    ...changes,
  };
}

export { coldFrame, encodeCold };
