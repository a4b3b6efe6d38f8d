/** The index: pages, their store, and the child that reads them, with files damaged in every way we know of. */
import { type ChildProcess, spawn } from "node:child_process";
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { CairnError } from "../../../src/errors.ts";
import {
  PAGE_SLOTS,
  PAGES_PER_SEGMENT,
  PageWriter,
  PARENT,
  SEGMENTS_MAX,
} from "../../../tiers/nvme/index-pages.ts";
import { DeviceIndex, type IndexParts } from "../../../tiers/nvme/device-index.ts";
import { IndexStore, opensOf, setIndexAside } from "../../../tiers/nvme/index-store.ts";
import { type IndexProbe, RECORD, RECORD_WORDS, startProbe } from "../../../tiers/nvme/probe.ts";

const GOLDEN = new URL("../../golden/nvme-index-page.hex", import.meta.url);
const folders: string[] = [];
afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

function directoryMade(): string {
  const folder = mkdtempSync(join(tmpdir(), "cairn-nvme-index-"));
  folders.push(folder);
  return folder;
}

interface Entry {
  readonly row: number;
  readonly shard: number;
  readonly depth: number;
  readonly generation: number;
  readonly lastAccess: number;
  readonly key: readonly number[];
  /** Position in the page, or a spelled key, or none. */
  readonly parent: number | readonly number[] | undefined;
}

const writer = new PageWriter();

function pageOf(key: number, payloadBytes: number, entries: ReadonlyMap<number, Entry>) {
  writer.begin(key, payloadBytes);
  for (const [position, entry] of entries) {
    const { row, shard, depth, generation, lastAccess, parent } = entry;
    const spelled = typeof parent === "object" ? parent : [];
    const keys = Uint32Array.from([...entry.key, ...spelled]);
    const at = typeof parent === "number" ? parent : undefined;
    const how = at ?? (typeof parent === "object" ? PARENT.SPELLED : PARENT.NONE);
    writer.add(position, row, shard, depth, generation, lastAccess, keys, 0, how, 8);
  }
  return writer.end();
}

interface Found {
  readonly row: number;
  readonly shard: number;
  readonly depth: number;
  readonly generation: number;
  readonly lastAccess: number;
  readonly payloadBytes: number;
  readonly key: number[];
  readonly parentKey: number[];
  readonly slot: number;
}

function recordsOf(probe: IndexProbe): Found[] {
  const all: Found[] = [];
  for (let piece = probe.next(); piece !== undefined; piece = probe.next()) {
    for (let i = 0; i < piece.count; i++) {
      const words = piece.words.subarray(i * RECORD_WORDS, (i + 1) * RECORD_WORDS);
      all.push({
        row: words[RECORD.ROW]! & 0xffff,
        shard: words[RECORD.ROW]! >>> 16,
        depth: words[RECORD.DEPTH]!,
        generation: words[RECORD.GENERATION]!,
        lastAccess: words[RECORD.LAST_ACCESS_HIGH]! * 2 ** 32 + words[RECORD.LAST_ACCESS_LOW]!,
        payloadBytes: words[RECORD.PAYLOAD_BYTES]!,
        key: [...words.subarray(RECORD.KEY, RECORD.KEY + 8)],
        parentKey: [...words.subarray(RECORD.PARENT_KEY, RECORD.PARENT_KEY + 8)],
        slot: words[RECORD.SLOT]!,
      });
    }
  }
  return all;
}

