/** Sealed blocks: known answers, the golden file, and every way in which one may be wrong. */
import { createCipheriv, createDecipheriv, createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  COPY,
  DISK_HEADER_BYTES,
  DISK_VERSION_OFFSET,
  ITEM,
  SEAL_KEY_ID_OFFSET,
  SEALED_FLAG,
  SLOT_HEADER,
} from "../../addon/binding.ts";
import { codeOf, Pump } from "./pump.ts";

const PAYLOAD_BYTES = 4_096;
const STRIDE_BYTES = 8_192;
const WINDOW_BYTES = 1 << 20;
const BLOCKS = 8;
/** Import targets lie behind the sources. */
const TARGET = 100;
const NONCE_OFFSET = 164;
const TAG_OFFSET = 176;
const GOLDEN = new URL("../golden/sealed-block.hex", import.meta.url);

const key = Uint8Array.from({ length: 32 }, (_, at) => at * 7);
const keyId = new TextEncoder().encode("2026-11\0\0\0\0\0abcd");
const pump = new Pump();
const { addon } = pump;
let arena: number;
let region: number;
let window: Buffer;
afterAll(() => pump.close());

/** What the blocks hold: patterns that would be seen in an object. */
function plain(block: number): Buffer {
  const text = `block ${block} says something that nobody else may read. `;
  return Buffer.alloc(PAYLOAD_BYTES, text);
}

beforeAll(async () => {
  ({ arena } = pump.openArena("sealing"));
  addon.arenaPutNamespace(arena, 0, new Uint8Array(16).fill(7), new TextEncoder().encode("{}"));
  addon.arenaAssign(arena, 0, PAYLOAD_BYTES);
  const { descriptor, buffer } = addon.clientMemfd(WINDOW_BYTES, false);
  ({ region } = addon.regionMap(descriptor, WINDOW_BYTES));
  window = Buffer.from(buffer);
  for (let block = 0; block < BLOCKS; block++) plain(block).copy(window, block * STRIDE_BYTES);
  const stored = await pump.copy({ kind: COPY.STORE, arena, region }, items(0));
  expect(stored.failed).toBe(0);
  window.fill(0);
});

function items(slot: number): number[][] {
  return Array.from({ length: BLOCKS }, (_, at) => [slot + at, at * STRIDE_BYTES, at, 0]);
}

/** A view of block `at` in the window. */
function sealed(at: number): Buffer {
  return window.subarray(at * STRIDE_BYTES, at * STRIDE_BYTES + DISK_HEADER_BYTES + PAYLOAD_BYTES);
}

async function exported(seal: object): Promise<number[]> {
  return (await pump.copy({ kind: COPY.EXPORT, arena, region, ...seal }, items(0))).statuses;
}

/** Statuses of IMPORT into fresh slots. */
async function imported(seal: object): Promise<number[]> {
  const slots = Uint32Array.from({ length: BLOCKS }, (_, at) => TARGET + at);
  addon.arenaInvalidate(arena, slots, BLOCKS);
  return (await pump.copy({ kind: COPY.IMPORT, arena, region, ...seal }, items(TARGET))).statuses;
}

/** Statuses of loading the import targets, and whether the bytes are those that were stored. */
async function loaded(): Promise<boolean[]> {
  window.fill(0);
  const { statuses } = await pump.copy({ kind: COPY.LOAD, arena, region }, items(TARGET));
  return statuses.map((status, at) => {
    const place = at * STRIDE_BYTES;
    const bytes = window.subarray(place, place + PAYLOAD_BYTES);
    return status === ITEM.OK && bytes.equals(plain(at));
  });
}

const all = (status: number): number[] => new Array(BLOCKS).fill(status);

