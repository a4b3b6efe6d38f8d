import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  BLOCK_TOKENS,
  blockRowBytes,
  buildSequenceState,
  copyBlock,
  parseSequenceState,
  type StateShape,
  stateBytes,
} from "../../../connectors/node/llama/state.ts";
import { CairnError } from "../../../src/errors.ts";

const SHAPE: StateShape = {
  version: 3,
  sequence: 0,
  keys: [
    { type: 1, rowBytes: 8 },
    { type: 1, rowBytes: 12 },
  ],
  values: [
    { type: 1, rowBytes: 4 },
    { type: 8, rowBytes: 34 },
  ],
};

function pattern(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => (index * 131 + (index >>> 7)) & 0xff);
}

function tokensOf(blocks: number): number[] {
  return Array.from({ length: blocks * BLOCK_TOKENS }, (_, index) => index * 3);
}

function built(blocks: number): Uint8Array {
  return buildSequenceState(
    SHAPE,
    tokensOf(blocks),
    pattern(blocks * blockRowBytes(SHAPE)),
    blocks,
  );
}

/** Parses and copies out every block; the result of hostile input must be this or the typed error. */
function parseAll(bytes: Uint8Array): string {
  try {
    const state = parseSequenceState(bytes);
    const target = new Uint8Array(blockRowBytes(state.shape));
    for (let block = 0; (block + 1) * BLOCK_TOKENS <= state.tokens.length; block++)
      copyBlock(state, block, target);
    return "parsed";
  } catch (error) {
    if (error instanceof CairnError) return error.errorName;
    throw error;
  }
}

describe("llama.cpp's sequence state", () => {
  test("comes apart into exactly the blocks it was built from", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 9 }), (blocks) => {
        const blockBytes = blockRowBytes(SHAPE);
        const rows = pattern(blocks * blockBytes);
        const bytes = built(blocks);
        expect(bytes.byteLength).toBe(stateBytes(SHAPE, blocks));
        const state = parseSequenceState(bytes);
        expect(state.shape).toEqual(SHAPE);
        expect([...state.tokens]).toEqual(tokensOf(blocks));
        const target = new Uint8Array(blockBytes);
        for (let block = 0; block < blocks; block++) {
          copyBlock(state, block, target);
          expect(target).toEqual(rows.slice(block * blockBytes, (block + 1) * blockBytes));
        }
      }),
    );
  });

  test("built from the first blocks of a longer state equals the state of the shorter prefix", () => {
    const blockBytes = blockRowBytes(SHAPE);
    expect(buildSequenceState(SHAPE, tokensOf(5), pattern(5 * blockBytes), 2)).toEqual(built(2));
  });

  test("parses from the middle of a larger buffer", () => {
    const bytes = built(2);
    const larger = new Uint8Array(bytes.byteLength + 22).fill(0xee);
    larger.set(bytes, 11);
    expect(parseAll(larger.subarray(11, 11 + bytes.byteLength))).toBe("parsed");
  });

  test("cut at any byte is refused", () => {
    const bytes = built(1);
    for (let length = 0; length < bytes.byteLength; length++) {
      expect(parseAll(bytes.subarray(0, length))).toBe("engineStateMalformed");
    }
  });

  test("with bytes behind the last row is refused", () => {
    const bytes = built(1);
    const longer = new Uint8Array(bytes.byteLength + 1);
    longer.set(bytes);
    expect(parseAll(longer)).toBe("engineStateMalformed");
  });

  test("with any word of its fixed fields changed is refused or still parses inside its bounds", () => {
    const bytes = built(2);
    fc.assert(
      fc.property(
        fc.nat({ max: bytes.byteLength - 4 }),
        fc.oneof(
          fc.constantFrom(0, 1, 0x7fffffff, 0x80000000, 0xffffffff),
          fc.integer({ min: 0, max: 0xffffffff }),
        ),
        (at, value) => {
          const damaged = bytes.slice();
          new DataView(damaged.buffer).setUint32(at, value, true);
          expect(["parsed", "engineStateMalformed"]).toContain(parseAll(damaged));
        },
      ),
      { numRuns: 5_000 },
    );
  });

  test("made of random bytes is refused", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), (bytes) => {
        expect(parseAll(bytes)).toBe("engineStateMalformed");
      }),
      { numRuns: 2_000 },
    );
  });

  test.each([
    ["another magic", 0, 0],
    ["another version", 4, 4],
    ["no token", 8, 0],
    ["more tokens than bytes", 8, 0xffffffff],
    ["two streams", 12 + 64, 2],
    ["another count of cells", 16 + 64, 15],
    ["a cell out of place", 20 + 64, 7],
    ["a cell of two sequences", 24 + 64, 2],
    ["a cell of a negative sequence", 28 + 64, 0xffffffff],
    ["transposed values", 20 + 64 + 192, 1],
    ["no layer", 24 + 64 + 192, 0],
    ["a row length beyond the bound", 28 + 64 + 192 + 8, 1],
  ])("with %s is refused", (_, at, value) => {
    const bytes = built(1);
    new DataView(bytes.buffer).setUint32(at, value, true);
    expect(parseAll(bytes)).toBe("engineStateMalformed");
  });

  test("does not give out a block it only holds in part", () => {
    const state = parseSequenceState(built(2));
    const target = new Uint8Array(blockRowBytes(SHAPE));
    expect(() => copyBlock(state, 2, target)).toThrow(CairnError);
  });
});
