/** Frames that are broken, cut, too long, too slow or interleaved: a typed error or a counted close, and nobody else notices. */
import { encode } from "@msgpack/msgpack";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { HEADER_BYTES, MAGIC, OP } from "../../src/engine-api/protocol.ts";
import { ID_MAX } from "../../src/engine-api/codec.ts";
import { LIMITS } from "../../src/limits.ts";
import { TestDaemon, withDaemon } from "../harness/daemon.ts";
import { chainOf, TestEngine } from "../harness/engine.ts";
import { eventually } from "../harness/eventually.ts";
import {
  coldFrame,
  descriptorOf,
  fillBody,
  frameOf,
  helloOf,
  join,
  loadBody,
  lookupBody,
  registerOf,
  storeBody,
} from "../harness/frames.ts";
import { errorName, errorOf, type Frame, Wire } from "../harness/wire.ts";

let daemon: TestDaemon;
let neighbour: TestEngine;
const chain = chainOf("neighbour", 32);
const wires: Wire[] = [];

beforeAll(async () => {
  daemon = await TestDaemon.start();
  neighbour = await TestEngine.start(daemon.socket, { engineId: "neighbour" });
  const stored = await neighbour.store(chain);
  expect(stored.completion).toEqual({ visible: 32, failed: [] });
});

/** Whatever a test did: the neighbour reads its blocks as before, and nothing of the test stays behind. */
afterEach(async () => {
  for (const wire of wires.splice(0)) wire.close();
  expect(await neighbour.read(chain)).toEqual({ hit: 32, landed: 32, failed: [], wrong: 0 });
  await daemon.settles("connections", 1);
  expect(daemon.log()).not.toMatch(/assert|internal|fault in cairn/i);
});

afterAll(async () => {
  neighbour?.close();
  await daemon?.remove();
});

async function connect(): Promise<Wire> {
  const wire = await Wire.connect(daemon.socket);
  wires.push(wire);
  return wire;
}

let greeted = 0;

async function greet(namespaces = [descriptorOf()]): Promise<Wire> {
  const wire = await connect();
  greeted += 1;
  expect(errorName(await wire.cold(OP.HELLO, helloOf(`hostile-${greeted}`, namespaces)))).toBe(
    "none",
  );
  return wire;
}

/** The daemon's last words on a connection that it closes. */
async function lastWords(wire: Wire): Promise<Frame> {
  const frame = await wire.take(() => true);
  await wire.closed;
  return frame;
}

describe("broken framing ends the connection with a typed error and is counted", () => {
  const good = frameOf({ op: OP.HEARTBEAT, tag: 7 });
  const altered = (at: number, ...bytes: number[]): Uint8Array => {
    const frame = good.slice();
    frame.set(bytes, at);
    return frame;
  };

  it.each([
    ["another magic", "badMagic", "bad_magic", altered(0, 0x47, 0x45, 0x54, 0x20)],
    ["one wrong bit in the magic", "badMagic", "bad_magic", altered(3, 0x30)],
    ["protocol version 0", "versionUnsupported", "version", altered(4, 0)],
    ["protocol version 2", "versionUnsupported", "version", altered(4, 2)],
    ["a body of 1 GiB", "frameTooLarge", "frame_too_large", altered(8, 0, 0, 0, 0x40)],
    [
      "a body of 2^32 − 1 bytes",
      "frameTooLarge",
      "frame_too_large",
      altered(8, 255, 255, 255, 255),
    ],
  ])("%s is answered %s", async (_what, name, reason, bytes) => {
    const wire = await greet();
    await daemon.counts("connectionsClosed", reason, async () => {
      wire.send(bytes);
      expect(errorOf(await lastWords(wire)).name).toBe(name);
    });
  });

  it("a body one byte longer than the limit is refused, one of exactly the limit is read", async () => {
    const exact = new Uint8Array(LIMITS.frameBodyBytesMax);
    const wire = await greet();
    expect(errorName(await wire.call({ op: OP.TOUCH, namespace: 1, body: exact }))).toBe(
      "malformedFrame",
    );
    await wire.beat();
    wire.send(frameOf({ op: OP.TOUCH, namespace: 1, bodyBytes: exact.byteLength + 1 }));
    expect(errorOf(await lastWords(wire)).name).toBe("frameTooLarge");
  });

  it("a frame that was cut off by the end of the connection leaves nothing behind", async () => {
    const before = daemon.descriptors();
    const whole = coldFrame(OP.HELLO, 0, 1, 0, 0, helloOf("cut"));
    await daemon.counts(
      "connectionsClosed",
      "peer",
      async () => {
        for (const length of [1, 3, 4, 31, 32, 33, whole.byteLength - 1]) {
          const wire = await connect();
          await wire.flush(whole.subarray(0, length));
          wire.close();
        }
      },
      7,
    );
    await eventually("descriptors go back", () => daemon.descriptors() <= before);
  });
});