const word = fc.integer({ min: 0, max: 0xffff_ffff });
const keyWords = fc.array(word, { minLength: 8, maxLength: 8 });
const entry = fc.record({
  row: fc.integer({ min: 0, max: 0xffff }),
  shard: fc.integer({ min: 0, max: 63 }),
  depth: fc.integer({ min: 1, max: 5_000 }),
  generation: word,
  lastAccess: fc.integer({ min: 0, max: 2 ** 48 }),
  key: keyWords,
  parent: fc.oneof(fc.constant(undefined), fc.integer({ min: 0, max: 31 }), keyWords),
});
const page = fc.record({
  key: fc.integer({ min: 0, max: 16_384 * PAGES_PER_SEGMENT - 1 }),
  payloadBytes: fc.integer({ min: 64, max: 2 ** 31 }),
  entries: fc.uniqueArray(fc.tuple(fc.integer({ min: 0, max: PAGE_SLOTS - 1 }), entry), {
    minLength: 1,
    maxLength: PAGE_SLOTS,
    selector: ([position]) => position,
  }),
});

/** Sorted, and parents that are named by position stand in the page. */
function tidy(entries: readonly (readonly [number, Entry])[]): Map<number, Entry> {
  const sorted = entries.toSorted(([a], [b]) => a - b);
  const positions = new Set(sorted.map(([position]) => position));
  return new Map(
    sorted.map(([position, one]) => {
      const there = typeof one.parent !== "number" || positions.has(one.parent);
      return [position, there ? one : { ...one, parent: undefined }];
    }),
  );
}

function expectedOf(key: number, payloadBytes: number, entries: ReadonlyMap<number, Entry>) {
  const first =
    Math.floor(key / PAGES_PER_SEGMENT) * 2 ** 18 + (key % PAGES_PER_SEGMENT) * PAGE_SLOTS;
  return [...entries].map(([position, { parent, key: own, ...rest }]): Found => {
    const above = typeof parent === "number" ? entries.get(parent)!.key : parent;
    const parentKey = [...(above ?? Array<number>(8).fill(0))];
    return { ...rest, payloadBytes, key: [...own], parentKey, slot: first + position };
  });
}

const bySlot = (a: Found, b: Found): number => a.slot - b.slot;

async function verdictOf(directory: string) {
  const probe = startProbe(directory);
  const verdict = await probe.verdict;
  return { probe, verdict };
}

function fullPage(key: number): Buffer {
  const entries = Array.from({ length: PAGE_SLOTS }, (_, at): [number, Entry] => {
    const own = Array.from({ length: 8 }, (__, i) => key * 1_000 + at * 8 + i);
    const depth = 1 + ((key * PAGE_SLOTS + at) % 4_096);
    return [
      at,
      { row: 0, shard: 0, depth, generation: 1, lastAccess: 1, key: own, parent: undefined },
    ];
  });
  return pageOf(key, 64, tidy(entries))!;
}

function slotsOf(probe: IndexProbe): number[] {
  return recordsOf(probe).map(({ slot }) => slot);
}

/** It reads this directory, and has not ended. */
function isReader(pid: string, directory: string): boolean {
  try {
    const words = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
    return words.includes(directory) && words.some((word) => word.endsWith("cairn-index-reader"));
  } catch {
    return false; // Gone meanwhile.
  }
}

/** Kills the reader of this directory as soon as its verdict is there; false: it has ended already. */
async function killedBehindVerdict(probe: IndexProbe): Promise<boolean> {
  const { directory } = probe;
  const reader = readdirSync("/proc").find((pid) => isReader(pid, directory));
  await probe.verdict;
  if (reader === undefined || !isReader(reader, directory)) return false;
  process.kill(Number(reader), "SIGKILL");
  return true;
}

describe("the index of a device", () => {
  it("is not left open when its device is closed while it is being opened", async () => {
    const directory = directoryMade();
    const index = new DeviceIndex({ directory } as IndexParts, []);
    const opening = index.open();
    await index.close();
    await opening;
    expect(index.isOpen).toBe(false);
    // lmdb hands out the open environment of a path as long as there is one.
    const store = await IndexStore.open(directory);
    await store.write([{ key: 1, bytes: Buffer.from("page") }], {});
    await store.close();
  });
});

