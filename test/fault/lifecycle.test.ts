/** Engines that die or fall silent, daemons that are stopped under load or started twice, reloads that must not be applied. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { connect } from "node:net";
import { OP, STORE_STATUS } from "../../src/engine-api/protocol.ts";
import { LIMITS } from "../../src/limits.ts";
import { startEngineProcess } from "../harness/children.ts";
import { type Settings, TestDaemon, withDaemon } from "../harness/daemon.ts";
import { chainOf, TestEngine } from "../harness/engine.ts";
import { PROCESS_CHAIN_BLOCKS } from "../harness/engine-process.ts";
import { eventually } from "../harness/eventually.ts";
import { helloOf, lookupBody, storeBody } from "../harness/frames.ts";
import { scaled } from "../harness/scale.ts";
import { errorName, errorOf, Wire } from "../harness/wire.ts";

/** What an engine process left behind: the chain it finished is whole, of the other only what it filled. */
async function expectAftermath(daemon: TestDaemon, seed: string): Promise<void> {
  const engine = await TestEngine.start(daemon.socket, { engineId: `after-${seed}` });
  const kept = chainOf(`${seed}-kept`, PROCESS_CHAIN_BLOCKS);
  expect(await engine.read(kept)).toEqual({
    hit: PROCESS_CHAIN_BLOCKS,
    landed: PROCESS_CHAIN_BLOCKS,
    failed: [],
    wrong: 0,
  });
  const half = chainOf(`${seed}-half`, PROCESS_CHAIN_BLOCKS);
  const read = await engine.read(half);
  expect(read).toMatchObject({ landed: read.hit, failed: [], wrong: 0 });
  expect(read.hit).toBeLessThanOrEqual(PROCESS_CHAIN_BLOCKS / 2);
  const again = await engine.store(half);
  expect(again.statuses.every((status) => status <= STORE_STATUS.WANTED)).toBe(true);
  expect(again.completion?.failed ?? []).toEqual([]);
  expect(await engine.read(half)).toMatchObject({ landed: PROCESS_CHAIN_BLOCKS, wrong: 0 });
  engine.close();
}

describe("an engine that dies", () => {
  it("by SIGKILL gives back leases, jobs, regions and half-written blocks", async () => {
    await withDaemon({}, async (daemon) => {
      const engine = await startEngineProcess(daemon.socket, "victim", "killed");
      expect(engine.ready).toMatchObject({ stored: 16, wanted: 16 });
      await daemon.settles("leases", 1);
      await daemon.settles("jobs", 1);
      await daemon.settles("regions", 1);
      await daemon.counts("connectionsClosed", "peer", () => engine.end("SIGKILL"));
      for (const gauge of ["connections", "instances", "leases", "pinnedBytes", "jobs"] as const) {
        await daemon.settles(gauge, 0);
      }
      await daemon.settles("regions", 0);
      await expectAftermath(daemon, "killed");
    });
  });

  it("by SIGSTOP loses its leases when heartbeats are missing, and its jobs at their deadline", async () => {
    const settings = { engineApi: { heartbeatMs: 100, heartbeatMisses: 3, storeFillMs: 600 } };
    await withDaemon(settings, async (daemon) => {
      const engine = await startEngineProcess(daemon.socket, "silent", "stopped");
      engine.child.kill("SIGSTOP");
      await eventually("leases expire", async () => (await daemon.metric("leasesExpired")) === 1);
      await eventually("fills time out", async () => (await daemon.metric("fillTimeouts")) > 0);
      await daemon.settles("leases", 0);
      await daemon.settles("jobs", 0);
      expect(await daemon.metric("connections")).toBe(1);
      engine.child.kill("SIGCONT");
      await expectAftermath(daemon, "stopped");
      await engine.end("SIGKILL");
    });
  });
});

describe("two daemons", () => {
  it("on one directory: the second ends with directoryLocked and the first serves on", async () => {
    await withDaemon({}, async (first) => {
      const engine = await TestEngine.start(first.socket);
      const keys = chainOf("first", 8);
      await engine.store(keys);
      const second = new TestDaemon({
        dram: { directory: `${first.directory}/pool` },
      });
      try {
        const exit = await second.failToStart();
        expect(exit.signal).toBeNull();
        expect(exit.code).toBe(1);
        expect(second.log()).toContain("in use");
      } finally {
        await second.remove();
      }
      expect(await engine.read(keys)).toMatchObject({ landed: 8, wrong: 0 });
    });
  });

  it("on one socket: the second ends with an error and the first keeps the socket", async () => {
    await withDaemon({}, async (first) => {
      const second = new TestDaemon({ engineApi: { socket: first.socket } });
      try {
        expect((await second.failToStart()).code).toBe(1);
        expect(second.log()).toContain(first.socket);
        expect(second.poolFiles()).toEqual([]);
      } finally {
        await second.remove();
      }
      const engine = await TestEngine.start(first.socket);
      await engine.wire.beat();
    });
  });

  it("on one socket: the second leaves a pool that it found as it was", async () => {
    await withDaemon({}, async (first) => {
      await withDaemon({}, async (second) => {
        const keys = chainOf("found", 8);
        const engine = await TestEngine.start(second.socket);
        await engine.store(keys);
        engine.close();
        const own = second.socket;
        await second.stop();
        second.configure({ engineApi: { socket: first.socket } });
        expect((await second.failToStart()).code).toBe(1);
        second.configure({ engineApi: { socket: own } });
        await second.launch();
        const later = await TestEngine.start(own);
        expect(await later.read(keys)).toMatchObject({ landed: 8, wrong: 0 });
      });
    });
  });
});

