import { createHash } from "node:crypto";
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ensureGguf, ggufChunks } from "../../../connectors/node/llama/gguf.ts";
import {
  halfOfNumber,
  numberOfBfloat16,
  numberOfHalf,
} from "../../../connectors/node/llama/half.ts";
import { CairnError } from "../../../src/errors.ts";
import { TINY_MODEL } from "./models.ts";

let directory = "";
beforeEach(() => {
  directory = mkdtempSync(path.join(tmpdir(), "cairn-gguf-"));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

function digest(spec: typeof TINY_MODEL): string {
  const hash = createHash("sha256");
  for (const chunk of ggufChunks(spec)) hash.update(chunk);
  return hash.digest("hex");
}

describe("the GGUF writer", () => {
  test("gives equal bytes for equal specs and other bytes for another seed", () => {
    expect(digest(TINY_MODEL)).toBe(digest({ ...TINY_MODEL }));
    expect(digest({ ...TINY_MODEL, seed: 12 })).not.toBe(digest(TINY_MODEL));
    expect(digest({ ...TINY_MODEL, weightType: "f32" })).not.toBe(digest(TINY_MODEL));
  });

  test("writes once, finds the file again and names it by its content", () => {
    const first = ensureGguf(TINY_MODEL, directory);
    expect(path.basename(first.path)).toContain(first.sha256);
    expect(first.sha256).toBe(digest(TINY_MODEL));
    expect(ensureGguf(TINY_MODEL, directory)).toEqual(first);
    expect(readdirSync(directory)).toHaveLength(1);
  });

  test("replaces a cached file whose content was damaged", () => {
    const first = ensureGguf(TINY_MODEL, directory);
    const content = readFileSync(first.path);
    content[content.length - 1] = (content.at(-1) ?? 0) ^ 1;
    writeFileSync(first.path, content);
    expect(ensureGguf(TINY_MODEL, directory)).toEqual(first);
    expect(createHash("sha256").update(readFileSync(first.path)).digest("hex")).toBe(first.sha256);
  });
});

test("a model directory that others may write to is refused", () => {
  chmodSync(directory, 0o777);
  expect(() => ensureGguf(TINY_MODEL, directory)).toThrow(CairnError);
  expect(readdirSync(directory)).toEqual([]);
});

describe("half-precision conversion", () => {
  test("round-trips every finite half", () => {
    for (let bits = 0; bits < 0x10000; bits++) {
      const number = numberOfHalf(bits);
      if (Number.isNaN(number)) continue;
      expect(halfOfNumber(number)).toBe(bits);
    }
  });

  test("picks the nearest half, ties to even", () => {
    fc.assert(
      fc.property(fc.float({ noNaN: true, min: -65_000, max: 65_000 }), (value) => {
        const bits = halfOfNumber(value);
        const error = Math.abs(numberOfHalf(bits) - value);
        for (const neighbour of [bits - 1, bits + 1]) {
          if ((neighbour & 0x8000) !== (bits & 0x8000) || (neighbour & 0x7c00) === 0x7c00) continue;
          const other = Math.abs(numberOfHalf(neighbour) - value);
          expect(error < other || (error === other && (bits & 1) === 0)).toBe(true);
        }
      }),
    );
    expect(halfOfNumber(1e6)).toBe(0x7c00);
    expect(halfOfNumber(Number.NaN) & 0x7fff).toBeGreaterThan(0x7c00);
  });

  test("reads bfloat16 as the upper half of a float", () => {
    expect(numberOfBfloat16(0x3f80)).toBe(1);
    expect(numberOfBfloat16(0xc040)).toBe(-3);
  });
});
