/**
 * Looks through a msgpack body before anything is made of it. A decoder reserves room for as many entries as a
 * list declares, so that 64 KiB of nested declarations would ask for gigabytes. Here every declared entry must be
 * there in bytes, nesting is bounded, and extension types are refused; what passes costs no more than its length.
 */
import { assert } from "../assert.ts";
import { CairnError } from "../errors.ts";
import { LIMITS } from "../limits.ts";

/** Bytes after the head byte that hold a length: 0xc4 … 0xc6, 0xd9 … 0xdb, 0xdc … 0xdf. */
const LENGTH_BYTES: Readonly<Record<number, number>> = {
  0xc4: 1,
  0xc5: 2,
  0xc6: 4,
  0xd9: 1,
  0xda: 2,
  0xdb: 4,
  0xdc: 2,
  0xdd: 4,
  0xde: 2,
  0xdf: 4,
};
/** Bytes after the head byte of values of fixed size: nil, booleans, floats, integers. */
const FIXED_BYTES: Readonly<Record<number, number>> = {
  0xc0: 0,
  0xc2: 0,
  0xc3: 0,
  0xca: 4,
  0xcb: 8,
  0xcc: 1,
  0xcd: 2,
  0xce: 4,
  0xcf: 8,
  0xd0: 1,
  0xd1: 2,
  0xd2: 4,
  0xd3: 8,
};

/** One value as its head says: where the next one begins, and how many values are inside it. */
interface Head {
  next: number;
  inside: number;
}

const head: Head = { next: 0, inside: 0 };

function refuse(reason: string): never {
  throw new CairnError("malformedFrame", `cold body: ${reason}`);
}

/** Reads the head at `at` into `head`. */
function readHead(bytes: Uint8Array, view: DataView, at: number): void {
  const first = bytes[at]!;
  head.inside = 0;
  head.next = at + 1;
  if (first < 0x80 || first >= 0xe0) return;
  if (first < 0x90) head.inside = (first & 0x0f) * 2;
  else if (first < 0xa0) head.inside = first & 0x0f;
  else if (first < 0xc0) head.next += first & 0x1f;
  else readLongHead(view, at, first);
}

function readLongHead(view: DataView, at: number, first: number): void {
  const fixed = FIXED_BYTES[first];
  if (fixed !== undefined) {
    head.next += fixed;
    return;
  }
  const width = LENGTH_BYTES[first];
  if (width === undefined) refuse("extension types are not part of the protocol");
  if (at + 1 + width > view.byteLength) refuse("it ends inside a length");
  const length =
    width === 1
      ? view.getUint8(at + 1)
      : width === 2
        ? view.getUint16(at + 1)
        : view.getUint32(at + 1);
  head.next += width;
  if (first < 0xdc) head.next += length;
  else head.inside = first < 0xde ? length : length * 2;
}

/** Values still to come at each depth. */
const open = new Float64Array(LIMITS.coldDepthMax);

/**
 * One msgpack value that is wholly there, and nothing after it.
 * @throws CairnError malformedFrame
 */
export function checkColdShape(bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let depth = 0;
  let at = 0;
  open[0] = 1;
  while (depth >= 0) {
    if (open[depth] === 0) {
      depth -= 1;
      continue;
    }
    if (at >= bytes.byteLength) refuse("it ends early");
    open[depth]! -= 1;
    readHead(bytes, view, at);
    assert(head.next > at, "every value moves on");
    at = head.next;
    if (head.inside === 0) continue;
    // Each value takes a byte at least.
    if (head.inside > bytes.byteLength - at) refuse("it declares more entries than it has bytes");
    depth += 1;
    if (depth === LIMITS.coldDepthMax) refuse("it is nested too deep");
    open[depth] = head.inside;
  }
  if (at > bytes.byteLength) refuse("it ends early");
  if (at < bytes.byteLength) refuse("bytes follow the map");
}