describe("frames that come in pieces", () => {
  it("one byte at a time are answered like whole ones", async () => {
    const wire = await connect();
    for (const byte of coldFrame(OP.HELLO, 0, 5, 0, 0, helloOf("dribble"))) {
      await wire.flush(Uint8Array.of(byte));
    }
    expect(errorName(await wire.reply(5))).toBe("none");
  });

  it("many in one write are answered in order", async () => {
    const wire = await greet();
    const tags = Array.from({ length: 500 }, (_unused, index) => index + 1_000);
    wire.send(join(tags.map((tag) => frameOf({ op: OP.HEARTBEAT, tag }))));
    for (const tag of tags) expect((await wire.take(() => true)).tag).toBe(tag);
  });

  it("of several connections, interleaved byte by byte, do not mix", async () => {
    const crowd = await Promise.all(Array.from({ length: 8 }, () => greet()));
    const bytes = crowd.map((_wire, index) => frameOf({ op: OP.HEARTBEAT, tag: 100 + index }));
    for (let at = 0; at < HEADER_BYTES; at++) {
      for (const [index, wire] of crowd.entries()) {
        await wire.flush(bytes[index]!.subarray(at, at + 1));
      }
    }
    for (const [index, wire] of crowd.entries()) {
      expect((await wire.take(() => true)).tag).toBe(100 + index);
      expect(wire.received).toBe(2);
    }
  });
});

describe("a client that floods", () => {
  it("does not keep another waiting until all its frames are answered", async () => {
    const flood = await greet();
    const victim = await greet();
    const calls = 100_000;
    const one = frameOf({ op: OP.STATS, tag: 7 });
    const many = join(Array.from({ length: calls / 100 }, () => one));
    for (let part = 0; part < 100; part++) flood.send(many);
    for (let call = 0; call < 20; call++) {
      victim.send(frameOf({ op: OP.HEARTBEAT, tag: 9 }));
      expect((await victim.take(() => true)).tag).toBe(9);
    }
    expect(flood.received).toBeLessThan(calls);
  });
});

describe("slow clients are bounded in time and memory", () => {
  it("an unfinished frame ends with frameTimeout, a connection without HELLO with helloRequired", async () => {
    const settings = { engineApi: { frameTimeoutMs: 500, helloTimeoutMs: 500 } };
    await withDaemon(settings, async (own) => {
      const wire = await Wire.connect(own.socket);
      await wire.cold(OP.HELLO, helloOf("slow"));
      await own.counts("connectionsClosed", "frame_timeout", async () => {
        wire.send(frameOf({ op: OP.HEARTBEAT }).subarray(0, 20));
        expect(errorOf(await lastWords(wire)).name).toBe("frameTimeout");
      });
      const silent = await Wire.connect(own.socket);
      await own.counts("connectionsClosed", "hello_timeout", async () => {
        expect(errorOf(await lastWords(silent)).name).toBe("helloRequired");
      });
    });
  });

  it("a client that does not read its replies is cut off before they fill the memory", async () => {
    const wire = await greet();
    wire.pause();
    const frames = join(Array.from({ length: 512 }, () => frameOf({ op: OP.STATS })));
    await daemon.counts("connectionsClosed", "slow_reader", async () => {
      const before = daemon.privateBytes();
      for (let round = 0; round < 2_000 && !wire.isClosed; round++) await wire.flush(frames);
      expect(wire.isClosed).toBe(true);
      expect(daemon.privateBytes() - before).toBeLessThan(256 * 1024 * 1024);
    });
  });
});

