import { execFileSync } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import {
  COPY,
  DISK,
  DISK_HEADER_BYTES,
  DISK_ITEM_WORDS,
  DISK_SECTOR_BYTES,
  type DiskBatch,
  type DiskInfo,
  type DiskOptions,
  ITEM,
  ITEM_PROMOTED,
  NO_DRAM_SLOT,
  SCAN_WORDS,
  SLOT_HEADER,
  SLOT_INDEX_BITS,
} from "../../addon/binding.ts";
import { type CopyEnd, codeOf, Pump } from "./pump.ts";

const BLOCK_BYTES = 20_000;
const SEGMENT_BYTES = 4 << 20;
const SLAB = 3;
const RUNNING = 0;
const ENDED = 1;
const pump = new Pump();
const { addon } = pump;
afterAll(() => pump.close());

const slot = (index: number): number => (SLAB << SLOT_INDEX_BITS) | index;
const dram = (slab: number, index: number): number => (slab << SLOT_INDEX_BITS) | index;
let lastBatch = 1 << 20;
let lastTask = 1 << 20;

/** Runs a task to its end; its last PROGRESS. */
async function task(begin: (task: number) => void) {
  const id = ++lastTask;
  begin(id);
  await pump.until(() => (pump.progress.get(id)?.state ?? RUNNING) !== RUNNING);
  return pump.progress.get(id) as { done: number; total: number; state: number };
}

const options = (directory: string, mode: DiskOptions["mode"]): DiskOptions => ({
  directory,
  segmentBytes: SEGMENT_BYTES,
  mode,
  direct: "auto",
  queueDepth: 8,
  writeDepth: 2,
  stagingBytes: 4 << 20,
});

/** A disk with one prepared segment of the class, a pool whose slab 0 is filled, and a window. */
class Bench {
  readonly directory: string;
  info: DiskInfo;
  readonly arena: number;
  readonly region: number;
  readonly window: Uint8Array;
  readonly mode: DiskOptions["mode"];

  constructor(name: string, mode: DiskOptions["mode"]) {
    this.mode = mode;
    this.directory = join(pump.directory, `disk-${name}-${mode}`);
    mkdirSync(this.directory, { mode: 0o700 });
    this.info = addon.diskOpen(options(this.directory, mode));
    this.arena = pump.openArena(`pool-${name}-${mode}`, 2).arena;
    addon.arenaPutNamespace(this.arena, 0, new Uint8Array(16).fill(7), new Uint8Array(2));
    for (const slab of [0, 1]) addon.arenaAssign(this.arena, slab, BLOCK_BYTES);
    const { descriptor, buffer } = addon.clientMemfd(1 << 20, false);
    this.region = addon.regionMap(descriptor, 1 << 20).region;
    this.window = new Uint8Array(buffer);
    for (let i = 0; i < this.window.length; i++) this.window[i] = (i * 31 + (i >> 12)) & 0xff;
  }

  async prepare(): Promise<number> {
    const ended = await task((id) => addon.diskPrepare(this.info.disk, 0, id));
    expect(ended.state).toBe(ENDED);
    addon.diskAttach(this.info.disk, 0, SLAB);
    return addon.diskAssign(this.info.disk, SLAB, BLOCK_BYTES);
  }

  /** Blocks 0 … count − 1 in DRAM slots 0 … and on disk. Returns what the window held. */
  async fill(count: number): Promise<Uint8Array> {
    const items = Array.from({ length: count }, (_, i) => [i, i * BLOCK_BYTES, i, 0]);
    const base = { arena: this.arena, region: this.region, payloadBytes: BLOCK_BYTES };
    expect((await pump.copy({ kind: COPY.STORE, ...base }, items)).failed).toBe(0);
    const written = await this.run(
      { kind: DISK.WRITE },
      items.map((_, i) => [slot(i), 0, i, i]),
    );
    expect(written.failed).toBe(0);
    return this.window.slice(0, count * BLOCK_BYTES);
  }

