/** Calls that name blocks, leases and jobs wrongly, late, twice or as somebody else: a miss or a typed error, never other bytes. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { decodeCold } from "../../src/engine-api/codec.ts";
import { FLAG, OP, STORE_STATUS } from "../../src/engine-api/protocol.ts";
import { TestDaemon, withDaemon } from "../harness/daemon.ts";
import { chainOf, type EngineOptions, failuresOf, TestEngine } from "../harness/engine.ts";
import { eventually } from "../harness/eventually.ts";
import { fillBody, frameOf, loadBody, lookupBody, storeBody } from "../harness/frames.ts";
import { errorName, errorOf, type Frame } from "../harness/wire.ts";

let daemon: TestDaemon;
const engines: TestEngine[] = [];
let chains = 0;

beforeAll(async () => {
  daemon = await TestDaemon.start({ engineApi: { storeFillMs: 500, leasesPerInstanceMax: 32 } });
});

afterEach(async () => {
  for (const one of engines.splice(0)) one.close();
  for (const gauge of ["connections", "leases", "pinnedBytes", "jobs", "regions"] as const) {
    await daemon.settles(gauge, 0);
  }
  expect(daemon.log()).not.toMatch(/assert|fault in cairn/i);
});

afterAll(async () => {
  await daemon?.remove();
});

async function start(options: EngineOptions = {}, on = daemon): Promise<TestEngine> {
  const engine = await TestEngine.start(on.socket, options);
  engines.push(engine);
  return engine;
}

function freshChain(count: number): Uint8Array[] {
  chains += 1;
  return chainOf(`blocks-${chains}`, count);
}

/** STORE without the data: the blocks are reserved until FILL, CANCEL or the deadline. */
function reserve(
  engine: TestEngine,
  keys: readonly Uint8Array[],
  changes: {
    from?: number;
    tokens?: number;
    shard?: number;
    lease?: number;
    tag?: number;
    parentKey?: Uint8Array;
  } = {},
): Promise<Frame> {
  const { from = 0, tokens = keys.length * 16, shard = 0, lease = 0 } = changes;
  const parent = changes.parentKey === undefined ? {} : { parentKey: changes.parentKey };
  const body = storeBody({
    region: engine.region,
    startDepth: from,
    keys,
    tokens,
    shard,
    ...parent,
  });
  const tag = changes.tag ?? engine.wire.nextTag();
  return engine.wire.call({ op: OP.STORE, id: lease, tag, count: keys.length, namespace: 1, body });
}

function loadCall(
  engine: TestEngine,
  lease: number,
  keys: readonly Uint8Array[],
  rows: readonly number[],
): Promise<Frame> {
  const body = loadBody({ region: engine.region, keys, rows });
  return engine.wire.call({ op: OP.LOAD, id: lease, count: keys.length, body });
}