describe("operations out of place", () => {
  it.each(Object.entries(OP).filter(([name]) => name !== "HELLO"))(
    "%s before HELLO is answered helloRequired",
    async (_name, op) => {
      const wire = await connect();
      await daemon.counts("frameErrors", "hello_required", async () => {
        expect(errorName(await wire.call({ op }))).toBe("helloRequired");
      });
    },
  );

  it("a second HELLO is refused and the first one holds", async () => {
    const wire = await greet();
    expect(errorName(await wire.cold(OP.HELLO, helloOf("again")))).toBe("helloRequired");
    await wire.beat();
  });

  it.each([0, 18, 99, 255])("operation %i is answered unknownOp", async (op) => {
    const wire = await greet();
    await daemon.counts("frameErrors", "unknown_op", async () => {
      expect(errorName(await wire.call({ op }))).toBe("unknownOp");
    });
    await wire.beat();
  });

  it("flags nobody knows and reserved bytes are ignored", async () => {
    const wire = await greet();
    const frame = frameOf({ op: OP.HEARTBEAT, flags: 0xfe00, tag: 77 });
    frame.set([0xff, 0xff], 30);
    wire.send(frame);
    expect(errorName(await wire.reply(77))).toBe("none");
  });

  it("an id beyond 2^53 − 1 is malformed, one of 2^53 − 1 is an id", async () => {
    const wire = await greet();
    for (const op of [OP.LOOKUP, OP.LOAD, OP.STORE, OP.FILL, OP.CANCEL, OP.END_REQUEST]) {
      const body =
        op === OP.LOOKUP
          ? lookupBody([])
          : op === OP.STORE
            ? storeBody({ region: 1, keys: [], tokens: 0 })
            : new Uint8Array(0);
      const frame = frameOf({ op, tag: 50, namespace: 1, body });
      new DataView(frame.buffer).setUint32(20, 0x20_0000, true);
      wire.send(frame);
      expect(errorName(await wire.reply(50)), `operation ${op}`).toBe("malformedFrame");
    }
    expect((await wire.call({ op: OP.END_REQUEST, id: ID_MAX })).count).toBe(0);
  });
});

