/**
 * Reading and writing frames (docs/protocol.md), for both sides of the socket.
 *
 * Hot frames are touched in place: a header is 32 bytes read through one DataView, keys stay words of
 * the buffer they came in. Cold frames are one msgpack map, decoded with every length bounded and
 * extension types refused, because they come from processes we do not trust.
 */
import { Decoder, encode, ExtensionCodec } from "@msgpack/msgpack";
import { assert } from "../assert.ts";
import { CairnError, ERRORS, type ErrorName } from "../errors.ts";
import { LIMITS } from "../limits.ts";
import { checkColdShape } from "./cold-shape.ts";
import {
  type ErrorBody,
  FLAG,
  HEADER,
  HEADER_BYTES,
  MAGIC,
  OP,
  type OpName,
  PROTOCOL_VERSION,
} from "./protocol.ts";
import { TWO_32 } from "../words.ts";

export const ID_MAX = Number.MAX_SAFE_INTEGER;

/** Header fields of one frame; one object is reused for every frame of a drain. */
export interface FrameHeader {
  op: number;
  flags: number;
  bodyBytes: number;
  tag: number;
  id: number;
  count: number;
  namespace: number;
}

export function emptyHeader(): FrameHeader {
  return { op: 0, flags: 0, bodyBytes: 0, tag: 0, id: 0, count: 0, namespace: 0 };
}

/** Reads a u64 that may be at most 2^53 − 1; −1 when it is larger. */
export function readId(view: DataView, at: number): number {
  const high = view.getUint32(at + 4, true);
  if (high > 0x1f_ffff) return -1;
  return high * TWO_32 + view.getUint32(at, true);
}

export function writeId(view: DataView, at: number, id: number): void {
  assert(id >= 0 && id <= ID_MAX, "an id is a safe integer");
  view.setUint32(at, id % TWO_32, true);
  view.setUint32(at + 4, Math.floor(id / TWO_32), true);
}

/** Fills `into` from the 32 bytes at `at`. Magic and version were checked by the transport. */
export function readHeader(view: DataView, at: number, into: FrameHeader): void {
  into.op = view.getUint8(at + HEADER.OP);
  into.flags = view.getUint16(at + HEADER.FLAGS, true);
  into.bodyBytes = view.getUint32(at + HEADER.BODY_BYTES, true);
  into.tag = view.getUint32(at + HEADER.TAG, true);
  into.id = readId(view, at + HEADER.ID);
  into.count = view.getUint32(at + HEADER.COUNT, true);
  into.namespace = view.getUint16(at + HEADER.NAMESPACE, true);
}

export function writeHeader(
  view: DataView,
  at: number,
  op: number,
  flags: number,
  bodyBytes: number,
  tag: number,
  id: number,
  count: number,
  namespace: number,
): void {
  view.setUint32(at + HEADER.MAGIC, MAGIC, true);
  view.setUint8(at + HEADER.VERSION, PROTOCOL_VERSION);
  view.setUint8(at + HEADER.OP, op);
  view.setUint16(at + HEADER.FLAGS, flags, true);
  view.setUint32(at + HEADER.BODY_BYTES, bodyBytes, true);
  view.setUint32(at + HEADER.TAG, tag, true);
  writeId(view, at + HEADER.ID, id);
  view.setUint32(at + HEADER.COUNT, count, true);
  view.setUint16(at + HEADER.NAMESPACE, namespace, true);
  view.setUint16(at + HEADER.NAMESPACE + 2, 0, true);
}

const opNames: (OpName | undefined)[] = [];
for (const name of Object.keys(OP) as OpName[]) opNames[OP[name]] = name;

/** Name of an operation code, undefined when this version does not know it. */
export function opName(op: number): OpName | undefined {
  return opNames[op];
}

export type ColdValue =
  | null
  | boolean
  | number
  | string
  | Uint8Array
  | readonly ColdValue[]
  | { readonly [key: string]: ColdValue };
export type ColdMap = { readonly [key: string]: ColdValue };

/** An extension codec that knows no type at all, not even the timestamp. */
const noExtensions = new ExtensionCodec();
noExtensions.register({ type: -1, encode: () => null, decode: refuseExtension });

