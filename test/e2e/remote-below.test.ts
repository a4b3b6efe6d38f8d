/** Chunks that leave for the store from NVMe: what stands in DRAM is a small part of what the node has. */
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { metric } from "./edge-client.ts";
import {
  BLOCKS,
  CHAIN_CHUNKS,
  CHUNK_BLOCKS,
  fetched,
  objects,
  type RemoteEngine,
  RemoteNodes,
  storeChain,
} from "./remote-nodes.ts";
import { eventually, keyAt, keysOf, payloadOf, type TestDaemon } from "./support.ts";

const MIB = 1024 * 1024;
/** Five times what DRAM holds: 9 MiB over a pool of 2 MiB. */
const CHAINS = 64;

let nodes: RemoteNodes;
let shared: string;

beforeEach(() => {
  nodes = new RemoteNodes();
  shared = join(nodes.root, "shared");
  mkdirSync(shared, { mode: 0o700 });
});
afterEach(() => nodes.remove());

function nodeOf(nvme: object): TestDaemon {
  return nodes.node({ kind: "directory", directory: shared }, nvme);
}

/** Stores all chains, no faster than they are written down. */
async function fill(engine: RemoteEngine): Promise<void> {
  for (let family = 0; family < CHAINS; family++) {
    expect(await storeChain(engine, family)).toBe(BLOCKS);
    const written = (): Promise<number> => metric(engine.node, "cairn_written_back_blocks_total");
    await eventually(async () => (await written()) >= (family + 1) * BLOCKS, 60_000);
  }
}

/** Changes a byte of this block wherever it stands on the disk. */
function damage(key: Uint8Array): void {
  const needle = payloadOf(key).subarray(0, 64);
  let found = 0;
  for (const name of readdirSync(nodes.disk, { recursive: true, encoding: "utf8" })) {
    const path = join(nodes.disk, name);
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

// A machine that does other things, too, starts daemons slowly.
vi.setConfig({ testTimeout: 240_000 });

describe("a node whose DRAM is a fifth of what it holds", () => {
  it("stores every chunk once the store is back, from NVMe where DRAM has let it go", async () => {
    const node = nodeOf({});
    const engine = await nodes.start(node);
    renameSync(shared, join(nodes.root, "away"));
    await fill(engine);
    expect(await metric(node, "cairn_evicted_blocks_total")).toBeGreaterThan(CHAINS * 20);
    renameSync(join(nodes.root, "away"), shared);
    await eventually(() => objects(shared).length === CHAIN_CHUNKS * CHAINS, 120_000);
    expect(node.log()).not.toContain("a fault in cairn");
    const other = nodeOf({ enabled: false });
    const second = await nodes.start(other);
    for (const family of [0, 1, CHAINS / 2, CHAINS - 1]) {
      expect(await fetched(second, family)).toBe(CHAIN_CHUNKS * CHUNK_BLOCKS);
    }
    expect(await metric(other, "cairn_remote_corrupt_blocks_total")).toBe(0);
  });

  it("stores after a restart what an earlier life left on NVMe, and nothing that has rotted there", async () => {
    // The scrub would find it first.
    const node = nodeOf({ scrubBytesPerSecond: 0 });
    const engine = await nodes.start(node);
    renameSync(shared, join(nodes.root, "away"));
    await fill(engine);
    engine.client.close();
    expect(await node.stop()).toBe(0);
    renameSync(join(nodes.root, "away"), shared);
    const rotten = [0, 1, 2];
    // A block of each second chunk: what stands above it is unharmed.
    for (const family of rotten) damage(keyAt(keysOf(family, BLOCKS), CHUNK_BLOCKS + 2));
    await nodes.start(node);
    const sound = CHAIN_CHUNKS * CHAINS - rotten.length;
    await eventually(() => objects(shared).length === sound, 120_000);
    await eventually(async () => (await metric(node, "cairn_corrupt_blocks_total")) >= 3, 60_000);
    for (const family of rotten) {
      const last = keyAt(keysOf(family, BLOCKS), CHAIN_CHUNKS * CHUNK_BLOCKS - 1);
      const named = objects(shared).filter((path) =>
        path.includes(Buffer.from(last).toString("hex")),
      );
      expect(named).toEqual([]);
    }
    expect(node.log()).not.toContain("a fault in cairn");
  });
});
