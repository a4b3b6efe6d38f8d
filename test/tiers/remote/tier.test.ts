/** The remote tier over a shared directory: two nodes, what one stores the other reads; and what may be wrong. */
import { mkdtemp, readdir, readFile, rm, truncate, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { DISK_HEADER_BYTES, ITEM } from "../../../addon/binding.ts";
import { chunkLayout } from "../../../tiers/remote/chunk.ts";
import { PRIORITY } from "../../../tiers/remote/index.ts";
import { failure } from "../../../tiers/remote/object-store.ts";
import { SharedDirectory } from "../../../tiers/remote/shared-directory.ts";
import type { RemoteHint, RemoteTierOptions } from "../../../tiers/remote/types.ts";
import { LIMITS, listed } from "./contract.ts";
import { chunkOf, keysOf, SPACE, type TestTier, tierOver } from "./fixture.ts";
import { PATIENT } from "../../harness/eventually.ts";

let directory: string;
const tiers: TestTier[] = [];

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "cairn-remote-"));
});
afterEach(async () => {
  for (const one of tiers.splice(0)) await one.tier.close();
  await rm(directory, { recursive: true });
});

function node(options: Partial<RemoteTierOptions> = {}): TestTier {
  const one = tierOver(new SharedDirectory({ directory }), options);
  tiers.push(one);
  return one;
}

async function storeChunk(on: TestTier, seed: number, index: number, shard = 0, space = SPACE) {
  const chunk = chunkOf(seed, index, space, shard);
  const items = on.dram.items(seed, chunk, 0, space.chunkBlocks, true);
  return on.tier.upload(chunk, items, LIMITS);
}

async function fetchBlocks(on: TestTier, seed: number, index: number, from = 0, to = 4) {
  const chunk = chunkOf(seed, index);
  const items = on.dram.items(seed, chunk, from, to, false);
  const result = await on.tier.fetch(chunk, from, items, PRIORITY.DEMAND, LIMITS);
  return { result, whole: on.dram.holds(items, seed, chunk, from) };
}

/** Path of the only object. */
async function objectPath(): Promise<string> {
  const files = await readdir(directory, { recursive: true });
  const [found] = files.filter((file) => file.endsWith(".chunk"));
  return join(directory, found ?? "");
}

async function damage(at: number, bit: number): Promise<void> {
  const path = await objectPath();
  const bytes = await readFile(path);
  bytes[at] = (bytes[at] ?? 0) ^ (1 << bit);
  await writeFile(path, bytes);
}

describe("between two nodes", () => {
  test("what one stores the other reads, whole or in part", async () => {
    const [a, b] = [node(), node()];
    const layout = chunkLayout(SPACE, 0);
    expect(await storeChunk(a, 1, 0)).toEqual({ outcome: "stored", bytes: layout.objectBytes });
    expect(await storeChunk(a, 1, 1)).toMatchObject({ outcome: "stored" });
    for (const [from, to] of [
      [0, 4],
      [0, 1],
      [1, 4],
      [3, 4],
    ] as const) {
      const { result, whole } = await fetchBlocks(b, 1, 1, from, to);
      expect([...result.statuses]).toEqual(new Array(to - from).fill(ITEM.OK));
      expect([result.fault, whole]).toEqual([undefined, true]);
    }
    expect(b.tier.snapshot()).toMatchObject({ fetchedBlocks: 9, failedBlocks: 0, transfers: 0 });
  });

  test("a chunk is stored once, however many nodes offer it at once", async () => {
    const nodes = [node(), node(), node(), node()];
    const results = await Promise.all(nodes.map((one) => storeChunk(one, 2, 0)));
    expect(results.filter((one) => one.outcome === "stored")).toHaveLength(1);
    expect(results.filter((one) => one.outcome === "present")).toHaveLength(3);
    expect(await listed(new SharedDirectory({ directory }), "")).toHaveLength(1);
  });

  test("a node that knows of an object copies nothing for it", async () => {
    const a = node();
    await storeChunk(a, 1, 0);
    const exported = vi.spyOn(a.dram, "exportBlocks");
    expect(await storeChunk(a, 1, 0)).toEqual({ outcome: "present", bytes: 0 });
    expect(exported).not.toHaveBeenCalled();
  });

  test("objects are alike bit for bit, whatever stood in the staging memory", async () => {
    const [a, b] = [node(), node()];
    b.memory.fill(0xab);
    await storeChunk(a, 5, 3);
    const path = await objectPath();
    const first = await readFile(path);
    await rm(path);
    await storeChunk(b, 5, 3);
    expect(Buffer.compare(await readFile(path), first)).toBe(0);
  });

  test("the staging memory is given back after every call", async () => {
    const a = node();
    await Promise.all(Array.from({ length: 40 }, (_, at) => storeChunk(a, at, 0)));
    await Promise.all(Array.from({ length: 40 }, (_, at) => fetchBlocks(a, at, 0)));
    expect(a.tier.snapshot()).toMatchObject({ stagingUsedBytes: 0, transfers: 0, waiting: 0 });
    expect(a.dram.running).toBe(0);
  });
});

