/**
 * Is a stored block the block that this engine computes? (DESIGN §7, incarnation proof.)
 *
 * Floats recomputed under another batch partition are not bit-equal, so floating-point rows match when at most 1 % of
 * the elements are off by more than 2⁻⁵ of the block's root mean square; quantised rows match at a cosine ≥ 0.99.
 * A NaN or infinity that does not stand on both sides is an element that is off.
 */
import { assert } from "../../../src/assert.ts";
import { numberOfBfloat16, numberOfHalf } from "./half.ts";
import type { StateShape } from "./state.ts";
import { BLOCK_TOKENS } from "./state.ts";

/** Numbers of ggml's types that a KV cache can have here. */
export const GGML_TYPE = { F32: 0, F16: 1, Q8_0: 8, BF16: 30 } as const;

const ELEMENTS_OFF_MAX = 0.01;
const ELEMENT_TOLERANCE = 2 ** -5;
const COSINE_MIN = 0.99;
const Q8_GROUP = 32;
const Q8_GROUP_BYTES = 2 + Q8_GROUP;

export interface Comparison {
  readonly matches: boolean;
  readonly bitEqual: boolean;
  readonly elements: number;
  readonly elementsOff: number;
  /** 1 for equal direction; NaN when a side has no length. */
  readonly cosine: number;
}

/** Name used in the namespace descriptor; an unknown type is named by its number and compared as bytes. */
export function typeName(type: number): string {
  const names: Record<number, string> = { 0: "f32", 1: "f16", 8: "q8_0", 30: "bf16" };
  return names[type] ?? `ggml-${type}`;
}

/** Elements of rows of a ggml type as numbers; undefined for a type this page cannot decode. */
export function decodeRows(bytes: Uint8Array, type: number): Float64Array | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (type === GGML_TYPE.F32) {
    return Float64Array.from({ length: bytes.byteLength >> 2 }, (_, index) =>
      view.getFloat32(4 * index, true),
    );
  }
  if (type === GGML_TYPE.F16 || type === GGML_TYPE.BF16) {
    const decode = type === GGML_TYPE.F16 ? numberOfHalf : numberOfBfloat16;
    return Float64Array.from({ length: bytes.byteLength >> 1 }, (_, index) =>
      decode(view.getUint16(2 * index, true)),
    );
  }
  if (type !== GGML_TYPE.Q8_0) return undefined;
  const groups = Math.floor(bytes.byteLength / Q8_GROUP_BYTES);
  return Float64Array.from({ length: groups * Q8_GROUP }, (_, index) => {
    const group = Math.floor(index / Q8_GROUP) * Q8_GROUP_BYTES;
    return numberOfHalf(view.getUint16(group, true)) * view.getInt8(group + 2 + (index % Q8_GROUP));
  });
}

/** Running sums over the elements of a block. */
interface Sums {
  elements: number;
  leftSquares: number;
  rightSquares: number;
  products: number;
}

function addSums(sums: Sums, left: Float64Array, right: Float64Array): void {
  for (let index = 0; index < left.length; index++) {
    const a = left[index] ?? 0;
    const b = right[index] ?? 0;
    if (!Number.isFinite(a) || !Number.isFinite(b)) continue;
    sums.leftSquares += a * a;
    sums.rightSquares += b * b;
    sums.products += a * b;
  }
  sums.elements += left.length;
}

function elementsOff(left: Float64Array, right: Float64Array, tolerance: number): number {
  let off = 0;
  for (let index = 0; index < left.length; index++) {
    const a = left[index] ?? 0;
    const b = right[index] ?? 0;
    if (!Object.is(a, b) && !(Math.abs(a - b) <= tolerance)) off++;
  }
  return off;
}

/**
 * Compares a computed block with a stored one, both in canonical bytes of `shape`.
 * The computed side sets the scale: its root mean square is the unit of the tolerance.
 */
export function compareBlocks(
  shape: StateShape,
  computed: Uint8Array,
  stored: Uint8Array,
): Comparison {
  assert(computed.byteLength === stored.byteLength, "both blocks have the length of the shape");
  const bitEqual = Buffer.compare(computed, stored) === 0;
  const runs: {
    readonly left: Float64Array;
    readonly right: Float64Array;
    readonly quantised: boolean;
  }[] = [];
  const sums: Sums = { elements: 0, leftSquares: 0, rightSquares: 0, products: 0 };
  let at = 0;
  for (const row of [...shape.keys, ...shape.values]) {
    const end = at + row.rowBytes * BLOCK_TOKENS;
    const left = decodeRows(computed.subarray(at, end), row.type);
    const right = decodeRows(stored.subarray(at, end), row.type);
    at = end;
    if (left === undefined || right === undefined) {
      return { matches: bitEqual, bitEqual, elements: 0, elementsOff: 0, cosine: Number.NaN };
    }
    runs.push({ left, right, quantised: row.type === GGML_TYPE.Q8_0 });
    addSums(sums, left, right);
  }
  assert(at === computed.byteLength, "the shape covers the block");
  const tolerance = ELEMENT_TOLERANCE * Math.sqrt(sums.leftSquares / Math.max(1, sums.elements));
  const off = runs.reduce((sum, run) => sum + elementsOff(run.left, run.right, tolerance), 0);
  const cosine = sums.products / Math.sqrt(sums.leftSquares * sums.rightSquares);
  const quantised = runs.some((run) => run.quantised);
  const within = quantised ? cosine >= COSINE_MIN : off <= ELEMENTS_OFF_MAX * sums.elements;
  return {
    matches: bitEqual || within,
    bitEqual,
    elements: sums.elements,
    elementsOff: off,
    cosine,
  };
}
