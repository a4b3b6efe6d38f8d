/** The chunk codec: golden file, properties, and every way in which a header may be wrong. */
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { DISK_HEADER_BYTES } from "../../../addon/binding.ts";
import { LIMITS } from "../../../src/limits.ts";
import {
  checkHeader,
  chunkBlocksOf,
  chunkLayout,
  chunkName,
  decodeHeader,
  encodeHeader,
  isChunkName,
  lastKeyOf,
} from "../../../tiers/remote/chunk.ts";
import { isObjectName } from "../../../tiers/remote/object-store.ts";
import { type Chunk, DIGEST_BYTES, KEY_BYTES } from "../../../tiers/remote/types.ts";

const chunks: fc.Arbitrary<Chunk> = fc
  .record({
    namespace: fc.uint8Array({ minLength: DIGEST_BYTES, maxLength: DIGEST_BYTES }),
    chunkBlocks: fc.integer({ min: 1, max: 200 }),
    payloadBytes: fc.integer({ min: 1, max: 2 ** 31 - 1 }),
    shards: fc.integer({ min: 1, max: 64 }),
    index: fc.integer({ min: 0, max: 1_000 }),
    seed: fc.uint8Array({ minLength: KEY_BYTES, maxLength: KEY_BYTES }),
    shard: fc.nat(),
  })
  .map(({ namespace, chunkBlocks, payloadBytes, shards, index, seed, shard }) => ({
    space: { namespace, chunkBlocks, payloadBytes, shards },
    shard: shard % shards,
    firstDepth: index * chunkBlocks + 1,
    keys: Uint8Array.from({ length: chunkBlocks * KEY_BYTES }, (_, at) => {
      return ((seed[at % KEY_BYTES] ?? 0) + (at >> 5)) & 0xff;
    }),
    parentKey: seed,
  }));
const overheads = fc.constantFrom(0, 64, 128);

function encoded(chunk: Chunk, overheadBytes: number): Uint8Array {
  const bytes = new Uint8Array(chunkLayout(chunk.space, overheadBytes).headerBytes).fill(0xee);
  encodeHeader(chunk, overheadBytes, bytes);
  return bytes;
}

function golden(): Chunk {
  const count = (length: number, from: number): Uint8Array =>
    Uint8Array.from({ length }, (_, at) => (from + at) & 0xff);
  return {
    space: { namespace: count(16, 0x40), chunkBlocks: 3, payloadBytes: 4_100, shards: 2 },
    shard: 1,
    firstDepth: 7,
    keys: count(3 * KEY_BYTES, 0x80),
    parentKey: count(KEY_BYTES, 1),
  };
}

describe("the chunk header", () => {
  test("is written as in the golden file", () => {
    const hex = readFileSync(new URL("../../golden/remote-chunk.hex", import.meta.url), "utf8");
    const bytes = encoded(golden(), 64);
    const text = Buffer.from(bytes.subarray(0, 288)).toString("hex");
    expect((text.match(/.{64}/g) ?? []).join("\n")).toBe(hex.trimEnd());
    expect(bytes.subarray(288).every((byte) => byte === 0)).toBe(true);
    expect(bytes).toHaveLength(4_096);
  });

  test("comes back as it was written, whatever the chunk", () => {
    fc.assert(
      fc.property(chunks, overheads, (chunk, overheadBytes) => {
        const bytes = encoded(chunk, overheadBytes);
        // A Buffer behaves otherwise than a Uint8Array: reading must change neither.
        const read = decodeHeader(Buffer.from(bytes.buffer));
        expect(read?.chunk).toEqual(chunk);
        expect(encoded(chunk, overheadBytes)).toEqual(bytes);
        expect(read?.overheadBytes).toBe(overheadBytes);
        expect(read?.layout).toEqual(chunkLayout(chunk.space, overheadBytes));
        const scratch = new Uint8Array(bytes.length);
        expect(checkHeader(bytes, chunk, overheadBytes, scratch)).toBe("ok");
      }),
      { numRuns: 60 },
    );
  });

  test("with any bit flipped is corrupt", () => {
    fc.assert(
      fc.property(chunks, fc.nat(), (chunk, bit) => {
        const bytes = encoded(chunk, 0);
        const at = (bit >> 3) % bytes.length;
        bytes[at] = (bytes[at] ?? 0) ^ (1 << (bit & 7));
        expect(checkHeader(bytes, chunk, 0, new Uint8Array(bytes.length))).toBe("corrupt");
        expect(decodeHeader(bytes)).toBeUndefined();
      }),
      { numRuns: 200 },
    );
  });

  test("cut anywhere, or arbitrary bytes, is never taken for one and never throws", () => {
    const bytes = encoded(golden(), 0);
    for (const length of [0, 1, 7, 8, 12, 159, 160, 288, 4_095]) {
      expect(decodeHeader(bytes.subarray(0, length))).toBeUndefined();
    }
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 9_000 }), (noise) => {
        expect(decodeHeader(noise)).toBeUndefined();
        noise.set(bytes.subarray(0, Math.min(16, noise.length)));
        expect(decodeHeader(noise)).toBeUndefined();
      }),
    );
  });

  test("of another chunk is told from a corrupt one", () => {
    const chunk = golden();
    const others: Chunk[] = [
      { ...chunk, firstDepth: 4 },
      { ...chunk, shard: 0 },
      { ...chunk, parentKey: new Uint8Array(KEY_BYTES) },
      { ...chunk, keys: chunk.keys.map((byte) => byte ^ 1) },
      { ...chunk, space: { ...chunk.space, namespace: new Uint8Array(DIGEST_BYTES) } },
      { ...chunk, space: { ...chunk.space, payloadBytes: 4_104 } },
    ];
    for (const other of others) {
      expect(checkHeader(encoded(other, 0), chunk, 0, new Uint8Array(4_096))).toBe("other");
    }
    expect(checkHeader(encoded(chunk, 64), chunk, 0, new Uint8Array(4_096))).toBe("other");
  });
});