describe("index pages", () => {
  it("say to the reader what was written, sorted by depth, then generation descending", async () => {
    const pages = fc.uniqueArray(page, { maxLength: 40, selector: ({ key }) => key });
    await fc.assert(
      fc.asyncProperty(pages, async (given) => {
        const directory = directoryMade();
        const store = await IndexStore.open(directory);
        const expected: Found[] = [];
        const writes = given.map(({ key, payloadBytes, entries }) => {
          const tidied = tidy(entries);
          expected.push(...expectedOf(key, payloadBytes, tidied));
          return { key, bytes: pageOf(key, payloadBytes, tidied) };
        });
        await store.write(writes, { directoryId: "ab" });
        await store.close();
        const { probe, verdict } = await verdictOf(directory);
        expect(verdict).toMatchObject({ found: true, damage: undefined, badPages: [] });
        expect(verdict.meta.directoryId).toBe("ab");
        const found = recordsOf(probe);
        for (let i = 1; i < found.length; i++) {
          const [a, b] = [found[i - 1]!, found[i]!];
          expect(a.depth < b.depth || (a.depth === b.depth && a.generation >= b.generation)).toBe(
            true,
          );
        }
        expect(found.toSorted(bySlot)).toEqual(expected.toSorted(bySlot));
      }),
      { numRuns: 12 },
    );
  }, 120_000);

  it("are read to the end by a second child when the first one dies behind its verdict", async () => {
    const directory = directoryMade();
    const store = await IndexStore.open(directory);
    const pages = 10_000;
    for (let first = 0; first < pages; first += 500) {
      const keys = Array.from({ length: 500 }, (_, i) => first + i);
      await store.write(
        keys.map((key) => ({ key, bytes: fullPage(key) })),
        { directoryId: "ab" },
      );
    }
    await store.close();
    const whole = (await verdictOf(directory)).probe;
    const expected = slotsOf(whole);
    expect(expected).toHaveLength(pages * PAGE_SLOTS);
    let died = false;
    for (let attempt = 0; attempt < 10 && !died; attempt++) {
      const probe = startProbe(directory);
      died = await killedBehindVerdict(probe);
      expect(await probe.verdict).toMatchObject({ damage: undefined, entries: pages * PAGE_SLOTS });
      expect(slotsOf(probe)).toEqual(expected);
    }
    expect(died, "a child was killed while it wrote").toBe(true);
  }, 120_000);

  it("are laid out as the golden file says", () => {
    const key = Array.from({ length: 8 }, (_, index) => 0x1000_0000 + index);
    const parent = Array.from({ length: 8 }, (_, index) => 0x2000_0000 + index);
    const base = { row: 3, shard: 1, generation: 9, lastAccess: 1_700_000_000_123 };
    const bytes = pageOf(
      5 * PAGES_PER_SEGMENT + 2,
      65_536,
      new Map<number, Entry>([
        [0, { ...base, depth: 1, key, parent: undefined }],
        [1, { ...base, depth: 2, key: parent, parent: 0 }],
        [31, { ...base, depth: 70_000, key, parent }],
      ]),
    )!;
    const hex = bytes
      .toString("hex")
      .match(/.{1,64}/g)!
      .join("\n");
    expect(`${hex}\n`).toBe(readFileSync(GOLDEN, "utf8"));
  });

  it("are read as the golden file says", async () => {
    const bytes = Buffer.from(readFileSync(GOLDEN, "utf8").replaceAll("\n", ""), "hex");
    const directory = directoryMade();
    const store = await IndexStore.open(directory);
    await store.write([{ key: 5 * PAGES_PER_SEGMENT + 2, bytes }], {});
    await store.close();
    const found = recordsOf((await verdictOf(directory)).probe);
    const [key, parent] = [0x1000_0000, 0x2000_0000].map((first) =>
      Array.from({ length: 8 }, (_, index) => first + index),
    );
    const base = { row: 3, shard: 1, generation: 9, lastAccess: 1_700_000_000_123 };
    const first = 5 * 2 ** 18 + 2 * PAGE_SLOTS;
    const none = Array<number>(8).fill(0);
    expect(found).toEqual([
      { ...base, payloadBytes: 65_536, depth: 1, key, parentKey: none, slot: first },
      { ...base, payloadBytes: 65_536, depth: 2, key: parent, parentKey: key, slot: first + 1 },
      { ...base, payloadBytes: 65_536, depth: 70_000, key, parentKey: parent, slot: first + 31 },
    ]);
  });

  it("with blocks of one key in several segments are told newest generation first, however deep", async () => {
    const directory = directoryMade();
    const store = await IndexStore.open(directory);
    const key = [1, 2, 3, 4, 5, 6, 7, 8];
    const base = { row: 0, shard: 0, lastAccess: 1, key, parent: undefined };
    const blocks = [
      { depth: 0xffff_ffff, generation: 1 },
      { depth: 7, generation: 3 },
      { depth: 0xffff_ffff, generation: 0xffff_ffff },
      { depth: 7, generation: 0xffff_fffe },
    ];
    await store.write(
      blocks.map((block, segment) => ({
        key: segment * PAGES_PER_SEGMENT,
        bytes: pageOf(segment * PAGES_PER_SEGMENT, 64, new Map([[0, { ...base, ...block }]])),
      })),
      {},
    );
    await store.close();
    const { probe, verdict } = await verdictOf(directory);
    expect(verdict).toMatchObject({ damage: undefined, entries: 4, pages: 4 });
    expect(recordsOf(probe).map(({ slot }) => slot / 2 ** 18)).toEqual([3, 1, 2, 0]);
  });

  it("whose checksum holds but which name a parent where nothing stands, or no segment, are dropped", async () => {
    const directory = directoryMade();
    const store = await IndexStore.open(directory);
    const base = {
      row: 0,
      shard: 0,
      depth: 1,
      generation: 1,
      lastAccess: 1,
      key: [1, 1, 1, 1, 1, 1, 1, 1],
    };
    const sound = (key: number) => pageOf(key, 64, new Map([[4, { ...base, parent: 4 }]]))!;
    const absent = (key: number, parent: number) =>
      pageOf(key, 64, new Map([[4, { ...base, parent }]]))!;
    const key = SEGMENTS_MAX * PAGES_PER_SEGMENT;
    const beyond = sound(0);
    beyond.writeUInt32LE(key, 8);
    beyond.writeUInt32LE(0, 20);
    beyond.writeUInt32LE(crc32(beyond), 20);
    const writes = [0, 1, 2, 3, 4].map((at) => ({ key: at, bytes: sound(at) }));
    writes.push({ key: 5, bytes: absent(5, 3) }, { key: 6, bytes: absent(6, 31) });
    writes.push({ key: 7, bytes: absent(7, 32) }, { key: 8, bytes: absent(8, 253) });
    writes.push({ key, bytes: beyond });
    await store.write(writes, {});
    await store.close();
    const { probe, verdict } = await verdictOf(directory);
    expect(verdict).toMatchObject({ damage: undefined, badPages: [5, 6, 7, 8, key] });
    expect(slotsOf(probe)).toEqual([4, 36, 68, 100, 132]);
  });

  it("without a slot are no page", () => {
    writer.begin(1, 64);
    expect(writer.end()).toBeUndefined();
  });

  it("with any one bit flipped, or under another key, are dropped, and all others are kept", async () => {
    const directory = directoryMade();
    const store = await IndexStore.open(directory);
    const one: Entry = {
      row: 0,
      shard: 0,
      depth: 1,
      generation: 1,
      lastAccess: 1,
      key: [1, 2, 3, 4, 5, 6, 7, 8],
      parent: undefined,
    };
    const writes = [];
    const bits = pageOf(0, 64, new Map([[3, one]]))!.length * 8;
    for (let bit = 0; bit < bits; bit++) {
      const bytes = pageOf(bit, 64, new Map([[3, one]]))!;
      bytes[bit >>> 3] = bytes[bit >>> 3]! ^ (1 << (bit & 7));
      writes.push({ key: bit, bytes });
    }
    for (let key = 10_000; key < 10_000 + bits + 2; key++) {
      writes.push({ key, bytes: pageOf(key, 64, new Map([[3, one]])) });
    }
    writes.push({ key: 9_999, bytes: pageOf(8_888, 64, new Map([[3, one]])) });
    await store.write(writes, {});
    await store.close();
    const { probe, verdict } = await verdictOf(directory);
    expect(verdict.badPages).toEqual([...Array(bits).keys(), 9_999]);
    expect(verdict.entries).toBe(bits + 2);
    expect(recordsOf(probe)).toHaveLength(bits + 2);
  });
});