describe("leases", () => {
  it("never given, ended or replaced are unknownLease", async () => {
    const engine = await start();
    const keys = freshChain(4);
    await engine.store(keys);
    await daemon.counts(
      "frameErrors",
      "unknown_lease",
      async () => {
        expect(errorName(await loadCall(engine, 1, keys, [0, 1, 2, 3]))).toBe("unknownLease");
        const first = await engine.lookup(keys, 7);
        const second = await engine.lookup(keys, 7);
        expect(second.lease).not.toBe(first.lease);
        expect(errorName(await loadCall(engine, first.lease, keys, [0, 1, 2, 3]))).toBe(
          "unknownLease",
        );
        expect((await engine.load(second.lease, keys)).landed).toBe(4);
        await engine.endRequest(7);
        expect(errorName(await loadCall(engine, second.lease, keys, [0, 1, 2, 3]))).toBe(
          "unknownLease",
        );
      },
      3,
    );
    const reply = await engine.wire.cold(OP.PREFETCH, {}, 99);
    expect(errorName(reply)).toBe("unknownLease");
  });

  it("of another instance are unknownLease, for LOAD, STORE and PREFETCH", async () => {
    const owner = await start({ engineId: "owner" });
    const thief = await start({ engineId: "thief" });
    const keys = freshChain(4);
    await owner.store(keys);
    const { lease } = await owner.lookup(keys);
    expect(errorName(await loadCall(thief, lease, keys, [0, 1, 2, 3]))).toBe("unknownLease");
    expect(errorName(await reserve(thief, freshChain(1), { lease }))).toBe("unknownLease");
    expect(errorName(await thief.wire.cold(OP.PREFETCH, {}, lease))).toBe("unknownLease");
    expect((await owner.load(lease, keys)).landed).toBe(4);
  });

  it("of the same instance serve all its connections, and end with the one that took them", async () => {
    const scheduler = await start({ engineId: "pair" });
    const worker = await start({ engineId: "pair", hello: { role: "worker" } });
    const keys = freshChain(4);
    await worker.store(keys);
    const { lease } = await scheduler.lookup(keys);
    expect((await worker.load(lease, keys)).landed).toBe(4);
    scheduler.close();
    await daemon.settles("leases", 0);
    expect(errorName(await loadCall(worker, lease, keys, [0, 1, 2, 3]))).toBe("unknownLease");
  });

  it("are bounded per instance", async () => {
    const engine = await start();
    const keys = freshChain(1);
    await engine.store(keys);
    for (let request = 1; request <= 32; request++) await engine.lookup(keys, request);
    await daemon.counts("overloads", undefined, async () => {
      const body = lookupBody(keys);
      const reply = await engine.wire.call({ op: OP.LOOKUP, id: 33, count: 1, namespace: 1, body });
      expect(errorName(reply)).toBe("overloaded");
    });
    await engine.endRequest(1);
    expect((await engine.lookup(keys, 33)).hit).toBe(1);
  });

  it("pin no more than the budget, and the look-up says that it was clipped", async () => {
    await withDaemon({ engineApi: { pinnedBytesMax: 4 * 4_096 } }, async (own) => {
      const engine = await TestEngine.start(own.socket);
      const keys = freshChain(16);
      await engine.store(keys);
      const others = freshChain(4);
      await engine.store(others);
      await own.counts("lookupClipped", undefined, async () => {
        const found = await engine.lookup(keys);
        expect(found).toMatchObject({ hit: 4, clipped: true });
        expect(await engine.load(found.lease, keys.slice(0, 4))).toMatchObject({
          landed: 4,
          wrong: 0,
        });
        // A prefix that several leases share costs once; another chain finds the budget used up.
        expect((await engine.lookup(keys)).hit).toBe(4);
        expect(await engine.lookup(others)).toMatchObject({ hit: 0, clipped: true });
      });
    });
  });
});

describe("chains that contradict themselves or others", () => {
  it("a known key under another parent or depth is chainMismatch and takes nothing", async () => {
    const engine = await start();
    const keys = freshChain(8);
    await engine.store(keys);
    const other = freshChain(2);
    // The gauge is published four times a second: it must have seen the STORE first.
    let used = -1;
    await eventually("the gauge stands still", async () => {
      const before = used;
      await new Promise((resolve) => setTimeout(resolve, 600));
      used = await daemon.metric("ledgerBlocks");
      return used === before;
    });
    const wrong: readonly (readonly Uint8Array[])[] = [
      [keys[1]!],
      [keys[0]!, keys[2]!],
      [keys[1]!, keys[0]!],
      [other[0]!, keys[0]!],
      [...keys].reverse(),
    ];
    await daemon.counts(
      "chainMismatches",
      undefined,
      async () => {
        for (const chain of wrong)
          expect(errorName(await reserve(engine, chain))).toBe("chainMismatch");
        const shifted = { from: 2, parentKey: keys[0]! };
        expect(errorName(await reserve(engine, [keys[1]!], shifted))).toBe("chainMismatch");
      },
      wrong.length + 1,
    );
    await eventually(
      "nothing was taken",
      async () => (await daemon.metric("ledgerBlocks")) === used,
    );
    expect(await engine.read(keys)).toMatchObject({ hit: 8, landed: 8, wrong: 0 });
  });

  it("a new chain that names one key twice is chainMismatch and takes nothing", async () => {
    const engine = await start();
    const [a, b, c] = freshChain(3) as [Uint8Array, Uint8Array, Uint8Array];
    for (const chain of [
      [a, a],
      [a, b, a],
      [a, b, b, c],
      [a, b, c, a],
    ]) {
      expect(errorName(await reserve(engine, chain))).toBe("chainMismatch");
      await daemon.settles("jobs", 0);
    }
    expect((await engine.store([a, b, c])).completion).toEqual({ visible: 3, failed: [] });
    expect(await engine.read([a, b, c])).toMatchObject({ landed: 3, wrong: 0 });
  });

  it("an absent parent is parentAbsent with the depth that is resident", async () => {
    const engine = await start();
    const keys = freshChain(8);
    const orphan = await engine.store(keys, 4);
    expect(orphan).toMatchObject({ parentAbsent: true, residentDepth: 0, job: 0 });
    expect(orphan.statuses).toEqual(Array(4).fill(STORE_STATUS.PARENT_ABSENT));
    await engine.store(keys.slice(0, 2));
    await daemon.counts("parentAbsent", undefined, async () => {
      expect(await engine.store(keys, 4)).toMatchObject({ parentAbsent: true, job: 0 });
    });
    expect((await engine.lookup(keys)).hit).toBe(2);
  });

  it("a start depth of 2^32 − 1 is parentAbsent", async () => {
    const engine = await start();
    const keys = freshChain(2);
    const reply = await reserve(engine, keys, { from: 0xffff_ffff, parentKey: keys[0]! });
    expect(reply.view.getUint32(12, true)).toBe(1);
  });
});

