/** Chunks that leave for the store from NVMe: what stands in DRAM is a small part of what the node has. */
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { CairnClient, Window } from "../../connectors/node/index.ts";
import { coldFrame } from "../../src/engine-api/codec.ts";
import { FLAG, OP } from "../../src/engine-api/protocol.ts";
import { coldOf, hotFrame, RawClient } from "../engine-api/support.ts";
import { metric } from "./edge-client.ts";
import {
  clientOf,
  descriptor,
  eventually,
  keyAt,
  keysOf,
  payloadOf,
  rowsFrom,
  TestDaemon,
} from "./support.ts";

const MIB = 1024 * 1024;
/** Sixteen blocks of 4 KiB make a chunk; a chain has two and a remainder that is not stored. */
const CHUNK_BLOCKS = 16;
const BLOCKS = 2 * CHUNK_BLOCKS + 4;
/** Five times what DRAM holds: 9 MiB over a pool of 2 MiB. */
const CHAINS = 64;

let root: string;
let shared: string;
const nodes: TestDaemon[] = [];
const clients: CairnClient[] = [];

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "cairn-below-"));
  shared = join(root, "shared");
  mkdirSync(shared, { mode: 0o700 });
});
afterEach(async () => {
  for (const client of clients.splice(0)) client.close();
  for (const node of nodes.splice(0)) await node.remove();
  rmSync(root, { recursive: true, force: true });
});

interface Engine {
  readonly node: TestDaemon;
  readonly client: CairnClient;
  readonly window: Window;
}

async function start(node: TestDaemon): Promise<Engine> {
  await node.start();
  await eventually(async () => (await metric(node, "cairn_ready").catch(() => 0)) === 1, 60_000);
  const client = await clientOf(node.socket);
  clients.push(client);
  return { node, client, window: await client.createWindow({ blocks: BLOCKS }) };
}

function nodeOf(nvme: object, remote: object): TestDaemon {
  const node = new TestDaemon({
    dram: { capacityBytes: 2 * MIB, slabBytes: 256 * 1024 },
    nvme: {
      enabled: true,
      directories: [{ path: join(root, "disk"), capacityBytes: 128 * MIB }],
      segmentBytes: 8 * MIB,
      writeThrough: true,
      ...nvme,
    },
    remote: {
      enabled: true,
      kind: "directory",
      directory: shared,
      chunkBytesMax: 65_536,
      cacheAbsentMs: 50,
      ...remote,
    },
  });
  nodes.push(node);
  return node;
}

/** Stores all chains, no faster than they are written down. */
async function fill({ node, client, window }: Engine): Promise<void> {
  for (let family = 0; family < CHAINS; family++) {
    const keys = keysOf(family, BLOCKS);
    for (let index = 0; index < BLOCKS; index++) {
      window.row(index).set(payloadOf(keyAt(keys, index)));
    }
    const rows = rowsFrom(0, BLOCKS);
    expect((await client.store({ window, startDepth: 0, keys, rows })).landed).toBe(BLOCKS);
    const written = (): Promise<number> => metric(node, "cairn_written_back_blocks_total");
    await eventually(async () => (await written()) >= (family + 1) * BLOCKS, 60_000);
  }
}

function objects(directory: string): string[] {
  return readdirSync(directory, { withFileTypes: true }).flatMap((entry) => {
    const path = join(directory, entry.name);
    if (entry.isDirectory()) return objects(path);
    return entry.name.endsWith(".chunk") ? [path] : [];
  });
}

/** Changes a byte of this block wherever it stands on the disk. */
function damage(key: Uint8Array): void {
  const disk = join(root, "disk");
  const needle = payloadOf(key).subarray(0, 64);
  let found = 0;
  for (const name of readdirSync(disk, { recursive: true, encoding: "utf8" })) {
    const path = join(disk, name);
    if (!statSync(path).isFile() || statSync(path).size < 8 * MIB) continue;
    const bytes = readFileSync(path);
    const file = openSync(path, "r+");
    for (let at = bytes.indexOf(needle); at >= 0; at = bytes.indexOf(needle, at + 1)) {
      writeSync(file, Buffer.from([bytes[at + 1_000]! ^ 1]), 0, 1, at + 1_000);
      found++;
    }
    closeSync(file);
  }
  expect(found).toBeGreaterThan(0);
}

