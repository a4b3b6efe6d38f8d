/**
 * Fault 34: an S3 that answers 5xx, throttles, hangs, truncates, sends a wrong body, or whose clock differs by more
 * than 15 minutes. Never wrong bytes, never a hang, never a throw; a named counter each.
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { ITEM } from "../../../addon/binding.ts";
import { signed } from "../../../bench/raw-http.ts";
import { CairnError } from "../../../src/errors.ts";
import { LIMITS as OURS } from "../../../src/limits.ts";
import { GuardedStore } from "../../../tiers/remote/guarded-store.ts";
import { PRIORITY, type RemoteTierOptions } from "../../../tiers/remote/index.ts";
import { type Fault, FAULT_NAMES } from "../../../tiers/remote/object-store.ts";
import { S3Store, type S3Options } from "../../../tiers/remote/s3.ts";
import {
  clockOffsetOf,
  errorCodeOf,
  faultOfAnswer,
  totalOfContentRange,
} from "../../../tiers/remote/s3-answers.ts";
import { parseCredentials, readCredentials } from "../../../tiers/remote/s3-credentials.ts";
import { FAKE_KEYS, FAKE_REGION, type FakeFault, FakeS3 } from "../../harness/fake-s3.ts";
import { bytesOf, LIMITS } from "./contract.ts";
import { chunkOf, type TestTier, tierOver } from "./fixture.ts";
import { PATIENT } from "../../harness/eventually.ts";

let fake: FakeS3;
const closing: (() => Promise<void>)[] = [];

beforeEach(async () => {
  fake = await FakeS3.start();
});
afterEach(async () => {
  for (const close of closing.splice(0)) await close();
  await fake.stop();
});

function open(options: Partial<S3Options> = {}): S3Store {
  const store = new S3Store({
    bucket: fake.bucket,
    prefix: "",
    region: FAKE_REGION,
    endpoint: fake.endpoint,
    pathStyle: true,
    credentials: FAKE_KEYS,
    signPayload: false,
    socketsMax: 4,
    // Longer than a test: what ends a request that hangs is its deadline.
    idleMs: 600_000,
    ...options,
  });
  closing.push(() => store.close());
  return store;
}

const isGet = (method: string): boolean => method === "GET";

/** Injects `fault` into the first `times` payload reads. */
function breakGets(fault: FakeFault, times = Number.POSITIVE_INFINITY): void {
  let left = times;
  fake.fault = ({ method, key }) => {
    if (!isGet(method) || key === "" || left <= 0) return undefined;
    left -= 1;
    return fault;
  };
}

