import { readFileSync } from "node:fs";
import { afterAll, describe, expect, test } from "vitest";
import { COPY, ITEM, SCAN_WORDS, SLOT_HEADER } from "../../addon/binding.ts";
import { Pump } from "./pump.ts";

const BLOCK_BYTES = 4096;
const pump = new Pump();
const { addon } = pump;
afterAll(() => pump.close());

function openWithWindow(name: string): { arena: number; region: number; window: Uint8Array } {
  const { arena } = pump.openArena(name);
  addon.arenaPutNamespace(arena, 0, new Uint8Array(16).fill(7), new TextEncoder().encode("{}"));
  addon.arenaAssign(arena, 0, BLOCK_BYTES);
  const { descriptor, buffer } = addon.clientMemfd(1 << 20, false);
  const { region } = addon.regionMap(descriptor, 1 << 20);
  const window = new Uint8Array(buffer);
  for (let i = 0; i < window.length; i++) window[i] = (i * 31 + (i >> 12)) & 0xff;
  return { arena, region, window };
}

const items = (count: number, generation = 0): number[][] =>
  Array.from({ length: count }, (_, i) => [i, i * BLOCK_BYTES, i, generation]);

describe("copies between a window and the arena", () => {
  test("what was stored is loaded back byte for byte", async () => {
    const { arena, region, window } = openWithWindow("roundtrip");
    const original = window.slice(0, 16 * BLOCK_BYTES);
    const stored = await pump.copy({ kind: COPY.STORE, arena, region }, items(16));
    expect(stored).toEqual({
      failed: 0,
      statuses: new Array(16).fill(ITEM.OK),
      bytes: 16 * BLOCK_BYTES,
    });
    window.fill(0);
    const loaded = await pump.copy({ kind: COPY.LOAD, arena, region }, items(16, 1));
    expect(loaded.failed).toBe(0);
    expect(Buffer.compare(window.subarray(0, original.length), original)).toBe(0);
  });

  test("a flipped bit is CORRUPT, another record or generation is IDENTITY", async () => {
    const { arena, region } = openWithWindow("corrupt");
    await pump.copy({ kind: COPY.STORE, arena, region }, items(4));
    addon.arenaFlipBit(arena, 2, 12_345);
    const loaded = await pump.copy({ kind: COPY.LOAD, arena, region }, [
      [0, 0, 0, 1],
      [1, 0, 3, 0],
      [2, 0, 2, 0],
      [3, 0, 3, 9],
    ]);
    expect(loaded.statuses).toEqual([ITEM.OK, ITEM.IDENTITY, ITEM.CORRUPT, ITEM.IDENTITY]);
    const verified = await pump.copy({ kind: COPY.VERIFY, arena }, items(4));
    expect(verified.statuses).toEqual([ITEM.OK, ITEM.OK, ITEM.CORRUPT, ITEM.OK]);
    addon.arenaFlipBit(arena, 2, 12_345);
    const healed = await pump.copy({ kind: COPY.VERIFY, arena }, items(4));
    expect(healed.failed).toBe(0);
  });

  test("an invalidated slot is not loaded, a moved one is loaded from its new place", async () => {
    const { arena, region } = openWithWindow("move");
    await pump.copy({ kind: COPY.STORE, arena, region }, items(2));
    const moved = await pump.copy({ kind: COPY.MOVE, arena }, [[0, 100, 0, 0]]);
    expect(moved.failed).toBe(0);
    addon.arenaInvalidate(arena, new Uint32Array([0, 1]), 1);
    const loaded = await pump.copy({ kind: COPY.LOAD, arena, region }, [
      [0, 0, 0, 0],
      [100, 0, 0, 0],
    ]);
    expect(loaded.statuses).toEqual([ITEM.IDENTITY, ITEM.OK]);
  });

  test("a region that is gone, or a range outside it, ends REGION", async () => {
    const { arena, region } = openWithWindow("region");
    const outside = await pump.copy({ kind: COPY.STORE, arena, region }, [
      [0, (1 << 20) - BLOCK_BYTES + 1, 0, 0],
      [1, 2 ** 40, 1, 0],
      [2, 0, 2, 0],
    ]);
    expect(outside.statuses).toEqual([ITEM.REGION, ITEM.REGION, ITEM.OK]);
    addon.regionUnmap(region);
    const gone = await pump.copy({ kind: COPY.LOAD, arena, region }, [[2, 0, 2, 0]]);
    expect(gone.statuses).toEqual([ITEM.REGION]);
  });

  test("a scan lists blocks by depth with their headers, and last access as touched", async () => {
    const { arena, region } = openWithWindow("scan");
    await pump.copy({ kind: COPY.STORE, arena, region }, items(8).reverse());
    addon.arenaTouch(arena, new Uint32Array([5]), new Float64Array([1_700_000_000_123]), 1);
    addon.arenaClose(arena, true);
    const again = pump.openArena("scan");
    expect(again).toMatchObject({ reopened: true, clean: true, slabs: 4 });
    expect(await pump.scan(again.arena, 41)).toMatchObject({ done: 8, total: 8 });
    const into = new Uint32Array(SCAN_WORDS * 3);
    const depths: number[] = [];
    for (let n = addon.arenaScanRead(again.arena, into); n > 0; ) {
      for (let i = 0; i < n; i++) {
        const header = into.subarray(i * SCAN_WORDS, (i + 1) * SCAN_WORDS);
        const depth = header[SLOT_HEADER.DEPTH] as number;
        depths.push(depth);
        expect(header[SLOT_HEADER.KEY]).toBe((depth - 1) * 8 + 1);
        expect(header[SCAN_WORDS - 1]).toBe(depth - 1);
        if (depth !== 6) continue;
        const high = header[SLOT_HEADER.LAST_ACCESS_HIGH] as number;
        const low = header[SLOT_HEADER.LAST_ACCESS_LOW] as number;
        expect(high * 2 ** 32 + low).toBe(1_700_000_000_123);
      }
      n = addon.arenaScanRead(again.arena, into);
    }
    expect(depths).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });
});

test("the golden slot header reads at the offsets TypeScript uses", () => {
  const hex = readFileSync("test/golden/slot-header.hex", "utf8").replaceAll("\n", "");
  const bytes = Buffer.from(hex, "hex");
  const words = new Uint32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + 128));
  expect(bytes.length).toBe(128);
  expect(words[SLOT_HEADER.STATE]).not.toBe(0);
  expect(words[SLOT_HEADER.NAMESPACE]).toBe(3);
  expect(words[SLOT_HEADER.DEPTH]).toBe(7);
  expect(words[SLOT_HEADER.SHARD]).toBe(1 | (2 << 16));
  expect(words[SLOT_HEADER.GENERATION]).toBe(9);
  expect(words[SLOT_HEADER.LENGTH]).toBe(4096);
  expect(words[SLOT_HEADER.VERSION]).toBe(1);
  const high = words[SLOT_HEADER.LAST_ACCESS_HIGH] as number;
  expect(high * 2 ** 32 + (words[SLOT_HEADER.LAST_ACCESS_LOW] as number)).toBe(1_700_000_000_123);
  expect(bytes[SLOT_HEADER.KEY * 4 + 31]).toBe(31);
  expect(bytes[SLOT_HEADER.PARENT_KEY * 4]).toBe(0xa0);
});