describe("the remote prefix", () => {
  const settled = async (on: TestTier, keys: Uint8Array, local = 0): Promise<number> => {
    let last = -1;
    await vi.waitUntil(
      () => {
        const now = on.tier.remotePrefix(SPACE, keys, 32, local).blocks;
        const same = now === last;
        last = now;
        return same && now > 0;
      },
      { ...PATIENT, interval: 50 },
    );
    return last;
  };

  test("is a miss where the question ends in an error, which is told", async () => {
    const faults: unknown[] = [];
    const store = new SharedDirectory({ directory });
    const [a, b] = [node(), tierOver(store, { fault: (error) => faults.push(error) })];
    tiers.push(b);
    await storeChunk(a, 1, 0);
    const head = vi.spyOn(store, "head").mockRejectedValue(new Error("never"));
    expect(b.tier.remotePrefix(SPACE, keysOf(1, 4), 32, 0).blocks).toBe(0);
    await vi.waitUntil(() => faults.length === 1, PATIENT);
    head.mockRestore();
    expect(await settled(b, keysOf(1, 4))).toBe(4);
  });

  test("is unknown at first, then what is stored: a multiple of a chunk's blocks", async () => {
    const [a, b] = [node(), node()];
    for (let index = 0; index < 6; index += 1) await storeChunk(a, 1, index);
    const keys = keysOf(1, 35);
    expect(b.tier.remotePrefix(SPACE, keys, 32, 0).blocks).toBe(0);
    expect(await settled(b, keys)).toBe(24);
    expect(b.tier.remotePrefix(SPACE, keys, 32, 23).blocks).toBe(24);
    expect(b.tier.remotePrefix(SPACE, keys, 32, 24).blocks).toBe(0);
    expect(b.tier.remotePrefix(SPACE, keys.subarray(0, 3 * 32), 32, 0).blocks).toBe(0);
  });

  test("says that the store is being asked, until it has answered", async () => {
    const [a, b] = [node(), node()];
    await storeChunk(a, 1, 0);
    const ask = (first: number): RemoteHint => b.tier.remotePrefix(SPACE, keysOf(first, 4), 32, 0);
    expect(ask(1)).toEqual({ blocks: 0, asking: true });
    await vi.waitUntil(() => !ask(1).asking, PATIENT);
    expect(ask(1)).toEqual({ blocks: 4, asking: false });
    // Of what nobody stored the answer is no, and stands as long as the cache keeps it.
    expect(ask(99)).toEqual({ blocks: 0, asking: true });
    await vi.waitUntil(() => !ask(99).asking, PATIENT);
    expect(ask(99)).toEqual({ blocks: 0, asking: false });
  });

  test("the node that stored it knows at once, and asks nothing", async () => {
    const a = node();
    for (let index = 0; index < 3; index += 1) await storeChunk(a, 1, index);
    const before = a.tier.snapshot().requests.ok;
    expect(a.tier.remotePrefix(SPACE, keysOf(1, 12), 32, 0).blocks).toBe(12);
    expect(a.tier.snapshot().requests.ok).toBe(before);
  });

  test("counts a chunk only when every shard of it exists", async () => {
    const two = { ...SPACE, shards: 2 };
    const [a, b] = [
      node(),
      node({ existence: { entriesMax: 9, presentMs: 1, absentMs: 0, probesMax: 9 } }),
    ];
    await storeChunk(a, 1, 0, 0, two);
    await storeChunk(a, 1, 0, 1, two);
    await storeChunk(a, 1, 1, 0, two);
    expect(a.tier.remotePrefix(two, keysOf(1, 4), 32, 0).blocks).toBe(4);
    // The second shard of the second chunk was never stored.
    for (let round = 0; round < 5; round += 1) {
      expect(b.tier.remotePrefix(two, keysOf(1, 8), 32, 4).blocks).toBe(0);
      await new Promise((resolve) => {
        setTimeout(resolve, 5);
      });
    }
  });

  test("short keys are the same keys", async () => {
    const a = node();
    const chunk = chunkOf(1, 0);
    const keys = new Uint8Array(4 * 32);
    for (let at = 0; at < 4; at += 1) keys.set(chunk.keys.subarray(at * 32, at * 32 + 8), at * 32);
    const short = { ...chunk, keys };
    await a.tier.upload(short, a.dram.items(1, chunk, 0, 4, true), LIMITS);
    const packed = Buffer.concat([0, 1, 2, 3].map((at) => keys.subarray(at * 32, at * 32 + 8)));
    expect(a.tier.remotePrefix(SPACE, packed, 8, 0).blocks).toBe(4);
  });
});

