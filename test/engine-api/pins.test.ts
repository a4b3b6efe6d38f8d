/** The pin budget: leases that share a prefix pin it once, and nobody pins more than allowed. */
import { afterEach, expect, it } from "vitest";
import type { CairnClient, Window } from "../../connectors/node/index.ts";
import { clientOf, keysOf, payloadOf, keyAt, rowsFrom } from "../e2e/support.ts";
import { Harness } from "./support.ts";

const ROW_BYTES = 4_096;
const PREFIX = 32;
const REQUESTS = 100;
const BUDGET_BLOCKS = PREFIX + REQUESTS;
let harness: Harness;
let client: CairnClient;

afterEach(async () => {
  client.close();
  await harness.stop();
});

async function store(window: Window, keys: Uint8Array, startDepth: number, lease = 0) {
  const count = keys.byteLength / 32 - startDepth;
  for (let row = 0; row < count; row++) {
    window.row(row).set(payloadOf(keyAt(keys, startDepth + row)));
  }
  const rest = keys.subarray(startDepth * 32);
  const parent = startDepth === 0 ? {} : { parentKey: keyAt(keys, startDepth - 1) };
  return client.store({
    window,
    startDepth,
    keys: rest,
    rows: rowsFrom(0, count),
    lease,
    ...parent,
  });
}

it("a hundred leases over one prefix count it once, and their tails each", async () => {
  const pinnedBytesMax = BUDGET_BLOCKS * ROW_BYTES;
  harness = await new Harness({ engineApi: { proof: "off", pinnedBytesMax } }).start();
  client = await clientOf(harness.socket, { engineId: "pins" });
  const window = await client.createWindow({ blocks: PREFIX + 1 });
  const prefix = keysOf(1, PREFIX);
  await store(window, prefix, 0);
  const pinned = async (): Promise<unknown> => (await client.stats())["pinnedBytes"];
  for (let request = 1; request <= REQUESTS; request++) {
    const tail = keysOf(1_000 + request, 1);
    const chain = new Uint8Array([...prefix, ...tail]);
    const found = await client.lookup(request, chain);
    expect(found).toMatchObject({ hit: PREFIX, clipped: false });
    const stored = await store(window, chain, PREFIX, found.lease);
    expect(stored.landed).toBe(1);
    expect(await pinned()).toBe((PREFIX + request) * ROW_BYTES);
  }
  // The budget is used up: what is pinned already may be leased again, nothing else.
  expect(await client.lookup(500, prefix)).toMatchObject({ hit: PREFIX, clipped: false });
  const other = keysOf(2, 4);
  await store(window, other, 0);
  expect(await client.lookup(501, other)).toMatchObject({ hit: 0, clipped: true });
  for (let request = 1; request < REQUESTS; request++) client.endRequest(request);
  client.endRequest(500);
  expect(await pinned()).toBe((PREFIX + 1) * ROW_BYTES);
  expect(await client.lookup(501, other)).toMatchObject({ hit: 4, clipped: false });
  client.endRequest(501);
  client.endRequest(REQUESTS);
  expect(await pinned()).toBe(0);
});
