/** Sealed chunks through a store and back, by the real addon and a real key file: one suite for each kind of store. */
import { createDecipheriv } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  DISK_HEADER_BYTES,
  DISK_VERSION_OFFSET,
  SEAL_KEY_ID_OFFSET,
} from "../../../addon/binding.ts";
import { XorShift } from "../../../bench/ledger.ts";
import { RemoteRig } from "../../../bench/remote-rig.ts";
import { chunkLayout, decodeHeader, isChunkName } from "../../../tiers/remote/chunk.ts";
import { KeyRing, keyIdOf } from "../../../tiers/remote/keys.ts";
import type { ObjectStore } from "../../../tiers/remote/object-store.ts";
import { KEY_BYTES, type RemoteSnapshot } from "../../../tiers/remote/types.ts";
import { LIMITS, listed } from "./contract.ts";

const BLOCK_BYTES = 65_536;
const CHUNK_BLOCKS = 4;
const CHUNKS = 10;
const TENANT = "team a";
const OLD = new Uint8Array(32).fill(1);
const NEW = new Uint8Array(32).fill(2);

export function line(tenant: string, label: string, key: Uint8Array): string {
  return `${tenant} ${label} ${Buffer.from(key).toString("base64")}\n`;
}

/** What a sealed block holds, by another implementation of the cipher. */
function opened(block: Buffer, key: Uint8Array): Buffer {
  const decipher = createDecipheriv("aes-256-gcm", key, block.subarray(164, 176));
  decipher.setAAD(block.subarray(0, 164));
  decipher.setAuthTag(block.subarray(176, DISK_HEADER_BYTES));
  const payload = block.subarray(DISK_HEADER_BYTES, DISK_HEADER_BYTES + BLOCK_BYTES);
  return Buffer.concat([decipher.update(payload), decipher.final()]);
}