describe("stores that are doubled, partial or late", () => {
  it("a chain stored twice is present the second time and copied once", async () => {
    const engine = await start();
    const keys = freshChain(4);
    await engine.store(keys);
    const again = await engine.store(keys);
    expect(again).toMatchObject({ wanted: 0, pending: 0, job: 0, completion: undefined });
    expect(again.statuses).toEqual(Array(4).fill(STORE_STATUS.PRESENT));
  });

  it("a chain that somebody else is storing is pending and completes with theirs", async () => {
    const one = await start({ engineId: "one" });
    const two = await start({ engineId: "two" });
    const keys = freshChain(3);
    const reserved = await reserve(one, keys);
    const waiting = two.store(keys);
    one.gather(keys);
    const pairs = keys.map((_key, index): [number, number] => [index, index]);
    const fill = { op: OP.FILL, id: reserved.id, count: 3, body: fillBody(pairs) };
    await eventually("both wait", async () => (await daemon.metric("jobs")) === 2);
    one.wire.send(frameOf(fill));
    expect((await one.wire.completion(reserved.tag)).count).toBe(3);
    const answer = await waiting;
    expect(answer).toMatchObject({ wanted: 0, pending: 3 });
    expect(answer.completion).toEqual({ visible: 3, failed: [] });
  });

  it("a partial block is refused", async () => {
    const engine = await start();
    for (const tokens of [0, 1, 31, 33, 0xffff_ffff]) {
      expect(errorName(await reserve(engine, freshChain(2), { tokens }))).toBe("partialBlock");
    }
  });

  it("a shard that the namespace does not have is refused by STORE and LOAD", async () => {
    const engine = await start();
    const keys = freshChain(1);
    expect(errorName(await reserve(engine, keys, { shard: 1 }))).toBe("shardOutOfRange");
    await engine.store(keys);
    const { lease } = await engine.lookup(keys);
    const body = loadBody({ region: engine.region, keys, rows: [0], shard: 1 });
    const reply = await engine.wire.call({ op: OP.LOAD, id: lease, count: 1, body });
    expect(errorName(reply)).toBe("shardOutOfRange");
  });

  it("blocks that are reserved and never filled fail at the deadline and can be stored again", async () => {
    const engine = await start();
    const keys = freshChain(4);
    await daemon.counts(
      "fillTimeouts",
      undefined,
      async () => {
        const reply = await reserve(engine, keys);
        const completion = await engine.wire.completion(reply.tag);
        expect(completion.count).toBe(0);
        expect(failuresOf(completion).map(({ name }) => name)).toEqual(
          Array(4).fill("deadlineExceeded"),
        );
      },
      4,
    );
    expect((await engine.lookup(keys)).hit).toBe(0);
    expect((await engine.store(keys)).completion?.visible).toBe(4);
  });

  it("FILL of an unknown job, position or row is refused and the job goes on", async () => {
    const engine = await start();
    const keys = freshChain(2);
    const reply = await reserve(engine, keys);
    const fill = (id: number, pairs: readonly [number, number][]): Promise<Frame> =>
      engine.wire.call({ op: OP.FILL, id, count: pairs.length, body: fillBody(pairs) });
    expect(errorName(await fill(reply.id + 1, [[0, 0]]))).toBe("unknownJob");
    expect(errorName(await fill(reply.id, [[2, 0]]))).toBe("malformedFrame");
    expect(errorName(await fill(reply.id, [[0, 64]]))).toBe("outOfBounds");
    expect(
      errorName(
        await fill(reply.id, [
          [0, 3],
          [1, 3],
        ]),
      ),
    ).toBe("rangeBusy");
    const stranger = await start({ engineId: "stranger" });
    const stolen = { op: OP.FILL, id: reply.id, count: 1, body: fillBody([[0, 0]]) };
    expect(errorName(await stranger.wire.call(stolen))).toBe("unknownJob");
    engine.gather(keys);
    engine.wire.send(
      frameOf({
        op: OP.FILL,
        id: reply.id,
        count: 2,
        body: fillBody([
          [0, 0],
          [1, 1],
        ]),
      }),
    );
    expect((await engine.wire.completion(reply.tag)).count).toBe(2);
    expect(await engine.read(keys)).toMatchObject({ landed: 2, wrong: 0 });
  });

  it("jobs in flight are bounded per connection", async () => {
    await withDaemon({ engineApi: { inFlightJobsMax: 4 } }, async (own) => {
      const engine = await TestEngine.start(own.socket);
      for (let job = 0; job < 4; job++) {
        expect(errorName(await reserve(engine, freshChain(1)))).toBe("none");
      }
      await own.counts("jobsRefused", undefined, async () => {
        expect(errorOf(await reserve(engine, freshChain(1)))).toMatchObject({
          name: "jobsInFlight",
          code: 411,
          retryable: true,
        });
      });
    });
  });

  it("a ledger without room answers ledgerFull and takes nothing", async () => {
    await withDaemon({ ledger: { blocksMax: 8 } }, async (own) => {
      const engine = await TestEngine.start(own.socket);
      const keys = freshChain(8);
      await engine.store(keys);
      await own.counts("ledgerFullRefusals", undefined, async () => {
        expect(errorName(await reserve(engine, freshChain(9)))).toBe("ledgerFull");
      });
      expect(await engine.read(keys)).toMatchObject({ landed: 8, wrong: 0 });
    });
  });

  it("a ledger with fewer records than the pool has slots says so, and lets the oldest blocks go", async () => {
    await withDaemon({ ledger: { blocksMax: 8 } }, async (own) => {
      const engine = await TestEngine.start(own.socket);
      const first = freshChain(8);
      const second = freshChain(8);
      await engine.store(first);
      await own.counts("recordEvictions", undefined, async () => {
        await engine.store(second);
      });
      expect(await engine.read(second)).toMatchObject({ landed: 8, wrong: 0 });
      expect((await engine.read(first)).landed).toBe(0);
      expect(own.log()).toMatch(/ledger: 8 records, .* set ledger\.blocksMax to \d{3,}/);
    });
  });
});

