import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { CairnClient, Window } from "../../connectors/node/index.ts";
import { ask, metric } from "./edge-client.ts";
import { clientOf, eventually, keyAt, keysOf, payloadOf, rowsFrom, TestDaemon } from "./support.ts";

const MIB = 1024 * 1024;
const BLOCKS = 32;
/** Five times what DRAM holds: 10 MiB over a pool of 2 MiB. */
const CHAINS = 80;

let directory: string;
let daemon: TestDaemon;
let client: CairnClient | undefined;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "cairn-nvme-"));
});
afterEach(async () => {
  client?.close();
  client = undefined;
  await daemon.remove();
  rmSync(directory, { recursive: true, force: true });
  rmSync(`${directory}-second`, { recursive: true, force: true });
});

function daemonOf(over: Record<string, unknown> = {}): TestDaemon {
  return new TestDaemon({
    dram: { capacityBytes: 2 * MIB, slabBytes: 256 * 1024 },
    nvme: {
      enabled: true,
      directories: [{ path: directory, capacityBytes: 128 * MIB }],
      segmentBytes: 8 * MIB,
      ...over,
    },
  });
}

async function store(alive: CairnClient, window: Window, family: number): Promise<number> {
  const keys = keysOf(family, BLOCKS);
  for (let index = 0; index < BLOCKS; index++) {
    window.row(index).set(payloadOf(keyAt(keys, index)));
  }
  const rows = rowsFrom(0, BLOCKS);
  return (await alive.store({ window, startDepth: 0, keys, rows })).landed;
}

/** Loads one chain and compares every byte: hits, positions that failed, rows with other bytes. */
async function check(alive: CairnClient, window: Window, family: number) {
  const keys = keysOf(family, BLOCKS);
  const { hit, lease, nvmeBlocks } = await alive.lookup(family + 1, keys);
  window.bytes.fill(0);
  const part = keys.subarray(0, hit * 32);
  const request = { lease, window, startDepth: 0, keys: part, rows: rowsFrom(0, hit) };
  const failed = hit === 0 ? [] : (await alive.load(request)).failed;
  alive.endRequest(family + 1);
  const bad = new Set(failed.map(({ index }) => index));
  let wrong = 0;
  for (let index = 0; index < hit; index++) {
    if (bad.has(index)) continue;
    if (Buffer.compare(window.row(index), payloadOf(keyAt(keys, index))) !== 0) wrong++;
  }
  return { hit, failed, wrong, nvmeBlocks };
}

/** Blocks that are on NVMe and synced, by the daemon's own count. */
async function writtenBack(): Promise<number> {
  return metric(daemon, "cairn_written_back_blocks_total");
}

/** Stores chains no faster than they are written back, so that eviction finds a copy below each. */
async function fill(alive: CairnClient, window: Window): Promise<void> {
  for (let family = 0; family < CHAINS; family++) {
    expect(await store(alive, window, family)).toBe(BLOCKS);
    // A quarter of DRAM, about four chains, is kept copied down.
    await eventually(async () => (await writtenBack()) >= (family - 12) * BLOCKS, 60_000);
  }
}

async function checkAll(alive: CairnClient, window: Window) {
  const total = { hit: 0, failed: 0, wrong: 0, nvmeBlocks: 0 };
  for (let family = 0; family < CHAINS; family++) {
    const { hit, failed, wrong, nvmeBlocks } = await check(alive, window, family);
    total.hit += hit;
    total.failed += failed.length;
    total.wrong += wrong;
    total.nvmeBlocks += nvmeBlocks;
  }
  return total;
}

async function connect(): Promise<{ alive: CairnClient; window: Window }> {
  client = await clientOf(daemon.socket);
  await eventually(async () => (await metric(daemon, "cairn_ready").catch(() => 0)) === 1, 60_000);
  return { alive: client, window: await client.createWindow({ blocks: BLOCKS }) };
}

async function restart(): Promise<{ alive: CairnClient; window: Window }> {
  client?.close();
  await daemon.start();
  return connect();
}

// A machine that does other things, too, starts daemons slowly.
vi.setConfig({ testTimeout: 180_000 });

