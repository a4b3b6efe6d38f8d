import { describe, expect, test } from "vitest";
import { chainKeys } from "../../../connectors/node/llama/chain.ts";
import { compareBlocks, GGML_TYPE, typeName } from "../../../connectors/node/llama/compare.ts";
import { halfOfNumber } from "../../../connectors/node/llama/half.ts";
import {
  BLOCK_TOKENS,
  blockRowBytes,
  type StateShape,
} from "../../../connectors/node/llama/state.ts";

function shapeOf(type: number, rowBytes: number): StateShape {
  return { version: 3, sequence: 0, keys: [{ type, rowBytes }], values: [{ type, rowBytes }] };
}

const ELEMENTS = 1_000;
const HALF = shapeOf(GGML_TYPE.F16, (ELEMENTS * 2) / (2 * BLOCK_TOKENS));

/** A block of halves: element i is ±1 times `scale(i)`. */
function halves(scale: (index: number) => number): Uint8Array {
  const bits = Uint16Array.from({ length: ELEMENTS }, (_, index) =>
    halfOfNumber((index % 2 === 0 ? 1 : -1) * scale(index)),
  );
  return new Uint8Array(bits.buffer);
}

describe("the comparison of a computed and a stored block", () => {
  const computed = halves(() => 1);

  test("calls equal bytes equal", () => {
    expect(blockRowBytes(HALF)).toBe(computed.byteLength);
    expect(compareBlocks(HALF, computed, computed.slice())).toMatchObject({
      matches: true,
      bitEqual: true,
      elementsOff: 0,
    });
  });

  test("lets floats differ within 2⁻⁵ of the root mean square everywhere", () => {
    const result = compareBlocks(
      HALF,
      computed,
      halves(() => 1 + 2 ** -5),
    );
    expect(result).toMatchObject({
      matches: true,
      bitEqual: false,
      elementsOff: 0,
      elements: ELEMENTS,
    });
  });

  test("lets one in a hundred elements be off, and no more", () => {
    const off = (count: number) => halves((index) => (index < count ? 3 : 1));
    expect(compareBlocks(HALF, computed, off(10))).toMatchObject({
      matches: true,
      elementsOff: 10,
    });
    expect(compareBlocks(HALF, computed, off(11))).toMatchObject({
      matches: false,
      elementsOff: 11,
    });
  });

  test("counts what is not a number as off", () => {
    expect(
      compareBlocks(
        HALF,
        computed,
        halves(() => Number.NaN),
      ).matches,
    ).toBe(false);
    expect(
      compareBlocks(
        HALF,
        computed,
        halves(() => Number.POSITIVE_INFINITY),
      ).matches,
    ).toBe(false);
  });

  test("refuses zeros for a block that is not zero", () => {
    expect(compareBlocks(HALF, computed, new Uint8Array(computed.byteLength)).matches).toBe(false);
  });

  test("compares quantised rows by direction", () => {
    const shape = shapeOf(GGML_TYPE.Q8_0, 34);
    const rows = (value: (index: number) => number, scale = 1): Uint8Array => {
      const bytes = new Uint8Array(blockRowBytes(shape));
      const view = new DataView(bytes.buffer);
      for (let group = 0; group * 34 < bytes.byteLength; group++) {
        view.setUint16(group * 34, halfOfNumber(scale), true);
        for (let index = 0; index < 32; index++)
          view.setInt8(group * 34 + 2 + index, value(group * 32 + index));
      }
      return bytes;
    };
    const plain = rows((index) => (index % 7) - 3);
    expect(
      compareBlocks(
        shape,
        plain,
        rows((index) => (index % 7) - 3, 1.25),
      ),
    ).toMatchObject({ matches: true, bitEqual: false });
    expect(
      compareBlocks(
        shape,
        plain,
        rows((index) => 3 - (index % 7)),
      ).matches,
    ).toBe(false);
    expect(
      compareBlocks(
        shape,
        plain,
        rows((index) => (index % 5) - 2),
      ).matches,
    ).toBe(false);
  });

  test("compares a type it cannot decode byte for byte", () => {
    const shape = shapeOf(2, 18);
    const bytes = new Uint8Array(blockRowBytes(shape)).fill(5);
    const other = bytes.slice();
    other[40] = 6;
    expect(compareBlocks(shape, bytes, bytes.slice()).matches).toBe(true);
    expect(compareBlocks(shape, bytes, other).matches).toBe(false);
    expect([typeName(1), typeName(2)]).toEqual(["f16", "ggml-2"]);
  });
});

describe("block keys", () => {
  test("name their block and everything before it, and leave the partial tail out", () => {
    const tokens = Array.from({ length: 50 }, (_, index) => index);
    const keys = chainKeys(tokens);
    expect(keys).toHaveLength(3);
    expect(chainKeys(tokens.slice(0, 32))).toEqual(keys.slice(0, 2));
    const changed = chainKeys(tokens.with(17, 99));
    expect(changed[0]).toEqual(keys[0]);
    expect(changed[1]).not.toEqual(keys[1]);
    expect(changed[2]).not.toEqual(keys[2]);
    // Golden: another client must be able to make the same keys.
    expect(Buffer.from(keys[2] ?? []).toString("hex")).toBe(GOLDEN_THIRD_KEY);
  });
});

/** Made with Python's hashlib. */
const GOLDEN_THIRD_KEY = "691dea84151dc59e84d4b79c4238377611fc0006b4e7bffb60dc77ee2f683376";