describe("bodies that do not fit their operation", () => {
  const keys = chainOf("bodies", 3);
  const rows = [0, 1, 2];

  it("are malformed when a byte is missing or over, and too long when the count is", async () => {
    const wire = await greet();
    const region = await registered(wire);
    const lease = 12_345;
    const bodies: readonly [number, number, Uint8Array][] = [
      [OP.LOOKUP, 0, lookupBody(keys)],
      [OP.STORE, 0, storeBody({ region, keys, tokens: 48 })],
      [OP.STORE, 256, storeBody({ region, keys, tokens: 48, rows })],
      [OP.TOUCH, 0, join(keys)],
    ];
    for (const [op, flags, body] of bodies) {
      const fields = { op, flags, id: op === OP.LOOKUP ? 1 : 0, namespace: 1 };
      for (const wrong of [body.subarray(0, -1), join([body, Uint8Array.of(0)])]) {
        const reply = await wire.call({ ...fields, count: 3, body: wrong });
        expect(errorName(reply), `operation ${op}`).toBe("malformedFrame");
      }
      const many = { ...fields, count: LIMITS.keysPerFrameMax + 1, body };
      expect(errorName(await wire.call(many)), `operation ${op}`).toBe("tooManyKeys");
      const most = { ...fields, count: 0xffff_ffff, body };
      expect(errorName(await wire.call(most)), `operation ${op}`).toBe("tooManyKeys");
    }
    const load = { op: OP.LOAD, id: lease, count: 3, body: loadBody({ region, keys, rows }) };
    expect(errorName(await wire.call(load))).toBe("unknownLease");
    const fill = { op: OP.FILL, id: 99, count: 1, body: fillBody([[0, 0]]) };
    expect(errorName(await wire.call(fill))).toBe("unknownJob");
  });

  it.each([0, 2, 65_535])("namespace handle %i is unknownNamespace", async (namespace) => {
    const wire = await greet();
    await daemon.counts(
      "frameErrors",
      "unknown_namespace",
      async () => {
        const body = lookupBody(keys);
        const looked = await wire.call({ op: OP.LOOKUP, id: 1, count: 3, namespace, body });
        expect(errorName(looked)).toBe("unknownNamespace");
        const touched = await wire.call({ op: OP.TOUCH, count: 3, namespace, body: join(keys) });
        expect(errorName(touched)).toBe("unknownNamespace");
      },
      2,
    );
  });
});

async function registered(wire: Wire): Promise<number> {
  const reply = await wire.cold(OP.REGISTER, registerOf());
  expect(errorName(reply)).toBe("none");
  return reply.id;
}

/** `depth` values of one kind, each inside the last. */
function nested(head: readonly number[], depth: number, end: readonly number[]): Uint8Array {
  return Uint8Array.from([...Array.from({ length: depth }, () => head).flat(), ...end]);
}

describe("cold bodies that are bombs", () => {
  const bombs: readonly [string, Uint8Array][] = [
    ["nothing at all", new Uint8Array(0)],
    ["a number", encode(1)],
    ["a list", encode([1, 2])],
    ["bytes", encode(new Uint8Array(8))],
    ["a map and one byte more", join([encode({ a: 1 }), Uint8Array.of(0)])],
    ["a map that ends early", encode({ a: 1, b: "text" }).subarray(0, -2)],
    ["the byte that msgpack never uses", Uint8Array.of(0xc1)],
    ["lists nested 60,000 deep", nested([0x91], 60_000, [0xc0])],
    ["maps nested 20,000 deep", nested([0x81, 0xa1, 0x61], 20_000, [0xc0])],
    ["lists of 65,536 declared in each other", nested([0xdd, 0, 1, 0, 0], 13_000, [])],
    ["lists of 2^32 − 1", nested([0xdd, 255, 255, 255, 255], 10, [])],
    ["maps of 65,536 declared in each other", nested([0xdf, 0, 1, 0, 0, 0xa1, 0x61], 9_000, [])],
    ["a map of 2^32 − 1", Uint8Array.of(0xdf, 255, 255, 255, 255)],
    ["text of 2^32 − 1 bytes", Uint8Array.of(0xdb, 255, 255, 255, 255, 0x61)],
    ["bytes of 2^31", Uint8Array.of(0xc6, 128, 0, 0, 0, 1)],
    ["an extension of one byte", Uint8Array.of(0x81, 0xa1, 0x61, 0xd4, 5, 1)],
    ["a timestamp", Uint8Array.of(0x81, 0xa1, 0x61, 0xd6, 0xff, 0, 0, 0, 0)],
    [
      "an extension of 2^32 − 1 bytes",
      Uint8Array.of(0x81, 0xa1, 0x61, 0xc9, 255, 255, 255, 255, 5),
    ],
    [
      "a key named __proto__",
      join([Uint8Array.of(0x81, 0xa9), text("__proto__"), Uint8Array.of(0x80)]),
    ],
    [
      "text that is no UTF-8 under a known key",
      join([Uint8Array.of(0x81, 0xa8), text("engineId"), Uint8Array.of(0xa2, 0xff, 0xfe)]),
    ],
    ["one byte more than a cold body may have", encode({ a: "x".repeat(LIMITS.coldBodyBytesMax) })],
  ];

  it.each(bombs)("%s is malformedFrame and costs nothing", async (_what, body) => {
    const wire = await connect();
    await daemon.counts("frameErrors", "malformed_frame", async () => {
      const before = daemon.privateBytes();
      for (let round = 0; round < 8; round++) {
        const reply = await wire.call({ op: OP.HELLO, body });
        expect(errorName(reply)).toBe("malformedFrame");
      }
      expect(daemon.privateBytes() - before).toBeLessThan(128 * 1024 * 1024);
    });
    expect(errorName(await wire.cold(OP.HELLO, helloOf("after-the-bomb")))).toBe("none");
  });
});