  submit(batch: Partial<DiskBatch>, items: readonly (readonly number[])[]): number {
    const words = new Uint32Array(items.length * DISK_ITEM_WORDS);
    for (const [
      i,
      [diskSlot = 0, range = 0, block = 0, dramSlot = NO_DRAM_SLOT],
    ] of items.entries())
      words.set(
        [diskSlot, range % 2 ** 32, Math.floor(range / 2 ** 32), block, dramSlot],
        i * DISK_ITEM_WORDS,
      );
    const base = { shard: 0, shards: 1, payloadBytes: BLOCK_BYTES, deadlineMs: 0, priority: 0 };
    const id = ++lastBatch;
    const where = { disk: this.info.disk, arena: this.arena, region: 0, kind: DISK.READ };
    addon.diskSubmit({ ...base, ...where, batch: id, ...batch }, words, items.length);
    return id;
  }

  async run(batch: Partial<DiskBatch>, items: readonly (readonly number[])[]): Promise<CopyEnd> {
    const id = this.submit(batch, items);
    await pump.until(() => pump.copies.has(id));
    return pump.copies.get(id) as CopyEnd;
  }

  reopen(): void {
    addon.diskClose(this.info.disk);
    this.info = addon.diskOpen(options(this.directory, this.mode));
    addon.diskAttach(this.info.disk, 0, SLAB);
  }

  flip(offset: number): void {
    const file = openSync(join(this.directory, "segment-000000.cairn"), "r+");
    const byte = Buffer.alloc(1);
    readSync(file, byte, 0, 1, offset);
    byte[0] = (byte[0] as number) ^ 1;
    writeSync(file, byte, 0, 1, offset);
    closeSync(file);
  }
}

const STRIDE = Math.ceil((DISK_HEADER_BYTES + BLOCK_BYTES) / DISK_SECTOR_BYTES) * DISK_SECTOR_BYTES;
const offsetOf = (index: number): number => DISK_SECTOR_BYTES + index * STRIDE;