describe("one read from a store that misbehaves", () => {
  const cases: readonly (readonly [string, FakeFault, Fault, Partial<S3Options>, number])[] = [
    [
      "answers 500",
      { kind: "status", status: 500, code: "InternalError" },
      "unavailable",
      {},
      9_000,
    ],
    [
      "answers 503 SlowDown",
      { kind: "status", status: 503, code: "SlowDown" },
      "throttled",
      {},
      9_000,
    ],
    [
      "answers 429",
      { kind: "status", status: 429, code: "TooManyRequests" },
      "throttled",
      {},
      9_000,
    ],
    ["never answers", { kind: "hang" }, "timeout", {}, 150],
    [
      "goes silent for longer than a socket may",
      { kind: "hang" },
      "timeout",
      { idleMs: 60 },
      9_000,
    ],
    ["goes silent in the body", { kind: "stall", bytes: 30_000 }, "timeout", { idleMs: 60 }, 9_000],
    ["sends half a body until the deadline", { kind: "stall", bytes: 30_000 }, "timeout", {}, 150],
    ["ends the body early", { kind: "truncate", bytes: 30_000 }, "truncated", {}, 9_000],
    ["closes without an answer", { kind: "reset" }, "unavailable", {}, 9_000],
    ["announces a shorter body", { kind: "shorten", bytes: 30_000 }, "protocol", {}, 9_000],
    ["ignores the range", { kind: "ignoreRange" }, "protocol", {}, 9_000],
    ["refuses it", { kind: "status", status: 403, code: "AccessDenied" }, "refused", {}, 9_000],
    [
      "has no such user, and says 404",
      { kind: "status", status: 404, code: "XAdminUserNotFound" },
      "refused",
      {},
      9_000,
    ],
    [
      "redirects elsewhere",
      { kind: "status", status: 301, code: "PermanentRedirect" },
      "refused",
      {},
      9_000,
    ],
  ];

  test.each(cases)("that %s", async (_name, fault, expected, options, deadlineMs) => {
    const store = open(options);
    await store.put("v1/a", bytesOf(100_000, 1), LIMITS);
    breakGets(fault);
    const into = new Uint8Array(60_000);
    const outcome = await store.get("v1/a", 20_000, into, { deadlineMs });
    expect(outcome).toMatchObject({ ok: false, fault: expected });
    // What has come so far may lie in the buffer; after the answer nothing more does.
    const then = into.slice();
    await new Promise((resolve) => {
      setTimeout(resolve, 30);
    });
    expect(Buffer.compare(into, then)).toBe(0);
    fake.fault = () => undefined;
    expect(await store.get("v1/a", 20_000, into, LIMITS)).toMatchObject({ ok: true });
    expect(Buffer.compare(into, bytesOf(100_000, 1).subarray(20_000, 80_000))).toBe(0);
  });

  test("that is cancelled in the middle of its body", async () => {
    const store = open();
    await store.put("v1/a", bytesOf(100_000, 1), LIMITS);
    breakGets({ kind: "stall", bytes: 30_000 });
    const abort = new AbortController();
    const into = new Uint8Array(60_000);
    const read = store.get("v1/a", 0, into, { deadlineMs: 60_000, signal: abort.signal });
    await vi.waitUntil(() => into.some((byte) => byte !== 0), PATIENT);
    abort.abort();
    expect(await read).toMatchObject({ fault: "cancelled" });
  });

  test("whose server is not there at all", async () => {
    const store = open();
    await fake.stop();
    expect(await store.get("v1/a", 0, new Uint8Array(8), LIMITS)).toMatchObject({
      fault: "unavailable",
    });
    expect(await store.list("", undefined, LIMITS)).toMatchObject({ fault: "unavailable" });
    fake = await FakeS3.start();
  });

  test("whose server speaks no HTTP", async () => {
    const sockets = new Set<Socket>();
    const server = createServer((socket) => {
      sockets.add(socket);
      socket.end("SSH-2.0-OpenSSH_9\r\n\r\n");
    });
    await new Promise<void>((resolve) => {
      server.listen(0, "127.0.0.1", resolve);
    });
    const address = server.address();
    const port = typeof address === "object" ? (address?.port ?? 0) : 0;
    const store = open({ endpoint: `http://127.0.0.1:${port}` });
    expect(await store.get("v1/a", 0, new Uint8Array(8), LIMITS)).toMatchObject({ ok: false });
    expect(await store.check(LIMITS)).toMatchObject({ ok: false });
    for (const socket of sockets) socket.destroy();
    server.close();
  });

  test("control calls have the same deadline and the same faults", async () => {
    const store = open();
    fake.fault = () => ({ kind: "hang" });
    const short = { deadlineMs: 80 };
    expect(await store.list("", undefined, short)).toMatchObject({ fault: "timeout" });
    expect(await store.delete("v1/a", short)).toMatchObject({ fault: "timeout" });
    expect(await store.check(short)).toMatchObject({ fault: "timeout" });
    expect(await store.head("v1/a", short)).toMatchObject({ fault: "timeout" });
    fake.fault = () => ({ kind: "status", status: 503, code: "SlowDown" });
    expect(await store.list("", undefined, LIMITS)).toMatchObject({ fault: "throttled" });
    expect(await store.delete("v1/a", LIMITS)).toMatchObject({ fault: "throttled" });
    fake.fault = () => ({ kind: "status", status: 500, code: "InternalError" });
    expect(await store.check(LIMITS)).toMatchObject({ fault: "unavailable" });
  });
});