function refuseExtension(): never {
  throw new RangeError("extension types are not part of the protocol");
}

const decoder = new Decoder({
  extensionCodec: noExtensions,
  maxStrLength: LIMITS.coldBodyBytesMax,
  maxBinLength: LIMITS.coldBodyBytesMax,
  maxArrayLength: LIMITS.coldBodyBytesMax,
  maxMapLength: LIMITS.coldBodyBytesMax,
  maxExtLength: 0,
});

/**
 * Decodes a cold body: one map with string keys. Byte fields are copies, so that they outlive the frame.
 * @throws CairnError malformedFrame
 */
export function decodeCold(bytes: Uint8Array): ColdMap {
  if (bytes.byteLength > LIMITS.coldBodyBytesMax) {
    throw new CairnError("malformedFrame", `cold body of ${bytes.byteLength} bytes`);
  }
  checkColdShape(bytes);
  let value: unknown;
  try {
    value = decoder.decode(bytes.slice());
  } catch (error) {
    const reason = error instanceof Error ? error.message : "not msgpack";
    throw new CairnError("malformedFrame", `cold body: ${reason}`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new CairnError("malformedFrame", "a cold body is one map");
  }
  if (value instanceof Uint8Array) throw new CairnError("malformedFrame", "a cold body is one map");
  return value as ColdMap;
}

export function encodeCold(value: object): Uint8Array {
  return encode(value, { ignoreUndefined: true });
}

/** Body of an error reply. */
export function errorBody(name: ErrorName, message: string, detail: number): ErrorBody {
  const row = ERRORS[name];
  return {
    code: row.code,
    name,
    retryable: row.retryable,
    message,
    action: row.action,
    detail,
  };
}

/** One whole frame with a cold body; for HELLO, tests and golden files, never the hot path. */
export function coldFrame(
  op: number,
  flags: number,
  tag: number,
  id: number,
  namespace: number,
  body: object | undefined,
): Uint8Array {
  const encoded = body === undefined ? new Uint8Array(0) : encodeCold(body);
  const frame = new Uint8Array(HEADER_BYTES + encoded.byteLength);
  const view = new DataView(frame.buffer);
  writeHeader(view, 0, op, flags, encoded.byteLength, tag, id, 0, namespace);
  frame.set(encoded, HEADER_BYTES);
  return frame;
}

export function isReply(flags: number): boolean {
  return (flags & FLAG.REPLY) !== 0;
}

// Typed access to the fields of a cold map. A missing or mistyped field is the client's fault.

export function textField(map: ColdMap, name: string, charactersMax = 4_096): string {
  const value = map[name];
  if (typeof value !== "string" || value.length === 0 || value.length > charactersMax) {
    throw new CairnError("malformedFrame", `${name}: a string of 1 to ${charactersMax} characters`);
  }
  return value;
}

export function integerField(map: ColdMap, name: string, minimum: number, maximum: number): number {
  const value = map[name];
  if (typeof value !== "number" || !Number.isInteger(value) || value < minimum || value > maximum) {
    throw new CairnError("malformedFrame", `${name}: an integer from ${minimum} to ${maximum}`);
  }
  return value;
}

export function booleanField(map: ColdMap, name: string): boolean {
  const value = map[name];
  if (typeof value !== "boolean") throw new CairnError("malformedFrame", `${name}: a boolean`);
  return value;
}

export function bytesField(map: ColdMap, name: string): Uint8Array {
  const value = map[name];
  if (!(value instanceof Uint8Array)) throw new CairnError("malformedFrame", `${name}: bytes`);
  return value;
}

export function listField(map: ColdMap, name: string, entriesMax: number): readonly ColdValue[] {
  const value = map[name];
  if (!Array.isArray(value) || value.length > entriesMax) {
    throw new CairnError("malformedFrame", `${name}: a list of at most ${entriesMax} entries`);
  }
  return value as readonly ColdValue[];
}

export function mapValue(value: ColdValue | undefined, name: string): ColdMap {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new CairnError("malformedFrame", `${name}: a map`);
  }
  if (value instanceof Uint8Array) throw new CairnError("malformedFrame", `${name}: a map`);
  return value as ColdMap;
}
