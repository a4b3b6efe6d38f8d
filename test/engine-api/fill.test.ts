/** FILL under pressure: refused with a typed error, and a client that fails its STORE at once. */
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import { OP } from "../../src/engine-api/protocol.ts";
import { LIMITS } from "../../src/limits.ts";
import { clientOf, keysOf, payloadOf, keyAt, rowsFrom } from "../e2e/support.ts";
import { Harness, hotFrame, lookupFrame, RawClient, storeFrame } from "./support.ts";

const bound = LIMITS as { copyItemsInFlightMax: number };
const usual = bound.copyItemsInFlightMax;
let harness: Harness;

beforeAll(async () => {
  // An hour: what would wait for the fill time-out does not end within a test.
  harness = await new Harness({ engineApi: { proof: "off", storeFillMs: 3_600_000 } }).start();
});
afterEach(() => {
  bound.copyItemsInFlightMax = usual;
});
afterAll(() => harness.stop());

it("a FILL beyond the copy queue is overloaded, and the job waits on for one that fits", async () => {
  const client = new RawClient(harness.socket);
  await client.hello("fill");
  const region = (await client.register(8)).header.id;
  const keys = keysOf(1, 3);
  const job = (await client.ask(storeFrame(7, region, keys, undefined))).header.id;
  bound.copyItemsInFlightMax = 2;
  const all = hotFrame(OP.FILL, 0, 8, job, 3, [0, 0, 1, 1, 2, 2]);
  expect((await client.ask(all)).error?.errorName).toBe("overloaded");
  bound.copyItemsInFlightMax = usual;
  const completion = await client.ask(all);
  expect(completion.header).toMatchObject({ op: OP.STORE, tag: 7, count: 3 });
  expect((await client.ask(lookupFrame(9, 1, keys))).header.count).toBe(3);
  client.close();
});

it("a client whose FILL is refused fails the STORE at once, and may offer the blocks again", async () => {
  const client = await clientOf(harness.socket, { engineId: "refused", strict: true });
  const window = await client.createWindow({ blocks: 4 });
  const keys = keysOf(2, 3);
  const store = (full: boolean) =>
    client.store({
      window,
      startDepth: 0,
      keys,
      rows: rowsFrom(0, 3),
      gather: (index, row) => {
        row.set(payloadOf(keyAt(keys, index)));
        if (full) bound.copyItemsInFlightMax = 0;
      },
    });
  await expect(store(true)).rejects.toMatchObject({ errorName: "overloaded" });
  bound.copyItemsInFlightMax = usual;
  await client.flush();
  expect(harness.parts.server.jobsInFlight).toBe(0);
  expect(client.connected).toBe(true);
  expect(await store(false)).toMatchObject({ landed: 3, wanted: 3 });
  expect(client.link.waiting).toBe(0);
  client.close();
});

it("a client that is not strict is told that nothing was taken", async () => {
  const client = await clientOf(harness.socket, { engineId: "soft", strict: false });
  const window = await client.createWindow({ blocks: 4 });
  const gather = (): void => {
    bound.copyItemsInFlightMax = 0;
  };
  const keys = keysOf(3, 2);
  const stored = await client.store({ window, startDepth: 0, keys, rows: [0, 1], gather });
  expect(stored).toMatchObject({ landed: 0, wanted: 0 });
  await client.flush();
  expect(client.link.waiting).toBe(0);
  client.close();
});
