import { describe, expect, test } from "vitest";
import { Asker, ASKED_MAX } from "../../src/edge/ask.ts";
import { CairnError } from "../../src/errors.ts";
import { LIMITS } from "../../src/limits.ts";
import { METRIC } from "../../src/observe/feed.ts";
import { METRICS } from "../../src/observe/metrics.ts";
import { testApp } from "./fixture.ts";

const FULL_KEY = "00".repeat(24) + "11".repeat(8);

describe("blocks", () => {
  test("a full key is one place, a short key that fits two is listed as ambiguous, an unknown one is not found", async () => {
    const { app } = await testApp();
    const keys = [FULL_KEY, "11".repeat(8), "33".repeat(32)];
    const answer = await app.inject({
      method: "POST",
      url: "/v1/blocks/locate",
      payload: { keys },
    });
    expect(answer.json()).toEqual({
      node: "node-a",
      epoch: "00ff",
      results: [
        {
          key: FULL_KEY,
          found: true,
          ambiguous: false,
          blocks: [{ namespace: 0, key: FULL_KEY, depth: 1, tiers: ["dram"], node: "node-a" }],
        },
        expect.objectContaining({ key: "11".repeat(8), found: true, ambiguous: true }),
        { key: "33".repeat(32), found: false, ambiguous: false, blocks: [] },
      ],
      ambiguous: ["11".repeat(8)],
    });
    await app.close();
  });

  test.each([
    ["no body", undefined],
    ["a list", []],
    ["no keys", { keys: [] }],
    ["an unknown field", { keys: [FULL_KEY], extra: 1 }],
    ["a number for a key", { keys: [7] }],
    ["text for the list", { keys: FULL_KEY }],
    ["an odd digit count", { keys: ["abc"] }],
    ["a key of four bytes", { keys: ["00112233"] }],
    ["a key of 36 bytes", { keys: ["00".repeat(36)] }],
    ["what is no hex", { keys: ["zz".repeat(8)] }],
    [
      "too many keys",
      { keys: Array.from({ length: LIMITS.locateKeysMax + 1 }, () => "11".repeat(8)) },
    ],
  ])("locate answers %s with badRequest", async (_what, payload) => {
    const { app } = await testApp();
    const request = { method: "POST", url: "/v1/blocks/locate" } as const;
    const answer = await app.inject(payload === undefined ? request : { ...request, payload });
    expect(answer.statusCode).toBe(400);
    expect(answer.json()).toMatchObject({ code: 508, name: "badRequest", retryable: false });
    await app.close();
  });

  test("without a ledger locate is unavailable, not wrong", async () => {
    const { app } = await testApp({ reader: undefined });
    const payload = { keys: [FULL_KEY] };
    const answer = await app.inject({ method: "POST", url: "/v1/blocks/locate", payload });
    expect(answer.json()).toMatchObject({ name: "tierUnavailable" });
    await app.close();
  });
});

describe("bodies", () => {
  test("a body over the limit, broken JSON and a foreign content type are typed errors", async () => {
    const { app } = await testApp();
    const put = { method: "PUT", url: "/v1/config" } as const;
    const json = { "content-type": "application/json" };
    const long = await app.inject({
      ...put,
      headers: json,
      payload: " ".repeat(LIMITS.httpBodyBytesMax + 1),
    });
    expect(long.statusCode).toBe(413);
    expect(long.json()).toMatchObject({ name: "bodyTooLarge" });
    for (const payload of ["{", "", "\u0000"]) {
      const answer = await app.inject({ ...put, headers: json, payload });
      expect(answer.statusCode).toBe(400);
      expect(answer.json()).toMatchObject({ name: "badRequest" });
    }
    const form = await app.inject({
      ...put,
      headers: { "content-type": "text/plain" },
      payload: "log=1",
    });
    expect(form.json()).toMatchObject({ name: "badRequest" });
    await app.close();
  });

  test("a body that names __proto__ reaches no prototype", async () => {
    const { app } = await testApp();
    const headers = { "content-type": "application/json" };
    const payload = '{"__proto__": {"polluted": 1}, "log": {"level": "warn"}}';
    const answer = await app.inject({ method: "PUT", url: "/v1/config", headers, payload });
    expect(answer.statusCode).toBe(400);
    expect(({} as { polluted?: number }).polluted).toBeUndefined();
    await app.close();
  });

  test("unknown query fields are refused and unknown paths are not found", async () => {
    const { app } = await testApp();
    expect((await app.inject({ url: "/v1/tiers?x=1" })).json()).toMatchObject({
      name: "badRequest",
    });
    expect((await app.inject({ url: "/v1/nope" })).json()).toMatchObject({
      code: 507,
      name: "notFound",
    });
    expect((await app.inject({ method: "DELETE", url: "/v1/tiers" })).statusCode).toBe(404);
    expect((await app.inject({ url: "/../package.json" })).statusCode).toBe(404);
    await app.close();
  });
});