describe.each(["threads", "auto"] as const)("blocks on a disk, mode %s", (mode) => {
  test("come back byte for byte after close and open, into the window and into DRAM", async () => {
    const bench = new Bench("round", mode);
    const slots = await bench.prepare();
    expect(slots).toBe(addon.diskSlotsPerSegment(SEGMENT_BYTES, BLOCK_BYTES));
    const original = await bench.fill(8);
    expect((await task((id) => addon.diskSync(bench.info.disk, id))).state).toBe(ENDED);
    const generations = new Uint32Array(8);
    const slots8 = Uint32Array.from({ length: 8 }, (_, i) => slot(i));
    addon.diskGenerations(bench.info.disk, slots8, 8, generations);
    expect([...generations]).toEqual(new Array(8).fill(1));
    const id = bench.info.directoryId;
    bench.reopen();
    expect(bench.info).toMatchObject({
      reopened: true,
      directoryId: id,
      segmentBytes: SEGMENT_BYTES,
    });
    expect(addon.diskSegments(bench.info.disk)).toEqual([
      { segment: 0, payloadBytes: BLOCK_BYTES, prepared: true },
    ]);
    addon.diskRestore(bench.info.disk, slots8, generations, 8);
    bench.window.fill(0);
    const items = Array.from({ length: 8 }, (_, i) => [slot(i), i * BLOCK_BYTES, i, dram(1, i)]);
    const read = await bench.run({ region: bench.region }, items);
    expect(read).toEqual({
      failed: 0,
      statuses: new Array(8).fill(ITEM.OK | ITEM_PROMOTED),
      bytes: 8 * BLOCK_BYTES,
    });
    expect(Buffer.compare(bench.window.subarray(0, original.length), original)).toBe(0);
    bench.window.fill(0);
    const loaded = await pump.copy(
      { kind: COPY.LOAD, arena: bench.arena, region: bench.region, payloadBytes: BLOCK_BYTES },
      items.map((_, i) => [dram(1, i), i * BLOCK_BYTES, i, 1]),
    );
    expect(loaded.failed).toBe(0);
    expect(Buffer.compare(bench.window.subarray(0, original.length), original)).toBe(0);
    const counters = addon.diskCounters(bench.info.disk);
    expect(counters).toMatchObject({ readItems: 8, ioErrors: 0, inFlight: 0, readsQueued: 0 });
    expect(counters.bytesRead).toBeGreaterThanOrEqual(8 * BLOCK_BYTES);
    addon.diskClose(bench.info.disk);
  });

  test("that changed on the device, or are asked for by another name, are misses", async () => {
    const bench = new Bench("corrupt", mode);
    await bench.prepare();
    await bench.fill(4);
    bench.flip(offsetOf(1) + DISK_HEADER_BYTES + 12_345);
    bench.flip(offsetOf(2) + 70);
    const items = [0, 1, 2, 3].map((i) => [slot(i), i * BLOCK_BYTES, i === 3 ? 2 : i]);
    const read = await bench.run({ region: bench.region }, items);
    expect(read.statuses).toEqual([ITEM.OK, ITEM.CORRUPT, ITEM.IDENTITY, ITEM.IDENTITY]);
    const verified = await bench.run(
      { kind: DISK.VERIFY },
      [0, 1].map((i) => [slot(i), 0, i]),
    );
    expect(verified.statuses).toEqual([ITEM.OK, ITEM.CORRUPT]);
    expect(addon.diskCounters(bench.info.disk)).toMatchObject({
      itemsCorrupt: 2,
      itemsIdentity: 2,
    });
    addon.diskRestore(bench.info.disk, new Uint32Array([slot(0)]), new Uint32Array([9]), 1);
    expect((await bench.run({ region: bench.region }, [[slot(0), 0, 0]])).statuses).toEqual([
      ITEM.IDENTITY,
    ]);
    addon.diskClose(bench.info.disk);
  });

  test("are REGION when the window has gone, and are promoted all the same", async () => {
    const bench = new Bench("region", mode);
    await bench.prepare();
    await bench.fill(3);
    const items = [
      [slot(0), (1 << 20) - BLOCK_BYTES + 1, 0],
      [slot(1), 0, 1, dram(1, 0)],
    ];
    expect((await bench.run({ region: bench.region }, items)).statuses).toEqual([
      ITEM.REGION,
      ITEM.OK | ITEM_PROMOTED,
    ]);
    addon.regionUnmap(bench.region);
    const gone = await bench.run({ region: bench.region }, [
      [slot(0), 0, 0],
      [slot(2), 0, 2, dram(1, 1)],
    ]);
    expect(gone).toMatchObject({ failed: 2, statuses: [ITEM.REGION, ITEM.REGION | ITEM_PROMOTED] });
    addon.diskClose(bench.info.disk);
  });

  test("are listed by a scan with the arena's index of their namespace, which knows their generations", async () => {
    const bench = new Bench("scan", mode);
    await bench.prepare();
    await bench.fill(5);
    bench.reopen();
    const ended = await task((id) => addon.diskScan(bench.info.disk, bench.arena, id));
    expect(ended).toMatchObject({ done: 5, total: 5, state: ENDED });
    const into = new Uint32Array(SCAN_WORDS * 2);
    const found: number[][] = [];
    for (let n = addon.diskScanRead(bench.info.disk, into); n > 0; ) {
      for (let i = 0; i < n; i++) {
        const header = into.subarray(i * SCAN_WORDS, (i + 1) * SCAN_WORDS);
        found.push([
          header[SLOT_HEADER.DEPTH] ?? 0,
          header[SLOT_HEADER.NAMESPACE] ?? 9,
          header[SCAN_WORDS - 1] ?? 0,
        ]);
      }
      n = addon.diskScanRead(bench.info.disk, into);
    }
    expect(found).toEqual([1, 2, 3, 4, 5].map((depth) => [depth, 0, slot(depth - 1)]));
    const generation = new Uint32Array(1);
    addon.diskGenerations(bench.info.disk, new Uint32Array([slot(4)]), 1, generation);
    expect(generation[0]).toBe(1);
    addon.diskClose(bench.info.disk);
  });

  test("end CANCELLED or OK, each batch once, when their disk is closed in the middle", async () => {
    const bench = new Bench("closed", mode);
    await bench.prepare();
    await bench.fill(8);
    const items = Array.from({ length: 8 }, (_, i) => [slot(i), i * BLOCK_BYTES, i]);
    const ids = Array.from({ length: 20 }, () => bench.submit({ region: bench.region }, items));
    addon.diskClose(bench.info.disk);
    await pump.until(() => ids.every((id) => pump.copies.has(id)));
    for (const id of ids)
      for (const status of pump.copies.get(id)?.statuses ?? [99])
        expect([ITEM.OK, ITEM.CANCELLED]).toContain(status);
    expect(codeOf(() => bench.submit({ region: bench.region }, items))).toBe("CLOSED");
    addon.arenaClose(bench.arena, false);
  });
});

