/** Windows and descriptors that are not what they should be: refused by name, and no descriptor stays behind. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { decodeCold } from "../../src/engine-api/codec.ts";
import { FLAG, OP, type RegisterRequest } from "../../src/engine-api/protocol.ts";
import { TestDaemon, withDaemon } from "../harness/daemon.ts";
import { DescriptorClient, type DescriptorKind } from "../harness/descriptors.ts";
import { chainOf, TestEngine } from "../harness/engine.ts";
import { eventually } from "../harness/eventually.ts";
import {
  coldFrame,
  descriptorOf,
  frameOf,
  helloOf,
  loadBody,
  registerOf,
  storeBody,
} from "../harness/frames.ts";
import { errorName, Wire } from "../harness/wire.ts";

let daemon: TestDaemon;
let idleDescriptors: number;
const wires: Wire[] = [];

beforeAll(async () => {
  daemon = await TestDaemon.start({ engineApi: { windowBytesMax: 4 * 1024 * 1024 } });
  const first = await TestEngine.start(daemon.socket);
  first.close();
  await daemon.settles("connections", 0);
  await daemon.get("/metrics");
  idleDescriptors = daemon.descriptors();
});

afterEach(async () => {
  for (const wire of wires.splice(0)) wire.close();
  await daemon.settles("connections", 0);
  await daemon.settles("regions", 0);
  await daemon.settles("regionBytes", 0);
  await eventually("descriptors go back", () => daemon.descriptors() <= idleDescriptors + 2);
  expect(daemon.log()).not.toMatch(/assert|fault in cairn/i);
});

afterAll(async () => {
  await daemon?.remove();
});

async function greet(engineId: string): Promise<Wire> {
  const wire = Wire.open(daemon.socket);
  wires.push(wire);
  const namespaces = [descriptorOf(), descriptorOf({ model: "wide", rowBytes: 8_192 })];
  expect(errorName(await wire.cold(OP.HELLO, helloOf(engineId, namespaces)))).toBe("none");
  return wire;
}

describe("a window that the client makes", () => {
  const cases: readonly [DescriptorKind, string][] = [
    ["unsealed", "windowNotSealed"],
    ["grow", "windowNotSealed"],
    ["shrink", "windowNotSealed"],
    ["null", "windowNotSealed"],
    ["directory", "windowNotSealed"],
    ["pipe", "windowNotSealed"],
    ["socket", "windowNotSealed"],
    ["small", "windowTooSmall"],
    ["empty", "windowTooSmall"],
    ["frozen", "windowMap"],
    ["sealed", "none"],
  ];

  it.each(cases)("that is %s is answered %s", async (kind, name) => {
    const client = new DescriptorClient(daemon.socket);
    try {
      await client.send(coldFrame(OP.HELLO, 0, 1, 0, 0, helloOf("descriptors")), []);
      expect(errorName(await client.frame())).toBe("none");
      const register = coldFrame(
        OP.REGISTER,
        FLAG.DESCRIPTOR,
        2,
        0,
        0,
        registerOf({ make: "client" }),
      );
      const errors = name === "none" ? 0 : 1;
      await daemon.counts("frameErrors", "other", () => client.send(register, [kind]), errors);
      expect(errorName(await client.frame())).toBe(name);
      await client.send(frameOf({ op: OP.HEARTBEAT, tag: 3 }), []);
      expect((await client.frame()).tag).toBe(3);
    } finally {
      await client.close();
    }
  });

  it("without its descriptor, or a daemon-made one with one, is malformedFrame", async () => {
    const wire = await greet("missing");
    expect(errorName(await wire.cold(OP.REGISTER, registerOf({ make: "client" })))).toBe(
      "malformedFrame",
    );
    const client = new DescriptorClient(daemon.socket);
    await client.send(coldFrame(OP.HELLO, 0, 1, 0, 0, helloOf("surplus")), []);
    await client.frame();
    const register = coldFrame(OP.REGISTER, FLAG.DESCRIPTOR, 2, 0, 0, registerOf());
    await client.send(register, ["sealed"]);
    expect(errorName(await client.frame())).toBe("malformedFrame");
    await client.close();
  });
});

describe("descriptors that nobody asked for", () => {
  it("on frames that take none are closed, with and without the flag", async () => {
    const client = new DescriptorClient(daemon.socket);
    await client.send(coldFrame(OP.HELLO, FLAG.DESCRIPTOR, 1, 0, 0, helloOf("flood")), ["sealed"]);
    expect(errorName(await client.frame())).toBe("none");
    const during = daemon.descriptors();
    for (let tag = 2; tag < 202; tag++) {
      const flags = tag % 2 === 0 ? FLAG.DESCRIPTOR : 0;
      await client.send(frameOf({ op: OP.HEARTBEAT, flags, tag }), ["null", "sealed", "pipe"]);
      expect((await client.frame()).tag).toBe(tag);
    }
    await eventually("surplus is closed", () => daemon.descriptors() <= during + 2);
    await client.close();
  });

  it("with every byte of a frame that never ends do not pile up", async () => {
    const client = new DescriptorClient(daemon.socket);
    await client.send(coldFrame(OP.HELLO, 0, 1, 0, 0, helloOf("pile")), []);
    expect(errorName(await client.frame())).toBe("none");
    const during = daemon.descriptors();
    const frame = frameOf({ op: OP.TOUCH, namespace: 1, flags: FLAG.DESCRIPTOR, bodyBytes: 8_192 });
    await client.send(frame, []);
    await client.send(new Uint8Array(4_096), ["null"], 1);
    const bystander = await greet("bystander");
    await bystander.beat();
    expect(daemon.descriptors()).toBeLessThan(during + 64);
    await client.close();
  });
});

describe("geometry that does not fit", () => {
  const row = 4_096;
  const cases: readonly [string, string, Partial<RegisterRequest>][] = [
    ["a stride below the row", "layoutMismatch", { strideBytes: row - 1 }],
    ["the wide namespace with narrow rows", "layoutMismatch", { namespace: 2 }],
    ["one row too many", "outOfBounds", { blocks: 65 }],
    ["an offset that pushes the last row out", "outOfBounds", { offsetBytes: 1 }],
    ["an offset of 2^50", "outOfBounds", { offsetBytes: 2 ** 50 }],
    ["a stride of 2^50 in many rows", "outOfBounds", { strideBytes: 2 ** 50 }],
    ["no rows", "malformedFrame", { blocks: 0 }],
    ["half a row", "malformedFrame", { blocks: 1.5 }],
    ["a negative offset", "malformedFrame", { offsetBytes: -1 }],
    ["more rows than a region may have", "malformedFrame", { blocks: 2 ** 25 }],
    ["a window of no bytes", "malformedFrame", { sizeBytes: 0 }],
    ["more bytes than the budget", "windowBudget", { sizeBytes: 8 * 1024 * 1024 }],
    ["a namespace nobody declared", "unknownNamespace", { namespace: 9 }],
  ];

  it.each(cases)("%s is answered %s", async (_what, name, changes) => {
    const wire = await greet("geometry");
    await daemon.counts("frameErrors", undefined, async () => {
      expect(errorName(await wire.cold(OP.REGISTER, registerOf(changes)))).toBe(name);
    });
    expect(errorName(await wire.cold(OP.REGISTER, registerOf()))).toBe("none");
  });

  it("windows are budgeted per instance, and the budget comes back", async () => {
    const one = await greet("budget");
    const two = await greet("budget");
    const half = registerOf({ sizeBytes: 3 * 1024 * 1024 });
    const first = await one.cold(OP.REGISTER, half);
    expect(errorName(first)).toBe("none");
    expect(errorName(await two.cold(OP.REGISTER, half))).toBe("windowBudget");
    expect(errorName(await one.call({ op: OP.UNREGISTER, id: first.id }))).toBe("none");
    expect(errorName(await two.cold(OP.REGISTER, half))).toBe("none");
  });

  it("regions per connection are bounded", async () => {
    const wire = await greet("regions");
    const small = registerOf({ sizeBytes: 4_096, blocks: 1 });
    await daemon.counts("overloads", undefined, async () => {
      let name = "none";
      for (let index = 0; index < 65 && name === "none"; index++) {
        name = errorName(await wire.cold(OP.REGISTER, small));
        expect(index < 64 ? "none" : "overloaded").toBe(name);
      }
    });
  });
});

describe("a window larger than the host", () => {
  it("is refused before the host runs out of memory", async () => {
    await withDaemon({}, async (own) => {
      const wire = await Wire.connect(own.socket);
      await wire.cold(OP.HELLO, helloOf("glutton"));
      const sizeBytes = 60 * 1024 ** 3;
      expect(["windowMap", "windowBudget"]).toContain(
        errorName(await wire.cold(OP.REGISTER, registerOf({ sizeBytes, blocks: 1 }))),
      );
      await wire.beat();
      expect(own.running).toBe(true);
    });
  });
});

describe("the layout proof", () => {
  const keys = chainOf("layout", 1);
  const rows = [0];

  it("stands before every STORE and LOAD, fails on other bytes, and passes on the pattern", async () => {
    const wire = await greet("prover");
    const registered = await wire.cold(OP.REGISTER, registerOf({ proof: true }));
    const { region, seed, block } = decodeCold(registered.body) as Record<string, number>;
    const store = {
      op: OP.STORE,
      flags: FLAG.DATA_READY,
      count: 1,
      namespace: 1,
      body: storeBody({ region: region!, keys, tokens: 16, rows }),
    };
    expect(errorName(await wire.call(store))).toBe("regionUnproven");
    await daemon.counts("layoutProofFailures", undefined, async () => {
      const proof = await wire.cold(OP.PROVE_LAYOUT, { block: block! }, region);
      expect(errorName(proof)).toBe("layoutMismatch");
    });
    expect(errorName(await wire.call(store))).toBe("regionUnproven");
    expect(seed).toBeGreaterThan(0);
  });

  it("of a row outside the region is malformed, of another's region unknown", async () => {
    const wire = await greet("prover");
    const registered = await wire.cold(OP.REGISTER, registerOf({ proof: true }));
    for (const block of [64, -1, 1.5, 2 ** 40]) {
      const reply = await wire.cold(OP.PROVE_LAYOUT, { block }, registered.id);
      expect(errorName(reply)).toBe("malformedFrame");
    }
    const stranger = await greet("stranger");
    await daemon.counts(
      "frameErrors",
      "unknown_region",
      async () => {
        const proof = await stranger.cold(OP.PROVE_LAYOUT, { block: 0 }, registered.id);
        expect(errorName(proof)).toBe("unknownRegion");
        const gone = await stranger.call({ op: OP.UNREGISTER, id: registered.id });
        expect(errorName(gone)).toBe("unknownRegion");
      },
      2,
    );
  });
});

describe("rows that are not free", () => {
  it("outside the region are outOfBounds, named twice rangeBusy, and neither takes anything", async () => {
    const engine = await TestEngine.start(daemon.socket, { engineId: "rows", rows: 8 });
    wires.push(engine.wire);
    const keys = chainOf("rows", 4);
    const { region } = engine;
    const call = async (rows: readonly number[]): Promise<string> => {
      const body = storeBody({ region, keys, tokens: 64, rows });
      const fields = { op: OP.STORE, flags: FLAG.DATA_READY, count: 4, namespace: 1, body };
      return errorName(await engine.wire.call(fields));
    };
    await daemon.counts("frameErrors", "out_of_bounds", async () => {
      expect(await call([0, 1, 2, 8])).toBe("outOfBounds");
      expect(await call([0, 1, 2, 0xffff_ffff])).toBe("outOfBounds");
    });
    expect(await call([0, 1, 2, 1])).toBe("rangeBusy");
    expect((await engine.store(keys)).completion?.visible).toBe(4);
    const { lease } = await engine.lookup(keys, 1);
    const load = async (rows: readonly number[]): Promise<string> => {
      const body = loadBody({ region, keys, rows });
      return errorName(await engine.wire.call({ op: OP.LOAD, id: lease, count: 4, body }));
    };
    expect(await load([0, 1, 2, 8])).toBe("outOfBounds");
    expect(await load([3, 1, 2, 3])).toBe("rangeBusy");
    expect(await engine.load(lease, keys)).toEqual({ landed: 4, failed: [], wrong: 0 });
  });

  it("of another connection's region are unknownRegion, of an ended one too", async () => {
    const engine = await TestEngine.start(daemon.socket, { engineId: "owner", rows: 8 });
    wires.push(engine.wire);
    const thief = await TestEngine.start(daemon.socket, { engineId: "thief", rows: 8 });
    wires.push(thief.wire);
    const keys = chainOf("thief", 1);
    const body = storeBody({ region: engine.region, keys, tokens: 16, rows: [0] });
    const fields = { op: OP.STORE, flags: FLAG.DATA_READY, count: 1, namespace: 1, body };
    expect(errorName(await thief.wire.call(fields))).toBe("unknownRegion");
    await engine.wire.call({ op: OP.UNREGISTER, id: engine.region });
    expect(errorName(await engine.wire.call(fields))).toBe("unknownRegion");
    expect(errorName(await engine.wire.call({ op: OP.UNREGISTER, id: engine.region }))).toBe(
      "unknownRegion",
    );
  });
});

describe("a window under the daemon's hands", () => {
  const MIB = 1024 * 1024;
  const ROWS = 16;
  const settings = { dram: { capacityBytes: 128 * MIB, slabBytes: 8 * MIB } };
  const wide = { rows: ROWS, descriptor: { rowBytes: MIB, model: "wide-rows" } };

  it("scribbled on while it is stored gives blocks that verify: what was written is what was hashed", async () => {
    await withDaemon(settings, async (own) => {
      const engine = await TestEngine.start(own.socket, wide);
      for (let round = 0; round < 5; round++) {
        const keys = chainOf(`scribble-${round}`, ROWS);
        const rows = engine.gather(keys);
        const body = storeBody({ region: engine.region, keys, tokens: ROWS * 16, rows });
        const tag = engine.wire.nextTag();
        const reply = engine.wire.reply(tag);
        const completion = engine.wire.completion(tag);
        const fields = { op: OP.STORE, flags: FLAG.DATA_READY, tag, count: ROWS, namespace: 1 };
        engine.wire.send(frameOf({ ...fields, body }));
        // No await: this thread writes while the daemon's threads read.
        for (let pass = 0; pass < 40; pass++) engine.window.fill(pass);
        await reply;
        expect((await completion).count).toBe(ROWS);
        expect(await engine.read(keys)).toMatchObject({ hit: ROWS, landed: ROWS, failed: [] });
      }
      expect(await own.metric("corruptBlocks")).toBe(0);
    });
  });

  it("is not written any more after CANCEL is answered, nor after the connection is closed", async () => {
    await withDaemon(settings, async (own) => {
      const engine = await TestEngine.start(own.socket, wide);
      const keys = chainOf("late", ROWS);
      await engine.store(keys);
      const { lease } = await engine.lookup(keys, 1);
      const rows = keys.map((_key, index) => index);
      const body = loadBody({ region: engine.region, keys, rows });
      const untouched = new Uint8Array(engine.window.byteLength).fill(0xdd);
      for (let round = 0; round < 20; round++) {
        const tag = engine.wire.nextTag();
        const completion = engine.wire.completion(tag);
        engine.wire.send(frameOf({ op: OP.LOAD, tag, id: lease, count: ROWS, body }));
        await engine.wire.call({ op: OP.CANCEL, id: tag });
        engine.window.fill(0xdd);
        await completion;
        await engine.wire.call({ op: OP.FLUSH });
        expect(Buffer.compare(engine.window, untouched)).toBe(0);
      }
      engine.wire.send(frameOf({ op: OP.LOAD, tag: 9_999, id: lease, count: ROWS, body }));
      engine.close();
      await own.settles("regions", 0);
      await own.settles("jobs", 0);
      engine.window.fill(0xdd);
      await own.get("/metrics");
      expect(Buffer.compare(engine.window, untouched)).toBe(0);
    });
  });
});