describe("a client that lies", () => {
  it("about its chain gets misses, never other bytes", async () => {
    const engine = await start();
    const keys = freshChain(32);
    await engine.store(keys);
    const strange = freshChain(32);
    const mixed = keys.map((key, index) => (index % 3 === 0 && index < 31 ? strange[index]! : key));
    const shuffled = [...keys].reverse();
    const repeated = keys.map(() => keys[31]!);
    for (const lie of [mixed, shuffled, repeated, [...strange.slice(0, 31), keys[31]!]]) {
      const answer = await engine.read(lie);
      expect(answer.wrong).toBe(0);
      for (const { name } of answer.failed) expect(name).toBe("blockNotReadable");
      const right = lie.slice(0, answer.hit).filter((key, index) => key === keys[index]).length;
      expect(answer.landed).toBeLessThanOrEqual(right);
    }
    expect(await engine.read(keys)).toMatchObject({ hit: 32, landed: 32, wrong: 0 });
  });

  it("about its chain under a clipped budget gets misses, too", async () => {
    await withDaemon({ engineApi: { pinnedBytesMax: 4 * 4_096 } }, async (own) => {
      const engine = await TestEngine.start(own.socket);
      const keys = freshChain(8);
      await engine.store(keys);
      const reserved = freshChain(8);
      await reserve(engine, reserved);
      for (let place = 0; place < 7; place++) {
        const lie = [...keys];
        for (const [index, key] of reserved.entries()) if (index <= place) lie[index] = key;
        expect((await engine.read(lie)).wrong).toBe(0);
      }
      await engine.wire.beat();
      expect(own.log()).not.toMatch(/fault in cairn|assert/i);
    });
  });

  it("about held keys is told how many the daemon holds", async () => {
    const engine = await start();
    const keys = freshChain(4);
    const lookup = (held: number, flags: number): Promise<Frame> =>
      engine.wire.call({
        op: OP.LOOKUP,
        flags,
        id: 5,
        count: 4,
        namespace: 1,
        body: lookupBody(keys, held),
      });
    expect(errorOf(await lookup(4, FLAG.KEEP_CHAIN))).toMatchObject({
      name: "malformedFrame",
      detail: 0,
    });
    expect(errorName(await lookup(0, FLAG.KEEP_CHAIN))).toBe("none");
    for (const held of [5, 2 ** 31, 2 ** 32 - 1]) {
      expect(errorName(await lookup(held, FLAG.KEEP_CHAIN))).toBe("malformedFrame");
    }
    expect(errorOf(await lookup(5, 0))).toMatchObject({ name: "malformedFrame", detail: 4 });
    expect(errorName(await lookup(4, FLAG.KEEP_CHAIN))).toBe("none");
  });
});