describe("configuration", () => {
  test("what PUT changed is what GET answers, and sizes are read from text", async () => {
    const { app } = await testApp();
    const before = (await app.inject({ url: "/v1/config" })).json<{ dram: object }>();
    const payload = { dram: { capacityBytes: "2GiB" }, log: { level: "debug" } };
    const put = await app.inject({ method: "PUT", url: "/v1/config", payload });
    expect(put.json()).toMatchObject({ applied: ["dram.capacityBytes", "log.level"] });
    const after = (await app.inject({ url: "/v1/config" })).json();
    expect(after).toEqual({
      ...before,
      dram: { ...before.dram, capacityBytes: 2 ** 31 },
      log: { level: "debug" },
    });
    const whole = await app.inject({ method: "PUT", url: "/v1/config", payload: after });
    expect(whole.json()).toEqual({ applied: [], config: after });
    await app.close();
  });

  test("a rejected change keeps the old configuration whole and names every problem", async () => {
    const { app, daemon } = await testApp();
    const old = structuredClone(daemon.running);
    const payload = { log: { level: "debug" }, dram: { lowWatermak: 0.5, copyThreads: -1 } };
    const answer = await app.inject({ method: "PUT", url: "/v1/config", payload });
    expect(answer.statusCode).toBe(400);
    expect(answer.json()).toMatchObject({
      name: "configInvalid",
      problems: [
        { path: "dram.lowWatermak", message: 'unknown key; did you mean "lowWatermark"?' },
        { path: "dram.copyThreads", message: "expected at least 0, got -1" },
      ],
    });
    expect(daemon.running).toEqual(old);
    await app.close();
  });

  test("a change that needs a restart is refused whole and says which field", async () => {
    const { app, daemon } = await testApp();
    const old = structuredClone(daemon.running);
    const payload = { log: { level: "debug" }, dram: { slabBytes: "1MiB" } };
    const answer = await app.inject({ method: "PUT", url: "/v1/config", payload });
    expect(answer.statusCode).toBe(409);
    expect(answer.json()).toMatchObject({ name: "restartNeeded", message: "dram.slabBytes" });
    expect(daemon.running).toEqual(old);
    await app.close();
  });
});

describe("what the daemon measures", () => {
  test("readyz follows the ready gauge", async () => {
    const { app, feed } = await testApp();
    expect((await app.inject({ url: "/readyz" })).statusCode).toBe(503);
    feed.set(METRIC.ready, 1);
    expect((await app.inject({ url: "/readyz" })).json()).toEqual({ ready: true });
    await app.close();
  });

  test("every row of the feed is in /metrics, with cumulative buckets and the values written", async () => {
    const { app, feed } = await testApp();
    feed.add(METRIC.lookups, 3);
    feed.addAt(METRIC.storeBlocks, 1, 7);
    feed.observe(METRIC.lookupSeconds, 0.000_003);
    feed.observe(METRIC.lookupSeconds, 100);
    const { body, headers } = await app.inject({ url: "/metrics" });
    expect(headers["content-type"]).toContain("text/plain; version=0.0.4");
    for (const { name, kind } of Object.values(METRICS))
      expect(body).toContain(`# TYPE ${name} ${kind}\n`);
    expect(body).toContain("\ncairn_lookups_total 3\n");
    expect(body).toContain('\ncairn_store_blocks_total{status="pending"} 7\n');
    expect(body).toContain('\ncairn_lookup_seconds_bucket{le="0.000002"} 0\n');
    expect(body).toContain('\ncairn_lookup_seconds_bucket{le="0.000005"} 1\n');
    expect(body).toContain('\ncairn_lookup_seconds_bucket{le="20"} 1\n');
    expect(body).toContain('\ncairn_lookup_seconds_bucket{le="+Inf"} 2\n');
    expect(body).toContain("\ncairn_lookup_seconds_count 2\n");
    expect(body).toContain('cairn_build_info{version="0.1.0",node="node-a"} 1');
    await app.close();
  });

  test("a hit rate without look-ups is null, never zero", async () => {
    const { app, feed } = await testApp();
    const idle = (await app.inject({ url: "/v1/stats" })).json<{
      hitRate: unknown;
      recent: object;
    }>();
    expect(idle.hitRate).toBeNull();
    expect(idle.recent).toMatchObject({ hitRate: null, latencySeconds: { lookupSeconds: null } });
    feed.add(METRIC.lookupBlocksRequested, 10);
    feed.addAt(METRIC.lookupBlocksHit, 0, 4);
    const busy = (await app.inject({ url: "/v1/stats" })).json();
    expect(busy).toMatchObject({ hitRate: 0.4, uptimeSeconds: 60, instances: [{ leases: 3 }] });
    await app.close();
  });

  test("many readers within a moment cost the daemon one snapshot", async () => {
    const { app, daemon } = await testApp();
    const urls = ["/v1/tiers", "/v1/namespaces", "/v1/stats", "/v1/tiers"];
    const answers = await Promise.all(urls.map((url) => app.inject({ url })));
    expect(answers.map(({ statusCode }) => statusCode)).toEqual([200, 200, 200, 200]);
    expect(daemon.snapshots).toBe(1);
    await app.close();
  });
});

describe("questions to the daemon", () => {
  test("an error of the daemon keeps its row on the way out", async () => {
    const ask = () => Promise.reject(new CairnError("shuttingDown", "draining"));
    const { app } = await testApp({ ask });
    for (const url of ["/healthz", "/v1/tiers", "/v1/config"])
      expect((await app.inject({ url })).json(), url).toMatchObject({
        code: 109,
        name: "shuttingDown",
      });
    await app.close();
  });

  test("more open questions than the bound are refused at once, and closing ends the open ones", async () => {
    const posted: number[] = [];
    const asker = new Asker((id) => posted.push(id));
    const open = Array.from({ length: ASKED_MAX }, () => asker.ask({ kind: "ping" }));
    const settled = Promise.allSettled(open);
    await expect(asker.ask({ kind: "ping" })).rejects.toMatchObject({ errorName: "overloaded" });
    asker.answer(posted[0]!, true);
    asker.close();
    const outcomes = (await settled).map(({ status }) => status);
    expect(outcomes.filter((status) => status === "fulfilled")).toHaveLength(1);
    expect(outcomes.filter((status) => status === "rejected")).toHaveLength(ASKED_MAX - 1);
  });
});