describe("a disk's directory", () => {
  test("is refused while another disk has it, when others may touch it, and when it is not there", () => {
    const directory = join(pump.directory, "refused");
    mkdirSync(directory, { mode: 0o700 });
    const { disk } = addon.diskOpen(options(directory, "threads"));
    expect(codeOf(() => addon.diskOpen(options(directory, "threads")))).toBe("LOCKED");
    addon.diskClose(disk);
    execFileSync("chmod", ["755", directory]);
    expect(codeOf(() => addon.diskOpen(options(directory, "threads")))).toBe("UNSAFE");
    expect(codeOf(() => addon.diskOpen(options(join(directory, "no"), "auto")))).toBe("ENOENT");
    expect(codeOf(() => addon.diskClose(disk))).toBe("CLOSED");
  });

  test("gives segments out and takes them back; what is used or too large is refused", async () => {
    const bench = new Bench("segments", "threads");
    const { disk } = bench.info;
    const file = join(bench.directory, "segment-000000.cairn");
    expect(codeOf(() => addon.diskAttach(disk, 0, SLAB))).toBe("ARGUMENT");
    await bench.prepare();
    expect(existsSync(file)).toBe(true);
    expect(codeOf(() => addon.diskAssign(disk, SLAB, BLOCK_BYTES))).toBe("ARGUMENT");
    expect(codeOf(() => addon.diskPrepare(disk, 0, 1))).toBe("BUSY");
    addon.diskRelease(disk, SLAB);
    expect(codeOf(() => addon.diskAssign(disk, SLAB, 3 << 20))).toBe("ARGUMENT");
    expect(codeOf(() => bench.submit({ kind: DISK.VERIFY }, [[slot(0), 0, 0]]))).toBe("ARGUMENT");
    expect(addon.diskAssign(disk, SLAB, 100_000)).toBe(
      addon.diskSlotsPerSegment(SEGMENT_BYTES, 100_000),
    );
    addon.diskDetach(disk, SLAB, true);
    expect(existsSync(file)).toBe(false);
    expect(addon.diskSegments(disk)).toEqual([]);
    addon.diskClose(disk);
  });

  test("arguments of a batch are checked before anything moves", async () => {
    const bench = new Bench("arguments", "threads");
    await bench.prepare();
    await bench.fill(1);
    const refused = (batch: Partial<DiskBatch>, item: readonly number[]): string =>
      codeOf(() => bench.submit(batch, [item]));
    expect(refused({ kind: 4 }, [slot(0), 0, 0])).toBe("ARGUMENT");
    expect(refused({ kind: DISK.READ }, [slot(0), 0, 0])).toBe("ARGUMENT");
    expect(refused({ kind: DISK.WRITE }, [slot(0), 0, 0])).toBe("ARGUMENT");
    expect(refused({ region: bench.region }, [slot(100_000), 0, 0])).toBe("ARGUMENT");
    expect(refused({ region: bench.region }, [slot(0), 0, 1 << 20])).toBe("ARGUMENT");
    expect(refused({ region: bench.region, shards: 0 }, [slot(0), 0, 0])).toBe("ARGUMENT");
    expect(refused({ region: bench.region, payloadBytes: BLOCK_BYTES + 1 }, [slot(0), 0, 0])).toBe(
      "ARGUMENT",
    );
    expect(refused({ region: bench.region, disk: 999 }, [slot(0), 0, 0])).toBe("CLOSED");
    expect(refused({ region: bench.region, arena: 999 }, [slot(0), 0, 0])).toBe("CLOSED");
    addon.diskClose(bench.info.disk);
  });
});

