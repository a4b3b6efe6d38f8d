/** A pool file that was damaged while nobody looked, or under the daemon's eyes: a miss, a clean start or a clear error. */
import {
  chmodSync,
  closeSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { describe, expect, it } from "vitest";
import { SLOT_HEADER } from "../../addon/binding.ts";
import { type TestDaemon, withDaemon } from "../harness/daemon.ts";
import { chainOf, fillPayload, TestEngine } from "../harness/engine.ts";
import { LONG } from "../harness/scale.ts";

const CHAINS = 8;
const BLOCKS = 16;
const ROW_BYTES = 4_096;
const HEADER_BYTES = 128;

function chains(): Uint8Array[][] {
  return Array.from({ length: CHAINS }, (_unused, index) => chainOf(`pool-${index}`, BLOCKS));
}

async function fillPool(daemon: TestDaemon): Promise<void> {
  const engine = await TestEngine.start(daemon.socket, { engineId: "writer" });
  for (const keys of chains()) {
    expect((await engine.store(keys)).completion).toEqual({ visible: BLOCKS, failed: [] });
  }
  engine.close();
  await daemon.settles("connections", 0);
}

interface Reading {
  readonly hit: number;
  readonly landed: number;
  readonly wrong: number;
  readonly names: readonly string[];
}

async function readPool(daemon: TestDaemon, engineId = "reader"): Promise<Reading> {
  const engine = await TestEngine.start(daemon.socket, { engineId });
  const sum = { hit: 0, landed: 0, wrong: 0, names: [] as string[] };
  for (const keys of chains()) {
    const answer = await engine.read(keys);
    sum.hit += answer.hit;
    sum.landed += answer.landed;
    sum.wrong += answer.wrong;
    sum.names.push(...answer.failed.map(({ name }) => name));
  }
  engine.close();
  return sum;
}

function poolFile(daemon: TestDaemon): string {
  const [file] = daemon.poolFiles().filter((path) => statSync(path).size > 0);
  if (file === undefined) throw new Error("the pool has a file");
  return file;
}

/** Where a sequence of bytes stands in the pool file. */
function find(file: string, bytes: Uint8Array): number[] {
  const pool = readFileSync(file);
  const places: number[] = [];
  for (let at = pool.indexOf(bytes); at >= 0; at = pool.indexOf(bytes, at + 1)) places.push(at);
  return places;
}

function flipBit(file: string, at: number, bit = 0): void {
  const handle = openSync(file, "r+");
  const byte = new Uint8Array(1);
  readSync(handle, byte, 0, 1, at);
  byte[0]! ^= 1 << bit;
  writeSync(handle, byte, 0, 1, at);
  closeSync(handle);
}

function payloadOffset(file: string, key: Uint8Array): number {
  const payload = new Uint8Array(ROW_BYTES);
  fillPayload(key, payload);
  const [at] = find(file, payload);
  if (at === undefined) throw new Error("the payload stands in the pool");
  return at;
}

/** Start of the slot header that carries this key as its own (not as a parent). */
function headerOffset(file: string, key: Uint8Array): number {
  const at = find(file, key).find((place) => (place - SLOT_HEADER.KEY * 4) % HEADER_BYTES === 0);
  if (at === undefined) throw new Error("the header stands in the pool");
  return at - SLOT_HEADER.KEY * 4;
}

describe("a bit that flips while the daemon runs", () => {
  it("in a payload makes that block a miss by its checksum, and nothing else", async () => {
    await withDaemon({}, async (daemon) => {
      await fillPool(daemon);
      const file = poolFile(daemon);
      const victims = chains().map((keys, index) => keys[(index * 5) % BLOCKS]!);
      for (const [index, key] of victims.entries()) {
        flipBit(file, payloadOffset(file, key) + ((index * 997) % ROW_BYTES), index % 8);
      }
      const first = await daemon.counts("corruptBlocks", undefined, () => readPool(daemon), CHAINS);
      expect(first).toMatchObject({ hit: CHAINS * BLOCKS, wrong: 0 });
      expect(first.names.filter((name) => name === "checksumMismatch")).toHaveLength(CHAINS);
      expect(first.landed + first.names.length).toBe(first.hit);
      const second = await readPool(daemon, "second");
      expect(second).toMatchObject({ landed: second.hit, wrong: 0, names: [] });
      expect(second.hit).toBeLessThan(first.hit);
      const engine = await TestEngine.start(daemon.socket, { engineId: "healer" });
      for (const keys of chains()) await engine.store(keys);
      engine.close();
      expect(await readPool(daemon, "third")).toMatchObject({ landed: CHAINS * BLOCKS, wrong: 0 });
    });
  });

  it("in a header, a key, a generation or a length makes that block a miss by its identity", async () => {
    await withDaemon({}, async (daemon) => {
      await fillPool(daemon);
      const file = poolFile(daemon);
      const words = [
        SLOT_HEADER.STATE,
        SLOT_HEADER.NAMESPACE,
        SLOT_HEADER.DEPTH,
        SLOT_HEADER.SHARD,
        SLOT_HEADER.GENERATION,
        SLOT_HEADER.LENGTH,
        SLOT_HEADER.HEADER_HASH,
        SLOT_HEADER.KEY,
      ];
      expect(words).toHaveLength(CHAINS);
      for (const [index, keys] of chains().entries()) {
        flipBit(file, headerOffset(file, keys[BLOCKS - 1]!) + words[index]! * 4 + 1, 3);
      }
      const read = await daemon.counts(
        "identityFailures",
        undefined,
        () => readPool(daemon),
        CHAINS,
      );
      expect(read).toMatchObject({ hit: CHAINS * BLOCKS, landed: CHAINS * (BLOCKS - 1), wrong: 0 });
      expect(read.names).toEqual(Array(CHAINS).fill("staleGeneration"));
    });
  });
});

describe("a bit that flips while the daemon is down", () => {
  it("in payloads and headers is never served after the restart", async () => {
    await withDaemon({}, async (daemon) => {
      await fillPool(daemon);
      expect(await daemon.stop()).toEqual({ code: 0, signal: null });
      const file = poolFile(daemon);
      for (const [index, keys] of chains().entries()) {
        if (index % 2 === 0) flipBit(file, payloadOffset(file, keys[8]!) + 100, index);
        else flipBit(file, headerOffset(file, keys[8]!) + SLOT_HEADER.KEY * 4 + 2, index);
      }
      await daemon.launch();
      expect(await daemon.metric("recoveredBlocks")).toBeLessThan(CHAINS * BLOCKS);
      const read = await readPool(daemon);
      expect(read.wrong).toBe(0);
      expect(read.hit).toBe((CHAINS / 2) * BLOCKS + (CHAINS / 2) * 8);
      expect(read.names.filter((name) => name === "checksumMismatch")).toHaveLength(CHAINS / 2);
    });
  });
});

interface Damage {
  readonly what: string;
  readonly damage: (file: string) => void;
}

function overwrite(file: string, at: number, bytes: Uint8Array): void {
  const handle = openSync(file, "r+");
  writeSync(handle, bytes, 0, bytes.byteLength, at);
  closeSync(handle);
}

function garbage(length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  fillPayload(Uint8Array.of(7), bytes);
  return bytes;
}

const DAMAGES: readonly Damage[] = [
  { what: "empty", damage: (file) => truncateSync(file, 0) },
  { what: "one byte long", damage: (file) => truncateSync(file, 1) },
  { what: "cut inside its head", damage: (file) => truncateSync(file, 4_096) },
  { what: "cut inside its slabs", damage: (file) => truncateSync(file, 6 * 1024 * 1024 + 123) },
  { what: "zeroed", damage: (file) => writeFileSync(file, new Uint8Array(statSync(file).size)) },
  {
    what: "garbage throughout",
    damage: (file) => writeFileSync(file, garbage(statSync(file).size)),
  },
  { what: "garbage in its first 8 KiB", damage: (file) => overwrite(file, 0, garbage(8_192)) },
  { what: "garbage in one superblock", damage: (file) => overwrite(file, 0, garbage(4_096)) },
  { what: "garbage in its whole head", damage: (file) => overwrite(file, 0, garbage(4 << 20)) },
  {
    what: "garbage in its slab tables",
    damage: (file) => overwrite(file, 8_192, garbage(270_336)),
  },
  {
    what: "garbage in its namespace tables",
    damage: (file) => overwrite(file, 278_528, garbage(3 << 20)),
  },
  {
    what: "garbage in every slot header",
    damage: (file) => overwrite(file, 4 << 20, garbage(256 * 128)),
  },
  {
    what: "longer than it says",
    damage: (file) => truncateSync(file, statSync(file).size + (1 << 20)),
  },
];

describe("a pool file that is", () => {
  // Each takes two starts of a daemon; the short run takes one damage of each region of the file.
  const damages = LONG ? DAMAGES : DAMAGES.filter((_one, index) => index % 5 === 1);

  it.each(damages)(
    "$what at start gives a clear error or a daemon that serves no wrong byte",
    async ({ damage }) => {
      await withDaemon({}, async (daemon) => {
        await fillPool(daemon);
        await daemon.stop("SIGKILL");
        const file = poolFile(daemon);
        damage(file);
        daemon.spawn();
        const served = await servesOrEnds(daemon);
        if (served) {
          const read = await readPool(daemon);
          expect(read).toMatchObject({ wrong: 0 });
          expect(read.landed + read.names.length).toBe(read.hit);
          return;
        }
        const exit = await daemon.exited();
        expect(exit).toEqual({ code: 1, signal: null });
        expect(daemon.log()).toMatch(/purge|format|pool/i);
        rmSync(file);
        await daemon.launch();
        await fillPool(daemon);
        expect(await readPool(daemon)).toMatchObject({ landed: CHAINS * BLOCKS, wrong: 0 });
      });
    },
  );

  it("of another format version ends the start with formatUnsupported and is left as it is", async () => {
    await withDaemon({}, async (daemon) => {
      await fillPool(daemon);
      await daemon.stop();
      const file = poolFile(daemon);
      const before = statSync(file).size;
      for (const at of [0, 4_096]) overwrite(file, at, new Uint8Array(4_096).fill(0x5a));
      const exit = await daemon.failToStart();
      expect(exit).toEqual({ code: 1, signal: null });
      expect(daemon.log()).toContain("purge");
      expect(statSync(file).size).toBe(before);
    });
  });
});

async function servesOrEnds(daemon: TestDaemon): Promise<boolean> {
  return Promise.race([daemon.serves().then(() => true), daemon.exited().then(() => false)]).catch(
    () => false,
  );
}

describe("the pool directory", () => {
  it("that is open to others, or whose file is, is refused", async () => {
    await withDaemon({}, async (daemon) => {
      await fillPool(daemon);
      await daemon.stop();
      const file = poolFile(daemon);
      chmodSync(file, 0o644);
      const exit = await daemon.failToStart();
      expect(exit).toEqual({ code: 1, signal: null });
      expect(daemon.log()).toContain("0600");
      chmodSync(file, 0o600);
      await daemon.launch();
      expect(await readPool(daemon)).toMatchObject({ landed: CHAINS * BLOCKS, wrong: 0 });
    });
  });
});