describe("what is wrong in the store", () => {
  const { headerBytes, strideBytes, objectBytes } = chunkLayout(SPACE, 0);

  test("a flipped bit anywhere is a miss of the blocks it touches, counted, never served", async () => {
    const places = [
      [0, "header"],
      [100, "header"],
      [4_000, "header"],
      [headerBytes, "block 0"],
      [headerBytes + DISK_HEADER_BYTES, "block 0"],
      [headerBytes + 2 * strideBytes + DISK_HEADER_BYTES + 7_000, "block 2"],
    ] as const;
    for (const [at, what] of places) {
      const [a, b] = [node(), node()];
      await storeChunk(a, 9, 0);
      await damage(at, 3);
      const { result } = await fetchBlocks(b, 9, 0);
      const bad = [...result.statuses].map((status) => status !== ITEM.OK);
      if (what === "header") expect(bad).toEqual([true, true, true, true]);
      else expect(bad).toEqual([0, 1, 2, 3].map((block) => what === `block ${block}`));
      const { corruptObjects, corruptBlocks, quarantined } = b.tier.snapshot();
      expect(corruptObjects + corruptBlocks, `${what} at ${at}`).toBe(1);
      expect(quarantined).toBe(1);
      // It is not read again, and not counted as stored.
      expect((await fetchBlocks(b, 9, 0)).result.fault).toBe("quarantined");
      expect(await storeChunk(b, 9, 0)).toEqual({ outcome: "failed", fault: "quarantined" });
      expect(b.tier.remotePrefix(SPACE, keysOf(9, 4), 32, 0).blocks).toBe(0);
      await rm(await objectPath());
    }
  });

  test("where it is configured, a bad object is deleted and a good one takes its name", async () => {
    const [a, b] = [node(), node({ deleteCorrupt: true })];
    await storeChunk(a, 1, 0);
    await damage(headerBytes + DISK_HEADER_BYTES + 5, 0);
    await fetchBlocks(b, 1, 0);
    await vi.waitUntil(() => b.tier.snapshot().quarantined === 0, PATIENT);
    expect(await listed(new SharedDirectory({ directory }), "")).toEqual([]);
    const c = node();
    expect(await storeChunk(c, 1, 0)).toMatchObject({ outcome: "stored" });
    expect((await fetchBlocks(c, 1, 0)).whole).toBe(true);
  });

  test("a chain that is not the object's is a miss and harms the object for nobody", async () => {
    const [a, b] = [node(), node({ deleteCorrupt: true })];
    await storeChunk(a, 1, 0);
    const chunk = chunkOf(1, 0);
    const keys = chunk.keys.slice();
    keys.fill(7, 0, 32);
    for (const wrong of [
      { ...chunk, keys },
      { ...chunk, firstDepth: chunk.firstDepth + 4 },
    ]) {
      const items = b.dram.items(1, chunk, 0, 4, false);
      const { statuses } = await b.tier.fetch(wrong, 0, items, PRIORITY.DEMAND, LIMITS);
      expect(statuses.includes(ITEM.OK)).toBe(false);
    }
    expect(b.tier.snapshot()).toMatchObject({ quarantined: 0, misplacedObjects: 0 });
    expect(await listed(new SharedDirectory({ directory }), "")).toHaveLength(1);
    expect((await fetchBlocks(b, 1, 0)).whole).toBe(true);
  });

  test("another chunk's object under this name is a miss, and told from a corrupt one", async () => {
    const [a, b] = [node(), node()];
    await storeChunk(a, 1, 0);
    const good = await readFile(await objectPath());
    await rm(await objectPath());
    await storeChunk(a, 2, 0);
    await writeFile(await objectPath(), good);
    expect((await fetchBlocks(b, 2, 0)).result.statuses.includes(ITEM.OK)).toBe(false);
    expect(b.tier.snapshot()).toMatchObject({ misplacedObjects: 1, corruptObjects: 0 });
    // A read that leaves the header out finds it by the blocks' own identity.
    const c = node();
    const { result } = await fetchBlocks(c, 2, 0, 1, 3);
    expect([...result.statuses]).toEqual([ITEM.IDENTITY, ITEM.IDENTITY]);
  });

  test("an object that is too short or too long is a miss", async () => {
    for (const length of [0, 100, headerBytes, objectBytes - 1, objectBytes + 1]) {
      const [a, b] = [node(), node()];
      await storeChunk(a, 3, 0);
      await truncate(await objectPath(), length);
      const { result } = await fetchBlocks(b, 3, 0);
      expect(result.statuses.includes(ITEM.OK)).toBe(false);
      expect(b.tier.snapshot().corruptObjects, `${length} bytes`).toBe(1);
      await rm(await objectPath());
    }
  });

  test("a missing object is a miss that is remembered", async () => {
    const a = node();
    expect((await fetchBlocks(a, 1, 0)).result.fault).toBe("missing");
    const before = a.tier.snapshot().requests.missing;
    expect((await fetchBlocks(a, 1, 0)).result.fault).toBe("missing");
    expect(a.tier.snapshot().requests.missing).toBe(before);
  });

  test("a chunk whose blocks left DRAM is not stored", async () => {
    const a = node();
    const chunk = chunkOf(1, 0);
    const items = a.dram.items(1, chunk, 0, 4, true);
    a.dram.slots.delete(items.slots[2] ?? 0);
    expect(await a.tier.upload(chunk, items, LIMITS)).toEqual({
      outcome: "failed",
      fault: "source",
    });
    expect(await listed(new SharedDirectory({ directory }), "")).toEqual([]);
    expect(a.tier.snapshot()).toMatchObject({ failedChunks: 1, stagingUsedBytes: 0 });
  });

  test("a directory that is gone fences the tier, and its return brings it back", async () => {
    const a = node({ guard: { breakerFaultsMax: 2, breakerOpenMs: 10, attemptsMax: 1 } });
    await storeChunk(a, 1, 0);
    await rm(directory, { recursive: true });
    const known = [11, 12, 13, 14];
    for (const seed of known) await storeChunk(a, seed, 0);
    expect(a.tier.health).toBe("fenced");
    expect(a.tier.mayUpload(SPACE)).toBe(false);
    expect((await fetchBlocks(a, 50, 0)).result.statuses.includes(ITEM.OK)).toBe(false);
    const { mkdir } = await import("node:fs/promises");
    await mkdir(directory);
    await vi.waitUntil(() => a.tier.health === "ok", PATIENT);
    expect(await storeChunk(a, 15, 0)).toMatchObject({ outcome: "stored" });
  });

  test("a store that takes no objects is read from, nothing is copied for it, and it comes back by itself", async () => {
    const store = new SharedDirectory({ directory });
    const a = tierOver(store, { guard: { writeProbeMs: 20, writeProbeMsMax: 40 } });
    tiers.push(a);
    await storeChunk(a, 1, 0);
    const put = vi.spyOn(store, "put").mockResolvedValue(failure("refused", "EROFS"));
    expect(await storeChunk(a, 2, 0)).toEqual({ outcome: "failed", fault: "refused" });
    expect([a.tier.health, a.tier.mayUpload(SPACE)]).toEqual(["readOnly", false]);
    const exported = vi.spyOn(a.dram, "exportBlocks");
    expect(await storeChunk(a, 2, 0)).toEqual({ outcome: "failed", fault: "open" });
    expect(exported).not.toHaveBeenCalled();
    expect((await fetchBlocks(a, 1, 0)).whole).toBe(true);
    expect(a.tier.remotePrefix(SPACE, keysOf(1, 4), 32, 0).blocks).toBe(4);
    await vi.waitUntil(() => a.tier.snapshot().writeProbesFailed >= 2, { timeout: 20_000 });
    expect(a.tier.health).toBe("readOnly");
    put.mockRestore();
    await vi.waitUntil(() => a.tier.health === "ok", { timeout: 20_000 });
    expect(await storeChunk(a, 2, 0)).toMatchObject({ outcome: "stored" });
    // The probe has removed what it stored.
    const probes = async () => listed(store, `v1/${"0".repeat(32)}`);
    await vi.waitUntil(async () => (await probes()).length === 0, { timeout: 20_000 });
    expect(a.tier.snapshot()).toMatchObject({ readOnlyTurns: 1, breakerOpened: 0 });
  });
});