/** Blocks of the chain that a node without any of them serves after PREFETCH, each compared. */
async function fetched({ node, client, window }: Engine, family: number): Promise<number> {
  const keys = keysOf(family, BLOCKS);
  const raw = new RawClient(node.socket);
  expect(
    (await raw.hello("engine-a", { namespaces: [{ ...descriptor() }] })).error,
  ).toBeUndefined();
  await raw.ask(hotFrame(OP.LOOKUP, FLAG.KEEP_CHAIN, 2, 1, BLOCKS, [0, 0, keys]));
  const body = { deadlineMs: 20_000 };
  const reply = await raw.ask(coldFrame(OP.PREFETCH, FLAG.BY_REQUEST, 3, 1, 1, body));
  expect(coldOf(reply)["verdict"]).toBe("accepted");
  await raw.next();
  raw.close();
  const { hit, lease } = await client.lookup(family + 10, keys);
  window.bytes.fill(0);
  const part = keys.subarray(0, hit * 32);
  const request = { lease, window, startDepth: 0, keys: part, rows: rowsFrom(0, hit) };
  if (hit > 0) expect((await client.load(request)).failed).toEqual([]);
  client.endRequest(family + 10);
  for (let index = 0; index < hit; index++) {
    expect(Buffer.compare(window.row(index), payloadOf(keyAt(keys, index)))).toBe(0);
  }
  return hit;
}

// A machine that does other things, too, starts daemons slowly.
vi.setConfig({ testTimeout: 240_000 });

describe("a node whose DRAM is a fifth of what it holds", () => {
  it("stores every chunk once the store is back, from NVMe where DRAM has let it go", async () => {
    const node = nodeOf({}, {});
    const engine = await start(node);
    renameSync(shared, join(root, "away"));
    await fill(engine);
    expect(await metric(node, "cairn_evicted_blocks_total")).toBeGreaterThan(CHAINS * 20);
    renameSync(join(root, "away"), shared);
    await eventually(() => objects(shared).length === 2 * CHAINS, 120_000);
    expect(node.log()).not.toContain("a fault in cairn");
    const other = nodeOf({ enabled: false }, {});
    const second = await start(other);
    for (const family of [0, 1, CHAINS / 2, CHAINS - 1]) {
      expect(await fetched(second, family)).toBe(2 * CHUNK_BLOCKS);
    }
    expect(await metric(other, "cairn_remote_corrupt_blocks_total")).toBe(0);
  });

  it("stores after a restart what an earlier life left on NVMe, and nothing that has rotted there", async () => {
    // The scrub would find it first.
    const node = nodeOf({ scrubBytesPerSecond: 0 }, {});
    const engine = await start(node);
    renameSync(shared, join(root, "away"));
    await fill(engine);
    engine.client.close();
    expect(await node.stop()).toBe(0);
    renameSync(join(root, "away"), shared);
    const rotten = [0, 1, 2];
    // A block of each second chunk: what stands above it is unharmed.
    for (const family of rotten) damage(keyAt(keysOf(family, BLOCKS), CHUNK_BLOCKS + 2));
    await start(node);
    const sound = 2 * CHAINS - rotten.length;
    await eventually(() => objects(shared).length === sound, 120_000);
    await eventually(async () => (await metric(node, "cairn_corrupt_blocks_total")) >= 3, 60_000);
    for (const family of rotten) {
      const last = keyAt(keysOf(family, BLOCKS), 2 * CHUNK_BLOCKS - 1);
      const named = objects(shared).filter((path) =>
        path.includes(Buffer.from(last).toString("hex")),
      );
      expect(named).toEqual([]);
    }
    expect(node.log()).not.toContain("a fault in cairn");
  });
});
