import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { CairnClient, Window } from "../../connectors/node/index.ts";
import { CairnStore } from "../../connectors/node/llama/cairn-store.ts";
import { coldFrame } from "../../src/engine-api/codec.ts";
import { FLAG, OP } from "../../src/engine-api/protocol.ts";
import { LIMITS } from "../../src/limits.ts";
import { coldOf, hotFrame, RawClient } from "../engine-api/support.ts";
import { ask, metric } from "./edge-client.ts";
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

interface Stats {
  readonly totals: { readonly remoteLeftOut: number };
}

const MIB = 1024 * 1024;
const ROW_BYTES = 256 * 1024;
/** Sixteen blocks of 256 KiB make a chunk of 4 MiB; two chunks and a remainder that is not stored. */
const CHUNK_BLOCKS = 16;
const BLOCKS = 2 * CHUNK_BLOCKS + 3;
const namespaces = [descriptor({ rowBytes: ROW_BYTES })];
const keys = keysOf(1, BLOCKS);

let shared: string;
const nodes: TestDaemon[] = [];
const clients: CairnClient[] = [];

beforeEach(() => {
  shared = mkdtempSync(join(tmpdir(), "cairn-remote-"));
});
afterEach(async () => {
  for (const client of clients.splice(0)) client.close();
  for (const node of nodes.splice(0)) await node.remove();
  rmSync(shared, { recursive: true, force: true });
});

interface Engine {
  readonly node: TestDaemon;
  readonly client: CairnClient;
  readonly window: Window;
}

/** A node over the shared directory, and an engine on it. */
async function engineOf(sealing: object = {}): Promise<Engine> {
  const node = await new TestDaemon({
    dram: { capacityBytes: 48 * MIB, slabBytes: 8 * MIB },
    remote: { enabled: true, kind: "directory", directory: shared, cacheAbsentMs: 50, ...sealing },
  }).start();
  nodes.push(node);
  await eventually(async () => (await metric(node, "cairn_ready").catch(() => 0)) === 1, 60_000);
  const client = await clientOf(node.socket, { namespaces });
  clients.push(client);
  return { node, client, window: await client.createWindow({ blocks: BLOCKS }) };
}

async function store({ client, window }: Engine): Promise<void> {
  for (let index = 0; index < BLOCKS; index++) {
    window.row(index).set(payloadOf(keyAt(keys, index), ROW_BYTES));
  }
  const rows = rowsFrom(0, BLOCKS);
  expect((await client.store({ window, startDepth: 0, keys, rows })).landed).toBe(BLOCKS);
}

async function uploaded(node: TestDaemon, outcome: string): Promise<number> {
  return metric(node, `cairn_uploaded_chunks_total{outcome="${outcome}"`);
}

/** Blocks that load with their bytes. */
async function good({ client, window }: Engine): Promise<number> {
  const { hit, lease } = await client.lookup(2, keys);
  window.bytes.fill(0);
  if (hit === 0) return 0;
  const part = keys.subarray(0, hit * 32);
  const rows = rowsFrom(0, hit);
  const loaded = await client.load({ lease, window, startDepth: 0, keys: part, rows });
  expect(loaded.failed).toEqual([]);
  client.endRequest(2);
  for (let index = 0; index < hit; index++) {
    const wanted = payloadOf(keyAt(keys, index), ROW_BYTES);
    expect(Buffer.compare(window.row(index), wanted)).toBe(0);
  }
  return hit;
}

/** Announces the whole chain, asks for it and waits for the completion: blocks that stand in DRAM then. */
async function prefetch({ node }: Engine): Promise<number> {
  const raw = new RawClient(node.socket);
  const declared = [{ ...descriptor({ rowBytes: ROW_BYTES }) }];
  expect((await raw.hello("engine-a", { namespaces: declared })).error).toBeUndefined();
  await raw.ask(hotFrame(OP.LOOKUP, FLAG.KEEP_CHAIN, 2, 1, BLOCKS, [0, 0, keys]));
  const body = { deadlineMs: 20_000 };
  const reply = await raw.ask(coldFrame(OP.PREFETCH, FLAG.BY_REQUEST, 3, 1, 1, body));
  expect(coldOf(reply)["verdict"]).toBe("accepted");
  const completion = await raw.next();
  raw.close();
  expect(completion?.header).toMatchObject({ op: OP.PREFETCH, tag: 3 });
  return completion?.header.count ?? -1;
}

function objects(directory: string): string[] {
  return readdirSync(directory, { withFileTypes: true }).flatMap((entry) => {
    const path = join(directory, entry.name);
    if (entry.isDirectory()) return objects(path);
    return entry.name.endsWith(".chunk") ? [path] : [];
  });
}

// A machine that does other things, too, starts daemons slowly.
vi.setConfig({ testTimeout: 180_000 });

it("serves without a store that cannot be asked at all, and says so in its figures", async () => {
  // Valid as words, but an access point has no path style.
  const s3 = { bucket: "arn:aws:s3:eu-west-1:1:accesspoint/kv", pathStyle: true };
  const node = await new TestDaemon({ remote: { enabled: true, kind: "s3", s3 } }).start();
  nodes.push(node);
  const leftOut = (): Promise<number> => metric(node, "cairn_remote_left_out_total");
  await eventually(async () => (await leftOut().catch(() => 0)) === 1);
  expect(await metric(node, "cairn_remote_stores")).toBe(0);
  const { totals } = JSON.parse(await ask(node, "GET", "/v1/stats")) as Stats;
  expect(totals.remoteLeftOut).toBe(1);
});

