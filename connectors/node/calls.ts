/** Hot frames as the client writes and reads them: bodies at HEADER_BYTES of the link's buffer. */
import { decodeCold } from "../../src/engine-api/codec.ts";
import {
  COMPLETION_FIXED_BYTES,
  FLAG,
  HEADER_BYTES,
  LOAD_FIXED_BYTES,
  LOOKUP_BITS,
  LOOKUP_FIXED_BYTES,
  type NamespaceDescriptor,
  STORE_BITS,
  STORE_FIXED_BYTES,
  STORE_REPLY_FIXED_BYTES,
} from "../../src/engine-api/protocol.ts";
import { CairnError, errorNameOfCode } from "../../src/errors.ts";
import { LIMITS } from "../../src/limits.ts";
import type { Link, Reply } from "./link.ts";
import type {
  Advice,
  FailedBlock,
  JobResult,
  LoadRequest,
  LookupAnswer,
  Prefetched,
  StoreRequest,
  StoreResult,
} from "./types.ts";
import { TWO_32 } from "../../src/words.ts";

/** Nothing found: the answer to every fault of a look-up. */
export const MISS: LookupAnswer = {
  hit: 0,
  lease: 0,
  dramBlocks: 0,
  nvmeBlocks: 0,
  remotePrefixBlocks: 0,
  remoteAsking: false,
  estimatedLoadMicroseconds: 0,
  worthLoadingBlocks: 0,
  sampled: false,
  clipped: false,
  proof: undefined,
};

/** Number of keys in `keys`. @throws CairnError malformedFrame, tooManyKeys */
export function countKeys(keys: Uint8Array, descriptor: NamespaceDescriptor): number {
  const count = keys.byteLength / descriptor.keyBytes;
  if (!Number.isInteger(count)) throw new CairnError("malformedFrame", "keys are cut");
  if (count > LIMITS.keysPerFrameMax) throw new CairnError("tooManyKeys", `${count} keys`);
  return count;
}

/** Body of a LOOKUP; returns its length. `keys` are those beyond `held`. */
export function writeLookup(
  link: Link,
  held: number,
  prefillTokensPerSecond: number,
  keys: Uint8Array,
): number {
  link.view.setUint32(HEADER_BYTES, held, true);
  link.view.setUint32(HEADER_BYTES + 4, prefillTokensPerSecond, true);
  link.out.set(keys, HEADER_BYTES + LOOKUP_FIXED_BYTES);
  return LOOKUP_FIXED_BYTES + keys.byteLength;
}

export function readLookup(reply: Reply, keyBytes: number): LookupAnswer {
  const { view, header, body } = reply;
  const bits = view.getUint32(24, true);
  const wanted = (bits & LOOKUP_BITS.PROOF_WANTED) !== 0;
  return {
    hit: header.count,
    lease: header.id,
    dramBlocks: view.getUint32(0, true),
    nvmeBlocks: view.getUint32(4, true),
    remotePrefixBlocks: view.getUint32(8, true),
    remoteAsking: (bits & LOOKUP_BITS.REMOTE_ASKING) !== 0,
    estimatedLoadMicroseconds: view.getUint32(16, true),
    worthLoadingBlocks: view.getUint32(20, true),
    sampled: (bits & LOOKUP_BITS.SPLIT_SAMPLED) !== 0,
    clipped: (bits & LOOKUP_BITS.CLIPPED) !== 0,
    proof: wanted
      ? { depth: view.getUint32(28, true), key: body.slice(32, 32 + keyBytes) }
      : undefined,
  };
}

function writeRows(link: Link, at: number, rows: ArrayLike<number>, count: number): void {
  if (rows.length < count) throw new CairnError("malformedFrame", "a row for each key");
  for (let index = 0; index < count; index++)
    link.view.setUint32(at + index * 4, rows[index]!, true);
}

/** Body of a LOAD; returns its length. */
export function writeLoad(link: Link, request: LoadRequest, count: number): number {
  const { view, out } = link;
  view.setUint32(HEADER_BYTES, request.startDepth, true);
  view.setUint32(HEADER_BYTES + 4, request.window.live, true);
  view.setUint32(HEADER_BYTES + 8, request.deadlineMs ?? 0, true);
  view.setUint32(HEADER_BYTES + 12, request.shard ?? 0, true);
  out.set(request.keys, HEADER_BYTES + LOAD_FIXED_BYTES);
  const rowsAt = HEADER_BYTES + LOAD_FIXED_BYTES + request.keys.byteLength;
  writeRows(link, rowsAt, request.rows, count);
  return LOAD_FIXED_BYTES + request.keys.byteLength + count * 4;
}