describe("collection", () => {
  const DAY = 86_400_000;
  const garbage = { intervalMs: DAY, ageMsMax: DAY, bytesMax: 0, graceMs: 0, parts: 1 };

  /** Makes the only object so old. */
  async function ageOf(ms: number): Promise<void> {
    const then = new Date(Date.now() - ms);
    await utimes(await objectPath(), then, then);
  }

  test("removes what is too old, and the node knows at once that it is gone", async () => {
    const a = node({ garbage });
    await storeChunk(a, 1, 0);
    await ageOf(2 * DAY);
    await storeChunk(a, 2, 0);
    expect(await a.tier.collect()).toMatchObject({ objects: 2, removed: 1, fault: undefined });
    expect(a.tier.snapshot()).toMatchObject({ collected: 1 });
    expect((await fetchBlocks(a, 1, 0)).result.fault).toBe("missing");
    expect((await fetchBlocks(a, 2, 0)).whole).toBe(true);
    expect(await storeChunk(a, 1, 0)).toMatchObject({ outcome: "stored" });
  });

  test("removes sealed objects of other nodes, too", async () => {
    const a = node({ garbage });
    await storeChunk(a, 1, 0);
    const store = new SharedDirectory({ directory });
    const name = (await listed(store, ""))[0]?.name ?? "";
    expect(await store.delete(name, LIMITS)).toMatchObject({ ok: true });
    const sealed = name.replace(/^v1\//, "v1-gcm/");
    expect(await store.put(sealed, new Uint8Array(9), LIMITS)).toMatchObject({ value: "stored" });
    await ageOf(2 * DAY);
    expect(await a.tier.collect()).toMatchObject({ objects: 1, removed: 1 });
  });

  test("keeps the newest of what exceeds its bytes", async () => {
    const { objectBytes } = chunkLayout(SPACE, 0);
    const a = node({ garbage: { ...garbage, ageMsMax: 0, bytesMax: objectBytes } });
    await storeChunk(a, 1, 0);
    await ageOf(DAY / 2);
    await storeChunk(a, 2, 0);
    expect(await a.tier.collect()).toMatchObject({ removed: 1, removedBytes: objectBytes });
    expect((await fetchBlocks(a, 2, 0)).whole).toBe(true);
  });

  test("is not done twice at once, nor where none is configured, nor by timer before its time", async () => {
    const a = node({ garbage });
    await storeChunk(a, 1, 0);
    const both = await Promise.all([a.tier.collect(), a.tier.collect()]);
    expect(both.map((report) => report?.objects)).toEqual([1, undefined]);
    expect(await node().tier.collect()).toBeUndefined();
    expect(a.tier.snapshot()).toMatchObject({ collected: 0 });
  });

  test("runs by itself", async () => {
    const a = node({ garbage: { ...garbage, intervalMs: 5 } });
    await storeChunk(a, 1, 0);
    await ageOf(2 * DAY);
    await vi.waitFor(() => expect(a.tier.snapshot().collected).toBe(1), PATIENT);
  });
});

test("closing cancels what waits and leaves the memory alone afterwards", async () => {
  const a = tierOver(new SharedDirectory({ directory }), { transfersMax: 1 });
  const all = Array.from({ length: 10 }, (_, at) => storeChunk(a, at, 0));
  await a.tier.close();
  const results = await Promise.all(all);
  expect(results.some((one) => one.outcome === "failed" && one.fault === "cancelled")).toBe(true);
  expect(a.dram.running).toBe(0);
  expect(a.tier.snapshot().transfers).toBe(0);
});