describe("the store of an index", () => {
  const entryOf = (generation: number): Entry => ({
    row: 0,
    shard: 0,
    depth: 1,
    generation,
    lastAccess: 1,
    key: [1, 2, 3, 4, 5, 6, 7, 8],
    parent: undefined,
  });
  const write = (key: number, generation: number) => ({
    key,
    bytes: pageOf(key, 64, new Map([[0, entryOf(generation)]])),
  });

  it("keeps what was written and removed over a reopening", async () => {
    const directory = directoryMade();
    const first = await IndexStore.open(directory);
    await first.write([write(0, 1), write(1, 1), write(2, 1)], {});
    await first.write([write(1, 2), { key: 2, bytes: undefined }], {});
    await first.close();
    const second = await IndexStore.open(directory);
    await second.write([write(7, 3)], {});
    await second.close();
    const { probe } = await verdictOf(directory);
    const found = recordsOf(probe).map(({ slot, generation }) => [slot, generation]);
    expect(found.toSorted(([a], [b]) => a! - b!)).toEqual([
      [0, 1],
      [32, 2],
      [224, 3],
    ]);
  });

  it("in a folder that cannot be looked into leaves the word to those who open it", async () => {
    const directory = directoryMade();
    symlinkSync("index", join(directory, "index"));
    const { probe, verdict } = await verdictOf(directory);
    expect(verdict).toMatchObject({ found: false, damage: undefined, entries: 0 });
    expect(probe.next()).toBeUndefined();
  });

  it("without a page is read, and says what stands beside pages", async () => {
    const directory = directoryMade();
    const store = await IndexStore.open(directory);
    await store.write([], { directoryId: "cd" });
    const { probe, verdict } = await verdictOf(directory);
    expect(verdict).toMatchObject({ found: true, damage: undefined, entries: 0, pages: 0 });
    expect(verdict.meta.directoryId).toBe("cd");
    expect(probe.next()).toBeUndefined();
    await store.close();
  });

  it("is read beside the daemon that writes it, again and again, and never found damaged", async () => {
    const directory = directoryMade();
    const store = await IndexStore.open(directory);
    let generation = 1;
    let written = 0;
    const pages = 300;
    const commit = async (): Promise<void> => {
      const given = generation++;
      await store.write(
        Array.from({ length: pages }, (_, key) => write(key, given)),
        {},
      );
      written = given;
    };
    await commit();
    for (let round = 0; round < 20; round++) {
      const [before, probe] = [written, startProbe(directory)];
      await commit();
      expect(await probe.verdict).toMatchObject({ damage: undefined, badPages: [], pages });
      const generations = new Set(recordsOf(probe).map((found) => found.generation));
      expect(generations.size).toBe(1);
      expect([...generations][0]).toBeGreaterThanOrEqual(before);
    }
    await store.close();
  }, 60_000);

  it("counts starts that never came to a commit", async () => {
    const directory = directoryMade();
    const first = await IndexStore.open(directory);
    expect(opensOf(directory)).toBe(1);
    await first.close();
    const second = await IndexStore.open(directory);
    expect(opensOf(directory)).toBe(2);
    await second.write([], {});
    expect(opensOf(directory)).toBe(0);
    await second.close();
  });

  it("that is not there is found missing, not damaged", async () => {
    const { probe, verdict } = await verdictOf(join(directoryMade(), "nothing"));
    expect(verdict).toMatchObject({ found: false, damage: undefined, entries: 0 });
    expect(probe.next()).toBeUndefined();
  });

  it("in a directory that is a file leaves the word to those who open the directory", async () => {
    const file = join(directoryMade(), "file");
    writeFileSync(file, "");
    const probe = startProbe(file);
    expect((await probe.verdict).entries).toBe(0);
    probe.stop();
  });

  describe("whose reader cannot be run", () => {
    const run = async (text: string | undefined, mode: number) => {
      const directory = directoryMade();
      const store = await IndexStore.open(directory);
      await store.write([write(0, 1)], {});
      await store.close();
      const programs = directoryMade();
      const program = join(programs, "cairn-index-reader");
      if (text !== undefined) writeFileSync(program, text, { mode });
      const addon = process.env["CAIRN_ADDON"];
      process.env["CAIRN_ADDON"] = join(programs, "cairn.node");
      try {
        const probe = startProbe(directory);
        const outcome = await probe.verdict.catch((error: unknown) => error);
        probe.stop();
        return outcome;
      } finally {
        if (addon === undefined) delete process.env["CAIRN_ADDON"];
        else process.env["CAIRN_ADDON"] = addon;
      }
    };

    it.each([
      ["is not there", undefined, 0],
      ["may not be run", "#!/bin/sh\n", 0o600],
      [
        "lacks a library",
        "#!/bin/sh\necho error while loading shared libraries >&2\nexit 127\n",
        0o700,
      ],
      [
        "lacks a version of one",
        "#!/bin/sh\necho cairn-index-reader: version not found >&2\nexit 1\n",
        0o700,
      ],
    ] as const)(
      "since it %s, is not called damaged: the start is refused",
      async (_, text, mode) => {
        const outcome = await run(text, mode);
        expect(outcome).toBeInstanceOf(CairnError);
        expect(outcome).toMatchObject({ errorName: "addonMissing" });
        expect(String(outcome)).toMatch(/cairn-index-reader|shared libraries/);
      },
    );

    it("to its end is damaged, with the one line that it says", async () => {
      const outcome = await run("#!/bin/sh\necho why >&2\necho more >&2\nexit 3\n", 0o700);
      expect(outcome).toMatchObject({ found: true, damage: "why" });
    });

    it("without an answer that makes sense is damaged", async () => {
      const outcome = await run("#!/bin/sh\nhead -c 32 /dev/zero >&3\n", 0o700);
      expect(outcome).toMatchObject({ found: true, damage: "the reader's answer makes no sense" });
    });
  });

  it("is read or found damaged, wherever it is cut off", async () => {
    const directory = directoryMade();
    const store = await IndexStore.open(directory);
    await store.write(
      Array.from({ length: 200 }, (_, key) => write(key, 1)),
      {},
    );
    await store.close();
    const file = join(directory, "index", "data.mdb");
    const whole = readFileSync(file);
    for (const length of [0, 1, 4_095, 4_096, 8_192, 12_288, whole.length - 4_096]) {
      writeFileSync(file, whole);
      truncateSync(file, length);
      const { verdict } = await verdictOf(directory);
      expect(verdict.damage, `${length} of ${whole.length}`).toBeDefined();
    }
    writeFileSync(file, whole);
    expect((await verdictOf(directory)).verdict.damage).toBeUndefined();
  });

  it("with zeroed, random or foreign pages never ends anything but the child", async () => {
    const directory = directoryMade();
    const store = await IndexStore.open(directory);
    await store.write(
      Array.from({ length: 500 }, (_, key) => write(key, 1)),
      {},
    );
    await store.close();
    const file = join(directory, "index", "data.mdb");
    const whole = readFileSync(file);
    const pages = whole.length / 4_096;
    const damages: ((bytes: Buffer) => void)[] = [
      (bytes) => bytes.fill(0, 0, 8_192),
      (bytes) => bytes.fill(0xff, 0, 8_192),
      (bytes) => bytes.fill(0, 8_192),
      ...Array.from({ length: 12 }, (_, i) => (bytes: Buffer) => {
        const at = Math.floor(((i + 1) * pages) / 13) * 4_096;
        bytes.fill(i * 21, at, at + 4_096);
      }),
    ];
    for (const damage of damages) {
      const bytes = Buffer.from(whole);
      damage(bytes);
      writeFileSync(file, bytes);
      const { probe, verdict } = await verdictOf(directory);
      if (verdict.damage !== undefined) continue;
      for (const { key, generation } of recordsOf(probe)) {
        expect([key, generation]).toEqual([[1, 2, 3, 4, 5, 6, 7, 8], 1]);
      }
    }
    expect(setIndexAside(directory, "now")).toBe(true);
    expect(statSync(join(directory, "index.damaged-now")).isDirectory()).toBe(true);
    expect(setIndexAside(directory, "later")).toBe(false);
  });

  // lmdb itself would end the process at each of these.
  it.each([
    ["zeros", (folder: string) => writeFileSync(join(folder, "data.mdb"), Buffer.alloc(8_192))],
    ["cut off", (folder: string) => truncateSync(join(folder, "data.mdb"), 4_096)],
    [
      "a folder",
      (folder: string) => {
        rmSync(join(folder, "data.mdb"));
        mkdirSync(join(folder, "data.mdb"));
      },
    ],
  ])(
    "that is %s is refused by an error, and counts as no start that died",
    async (_what, damage) => {
      const directory = directoryMade();
      const store = await IndexStore.open(directory);
      await store.write([write(1, 1)], {});
      await store.close();
      damage(join(directory, "index"));
      await expect(IndexStore.open(directory)).rejects.toThrow(/mdb/);
      expect(opensOf(directory)).toBe(0);
      setIndexAside(directory, "bad");
      await (await IndexStore.open(directory)).close();
    },
  );

  it("killed in the middle of commits gives back every page that was acknowledged", async () => {
    for (let round = 0; round < 4; round++) {
      const directory = directoryMade();
      const acknowledged = await killedWriter(directory, 20 + round * 35);
      const { probe, verdict } = await verdictOf(directory);
      expect(verdict).toMatchObject({ damage: undefined, badPages: [] });
      const found = new Map(recordsOf(probe).map(({ slot, generation }) => [slot, generation]));
      for (const [slot, generation] of acknowledged) {
        expect(found.get(slot)).toBeGreaterThanOrEqual(generation);
      }
      expect(acknowledged.size).toBeGreaterThan(0);
    }
  }, 120_000);
});

/** Runs writer-child.ts until it has acknowledged `lines` pages, then kills it; slot → generation, as it said. */
async function killedWriter(directory: string, lines: number): Promise<Map<number, number>> {
  const script = new URL("writer-child.ts", import.meta.url).pathname;
  const child: ChildProcess = spawn(process.execPath, ["--import", "tsx", script, directory], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let text = "";
  child.stdout!.on("data", (chunk: Buffer) => {
    text += chunk.toString();
    if (text.split("\n").length > lines) child.kill("SIGKILL");
  });
  await new Promise((resolve) => {
    child.once("close", resolve);
  });
  const acknowledged = new Map<number, number>();
  for (const line of text.split("\n").slice(0, -1)) {
    const [key = 0, generation = 0] = line.split(" ").map(Number);
    acknowledged.set(key * PAGE_SLOTS, generation);
  }
  return acknowledged;
}
