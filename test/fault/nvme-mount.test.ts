/**
 * Power cuts, full and read-only file systems, on small ext4 file systems of the test's own. Where mounting is not
 * permitted the reason is printed; with CI_FULL=1 that is a failure.
 */
import { execFileSync } from "node:child_process";
import { readdirSync, rmSync, statSync, truncateSync, unlinkSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { Settings } from "../harness/daemon.ts";
import { chainsOf, type DiskNode, flipByte, putBytes, withDiskNode } from "../harness/disk-node.ts";
import { eventually } from "../harness/eventually.ts";
import { mountRefusal, SmallFileSystem } from "../harness/mounts.ts";
import { scaled } from "../harness/scale.ts";
import { IndexStore } from "../../tiers/nvme/index-store.ts";

const MIB = 2 ** 20;
const BLOCKS = 8;
const chains = chainsOf("mount", 20, BLOCKS);
const ALL = chains.length * BLOCKS;
const FIVE = 5 * BLOCKS;

const refusal = mountRefusal();
const required = process.env["CI_FULL"] === "1";
if (refusal !== undefined) console.warn(`no power cuts and full disks: ${refusal}`);

async function onFileSystem(
  sizeBytes: number,
  use: (node: DiskNode, files: SmallFileSystem) => Promise<void>,
  nvme: Settings = {},
): Promise<void> {
  const files = new SmallFileSystem(sizeBytes);
  try {
    const disk = join(files.mountPoint, "disk");
    await withDiskNode({ disk, capacityBytes: 32 * MIB, nvme }, (node) => use(node, files));
  } finally {
    files.remove();
  }
}

/** Each round stores more and cuts the power in the middle of it. */
async function powerCuts(direct: "auto" | "off", rounds: number): Promise<void> {
  await onFileSystem(
    128 * MIB,
    async (node, files) => {
      await node.daemon.launch();
      await node.storeDurably(chains);
      for (let round = 0; round < rounds; round++) {
        const more = chainsOf(`round-${round}`, 10, BLOCKS);
        await node.store(more.slice(0, 5));
        const unsynced = node.store(more.slice(5)).catch(() => undefined);
        files.cutPower();
        await unsynced;
        await node.killWithoutPool();
        await files.unmount();
        files.mount();
        await node.daemon.launch();
        expect(await node.daemon.metric("recoveredBlocks")).toBeGreaterThanOrEqual(ALL);
        expect(await node.read(chains)).toEqual({ hit: ALL, landed: ALL, wrong: 0, names: [] });
        const read = await node.read(more);
        expect(read).toMatchObject({ landed: read.hit, wrong: 0, names: [] });
      }
    },
    { direct },
  );
}

function suite(): void {
  it("a power cut while blocks are stored: all that was synced is back, nothing torn is served", async () => {
    await powerCuts("auto", scaled(2, 20));
  }, 300_000);

  // What was written past the page cache survives even without a sync; this is where the sync counts.
  it("a power cut with buffered writes: what counts as copied had been synced before the index named it", async () => {
    await powerCuts("off", scaled(1, 10));
  }, 300_000);

  it("a file system that fills up: stores and reads go on, the tier says full and takes blocks again", async () => {
    await onFileSystem(96 * MIB, async (node, files) => {
      await node.daemon.launch();
      await node.storeDurably(chains);
      const filler = files.fill("filler");
      // How long it stays full depends on how soon a segment that is given back makes room.
      await eventually("full is counted", async () => (await node.event("full_events")) > 0);
      const more = chainsOf("more", 5, BLOCKS);
      await node.store(more);
      expect(await node.read([...chains, ...more])).toMatchObject({
        landed: ALL + FIVE,
        wrong: 0,
        names: [],
      });
      unlinkSync(filler);
      await node.daemon.settles("nvmeFull", 0);
      await node.storeDurably(chainsOf("after", 5, BLOCKS));
    });
  });

  it.each(["index", "index and namespaces.json"])(
    "a full file system and a damaged %s at a start: read from headers, indexed anew when there is room",
    async (what) => {
      await onFileSystem(96 * MIB, async (node, files) => {
        await node.daemon.launch();
        await node.storeDurably(chains);
        await node.daemon.stop("SIGKILL");
        const index = join(node.disk, "index", "data.mdb");
        putBytes(index, 0, new Uint8Array(8_192));
        if (what !== "index") flipByte(join(node.disk, "namespaces.json"), 30);
        const filler = files.fill("filler");
        await node.daemon.launch();
        await eventually("damage is counted", async () => (await node.event("index_damaged")) > 0);
        await node.visible(ALL);
        expect(await node.read(chains)).toEqual({ hit: ALL, landed: ALL, wrong: 0, names: [] });
        unlinkSync(filler);
        await node.daemon.settles("nvmeFull", 0);
        await node.storeDurably(chainsOf("after", 5, BLOCKS));
        await node.restartWithoutPool();
        expect(await node.read(chains)).toEqual({ hit: ALL, landed: ALL, wrong: 0, names: [] });
      });
    },
  );

  // lmdb itself would end the process, by SIGBUS or by SIGSEGV, where there is room for a part of its files.
  it("a file system with room for a part of a new index: it is refused by an error, or it is whole", async () => {
    const files = new SmallFileSystem(16 * MIB);
    const ends: string[] = [];
    try {
      for (let blocks = 0; blocks < 32; blocks++) {
        const filler = files.fill("filler");
        truncateSync(filler, statSync(filler).size - blocks * 4_096);
        execFileSync("sync", ["-f", files.mountPoint]);
        const directory = join(files.mountPoint, "disk");
        const open = IndexStore.open(directory).then((store) => store.close());
        ends.push(
          await open.then(
            () => "opened",
            (error: { code: string }) => error.code,
          ),
        );
        rmSync(directory, { recursive: true, force: true });
      }
    } finally {
      files.remove();
    }
    expect(new Set(ends)).toEqual(new Set(["ENOSPC", "opened"]));
  });

  it("a file system that is read-only at a start, its index damaged: left out, nothing else is held up", async () => {
    await onFileSystem(96 * MIB, async (node, files) => {
      await node.daemon.launch();
      await node.storeDurably(chains);
      await node.killWithoutPool();
      putBytes(join(node.disk, "index", "data.mdb"), 0, new Uint8Array(8_192));
      await files.unmount();
      files.mount("ro");
      await node.daemon.launch();
      expect(node.daemon.log()).toContain("left out");
      const more = chainsOf("more", 5, BLOCKS);
      await node.store(more);
      expect(await node.read(more)).toMatchObject({ landed: FIVE, wrong: 0 });
      expect(await node.daemon.metric("nvmeLeftOut")).toBe(1);
      await files.unmount();
      files.mount();
      await node.daemon.settles("nvmeLeftOut", 0);
      await node.visible(ALL);
      expect(await node.read(chains)).toMatchObject({ landed: ALL, wrong: 0 });
    });
  });

  it("a file system that answers EIO at a start: the other disk serves, and it is opened when it answers", async () => {
    const files = new SmallFileSystem(96 * MIB);
    try {
      const [known, fresh] = ["disk", "new"].map((name) => join(files.mountPoint, name, "cairn"));
      const capacityBytes = 16 * MIB;
      const second = (path: string | undefined) => ({ path, capacityBytes });
      await withDiskNode({}, async (node) => {
        const first = second(node.disk);
        const directories = [first, second(known)];
        node.daemon.configure({ nvme: { directories } });
        await node.daemon.launch();
        await node.storeDurably(chains);
        await node.killWithoutPool();
        files.cutPower();
        // One that was in use before, and one that cannot be made.
        node.daemon.configure({ nvme: { directories: [...directories, second(fresh)] } });
        await node.daemon.launch();
        expect(await node.daemon.metric("nvmeLeftOut")).toBe(2);
        const some = await node.read(chains);
        expect(some).toMatchObject({ landed: some.hit, wrong: 0, names: [] });
        await node.store(chainsOf("meanwhile", 5, BLOCKS));
        await files.unmount();
        // What stands below the mount point is not taken for the disk.
        await eventually("it is asked again", () =>
          /still left out: .*cairn/.test(node.daemon.log()),
        );
        expect(readdirSync(files.mountPoint)).toEqual([]);
        files.mount();
        // Nobody knows yet that the new one is meant to be there: it waits for an operator.
        await node.daemon.settles("nvmeLeftOut", 1);
        await node.visible(ALL);
        expect(await node.read(chains)).toMatchObject({ landed: ALL, wrong: 0 });
        node.daemon.signal("SIGHUP");
        await node.daemon.settles("nvmeLeftOut", 0);
        expect(readdirSync(join(files.mountPoint, "new", "cairn"))).toContain("directory.cairn");
      });
    } finally {
      files.remove();
    }
  }, 300_000);

  it("a file system that turns read-only: reads and stores go on, no copy counts", async () => {
    await onFileSystem(96 * MIB, async (node, files) => {
      await node.daemon.launch();
      await node.storeDurably(chains);
      await node.restartWithoutPool();
      files.turnReadOnly();
      const more = chainsOf("more", 5, BLOCKS);
      await node.store(more);
      await eventually("the disk is no longer written", async () => {
        return (await node.daemon.metric("nvmeHealth")) > 0;
      });
      expect(await node.read(more)).toMatchObject({ landed: FIVE, wrong: 0 });
      const read = await node.read(chains);
      expect(read).toMatchObject({ landed: read.hit, wrong: 0 });
      expect(read.hit).toBe(ALL);
      expect(node.daemon.running).toBe(true);
    });
  });
}

if (refusal === undefined || required) describe("a disk on a file system of its own", suite);
else it("is not mounted here, for a reason", () => expect(refusal).not.toBe(""));
