/** While headers of a disk are still being read, a namespace without blocks may yet get its blocks back. */
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { TIER } from "../../src/ledger/types.ts";
import { clientOf, descriptor, eventually, keysOf, rowsFrom } from "../e2e/support.ts";
import { TestDaemon } from "../harness/daemon.ts";
import { Harness } from "./support.ts";

const MIB = 1024 * 1024;
const BLOCKS = 6;

it("a row whose blocks are still on their way from a disk is not given to another engine", async () => {
  const disk = mkdtempSync(join(tmpdir(), "cairn-adoption-"));
  const settings = {
    engineApi: { proof: "off" },
    ledger: { namespacesMax: 1 },
    nvme: {
      enabled: true,
      writeThrough: true,
      segmentBytes: MIB,
      directories: [{ path: disk, capacityBytes: 8 * MIB }],
    },
  };
  const keys = keysOf(1, BLOCKS);
  const first = await TestDaemon.start(settings);
  const client = await clientOf(first.socket);
  const window = await client.createWindow({ blocks: BLOCKS });
  const stored = { window, startDepth: 0, keys, rows: rowsFrom(0, BLOCKS) };
  await eventually(async () => (await client.store(stored)).statuses.every((s) => s === 0));
  await eventually(async () => {
    const { tiers } = await first.json<{ tiers: { visibleBlocks: number }[] }>("/v1/tiers");
    return tiers[TIER.NVME]?.visibleBlocks === BLOCKS;
  });
  client.close();
  await first.stop();
  await first.remove();
  // Without the index the headers are read while engines are served; without the pool nothing else knows.
  const gone = readdirSync(disk).filter((name) => name.startsWith("index"));
  expect(gone).not.toEqual([]);
  for (const name of gone) rmSync(join(disk, name), { recursive: true });

  const second = await new Harness(settings).start();
  const other = { engineId: "other", namespaces: [descriptor({ model: "other" })] };
  await expect(clientOf(second.socket, other)).rejects.toMatchObject({
    errorName: "tooManyNamespaces",
  });
  const again = await clientOf(second.socket);
  await eventually(async () => (await again.lookup(1, keys)).hit === BLOCKS);
  again.close();
  await expect(clientOf(second.socket, other)).rejects.toMatchObject({
    errorName: "tooManyNamespaces",
  });
  await second.stop();
  rmSync(disk, { recursive: true, force: true });
});