/** Stores chains until the daemon leaves; those whose completion said so are acknowledged. */
async function storeUntilGone(engine: TestEngine, name: string): Promise<Uint8Array[][]> {
  const acknowledged: Uint8Array[][] = [];
  for (let index = 0; index < 100_000; index++) {
    const keys = chainOf(`${name}-${index}`, 8);
    try {
      const { completion } = await engine.store(keys);
      const visible = completion?.visible ?? 0;
      if (visible > 0) acknowledged.push(keys.slice(0, visible));
    } catch {
      return acknowledged;
    }
  }
  throw new Error("the daemon did not leave");
}

describe("SIGTERM", () => {
  it("under load drains, ends with code 0, and every acknowledged block is there at the next start", async () => {
    await withDaemon({ dram: { capacityBytes: 128 * 1024 * 1024 } }, async (daemon) => {
      const engines = await Promise.all(
        [0, 1, 2, 3].map((index) => TestEngine.start(daemon.socket, { engineId: `load-${index}` })),
      );
      const storms = engines.map((engine, index) => storeUntilGone(engine, `term-${index}`));
      await eventually("the storm blows", async () => (await daemon.metric("storedBlocks")) > 500);
      expect(await daemon.stop("SIGTERM")).toEqual({ code: 0, signal: null });
      const chains = (await Promise.all(storms)).flat();
      expect(chains.length).toBeGreaterThan(50);
      await daemon.launch();
      const reader = await TestEngine.start(daemon.socket, { engineId: "reader" });
      for (const keys of chains) {
        const { length } = keys;
        expect(await reader.read(keys)).toEqual({
          hit: length,
          landed: length,
          failed: [],
          wrong: 0,
        });
      }
    });
  });

  it("answers what comes while it drains with shuttingDown", async () => {
    await withDaemon({ engineApi: { storeFillMs: 3_000 } }, async (daemon) => {
      const engine = await TestEngine.start(daemon.socket);
      const keys = chainOf("draining", 1);
      const body = storeBody({ region: engine.region, keys, tokens: 16 });
      await engine.wire.call({ op: OP.STORE, count: 1, namespace: 1, body });
      const ended = daemon.stop("SIGTERM");
      const refused = await eventually("the daemon drains", async () => {
        const fields = { op: OP.LOOKUP, id: 1, count: 1, namespace: 1, body: lookupBody(keys) };
        const reply = await engine.wire.call(fields);
        return errorName(reply) === "none" ? undefined : reply;
      });
      expect(errorOf(refused)).toMatchObject({ name: "shuttingDown", code: 109, retryable: true });
      expect(await ended).toEqual({ code: 0, signal: null });
    });
  });

  it("a second time ends at once, though a job waits", async () => {
    await withDaemon({ engineApi: { storeFillMs: 60_000 } }, async (daemon) => {
      const engine = await TestEngine.start(daemon.socket);
      const keys = chainOf("second", 1);
      const body = storeBody({ region: engine.region, keys, tokens: 16 });
      await engine.wire.call({ op: OP.STORE, count: 1, namespace: 1, body });
      const began = performance.now();
      daemon.signal("SIGTERM");
      await eventually("the daemon drains", async () => {
        const reply = await engine.wire.call({ op: OP.HINT, body: new Uint8Array(0) });
        return errorName(reply) === "shuttingDown";
      });
      const exit = await daemon.stop("SIGTERM");
      expect(exit.signal).toBeNull();
      expect(performance.now() - began).toBeLessThan(LIMITS.drainMs);
    });
  });
});