describe("CANCEL, FLUSH and END_REQUEST in the middle of things", () => {
  it("CANCEL of a waiting STORE completes it as cancelled, then says so", async () => {
    const engine = await start();
    const keys = freshChain(3);
    const reply = await reserve(engine, keys);
    const cancelled = await engine.wire.call({ op: OP.CANCEL, id: reply.id });
    expect(cancelled.count).toBe(1);
    const completion = engine.wire.frames.find((frame) => frame.tag === reply.tag);
    expect(completion, "the completion comes first").toBeDefined();
    expect(failuresOf(completion!).map(({ name }) => name)).toEqual(Array(3).fill("cancelled"));
    expect((await engine.wire.call({ op: OP.CANCEL, id: reply.id })).count).toBe(0);
    expect((await engine.store(keys)).completion?.visible).toBe(3);
  });

  it("races of LOAD with CANCEL and END_REQUEST end in one completion each", async () => {
    const engine = await start();
    const keys = freshChain(32);
    await engine.store(keys);
    for (let round = 0; round < 50; round++) {
      const { lease } = await engine.lookup(keys, 1_000 + round);
      const tag = engine.wire.nextTag();
      const rows = keys.map((_key, index) => index);
      const body = loadBody({ region: engine.region, keys, rows });
      const done = engine.wire.completion(tag);
      engine.wire.send(frameOf({ op: OP.LOAD, tag, id: lease, count: 32, body }));
      const cancelled = engine.wire.call({ op: OP.CANCEL, id: tag });
      const ended = engine.wire.call({ op: OP.END_REQUEST, id: 1_000 + round });
      const flushed = engine.wire.call({ op: OP.FLUSH });
      const completion = await done;
      await Promise.all([cancelled, ended, flushed]);
      const failed = failuresOf(completion);
      expect(completion.count + failed.length).toBe(32);
      for (const { name } of failed) expect(name).toBe("cancelled");
      expect(engine.wire.frames, "one completion a LOAD").toEqual([]);
    }
  });

  it("a LOAD under the tag of one in flight is refused, FLUSH waits for all", async () => {
    const engine = await start();
    const keys = freshChain(32);
    await engine.store(keys);
    const { lease } = await engine.lookup(keys);
    const half = (from: number): Uint8Array =>
      loadBody({
        region: engine.region,
        startDepth: from,
        keys: keys.slice(from, from + 16),
        rows: keys.slice(from, from + 16).map((_key, index) => from + index),
      });
    const tag = engine.wire.nextTag();
    const flush = engine.wire.nextTag();
    const before = engine.wire.received;
    for (const from of [0, 16]) {
      engine.wire.send(frameOf({ op: OP.LOAD, tag, id: lease, count: 16, body: half(from) }));
    }
    engine.wire.send(frameOf({ op: OP.FLUSH, tag: flush }));
    await engine.wire.reply(flush);
    expect(engine.wire.received - before).toBe(3);
    const [first, second] = engine.wire.frames.splice(0);
    const names = [first, second].map((frame) => errorName(frame!));
    expect(names.every((name) => name === "none" || name === "malformedFrame")).toBe(true);
    expect(names).toContain("none");
  });

  it("UNREGISTER with stores waiting cancels them and answers", async () => {
    const engine = await start();
    const reply = await reserve(engine, freshChain(2));
    const gone = await engine.wire.call({ op: OP.UNREGISTER, id: engine.region });
    expect(errorName(gone)).toBe("none");
    expect((await engine.wire.completion(reply.tag)).count).toBe(0);
  });

  it("UNREGISTER lets copies end, but waits for no FILL that never comes", async () => {
    const engine = await start();
    const reply = await reserve(engine, freshChain(2));
    const { wire, region } = engine;
    const tag = wire.nextTag();
    const fill = frameOf({ op: OP.FILL, id: reply.id, count: 1, body: fillBody([[0, 0]]) });
    // In one piece, so that the copy still runs when the region is given up.
    wire.send(Buffer.concat([fill, frameOf({ op: OP.UNREGISTER, tag, id: region })]));
    expect(errorName(await wire.reply(tag))).toBe("none");
    const completion = await wire.completion(reply.tag);
    expect(completion.count).toBe(1);
    expect(failuresOf(completion)).toEqual([{ index: 1, name: "cancelled" }]);
  });
});