describe("a sealed block", () => {
  test("comes back byte for byte, by its key, with the hash of its plaintext", async () => {
    expect(addon.sealing()).toBe(true);
    expect(await exported({ key, keyId })).toEqual(all(ITEM.OK));
    expect(await imported({ key, keyId })).toEqual(all(ITEM.OK));
    expect(await loaded()).toEqual(new Array(BLOCKS).fill(true));
  });

  test("is AES-256-GCM over the payload, with its header as associated data", async () => {
    await exported({ key, keyId });
    for (let at = 0; at < BLOCKS; at++) {
      const block = sealed(at);
      const decipher = createDecipheriv(
        "aes-256-gcm",
        key,
        block.subarray(NONCE_OFFSET, TAG_OFFSET),
      );
      decipher.setAAD(block.subarray(0, NONCE_OFFSET));
      decipher.setAuthTag(block.subarray(TAG_OFFSET, DISK_HEADER_BYTES));
      const opened = [decipher.update(block.subarray(DISK_HEADER_BYTES)), decipher.final()];
      expect(Buffer.concat(opened).equals(plain(at))).toBe(true);
    }
  });

  test("that node:crypto seals is opened", async () => {
    await exported({ key, keyId });
    for (let at = 0; at < BLOCKS; at++) {
      const block = sealed(at);
      block.fill(at + 1, NONCE_OFFSET, TAG_OFFSET);
      const cipher = createCipheriv("aes-256-gcm", key, block.subarray(NONCE_OFFSET, TAG_OFFSET));
      cipher.setAAD(block.subarray(0, NONCE_OFFSET));
      Buffer.concat([cipher.update(plain(at)), cipher.final()]).copy(block, DISK_HEADER_BYTES);
      cipher.getAuthTag().copy(block, TAG_OFFSET);
    }
    expect(await imported({ key, keyId })).toEqual(all(ITEM.OK));
    expect(await loaded()).toEqual(new Array(BLOCKS).fill(true));
  });

  test("as it stands in the golden file is opened", async () => {
    await exported({ key, keyId });
    const block = sealed(0);
    const golden = Buffer.from(readFileSync(GOLDEN, "utf8").replaceAll("\n", ""), "hex");
    // All but last access, nonce, tag and ciphertext is the same each time.
    const same = [...Array(32).keys(), ...Array.from({ length: 124 }, (_, at) => 40 + at)];
    expect(same.filter((at) => block[at] !== golden[at])).toEqual([]);
    golden.copy(block);
    expect(await imported({ key, keyId })).toEqual(all(ITEM.OK));
    expect(await loaded()).toEqual(new Array(BLOCKS).fill(true));
  });

  test("shows neither plaintext nor a hash of it, and never seals twice alike", async () => {
    await exported({ key, keyId });
    const first = Buffer.from(sealed(0));
    const hash = first.subarray(SLOT_HEADER.PAYLOAD_HASH * 4, SLOT_HEADER.HEADER_HASH * 4);
    expect(hash.every((byte) => byte === 0)).toBe(true);
    expect((first.readUInt32LE(DISK_VERSION_OFFSET) & SEALED_FLAG) !== 0).toBe(true);
    expect(first.subarray(SEAL_KEY_ID_OFFSET, DISK_VERSION_OFFSET).equals(keyId)).toBe(true);
    const text = plain(0);
    for (let at = 0; at + 8 <= 64; at++) {
      expect(first.includes(text.subarray(at, at + 8)), `bytes at ${at}`).toBe(false);
    }
    await exported({ key, keyId });
    const digest = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");
    const ciphertext = (bytes: Buffer): Buffer => bytes.subarray(DISK_HEADER_BYTES);
    expect(digest(ciphertext(sealed(0)))).not.toBe(digest(ciphertext(first)));
    expect(
      sealed(0).subarray(NONCE_OFFSET, TAG_OFFSET).equals(first.subarray(NONCE_OFFSET, TAG_OFFSET)),
    ).toBe(false);
  });
});