/** Body of a STORE; returns its length. */
export function writeStore(link: Link, request: StoreRequest, count: number): number {
  const { view, out } = link;
  const { descriptor } = request.window;
  const { keyBytes } = descriptor;
  view.setUint32(HEADER_BYTES, request.startDepth, true);
  view.setUint32(HEADER_BYTES + 4, request.window.live, true);
  view.setUint32(HEADER_BYTES + 8, request.deadlineMs ?? 0, true);
  view.setUint32(HEADER_BYTES + 12, request.shard ?? 0, true);
  view.setUint32(HEADER_BYTES + 16, request.tokens ?? count * descriptor.blockTokens, true);
  view.setUint32(HEADER_BYTES + 20, 0, true);
  const parentAt = HEADER_BYTES + STORE_FIXED_BYTES;
  out.fill(0, parentAt, parentAt + keyBytes);
  if (request.startDepth > 0) {
    if (request.parentKey?.byteLength !== keyBytes) {
      throw new CairnError("malformedFrame", "parentKey is needed below the root");
    }
    out.set(request.parentKey, parentAt);
  }
  out.set(request.keys, parentAt + keyBytes);
  const length = STORE_FIXED_BYTES + keyBytes + request.keys.byteLength;
  if (request.gather !== undefined) return length;
  writeRows(link, HEADER_BYTES + length, request.rows, count);
  return length + count * 4;
}

export interface StoreReply {
  readonly job: number;
  readonly wanted: number;
  readonly pending: number;
  readonly residentDepth: number;
  readonly parentAbsent: boolean;
  readonly statuses: Uint8Array;
}

export function readStoreReply(reply: Reply): StoreReply {
  const { view, header, body } = reply;
  const from = STORE_REPLY_FIXED_BYTES;
  return {
    job: header.id,
    wanted: view.getUint32(0, true),
    pending: view.getUint32(4, true),
    residentDepth: view.getUint32(8, true),
    parentAbsent: (view.getUint32(12, true) & STORE_BITS.PARENT_ABSENT) !== 0,
    statuses: body.slice(from, from + header.count),
  };
}

export function readCompletion(reply: Reply): JobResult {
  const { view, header } = reply;
  const failed: FailedBlock[] = [];
  const count = view.getUint32(0, true);
  for (let index = 0; index < count; index++) {
    const at = COMPLETION_FIXED_BYTES + index * 8;
    const error = errorNameOfCode(view.getUint32(at + 4, true));
    failed.push({ index: view.getUint32(at, true), error });
  }
  return {
    landed: header.count,
    failed,
    microseconds: view.getUint32(4, true),
    bytes: view.getUint32(8, true) + view.getUint32(12, true) * TWO_32,
  };
}

/** The two frames of a PREFETCH, the second unless it is refused. */
export function prefetchReplies(ended: (result: Prefetched) => void): (reply: Reply) => boolean {
  let advice: Advice | undefined;
  return ({ header, body }) => {
    const over = (header.flags & FLAG.COMPLETION) !== 0;
    if (!over) advice = decodeCold(body) as unknown as Advice;
    if (advice === undefined || (!over && advice.verdict !== "refused")) return false;
    ended({ ...advice, resident: over ? header.count : 0 });
    return true;
  };
}

/** A STORE that never reached the daemon: nothing was taken. */
export function storeRefused(count: number): StoreResult {
  return {
    landed: 0,
    failed: [],
    bytes: 0,
    microseconds: 0,
    statuses: new Uint8Array(count).fill(3),
    wanted: 0,
    pending: 0,
    parentAbsent: false,
    residentDepth: 0,
  };
}

/** A LOAD that failed as a whole: every block is a miss. */
export function loadRefused(count: number, error: CairnError): JobResult {
  const failed = Array.from({ length: count }, (_, index) => ({ index, error: error.errorName }));
  return { landed: 0, failed, bytes: 0, microseconds: 0 };
}
