import { afterEach, describe, expect, it } from "vitest";
import type { CairnClient, Window } from "../../connectors/node/index.ts";
import { clientOf, eventually, keyAt, keysOf, payloadOf, rowsFrom, TestDaemon } from "./support.ts";

const CHAINS = 20;
const BLOCKS = 40;

async function fill(client: CairnClient, window: Window): Promise<void> {
  for (let chain = 0; chain < CHAINS; chain++) {
    const keys = keysOf(chain, BLOCKS);
    for (let index = 0; index < BLOCKS; index++) {
      window.row(index).set(payloadOf(keyAt(keys, index)));
    }
    const stored = await client.store({ window, startDepth: 0, keys, rows: rowsFrom(0, BLOCKS) });
    expect(stored.landed).toBe(BLOCKS);
  }
}

/** Loads every chain and compares every byte; returns [hits, wrong]. */
async function check(client: CairnClient, window: Window): Promise<[number, number]> {
  let hits = 0;
  let wrong = 0;
  for (let chain = 0; chain < CHAINS; chain++) {
    const keys = keysOf(chain, BLOCKS);
    const { hit, lease } = await client.lookup(chain + 1, keys);
    hits += hit;
    window.bytes.fill(0);
    const part = keys.subarray(0, hit * 32);
    const rows = rowsFrom(0, hit);
    const loaded = await client.load({ lease, window, startDepth: 0, keys: part, rows });
    expect(loaded.failed).toEqual([]);
    for (let index = 0; index < hit; index++) {
      if (Buffer.compare(window.row(index), payloadOf(keyAt(keys, index))) !== 0) wrong++;
    }
    client.endRequest(chain + 1);
  }
  return [hits, wrong];
}

describe("a restart", () => {
  let daemon: TestDaemon;
  let client: CairnClient | undefined;
  afterEach(async () => {
    client?.close();
    await daemon.remove();
  });

  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    it(`after ${signal} serves every acknowledged block with its bytes`, async () => {
      daemon = await new TestDaemon().start();
      client = await clientOf(daemon.socket);
      const window = await client.createWindow({ blocks: BLOCKS });
      await fill(client, window);
      const epoch = client.session?.epoch;
      const code = await daemon.stop(signal);
      expect(code).toBe(signal === "SIGTERM" ? 0 : "SIGKILL");
      await daemon.start();
      const alive = client;
      await eventually(() => alive.connected);
      expect(client.session?.epoch).not.toBe(epoch);
      // The client registered the same memfd again by itself.
      expect(await check(client, window)).toEqual([CHAINS * BLOCKS, 0]);
    });
  }

  it("with keepOnStop false begins empty after a clean stop", async () => {
    daemon = await new TestDaemon({ dram: { keepOnStop: false } }).start();
    client = await clientOf(daemon.socket);
    const window = await client.createWindow({ blocks: BLOCKS });
    await fill(client, window);
    expect(await daemon.stop()).toBe(0);
    await daemon.start();
    const alive = client;
    await eventually(() => alive.connected);
    expect((await client.lookup(1, keysOf(0, BLOCKS))).hit).toBe(0);
  });

  it("in the middle of work is a miss for a client that is not strict, and never an exception", async () => {
    daemon = await new TestDaemon().start();
    client = await clientOf(daemon.socket, { strict: false });
    const window = await client.createWindow({ blocks: BLOCKS });
    await fill(client, window);
    await daemon.stop("SIGKILL");
    expect((await client.lookup(1, keysOf(0, BLOCKS))).hit).toBe(0);
    const keys = keysOf(0, 2);
    const load = await client.load({ lease: 1, window, startDepth: 0, keys, rows: [0, 1] });
    expect(load.landed).toBe(0);
    expect(load.failed).toHaveLength(2);
    const store = await client.store({ window, startDepth: 0, keys, rows: [0, 1] });
    expect(store.landed).toBe(0);
    await daemon.start();
    const alive = client;
    await eventually(() => alive.connected);
    expect((await client.lookup(1, keysOf(0, BLOCKS))).hit).toBe(BLOCKS);
  });

  it("refuses a second daemon on the same directory", async () => {
    daemon = await new TestDaemon().start();
    const pool = `${daemon.directory}/pool`;
    const second = new TestDaemon({ dram: { directory: pool } });
    await expect(second.start()).rejects.toThrow("did not start");
    expect(second.log()).toMatch(/in use by another process/);
    await second.remove();
  });

  it("asked for under load drains, exits 0 and loses nothing that was acknowledged", async () => {
    daemon = await new TestDaemon().start();
    client = await clientOf(daemon.socket, { strict: false });
    const alive = client;
    const window = await client.createWindow({ blocks: 8 * 16 });
    const acknowledged: number[] = [];
    let family = 100;
    let running = true;
    const lane = async (first: number): Promise<void> => {
      while (running) {
        const mine = family++;
        const keys = keysOf(mine, 16);
        for (let index = 0; index < 16; index++) {
          window.row(first + index).set(payloadOf(keyAt(keys, index)));
        }
        const rows = rowsFrom(first, 16);
        const { landed } = await alive.store({ window, startDepth: 0, keys, rows });
        if (landed === 16) acknowledged.push(mine);
        else running = false;
      }
    };
    const lanes = Array.from({ length: 8 }, (_, index) => lane(index * 16));
    await eventually(() => acknowledged.length > 20);
    expect(await daemon.stop()).toBe(0);
    await Promise.all(lanes);
    await daemon.start();
    await eventually(() => alive.connected);
    const newest = acknowledged.slice(-50);
    for (const mine of newest) expect((await client.lookup(1, keysOf(mine, 16))).hit).toBe(16);
  });
});
