import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import { CHAIN_KEY_BYTES, chainKeys, layoutPattern } from "../../connectors/node/index.ts";
import { splitmix64 } from "../../connectors/node/pattern.ts";

describe("chained keys", () => {
  it("are SHA-256 over the key before and the block's tokens", () => {
    const keys = chainKeys([1, 2, 3, 4, 5], 2, "s");
    expect(keys.byteLength).toBe(2 * CHAIN_KEY_BYTES);
    const root = createHash("sha256").update("s").digest();
    const first = createHash("sha256")
      .update(root)
      .update(Buffer.from([1, 0, 0, 0, 2, 0, 0, 0]))
      .digest();
    expect(Buffer.compare(keys.subarray(0, 32), first)).toBe(0);
  });

  it("agree exactly as far as the tokens do", () => {
    const one = chainKeys([1, 2, 3, 4, 5, 6], 2, "s");
    const two = chainKeys([1, 2, 3, 4, 9, 6], 2, "s");
    const other = chainKeys([1, 2, 3, 4, 5, 6], 2, "t");
    expect(one.subarray(0, 64)).toEqual(two.subarray(0, 64));
    expect(one.subarray(64)).not.toEqual(two.subarray(64));
    expect(one.subarray(0, 32)).not.toEqual(other.subarray(0, 32));
    expect(() => chainKeys([1], 0, "s")).toThrow(RangeError);
  });
});

describe("the layout pattern", () => {
  it("is splitmix64 of seed and word, cut to the row", () => {
    // Reference value of splitmix64 for state 0 (first output of the generator seeded with 0).
    expect(splitmix64(0n)).toBe(0xe220a8397b1dcdafn);
    const row = layoutPattern(3, 20);
    expect(row.byteLength).toBe(20);
    const words = new DataView(row.buffer);
    expect(words.getBigUint64(8, true)).toBe(splitmix64((3n << 32n) + 1n));
  });
});
