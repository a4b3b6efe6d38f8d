import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { CairnClient, Window } from "../../connectors/node/index.ts";
import {
  clientOf,
  descriptor,
  eventually,
  keyAt,
  keysOf,
  payloadOf,
  rowsFrom,
  sleep,
  TestDaemon,
} from "./support.ts";

let daemon: TestDaemon;
const open: CairnClient[] = [];

async function connect(over: Parameters<typeof clientOf>[1] = {}): Promise<CairnClient> {
  const client = await clientOf(daemon.socket, over);
  open.push(client);
  return client;
}

async function storeChain(client: CairnClient, window: Window, family: number, blocks: number) {
  const keys = keysOf(family, blocks);
  for (let index = 0; index < blocks; index++) {
    window.row(index).set(payloadOf(keyAt(keys, index)));
  }
  return client.store({ window, startDepth: 0, keys, rows: rowsFrom(0, blocks) });
}

async function leases(client: CairnClient): Promise<number> {
  return (await client.stats())["leases"] as number;
}

beforeAll(async () => {
  daemon = await new TestDaemon({
    engineApi: { proof: "off", heartbeatMs: 100, heartbeatMisses: 3, storeFillMs: 300 },
  }).start();
});
afterAll(async () => {
  for (const client of open) client.close();
  await daemon.remove();
});

