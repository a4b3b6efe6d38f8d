/** The remote tier on the real addon: EXPORT and IMPORT by the copy threads, staging memory seen from both sides. */
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { RemoteRig } from "../../../bench/remote-rig.ts";
import { decodeHeader } from "../../../tiers/remote/chunk.ts";
import { SharedDirectory } from "../../../tiers/remote/shared-directory.ts";

const BLOCK_BYTES = 65_536;
const CHUNK_BLOCKS = 4;
const CHUNKS = 6;

let directory: string;
let rig: RemoteRig;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "cairn-remote-"));
  const shape = { blockBytes: BLOCK_BYTES, chunkBlocks: CHUNK_BLOCKS, chunks: CHUNKS };
  const bounds = { concurrency: 3, stagingBytes: 2 ** 22 };
  rig = new RemoteRig({ ...shape, ...bounds }, new SharedDirectory({ directory }));
  await rig.refill();
});
afterAll(async () => {
  await rig.close();
  await rm(directory, { recursive: true });
});

async function objects(): Promise<string[]> {
  const found = await readdir(directory, { recursive: true });
  return found.filter((path) => path.endsWith(".chunk")).map((path) => join(directory, path));
}

const all = Array.from({ length: CHUNKS }, (_, index) => index);

test("blocks go out of one half of the arena, through a store, into the other, byte for byte", async () => {
  await Promise.all(all.map((index) => rig.upload(index)));
  expect(await objects()).toHaveLength(CHUNKS);
  const failed = await Promise.all(all.map((index) => rig.fetch(index)));
  expect(failed).toEqual(all.map(() => 0));
  expect(await rig.wrong()).toBe(0);
  const { storedChunks, fetchedBlocks, stagingUsedBytes } = rig.tier.snapshot();
  expect([storedChunks, fetchedBlocks, stagingUsedBytes]).toEqual([
    CHUNKS,
    CHUNKS * CHUNK_BLOCKS,
    0,
  ]);
});

test("an object tells by itself what it holds", async () => {
  const headers = await Promise.all(
    (await objects()).map(async (path) => decodeHeader(await readFile(path))),
  );
  const depths = headers.map((header) => header?.chunk.firstDepth ?? 0);
  expect(depths.toSorted((a, b) => a - b)).toEqual(all.map((index) => index * CHUNK_BLOCKS + 1));
  expect(headers.every((header) => header?.layout.objectBytes === rig.objectBytes)).toBe(true);
});

test("one flipped bit in each of 20 stored blocks: 20 misses, none of them served, the rest unharmed", async () => {
  const paths = await objects();
  let flipped = 0;
  for (const path of paths) {
    const bytes = await readFile(path);
    const header = decodeHeader(bytes);
    if (header === undefined) throw new Error("an object has a header");
    for (let block = 0; block < CHUNK_BLOCKS && flipped < 20; block += 1) {
      const { headerBytes, strideBytes } = header.layout;
      // Anywhere in the payload, or in the block's key.
      const at = flipped % 5 === 4 ? 70 : 192 + ((flipped * 7_919) % BLOCK_BYTES);
      const place = headerBytes + block * strideBytes + at;
      bytes[place] = (bytes[place] ?? 0) ^ (1 << (flipped % 8));
      flipped += 1;
    }
    await writeFile(path, bytes);
  }
  expect(flipped).toBe(20);
  const before = rig.tier.snapshot().corruptBlocks;
  const failed = await Promise.all(all.map((index) => rig.fetch(index)));
  expect(failed.reduce((sum, one) => sum + one, 0)).toBe(20);
  expect(rig.tier.snapshot().corruptBlocks - before).toBe(20);
  // A damaged object is not asked again, though four of its blocks may be sound.
  expect(rig.tier.snapshot().quarantined).toBe(5);
  expect(await rig.fetch(0)).toBeGreaterThan(0);
});