describe("a node whose DRAM is a fifth of what it holds", () => {
  it("serves every block from NVMe with its bytes, and promotes what it reads", async () => {
    daemon = await daemonOf().start();
    const { alive, window } = await connect();
    await fill(alive, window);
    const all = await checkAll(alive, window);
    expect(all).toMatchObject({ hit: CHAINS * BLOCKS, failed: 0, wrong: 0 });
    expect(all.nvmeBlocks).toBeGreaterThan(CHAINS * BLOCKS * 0.7);
    expect(await metric(daemon, "cairn_promoted_blocks_total")).toBeGreaterThan(0);
    expect(await metric(daemon, "cairn_evicted_unbacked_blocks_total")).toBe(0);
    // What was read last was promoted: it is served from DRAM now.
    const again = await check(alive, window, CHAINS - 1);
    expect(again).toMatchObject({ hit: BLOCKS, nvmeBlocks: 0, wrong: 0 });
  });

  it("has all that was synced after kill -9, and not one wrong byte", async () => {
    daemon = await daemonOf().start();
    const { alive, window } = await connect();
    await fill(alive, window);
    const synced = await writtenBack();
    expect(await daemon.stop("SIGKILL")).toBe("SIGKILL");
    const back = await restart();
    const all = await checkAll(back.alive, back.window);
    expect(all.wrong).toBe(0);
    expect(all.failed).toBe(0);
    expect(all.hit).toBeGreaterThanOrEqual(synced);
  });

  it("loses its DRAM pool and still serves what is on NVMe", async () => {
    daemon = await daemonOf().start();
    const { alive, window } = await connect();
    await fill(alive, window);
    const synced = await writtenBack();
    await daemon.stop("SIGKILL");
    rmSync(join(daemon.directory, "pool"), { recursive: true, force: true });
    const back = await restart();
    const all = await checkAll(back.alive, back.window);
    expect(all).toMatchObject({ wrong: 0, failed: 0 });
    expect(all.hit).toBeGreaterThanOrEqual(synced);
  });

  it("serves at once without its index, and rebuilds it from the headers", async () => {
    daemon = await daemonOf().start();
    const { alive, window } = await connect();
    await fill(alive, window);
    const synced = await writtenBack();
    await daemon.stop("SIGKILL");
    rmSync(join(directory, "index"), { recursive: true, force: true });
    rmSync(join(daemon.directory, "pool"), { recursive: true, force: true });
    const back = await restart();
    await eventually(
      async () => (await metric(daemon, 'cairn_tier_visible_blocks{tier="nvme"')) >= synced,
    );
    const all = await checkAll(back.alive, back.window);
    expect(all).toMatchObject({ wrong: 0, failed: 0 });
    expect(all.hit).toBeGreaterThanOrEqual(synced);
  });

  it("answers a flipped byte with a miss of that block, counted, the others unharmed", async () => {
    daemon = await daemonOf({ scrubBytesPerSecond: 0 }).start();
    const { alive, window } = await connect();
    await fill(alive, window);
    await daemon.stop("SIGKILL");
    rmSync(join(daemon.directory, "pool"), { recursive: true, force: true });
    const victim = keysOf(3, BLOCKS);
    expect(flip(payloadOf(keyAt(victim, BLOCKS - 1)))).toBe(1);
    const back = await restart();
    const hurt = await check(back.alive, back.window, 3);
    expect(hurt.wrong).toBe(0);
    expect(hurt.failed).toEqual([{ index: BLOCKS - 1, error: "checksumMismatch" }]);
    expect(await metric(daemon, "cairn_corrupt_blocks_total")).toBe(1);
    expect((await check(back.alive, back.window, 3)).hit).toBe(BLOCKS - 1);
    const all = await checkAll(back.alive, back.window);
    expect(all).toMatchObject({ wrong: 0, failed: 0 });
  });

  it("finds a flipped byte by itself when it has nothing else to do", async () => {
    daemon = await daemonOf({ scrubBytesPerSecond: 0 }).start();
    const { alive, window } = await connect();
    await fill(alive, window);
    await daemon.stop("SIGKILL");
    rmSync(join(daemon.directory, "pool"), { recursive: true, force: true });
    expect(flip(payloadOf(keyAt(keysOf(5, BLOCKS), BLOCKS - 1)))).toBe(1);
    const back = await restart();
    await ask(daemon, "PUT", "/v1/config", { nvme: { scrubBytesPerSecond: 64 * MIB } });
    await eventually(async () => (await metric(daemon, "cairn_scrub_failures_total")) === 1);
    const found = await check(back.alive, back.window, 5);
    expect(found).toMatchObject({ hit: BLOCKS - 1, failed: [], wrong: 0 });
  });

  it("is warm again after a clean stop, and another one at once", async () => {
    daemon = await daemonOf().start();
    const { alive, window } = await connect();
    await fill(alive, window);
    expect(await daemon.stop()).toBe(0);
    // Stopped again as soon as it serves, before its index is open.
    client?.close();
    await daemon.start();
    expect(await daemon.stop()).toBe(0);
    const back = await restart();
    const all = await checkAll(back.alive, back.window);
    expect(all).toEqual({ hit: CHAINS * BLOCKS, failed: 0, wrong: 0, nvmeBlocks: all.nvmeBlocks });
  });
});

/** Flips one byte in the middle of every place in the segments where these bytes stand; how many places. */
function flip(payload: Uint8Array): number {
  let found = 0;
  for (const name of readdirSync(directory)) {
    if (!name.startsWith("segment-")) continue;
    const file = openSync(join(directory, name), "r+");
    const chunk = Buffer.alloc(8 * MIB);
    const read = readSync(file, chunk, 0, chunk.length, 0);
    for (
      let at = chunk.indexOf(payload);
      at >= 0 && at < read;
      at = chunk.indexOf(payload, at + 1)
    ) {
      const byte = Buffer.from([chunk[at + 2_000]! ^ 0x10]);
      writeSync(file, byte, 0, 1, at + 2_000);
      found++;
    }
    closeSync(file);
  }
  return found;
}