describe("the chunk's place", () => {
  test("blocks follow one another without overlap, aligned, and hold what EXPORT writes", () => {
    fc.assert(
      fc.property(chunks, overheads, ({ space }, overheadBytes) => {
        const { headerBytes, strideBytes, objectBytes } = chunkLayout(space, overheadBytes);
        expect(headerBytes % 4_096).toBe(0);
        expect(strideBytes % 64).toBe(0);
        const block = DISK_HEADER_BYTES + space.payloadBytes + overheadBytes;
        expect(strideBytes).toBeGreaterThanOrEqual(block);
        expect(strideBytes - block).toBeLessThan(64);
        expect(objectBytes).toBe(headerBytes + space.chunkBlocks * strideBytes);
      }),
    );
  });

  test("a name differs whenever anything differs that the bytes depend on", () => {
    const chunk = golden();
    const { space } = chunk;
    const last = lastKeyOf(chunk);
    const names = [
      chunkName(space, 1, last, ""),
      chunkName(space, 0, last, ""),
      chunkName(space, 1, last, "aesgcm"),
      chunkName(space, 1, chunk.parentKey, ""),
      chunkName({ ...space, chunkBlocks: 4 }, 1, last, ""),
      chunkName({ ...space, payloadBytes: 4 }, 1, last, ""),
      chunkName({ ...space, shards: 3 }, 1, last, ""),
      chunkName({ ...space, namespace: new Uint8Array(DIGEST_BYTES) }, 1, last, ""),
    ];
    expect(new Set(names).size).toBe(names.length);
    expect(names.every((name) => isObjectName(name) && isChunkName(name))).toBe(true);
    const foreign = ["v1", "v2/ab/1-1-0-1/ab", `${names[0]}x`, `x/${names[0]}`, "v1/list/0001"];
    expect(foreign.filter(isChunkName)).toEqual([]);
  });

  test("a chunk has 2 to 16 MiB wherever the block's length allows it", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 65_536 }),
        fc.integer({ min: 64, max: 2 ** 31 - 1 }),
        (declared, payloadBytes) => {
          const blocks = chunkBlocksOf(declared, payloadBytes);
          const bytes = blocks * payloadBytes;
          expect(blocks).toBeGreaterThanOrEqual(1);
          expect(blocks).toBeLessThanOrEqual(LIMITS.chunkBlocksMax);
          if (blocks > 1) expect(bytes).toBeLessThanOrEqual(LIMITS.chunkBytesMax);
          if (blocks < LIMITS.chunkBlocksMax) {
            expect(bytes).toBeGreaterThanOrEqual(Math.min(LIMITS.chunkBytesMin, bytes + 1));
          }
        },
      ),
    );
    expect(chunkBlocksOf(16, 512 * 1_024)).toBe(16);
    expect(chunkBlocksOf(16, 2 ** 21)).toBe(8);
    expect(chunkBlocksOf(16, 2 ** 14)).toBe(128);
    expect(chunkBlocksOf(16, 2 ** 25)).toBe(1);
  });
});