describe("a sealed block is refused, and its slot stays free,", () => {
  /** Seals, hurts, imports: the statuses; what is not OK must not be loadable either. */
  async function hurt(change: () => void, seal: object = { key, keyId }): Promise<number[]> {
    expect(await exported({ key, keyId })).toEqual(all(ITEM.OK));
    change();
    const statuses = await imported(seal);
    expect(await loaded()).toEqual(statuses.map((status) => status === ITEM.OK));
    return statuses;
  }

  test("under another key: CORRUPT; under another key's name: IDENTITY", async () => {
    const other = key.map((byte) => byte ^ 1);
    expect(await hurt(() => undefined, { key: other, keyId })).toEqual(all(ITEM.CORRUPT));
    const name = keyId.map((byte) => byte ^ 1);
    expect(await hurt(() => undefined, { key, keyId: name })).toEqual(all(ITEM.IDENTITY));
  });

  test("with one bit flipped, wherever it is", async () => {
    const places = [...Array(DISK_HEADER_BYTES).keys(), 192, 193, 1_000, 4_095, 4_287];
    for (let from = 0; from < places.length; from += BLOCKS) {
      const some = places.slice(from, from + BLOCKS);
      const statuses = await hurt(() => {
        for (const [at, place] of some.entries()) {
          const block = sealed(at);
          block[place] = (block[place] ?? 0) ^ (1 << (place % 8));
        }
      });
      for (const [at, place] of some.entries()) {
        expect([ITEM.CORRUPT, ITEM.IDENTITY], `byte ${place}`).toContain(statuses[at]);
      }
    }
  });

  test("in another block's place, or with another's payload, tag or nonce", async () => {
    const swapped = await hurt(() => {
      const [first, second] = [Buffer.from(sealed(0)), Buffer.from(sealed(1))];
      second.copy(sealed(0));
      first.copy(sealed(1));
      // Header of one, the rest of another.
      sealed(3).subarray(NONCE_OFFSET).copy(sealed(2), NONCE_OFFSET);
      sealed(5).copy(sealed(4), DISK_HEADER_BYTES, DISK_HEADER_BYTES);
      sealed(7).copy(sealed(6), TAG_OFFSET, TAG_OFFSET, DISK_HEADER_BYTES);
    });
    const { OK, CORRUPT, IDENTITY } = ITEM;
    expect(swapped).toEqual([IDENTITY, IDENTITY, CORRUPT, OK, CORRUPT, OK, CORRUPT, OK]);
  });

  test("with its seal stripped, and without a key where there is a seal", async () => {
    expect(await hurt(() => undefined, {})).toEqual(all(ITEM.IDENTITY));
    expect(await exported({})).toEqual(all(ITEM.OK));
    expect(await imported({ key, keyId })).toEqual(all(ITEM.IDENTITY));
    await exported({});
    for (let at = 0; at < BLOCKS; at++) {
      sealed(at).set(keyId, SEAL_KEY_ID_OFFSET);
      sealed(at).writeUInt32LE((1 | SEALED_FLAG) >>> 0, DISK_VERSION_OFFSET);
    }
    expect(await imported({ key, keyId })).toEqual(all(ITEM.CORRUPT));
    expect(await imported({})).toEqual(all(ITEM.IDENTITY));
  });
});

test("what is corrupt in DRAM is not sealed", async () => {
  addon.arenaFlipBit(arena, 3, 999);
  const { OK, CORRUPT } = ITEM;
  expect(await exported({ key, keyId })).toEqual([OK, OK, OK, CORRUPT, OK, OK, OK, OK]);
  addon.arenaFlipBit(arena, 3, 999);
});

test("a key of another length, or without its name, is an error", () => {
  const batch = { kind: COPY.EXPORT, batch: 9_000, arena, region, shard: 0, shards: 1 };
  const words = new Uint32Array([0, 0, 0, 0, 0]);
  const submit = (seal: object): string =>
    codeOf(() =>
      addon.copySubmit({ ...batch, payloadBytes: 4_096, deadlineMs: 0, ...seal }, words, 1),
    );
  expect(submit({ key: key.subarray(1), keyId })).toBe("ARGUMENT");
  expect(submit({ key, keyId: keyId.subarray(1) })).toBe("ARGUMENT");
  expect(submit({ key })).toBe("ARGUMENT");
  expect(submit({ key: "text", keyId })).toBe("ARGUMENT");
});