describe("two nodes over one shared directory", () => {
  it("serve each other's chunks, byte for byte, after PREFETCH", async () => {
    const first = await engineOf();
    await store(first);
    await eventually(async () => (await uploaded(first.node, "stored")) === 2, 30_000);
    expect(objects(shared)).toHaveLength(2);
    const second = await engineOf();
    expect((await second.client.lookup(1, keys)).hit).toBe(0);
    expect(await prefetch(second)).toBe(2 * CHUNK_BLOCKS);
    expect(await good(second)).toBe(2 * CHUNK_BLOCKS);
    expect(await metric(second.node, "cairn_prefetched_blocks_total")).toBe(2 * CHUNK_BLOCKS);
  });

  it("tell a LOOKUP what the store has, as a hint", async () => {
    const first = await engineOf();
    await store(first);
    await eventually(async () => (await uploaded(first.node, "stored")) === 2, 30_000);
    const second = await engineOf();
    const hint = async (): Promise<number> =>
      (await second.client.lookup(1, keys)).remotePrefixBlocks;
    const asked = await second.client.lookup(1, keys);
    expect([asked.remotePrefixBlocks, asked.remoteAsking]).toEqual([0, true]);
    await eventually(async () => (await hint()) === 2 * CHUNK_BLOCKS);
    const last = await second.client.lookup(1, keys);
    expect([last.hit, last.remoteAsking]).toEqual([0, false]);
  });

  it("do not store what is there already", async () => {
    const first = await engineOf();
    await store(first);
    await eventually(async () => (await uploaded(first.node, "stored")) === 2, 30_000);
    const second = await engineOf();
    await store(second);
    await eventually(async () => (await uploaded(second.node, "exists")) === 2, 30_000);
    expect(await uploaded(second.node, "stored")).toBe(0);
  });

  it("seal by their tenant's key; a node without it has misses until it is given the key", async () => {
    const files = [join(shared, "first.keys"), join(shared, "second.keys")] as const;
    const keyLine = (tenant: string): string =>
      `${tenant} 2026 ${Buffer.alloc(32, 9).toString("base64")}\n`;
    writeFileSync(files[0], keyLine("default"), { mode: 0o600 });
    writeFileSync(files[1], keyLine("another"), { mode: 0o600 });
    // One node asks a command for its keys, the other reads a file.
    const first = await engineOf({ sealing: "on", keyCommand: ["/bin/cat", files[0]] });
    await store(first);
    await eventually(async () => (await uploaded(first.node, "stored")) === 2, 30_000);
    const row = Buffer.from(payloadOf(keyAt(keys, 0), ROW_BYTES)).subarray(0, 64);
    const bodies = objects(shared).map((path) => readFileSync(path));
    expect(bodies.map((body) => body.includes(row))).toEqual([false, false]);
    const second = await engineOf({ sealing: "on", keyFile: files[1] });
    const missing = (): Promise<number> =>
      metric(second.node, "cairn_remote_seal_key_missing_total");
    expect(await prefetch(second)).toBe(0);
    await eventually(async () => (await missing()) > 0);
    expect((await second.client.lookup(1, keys)).hit).toBe(0);
    writeFileSync(files[1], keyLine("default"));
    second.node.signal("SIGHUP");
    await eventually(async () => (await prefetch(second)) === 2 * CHUNK_BLOCKS, 30_000);
    expect(await good(second)).toBe(2 * CHUNK_BLOCKS);
  });

  it("let an engine that waits for them go on once no more of them can be had", async () => {
    const first = await engineOf();
    await store(first);
    await eventually(async () => (await uploaded(first.node, "stored")) === 2, 30_000);
    const second = await engineOf();
    await eventually(async () => (await second.client.lookup(1, keys)).remotePrefixBlocks > 0);
    // Half of the prefix that was promised is gone.
    const [whole] = objects(shared).filter((path) =>
      readFileSync(path).includes(Buffer.from(keyAt(keys, 0))),
    );
    for (const path of objects(shared)) if (path !== whole) rmSync(path);
    const engine = new CairnStore({
      socket: second.node.socket,
      engineId: "engine-a",
      descriptor: namespaces[0]!,
      remoteWaitMs: LIMITS.loadDeadlineMsMax,
      timeoutMs: LIMITS.loadDeadlineMsMax,
    });
    const chain = Array.from({ length: BLOCKS }, (_, index) => Buffer.from(keyAt(keys, index)));
    const before = await metric(second.node, "cairn_lookups_total");
    expect((await engine.lookup(2, chain)).hitBlocks).toBe(CHUNK_BLOCKS);
    engine.close();
    // An engine that asked every 10 ms until its wait was over asked thousands of times.
    const lookups = async (): Promise<number> => metric(second.node, "cairn_lookups_total");
    await eventually(async () => (await lookups()) > before);
    expect((await lookups()) - before).toBeLessThan(100);
  });

  it("never serve an object with a flipped byte", async () => {
    const first = await engineOf();
    await store(first);
    await eventually(async () => (await uploaded(first.node, "stored")) === 2, 30_000);
    for (const path of objects(shared)) {
      const file = openSync(path, "r+");
      writeSync(file, Buffer.from([0x5a]), 0, 1, Math.floor(statSync(path).size / 2));
      closeSync(file);
    }
    const second = await engineOf();
    const resident = await prefetch(second);
    const hit = await good(second);
    expect(hit).toBe(resident);
    expect(hit).toBeLessThan(CHUNK_BLOCKS);
    const corrupt = (): Promise<number> => metric(second.node, "cairn_remote_corrupt_blocks_total");
    await eventually(async () => (await corrupt()) > 0);
    // Nobody said that this node may remove what looks bad from here.
    expect(objects(shared)).toHaveLength(2);
  });
});
