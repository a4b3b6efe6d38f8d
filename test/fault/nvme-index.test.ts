/** The index, the formats and the lock of a disk's directory: damaged, old, foreign, or taken. */
import {
  cpSync,
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import {
  ALWAYS,
  chainsOf,
  DISK_FAULT,
  DiskNode,
  flipByte,
  putBytes,
  withDiskNode,
} from "../harness/disk-node.ts";
import { eventually } from "../harness/eventually.ts";
import { LONG } from "../harness/scale.ts";

const CHAINS = 20;
const BLOCKS = 8;
const ALL = CHAINS * BLOCKS;
const chains = chainsOf("index", CHAINS, BLOCKS);
const whole = { hit: ALL, landed: ALL, wrong: 0, names: [] };

const BUILT_ADDON = new URL("../../build/Release/cairn.node", import.meta.url).pathname;

/** Behind the magic, in the directory's identity and in segment headers; the hash covers all before it. */
const VERSION_AT = 8;
const HASH_AT = { "directory.cairn": 40, "segment-000000.cairn": 48 } as const;
const { XXHash3 } = createRequire(import.meta.url)("xxhash-addon") as {
  readonly XXHash3: { hash(bytes: Buffer): Buffer };
};

/** Changes the version as another version of cairn would have written it, or back. */
function otherVersion(node: DiskNode, name: keyof typeof HASH_AT): void {
  const file = join(node.disk, name);
  flipByte(file, VERSION_AT, 0x40);
  const covered = readFileSync(file).subarray(0, HASH_AT[name]);
  // The package answers in network order.
  putBytes(file, HASH_AT[name], XXHash3.hash(covered).reverse());
}

const dataFile = (node: DiskNode): string => join(node.disk, "index", "data.mdb");

/** Where these bytes stand in a file; LMDB leaves older copies of a page behind. */
function offsetsOf(file: string, wanted: Uint8Array): number[] {
  const bytes = readFileSync(file);
  const found: number[] = [];
  for (let at = bytes.indexOf(wanted); at >= 0; at = bytes.indexOf(wanted, at + 1)) found.push(at);
  if (found.length === 0) throw new Error("the bytes stand in the file");
  return found;
}

interface Damage {
  readonly what: string;
  readonly hurt: (node: DiskNode) => void;
  /** The index as a whole is given up. */
  readonly aside: boolean;
}

const QUICK: readonly Damage[] = [
  { what: "zeroed", hurt: (node) => zero(dataFile(node)), aside: true },
  {
    what: "cut in half",
    hurt: (node) => truncateSync(dataFile(node), statSync(dataFile(node)).size / 2),
    aside: true,
  },
  {
    what: "deleted",
    hurt: (node) => rmSync(join(node.disk, "index"), { recursive: true }),
    aside: false,
  },
];
const MORE: readonly Damage[] = [
  { what: "empty", hurt: (node) => truncateSync(dataFile(node), 0), aside: true },
  {
    what: "garbage",
    hurt: (node) => writeFileSync(dataFile(node), Buffer.alloc(65_536, 0xa5)),
    aside: true,
  },
  {
    what: "garbage behind its two meta pages",
    hurt: (node) =>
      putBytes(dataFile(node), 8_192, Buffer.alloc(statSync(dataFile(node)).size - 8_192, 0x5a)),
    aside: true,
  },
  {
    what: "a directory's name",
    hurt: (node) => {
      rmSync(dataFile(node));
      cpSync(node.daemon.directory, dataFile(node), { recursive: true, filter: plain });
    },
    aside: true,
  },
];
const plain = (path: string): boolean => !path.endsWith(".sock");
const zero = (file: string): void => putBytes(file, 0, new Uint8Array(statSync(file).size));

describe("an index that is damaged", () => {
  it.each(LONG ? [...QUICK, ...MORE] : QUICK)(
    "$what: a probe sees it, the daemon serves at once and rebuilds every block from the headers",
    async ({ hurt, aside }) => {
      await withDiskNode({}, async (node) => {
        await node.daemon.launch();
        await node.storeDurably(chains);
        await node.killWithoutPool();
        hurt(node);
        await node.daemon.launch();
        const damaged = aside ? 1 : 0;
        await eventually("counted", async () => (await node.event("index_damaged")) === damaged);
        const names = readdirSync(node.disk).filter((name) => name.startsWith("index.damaged-"));
        expect(names).toHaveLength(aside ? 1 : 0);
        await node.visible(ALL);
        await eventually("all counted", async () => (await node.event("headers_rebuilt")) >= ALL);
        expect(await node.read(chains)).toEqual(whole);
        // What was rebuilt was indexed again: the next start needs no headers.
        await eventually("the index is whole", async () => (await node.event("commits")) > 0);
        await node.daemon.stop();
        rmSync(join(node.daemon.directory, "pool"), { recursive: true, force: true });
        await node.daemon.launch();
        expect(await node.event("headers_rebuilt")).toBe(0);
        expect(await node.read(chains)).toEqual(whole);
      });
    },
  );

  it("its reader is not built: the start is refused and says what to build, the index stays as it is", async () => {
    await withDiskNode({}, async (node) => {
      await node.daemon.launch();
      await node.storeDurably(chains);
      await node.daemon.stop();
      const before = readFileSync(dataFile(node));
      const addon = join(node.daemon.directory, "cairn.node");
      cpSync(process.env["CAIRN_ADDON"] ?? BUILT_ADDON, addon);
      node.daemon.environment = { CAIRN_ADDON: addon };
      expect(await node.daemon.failToStart()).toEqual({ code: 1, signal: null });
      expect(node.daemon.log()).toMatch(/cairn-index-reader[^]*build:addon/);
      expect(Buffer.compare(before, readFileSync(dataFile(node)))).toBe(0);
      node.daemon.environment = {};
      rmSync(join(node.daemon.directory, "pool"), { recursive: true, force: true });
      await node.daemon.launch();
      expect(await node.event("headers_rebuilt")).toBe(0);
      expect(await node.read(chains)).toEqual(whole);
    });
  });

  it("one byte of a block's entry flipped: its page is not believed, 32 slots at most are misses", async () => {
    await withDiskNode({}, async (node) => {
      await node.daemon.launch();
      await node.storeDurably(chains);
      await node.killWithoutPool();
      for (const at of offsetsOf(dataFile(node), chains[4]![5]!)) flipByte(dataFile(node), at + 7);
      await node.daemon.launch();
      await eventually(
        "the page is counted",
        async () => (await node.event("pages_dropped")) === 1,
      );
      const read = await node.read(chains);
      expect(read).toMatchObject({ landed: read.hit, wrong: 0, names: [] });
      // A chain that goes on into the next page loses what stands there, too.
      expect(read.hit).toBeGreaterThanOrEqual(ALL - 32 - 2 * BLOCKS);
      expect(read.hit).toBeLessThan(ALL);
      await node.store(chains);
      expect(await node.read(chains)).toEqual(whole);
    });
  });

  it("a write to it fails: nothing more counts as durable, and copies count again once it works", async () => {
    await withDiskNode({}, async (node) => {
      node.armFaults();
      await node.daemon.launch();
      const [durable, unlucky, later] = [chains.slice(0, 5), chains.slice(5, 8), chains.slice(8)];
      await node.storeDurably(durable);
      const before = await node.daemon.metric("writtenBackBlocks");
      node.fault(DISK_FAULT.INDEX, 1);
      node.fault(DISK_FAULT.FAIL_SYNC, ALWAYS);
      await node.daemon.counts("nvmeCommitFailures", undefined, () => node.store(unlucky));
      expect(await node.read(chains)).toMatchObject({
        hit: 8 * BLOCKS,
        landed: 8 * BLOCKS,
        wrong: 0,
      });
      expect(await node.daemon.metric("writtenBackBlocks")).toBe(before);
      node.fault(DISK_FAULT.FAIL_SYNC, 0);
      await node.health(0);
      await node.storeDurably(later);
      await node.restartWithoutPool();
      const read = await node.read([...durable, ...later]);
      expect(read).toEqual({ hit: 17 * BLOCKS, landed: 17 * BLOCKS, wrong: 0, names: [] });
      expect(await node.read(unlucky)).toMatchObject({ wrong: 0, names: [] });
    });
  });
});

describe("index and segments of different times", () => {
  /** A disk that `fresh` was stored to, and an index or segments of the time when it held `old` alone. */
  async function mixed(keep: "index" | "segments"): Promise<void> {
    const old = chainsOf("old", 40, BLOCKS);
    const fresh = chainsOf("fresh", 40, BLOCKS);
    const small = { capacityBytes: 8 * 2 ** 20, nvme: { segmentBytes: 2 ** 20 } };
    await withDiskNode(small, async (node) => {
      const copy = join(node.daemon.directory, "copy");
      await node.daemon.launch();
      await node.storeDurably(old);
      await node.daemon.stop("SIGKILL");
      cpSync(node.disk, copy, { recursive: true });
      await node.daemon.launch();
      await node.storeDurably(fresh);
      await node.killWithoutPool();
      const names = readdirSync(copy).filter((name) =>
        keep === "index" ? name === "index" : name.startsWith("segment-"),
      );
      for (const name of names) {
        rmSync(join(node.disk, name), { recursive: true });
        cpSync(join(copy, name), join(node.disk, name), { recursive: true });
      }
      await node.daemon.launch();
      const counted = async (): Promise<{ wrong: number; failed: number; landed: number }> => {
        const parts = [await node.read(old), await node.read(fresh)];
        const sum = (figure: (one: (typeof parts)[number]) => number): number =>
          parts.reduce((total, one) => total + figure(one), 0);
        return {
          wrong: sum(({ wrong }) => wrong),
          failed: sum(({ names: failed }) => failed.length),
          landed: sum(({ landed }) => landed),
        };
      };
      const first = await node.daemon.counts("nvmeIdentityItems", undefined, counted);
      expect(first.wrong).toBe(0);
      expect(first.failed).toBeGreaterThan(0);
      // What is the same in both times is served.
      expect(first.landed).toBeGreaterThan(0);
      // Nothing of it lingers: what failed is gone, and the disk takes blocks as before.
      for (let round = 0; round < 8; round++) {
        const { failed, wrong } = await counted();
        expect(wrong).toBe(0);
        if (failed === 0) break;
      }
      await node.store(chains);
      expect(await node.read(chains)).toMatchObject({ wrong: 0, names: [] });
    });
  }

  it("an index that is behind: what was overwritten since is a miss by its generation", async () => {
    await mixed("index");
  });

  it("an index that is ahead: what the disk does not hold yet is a miss by its generation", async () => {
    await mixed("segments");
  });
});

describe("formats and locks", () => {
  const files = ["directory.cairn", "segment-000000.cairn"] as const;

  it.each(files)(
    "another format version of %s: refused, and not a byte is changed",
    async (name) => {
      await withDiskNode({}, async (node) => {
        await node.daemon.launch();
        await node.storeDurably(chains.slice(0, 2));
        await node.daemon.stop();
        const file = join(node.disk, name);
        otherVersion(node, name);
        const before = readFileSync(file);
        expect(await node.daemon.failToStart()).toEqual({ code: 1, signal: null });
        expect(node.daemon.log()).toContain("has format version");
        expect(Buffer.compare(before, readFileSync(file))).toBe(0);
        otherVersion(node, name);
        await node.daemon.launch();
        expect(await node.read(chains.slice(0, 2))).toMatchObject({ landed: 2 * BLOCKS, wrong: 0 });
      });
    },
  );

  it("a flipped bit in a segment's version: that file is left alone, its blocks are misses, stores go on", async () => {
    await withDiskNode({}, async (node) => {
      await node.daemon.launch();
      await node.storeDurably(chains);
      await node.killWithoutPool();
      const file = join(node.disk, "segment-000000.cairn");
      flipByte(file, VERSION_AT, 0x40);
      const before = readFileSync(file);
      await node.daemon.launch();
      const read = await node.read(chains);
      expect(read).toMatchObject({ landed: read.hit, wrong: 0, names: [] });
      expect(read.hit).toBeLessThan(ALL);
      await node.store(chains);
      expect(await node.read(chains)).toEqual(whole);
      expect(Buffer.compare(before, readFileSync(file))).toBe(0);
    });
  });

  it("a second daemon on the same directory ends with directoryLocked; the first serves on", async () => {
    await withDiskNode({}, async (node) => {
      await node.daemon.launch();
      await node.storeDurably(chains);
      const second = new DiskNode({ disk: node.disk });
      try {
        expect(await second.daemon.failToStart()).toEqual({ code: 1, signal: null });
        expect(second.daemon.log()).toContain("is in use by another process");
      } finally {
        await second.remove();
      }
      expect(existsSync(node.disk)).toBe(true);
      await node.restartWithoutPool();
      expect(await node.read(chains)).toEqual(whole);
    });
  });
});