describe("full DRAM", () => {
  const small = { dram: { capacityBytes: 2 * 1024 * 1024, highWatermark: 1, lowWatermark: 1 } };

  it("evicts the oldest leaves, answers at once, and never gives other bytes", async () => {
    await withDaemon(small, async (own) => {
      const engine = await TestEngine.start(own.socket);
      const stored: Uint8Array[][] = [];
      for (let index = 0; index < 40; index++) {
        const keys = chainOf(`full-${index}`, 32);
        const { statuses, completion } = await engine.store(keys);
        expect(statuses.every((status) => status === STORE_STATUS.WANTED)).toBe(true);
        expect(completion).toEqual({ visible: 32, failed: [] });
        stored.push(keys);
      }
      await eventually("evictions are told", async () => (await own.metric("evictions")) > 0);
      let hits = 0;
      for (const keys of stored) {
        const answer = await engine.read(keys);
        expect(answer).toMatchObject({ landed: answer.hit, failed: [], wrong: 0 });
        hits += answer.hit;
      }
      expect(hits).toBeGreaterThan(0);
    });
  });

  it("with everything leased answers full, counts it, and loses nothing that was acknowledged", async () => {
    const settings = { ...small, engineApi: { pinnedBytesMax: 2 * 1024 * 1024 } };
    await withDaemon(settings, async (own) => {
      const engine = await TestEngine.start(own.socket);
      const kept: { readonly keys: Uint8Array[]; readonly lease: number }[] = [];
      let full = 0;
      await own.counts("fullRefusals", undefined, async () => {
        for (let index = 0; index < 40; index++) {
          const keys = chainOf(`leased-${index}`, 32);
          const { statuses, completion } = await engine.store(keys);
          const visible = completion?.visible ?? 0;
          const refused = statuses.filter((status) => status === STORE_STATUS.FULL).length;
          expect(visible + refused).toBe(32);
          expect(statuses.slice(visible).every((status) => status === STORE_STATUS.FULL)).toBe(
            true,
          );
          full += refused;
          if (visible === 0) continue;
          const held = keys.slice(0, visible);
          kept.push({ keys: held, lease: (await engine.lookup(held, 1_000 + index)).lease });
        }
      });
      expect(full).toBeGreaterThan(0);
      for (const { keys, lease } of kept) {
        expect(await engine.load(lease, keys)).toEqual({
          landed: keys.length,
          failed: [],
          wrong: 0,
        });
      }
    });
  });
});

