/** STATS is an engine's call: it may be asked often, so it reads counts that stand ready. */
import { expect, it, vi } from "vitest";
import { OP } from "../../src/engine-api/protocol.ts";
import { keysOf, rowsFrom } from "../e2e/support.ts";
import { coldOf, Harness, hotFrame, RawClient, storeFrame } from "./support.ts";

it("STATS tells what the DRAM tier holds and looks at no block for it", async () => {
  const harness = await new Harness().start();
  const client = new RawClient(harness.socket);
  await client.hello("stats");
  const region = (await client.register(8)).header.id;
  await client.ask(storeFrame(3, region, keysOf(1, 5), rowsFrom(0, 5)));
  expect((await client.next())?.header.count).toBe(5);
  const { core } = harness.parts.ledger;
  const look = vi.spyOn(core, "inUse");
  const node = coldOf(await client.ask(hotFrame(OP.STATS, 0, 4, 0, 0, [])))["node"];
  const looked = look.mock.calls.length;
  look.mockRestore();
  expect(node).toEqual(harness.daemon.snapshot().tiers[0]);
  expect(node).toMatchObject({ tier: "dram", blocks: 5, usedBytes: 5 * 4_096 });
  expect(looked).toBe(0);
  client.close();
  await harness.stop();
});
