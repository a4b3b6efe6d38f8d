import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  coldFrame,
  decodeCold,
  emptyHeader,
  encodeCold,
  ID_MAX,
  readHeader,
  readId,
  writeHeader,
  writeId,
} from "../../src/engine-api/codec.ts";
import { namespaceDigest, parseDescriptor } from "../../src/engine-api/descriptor.ts";
import { HEADER_BYTES } from "../../src/engine-api/protocol.ts";
import { CairnError } from "../../src/errors.ts";
import { LIMITS } from "../../src/limits.ts";
import { descriptor } from "../e2e/support.ts";

const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const u16 = fc.integer({ min: 0, max: 0xffff });

describe("a header", () => {
  it("reads back as it was written, whatever its fields", () => {
    const id = fc.integer({ min: 0, max: ID_MAX });
    fc.assert(
      fc.property(
        u16,
        u32,
        u32,
        id,
        u32,
        u16,
        (flags, bodyBytes, tag, number, count, namespace) => {
          const view = new DataView(new ArrayBuffer(HEADER_BYTES));
          writeHeader(view, 0, 5, flags, bodyBytes, tag, number, count, namespace);
          const header = emptyHeader();
          readHeader(view, 0, header);
          expect(header).toEqual({ op: 5, flags, bodyBytes, tag, id: number, count, namespace });
        },
      ),
    );
  });

  it("marks an id beyond 2^53 - 1", () => {
    const view = new DataView(new ArrayBuffer(8));
    writeId(view, 0, ID_MAX);
    expect(readId(view, 0)).toBe(ID_MAX);
    view.setUint32(4, 0x20_0000, true);
    expect(readId(view, 0)).toBe(-1);
  });
});

describe("a cold body", () => {
  it("is one map or a malformedFrame, for any bytes at all", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        try {
          expect(typeof decodeCold(bytes)).toBe("object");
        } catch (error) {
          expect(error).toBeInstanceOf(CairnError);
          expect((error as CairnError).errorName).toBe("malformedFrame");
        }
      }),
      { numRuns: 5_000 },
    );
  });

  it("carries no extension type, no list and nothing longer than its bound", () => {
    const timestamp = Uint8Array.of(0x81, 0xa1, 0x61, 0xd6, 0xff, 0, 0, 0, 1);
    expect(() => decodeCold(timestamp)).toThrow(CairnError);
    expect(() => decodeCold(encodeCold([1, 2]))).toThrow("one map");
    expect(() => decodeCold(new Uint8Array(LIMITS.coldBodyBytesMax + 1))).toThrow(CairnError);
    const deep = new Uint8Array(60_000).fill(0x91);
    expect(() => decodeCold(deep)).toThrow(CairnError);
    expect(coldFrame(1, 0, 0, 0, 0, undefined).byteLength).toBe(HEADER_BYTES);
  });
});

describe("a namespace's digest", () => {
  it("differs when any field of the descriptor or the tenant differs", () => {
    const base = parseDescriptor({ ...descriptor() } as never);
    const digest = (over: object, tenant = "default", variant = ""): string =>
      Buffer.from(
        namespaceDigest(parseDescriptor({ ...base, ...over } as never), tenant, variant),
      ).toString("hex");
    const changes: object[] = [
      { model: "m" },
      { revision: "r" },
      { kvDtype: "fp8" },
      { quantScales: true },
      { layout: "l" },
      { rowBytes: 1 },
      { groupKinds: ["a"] },
      { draft: true },
      { blockTokens: 1 },
      { hashAlgorithm: "h" },
      { hashSeed: "x" },
      { engineBuild: "b" },
      { keyBytes: 8 },
      { shards: 2 },
      { chained: false },
      { chunkBlocks: 4 },
    ];
    const seen = changes.map((change) => digest(change));
    seen.push(digest({}), digest({}, "other"), digest({}, "default", "v"));
    expect(new Set(seen).size).toBe(changes.length + 3);
    expect(digest({ chunkBlocks: 16 })).toBe(digest({}));
  });

  it("is refused for a descriptor that misses a field or contradicts itself", () => {
    for (const name of Object.keys(descriptor())) {
      const part: Record<string, unknown> = { ...descriptor() };
      delete part[name];
      expect(() => parseDescriptor(part as never), name).toThrow(CairnError);
    }
    for (const over of [{ keyBytes: 10 }, { keyBytes: 36 }, { shards: 0 }, { shards: 65 }]) {
      expect(() => parseDescriptor({ ...descriptor(), ...over } as never)).toThrow(CairnError);
    }
  });
});