describe("the incarnation proof", () => {
  const proving = { engineApi: { proof: "required" } };

  it("hides blocks of an earlier life until one of them is proved, and for good when it is not", async () => {
    await withDaemon(proving, async (own) => {
      const first = await TestEngine.start(own.socket, { engineId: "first" });
      const keys = freshChain(4);
      await first.store(keys);
      expect((await first.lookup(keys)).hit).toBe(4);
      first.close();
      const second = await TestEngine.start(own.socket, { engineId: "second" });
      const asked = await own.counts("unprovenLookups", undefined, () => second.lookup(keys));
      expect(asked).toMatchObject({ hit: 0, proofWanted: true, proofDepth: 4 });
      expect(asked.proofKey).toEqual(keys[3]);
      expect((await second.load(asked.lease, [keys[3]!], 3)).landed).toBe(1);
      await own.counts("proofFailures", undefined, async () => {
        const reply = await second.wire.cold(OP.PROVE, { namespace: 1, key: keys[3]!, ok: false });
        expect(decodeCold(reply.body)).toEqual({ proven: false });
      });
      expect(await second.lookup(keys)).toMatchObject({ hit: 0, proofWanted: false });
      await second.store(keys);
      expect((await second.lookup(keys)).hit).toBe(4);
      const third = await TestEngine.start(own.socket, { engineId: "third" });
      const again = await third.lookup(keys);
      expect(again.proofWanted).toBe(true);
      await own.counts("proofsPassed", undefined, async () => {
        const reply = await third.wire.cold(OP.PROVE, { namespace: 1, key: keys[3]!, ok: true });
        expect(decodeCold(reply.body)).toEqual({ proven: true });
      });
      expect((await third.lookup(keys)).hit).toBe(4);
    });
  });

  it("cannot be given before it is asked for, nor for a block that is not there", async () => {
    await withDaemon(proving, async (own) => {
      const first = await TestEngine.start(own.socket, { engineId: "first" });
      const keys = freshChain(2);
      await first.store(keys);
      const second = await TestEngine.start(own.socket, { engineId: "second" });
      const prove = async (changes: object): Promise<Frame> =>
        second.wire.cold(OP.PROVE, { namespace: 1, key: keys[1]!, ok: true, ...changes });
      expect(decodeCold((await prove({})).body)).toEqual({ proven: false });
      expect((await second.lookup(keys)).hit).toBe(0);
      const foreign = freshChain(1)[0]!;
      expect(decodeCold((await prove({ key: foreign })).body)).toEqual({ proven: false });
      expect(errorName(await prove({ key: new Uint8Array(7) }))).toBe("malformedFrame");
      expect(errorName(await prove({ key: "text" }))).toBe("malformedFrame");
      expect(errorName(await prove({ namespace: 2 }))).toBe("unknownNamespace");
      expect(errorName(await prove({ ok: 1 }))).toBe("malformedFrame");
    });
  });
});

describe("namespaces without chains", () => {
  it("serve every block of a look-up under its lease", async () => {
    const engine = await start({
      engineId: "unchained",
      descriptor: { chained: false, model: "swa" },
    });
    const keys = freshChain(6);
    expect((await engine.store(keys)).completion?.visible).toBe(6);
    expect(await engine.read(keys)).toMatchObject({ hit: 6, landed: 6, wrong: 0 });
    expect(await engine.read([...keys].reverse())).toMatchObject({ hit: 6, landed: 6, wrong: 0 });
  });
});

