/** Disks that hold other bytes than they were given: a miss each, counted, and everything else unharmed. */
import { truncateSync, unlinkSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { DISK_HEADER_BYTES, SLOT_HEADER } from "../../addon/binding.ts";
import {
  bytesAt,
  chainsOf,
  DISK_FAULT,
  type DiskNode,
  flipByte,
  putBytes,
  SLOT_BYTES,
  withDiskNode,
} from "../harness/disk-node.ts";

const CHAINS = 20;
const BLOCKS = 8;
/** Rounds of 50 chains: many times what the small disk holds. */
const ROUNDS_MAX = 30;
const ALL = CHAINS * BLOCKS;
const chains = chainsOf("bytes", CHAINS, BLOCKS);
const lastOf = (keys: readonly Uint8Array[]): Uint8Array => keys.at(-1)!;

/** Everything but `lost` blocks comes back right, and those can be stored again. */
async function restUnharmed(node: DiskNode, lost: number): Promise<void> {
  expect(await node.read(chains)).toEqual({
    hit: ALL - lost,
    landed: ALL - lost,
    wrong: 0,
    names: [],
  });
  await node.store(chains);
  expect(await node.read(chains)).toMatchObject({ hit: ALL, landed: ALL, wrong: 0 });
}

/** Stores all, hurts the disk while the daemon is down, and reads: `lost` misses by this counter, the rest unharmed. */
async function hurtAtRest(
  counter: "nvmeCorruptItems" | "nvmeIdentityItems",
  lost: number,
  hurt: (node: DiskNode) => void,
): Promise<void> {
  await withDiskNode({}, async (node) => {
    await node.daemon.launch();
    await node.storeDurably(chains);
    await node.killWithoutPool();
    hurt(node);
    await node.daemon.launch();
    const read = await node.daemon.counts(counter, undefined, () => node.read(chains), lost);
    expect(read).toMatchObject({ hit: ALL, landed: ALL - lost, wrong: 0 });
    const name = counter === "nvmeCorruptItems" ? "checksumMismatch" : "staleGeneration";
    expect(read.names).toEqual(Array(lost).fill(name));
    await restUnharmed(node, lost);
  });
}

describe("bytes that changed on the disk while nobody looked", () => {
  it("one in the payload of each of 20 blocks: 20 misses by their checksum", async () => {
    await hurtAtRest("nvmeCorruptItems", CHAINS, (node) => {
      for (const [index, keys] of chains.entries()) {
        const { file, at } = node.slotOf(lastOf(keys));
        flipByte(file, at + DISK_HEADER_BYTES + index * 201, 1 << (index % 8));
      }
    });
  });

  it("one in the header of each of 20 blocks: 20 misses by their identity", async () => {
    const words = [
      SLOT_HEADER.STATE,
      SLOT_HEADER.MAGIC,
      SLOT_HEADER.DEPTH,
      SLOT_HEADER.SHARD,
      SLOT_HEADER.GENERATION,
      SLOT_HEADER.LENGTH,
      SLOT_HEADER.PAYLOAD_HASH,
      SLOT_HEADER.HEADER_HASH,
      SLOT_HEADER.KEY,
      SLOT_HEADER.PARENT_KEY,
    ];
    await hurtAtRest("nvmeIdentityItems", CHAINS, (node) => {
      for (const [index, keys] of chains.entries()) {
        const { file, at } = node.slotOf(lastOf(keys));
        flipByte(file, at + words[index % words.length]! * 4 + (index % 4));
      }
    });
  });

  it("two whole slots that changed places: both are misses, valid as each one's checksum is", async () => {
    await hurtAtRest("nvmeIdentityItems", 2, (node) => {
      const one = node.slotOf(lastOf(chains[3]!));
      const other = node.slotOf(lastOf(chains[11]!));
      const bytes = bytesAt(one.file, one.at, SLOT_BYTES);
      putBytes(one.file, one.at, bytesAt(other.file, other.at, SLOT_BYTES));
      putBytes(other.file, other.at, bytes);
    });
  });

  it("a slot that shows what it held before: its header tells, and it is a miss", async () => {
    // A disk that is smaller than what it is given: slots are written again and again.
    await withDiskNode({ capacityBytes: 16 * 2 ** 20 }, async (node) => {
      await node.daemon.launch();
      const old = chainsOf("old", 40, BLOCKS);
      await node.storeDurably(old);
      const slot = node.slotOf(lastOf(old[0]!));
      const before = bytesAt(slot.file, slot.at, SLOT_BYTES);
      const fresh: Uint8Array[][] = [];
      const written = (): boolean =>
        Buffer.compare(before, bytesAt(slot.file, slot.at, SLOT_BYTES)) !== 0;
      // How much of what is stored the disk takes depends on its pace; this slot is to be written again, and indexed.
      for (let round = 0; round < ROUNDS_MAX && !written(); round++) {
        const more = chainsOf(`fresh-${round}`, 50, BLOCKS);
        fresh.push(...more);
        await node.store(more);
        await node.quiet();
      }
      expect(written()).toBe(true);
      await node.killWithoutPool();
      putBytes(slot.file, slot.at, before);
      await node.daemon.launch();
      const read = await node.daemon.counts("nvmeIdentityItems", undefined, async () => {
        const all = await node.read(fresh);
        const gone = await node.read(old);
        return { wrong: all.wrong + gone.wrong, failed: all.names.length + gone.names.length };
      });
      expect(read).toEqual({ wrong: 0, failed: 1 });
    });
  });
});

describe("writes that did something else than they said", () => {
  const cases = [
    ["half of it", DISK_FAULT.TEAR, "nvmeCorruptItems"],
    ["nothing", DISK_FAULT.LOSE, "nvmeIdentityItems"],
    ["another slot", DISK_FAULT.MISDIRECT, "nvmeIdentityItems"],
  ] as const;
  it.each(cases)("%s was written: misses, never other bytes", async (_what, fault, counter) => {
    await withDiskNode({}, async (node) => {
      node.armFaults();
      await node.daemon.launch();
      node.fault(fault, 5);
      await node.storeDurably(chains);
      expect(node.struck()).toBe(5);
      await node.restartWithoutPool();
      const read = await node.daemon.counts(counter, undefined, () => node.read(chains));
      expect(read.wrong).toBe(0);
      expect(read.names.length).toBeGreaterThanOrEqual(1);
      expect(read.landed + read.names.length).toBe(read.hit);
      const again = await node.read(chains);
      expect(again).toMatchObject({ landed: again.hit, wrong: 0, names: [] });
    });
  });
});

describe("reads that come back wrong", () => {
  it("a flipped bit under way is a miss by its checksum", async () => {
    await withDiskNode({}, async (node) => {
      node.armFaults();
      await node.daemon.launch();
      await node.storeDurably(chains);
      await node.restartWithoutPool();
      node.fault(DISK_FAULT.FLIP, 1);
      const read = await node.daemon.counts("nvmeCorruptItems", undefined, () => node.read(chains));
      expect(read).toMatchObject({ wrong: 0, names: ["checksumMismatch"] });
    });
  });

  it("a segment cut short or deleted while the daemon runs: misses, no signal; a new start rebuilds", async () => {
    await withDiskNode({}, async (node) => {
      await node.daemon.launch();
      await node.storeDurably(chains);
      await node.restartWithoutPool();
      const file = node.slotOf(chains[0]![0]!).file;
      truncateSync(file, 4_096);
      const read = await node.daemon.counts("nvmeIoErrors", undefined, () => node.read(chains));
      expect(read).toMatchObject({ wrong: 0 });
      expect(read.landed).toBeLessThan(ALL);
      expect(node.daemon.running).toBe(true);
      unlinkSync(file);
      await node.restartWithoutPool();
      expect(await node.read(chains)).toMatchObject({ wrong: 0 });
      await node.storeDurably(chains);
      await node.restartWithoutPool();
      expect(await node.read(chains)).toMatchObject({ hit: ALL, landed: ALL, wrong: 0 });
    });
  });
});
