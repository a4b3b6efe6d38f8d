/** Disks that fail, hang or are full while the daemon runs: it serves on, says so, and takes them back by itself. */
import { describe, expect, it } from "vitest";
import { FLAG, OP } from "../../src/engine-api/protocol.ts";
import { ALWAYS, chainsOf, DISK_FAULT, type DiskNode, withDiskNode } from "../harness/disk-node.ts";
import { failuresOf } from "../harness/engine.ts";
import { eventually } from "../harness/eventually.ts";
import { frameOf, loadBody } from "../harness/frames.ts";

const CHAINS = 20;
const BLOCKS = 8;
const ALL = CHAINS * BLOCKS;
const chains = chainsOf("device", CHAINS, BLOCKS);
const extra = chainsOf("extra", 4, BLOCKS);
const HEALTH = { OK: 0, SLOW: 1, READ_ONLY: 2, FENCED: 3 } as const;

/** A node whose blocks are on the disk alone, with the fault library in its process. */
async function onDiskAlone(use: (node: DiskNode) => Promise<void>): Promise<void> {
  await withDiskNode({}, async (node) => {
    node.armFaults();
    await node.daemon.launch();
    await node.storeDurably(chains);
    await node.restartWithoutPool();
    await use(node);
  });
}

/** New blocks are taken and read back, whatever the disk does. */
async function servesOn(node: DiskNode): Promise<void> {
  await node.store(extra);
  expect(await node.read(extra)).toMatchObject({ landed: extra.length * BLOCKS, wrong: 0 });
}

describe("a disk whose reads fail", () => {
  it("a few: misses, counted, and the disk stays", async () => {
    await onDiskAlone(async (node) => {
      node.fault(DISK_FAULT.FAIL_READ, 3);
      const read = await node.daemon.counts("nvmeIoErrors", undefined, () => node.read(chains), 3);
      expect(read.wrong).toBe(0);
      expect(read.names).toHaveLength(3);
      const again = await node.read(chains);
      expect(again).toMatchObject({ landed: again.hit, wrong: 0, names: [] });
      expect(again.hit).toBeGreaterThanOrEqual(ALL - 3 * BLOCKS);
      expect(node.daemon.log()).not.toContain("→ fenced");
    });
  });

  it("all: the disk is fenced, DRAM serves on, and what it holds comes back with it", async () => {
    await onDiskAlone(async (node) => {
      node.fault(DISK_FAULT.FAIL_READ, ALWAYS);
      for (let round = 0; round < 12; round++) {
        expect(await node.read(chains)).toMatchObject({ wrong: 0 });
        if ((await node.event("fences")) > 0) break;
      }
      await eventually("the fence is counted", async () => (await node.event("fences")) === 1);
      await servesOn(node);
      node.fault(DISK_FAULT.FAIL_READ, 0);
      await eventually("the disk is taken back", async () => {
        return (await node.daemon.metric("nvmeHealth")) === HEALTH.OK;
      });
      await node.visible(ALL / 2);
      expect(await node.read(chains)).toMatchObject({ wrong: 0 });
    });
  });
});

describe("a disk whose writes or syncs fail", () => {
  const cases = [
    ["a write", DISK_FAULT.FAIL_WRITE, "nvmeIoErrors", "writeError"],
    ["a sync", DISK_FAULT.FAIL_SYNC, "nvmeSyncFailures", "syncFailed"],
  ] as const;
  it.each(cases)(
    "%s: those copies do not count, the disk is read-only, probed and writes again",
    async (_what, fault, counter, event) => {
      await onDiskAlone(async (node) => {
        const before = await node.daemon.metric("writtenBackBlocks");
        node.fault(fault, ALWAYS);
        await node.daemon.counts(counter, undefined, () => servesOn(node));
        // The probe's own file is not hurt, so the gauge goes to and fro.
        expect(node.daemon.log()).toContain(`ok → readOnly (${event})`);
        expect(await node.daemon.metric("writtenBackBlocks")).toBe(before);
        // What was durable before stays so, and is read.
        expect(await node.read(chains)).toMatchObject({ hit: ALL, landed: ALL, wrong: 0 });
        node.fault(fault, 0);
        await node.health(HEALTH.OK);
        const later = chainsOf("later", 4, BLOCKS);
        await node.storeDurably(later);
        await node.restartWithoutPool();
        expect(await node.read([...chains, ...later])).toMatchObject({
          landed: ALL + later.length * BLOCKS,
          wrong: 0,
        });
      });
    },
  );
});

describe("a disk that hangs", () => {
  it("a LOAD ends at its deadline as a miss, look-ups and stores go on, and it is taken back", async () => {
    await onDiskAlone(async (node) => {
      const engine = await node.engine();
      node.fault(DISK_FAULT.STALL, 1);
      const keys = chains[0]!;
      const { hit, lease } = await engine.lookup(keys, 1);
      expect(hit).toBe(BLOCKS);
      const rows = keys.map((_key, index) => index);
      const body = loadBody({ region: engine.region, keys, rows, deadlineMs: 300 });
      const tag = engine.wire.nextTag();
      const answer = engine.wire.take((frame) => frame.tag === tag);
      engine.wire.send(frameOf({ op: OP.LOAD, tag, id: lease, count: keys.length, body }));
      const completion = await answer;
      expect(completion.flags & FLAG.COMPLETION).not.toBe(0);
      expect(failuresOf(completion).map(({ name }) => name)).toEqual(
        Array(BLOCKS).fill("deadlineExceeded"),
      );
      expect(await node.daemon.metric("deadlineMisses")).toBeGreaterThan(0);
      await node.health(HEALTH.SLOW);
      await servesOn(node);
      node.fault(DISK_FAULT.STALL, 0);
      await node.health(HEALTH.OK);
      engine.close();
      expect(await node.read(chains)).toMatchObject({ landed: ALL, wrong: 0 });
    });
  });
});
