import { chmodSync, openSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import type { CopyBatch } from "../../addon/binding.ts";
import { COPY } from "../../addon/binding.ts";
import { codeOf, Pump } from "./pump.ts";

const pump = new Pump(1);
const { addon } = pump;
afterAll(() => pump.close());

/** A value of a type the signature forbids, as plain JS could pass it. */
const wrong = (value: unknown): never => value as never;

test("start() twice, poll() with nothing and stop() of helpers have typed answers", () => {
  expect(codeOf(() => addon.start(wrong({})))).toBe("ARGUMENT");
  expect(addon.poll()).toBe(0);
});

test("arguments of the wrong kind or range are ARGUMENT, never a crash", () => {
  const { arena } = pump.openArena("arguments");
  addon.arenaAssign(arena, 0, 4096);
  const calls: (() => unknown)[] = [
    () => addon.listen(wrong(5), 0o600, 1),
    () => addon.listen(join(pump.directory, "s"), 0o1777, 1),
    () => addon.send(1, new Uint8Array(8), 4, 5, -1),
    () => addon.send(1, wrong("text"), 0, 1, -1),
    () => addon.send(1, new Uint8Array(8), 0, 0, -1),
    () => addon.closeConnection(1, 99),
    () => addon.closeDescriptor(-1),
    () => addon.closeDescriptor(1),
    () => addon.regionMap(-1, 4096),
    () => addon.regionCreate(0),
    () => addon.regionCreate(1.5),
    () => addon.regionCreate(Number.NaN),
    () => addon.arenaOpen(wrong(undefined)),
    () => pump.openArena("tiny", 1, 4096),
    () => pump.openArena("none", 0),
    () => pump.openArena("many", 20_000),
    () => addon.arenaAssign(arena, 0, 4096),
    () => addon.arenaAssign(arena, 1, 0),
    () => addon.arenaAssign(arena, 1, 2 << 20),
    () => addon.arenaAssign(arena, 99, 64),
    () => addon.arenaRelease(arena, 99),
    () => addon.arenaPopulate(arena, 0, 99, 1, 1),
    () => addon.arenaPopulate(arena, 0, 1, 0, 1),
    () => addon.arenaPutNamespace(arena, 5_000, new Uint8Array(16), new Uint8Array(0)),
    () => addon.arenaPutNamespace(arena, 0, new Uint8Array(15), new Uint8Array(0)),
    () => addon.arenaInvalidate(arena, new Uint32Array([1 << 18]), 1),
    () => addon.arenaInvalidate(arena, new Uint32Array(1), 2),
    () => addon.arenaTouch(arena, new Uint32Array(1), new Float64Array([Number.NaN]), 1),
    () => addon.arenaScanRead(arena, new Uint32Array(33)),
    () => addon.arenaFlipBit(arena, 0, 4096 * 8),
    () => addon.arenaFlipBit(arena, 999_999, 0),
    () => addon.attachLedger(wrong({ records: new Uint8Array(4) })),
    () => addon.touchWords(wrong(new Uint8Array(4)), 1),
    () => addon.touchWords(new Uint32Array(4), 5),
    () => addon.clientMemfd(0, false),
    () => addon.clientOpen(join(pump.directory, "x"), wrong(1), () => {}),
    () => addon.benchMemcpy(10, 20, 1, false),
  ];
  const codes = calls.map((call) => `${codeOf(call)} ${call.toString()}`);
  expect(codes.filter((code) => !code.startsWith("ARGUMENT"))).toEqual([]);
});

test("a copy batch that names what does not exist is refused before anything moves", () => {
  const { arena } = pump.openArena("batch");
  addon.arenaPutNamespace(arena, 0, new Uint8Array(16), new Uint8Array(0));
  addon.arenaAssign(arena, 0, 4096);
  const good: CopyBatch = {
    kind: COPY.STORE,
    batch: 77,
    arena,
    region: 0,
    shard: 0,
    shards: 1,
    payloadBytes: 4096,
    deadlineMs: 0,
  };
  const submit = (change: Partial<CopyBatch>, words: number[], count = 1): string =>
    codeOf(() => addon.copySubmit({ ...good, ...change }, new Uint32Array(words), count));
  expect(submit({ kind: 9 }, [0, 0, 0, 0, 0])).toBe("ARGUMENT");
  expect(submit({ shard: 1 }, [0, 0, 0, 0, 0])).toBe("ARGUMENT");
  expect(submit({ payloadBytes: 8192 }, [0, 0, 0, 0, 0])).toBe("ARGUMENT");
  expect(submit({ payloadBytes: 0 }, [0, 0, 0, 0, 0])).toBe("ARGUMENT");
  expect(submit({ arena: 999 }, [0, 0, 0, 0, 0])).toBe("CLOSED");
  expect(submit({}, [1 << 18, 0, 0, 0, 0])).toBe("ARGUMENT");
  expect(submit({}, [0, 0, 0, 4_000_000, 0])).toBe("ARGUMENT");
  expect(submit({}, [0, 0, 0, 0], 1)).toBe("ARGUMENT");
  expect(submit({}, [], 0)).toBe("ARGUMENT");
  expect(submit({ kind: COPY.MOVE }, [0, 0, 0, 0, 0])).toBe("ARGUMENT");
  expect(addon.counters().copyQueueItems).toBe(0);
});

test("pool files that are locked, open to others, linked or no pool have their codes", () => {
  pump.openArena("locked");
  expect(codeOf(() => pump.openArena("locked"))).toBe("LOCKED");
  writeFileSync(join(pump.directory, "open"), "", { mode: 0o600 });
  chmodSync(join(pump.directory, "open"), 0o666);
  expect(codeOf(() => pump.openArena("open"))).toBe("UNSAFE");
  symlinkSync("locked", join(pump.directory, "link"));
  expect(codeOf(() => pump.openArena("link"))).toBe("UNSAFE");
  writeFileSync(join(pump.directory, "text"), "not a pool", { mode: 0o600 });
  expect(codeOf(() => pump.openArena("text"))).toBe("FORMAT");
  expect(codeOf(() => pump.openArena("no/such/place"))).toBe("ENOENT");
});

test("windows that are no memfd, not sealed or too short have their codes", () => {
  const path = join(pump.directory, "plain");
  writeFileSync(path, "plain");
  expect(codeOf(() => addon.regionMap(openSync(path, "r+"), 4))).toBe("NOT_SEALED");
  const { descriptor } = addon.clientMemfd(8192, false);
  expect(codeOf(() => addon.regionMap(descriptor, 8193))).toBe("TOO_SMALL");
  expect(codeOf(() => addon.regionMap(900, 4096))).toBe("EBADF");
  expect(codeOf(() => addon.regionUnmap(12_345))).toBe("CLOSED");
  expect(
    codeOf(() =>
      addon.clientOpen(
        "/nowhere/at.all",
        () => {},
        () => {},
      ),
    ),
  ).toBe("ENOENT");
});

test("memory that is made ready for a table changes nothing in it, and the table may be forgotten meanwhile", () => {
  for (const shift of [0, 3]) {
    const words = new Uint32Array(new SharedArrayBuffer(8 << 20)).subarray(shift);
    addon.touchWords(words, words.length);
    for (let at = 0; at < words.length; at += 997) words[at] = at + 1;
    addon.touchWords(words, words.length);
    let wrongs = 0;
    for (let at = 0; at < words.length; at++) {
      if (words[at] !== (at % 997 === 0 ? at + 1 : 0)) wrongs += 1;
    }
    expect(wrongs).toBe(0);
  }
  // Threads may still be at work on arrays that nobody names any more; the pump's close() joins them.
  for (let i = 0; i < 8; i++) addon.touchWords(new Uint32Array(1 << 20), 1 << 20);
});