describe("a node whose disk is smaller than what it is given", () => {
  it("evicts there, refuses nothing and serves on", async () => {
    daemon = daemonOf({ directories: [{ path: directory, capacityBytes: 16 * MIB }] });
    await daemon.start();
    const { alive, window } = await connect();
    await fill(alive, window);
    const all = await checkAll(alive, window);
    expect(all).toMatchObject({ wrong: 0, failed: 0 });
    expect(all.hit).toBeGreaterThan(0);
    expect(all.hit).toBeLessThan(CHAINS * BLOCKS);
    expect(await store(alive, window, 999)).toBe(BLOCKS);
    expect((await check(alive, window, 999)).hit).toBe(BLOCKS);
  });
});

describe("a running node", () => {
  it("copies blocks down as soon as they are stored, once it is told to", async () => {
    daemon = await daemonOf().start();
    const { alive, window } = await connect();
    expect(await store(alive, window, 1)).toBe(BLOCKS);
    await ask(daemon, "PUT", "/v1/config", { nvme: { writeThrough: true } });
    await eventually(async () => (await writtenBack()) === BLOCKS);
    const key = Buffer.from(keyAt(keysOf(1, BLOCKS), 0)).toString("hex");
    const text = await ask(daemon, "GET", `/v1/blocks/explain/${key}`);
    expect(text).toContain("synced and indexed");
  });

  it("takes a second directory in, and gives the first one back", async () => {
    daemon = await daemonOf().start();
    const { alive, window } = await connect();
    await fill(alive, window);
    const second = `${directory}-second`;
    const first = { path: directory, capacityBytes: 128 * MIB };
    const added = { path: second, capacityBytes: 128 * MIB };
    await ask(daemon, "PUT", "/v1/config", { nvme: { directories: [first, added] } });
    await eventually(async () => (await ask(daemon, "GET", "/metrics")).includes('device="1"'));
    const all = await checkAll(alive, window);
    expect(all).toMatchObject({ hit: CHAINS * BLOCKS, wrong: 0, failed: 0 });
    // The first one is given back: what lies there alone leaves, and its segments with it.
    await ask(daemon, "PUT", "/v1/config", { nvme: { directories: [added] } });
    const segments = (): number =>
      readdirSync(directory).filter((name) => name.startsWith("segment-")).length;
    await eventually(() => segments() === 0, 30_000);
    expect(await checkAll(alive, window)).toMatchObject({ wrong: 0, failed: 0 });
    expect(await store(alive, window, 500)).toBe(BLOCKS);
    expect(await check(alive, window, 500)).toMatchObject({ hit: BLOCKS, wrong: 0 });
  });
});

describe("a directory that is taken out of the configuration and put back", () => {
  it("stays, or is opened again once it was emptied: its disk is in use at the end", async () => {
    daemon = await daemonOf().start();
    const { alive, window } = await connect();
    await fill(alive, window);
    const first = { path: directory, capacityBytes: 128 * MIB };
    const second = { path: `${directory}-second`, capacityBytes: 64 * MIB };
    const put = (...directories: (typeof first)[]): Promise<string> =>
      ask(daemon, "PUT", "/v1/config", { nvme: { directories } });
    await put(first, second);
    // Faster than any drain, in both orders, and the last word with another size.
    for (let round = 0; round < 5; round++) {
      await put(second);
      await put(first, second);
      await put(first);
      await put(first, { ...second, capacityBytes: 32 * MIB });
    }
    const segments = (path: string): number =>
      readdirSync(path).filter((name) => name.startsWith("segment-")).length;
    // 128 MiB hold 15 segments of 8 MiB and the index, 32 MiB three.
    await eventually(async () => {
      const there = [segments(directory), segments(second.path)].join(" ") === "15 3";
      return there && (await metric(daemon, "cairn_nvme_capacity_bytes")) === 18 * 8 * MIB;
    }, 60_000);
    expect(await checkAll(alive, window)).toMatchObject({ wrong: 0, failed: 0 });
    expect(await store(alive, window, 500)).toBe(BLOCKS);
  });
});

describe("PREFETCH", () => {
  it("brings a chain from NVMe into DRAM before it is loaded", async () => {
    daemon = await daemonOf().start();
    const { alive, window } = await connect();
    await fill(alive, window);
    const keys = keysOf(0, BLOCKS);
    const { lease, nvmeBlocks } = await alive.lookup(1, keys);
    expect(nvmeBlocks).toBe(BLOCKS);
    expect((await alive.prefetch(lease)).verdict).toBe("accepted");
    await eventually(async () => (await alive.lookup(1, keys)).nvmeBlocks === 0);
    expect(await check(alive, window, 0)).toMatchObject({ hit: BLOCKS, nvmeBlocks: 0, wrong: 0 });
  });
});
