import { rmSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { BenchDaemon, withDaemon } from "../../bench/daemon.ts";
import { connectBench } from "../../bench/client.ts";
import { chainKeys } from "../../bench/ledger.ts";
import { replayDaemon } from "../../bench/replay/daemon.ts";
import { ON_DEMAND, replayPure } from "../../bench/replay/pure.ts";
import { conversations } from "./workload.ts";

const MIB = 2 ** 20;

describe("a replay through the daemon", () => {
  it("has the hits of the pure replay and not one wrong byte, while blocks are evicted", async () => {
    const trace = conversations(8, 400);
    const capacityBlocks = 120;
    const settings = { capacityBytes: 128 * MIB, blocksMax: capacityBlocks, ...ON_DEMAND };
    const run = await withDaemon(settings, (daemon) => replayDaemon(trace, daemon.socket, 1_024));
    const pure = replayPure(trace, { capacityBlocks, ...ON_DEMAND });
    expect(run).toMatchObject({
      ...pure,
      wrongBlocks: 0,
      failedBlocks: 0,
      comparedBlocks: pure.hits,
    });
    expect(run.storedBlocks).toBeGreaterThan(capacityBlocks * 2);
    expect(pure.hits).toBeGreaterThan(0);
  });
});

describe("a bench daemon", () => {
  it("leaves nothing behind, also when it was killed", async () => {
    const daemon = await BenchDaemon.start({ capacityBytes: 64 * MIB });
    const { pid } = daemon;
    await daemon.kill();
    expect(() => process.kill(pid, 0)).toThrow("ESRCH");
    await daemon.remove();
    expect(() => rmSync(daemon.directory)).toThrow("ENOENT");
  });

  it("serves what it held before kill -9", async () => {
    const words = new Uint32Array(64 * 8);
    chainKeys(words, 3, 64);
    await withDaemon({ capacityBytes: 64 * MIB }, async (daemon) => {
      const before = await connectBench(daemon.socket, "bench-test", 256, 64);
      before.rows.forEach((_, index) => (before.rows[index] = index % 251));
      expect(await before.store(0, words, 0, 64)).toBe(64);
      await daemon.kill();
      before.close();
      daemon.launch();
      await daemon.ready();
      const after = await connectBench(daemon.socket, "bench-test", 256, 64);
      const { hit, lease } = await after.lookup(1, words, 64);
      expect(hit).toBe(64);
      expect(await after.load(lease, words, 0, 64)).toEqual([]);
      expect(after.rows.every((byte, index) => byte === index % 251)).toBe(true);
      after.close();
    });
  });

  it("says why it did not start", async () => {
    await expect(BenchDaemon.start({ capacityBytes: 1 })).rejects.toMatchObject({
      errorName: "unavailable",
    });
  });
});
