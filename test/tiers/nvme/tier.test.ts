import { mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { DISK, ITEM } from "../../../addon/binding.ts";
import { evict } from "../../../src/ledger/evict.ts";
import { SLOT_INDEX_BITS } from "../../../src/ledger/slots.ts";
import { STATE, TIER } from "../../../src/ledger/types.ts";
import { LIMITS } from "../../../src/limits.ts";
import { IndexStore, IndexWriteError } from "../../../tiers/nvme/index-store.ts";
import { directoryFacts } from "../../../tiers/nvme/plan.ts";
import { addon, Node, startAddon, until } from "./support.ts";

const FAILED = 2;
const EIO = 5;
const ENOSPC = 28;
const zeroes = (count: number): number[] => Array<number>(count).fill(0);

beforeAll(startAddon);
afterAll(() => addon.stop());

/** A life that leaves chain 1 of 100 blocks on NVMe, and nothing in DRAM. */
async function withChain(): Promise<string> {
  const node = await (await new Node().open()).ready();
  expect(await node.demote(await node.store(1, 100))).toBe(100);
  await node.close();
  return node.root;
}

/** The life after a closed one, with so many blocks back from the index. */
async function nextLife(of: Node, recovered: number): Promise<Node> {
  const node = await new Node(of.root).open();
  expect(node.report.recovered).toBe(recovered);
  return node;
}

/** The last life of a directory: the ledger is audited, files are removed. */
async function end(node: Node): Promise<void> {
  node.ledger.audit();
  await node.close();
  node.remove();
}

const indexOf = (node: Node): string => join(node.directory(), "index", "data.mdb");
const asideOf = (node: Node): string[] =>
  readdirSync(node.directory()).filter((name) => name.startsWith("index.damaged-"));

describe("the NVMe tier on the real addon", () => {
  it("writes segments in the background, copies down, and reads every byte back after a restart", async () => {
    const first = await (await new Node().open()).ready();
    const blocks = await first.store(1, 100);
    expect(await first.demote(blocks)).toBe(100);
    expect(await first.read(1, 100)).toEqual(zeroes(100));
    first.ledger.audit();
    await first.close();

    const second = await new Node(first.root).open();
    expect(second.report).toMatchObject({ headers: 100, recovered: 100, dropped: 0 });
    expect(second.chain(1, 100)).toHaveLength(100);
    expect(await second.read(1, 100)).toEqual(zeroes(100));
    await end(second);
  });

  it("keeps more blocks than a page and a segment hold, over two devices, in order of depth", async () => {
    const first = new Node();
    await first.open([first.entry(0), first.entry(1)]);
    await first.ready(8);
    for (let chain = 1; chain <= 3; chain++) {
      expect(await first.demote(await first.store(chain, 200))).toBe(200);
    }
    const used = first.tier.devices.map((device) => first.tier.addon.diskCounters(device.disk));
    expect(used.every(({ writeItems }) => writeItems > 0)).toBe(true);
    await first.close();

    const second = new Node(first.root);
    await second.open([second.entry(0), second.entry(1)]);
    expect(second.report).toMatchObject({ recovered: 600, dropped: 0 });
    for (let chain = 1; chain <= 3; chain++) {
      expect(await second.read(chain, 200)).toEqual(zeroes(200));
    }
    await end(second);
  });

  it("forgets a device that is not configured any more, and the blocks below its own", async () => {
    const first = new Node();
    await first.open([first.entry(0), first.entry(1)]);
    await first.ready(8);
    for (let chain = 1; chain <= 3; chain++) await first.demote(await first.store(chain, 200));
    await first.close();
    const second = await new Node(first.root).open();
    expect(second.report.recovered).toBeGreaterThan(0);
    expect(second.report.recovered).toBeLessThan(600);
    const whole = [1, 2, 3].map((chain) => second.chain(chain, 200).length);
    expect(whole.reduce((sum, count) => sum + count)).toBe(second.report.recovered);
    await end(second);
  });

  it("takes freed slots out of the index, and the next start does not know them", async () => {
    const first = await (await new Node().open()).ready();
    const blocks = await first.store(1, 100);
    await first.demote(blocks);
    const { core } = first.ledger;
    for (const block of [...blocks].slice(40).toReversed())
      evict(core, block, core.tier(TIER.NVME));
    first.ledger.flush();
    await until(() => first.tier.devices[0]!.marks.dirtyPages === 0);
    await first.tier.devices[0]!.committer.idle();
    await first.close();
    const second = await new Node(first.root).open();
    expect(second.report).toMatchObject({ headers: 40, recovered: 40 });
    await end(second);
  });

  it("has a directory's lock: a second daemon is refused by name", async () => {
    const first = await (await new Node().open()).ready(1);
    await expect(new Node(first.root).open()).rejects.toMatchObject({
      errorName: "directoryLocked",
    });
    await end(first);
  });
});

/** The device with the last block of a chain. */
function holderOf(node: Node, chain: number, count: number) {
  const last = node.chain(chain, count).at(-1)!;
  return node.tier.deviceOfSlot(node.ledger.slotOf(last, TIER.NVME, 0));
}

describe("a damaged index", () => {
  const damages: readonly [string, (path: string) => void][] = [
    ["a truncated file", (path) => truncateSync(path, 8_192)],
    ["an empty file", (path) => truncateSync(path, 0)],
    [
      "zeroed meta pages",
      (path) => {
        const bytes = readFileSync(path);
        writeFileSync(path, bytes.fill(0, 0, 8_192));
      },
    ],
    [
      "garbage behind good meta pages",
      (path) => {
        const bytes = readFileSync(path);
        writeFileSync(path, bytes.fill(0x5a, 8_192));
      },
    ],
  ];
  it.each(damages)(
    "(%s) is moved aside, and its blocks come back from their headers",
    async (_name, damage) => {
      const node = new Node(await withChain());
      damage(indexOf(node));
      await node.open();
      expect(node.report.recovered).toBe(0);
      expect(asideOf(node)).toHaveLength(1);
      expect(node.tier.devices[0]!.counters.indexDamaged).toBe(1);
      await until(() => node.tier.devices[0]!.counters.headersRebuilt === 100);
      expect(await node.read(1, 100)).toEqual(zeroes(100));
      node.ledger.audit();
      // What was rebuilt is indexed again.
      await until(() => node.tier.devices[0]!.marks.dirtyPages === 0);
      await node.close();
      const next = await nextLife(node, 100);
      await end(next);
    },
  );

  it("of each of two disks that share a chain costs none of it: children wait for parents of the other disk", async () => {
    const first = new Node();
    const entries = [first.entry(0), first.entry(1)];
    await first.open(entries);
    await first.ready(8);
    const blocks = await first.store(1, 90);
    const [upper, lower] = first.tier.devices;
    // Thirds of the chain lie on the one disk, on the other, and on the first again.
    for (const [third, full] of [lower!, upper!, lower!].entries()) {
      full.draining = true;
      first.tier.tick();
      expect(await first.demote(blocks.subarray(third * 30, third * 30 + 30))).toBe(30);
      full.draining = false;
      first.tier.tick();
    }
    const devices = [...blocks].map((block) => {
      return first.tier.deviceOfSlot(first.ledger.slotOf(block, TIER.NVME, 0)).index;
    });
    expect([0, 30, 60].map((at) => devices[at])).toEqual([0, 1, 0]);
    await first.close();
    for (const index of [0, 1]) {
      writeFileSync(join(first.directory(index), "index", "data.mdb"), new Uint8Array(8_192));
    }
    const second = await new Node(first.root).open(entries);
    await until(() => second.tier.devices.every((one) => !one.rebuilding && !one.rebuildNeeded));
    expect(second.chain(1, 90)).toHaveLength(90);
    expect(await second.read(1, 90)).toEqual(zeroes(90));
    await end(second);
  });

  it("that lost one page loses that page's blocks and what hangs below them", async () => {
    const node = new Node(await withChain());
    const bytes = readFileSync(indexOf(node));
    let pages = 0;
    // Every copy of the page that names slots 32 to 63 (key 1): one bit in its first entry.
    for (let at = 0; at + 64 < bytes.length; at += 4) {
      if (bytes.readUInt32LE(at) !== 0x5849_5243 || bytes.readUInt32LE(at + 8) !== 1) continue;
      bytes[at + 60] = bytes[at + 60]! ^ 4;
      pages += 1;
    }
    expect(pages).toBeGreaterThan(0);
    writeFileSync(indexOf(node), bytes);
    await node.open();
    expect(node.tier.devices[0]!.counters.pagesDropped).toBe(1);
    expect(node.chain(1, 100)).toHaveLength(32);
    expect(await node.read(1, 100)).toEqual(zeroes(32));
    await end(node);
  });

  it("that ended several starts before their first commit is not opened once more", async () => {
    const node = new Node(await withChain());
    writeFileSync(join(node.directory(), "index.opens"), String(LIMITS.nvmeIndexOpensMax));
    await node.open();
    expect(asideOf(node)).toHaveLength(1);
    await until(() => node.tier.devices[0]!.counters.headersRebuilt === 100);
    await end(node);
  });

  it("of another directory is not believed", async () => {
    const node = new Node(await withChain());
    const other = new Node(await withChain());
    writeFileSync(indexOf(node), readFileSync(indexOf(other)));
    await node.open();
    expect(node.tier.devices[0]!.counters.indexDamaged).toBe(1);
    await until(() => node.tier.devices[0]!.counters.headersRebuilt === 100);
    await end(node);
    other.remove();
  });

  it("goes with a damaged table of namespaces; headers say both", async () => {
    const node = new Node(await withChain());
    writeFileSync(join(node.directory(), "namespaces.json"), '{"version":1,"crc32":1,"rows":[]}');
    await node.open();
    expect(node.report.recovered).toBe(0);
    await until(() => node.tier.devices[0]!.counters.headersRebuilt === 100);
    expect(await node.read(1, 100)).toEqual(zeroes(100));
    await until(() => node.tier.devices[0]!.marks.dirtyPages === 0);
    await node.close();
    const next = await nextLife(node, 100);
    await end(next);
  });
});

describe("a device that fails", () => {
  it("in a sync: its copies do not count, it is read only, and it is opened anew", async () => {
    const node = new Node();
    let broken = false;
    const face = Object.assign(Object.create(addon) as typeof addon, {
      diskSync: (disk: number, task: number) => {
        if (broken) setImmediate(() => node.tier.onProgress(task, 0, 0, FAILED, EIO));
        else addon.diskSync(disk, task);
      },
    });
    await node.open([node.entry()], face);
    await node.ready();
    await node.demote(await node.store(1, 50));
    broken = true;
    expect(await node.demote(await node.store(2, 50))).toBe(0);
    const device = node.tier.devices[0]!;
    expect(device.health).toBe("readOnly");
    expect(device.counters.syncFailures).toBe(1);
    expect(node.tier.mayWrite(0)).toBe(false);
    expect(await node.read(1, 50)).toEqual(zeroes(50));
    broken = false;
    await until(() => device.health === "ok" && node.tier.mayWrite(0));
    expect(node.notes.some((line) => line.includes("opened anew"))).toBe(true);
    expect(await node.read(1, 50)).toEqual(zeroes(50));
    expect(await node.demote(await node.store(3, 50))).toBe(50);
    node.ledger.audit();
    await node.close();
    const next = await nextLife(node, 100);
    await end(next);
  });

  it("and cannot be opened anew yet: it is emptied meanwhile, and given back once it is open", async () => {
    const node = new Node();
    let broken = false;
    let locked = false;
    const face = Object.assign(Object.create(addon) as typeof addon, {
      diskSync: (disk: number, task: number) => {
        if (broken) setImmediate(() => node.tier.onProgress(task, 0, 0, FAILED, EIO));
        else addon.diskSync(disk, task);
      },
      diskOpen: (options: Parameters<typeof addon.diskOpen>[0]) => {
        if (locked) throw Object.assign(new Error("a write hangs"), { code: "LOCKED" });
        return addon.diskOpen(options);
      },
    });
    await node.open([node.entry()], face);
    await node.ready();
    await node.demote(await node.store(1, 50));
    const device = node.tier.devices[0]!;
    broken = true;
    locked = true;
    await node.demote(await node.store(2, 1));
    await until(() => !device.diskOpen);
    const drained = node.tier.drainDirectory(device.directory, 60_000);
    await until(() => node.ledger.core.tier(TIER.NVME).slots.slotsUsed === 0);
    node.tier.tick();
    node.ledger.audit();
    expect(device.segments.count).toBe(4);
    broken = false;
    locked = false;
    await until(() => device.closed);
    expect(await drained).toBe("emptied");
    expect(readdirSync(device.directory).filter((name) => name.startsWith("segment-"))).toEqual([]);
    await end(node);
  });

  it("by not answering for a free segment: another one is written, and that one when it is idle", async () => {
    const node = new Node();
    const busy = new Set<number>();
    const change =
      (call: "diskAssign" | "diskRelease") =>
      (disk: number, slab: number, payloadBytes: number) => {
        if (busy.has(slab)) throw Object.assign(new Error("in use"), { code: "BUSY" });
        return addon[call](disk, slab, payloadBytes);
      };
    const face = Object.assign(Object.create(addon) as typeof addon, {
      diskAssign: change("diskAssign"),
      diskRelease: change("diskRelease"),
    });
    await node.open([node.entry()], face);
    await node.ready(4);
    for (const slab of [0, 1, 2, 3]) busy.add(slab);
    const blocks = await node.store(1, 20);
    expect(await node.demote(blocks)).toBe(0);
    node.ledger.audit();
    busy.delete(2);
    expect(await node.demote(blocks)).toBe(20);
    const slot = node.ledger.slotOf(blocks[0]!, TIER.NVME, 0);
    expect(slot >>> SLOT_INDEX_BITS).toBe(2);
    // Its blocks leave while a read of it is still owed: it keeps its class until it is asked for.
    busy.add(2);
    for (const block of blocks) node.ledger.corrupt(block, TIER.NVME);
    node.ledger.flush();
    node.ledger.audit();
    busy.clear();
    expect(await node.demote(await node.store(2, 50))).toBe(50);
    expect(await node.read(2, 50)).toEqual(zeroes(50));
    await end(node);
  });

  it("in an index commit: its copies do not count, and a new index is filled from the ledger", async () => {
    const node = await (await new Node().open()).ready();
    await node.demote(await node.store(1, 100));
    const device = node.tier.devices[0]!;
    const write = vi.spyOn(IndexStore.prototype, "write");
    write.mockImplementationOnce(function (this: IndexStore) {
      this.broken = true;
      return Promise.reject(new IndexWriteError("input/output error", EIO));
    });
    expect(await node.demote(await node.store(2, 50))).toBe(0);
    write.mockRestore();
    expect(device.health).toBe("readOnly");
    expect(device.counters.commitFailures).toBe(1);
    await until(() => device.health === "ok" && node.tier.mayWrite(0));
    expect(await node.demote(await node.store(3, 50))).toBe(50);
    await until(() => device.marks.dirtyPages === 0);
    node.ledger.audit();
    await node.close();
    const next = await nextLife(node, 150);
    expect(await next.read(1, 100)).toEqual(zeroes(100));
    await end(next);
  });

  it("for want of room: it grows no more, takes no copies, is read, and goes on when there is room", async () => {
    const node = new Node();
    let held: number | undefined;
    const face = Object.assign(Object.create(addon) as typeof addon, {
      diskPrepare: (disk: number, segment: number, task: number) => {
        if (segment === 1 && held === undefined) held = task;
        else addon.diskPrepare(disk, segment, task);
      },
    });
    await node.open([node.entry()], face);
    await until(() => held !== undefined);
    const device = node.tier.devices[0]!;
    expect(await node.demote(await node.store(1, 20))).toBe(20);
    node.tier.onProgress(held!, 0, 1, FAILED, ENOSPC);
    await until(() => device.full);
    expect(device.health).toBe("ok");
    expect(device.counters.fullEvents).toBe(1);
    expect(node.tier.mayWrite(0)).toBe(false);
    expect(await node.read(1, 20)).toEqual(zeroes(20));
    await until(() => !device.full && node.tier.mayWrite(0));
    await node.ready(4);
    expect(await node.demote(await node.store(2, 20))).toBe(20);
    await end(node);
  });

  it("in many reads: it is fenced, its blocks are lost at once, and they come back with it", async () => {
    const node = await (await new Node().open()).ready();
    await node.demote(await node.store(1, 100));
    const device = node.tier.devices[0]!;
    node.dropDram();
    expect(node.chain(1, 100)).toHaveLength(100);
    const slot = node.ledger.slotOf(node.chain(1, 1)[0]!, TIER.NVME, 0);
    for (let i = 0; i < 8; i++) node.tier.ended(slot, DISK.READ, ITEM.IO, 1);
    expect(device.health).toBe("fenced");
    expect(node.tier.mayRead(slot)).toBe(false);
    expect(node.chain(1, 100)).toHaveLength(0);
    node.ledger.audit();
    await until(() => device.health === "ok" && device.counters.headersRebuilt === 100);
    await until(() => !device.rebuilding);
    expect(await node.read(1, 100)).toEqual(zeroes(100));
    await end(node);
  });

  it("again while it is being rebuilt: what came back is lost again, and all comes back at last", async () => {
    const node = await (await new Node().open()).ready();
    await node.demote(await node.store(1, 100));
    const device = node.tier.devices[0]!;
    node.dropDram();
    device.event("hang");
    await until(() => device.rebuilding);
    device.event("hang");
    expect(node.chain(1, 100)).toHaveLength(0);
    await until(() => device.health === "ok" && !device.rebuilding && !device.rebuildNeeded);
    expect(await node.read(1, 100)).toEqual(zeroes(100));
    await end(node);
  });

  it("that stalls is slow, takes no writes, and is good again when it answers", async () => {
    const node = new Node();
    let oldestMicroseconds = 0;
    const face = Object.assign(Object.create(addon) as typeof addon, {
      diskCounters: (disk: number) => ({ ...addon.diskCounters(disk), oldestMicroseconds }),
    });
    await node.open([node.entry()], face);
    await node.ready();
    const device = node.tier.devices[0]!;
    oldestMicroseconds = 2_000_000;
    node.tier.tick();
    expect(device.health).toBe("slow");
    expect(node.tier.mayWrite(0)).toBe(false);
    expect(node.ledger.core.tier(TIER.NVME).slots.isDeviceClosed(0)).toBe(true);
    oldestMicroseconds = 0;
    await until(() => device.health === "ok");
    expect(node.ledger.core.tier(TIER.NVME).slots.isDeviceClosed(0)).toBe(false);
    oldestMicroseconds = 31_000_000;
    node.tier.tick();
    expect(device.health).toBe("fenced");
    oldestMicroseconds = 0;
    await until(() => device.health === "ok");
    await end(node);
  });
});

describe("what operators see of a device", () => {
  it("counts its bytes and its copies, within the budget it was given, before and after a clean stop", async () => {
    const entry = {
      ...new Node().entry(),
      writeBudgetBytesPerDay: 10 ** 10,
      ratedWriteBytes: 10 ** 15,
    };
    const first = new Node();
    const options = { ...entry, path: first.directory() };
    await first.open([options]);
    await first.ready(4);
    const disk = first.tier.diskOf(0);
    const before = first.tier.writeAllowanceBytes(disk);
    await first.demote(await first.store(1, 100));
    const [seen] = first.tier.snapshot();
    expect(seen).toMatchObject({ health: "ok", segments: 4, segmentsTarget: 4, full: false });
    expect(seen!.bytesWritten).toBeGreaterThan(100 * 16_384);
    expect(seen!.indexBytes).toBeGreaterThan(0);
    const facts = directoryFacts(first.directory());
    expect(facts.segmentFileBytes + facts.otherBytes).toBeLessThanOrEqual(
      entry.capacityBytes as number,
    );
    expect(first.tier.writeAllowanceBytes(disk)).toBeLessThan(before);
    expect(seen!.endurance.lifeDays).toBeGreaterThan(0);
    const { writtenBytes } = seen!.endurance;
    await first.close(5_000);
    const second = await new Node(first.root).open([options]);
    expect(second.report.recovered).toBe(100);
    expect(second.tier.snapshot()[0]!.endurance.writtenBytes).toBeGreaterThanOrEqual(writtenBytes);
    await end(second);
  });

  it("counts on when the disk is opened anew: nothing goes back, and no byte is charged twice", async () => {
    const node = await (await new Node().open()).ready();
    await node.demote(await node.store(1, 100));
    await until(() => node.tier.devices[0]!.marks.dirtyPages === 0);
    expect(await node.read(1, 100)).toEqual(zeroes(100));
    const device = node.tier.devices[0]!;
    const figures = () => {
      const { bytesRead, bytesWritten, cpuMicroseconds, endurance } = node.tier.snapshot()[0]!;
      return { bytesRead, bytesWritten, cpuMicroseconds, written: endurance.writtenBytes };
    };
    const before = figures();
    expect(before.bytesRead).toBeGreaterThan(0);
    device.event("hang");
    await until(() => device.health === "ok" && !device.rebuilding && !device.rebuildNeeded);
    expect(node.notes.some((line) => line.includes("opened anew"))).toBe(true);
    const after = figures();
    for (const name of ["bytesRead", "bytesWritten", "cpuMicroseconds"] as const) {
      expect(after[name], name).toBeGreaterThanOrEqual(before[name]);
    }
    const charged = after.written - before.written;
    expect(charged).toBeGreaterThanOrEqual(after.bytesWritten - before.bytesWritten);
    expect(charged).toBeLessThan(before.bytesWritten);
    await end(node);
  });
});

describe("directories that come and go", () => {
  it("a directory that is added brings its blocks", async () => {
    const old = new Node(await withChain());
    const node = new Node();
    await node.open();
    await node.ready();
    const path = old.directory();
    const rows = await node.tier.addDirectory({ ...node.entry(), path });
    expect(rows).toHaveLength(1);
    await until(() => node.tier.devices[1]!.counters.headersRebuilt === 100);
    expect(await node.read(1, 100)).toEqual(zeroes(100));
    await end(node);
    old.remove();
  });

  it("a directory that is drained lets go what may leave, asks for the rest, and is closed", async () => {
    const node = new Node();
    await node.open([node.entry(0), node.entry(1)]);
    await node.ready(8);
    await node.demote(await node.store(1, 200));
    await node.demote(await node.store(2, 30));
    // Chain 1 stands on disks alone, and its last block is leased: it may not leave.
    for (const block of node.chain(1, 200)) {
      if (node.ledger.stateOf(block, TIER.DRAM) === STATE.VISIBLE)
        node.ledger.corrupt(block, TIER.DRAM);
    }
    node.ledger.leaseOpen(7, 1, node.chain(1, 200).at(-1)!);
    const device = holderOf(node, 1, 200);
    const drained = node.tier.drainDirectory(device.directory, 60_000);
    await until(() => node.promoted.length > 0);
    expect(device.closed).toBe(false);
    node.ledger.leaseClose(7);
    await until(() => device.closed);
    expect(await drained).toBe("emptied");
    node.ledger.audit();
    expect(readdirSync(device.directory).filter((name) => name.startsWith("segment-"))).toEqual([]);
    await end(node);
  });

  it("a directory that cannot be emptied in time is given up", async () => {
    const node = new Node();
    await node.open([node.entry(0), node.entry(1)]);
    await node.ready(8);
    await node.demote(await node.store(1, 200));
    node.dropDram();
    node.ledger.leaseOpen(7, 1, node.chain(1, 200).at(-1)!);
    const { directory } = holderOf(node, 1, 200);
    expect(await node.tier.drainDirectory(directory, 50)).toBe("givenUp");
    expect(node.chain(1, 200).length).toBeLessThan(200);
    node.ledger.leaseClose(7);
    await end(node);
  });

  it("a directory that is no directory of ours is refused by name", async () => {
    const node = new Node();
    mkdirSync(node.directory(), { recursive: true, mode: 0o755 });
    await expect(node.open()).rejects.toMatchObject({ errorName: "directoryUnsafe" });
    node.remove();
  });
});
