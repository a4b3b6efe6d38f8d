import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { CairnClient, Window } from "../../connectors/node/index.ts";
import { clientOf, keyAt, keysOf, payloadOf, rowsFrom, TestDaemon } from "./support.ts";

describe("blocks through the real socket", () => {
  const daemon = new TestDaemon();
  let client: CairnClient;
  let window: Window;

  beforeAll(async () => {
    await daemon.start();
    client = await clientOf(daemon.socket);
    window = await client.createWindow({ blocks: 128 });
  });
  afterAll(async () => {
    client?.close();
    await daemon.remove();
  });

  it("come back byte-exact after store, lookup and load", async () => {
    const keys = keysOf(1, 32);
    expect((await client.lookup(1, keys)).hit).toBe(0);
    const gathered: number[] = [];
    const stored = await client.store({
      window,
      startDepth: 0,
      keys,
      rows: rowsFrom(0, 32),
      gather: (index, row) => {
        gathered.push(index);
        row.set(payloadOf(keyAt(keys, index)));
      },
    });
    expect(stored.landed).toBe(32);
    expect(gathered).toHaveLength(32);
    const found = await client.lookup(1, keys);
    expect(found.hit).toBe(32);
    expect(found.dramBlocks).toBe(32);
    expect(found.lease).toBeGreaterThan(0);
    const loaded = await client.load({
      lease: found.lease,
      window,
      startDepth: 0,
      keys,
      rows: rowsFrom(64, 32),
    });
    expect(loaded).toMatchObject({ landed: 32, failed: [] });
    for (let index = 0; index < 32; index++) {
      expect(Buffer.compare(window.row(64 + index), payloadOf(keyAt(keys, index)))).toBe(0);
    }
    client.endRequest(1);
  });

  it("are not taken twice", async () => {
    const keys = keysOf(1, 32);
    const again = await client.store({ window, startDepth: 0, keys, rows: rowsFrom(0, 32) });
    expect(again).toMatchObject({ wanted: 0, pending: 0, landed: 0 });
    expect([...again.statuses]).toEqual(new Array(32).fill(0));
  });
});