describe("engines", () => {
  it("find what another engine of the same namespace stored", async () => {
    const one = await connect({ engineId: "share-1" });
    const two = await connect({ engineId: "share-2" });
    const window = await one.createWindow({ blocks: 16 });
    const other = await two.createWindow({ blocks: 16, make: "daemon" });
    await storeChain(one, window, 10, 16);
    const keys = keysOf(10, 16);
    const { hit, lease } = await two.lookup(1, keys);
    expect(hit).toBe(16);
    const rows = rowsFrom(0, 16);
    const loaded = await two.load({ lease, window: other, startDepth: 0, keys, rows });
    expect(loaded.landed).toBe(16);
    expect(Buffer.compare(other.row(7), payloadOf(keyAt(keys, 7)))).toBe(0);
  });

  it("of another namespace find nothing", async () => {
    const one = await connect({ engineId: "apart-1" });
    const window = await one.createWindow({ blocks: 4 });
    await storeChain(one, window, 11, 4);
    const two = await connect({
      engineId: "apart-2",
      namespaces: [descriptor({ engineBuild: "other" })],
    });
    expect((await two.lookup(1, keysOf(11, 4))).hit).toBe(0);
  });

  it("share leases between the processes of one instance and with nobody else", async () => {
    const scheduler = await connect({ engineId: "multi" });
    const worker = await connect({ engineId: "multi", role: "worker" });
    const stranger = await connect({ engineId: "stranger" });
    expect(worker.session?.instance).toBe(scheduler.session?.instance);
    const window = await worker.createWindow({ blocks: 8 });
    await storeChain(worker, window, 12, 8);
    const keys = keysOf(12, 8);
    const { lease } = await scheduler.lookup(5, keys);
    const rows = rowsFrom(0, 8);
    const loaded = await worker.load({ lease, window, startDepth: 0, keys, rows });
    expect(loaded.landed).toBe(8);
    const theirs = await stranger.createWindow({ blocks: 8 });
    await expect(
      stranger.load({ lease, window: theirs, startDepth: 0, keys, rows }),
    ).rejects.toMatchObject({ errorName: "unknownLease" });
  });

  it("cannot join an engine id with other namespaces", async () => {
    await connect({ engineId: "taken" });
    const joining = connect({ engineId: "taken", namespaces: [descriptor({ revision: "2" })] });
    await expect(joining).rejects.toMatchObject({ errorName: "instanceMismatch" });
  });

  it("see a block only when every rank has stored its shard", async () => {
    const namespaces = [descriptor({ model: "sharded", shards: 2 })];
    const ranks = [0, 1].map((rank) =>
      connect({ engineId: "tp", role: "worker", rank, ranks: 2, namespaces }),
    );
    const [zero, one] = (await Promise.all(ranks)) as [CairnClient, CairnClient];
    const windows = [await zero.createWindow({ blocks: 8 }), await one.createWindow({ blocks: 8 })];
    const keys = keysOf(13, 8);
    for (const [shard, window] of windows.entries()) {
      for (let index = 0; index < 8; index++) {
        window.row(index).set(payloadOf(keyAt(keys, index), 4_096, shard));
      }
    }
    const rows = rowsFrom(0, 8);
    const first = zero.store({ window: windows[0]!, startDepth: 0, keys, rows, shard: 0 });
    await zero.heartbeat();
    expect((await zero.lookup(1, keys)).hit).toBe(0);
    const second = one.store({ window: windows[1]!, startDepth: 0, keys, rows, shard: 1 });
    expect((await Promise.all([first, second])).map(({ landed }) => landed)).toEqual([8, 8]);
    const { hit, lease } = await zero.lookup(1, keys);
    expect(hit).toBe(8);
    windows[1]!.bytes.fill(0);
    const window = windows[1]!;
    await one.load({ lease, window, startDepth: 0, keys, rows, shard: 1 });
    expect(Buffer.compare(window.row(3), payloadOf(keyAt(keys, 3), 4_096, 1))).toBe(0);
  });

  it("lose a block whose other rank never stores, at the deadline, and may store it again", async () => {
    const namespaces = [descriptor({ model: "half", shards: 2 })];
    const client = await connect({ engineId: "half", namespaces });
    const window = await client.createWindow({ blocks: 2 });
    const keys = keysOf(14, 2);
    const store = () => client.store({ window, startDepth: 0, keys, rows: [0, 1], shard: 0 });
    const first = await store();
    expect(first).toMatchObject({ wanted: 2, landed: 0 });
    expect(first.failed.map(({ error }) => error)).toContain("deadlineExceeded");
    expect((await store()).wanted).toBe(2);
  });

  it("wait for a block that another engine is storing", async () => {
    const one = await connect({ engineId: "slow" });
    const two = await connect({ engineId: "waiting" });
    const window = await one.createWindow({ blocks: 2 });
    const other = await two.createWindow({ blocks: 2 });
    const keys = keysOf(15, 2);
    let second: Promise<{ pending: number; landed: number }> | undefined;
    const first = await one.store({
      window,
      startDepth: 0,
      keys,
      rows: [0, 1],
      gather: (_, row) => {
        second ??= two.store({ window: other, startDepth: 0, keys, rows: [0, 1] });
        const until = performance.now() + 50;
        while (performance.now() < until); // The other STORE arrives before our FILL.
        row.fill(1);
      },
    });
    expect(first.landed).toBe(2);
    const waited = await second;
    // Whether it met the reservation or the finished block depends on who was first.
    expect((waited?.pending ?? 0) === (waited?.landed ?? -1)).toBe(true);
  });

  it("give their leases back at the end of the connection, the request and the heartbeats", async () => {
    const client = await connect({ engineId: "leasing" });
    const window = await client.createWindow({ blocks: 4 });
    await storeChain(client, window, 16, 4);
    const keys = keysOf(16, 4);
    await client.lookup(1, keys);
    await client.lookup(1, keys);
    expect(await leases(client)).toBe(1);
    const worker = await connect({ engineId: "leasing", role: "worker" });
    await worker.lookup(2, keys);
    expect(await leases(client)).toBe(2);
    worker.close();
    await eventually(async () => (await leases(client)) === 1);
    client.endRequest(1);
    expect(await leases(client)).toBe(0);
    const silent = await connect({ engineId: "silent", heartbeat: false });
    const { lease } = await silent.lookup(1, keys);
    await sleep(500);
    expect(await leases(silent)).toBe(0);
    const load = silent.load({
      lease,
      window: await silent.createWindow({ blocks: 4 }),
      startDepth: 0,
      keys,
      rows: rowsFrom(0, 4),
    });
    await expect(load).rejects.toMatchObject({ errorName: "unknownLease" });
  });

  it("extend a kept chain and send it whole again when the daemon forgot it", async () => {
    const client = await connect({ engineId: "chains" });
    const window = await client.createWindow({ blocks: 32 });
    await storeChain(client, window, 17, 32);
    const keys = keysOf(17, 32);
    const keep = { keepChain: true };
    expect((await client.lookup(9, keys.subarray(0, 20 * 32), keep)).hit).toBe(20);
    expect((await client.lookup(9, keys, keep)).hit).toBe(32);
    // Another process of the instance ends the request: the chain is gone, the client does not know.
    const other = await connect({ engineId: "chains", role: "worker" });
    other.endRequest(9);
    await other.heartbeat();
    expect((await client.lookup(9, keys, keep)).hit).toBe(32);
  });

  it("are told parentAbsent with the depth from which to offer again", async () => {
    const client = await connect({ engineId: "parents" });
    const window = await client.createWindow({ blocks: 8 });
    const keys = keysOf(18, 8);
    const early = await client.store({
      window,
      startDepth: 4,
      parentKey: keyAt(keys, 3),
      keys: keys.subarray(4 * 32),
      rows: rowsFrom(4, 4),
    });
    expect(early).toMatchObject({ parentAbsent: true, residentDepth: 0, wanted: 0 });
    expect([...early.statuses]).toEqual([4, 4, 4, 4]);
  });

  it("get a reserved block back to absent when they never fill it", async () => {
    const client = await connect({ engineId: "unfilled" });
    const window = await client.createWindow({ blocks: 2 });
    const keys = keysOf(19, 2);
    const gather = () => {
      throw new Error("the engine lost the block");
    };
    await expect(
      client.store({ window, startDepth: 0, keys, rows: [0, 1], gather }),
    ).rejects.toThrow("the engine lost the block");
    await client.flush();
    expect((await storeChain(client, window, 19, 2)).wanted).toBe(2);
  });
});

