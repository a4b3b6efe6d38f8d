/**
 * What the frame fuzzer sends: mutations of valid frames, and structured calls that are well formed and hostile.
 * Every case is plain data that fast-check can shrink; `bytesOf` turns it into bytes.
 */
import fc from "fast-check";
import { ERRORS } from "../../src/errors.ts";
import {
  HEADER,
  HEADER_BYTES,
  MAGIC,
  OP,
  PROTOCOL_VERSION,
} from "../../src/engine-api/protocol.ts";
import { LIMITS } from "../../src/limits.ts";
import { chainOf } from "../harness/engine.ts";
import {
  coldFrame,
  descriptorOf,
  fillBody,
  frameOf,
  helloOf,
  join,
  loadBody,
  lookupBody,
  registerOf,
  storeBody,
} from "../harness/frames.ts";

/** Chains that every client of the fuzzer draws from, so that they collide with each other. */
export const CHAINS = Array.from({ length: 8 }, (_unused, index) => chainOf(`fuzz-${index}`, 32));
const OPERATIONS = Object.values(OP);
export const ERROR_NAMES = new Set(Object.keys(ERRORS));

export interface Change {
  readonly at: number;
  readonly value: number;
}

export type Case =
  | {
      /** A breaking one changes magic, version and length, too. */
      readonly kind: "mutation" | "breaking";
      readonly base: number;
      readonly changes: readonly Change[];
      readonly cut: number;
    }
  | { readonly kind: "call"; readonly call: Call };

export interface Call {
  readonly op: number;
  readonly flags: number;
  readonly id: number;
  readonly count: number;
  readonly namespace: number;
  readonly chain: number;
  readonly from: number;
  readonly keys: number;
  readonly region: number;
  readonly row: number;
  readonly shard: number;
  readonly deadlineMs: number;
  readonly tokens: number;
}

const small = fc.oneof(fc.nat(3), fc.nat(80), fc.constantFrom(0xffff, 0x7fff_ffff, 0xffff_ffff));

const call: fc.Arbitrary<Call> = fc.record({
  op: fc.oneof(
    { weight: 8, arbitrary: fc.constantFrom(...OPERATIONS) },
    { weight: 1, arbitrary: fc.nat(255) },
  ),
  flags: fc.oneof(fc.constantFrom(0, 256, 512, 768, 16, 8), fc.nat(0xffff)),
  id: fc.oneof(
    { weight: 3, arbitrary: fc.constantFrom(-1, -2) },
    { weight: 2, arbitrary: fc.nat(64) },
    { weight: 1, arbitrary: fc.maxSafeNat() },
  ),
  count: fc.oneof({ weight: 6, arbitrary: fc.constant(-1) }, { weight: 1, arbitrary: small }),
  namespace: fc.oneof(
    { weight: 8, arbitrary: fc.constantFrom(1, 1, 1, 2) },
    { weight: 1, arbitrary: fc.nat(0xffff) },
  ),
  chain: fc.nat(CHAINS.length - 1),
  from: fc.oneof(fc.nat(31), fc.constant(0), fc.constant(0xffff_ffff)),
  keys: fc.nat(20),
  region: fc.oneof({ weight: 4, arbitrary: fc.constant(-1) }, { weight: 1, arbitrary: small }),
  row: fc.oneof({ weight: 4, arbitrary: fc.nat(15) }, { weight: 1, arbitrary: small }),
  shard: fc.oneof({ weight: 8, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: small }),
  deadlineMs: fc.constantFrom(0, 1, 5, 0xffff_ffff),
  tokens: fc.oneof({ weight: 8, arbitrary: fc.constant(-1) }, { weight: 1, arbitrary: small }),
});

const mutation = fc.record({
  kind: fc.constant("mutation" as const),
  base: fc.nat(63),
  changes: fc.array(fc.record({ at: fc.nat(4_000), value: fc.nat(255) }), {
    minLength: 1,
    maxLength: 4,
  }),
  cut: fc.oneof({ weight: 9, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat(64) }),
});

/** Cases that keep the stream in step, so that each one reaches its operation. */
export const hostileCase: fc.Arbitrary<Case> = fc.oneof(
  { weight: 1, arbitrary: mutation },
  { weight: 1, arbitrary: call.map((made) => ({ kind: "call" as const, call: made })) },
);

/** A case that may break the framing, and so must be the last of its connection. */
export const breakingCase: fc.Arbitrary<Case> = mutation.map((made) => ({
  ...made,
  kind: "breaking" as const,
}));

/** What the sender really holds, so that hostile calls reach past the first check. */
export interface Own {
  readonly region: number;
  readonly lease: number;
  readonly job: number;
}

let lastOwn: Own | undefined;
let lastGolden: Uint8Array[] = [];

function goldenFrames(own: Own): Uint8Array[] {
  if (own !== lastOwn) lastGolden = makeGoldenFrames(own);
  lastOwn = own;
  return lastGolden;
}