/** Registers the suite over a store that `open` makes, and `another` over the same content. */
export function sealingSuite(
  open: () => Promise<{ readonly store: ObjectStore; readonly another: ObjectStore }>,
  end: () => Promise<void>,
): void {
  let directory: string;
  let store: ObjectStore;
  let keys: KeyRing;
  let rig: RemoteRig;
  const lines: string[] = [];

  beforeAll(async () => {
    const stores = await open();
    store = stores.another;
    directory = await mkdtemp(join(tmpdir(), "cairn-keys-"));
    const source = { file: join(directory, "keys") };
    keys = new KeyRing({ source, refreshMs: 3_600_000, log: (one) => lines.push(one) });
    const shape = { blockBytes: BLOCK_BYTES, chunkBlocks: CHUNK_BLOCKS, chunks: CHUNKS };
    const bounds = { concurrency: 3, stagingBytes: 2 ** 22 };
    rig = new RemoteRig({ ...shape, ...bounds, sealer: keys, tenant: TENANT }, stores.store);
    await rig.refill();
  });
  afterAll(async () => {
    await rig.close();
    await keys.close();
    await store.close();
    await rm(directory, { recursive: true });
    await end();
  });

  async function setKeys(text: string): Promise<void> {
    await writeFile(join(directory, "keys"), text, { mode: 0o600 });
    expect(await keys.refresh()).toBe(true);
  }

  /** Body of the chunk's object, whose name ends with its last key. */
  async function objectOf(index: number): Promise<{ name: string; bytes: Buffer }> {
    const last = Buffer.from(rig.chunk(index).keys.subarray(-KEY_BYTES)).toString("hex");
    const entry = (await listed(store, "")).find(({ name }) => name.endsWith(last));
    if (entry === undefined) throw new Error("the object is stored");
    const bytes = Buffer.alloc(rig.objectBytes);
    expect(await store.get(entry.name, 0, bytes, LIMITS)).toMatchObject({ ok: true });
    return { name: entry.name, bytes };
  }

  async function replace(index: number, change: (body: Buffer) => void): Promise<void> {
    const { name, bytes } = await objectOf(index);
    change(bytes);
    expect(await store.delete(name, LIMITS)).toMatchObject({ ok: true });
    expect(await store.put(name, bytes, LIMITS)).toEqual({ ok: true, value: "stored" });
  }

  /** What a fetch of the chunk adds to the counters. */
  async function fetched(index: number): Promise<{ failed: number } & Partial<RemoteSnapshot>> {
    const before = rig.tier.snapshot();
    const failed = await rig.fetch(index);
    const after = rig.tier.snapshot();
    const added = (name: keyof typeof COUNTED): number => after[name] - before[name];
    return {
      failed,
      corruptBlocks: added("corruptBlocks"),
      sealKeyMissing: added("sealKeyMissing"),
      unsealedObjects: added("unsealedObjects"),
      quarantined: added("quarantined"),
    };
  }

  const { headerBytes, strideBytes } = chunkLayout(
    {
      namespace: new Uint8Array(16),
      chunkBlocks: CHUNK_BLOCKS,
      payloadBytes: BLOCK_BYTES,
      shards: 1,
    },
    0,
  );
  const MISSING_KEY = { ...COUNTED, failed: CHUNK_BLOCKS, sealKeyMissing: 1 };

  test("without keys nothing is stored and nothing is found, until there are some", async () => {
    await expect(rig.upload(0)).rejects.toThrow("sealing");
    expect(await fetched(0)).toEqual(MISSING_KEY);
    await setKeys(line("another team", "old", OLD));
    await expect(rig.upload(0)).rejects.toThrow("sealing");
    expect(rig.tier.remotePrefix(rig.space, rig.chunk(0).keys, KEY_BYTES, 0).blocks).toBe(0);
    expect(await listed(store, "")).toEqual([]);
    expect(rig.tier.snapshot()).toMatchObject({ sealKeyMissing: 3, failedChunks: 2 });
  });

  test("chunks come back byte for byte, and no byte of a block stands in an object", async () => {
    await setKeys(line(TENANT, "old", OLD));
    const all = Array.from({ length: CHUNKS }, (_, index) => index);
    for (const index of all) await rig.upload(index);
    for (const index of all) expect(await fetched(index)).toEqual({ ...COUNTED, failed: 0 });
    expect(await rig.wrong()).toBe(0);
    const names = (await listed(store, "")).map(({ name }) => name);
    expect(names).toHaveLength(CHUNKS);
    expect(names.every((name) => name.startsWith("v1-gcm/") && isChunkName(name))).toBe(true);
    const plain = new Uint32Array(BLOCK_BYTES / 4);
    for (const index of all) {
      const { bytes } = await objectOf(index);
      expect(decodeHeader(bytes)?.chunk.firstDepth).toBe(index * CHUNK_BLOCKS + 1);
      for (let at = 0; at < CHUNK_BLOCKS; at += 1) {
        new XorShift(65_537 + index * CHUNK_BLOCKS + at + 1).fill(plain, 0, plain.length);
        const block = bytes.subarray(
          headerBytes + at * strideBytes,
          headerBytes + (at + 1) * strideBytes,
        );
        expect(opened(block, OLD).equals(Buffer.from(plain.buffer))).toBe(true);
        for (let word = 0; word < plain.length; word += 512) {
          const piece = Buffer.from(plain.buffer, word * 4, 8);
          expect(bytes.includes(piece), `chunk ${index}, block ${at}, word ${word}`).toBe(false);
        }
      }
    }
  });

  test("an old object is read by the old key while new ones are sealed by the new", async () => {
    await setKeys(line(TENANT, "new", NEW) + line(TENANT, "old", OLD));
    expect(await fetched(0)).toEqual({ ...COUNTED, failed: 0 });
    const { name } = await objectOf(1);
    expect(await store.delete(name, LIMITS)).toMatchObject({ ok: true });
    // The tier learns that it is gone, and may store it again.
    expect((await fetched(1)).failed).toBe(CHUNK_BLOCKS);
    await rig.upload(1);
    expect(await fetched(1)).toEqual({ ...COUNTED, failed: 0 });
    const ids = await Promise.all([objectOf(0), objectOf(1)]);
    const idAt = headerBytes + SEAL_KEY_ID_OFFSET;
    const seen = ids.map(({ bytes }) => Uint8Array.from(bytes.subarray(idAt, idAt + 16)));
    expect(seen).toEqual([keyIdOf(TENANT, "old", OLD), keyIdOf(TENANT, "new", NEW)]);
    expect(await rig.wrong()).toBe(0);
  });

  test("a key that is gone, another tenant's or another under its label is a miss; the object stays", async () => {
    const others = [
      line(TENANT, "new", NEW),
      line(TENANT, "new", NEW) + line("another team", "old", OLD),
      line(TENANT, "old", NEW),
    ];
    for (const [at, text] of others.entries()) {
      await setKeys(text);
      expect(await fetched(2 + at), text).toEqual(MISSING_KEY);
      await objectOf(2 + at);
    }
    await setKeys(line(TENANT, "old", OLD));
    expect(lines).toEqual([]);
  });

  test("flipped bits, swapped blocks and stripped seals are misses, each counted", async () => {
    const block = (body: Buffer, at: number): Buffer =>
      body.subarray(headerBytes + at * strideBytes, headerBytes + (at + 1) * strideBytes);
    await replace(5, (body) => {
      for (let at = 0; at < CHUNK_BLOCKS; at += 1) {
        const bytes = block(body, at);
        bytes[192 + at * 9_001] = (bytes[192 + at * 9_001] ?? 0) ^ (1 << at);
      }
    });
    const damaged = {
      ...COUNTED,
      failed: CHUNK_BLOCKS,
      corruptBlocks: CHUNK_BLOCKS,
      quarantined: 1,
    };
    expect(await fetched(5)).toEqual(damaged);
    await replace(6, (body) => {
      const first = Buffer.from(block(body, 1));
      block(body, 2).copy(body, headerBytes + strideBytes);
      first.copy(body, headerBytes + 2 * strideBytes);
    });
    expect(await fetched(6)).toEqual({ ...damaged, failed: 2, corruptBlocks: 2 });
    const strip = (bytes: Buffer): void => {
      bytes.writeUInt32LE(1, DISK_VERSION_OFFSET);
      bytes.fill(0, SEAL_KEY_ID_OFFSET, DISK_VERSION_OFFSET);
    };
    await replace(7, (body) => strip(block(body, 0)));
    expect(await fetched(7)).toEqual({
      ...COUNTED,
      failed: CHUNK_BLOCKS,
      unsealedObjects: 1,
      quarantined: 1,
    });
    await replace(8, (body) => strip(block(body, 3)));
    expect(await fetched(8)).toEqual({ ...damaged, failed: 1, corruptBlocks: 1 });
    expect(await fetched(9)).toEqual({ ...COUNTED, failed: 0 });
  });
}

const COUNTED = { corruptBlocks: 0, sealKeyMissing: 0, unsealedObjects: 0, quarantined: 0 };
