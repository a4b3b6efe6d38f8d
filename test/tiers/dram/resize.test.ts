import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { CairnClient, Window } from "../../../connectors/node/index.ts";
import { overlayConfig } from "../../../src/config/reload.ts";
import { clientOf, eventually, keyAt, keysOf, payloadOf, rowsFrom } from "../../e2e/support.ts";
import { Harness } from "../../engine-api/support.ts";

const MIB = 1024 * 1024;
const CHAINS = 8;
const BLOCKS = 100;

describe("a live pool", () => {
  let harness: Harness;
  let client: CairnClient;
  let window: Window;

  beforeAll(async () => {
    harness = await new Harness({ engineApi: { proof: "off" } }).start();
    client = await clientOf(harness.socket);
    window = await client.createWindow({ blocks: BLOCKS });
    for (let chain = 0; chain < CHAINS; chain++) {
      const keys = keysOf(chain, BLOCKS);
      for (let index = 0; index < BLOCKS; index++) {
        window.row(index).set(payloadOf(keyAt(keys, index)));
      }
      await client.store({ window, startDepth: 0, keys, rows: rowsFrom(0, BLOCKS) });
    }
  });
  afterAll(async () => {
    client.close();
    await harness.stop();
  });

  const resize = (capacityBytes: number) =>
    harness.daemon.reload(
      overlayConfig(harness.daemon.config, { dram: { capacityBytes } }, "test"),
    );

  async function wrongBlocks(): Promise<{ hits: number; wrong: number }> {
    let hits = 0;
    let wrong = 0;
    for (let chain = 0; chain < CHAINS; chain++) {
      const keys = keysOf(chain, BLOCKS);
      const { hit, lease } = await client.lookup(1, keys);
      hits += hit;
      const part = keys.subarray(0, hit * 32);
      const rows = rowsFrom(0, hit);
      const loaded =
        hit === 0
          ? undefined
          : await client.load({ lease, window, startDepth: 0, keys: part, rows });
      wrong += loaded?.failed.length ?? 0;
      for (let index = 0; index < hit; index++) {
        if (Buffer.compare(window.row(index), payloadOf(keyAt(keys, index))) !== 0) wrong++;
      }
    }
    client.endRequest(1);
    await client.heartbeat();
    return { hits, wrong };
  }

  it("shrinks by moving blocks, every byte intact, and grows again", async () => {
    expect((await resize(6 * MIB)).applied).toEqual(["dram.capacityBytes"]);
    await eventually(() => harness.parts.dram.slabs === 6);
    harness.parts.ledger.audit();
    expect(await wrongBlocks()).toEqual({ hits: CHAINS * BLOCKS, wrong: 0 });
    await resize(12 * MIB);
    await eventually(() => harness.parts.dram.slabs === 12);
    expect(await wrongBlocks()).toEqual({ hits: CHAINS * BLOCKS, wrong: 0 });
  });

  it("that shrinks below what it holds lets the oldest blocks go and keeps what is leased", async () => {
    const keys = keysOf(3, BLOCKS);
    const held = await client.lookup(77, keys);
    expect(held.hit).toBe(BLOCKS);
    await resize(2 * MIB);
    await eventually(() => harness.parts.dram.slabs === 2, 30_000);
    harness.parts.ledger.audit();
    const rows = rowsFrom(0, BLOCKS);
    const loaded = await client.load({ lease: held.lease, window, startDepth: 0, keys, rows });
    expect(loaded.landed).toBe(BLOCKS);
    client.endRequest(77);
    const after = await wrongBlocks();
    expect(after.wrong).toBe(0);
    expect(after.hits).toBeGreaterThanOrEqual(BLOCKS);
    expect(after.hits).toBeLessThan(CHAINS * BLOCKS);
  });

  it("refuses a size the host cannot hold and stays as it is", async () => {
    const { config } = harness.daemon;
    const vast = { ...config, dram: { ...config.dram, capacityBytes: 2 ** 49 } };
    await expect(harness.daemon.reload(vast)).rejects.toMatchObject({ errorName: "poolTooLarge" });
    expect(harness.parts.dram.slabs).toBe(2);
    await expect(
      harness.daemon.reload(
        overlayConfig(harness.daemon.config, { dram: { slabBytes: 2 * MIB } }, "test"),
      ),
    ).rejects.toMatchObject({ errorName: "restartNeeded" });
  });
});