/** Valid frames of every operation, the seeds of mutations. */
function makeGoldenFrames({ region, lease, job }: Own): Uint8Array[] {
  const keys = CHAINS[0]!.slice(0, 4);
  const rows = [0, 1, 2, 3];
  const hot = (op: number, flags: number, id: number, body: Uint8Array): Uint8Array =>
    frameOf({ op, flags, tag: 21, id, count: 4, namespace: 1, body });
  return [
    coldFrame(OP.HELLO, 0, 21, 0, 0, helloOf("golden", [descriptorOf()])),
    coldFrame(OP.REGISTER, 0, 21, 0, 0, registerOf({ blocks: 4, sizeBytes: 16_384 })),
    coldFrame(OP.PROVE_LAYOUT, 0, 21, region, 0, { block: 0 }),
    frameOf({ op: OP.UNREGISTER, tag: 21, id: region + 1 }),
    hot(OP.LOOKUP, 0, 3, lookupBody(keys)),
    hot(OP.LOOKUP, 256, 4, lookupBody(keys)),
    hot(OP.LOAD, 0, lease, loadBody({ region, keys, rows })),
    hot(OP.STORE, 256, 0, storeBody({ region, keys, rows, tokens: 64 })),
    hot(OP.STORE, 0, lease, storeBody({ region, keys, tokens: 64 })),
    hot(
      OP.FILL,
      0,
      job,
      fillBody([
        [0, 0],
        [1, 1],
        [2, 2],
        [3, 3],
      ]),
    ),
    frameOf({ op: OP.CANCEL, tag: 21, id: job }),
    frameOf({ op: OP.FLUSH, tag: 21 }),
    frameOf({ op: OP.END_REQUEST, tag: 21, id: 3 }),
    hot(OP.TOUCH, 0, 0, join(keys)),
    coldFrame(OP.HINT, 0, 21, 0, 0, { namespace: 1, key: keys[0]!, kind: "retain", ttlMs: 5 }),
    coldFrame(OP.PREFETCH, 0, 21, lease, 0, { deadlineMs: 5 }),
    coldFrame(OP.PROVE, 0, 21, 0, 0, { namespace: 1, key: keys[0]!, ok: true }),
    frameOf({ op: OP.HEARTBEAT, tag: 21 }),
    frameOf({ op: OP.STATS, tag: 21 }),
  ];
}

/** Bytes that frame the stream: magic, version and body length. */
function framesTheStream(at: number): boolean {
  return at <= HEADER.VERSION || (at >= HEADER.BODY_BYTES && at < HEADER.TAG);
}

function mutated(one: Case & { readonly kind: "mutation" | "breaking" }, own: Own): Uint8Array {
  const golden = goldenFrames(own);
  const frame = golden[one.base % golden.length]!.slice();
  for (const { at, value } of one.changes) {
    const place = at % frame.byteLength;
    if (one.kind === "breaking" || !framesTheStream(place)) frame[place] = value;
  }
  if (one.cut === 0 || one.cut >= frame.byteLength - HEADER_BYTES) return frame;
  // A body cut short whose header says so stays in step with the stream.
  const cut = frame.slice(0, frame.byteLength - one.cut);
  new DataView(cut.buffer).setUint32(HEADER.BODY_BYTES, cut.byteLength - HEADER_BYTES, true);
  return cut;
}

function called(one: Call, own: Own): Uint8Array {
  const chain = CHAINS[one.chain]!;
  const from = one.from > 31 ? 0 : one.from;
  const keys = chain.slice(from, from + one.keys);
  const rows = keys.map((_key, index) => (one.row + index) >>> 0);
  const range = {
    region: one.region === -1 ? own.region : one.region,
    startDepth: one.from,
    deadlineMs: one.deadlineMs,
    shard: one.shard,
    keys,
  };
  const parentKey = from === 0 ? new Uint8Array(32) : chain[from - 1]!;
  const tokens = one.tokens === -1 ? keys.length * 16 : one.tokens;
  const ready = (one.flags & 256) !== 0 ? { rows } : {};
  const bodies: Readonly<Record<number, Uint8Array>> = {
    [OP.LOOKUP]: lookupBody(chain.slice(0, one.keys), one.from % 40),
    [OP.LOAD]: loadBody({ ...range, rows }),
    [OP.STORE]: storeBody({ ...range, parentKey, tokens, ...ready }),
    [OP.FILL]: fillBody(rows.map((row, index): [number, number] => [index, row])),
    [OP.TOUCH]: join(keys),
  };
  const count = one.count === -1 ? (one.op === OP.LOOKUP ? one.keys : keys.length) : one.count;
  const body = bodies[one.op];
  const ids: Readonly<Record<number, number>> = { [-1]: own.lease, [-2]: own.job };
  return frameOf({
    ...one,
    id: ids[one.id] ?? one.id,
    count,
    tag: 22,
    ...(body === undefined ? {} : { body }),
  });
}

export function bytesOf(one: Case, own: Own): Uint8Array {
  return one.kind === "call" ? called(one.call, own) : mutated(one, own);
}

/** What a stream of frames must end in: answered to its end, closed for its framing, or waiting for more bytes. */
export type Outcome = "whole" | "closed" | "waiting";

/** The framing rules of docs/protocol.md in a dozen lines, to hold the daemon's against. */
export function outcomeOf(stream: Uint8Array): Outcome {
  const view = new DataView(stream.buffer, stream.byteOffset, stream.byteLength);
  let at = 0;
  while (at < stream.byteLength) {
    const left = stream.byteLength - at;
    if (left < 4) return "waiting";
    if (view.getUint32(at, true) !== MAGIC) return "closed";
    if (left < HEADER_BYTES) return "waiting";
    if (stream[at + HEADER.VERSION] !== PROTOCOL_VERSION) return "closed";
    const bodyBytes = view.getUint32(at + HEADER.BODY_BYTES, true);
    if (bodyBytes > LIMITS.frameBodyBytesMax) return "closed";
    if (left < HEADER_BYTES + bodyBytes) return "waiting";
    at += HEADER_BYTES + bodyBytes;
  }
  return "whole";
}