test("what is exported for a remote object is imported by another arena, and only as what it is", async () => {
  const bench = new Bench("object", "threads");
  const items = [0, 1].map((i) => [i, i * BLOCK_BYTES, i, 0]);
  const base = { arena: bench.arena, region: bench.region, payloadBytes: BLOCK_BYTES };
  expect((await pump.copy({ kind: COPY.STORE, ...base }, items)).failed).toBe(0);
  const range = DISK_HEADER_BYTES + BLOCK_BYTES;
  const objects = [0, 1].map((i) => [i, 500_000 + i * range, i, 1]);
  expect((await pump.copy({ kind: COPY.EXPORT, ...base }, objects)).failed).toBe(0);
  // The same namespace under another index, as in another daemon.
  const other = pump.openArena("importer", 2).arena;
  addon.arenaPutNamespace(other, 0, new Uint8Array(16).fill(7), new Uint8Array(2));
  addon.arenaAssign(other, 0, BLOCK_BYTES);
  const into = { kind: COPY.IMPORT, ...base, arena: other };
  expect((await pump.copy(into, objects)).statuses).toEqual([ITEM.OK, ITEM.OK]);
  const mistaken = [[2, 500_000, 1, 0]];
  expect((await pump.copy(into, mistaken)).statuses).toEqual([ITEM.IDENTITY]);
  bench.window[500_000 + range - 1] = (bench.window[500_000 + range - 1] as number) ^ 1;
  expect((await pump.copy(into, [[2, 500_000, 0, 0]])).statuses).toEqual([ITEM.CORRUPT]);
  const tail = [[2, (1 << 20) - range + 1, 0, 0]];
  expect((await pump.copy(into, tail)).statuses).toEqual([ITEM.REGION]);
  addon.diskClose(bench.info.disk);
});

test("the golden disk slot reads at the offsets TypeScript uses", () => {
  const hex = readFileSync("test/golden/disk-slot.hex", "utf8").replaceAll("\n", "");
  const bytes = Buffer.from(hex, "hex");
  expect(bytes.length).toBe(DISK_HEADER_BYTES + 64);
  expect(bytes.readUInt32LE(SLOT_HEADER.NAMESPACE * 4)).toBe(0);
  expect(bytes.readUInt32LE(SLOT_HEADER.DEPTH * 4)).toBe(7);
  expect(bytes.readUInt32LE(SLOT_HEADER.GENERATION * 4)).toBe(5);
  expect(bytes.readUInt32LE(SLOT_HEADER.LENGTH * 4)).toBe(64);
  expect([bytes[128], bytes[144], bytes.readUInt32LE(160)]).toEqual([0x10, 0xd0, 1]);
  expect(bytes.subarray(164, DISK_HEADER_BYTES).every((byte) => byte === 0)).toBe(true);
});