function text(value: string): Uint8Array {
  return new TextEncoder().encode(value);
}

describe("HELLO that does not say what it must", () => {
  const d = descriptorOf();
  const without = (name: string): object => {
    const copy: Record<string, unknown> = { ...d };
    delete copy[name];
    return copy;
  };
  const cases: readonly [string, string, object][] = [
    ["no engine id", "malformedFrame", { engineId: "" }],
    ["an engine id of 300 characters", "malformedFrame", { engineId: "x".repeat(300) }],
    ["an engine id that is a number", "malformedFrame", { engineId: 5 }],
    ["a role nobody has", "malformedFrame", { role: "owner" }],
    ["rank 2 of 2", "malformedFrame", { rank: 2, ranks: 2 }],
    ["a negative rank", "malformedFrame", { rank: -1 }],
    ["no namespace", "malformedFrame", { namespaces: [] }],
    ["65 namespaces", "malformedFrame", { namespaces: Array.from({ length: 65 }, () => d) }],
    ["only protocol 9", "versionUnsupported", { protocol: [9] }],
    ["a namespace twice", "badDescriptor", { namespaces: [d, d] }],
    ["a descriptor that is text", "malformedFrame", { namespaces: ["x"] }],
    ["a row of no bytes", "badDescriptor", { namespaces: [{ ...d, rowBytes: 0 }] }],
    ["a row larger than a slab", "badDescriptor", { namespaces: [{ ...d, rowBytes: 2 ** 30 }] }],
    ["keys of 10 bytes", "badDescriptor", { namespaces: [{ ...d, keyBytes: 10 }] }],
    ["keys of 36 bytes", "badDescriptor", { namespaces: [{ ...d, keyBytes: 36 }] }],
    ["65 shards", "badDescriptor", { namespaces: [{ ...d, shards: 65 }] }],
    ["half a token", "badDescriptor", { namespaces: [{ ...d, blockTokens: 0.5 }] }],
    ...Object.keys(d).map((name): [string, string, object] => [
      `a descriptor without ${name}`,
      "badDescriptor",
      { namespaces: [without(name)] },
    ]),
  ];

  it.each(cases)("%s is answered %s", async (_what, name, changes) => {
    const wire = await connect();
    const hello = { ...helloOf("incomplete"), ...changes };
    await daemon.counts("frameErrors", undefined, async () => {
      expect(errorName(await wire.cold(OP.HELLO, hello))).toBe(name);
    });
    if (name === "versionUnsupported") await wire.closed;
    else expect(errorName(await wire.cold(OP.HELLO, helloOf("incomplete")))).toBe("none");
  });

  it("another model under a live engine id is instanceMismatch", async () => {
    const one = await connect();
    await one.cold(OP.HELLO, helloOf("same"));
    const two = await connect();
    const other = helloOf("same", [descriptorOf({ model: "other" })]);
    expect(errorName(await two.cold(OP.HELLO, other))).toBe("instanceMismatch");
    const more = helloOf("same", [descriptorOf(), descriptorOf({ model: "more" })]);
    expect(errorName(await two.cold(OP.HELLO, more))).toBe("instanceMismatch");
  });
});