describe("windows", () => {
  it("prove their layout through the adapter's own gather and scatter", async () => {
    const client = await connect({ engineId: "layout" });
    const swap = (bytes: Uint8Array) => Uint8Array.from(bytes).reverse();
    const engineBlock = new Uint8Array(4_096);
    const good = await client.createWindow({
      blocks: 2,
      adapter: {
        gather: (pattern, row) => {
          engineBlock.set(swap(pattern));
          row.set(swap(engineBlock));
        },
        scatter: (row) => Uint8Array.from(row),
      },
    });
    expect(good.region).toBeGreaterThan(0);
    const bad = client.createWindow({
      blocks: 2,
      adapter: {
        gather: (pattern, row) => row.set(swap(pattern)),
        scatter: (row) => row,
      },
    });
    await expect(bad).rejects.toMatchObject({ errorName: "layoutMismatch" });
    const scattersBadly = client.createWindow({
      blocks: 2,
      adapter: { gather: (pattern, row) => row.set(pattern), scatter: swap },
    });
    await expect(scattersBadly).rejects.toMatchObject({ errorName: "layoutMismatch" });
  });

  it("refuse rows out of bounds, rows named twice and rows still in a job", async () => {
    const client = await connect({ engineId: "bounds" });
    const window = await client.createWindow({ blocks: 4 });
    const keys = keysOf(20, 2);
    const store = (rows: number[]) => client.store({ window, startDepth: 0, keys, rows });
    await expect(store([0, 4])).rejects.toMatchObject({ errorName: "outOfBounds" });
    await expect(store([1, 1])).rejects.toMatchObject({ errorName: "rangeBusy" });
    expect((await store([2, 3])).landed).toBe(2);
  });

  it("that are released take no job any more", async () => {
    const client = await connect({ engineId: "release" });
    const window = await client.createWindow({ blocks: 2 });
    await client.releaseWindow(window);
    const keys = keysOf(21, 2);
    const store = client.store({ window, startDepth: 0, keys, rows: [0, 1] });
    await expect(store).rejects.toMatchObject({ errorName: "unavailable" });
  });
});