describe("signatures", () => {
  test("a wrong secret, an unknown key and a foreign bucket are refused to every call", async () => {
    const wrong = open({ credentials: { ...FAKE_KEYS, secretAccessKey: "no" } });
    const unknown = open({ credentials: { accessKeyId: "NOBODY", secretAccessKey: "no" } });
    const foreign = open({ bucket: "another-bucket" });
    for (const store of [wrong, unknown, foreign]) {
      const outcomes = [
        await store.get("v1/a", 0, new Uint8Array(8), LIMITS),
        await store.put("v1/a", bytesOf(10, 1), LIMITS),
        await store.list("", undefined, LIMITS),
        await store.check(LIMITS),
      ];
      expect(outcomes.map((one) => (one.ok ? "ok" : one.fault))).toEqual(
        new Array(outcomes.length).fill("refused"),
      );
    }
    expect(fake.objects.size).toBe(0);
  });

  test("keys that no header can carry are refused to every call, and throw nothing", async () => {
    for (const odd of ["KEY\n", "KE\x01Y", "К"]) {
      const store = open({ credentials: { ...FAKE_KEYS, accessKeyId: odd } });
      const outcomes = [
        await store.get("v1/a", 0, new Uint8Array(8), LIMITS),
        await store.put("v1/a", bytesOf(10, 1), LIMITS),
        await store.head("v1/a", LIMITS),
        await store.list("", undefined, LIMITS),
        await store.delete("v1/a", LIMITS),
        await store.check(LIMITS),
      ];
      expect(outcomes.map((one) => (one.ok ? "ok" : one.fault))).toEqual(
        new Array(outcomes.length).fill("refused"),
      );
    }
    expect(fake.requests).toEqual([]);
  });

  test("payload is signed where it is asked for, and a body that is not what was signed is refused", async () => {
    await open({ signPayload: true }).put("v1/signed", bytesOf(10, 1), LIMITS);
    expect(fake.requests.at(-1)).toMatchObject({ method: "PUT", unsigned: false });
    await open().put("v1/unsigned", bytesOf(10, 1), LIMITS);
    expect(fake.requests.at(-1)).toMatchObject({ unsigned: true });
    const target = { endpoint: fake.endpoint, region: FAKE_REGION, ...FAKE_KEYS };
    const path = `/${fake.bucket}/v1/by-hand`;
    const hash = createHash("sha256").update("other").digest("hex");
    for (const [payloadHash, at, status] of [
      [hash, path, 400],
      ["UNSIGNED-PAYLOAD", `${path}2`, 403],
      ["UNSIGNED-PAYLOAD", path, 200],
    ] as const) {
      const headers = signed(target, "PUT", path, {}, payloadHash, Date.now());
      const answer = await fetch(fake.endpoint + at, { method: "PUT", body: "x", headers });
      expect([at, answer.status]).toEqual([at, status]);
    }
  });

  test("a clock that is an hour off is learnt from the server, by payload and control calls", async () => {
    for (const offsetMs of [3_600_000, -3_600_000]) {
      fake.clockOffsetMs = offsetMs;
      const payload = open();
      expect(
        await payload.put(`v1/p${offsetMs > 0 ? 1 : 0}`, bytesOf(10, 1), LIMITS),
      ).toMatchObject({
        value: "stored",
      });
      expect(payload.clockCorrections).toBe(1);
      const refused = fake.refused;
      expect(await payload.head(`v1/p${offsetMs > 0 ? 1 : 0}`, LIMITS)).toMatchObject({ ok: true });
      expect(await payload.list("", undefined, LIMITS)).toMatchObject({ ok: true });
      expect(fake.refused).toBe(refused);
      const control = open();
      expect(await control.list("", undefined, LIMITS)).toMatchObject({ ok: true });
      expect(control.clockCorrections).toBe(1);
      const head = open();
      expect(await head.head("v1/none", LIMITS)).toMatchObject({ fault: "missing" });
    }
  });

  test("a server that refuses every time is not asked for ever", async () => {
    const store = open({ credentials: { ...FAKE_KEYS, secretAccessKey: "no" } });
    fake.clockOffsetMs = 3_600_000;
    expect(await store.get("v1/a", 0, new Uint8Array(8), LIMITS)).toMatchObject({
      fault: "refused",
    });
    expect(fake.requests).toHaveLength(2);
  });

  test("keys come from a file of the AWS format that nobody else may read", async () => {
    const folder = await mkdtemp(join(tmpdir(), "cairn-keys-"));
    const path = join(folder, "credentials");
    const text = `[other]\naws_access_key_id = X\n[default]\n# ours\naws_access_key_id = ${FAKE_KEYS.accessKeyId}\naws_secret_access_key=${FAKE_KEYS.secretAccessKey}\n`;
    await writeFile(path, text, { mode: 0o600 });
    const { prefix, region } = { prefix: "", region: FAKE_REGION };
    const store = new S3Store({
      bucket: fake.bucket,
      prefix,
      region,
      endpoint: fake.endpoint,
      pathStyle: true,
      credentialsFile: path,
      signPayload: false,
      socketsMax: 2,
      idleMs: 5_000,
    });
    closing.push(() => store.close());
    expect(await store.check(LIMITS)).toMatchObject({ ok: true });
    await chmod(path, 0o644);
    await expect(readCredentials(path)).rejects.toThrow(CairnError);
    await expect(readCredentials(join(folder, "none"))).rejects.toThrow();
    expect(() => parseCredentials("[other]\naws_access_key_id=a\n")).toThrow(CairnError);
    expect(parseCredentials(`${text}aws_session_token=t\n`).sessionToken).toBe("t");
    for (const odd of ["a\x01b", "a\0", "ключ", "two words"]) {
      expect(() => parseCredentials(`${text}aws_session_token=${odd}\n`)).toThrow(
        "aws_session_token",
      );
    }
    await rm(folder, { recursive: true });
  });

  test("keys that were rotated in their file are used within a minute", async () => {
    const folder = await mkdtemp(join(tmpdir(), "cairn-keys-"));
    const path = join(folder, "credentials");
    const text = (secret: string): string =>
      `[default]\naws_access_key_id=${FAKE_KEYS.accessKeyId}\naws_secret_access_key=${secret}\n`;
    await writeFile(path, text("old"), { mode: 0o600 });
    const store = open({ credentials: undefined, credentialsFile: path });
    vi.useFakeTimers({ toFake: ["Date"] });
    try {
      expect(await store.head("v1/a", LIMITS)).toMatchObject({ fault: "refused" });
      await writeFile(path, text(FAKE_KEYS.secretAccessKey), { mode: 0o600 });
      vi.setSystemTime(Date.now() + OURS.credentialsReadMs + 1_000);
      expect(await store.head("v1/a", LIMITS)).toMatchObject({ fault: "missing" });
      expect(await store.list("", undefined, LIMITS)).toMatchObject({ ok: true });
    } finally {
      vi.useRealTimers();
      await rm(folder, { recursive: true });
    }
  });

  test("over TLS payload and control go to a server whose certificate is trusted, and to no other", async () => {
    const folder = await mkdtemp(join(tmpdir(), "cairn-tls-"));
    const files = ["-keyout", join(folder, "key"), "-out", join(folder, "cert")];
    const subject = ["-subj", "/CN=fake", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"];
    const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    const words = ["req", "-x509", ...curve, ...files, ...subject];
    execFileSync("openssl", words, { stdio: "ignore" });
    const [cert, key] = await Promise.all(
      ["cert", "key"].map((name) => readFile(join(folder, name), "utf8")),
    );
    await rm(folder, { recursive: true });
    const secure = await FakeS3.start("kv-test", 0, { cert: cert ?? "", key: key ?? "" });
    closing.push(() => secure.stop());
    const trusting = open({ endpoint: secure.endpoint, certificateAuthorities: cert });
    expect(await trusting.put("v1/tls", bytesOf(100_000, 1), LIMITS)).toMatchObject({ ok: true });
    const into = new Uint8Array(100_000);
    expect(await trusting.get("v1/tls", 0, into, LIMITS)).toMatchObject({ ok: true });
    expect(Buffer.compare(into, bytesOf(100_000, 1))).toBe(0);
    expect(await trusting.list("", undefined, LIMITS)).toMatchObject({ ok: true });
    const wary = open({ endpoint: secure.endpoint });
    expect(await wary.put("v1/wary", bytesOf(9, 1), LIMITS)).toMatchObject({ ok: false });
    expect(await wary.check(LIMITS)).toMatchObject({ ok: false });
    expect([...secure.objects.keys()]).toEqual(["v1/tls"]);
  });

  test("keys that cannot be had are a fault, not an exception", async () => {
    const store = new S3Store({
      bucket: fake.bucket,
      prefix: "",
      region: FAKE_REGION,
      endpoint: fake.endpoint,
      pathStyle: true,
      credentialsFile: "/nonexistent/credentials",
      signPayload: false,
      socketsMax: 2,
      idleMs: 5_000,
    });
    closing.push(() => store.close());
    expect(await store.get("v1/a", 0, new Uint8Array(8), LIMITS)).toMatchObject({ ok: false });
    expect(await store.list("", undefined, LIMITS)).toMatchObject({ ok: false });
  });

  test("a prefix that is no path and an endpoint that is no URL are refused at once", () => {
    for (const prefix of ["/a", "a//", "a//b", "a b", "ä"]) {
      expect(() => open({ prefix })).toThrow(CairnError);
    }
    expect(() => open({ endpoint: "no url" })).toThrow();
  });
});

describe("what an answer means", () => {
  test("status and code decide, the code first", () => {
    const rows = (
      [
        [404, "NoSuchKey"],
        [404, ""],
        [404, "NoSuchBucket"],
        [404, "XAdminUserNotFound"],
        [409, "ConditionalRequestConflict"],
        [416, "InvalidRange"],
        [400, "BadDigest"],
        [400, "RequestTimeout"],
        [400, "InvalidArgument"],
        [429, ""],
        [500, ""],
        [503, ""],
        [507, ""],
        [403, "XMinioAdminBucketQuotaExceeded"],
        [100, ""],
      ] as const
    ).map(([status, code]) => faultOfAnswer(status, code));
    expect(rows).toEqual([
      "missing",
      "missing",
      "refused",
      "refused",
      "unavailable",
      "short",
      "unavailable",
      "timeout",
      "refused",
      "throttled",
      "unavailable",
      "throttled",
      "full",
      "full",
      "protocol",
    ]);
    for (let status = 300; status < 600; status += 1) {
      expect(FAULT_NAMES).toContain(faultOfAnswer(status, ""));
    }
  });

  test("codes, ranges and dates are read strictly", () => {
    expect(errorCodeOf("<Error><Code>SlowDown</Code></Error>")).toBe("SlowDown");
    expect(errorCodeOf("<html>502</html>")).toBe("");
    expect(totalOfContentRange("bytes 5-9/100", 5, 5)).toBe(100);
    for (const header of ["bytes 5-8/100", "bytes 4-9/100", "bytes 5-9/*", "", undefined]) {
      expect(totalOfContentRange(header, 5, 5)).toBeUndefined();
    }
    const now = 1_700_000_000_000;
    const date = new Date(now + 1_800_000).toUTCString();
    expect(clockOffsetOf(403, date, now, now)).toBe(1_800_000);
    expect(clockOffsetOf(500, date, now, now)).toBeUndefined();
    expect(clockOffsetOf(403, date, now + 1_800_000, now)).toBeUndefined();
    expect(clockOffsetOf(403, "yesterday", now, now)).toBeUndefined();
  });
});

describe("the tier above it", () => {
  function node(options: Partial<RemoteTierOptions> = {}): TestTier {
    const one = tierOver(open(), options);
    closing.unshift(() => one.tier.close());
    return one;
  }

  async function store(on: TestTier, seed: number) {
    const chunk = chunkOf(seed, 0);
    return on.tier.upload(chunk, on.dram.items(seed, chunk, 0, 4, true), LIMITS);
  }

  async function fetchAll(on: TestTier, seed: number, deadlineMs = 20_000) {
    const chunk = chunkOf(seed, 0);
    const items = on.dram.items(seed, chunk, 0, 4, false);
    const result = await on.tier.fetch(chunk, 0, items, PRIORITY.DEMAND, { deadlineMs });
    const served = [...result.statuses].filter((status) => status === ITEM.OK).length;
    // Whatever is served is right.
    for (const [at, status] of result.statuses.entries()) {
      if (status !== ITEM.OK) continue;
      const one = { slots: items.slots.slice(at, at + 1), blocks: items.blocks.slice(at, at + 1) };
      expect(on.dram.holds(one, seed, chunk, at)).toBe(true);
    }
    return { result, served };
  }

  test("single faults of every kind are repaired by a retry", async () => {
    const a = node();
    const faults: FakeFault[] = [
      { kind: "status", status: 500, code: "InternalError" },
      { kind: "status", status: 503, code: "SlowDown" },
      { kind: "truncate", bytes: 10_000 },
      { kind: "reset" },
    ];
    for (const [seed, fault] of faults.entries()) {
      await store(a, seed);
      breakGets(fault, 1);
      expect((await fetchAll(a, seed)).served).toBe(4);
    }
    const { requests, retries } = a.tier.snapshot();
    // A reset on a kept connection is answered by a fresh one, without a retry.
    expect(requests).toMatchObject({ throttled: 1, truncated: 1, unavailable: 1 });
    expect(retries).toBe(3);
  });

  test("an upload whose answer was lost is found stored by its retry", async () => {
    const a = node();
    let broken = 0;
    fake.fault = ({ method }) => {
      if (method !== "PUT" || broken > 0) return undefined;
      broken += 1;
      return { kind: "storeAndReset" };
    };
    expect(await store(a, 1)).toMatchObject({ outcome: "present" });
    expect((await fetchAll(a, 1)).served).toBe(4);
  });

  test("flipped bits and foreign bodies are misses, counted, and never served", async () => {
    const a = node();
    await store(a, 1);
    await store(a, 2);
    const other = fake.objects.get([...fake.objects.keys()][1] ?? "")?.bytes ?? new Uint8Array(1);
    let [missed, found] = [0, 0];
    for (let round = 0; round < 20; round += 1) {
      const b = node();
      const bit = (round * 7_919 * 8 + round) % (45_000 * 8);
      breakGets({ kind: "flip", bit });
      const { served } = await fetchAll(b, 1);
      const { corruptObjects, corruptBlocks } = b.tier.snapshot();
      // A bit in the padding of a block hits nothing that is served.
      if (served < 4) found += corruptObjects + corruptBlocks;
      missed += served < 4 ? 1 : 0;
    }
    expect(missed).toBeGreaterThan(15);
    expect(found).toBe(missed);
    const c = node();
    breakGets({ kind: "wrongBody", bytes: other });
    expect((await fetchAll(c, 1)).served).toBe(0);
    expect(c.tier.snapshot().misplacedObjects).toBe(1);
    breakGets({ kind: "wrongBody", bytes: new Uint8Array(1) });
    expect((await fetchAll(node(), 1)).served).toBe(0);
  });

  test("a store that hangs costs each fetch its deadline, then nothing; and it comes back by itself", async () => {
    const a = node({
      guard: { attemptsMax: 1, breakerFaultsMax: 3, breakerOpenMs: 20 },
    });
    await store(a, 1);
    fake.fault = () => ({ kind: "hang" });
    for (let round = 0; round < 3; round += 1) {
      expect((await fetchAll(a, 1, 60)).result.fault).toBe("timeout");
    }
    expect(a.tier.health).toBe("fenced");
    expect(a.tier.remotePrefix(chunkOf(1, 0).space, chunkOf(1, 0).keys, 32, 0).blocks).toBe(0);
    expect(a.tier.snapshot()).toMatchObject({
      breakerOpened: 1,
      transfers: 0,
      stagingUsedBytes: 0,
    });
    fake.fault = () => undefined;
    await vi.waitUntil(() => a.tier.health === "ok", PATIENT);
    expect((await fetchAll(a, 1)).served).toBe(4);
    expect(a.lines.some((line) => line.includes("fenced → ok"))).toBe(true);
  });

  test("under lasting 503 the requests per call fall to one", async () => {
    const store503 = new GuardedStore(open(), {
      delayBaseMs: 1,
      delayMaxMs: 2,
      budgetTokens: 5,
      breakerFaultsMax: 1_000,
    });
    fake.fault = () => ({ kind: "status", status: 503, code: "SlowDown" });
    for (let call = 0; call < 30; call += 1) await store503.head("v1/a", LIMITS);
    expect(fake.requests.length).toBe(35);
    expect(store503.counters()).toMatchObject({ retries: 5, faults: { throttled: 35 } });
  });
});