describe("a reload", () => {
  let daemon: TestDaemon;
  beforeAll(async () => {
    daemon = await TestDaemon.start();
  });
  afterAll(async () => {
    await daemon?.remove();
  });

  const wrong: readonly [string, string, number, Settings][] = [
    ["an unknown field", "configInvalid", 400, { dram: { capacity: 1 } }],
    ["an unknown section", "configInvalid", 400, { drum: {} }],
    ["a value out of range", "configInvalid", 400, { engineApi: { heartbeatMs: 0 } }],
    ["a value of another type", "configInvalid", 400, { engineApi: { heartbeatMs: true } }],
    [
      "watermarks the wrong way round",
      "configInvalid",
      400,
      { dram: { lowWatermark: 1, highWatermark: 0.5 } },
    ],
    ["a field that needs a restart", "restartNeeded", 409, { dram: { slabBytes: 2_097_152 } }],
    [
      "one good field and one that needs a restart",
      "restartNeeded",
      409,
      { engineApi: { heartbeatMs: 500, connectionsMax: 5 } },
    ],
  ];

  it.each(wrong)("by PUT with %s is refused whole: %s", async (_what, name, status, body) => {
    const before = await daemon.json("/v1/config");
    const answer = await daemon.counts("configReloads", "rejected", () =>
      daemon.put("/v1/config", body),
    );
    expect(answer.status).toBe(status);
    expect(JSON.parse(answer.text)).toMatchObject({ name });
    expect(await daemon.json("/v1/config")).toEqual(before);
  });

  it("by PUT with text that is no JSON is refused", async () => {
    const before = await daemon.json("/v1/config");
    expect((await daemon.put("/v1/config", "{")).status).toBe(400);
    expect((await daemon.put("/v1/config", [])).status).toBe(400);
    expect(await daemon.json("/v1/config")).toEqual(before);
  });

  it("by SIGHUP of a broken file keeps the old configuration, of a good one applies it", async () => {
    const before = await daemon.json<Record<string, unknown>>("/v1/config");
    for (const text of ["dram: [", "dram:\n  capacty: 1\n", "- a\n", "\0"]) {
      daemon.writeConfig(text);
      await daemon.counts("configReloads", "rejected", async () => daemon.signal("SIGHUP"));
      expect(await daemon.json("/v1/config")).toEqual(before);
    }
    daemon.configure({ engineApi: { heartbeatMs: 1_234 } });
    await daemon.counts("configReloads", "applied", async () => daemon.signal("SIGHUP"));
    const after = await daemon.json<{ engineApi: { heartbeatMs: number } }>("/v1/config");
    expect(after.engineApi.heartbeatMs).toBe(1_234);
  });
});

describe("more connections than there is room for", () => {
  const wires: Wire[] = [];
  afterEach(() => {
    for (const wire of wires.splice(0)) wire.close();
  });

  it("are told tooManyConnections, counted, and disturb nobody", async () => {
    await withDaemon({ engineApi: { connectionsMax: 8 } }, async (daemon) => {
      const engine = await TestEngine.start(daemon.socket);
      const keys = chainOf("crowd", 8);
      await engine.store(keys);
      for (let index = 0; index < 7; index++) {
        const wire = await Wire.connect(daemon.socket);
        wires.push(wire);
        await wire.cold(OP.HELLO, helloOf(`crowd-${index}`));
      }
      await daemon.counts("connectionsRefused", undefined, async () => {
        const late = await Wire.connect(daemon.socket);
        expect(errorOf(await late.take(() => true))).toMatchObject({
          name: "tooManyConnections",
          code: 107,
          retryable: true,
        });
        await late.closed;
      });
      expect(await engine.read(keys)).toMatchObject({ landed: 8, wrong: 0 });
      wires.pop()!.close();
      await daemon.settles("connections", 7);
      const next = await Wire.connect(daemon.socket);
      wires.push(next);
      expect(errorName(await next.cold(OP.HELLO, helloOf("next")))).toBe("none");
    });
  });

  it("10,000 of them are bounded, and a neighbour is served throughout", async () => {
    const total = scaled(2_000, 10_000);
    await withDaemon({}, async (daemon) => {
      const engine = await TestEngine.start(daemon.socket);
      const keys = chainOf("flood", 32);
      await engine.store(keys);
      const idle = daemon.descriptors();
      const sockets = new Set<ReturnType<typeof connect>>();
      let made = 0;
      let most = 0;
      while (made < total) {
        const batch = Array.from({ length: 200 }, () => open(daemon.socket, sockets));
        made += (await Promise.all(batch)).filter((done) => done).length;
        most = Math.max(most, await daemon.metric("connections"));
        expect(await engine.read(keys)).toMatchObject({ landed: 32, wrong: 0 });
      }
      expect(most).toBeLessThanOrEqual(LIMITS.connectionsMax);
      await eventually(
        "every connection is accepted or refused",
        async () =>
          (await daemon.metric("connectionsAccepted")) +
            (await daemon.metric("connectionsRefused")) >=
          total,
      );
      expect(await daemon.metric("connectionsRefused")).toBeGreaterThan(0);
      for (const socket of sockets) socket.destroy();
      await daemon.settles("connections", 1);
      await eventually("descriptors go back", () => daemon.descriptors() <= idle + 4);
      expect(await engine.read(keys)).toMatchObject({ landed: 32, wrong: 0 });
    });
  });
});

/** One silent connection, kept open as long as the daemon lets it; false when the backlog was full. */
function open(path: string, sockets: Set<ReturnType<typeof connect>>): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    sockets.add(socket);
    socket.on("connect", () => resolve(true));
    socket.on("data", () => undefined);
    socket.on("error", () => resolve(false));
    socket.on("close", () => sockets.delete(socket));
  });
}