it("a HINT about anything is answered, accepted, clipped or refused", async () => {
  const engine = await start();
  const keys = freshChain(1);
  await engine.store(keys);
  for (const kind of ["retain", "drop", "priority", "sessionEnd", "nextUse"]) {
    for (const key of [keys[0]!, freshChain(1)[0]!]) {
      const reply = await engine.wire.cold(OP.HINT, {
        namespace: 1,
        key,
        kind,
        ttlMs: 1,
        value: 1,
      });
      const { verdict } = decodeCold(reply.body) as { verdict: string };
      expect(["accepted", "clipped", "refused"]).toContain(verdict);
    }
  }
  const odd = await engine.wire.cold(OP.HINT, { namespace: 1, key: keys[0]!, kind: "explode" });
  expect(errorName(odd)).toBe("malformedFrame");
});

describe("a block of two shards", () => {
  const shards = { shards: 2, model: "two-shards" };

  it("CANCEL in the middle of a copy does not wait for the other rank", async () => {
    const rowBytes = 64 * 1024;
    const engine = await start({ descriptor: { ...shards, rowBytes }, rows: 32 });
    const { region, wire } = engine;
    for (let round = 0; round < 10; round++) {
      const keys = freshChain(32);
      const rows = engine.gather(keys);
      const body = storeBody({ region, keys, tokens: 32 * 16, rows });
      const tag = wire.nextTag();
      const flags = FLAG.DATA_READY;
      wire.send(frameOf({ op: OP.STORE, flags, tag, count: 32, namespace: 1, body }));
      const { id } = await wire.reply(tag);
      expect((await wire.call({ op: OP.CANCEL, id })).count).toBe(1);
      const names = failuresOf(await wire.completion(tag)).map(({ name }) => name);
      expect(names).toHaveLength(32);
      expect(names).not.toContain("deadlineExceeded");
    }
  });

  it("is visible when both ranks have written, and fails for both when one never does", async () => {
    const ranks = await Promise.all(
      [0, 1].map((rank) =>
        start({ engineId: "ranks", descriptor: shards, hello: { role: "worker", rank, ranks: 2 } }),
      ),
    );
    const keys = freshChain(3);
    const call = async (rank: number): Promise<Frame> => {
      const engine = ranks[rank]!;
      const rows = engine.gather(keys);
      const body = storeBody({ region: engine.region, keys, tokens: 48, shard: rank, rows });
      const fields = { op: OP.STORE, flags: FLAG.DATA_READY, count: 3, namespace: 1, body };
      const reply = await engine.wire.call(fields);
      expect(errorName(reply)).toBe("none");
      return engine.wire.completion(reply.tag);
    };
    const alone = await call(0);
    expect(alone.count).toBe(0);
    expect(failuresOf(alone)).toHaveLength(3);
    expect((await ranks[0]!.lookup(keys)).hit).toBe(0);
    const both = await Promise.all([call(0), call(1)]);
    expect(both.map(({ count }) => count)).toEqual([3, 3]);
    for (const [rank, engine] of ranks.entries()) {
      const { lease } = await engine.lookup(keys, 900 + rank);
      const body = loadBody({ region: engine.region, keys, rows: [0, 1, 2], shard: rank });
      const tag = engine.wire.nextTag();
      engine.wire.send(frameOf({ op: OP.LOAD, tag, id: lease, count: 3, body }));
      expect((await engine.wire.completion(tag)).count).toBe(3);
    }
  });
});

it("a tenant cannot reach another's blocks by naming the same namespace and keys", async () => {
  const own = new TestDaemon();
  const other = `${own.directory}/other.sock`;
  own.configure({ tenants: [{ name: "other", socket: other }] });
  try {
    await own.launch();
    const theirs = await TestEngine.start(other, { engineId: "same" });
    const ours = await TestEngine.start(own.socket, { engineId: "same" });
    const keys = freshChain(4);
    await theirs.store(keys);
    const { lease } = await theirs.lookup(keys);
    expect((await ours.lookup(keys)).hit).toBe(0);
    expect(errorName(await loadCall(ours, lease, keys, [0, 1, 2, 3]))).toBe("unknownLease");
    const stored = await ours.store(keys);
    expect(stored.statuses).toEqual(Array(4).fill(STORE_STATUS.WANTED));
    expect(await theirs.load(lease, keys)).toMatchObject({ landed: 4, wrong: 0 });
  } finally {
    await own.remove();
  }
});
