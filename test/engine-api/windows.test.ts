/** Windows that take long to touch, that are lost meanwhile, and that share their memory. */
import { readdirSync } from "node:fs";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { loadAddon } from "../../addon/load.ts";
import { coldFrame } from "../../src/engine-api/codec.ts";
import { FLAG, OP } from "../../src/engine-api/protocol.ts";
import type { Region } from "../../src/engine-api/regions.ts";
import { METRIC } from "../../src/observe/feed.ts";
import { eventually, keysOf } from "../e2e/support.ts";
import {
  coldOf,
  Harness,
  hotFrame,
  lookupFrame,
  RawClient,
  registerBody,
  storeFrame,
} from "./support.ts";

const MIB = 1024 * 1024;
const addon = loadAddon();
/** The next window's pages cannot be had: its mapping is taken from under the thread that touches them. */
let failTouching = false;
let harness: Harness;
const open: RawClient[] = [];

beforeAll(async () => {
  const failing = {
    ...addon,
    regionTouch: (region: number, task: number): void => {
      addon.regionTouch(region, task);
      if (failTouching) addon.regionUnmap(region);
    },
    regionUnmap: (region: number): void => {
      if (!failTouching) addon.regionUnmap(region);
    },
  };
  harness = await new Harness({ engineApi: { proof: "off" } }, failing).start();
});
afterEach(async () => {
  failTouching = false;
  for (const client of open.splice(0)) client.close();
  const { feed, windows } = harness.parts.server.context;
  await eventually(() => feed.get(METRIC.regionBytes) === 0 && windows.touching.size === 0);
  expect(windows.missingBytes).toBe(0);
});
afterAll(() => harness.stop());

async function raw(engineId: string): Promise<RawClient> {
  const client = new RawClient(harness.socket);
  open.push(client);
  await client.hello(engineId);
  return client;
}

/** REGISTER of a window that the daemon makes. */
function registerFrame(tag: number, sizeBytes: number): Uint8Array {
  const body = { ...registerBody(1), make: "daemon", sizeBytes };
  return coldFrame(OP.REGISTER, 0, tag, 0, 0, body);
}

function regionOf(id: number): Region {
  for (const { regions } of harness.parts.server.context.sessions.connections.values()) {
    const region = regions.get(id);
    if (region !== undefined) return region;
  }
  throw new Error(`no region ${id}`);
}

describe("device memory", () => {
  it("is refused by name, and the connection goes on", async () => {
    const client = await raw("device");
    const body = { kind: "deviceMemory", namespace: 1, device: new Uint8Array(16), sizeBytes: MIB };
    const refused = await client.ask(coldFrame(OP.REGISTER, 0, 5, 0, 0, body));
    expect(refused.error?.errorName).toBe("memoryUnsupported");
    expect((await client.ask(registerFrame(6, MIB))).error).toBeUndefined();
  });
});

describe("a window of 1 GiB", () => {
  it("is touched while look-ups are answered, and its REGISTER when all pages are there", async () => {
    const owner = await raw("owner");
    const other = await raw("other");
    owner.send(registerFrame(5, 1024 * MIB));
    owner.send(lookupFrame(6, 1, keysOf(1, 4)));
    const answered: number[] = [];
    let registered = false;
    const replies = (async () => {
      for (let frames = 0; frames < 2; frames++) answered.push((await owner.next())!.header.tag);
      registered = true;
    })();
    let lookups = 0;
    while (!registered) {
      const reply = await other.ask(lookupFrame(7, 1, keysOf(1, 4)));
      expect(reply.error).toBeUndefined();
      if (!registered) lookups += 1;
    }
    await replies;
    expect(answered).toEqual([6, 5]);
    expect(lookups).toBeGreaterThan(0);
  });

  it("cannot be named before its REGISTER is answered", async () => {
    const client = await raw("early");
    client.send(registerFrame(5, 256 * MIB));
    await eventually(() => harness.parts.server.context.windows.touching.size === 1);
    const [id] = harness.parts.server.context.windows.touching.keys();
    expect((await client.ask(storeFrame(6, id!, keysOf(1, 1), [0]))).error?.errorName).toBe(
      "unknownRegion",
    );
    const unregister = hotFrame(OP.UNREGISTER, 0, 7, id!, 0, []);
    expect((await client.ask(unregister)).error?.errorName).toBe("unknownRegion");
    expect((await client.next())?.header).toMatchObject({ tag: 5, id });
    expect((await client.ask(unregister)).error).toBeUndefined();
  });

  it("is freed when its connection closes meanwhile", async () => {
    const { feed, windows } = harness.parts.server.context;
    const before = readdirSync("/proc/self/fd").length;
    const client = await raw("gone");
    client.send(registerFrame(5, 512 * MIB));
    await eventually(() => windows.touching.size === 1);
    expect(feed.get(METRIC.regionBytes)).toBe(512 * MIB);
    client.close();
    await eventually(() => feed.get(METRIC.regionBytes) === 0 && windows.touching.size === 0);
    await eventually(() => readdirSync("/proc/self/fd").length <= before);
  });

  it("whose pages cannot be had is answered windowMap and leaves nothing", async () => {
    const client = await raw("poor");
    failTouching = true;
    const reply = await client.ask(registerFrame(5, 256 * MIB));
    expect(reply.header.tag).toBe(5);
    expect(reply.error?.errorName).toBe("windowMap");
    expect(harness.parts.server.context.feed.get(METRIC.regionBytes)).toBe(0);
    failTouching = false;
    expect((await client.ask(registerFrame(6, MIB))).error).toBeUndefined();
  });
});

describe("one memfd registered twice", () => {
  it("lends a byte range to one job only, also across connections", async () => {
    const first = await raw("alias");
    const second = await raw("alias");
    const { descriptor } = addon.clientMemfd(8 * 4_096, false);
    const one = await first.register(8, {}, descriptor);
    const two = await second.register(4, { sizeBytes: 8 * 4_096, strideBytes: 8_192 }, descriptor);
    expect([one.error, two.error]).toEqual([undefined, undefined]);
    const region = regionOf(one.header.id);
    region.take(Uint32Array.of(2), 0, 1, 1);
    const keys = keysOf(9, 1);
    // Row 1 of the second region begins where row 2 of the first does.
    const busy = await second.ask(storeFrame(8, two.header.id, keys, [1]));
    expect(busy.error?.errorName).toBe("rangeBusy");
    region.give(2);
    expect((await second.ask(storeFrame(9, two.header.id, keys, [1]))).error).toBeUndefined();
    expect(((await second.next())?.header.flags ?? 0) & FLAG.COMPLETION).not.toBe(0);
    addon.closeDescriptor(descriptor);
  });

  it("is bounded", async () => {
    const client = await raw("many");
    const { descriptor } = addon.clientMemfd(4_096, false);
    for (let count = 0; count < 16; count++) {
      const reply = await client.register(1, {}, descriptor);
      expect(coldOf(reply)["region"]).toBe(reply.header.id);
    }
    expect((await client.register(1, {}, descriptor)).error?.errorName).toBe("overloaded");
    addon.closeDescriptor(descriptor);
  });
});
