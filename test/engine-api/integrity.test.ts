import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { CairnClient, Window } from "../../connectors/node/index.ts";
import { METRIC } from "../../src/observe/feed.ts";
import { TIER } from "../../src/ledger/types.ts";
import {
  clientOf,
  descriptor,
  eventually,
  keyAt,
  keysOf,
  payloadOf,
  rowsFrom,
} from "../e2e/support.ts";
import { FeedReader } from "../../src/observe/feed.ts";
import { Harness } from "./support.ts";

const BLOCKS = 16;
let harness: Harness;
const open: CairnClient[] = [];

async function engine(engineId: string): Promise<{ client: CairnClient; window: Window }> {
  const client = await clientOf(harness.socket, { engineId });
  open.push(client);
  return { client, window: await client.createWindow({ blocks: 2 * BLOCKS }) };
}

async function store(client: CairnClient, window: Window, keys: Uint8Array, salt = 0) {
  const blocks = keys.byteLength / 32;
  for (let index = 0; index < blocks; index++) {
    const bytes = payloadOf(keyAt(keys, index));
    if (salt !== 0) bytes.fill(salt, 0, 64);
    window.row(index).set(bytes);
  }
  return client.store({ window, startDepth: 0, keys, rows: rowsFrom(0, blocks) });
}

function slotOf(key: Uint8Array): number {
  const { ledger } = harness.parts;
  const words = new Uint32Array(8);
  new Uint8Array(words.buffer).set(key);
  return ledger.slotOf(ledger.find(0, words, 0), TIER.DRAM, 0);
}

beforeAll(async () => {
  harness = await new Harness().start();
});
afterEach(() => {
  for (const client of open.splice(0)) client.close();
});
afterAll(() => harness.stop());

describe("a flipped bit", () => {
  it("is a miss of that block, counted, and never a wrong byte", async () => {
    const { client, window } = await engine("flip");
    const keys = keysOf(1, BLOCKS);
    await store(client, window, keys);
    const { lease } = await client.lookup(1, keys);
    const { addon, dram } = harness.parts;
    addon.arenaFlipBit(dram.arena, slotOf(keyAt(keys, 9)), 12_345);
    const before = harness.daemon.feed.get(METRIC.corruptBlocks);
    const rows = rowsFrom(BLOCKS, BLOCKS);
    const loaded = await client.load({ lease, window, startDepth: 0, keys, rows });
    expect(loaded.landed).toBe(BLOCKS - 1);
    expect(loaded.failed).toEqual([{ index: 9, error: "checksumMismatch" }]);
    for (let index = 0; index < BLOCKS; index++) {
      if (index === 9) continue;
      const row = window.row(BLOCKS + index);
      expect(Buffer.compare(row, payloadOf(keyAt(keys, index)))).toBe(0);
    }
    expect(harness.daemon.feed.get(METRIC.corruptBlocks)).toBe(before + 1);
    expect((await client.lookup(2, keys)).hit).toBe(9);
    // The lease fell back to what is still readable.
    const again = await client.load({ lease, window, startDepth: 0, keys, rows });
    expect(again.landed).toBe(9);
    client.endRequest(1);
    client.endRequest(2);
    await client.heartbeat();
    expect((await store(client, window, keys)).statuses[9]).toBe(2);
  });
});

describe("an incarnation proof", () => {
  it("is wanted from a second engine, and its success opens the blocks", async () => {
    const one = await engine("first");
    const keys = keysOf(2, BLOCKS);
    await store(one.client, one.window, keys);
    const two = await engine("second");
    const wanted = await two.client.lookup(1, keys);
    expect(wanted.hit).toBe(0);
    expect(wanted.proof?.depth).toBe(BLOCKS);
    expect(wanted.proof?.key).toEqual(keyAt(keys, BLOCKS - 1).slice());
    const loaded = await two.client.load({
      lease: wanted.lease,
      window: two.window,
      startDepth: BLOCKS - 1,
      keys: keyAt(keys, BLOCKS - 1),
      rows: [0],
    });
    expect(loaded.landed).toBe(1);
    const equal = Buffer.compare(two.window.row(0), payloadOf(keyAt(keys, BLOCKS - 1))) === 0;
    expect(equal).toBe(true);
    expect(await two.client.prove(keyAt(keys, BLOCKS - 1), equal)).toBe(true);
    expect((await two.client.lookup(1, keys)).hit).toBe(BLOCKS);
  });

  it("that fails hides older blocks from that engine alone", async () => {
    const good = await engine("good");
    const keys = keysOf(3, BLOCKS);
    await store(good.client, good.window, keys);
    const bad = await engine("bad");
    expect((await bad.client.lookup(1, keys)).proof).toBeDefined();
    const before = harness.daemon.feed.get(METRIC.proofFailures);
    expect(await bad.client.prove(keyAt(keys, BLOCKS - 1), false)).toBe(false);
    expect(harness.daemon.feed.get(METRIC.proofFailures)).toBe(before + 1);
    expect((await bad.client.lookup(1, keys)).hit).toBe(0);
    expect((await bad.client.lookup(1, keys)).proof).toBeUndefined();
    // It finds what it stores itself, with its own bytes.
    expect((await store(bad.client, bad.window, keys, 7)).landed).toBe(BLOCKS);
    const own = await bad.client.lookup(1, keys);
    expect(own.hit).toBe(BLOCKS);
    const request = { lease: own.lease, window: bad.window, startDepth: 0, keys };
    await bad.client.load({ ...request, rows: rowsFrom(BLOCKS, BLOCKS) });
    expect(bad.window.row(BLOCKS + 3)[5]).toBe(7);
    const others = await engine("good");
    const found = await others.client.lookup(9, keys);
    expect(found.hit + (found.proof?.depth ?? 0)).toBe(BLOCKS);
  });
});

describe("namespaces that declare no chain", () => {
  it("hold and serve each block by itself", async () => {
    const namespaces = [descriptor({ chained: false, model: "window" })];
    const client = await clientOf(harness.socket, { engineId: "unchained", namespaces });
    open.push(client);
    const window = await client.createWindow({ blocks: 2 * BLOCKS });
    const keys = keysOf(4, BLOCKS);
    await store(client, window, keys);
    const { hit, lease } = await client.lookup(1, keys);
    expect(hit).toBe(BLOCKS);
    const rows = rowsFrom(BLOCKS, BLOCKS);
    const loaded = await client.load({ lease, window, startDepth: 0, keys, rows });
    expect(loaded.landed).toBe(BLOCKS);
    client.endRequest(1);
    await client.heartbeat();
  });
});

describe("the feed", () => {
  it("counts injected faults and how long frames waited", async () => {
    const { client, window } = await engine("feed");
    const keys = keysOf(77, 1);
    await store(client, window, keys);
    const { feed } = harness.daemon;
    const reader = new FeedReader(feed.buffer);
    const waited = reader.histogram("frameQueueSeconds");
    const frames = feed.get(METRIC.framesReceived);
    expect(waited.count).toBe(frames);
    expect(waited.sumSeconds).toBeGreaterThan(0);
    const { addon, dram } = harness.parts;
    const before = addon.counters().faultsInjected;
    addon.arenaFlipBit(dram.arena, slotOf(keys), 1);
    await eventually(() => feed.get(METRIC.injectedFaults) === before + 1);
  });
});