describe("what a client cannot do to the daemon's tables", () => {
  it("namespaces are bounded, and one more is refused without breaking those that exist", async () => {
    await withDaemon({ ledger: { namespacesMax: 8 } }, async (own) => {
      const honest = await TestEngine.start(own.socket, { engineId: "honest" });
      await honest.store(chain);
      const wire = await Wire.connect(own.socket);
      const many = Array.from({ length: 8 }, (_unused, index) =>
        descriptorOf({ model: `model-${index}` }),
      );
      await own.counts("frameErrors", "other", async () => {
        expect(errorName(await wire.cold(OP.HELLO, helloOf("greedy", many)))).toBe(
          "tooManyNamespaces",
        );
      });
      expect(await honest.read(chain)).toMatchObject({ landed: 32, wrong: 0 });
      await own.stop();
      await own.launch();
      const later = await TestEngine.start(own.socket, { engineId: "later" });
      expect(await later.read(chain)).toMatchObject({ landed: 32, wrong: 0 });
    });
  });

  it("descriptors too long for the pool's table are refused, and the pool is still read back", async () => {
    await withDaemon({}, async (own) => {
      const honest = await TestEngine.start(own.socket, { engineId: "honest" });
      await honest.store(chain);
      let refused = "none";
      const wires: Wire[] = []; // Open: rows of engines that are gone would be used again.
      for (let round = 0; round < 400 && refused === "none"; round++) {
        const wire = await Wire.connect(own.socket);
        wires.push(wire);
        const fat = Array.from({ length: 6 }, (_unused, index) =>
          descriptorOf({
            model: `${round}-${index}`.padEnd(1_024, "m"),
            revision: "r".repeat(1_024),
            layout: "l".repeat(1_024),
            hashSeed: "s".repeat(1_024),
            engineBuild: "b".repeat(1_024),
            hashAlgorithm: "h".repeat(1_024),
            kvDtype: "k".repeat(1_024),
          }),
        );
        refused = errorName(await wire.cold(OP.HELLO, helloOf(`fat-${round}`, fat)));
      }
      for (const wire of wires) wire.close();
      expect(refused).toBe("tooManyNamespaces");
      expect(await honest.read(chain)).toMatchObject({ landed: 32, wrong: 0 });
      expect(await own.stop()).toEqual({ code: 0, signal: null });
      await own.launch();
      const later = await TestEngine.start(own.socket, { engineId: "later" });
      expect(await later.read(chain)).toMatchObject({ landed: 32, wrong: 0 });
    });
  });

  it("waiting CANCEL and FLUSH calls are bounded", async () => {
    const wire = await greet();
    const region = await registered(wire);
    const keys = chainOf("never-filled", 2);
    const body = storeBody({ region, keys, tokens: 32 });
    const stored = await wire.call({ op: OP.STORE, count: 2, namespace: 1, body });
    expect(errorName(stored)).toBe("none");
    const calls = 4_096;
    await daemon.counts("overloads", undefined, async () => {
      for (let tag = 10_000; tag < 10_000 + calls; tag += 512) {
        const batch = Array.from({ length: 512 }, (_unused, index) =>
          frameOf({ op: OP.FLUSH, tag: tag + index }),
        );
        await wire.flush(join(batch));
      }
      const refused = await wire.take((frame) => errorName(frame) === "overloaded");
      expect(refused.op).toBe(OP.FLUSH);
    });
    const cancelled = await wire.call({ op: OP.CANCEL, id: stored.id, tag: 9 });
    expect(cancelled.count).toBe(1);
    await wire.beat();
  });
});

it("the magic is what the page says", () => {
  expect(new TextDecoder().decode(frameOf({ op: 1 }).subarray(0, 4))).toBe("CRN1");
  expect(new DataView(frameOf({ op: 1 }).buffer).getUint32(0, true)).toBe(MAGIC);
});
