/** Directories that change while the tier runs: larger, smaller, given back and wanted again, and ones that fail. */
import { mkdtempSync, readdirSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { programPath } from "../../../addon/load.ts";
import { TIER } from "../../../src/ledger/types.ts";
import { LIMITS } from "../../../src/limits.ts";
import { IndexStore } from "../../../tiers/nvme/index-store.ts";
import {
  type NamespaceRow,
  readNamespaces,
  writeNamespaces,
} from "../../../tiers/nvme/namespaces.ts";
import { startProbe } from "../../../tiers/nvme/probe.ts";
import { addon, MIB, Node, startAddon, until } from "./support.ts";

beforeAll(startAddon);
afterAll(() => addon.stop());

const zeroes = (count: number): number[] => Array<number>(count).fill(0);
const filesOf = (node: Node, index = 0): number =>
  readdirSync(node.directory(index)).filter((name) => name.startsWith("segment-")).length;

/** Two directories, and a chain of which the last block is leased: it may not leave the disk it is on alone. */
async function heldChain() {
  const node = new Node();
  await node.open([node.entry(0), node.entry(1)]);
  await node.ready(8);
  await node.demote(await node.store(1, 200));
  node.dropDram();
  const last = node.chain(1, 200).at(-1)!;
  node.ledger.leaseOpen(7, 1, last);
  const device = node.tier.deviceOfSlot(node.ledger.slotOf(last, TIER.NVME, 0));
  const entry = node.entry(device.directory === node.directory(0) ? 0 : 1);
  return { node, device, entry };
}

describe("a directory that is given back and wanted again", () => {
  it("before it is empty: it stays, with what had not left, and takes copies again", async () => {
    const { node, device, entry } = await heldChain();
    const drained = node.tier.drainDirectory(entry.path, 60_000);
    await until(() => node.promoted.length > 0);
    expect(device.mayWrite).toBe(false);
    const held = node.chain(1, 200).length;
    expect(node.tier.configure(entry)).toBe(true);
    expect(await drained).toBe("kept");
    expect([device.closed, device.draining]).toEqual([false, false]);
    await until(() => device.mayWrite && device.segments.count === 4);
    expect(device.segments.retiring).toBe(0);
    expect(await node.read(1, 200)).toEqual(zeroes(held));
    expect(await node.demote(await node.store(2, 200))).toBe(200);
    const { slots } = node.ledger.core.tier(TIER.NVME);
    expect([0, 1].map((one) => slots.isDeviceClosed(one))).toEqual([false, false]);
    node.ledger.leaseClose(7);
    node.ledger.audit();
    await node.close();
    node.remove();
  });

  it("and given back once more: the later wish holds, and the earlier drain ends without it", async () => {
    const { node, device, entry } = await heldChain();
    const first = node.tier.drainDirectory(entry.path, 60_000);
    await until(() => node.promoted.length > 0);
    node.tier.configure(entry);
    const second = node.tier.drainDirectory(entry.path, 60_000);
    expect(await first).toBe("kept");
    node.ledger.leaseClose(7);
    await until(() => device.closed);
    expect(await second).toBe("emptied");
    node.ledger.audit();
    await node.close();
    node.remove();
  });

  it("and the daemon stops meanwhile: the drain ends with the tier", async () => {
    const { node, entry } = await heldChain();
    const drained = node.tier.drainDirectory(entry.path, 60_000);
    await until(() => node.promoted.length > 0);
    await node.close();
    expect(await drained).toBe("stopped");
    node.remove();
  });

  it("although a file of it cannot be removed: it is let go of all the same, and the other is served", async () => {
    const { node, device, entry } = await heldChain();
    node.ledger.leaseClose(7);
    rmSync(join(entry.path, "segment-000000.cairn"));
    const drained = node.tier.drainDirectory(entry.path, 60_000);
    await until(() => device.closed);
    expect(await drained).toBe("emptied");
    expect(node.notes.join()).toContain("segment 0 was given up");
    expect(await node.demote(await node.store(2, 100))).toBe(100);
    node.ledger.audit();
    await node.close();
    node.remove();
  });

  it("after it was closed: it is opened anew and takes copies", async () => {
    const { node, device, entry } = await heldChain();
    node.ledger.leaseClose(7);
    const drained = node.tier.drainDirectory(entry.path, 60_000);
    await until(() => device.closed);
    expect(await drained).toBe("emptied");
    expect(node.tier.configure(entry)).toBe(false);
    await node.tier.addDirectory(entry);
    const again = node.tier.deviceOf(entry.path)!;
    await until(() => again.segments.count === 4 && again.mayWrite);
    for (let chain = 2; chain < 8; chain++) await node.demote(await node.store(chain, 50));
    expect(again.diskCounters().writeItems).toBeGreaterThan(0);
    node.ledger.audit();
    await node.close();
    node.remove();
  });
});

describe("a directory's capacity", () => {
  it("grows while running: segments are added", async () => {
    const node = await (await new Node().open()).ready();
    expect(filesOf(node)).toBe(4);
    node.tier.configure(node.entry(0, 16 * MIB));
    await until(() => node.tier.devices[0]!.segments.count === 6);
    expect(node.tier.snapshot()[0]).toMatchObject({ segments: 6, segmentsTarget: 6 });
    await node.close();
    node.remove();
  });

  it("shrinks while running: free segments are given back, blocks only when they must", async () => {
    const node = await (await new Node().open()).ready();
    await node.demote(await node.store(1, 100));
    await node.demote(await node.store(2, 100));
    node.dropDram();
    const { segments } = node.tier.devices[0]!;
    node.tier.configure(node.entry(0, 5 * MIB));
    await until(() => segments.count === 2);
    expect([await node.read(1, 100), await node.read(2, 100)]).toEqual([zeroes(100), zeroes(100)]);
    node.tier.configure(node.entry(0, 3 * MIB));
    await until(() => segments.count === 1);
    const left = node.chain(1, 100).length + node.chain(2, 100).length;
    expect(left).toBeGreaterThan(0);
    expect(left).toBeLessThanOrEqual(126);
    expect(filesOf(node)).toBe(1);
    node.ledger.audit();
    await node.close();
    node.remove();
  });
});

describe("an index that cannot be opened at a start", () => {
  async function withChain(): Promise<string> {
    const node = await (await new Node().open()).ready();
    expect(await node.demote(await node.store(1, 100))).toBe(100);
    await node.close();
    return node.root;
  }
  const noRoom = Object.assign(new Error("no space left on device"), { code: 28 });
  const failing = Object.assign(new Error("input/output error"), { code: 5 });

  it.each([
    ["for want of room", noRoom, "ok"],
    ["for another reason", failing, "readOnly"],
  ] as const)(
    "%s: its device is read, takes no copies, and is written once it can be opened",
    async (_why, error, health) => {
      const node = new Node(await withChain());
      vi.spyOn(IndexStore, "open").mockRejectedValueOnce(error);
      await node.open();
      const device = node.tier.devices[0]!;
      expect(device.counters.indexOpenFailures).toBe(1);
      expect([device.health, device.mayWrite]).toEqual([health, false]);
      expect(node.notes.some((line) => line.includes("the index cannot be opened"))).toBe(true);
      expect(node.report.recovered).toBe(100);
      expect(await node.read(1, 100)).toEqual(zeroes(100));
      await until(() => device.mayWrite);
      expect(await node.demote(await node.store(2, 20))).toBe(20);
      await node.close();
      const next = await new Node(node.root).open();
      expect(next.report.recovered).toBe(120);
      await next.close();
      next.remove();
    },
  );

  it("after damage: its blocks come back from headers meanwhile, and a new index names them", async () => {
    const node = new Node(await withChain());
    truncateSync(join(node.directory(), "index", "data.mdb"), 0);
    writeFileSync(join(node.directory(), "namespaces.json"), "torn");
    vi.spyOn(IndexStore, "open").mockRejectedValueOnce(noRoom);
    await node.open();
    const device = node.tier.devices[0]!;
    await until(() => device.counters.headersRebuilt === 100);
    expect(await node.read(1, 100)).toEqual(zeroes(100));
    await until(() => device.mayWrite && device.owedPages === 0);
    await device.committer.idle();
    await node.close();
    const next = await new Node(node.root).open();
    expect(next.report.recovered).toBe(100);
    await next.close();
    next.remove();
  });

  it("and rows of namespaces that are gone: entries without rows are not believed, headers are", async () => {
    const node = new Node(await withChain());
    rmSync(join(node.directory(), "namespaces.json"));
    await node.open();
    const device = node.tier.devices[0]!;
    expect(device.counters.indexDamaged).toBe(1);
    await until(() => device.counters.headersRebuilt === 100);
    expect(await node.read(1, 100)).toEqual(zeroes(100));
    await node.close();
    node.remove();
  });
});

describe("namespaces of a directory", () => {
  const extra = (number: number): NamespaceRow => ({
    digest: new Uint8Array(Uint32Array.of(number, 9, 9, 9).buffer),
    descriptor: Uint8Array.of(123),
  });

  it("that have no block there any more give up their rows at the next start", async () => {
    const node = await (await new Node().open()).ready();
    await node.demote(await node.store(1, 20));
    await node.close();
    const [own] = readNamespaces(node.directory())!;
    await writeNamespaces(node.directory(), [own!, extra(1), extra(2)]);
    await node.open();
    expect(node.report.recovered).toBe(20);
    expect(node.tier.devices[0]!.rows.named).toHaveLength(1);
    node.namespace = 0;
    await node.ready();
    await node.demote(await node.store(2, 20));
    await node.close();
    expect(readNamespaces(node.directory())).toEqual([own]);
    node.remove();
  });

  it("that find no row are refused by name and counted, and the device goes on", async () => {
    const node = await (await new Node().open()).ready();
    const device = node.tier.devices[0]!;
    for (let index = 1; index < LIMITS.nvmeNamespaceRowsMax; index++) {
      device.rows.add(index, extra(index));
    }
    expect(await node.demote(await node.store(1, 10))).toBe(10);
    const [block] = node.chain(1, 1);
    const slot = node.ledger.slotOf(block!, TIER.NVME, 0);
    expect(node.tier.admits(slot)).toBe(true);
    device.rows.vacate((row) => device.rows.indexOf(row) !== node.namespace);
    device.rows.add(70_000, extra(70_000));
    expect(node.tier.admits(slot)).toBe(false);
    expect(device.counters.rowsRefused).toBe(1);
    expect(device.mayWrite).toBe(true);
    await node.close();
    node.remove();
  });
});

describe("an index that was written before the host started anew", () => {
  it("is written again, since its newest commit may be one that lmdb takes back", async () => {
    const old = await (await new Node().open()).ready();
    await old.demote(await old.store(1, 100));
    await old.close();
    const metaNow = async () => {
      const probe = startProbe(old.directory());
      const { meta } = await probe.verdict;
      probe.stop();
      return meta;
    };
    const meta = await metaNow();
    const again = await new Node(old.root).open();
    expect(again.tier.devices[0]!.deviceIndex.rewriteNeeded).toBe(false);
    await again.close();
    const store = await IndexStore.open(old.directory());
    await store.write([], { ...meta, bootId: "another" });
    await store.close();
    const node = await new Node(old.root).open();
    expect(node.report.recovered).toBe(100);
    const { counters } = node.tier.devices[0]!;
    await until(() => counters.commits > 0);
    expect(await metaNow()).toMatchObject({ bootId: meta.bootId });
    expect(await node.read(1, 100)).toEqual(zeroes(100));
    await node.close();
    node.remove();
  });
});

/** Readers of indexes begin once `open` is called; the reader itself would be through before anybody could stop it. */
function gate(): { open(): void; remove(): void } {
  const folder = mkdtempSync(join(tmpdir(), "cairn-gate-"));
  const sign = join(folder, "open");
  const reader = programPath("cairn-index-reader");
  const script = `#!/bin/sh\nwhile [ ! -e ${sign} ]; do sleep 0.02; done\nexec ${reader} "$1"\n`;
  writeFileSync(join(folder, "cairn-index-reader"), script, { mode: 0o700 });
  vi.stubEnv("CAIRN_ADDON", join(folder, "cairn.node"));
  return {
    open: () => writeFileSync(sign, ""),
    remove: () => {
      vi.unstubAllEnvs();
      rmSync(folder, { recursive: true });
    },
  };
}

describe("a directory that is added", () => {
  it("has its index opened by nobody before a child has read it, however long that takes", async () => {
    const old = await (await new Node().open()).ready();
    await old.demote(await old.store(1, 100));
    await old.close();
    const node = await (await new Node().open()).ready();
    const entry = { ...node.entry(), path: old.directory() };
    const opened = vi.spyOn(IndexStore, "open").mockClear();
    const closed = gate();
    const added = node.tier.addDirectory(entry);
    const device = node.tier.deviceOf(entry.path)!;
    await node.tier.openIndexes();
    const asked = performance.now();
    await until(() => opened.mock.calls.length > 0 || performance.now() - asked > 500);
    expect(opened).not.toHaveBeenCalled();
    closed.open();
    await added;
    closed.remove();
    expect(opened).toHaveBeenCalledOnce();
    await until(() => device.mayWrite && device.counters.headersRebuilt === 100);
    expect(await node.read(1, 100)).toEqual(zeroes(100));
    await node.close();
    node.remove();
    old.remove();
  });
});

describe("a directory that cannot be added", () => {
  it("leaves nothing open when it fails midway: the next try takes it in", async () => {
    const old = await (await new Node().open()).ready();
    await old.demote(await old.store(1, 100));
    await old.close();
    let refusals = 1;
    const face = Object.assign(Object.create(addon) as typeof addon, {
      diskAttach: (disk: number, segment: number, slab: number) => {
        if (segment === 2 && slab >= 4 && refusals-- > 0) throw new Error("no such segment");
        addon.diskAttach(disk, segment, slab);
      },
    });
    const node = await (await new Node().open(undefined, face)).ready();
    const entry = { ...node.entry(), path: old.directory() };
    await expect(node.tier.addDirectory(entry)).rejects.toMatchObject({
      errorName: "diskUnusable",
    });
    expect(node.tier.deviceOf(entry.path)).toBeUndefined();
    vi.spyOn(node.ledger, "adoptBegin").mockImplementationOnce(() => {
      throw new Error("midway");
    });
    await expect(node.tier.addDirectory(entry)).rejects.toThrow("midway");
    expect(node.tier.deviceOf(entry.path)).toBeUndefined();
    node.ledger.audit();
    await node.tier.addDirectory(entry);
    const device = node.tier.deviceOf(entry.path)!;
    await until(() => device.counters.headersRebuilt === 100);
    expect(await node.read(1, 100)).toEqual(zeroes(100));
    expect(await node.demote(await node.store(2, 200))).toBe(200);
    node.ledger.audit();
    await node.close();
    node.remove();
    old.remove();
  });
});
