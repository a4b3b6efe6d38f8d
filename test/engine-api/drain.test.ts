import { expect, it } from "vitest";
import { FLAG, OP } from "../../src/engine-api/protocol.ts";
import { keysOf } from "../e2e/support.ts";
import { Harness, hotFrame, lookupFrame, RawClient, storeFrame } from "./support.ts";

it("a stopping daemon refuses new work, lets a job in flight end and acknowledges it", async () => {
  const harness = await new Harness({ engineApi: { proof: "off" } }).start();
  const client = new RawClient(harness.socket);
  await client.hello("drain");
  const region = (await client.register(4)).header.id;
  const keys = keysOf(1, 2);
  const { header } = await client.ask(storeFrame(5, region, keys, undefined));
  const stopped = harness.stop();
  expect((await client.ask(lookupFrame(6, 1, keys))).error?.errorName).toBe("shuttingDown");
  client.send(hotFrame(OP.FILL, 0, 7, header.id, 2, [0, 0, 1, 1]));
  const completion = await client.next();
  expect(completion?.header).toMatchObject({ tag: 5, count: 2 });
  expect((completion?.header.flags ?? 0) & FLAG.COMPLETION).not.toBe(0);
  await stopped;
  expect(await client.next()).toBeUndefined();
  expect(harness.daemon.recovery?.recovered).toBe(0);
});
