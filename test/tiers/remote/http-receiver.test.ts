/** Reads of payload over connections of their own, from servers that answer byte by byte, wrongly, late or not at all. */
import { execFileSync } from "node:child_process";
import { constants } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createServer as createTlsServer } from "node:tls";
import fc from "fast-check";
import { afterEach, expect, test, vi } from "vitest";
import { LIMITS } from "../../../src/limits.ts";
import { HttpReceiver, type ReceiverOptions } from "../../../tiers/remote/http-receiver.ts";
import { FAULT_NAMES, failure } from "../../../tiers/remote/object-store.ts";
import type { Accept } from "../../../tiers/remote/receiving.ts";
import { PATIENT } from "../../harness/eventually.ts";
import { bytesOf } from "./contract.ts";

const closing: (() => void)[] = [];

afterEach(() => {
  for (const close of closing.splice(0)) close();
});

/** Answers request number `count` of connection number `connection`. */
type Script = (socket: Socket, path: string, count: number, connection: number) => void;

interface Scripted {
  readonly port: number;
  /** Connections that were opened, and that are open. */
  opened: number;
  open: number;
}

async function serve(script: Script, make = createServer as typeof createTlsServer) {
  const sockets = new Set<Socket>();
  const state = { opened: 0, open: 0, port: 0 };
  const server = make({ ...(await tlsOptions()) }, (socket: Socket) => {
    const connection = state.opened;
    let [count, text] = [0, ""];
    state.opened += 1;
    state.open += 1;
    sockets.add(socket);
    socket.on("error", () => undefined);
    socket.on("close", () => {
      state.open -= 1;
    });
    socket.on("data", (bytes) => {
      text += bytes.toString("latin1");
      for (let end = text.indexOf("\r\n\r\n"); end !== -1; end = text.indexOf("\r\n\r\n")) {
        const path = text.split(" ")[1] ?? "";
        text = text.slice(end + 4);
        script(socket, path, count, connection);
        count += 1;
      }
    });
  });
  closing.push(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  state.port = await listen(server);
  return state as Scripted;
}

function listen(server: Server): Promise<number> {
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => resolve((server.address() as AddressInfo).port));
  });
}

let identity: { cert: string; key: string } | undefined;

async function tlsOptions() {
  if (identity !== undefined) return identity;
  const folder = mkdtempSync(join(tmpdir(), "cairn-tls-"));
  const files = ["-keyout", join(folder, "key"), "-out", join(folder, "cert")];
  const subject = ["-subj", "/CN=fake", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"];
  const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  execFileSync("openssl", ["req", "-x509", ...curve, ...files, ...subject], { stdio: "ignore" });
  const [cert = "", key = ""] = ["cert", "key"].map((name) =>
    readFileSync(join(folder, name), "utf8"),
  );
  rmSync(folder, { recursive: true });
  identity = { cert, key };
  return identity;
}

function receiver(port: number, options: Partial<ReceiverOptions> = {}): HttpReceiver {
  const one = new HttpReceiver({
    secure: false,
    hostname: "127.0.0.1",
    port,
    connectionsMax: 2,
    idleMs: 20_000,
    ...options,
  });
  closing.push(() => one.close());
  return one;
}

/** The middle of a larger buffer, and whether what surrounds it is untouched. */
function place(length: number) {
  const all = new Uint8Array(length + 128).fill(0xee);
  const into = all.subarray(64, 64 + length);
  const edges = (): boolean =>
    [...all.subarray(0, 64), ...all.subarray(64 + length)].every((byte) => byte === 0xee);
  return { into, edges };
}

const anything: Accept = () => undefined;
const LONG = { deadlineMs: 20_000 };

function get(from: HttpReceiver, into: Uint8Array, limits = LONG, accept = anything, path = "/a") {
  return from.receive({ path, headers: { host: "h" }, into, accept }, limits);
}

function answer(body: Uint8Array, extra = ""): Buffer {
  const head = `HTTP/1.1 206 Partial\r\n${extra}Content-Length: ${body.length}\r\n\r\n`;
  return Buffer.concat([Buffer.from(head), body]);
}

function equal(one: Uint8Array, other: Uint8Array): boolean {
  return Buffer.compare(one, other) === 0;
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, milliseconds);
  });
}

async function trickle(socket: Socket, bytes: Buffer, step: (at: number) => number): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    const end = at + step(at);
    socket.write(bytes.subarray(at, end));
    at = end;
    await new Promise(setImmediate);
  }
}

test("an answer comes whole however it is cut, into its place and nowhere else", async () => {
  const sent = [bytesOf(200, 1), bytesOf(3 * LIMITS.socketReadBytes + 17, 2)] as const;
  const steps = [() => 1, () => 7, () => 100_000, () => 10_000_000, (at: number) => 1 + (at % 997)];
  const server = await serve((socket, path) => {
    const [, body = "", step = ""] = path.split("/");
    socket.setNoDelay(true);
    const whole = answer(sent[Number(body)] as Uint8Array);
    void trickle(socket, whole, steps[Number(step)] as (at: number) => number);
  });
  const from = receiver(server.port);
  for (const [at, body] of sent.entries()) {
    for (const step of steps.keys()) {
      // A megabyte by single bytes says no more than 200 of them.
      if (body.length > 1_000 && step < 2) continue;
      const { into, edges } = place(body.length);
      const outcome = await get(from, into, LONG, anything, `/${at}/${step}`);
      expect(outcome).toMatchObject({ ok: true, value: { status: 206, text: "" } });
      expect([equal(into, body), edges()]).toEqual([true, true]);
    }
  }
  expect(server.opened).toBe(1);
});

test("over TLS, too, and only where the certificate is trusted", async () => {
  const body = bytesOf(3_000_000, 3);
  const server = await serve((socket) => socket.write(answer(body)), createTlsServer);
  const { cert } = await tlsOptions();
  const trusting = receiver(server.port, { secure: true, certificateAuthorities: cert });
  const { into, edges } = place(body.length);
  for (let round = 0; round < 3; round += 1) {
    into.fill(0);
    expect(await get(trusting, into)).toMatchObject({ ok: true });
    expect([equal(into, body), edges()]).toEqual([true, true]);
  }
  expect(server.opened).toBe(1);
  expect(await get(receiver(server.port, { secure: true }), into)).toMatchObject({
    fault: "unavailable",
  });
});

test("interim answers are passed over", async () => {
  const server = await serve((socket) => {
    socket.write("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n");
    socket.write(answer(bytesOf(9, 1)));
  });
  const { into } = place(9);
  expect(await get(receiver(server.port), into)).toMatchObject({ ok: true });
  expect(equal(into, bytesOf(9, 1))).toBe(true);
});

test.each([
  ["that says so", "Connection: close\r\n", "HTTP/1.1"],
  ["of HTTP/1.0", "", "HTTP/1.0"],
])("a connection %s carries one answer", async (_name, extra, version) => {
  const server = await serve((socket) => {
    const text = answer(bytesOf(9, 1), extra).toString("latin1").replace("HTTP/1.1", version);
    socket.write(Buffer.from(text, "latin1"));
  });
  const from = receiver(server.port);
  for (let round = 0; round < 3; round += 1) {
    expect(await get(from, place(9).into)).toMatchObject({ ok: true });
  }
  expect(server.opened).toBe(3);
  await vi.waitUntil(() => server.open === 0, PATIENT);
});

test.each([
  ["payload", answer(bytesOf(500, 1)), true],
  ["payload in a long read", answer(bytesOf(LIMITS.socketReadBytes * 2 + 1, 1)), true],
  ["a refusal", Buffer.from("HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno"), false],
])("what comes behind %s is not taken for the next answer", async (_name, first, ok) => {
  const length = ok ? first.length - first.indexOf("\r\n\r\n") - 4 : 500;
  const server = await serve((socket, _path, count, connection) => {
    const wrong = answer(new Uint8Array(length).fill(7));
    socket.write(
      count + connection === 0 ? Buffer.concat([first, wrong]) : answer(bytesOf(length, 2)),
    );
  });
  const from = receiver(server.port, { connectionsMax: 1 });
  const { into } = place(length);
  const [one, two] = await Promise.all([get(from, place(length).into), get(from, into)]);
  expect(one).toMatchObject({ ok: true });
  expect(two).toMatchObject({ ok: true, value: { status: 206 } });
  expect(equal(into, bytesOf(length, 2))).toBe(true);
  expect(server.opened).toBe(2);
});

test.each(["reset", "end", "unasked bytes"])(
  "connections that the server closes by %s are never handed out, at no turn of the loop",
  async (how) => {
    const sockets = new Set<Socket>();
    const server = await serve((socket, path) => {
      sockets.add(socket);
      if (path !== "/held") socket.write(answer(bytesOf(9, 1)));
    });
    const from = receiver(server.port, { connectionsMax: 8 });
    const warm = Array.from({ length: 8 }, () => get(from, place(9).into));
    for (const outcome of await Promise.all(warm)) expect(outcome.ok).toBe(true);
    const held = [1, 2].map(() => get(from, place(9).into, { deadlineMs: 400 }, anything, "/held"));
    await sleep(20);
    for (const socket of sockets) {
      if (how === "reset") socket.resetAndDestroy();
      else if (how === "end") socket.end();
      else socket.end("HTTP/1.1 408 x\r\nContent-Length: 0\r\n\r\n");
    }
    const reads: ReturnType<typeof get>[] = [];
    for (let turn = 0; turn < 40; turn += 1) {
      reads.push(get(from, place(9).into));
      await new Promise(setImmediate);
    }
    const faults = (await Promise.all(reads)).map((one) => (one.ok ? "none" : one.fault));
    expect(faults).toEqual(faults.map(() => "none"));
    // Asked again on fresh connections; the unasked answer is theirs, as nothing tells it apart.
    const said = how === "unasked bytes" ? { value: { status: 408 } } : { fault: "timeout" };
    for (const outcome of await Promise.all(held)) expect(outcome).toMatchObject(said);
  },
);

test("a kept connection carries any number of answers, and waits idle for any time", async () => {
  const server = await serve((socket) => {
    socket.write(Buffer.concat([Buffer.from("HTTP/1.1 103 x\r\n\r\n"), answer(bytesOf(9, 1))]));
  });
  const from = receiver(server.port, { idleMs: 100 });
  for (let round = 0; round < LIMITS.answerReadsMax + 10; round += 1) {
    expect(await get(from, place(9).into)).toMatchObject({ ok: true });
  }
  await sleep(250);
  expect(await get(from, place(9).into)).toMatchObject({ ok: true });
  expect(server.opened).toBe(1);
});

test("a call that has ended leaves no listener behind", async () => {
  const server = await serve((socket, path) => {
    if (path === "/a") socket.write(answer(bytesOf(9, 1)));
  });
  const from = receiver(server.port);
  const abort = new AbortController();
  const limits = { deadlineMs: 30, signal: abort.signal } as typeof LONG;
  const added = vi.spyOn(abort.signal, "addEventListener");
  const removed = vi.spyOn(abort.signal, "removeEventListener");
  await get(from, place(9).into, limits);
  await get(from, place(9).into, limits, anything, "/silent");
  expect([added.mock.calls.length, removed.mock.calls.length]).toEqual([2, 2]);
});

test("nothing is written where the call ends while its head is looked at", async () => {
  const server = await serve((socket) => socket.write(answer(bytesOf(9, 1))));
  const { into } = place(9);
  const abort = new AbortController();
  const limits = { deadlineMs: 20_000, signal: abort.signal } as typeof LONG;
  const outcome = await get(receiver(server.port), into, limits, () => {
    abort.abort();
    return undefined;
  });
  expect(outcome).toMatchObject({ fault: "cancelled" });
  expect(into.every((byte) => byte === 0xee)).toBe(true);
});

test("a refusal that fills its buffer and breaks there ends the call, over TLS, too", async () => {
  const text = `HTTP/1.1 404 x\r\nTransfer-Encoding: chunked\r\n\r\nfff8\r\n${"x".repeat(100_000)}`;
  for (const secure of [false, true]) {
    const make = secure ? createTlsServer : (createServer as typeof createTlsServer);
    const server = await serve((socket) => socket.write(text), make);
    const { cert } = await tlsOptions();
    const from = receiver(server.port, { secure, certificateAuthorities: cert });
    expect(await get(from, place(9).into)).toMatchObject({ fault: "protocol" });
    await vi.waitUntil(() => server.open === 0, PATIENT);
  }
});

test("a broken TLS record ends the call at once", async () => {
  const body = bytesOf(2_000_000, 1);
  const server = await serve((socket) => socket.write(answer(body)), createTlsServer);
  const { cert } = await tlsOptions();
  // Passes bytes on, one of them changed in the middle of the body.
  const proxy = createServer((client) => {
    const store = connect(server.port, "127.0.0.1");
    let seen = 0;
    closing.push(
      () => client.destroy(),
      () => store.destroy(),
    );
    client.on("error", () => store.destroy()).on("data", (bytes) => store.write(bytes));
    store.on("error", () => client.destroy());
    store.on("data", (bytes) => {
      const at = 1_000_000 - seen;
      if (at >= 0 && at < bytes.length) bytes[at] = (bytes[at] ?? 0) ^ 1;
      seen += bytes.length;
      client.write(bytes);
    });
  });
  closing.push(() => proxy.close());
  const options = { secure: true, certificateAuthorities: cert, idleMs: 600_000 };
  const outcome = await get(receiver(await listen(proxy), options), place(body.length).into);
  expect(outcome).toMatchObject({ fault: "truncated" });
});

test("a server that breaks off resumed TLS sessions is asked without one", async () => {
  const identity = await tlsOptions();
  const known = new Set<string>();
  const server = createTlsServer(
    { ...identity, maxVersion: "TLSv1.2", secureOptions: constants.SSL_OP_NO_TICKET },
    (socket) => {
      socket.on("error", () => undefined);
      socket.on("data", () => socket.write(answer(bytesOf(9, 1), "Connection: close\r\n")));
    },
  );
  server.on("newSession", (id: Buffer, _data: Buffer, done: () => void) => {
    known.add(id.toString("hex"));
    done();
  });
  server.on("resumeSession", (id: Buffer, done: (error: Error | null, data: null) => void) => {
    done(known.has(id.toString("hex")) ? new Error("no") : null, null);
  });
  server.on("tlsClientError", () => undefined);
  closing.push(() => server.close());
  const options = { secure: true, certificateAuthorities: identity.cert };
  const from = receiver(await listen(server), options);
  let good = 0;
  for (let round = 0; round < 6; round += 1) good += (await get(from, place(9).into)).ok ? 1 : 0;
  expect(good).toBeGreaterThanOrEqual(3);
});

test("bytes that nobody asked for close an idle connection", async () => {
  const server = await serve((socket) => {
    socket.write(answer(bytesOf(9, 1)));
    setTimeout(() => socket.write("HTTP/1.1 408 Timeout\r\n\r\n"), 20);
  });
  const from = receiver(server.port);
  expect(await get(from, place(9).into)).toMatchObject({ ok: true });
  await vi.waitUntil(() => server.open === 0, PATIENT);
  expect(await get(from, place(9).into)).toMatchObject({ ok: true });
  expect(server.opened).toBe(2);
});

test("a connection that the server had closed costs nobody anything", async () => {
  // Each connection answers once and closes when it is asked again.
  const server = await serve((socket, _path, count) => {
    if (count === 0) socket.write(answer(bytesOf(9, 1)));
    else socket.resetAndDestroy();
  });
  const from = receiver(server.port, { connectionsMax: 3 });
  for (let round = 0; round < 4; round += 1) {
    const reads = [1, 2, 3].map(() => get(from, place(9).into));
    for (const outcome of await Promise.all(reads)) expect(outcome).toMatchObject({ ok: true });
  }
  await vi.waitUntil(() => server.open <= 3, PATIENT);
});

test("a fresh connection that closes unanswered is a fault", async () => {
  const server = await serve((socket) => socket.destroy());
  expect(await get(receiver(server.port), place(9).into)).toMatchObject({ fault: "unavailable" });
  expect(server.opened).toBe(1);
});

test("no more connections than may be; who waits comes in order, and may leave", async () => {
  const order: string[] = [];
  const held: (() => void)[] = [];
  const server = await serve((socket, path) => {
    order.push(path);
    held.push(() => socket.write(answer(bytesOf(9, 1))));
  });
  const from = receiver(server.port);
  const abort = new AbortController();
  const read = (path: string, limits: object = {}) =>
    get(from, place(9).into, { ...LONG, ...limits }, anything, path);
  const reads = [read("/1"), read("/2"), read("/3"), read("/4", { signal: abort.signal })];
  const late = read("/5", { deadlineMs: 20 });
  reads.push(read("/6"));
  await vi.waitUntil(() => held.length === 2, PATIENT);
  abort.abort();
  expect(await reads[3]).toMatchObject({ fault: "cancelled" });
  expect(await late).toMatchObject({ fault: "timeout" });
  expect(server.opened).toBe(2);
  while (order.length < 4 || held.length > 0) {
    held.shift()?.();
    await sleep(1);
  }
  const faults = (await Promise.all(reads)).map((one) => (one.ok ? "none" : one.fault));
  expect(faults).toEqual(["none", "none", "none", "cancelled", "none"]);
  expect(order).toEqual(["/1", "/2", "/3", "/6"]);
  expect(server.opened).toBe(2);
});

test("more than may wait are busy", async () => {
  const server = await serve(() => undefined);
  const from = receiver(server.port, { connectionsMax: 1 });
  const reads = Array.from({ length: LIMITS.remoteWaitingMax + 1 }, () => get(from, place(9).into));
  expect(await get(from, place(9).into)).toMatchObject({ fault: "busy" });
  from.close();
  for (const outcome of await Promise.all(reads)) expect(outcome.ok).toBe(false);
  expect(await get(from, place(9).into)).toMatchObject({ fault: "cancelled" });
});

test.each([
  ["by its length", "HTTP/1.1 404 No\r\nContent-Length: 4\r\n\r\ngone", "gone", 1],
  [
    "in chunks",
    "HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngone\r\n0\r\n\r\n",
    "gone",
    1,
  ],
  ["empty", "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "", 1],
  ["by the connection's end", "HTTP/1.1 503 No\r\n\r\nslow", "slow", 2],
])(
  "a refusal that ends %s is read, and its connection kept where it can be",
  async (_name, text, said, opened) => {
    const ends = text.includes("503");
    const server = await serve((socket) => (ends ? socket.end(text) : socket.write(text)));
    const from = receiver(server.port);
    for (let round = 0; round < 2; round += 1) {
      const outcome = await get(from, place(9).into);
      expect(outcome).toMatchObject({ ok: true, value: { text: said } });
    }
    expect(server.opened).toBe(opened);
  },
);

test("a long refusal is cut, and its connection closed", async () => {
  const body = "x".repeat(300_000);
  const server = await serve((socket) => {
    socket.write(`HTTP/1.1 500 No\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
  });
  const outcome = await get(receiver(server.port), place(9).into);
  expect(outcome).toMatchObject({ ok: true, value: { status: 500 } });
  expect(outcome.ok && outcome.value.text.length).toBeLessThanOrEqual(LIMITS.answerBufferBytes);
  await vi.waitUntil(() => server.open === 0, PATIENT);
});

test.each([
  ["shorter than asked for", "HTTP/1.1 206 x\r\nContent-Length: 8\r\n\r\n12345678"],
  ["longer than asked for", "HTTP/1.1 206 x\r\nContent-Length: 10\r\n\r\n1234567890"],
  ["in chunks", "HTTP/1.1 206 x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n123456789\r\n0\r\n\r\n"],
  ["of no length", "HTTP/1.1 206 x\r\n\r\n123456789"],
  ["framed twice", "HTTP/1.1 206 x\r\nContent-Length: 9\r\nContent-Length: 9\r\n\r\n123456789"],
  ["of another protocol", "SSH-2.0-OpenSSH_9\r\n\r\n"],
  ["all head", `HTTP/1.1 206 x\r\n${"a: b\r\n".repeat(10_000)}`],
  ["after interim ones without end", "HTTP/1.1 103 x\r\n\r\n".repeat(3_000)],
  ["a refusal in bad chunks", "HTTP/1.1 404 x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
])("an answer %s breaks the protocol, and nothing of it is written", async (_name, text) => {
  const server = await serve((socket) => socket.write(text));
  const { into, edges } = place(9);
  expect(await get(receiver(server.port), into)).toMatchObject({ fault: "protocol" });
  expect([into.every((byte) => byte === 0xee), edges()]).toEqual([true, true]);
  await vi.waitUntil(() => server.open === 0, PATIENT);
});

test("a refusal in single bytes without end breaks the protocol", async () => {
  const text = `HTTP/1.1 404 x\r\nTransfer-Encoding: chunked\r\n\r\n${"1\r\na\r\n".repeat(1_000)}`;
  const server = await serve((socket) => {
    socket.setNoDelay(true);
    void trickle(socket, Buffer.from(text), () => 1);
  });
  const outcome = await get(receiver(server.port), place(9).into);
  expect(outcome).toMatchObject({ fault: "protocol", message: expect.stringContaining("pieces") });
  await vi.waitUntil(() => server.open === 0, PATIENT);
});

test("what the caller does not accept is not received", async () => {
  const server = await serve((socket) => socket.write(answer(bytesOf(9, 1), "x-a: b\r\n")));
  const { into } = place(9);
  const seen: unknown[] = [];
  const outcome = await get(receiver(server.port), into, LONG, (status, headers) => {
    seen.push(status, headers["x-a"]);
    return failure("short", "no");
  });
  expect(outcome).toMatchObject({ fault: "short", message: "no" });
  expect(seen).toEqual([206, "b"]);
  expect(into.every((byte) => byte === 0xee)).toBe(true);
  await vi.waitUntil(() => server.open === 0, PATIENT);
});

test("a body that ends early is truncated, wherever it ends", async () => {
  const whole = answer(bytesOf(400_000, 1));
  for (const at of [10, 40, 60, 70_000, 399_999]) {
    const server = await serve((socket) => socket.end(whole.subarray(0, at)));
    const outcome = await get(receiver(server.port), place(400_000).into);
    expect(outcome).toMatchObject({ fault: "truncated" });
  }
});

test.each(["deadline", "signal", "close"])(
  "nothing is written after the call has ended by %s, whatever the server goes on to send",
  async (ending) => {
    const whole = answer(bytesOf(8 * LIMITS.socketReadBytes, 1));
    let rest: () => void = () => undefined;
    const server = await serve((socket) => {
      socket.write(whole.subarray(0, whole.length / 2));
      rest = () => socket.write(whole.subarray(whole.length / 2));
    });
    const from = receiver(server.port);
    const { into } = place(8 * LIMITS.socketReadBytes);
    const abort = new AbortController();
    const deadlineMs = ending === "deadline" ? 300 : 20_000;
    const read = get(from, into, { deadlineMs, signal: abort.signal } as typeof LONG);
    await vi.waitUntil(() => into[into.length / 2 - 1_000] !== 0xee, PATIENT);
    if (ending === "signal") abort.abort();
    if (ending === "close") from.close();
    const fault = { deadline: "timeout", signal: "cancelled", close: "truncated" }[ending];
    expect(await read).toMatchObject({ ok: false, fault });
    const then = into.slice();
    expect(equal(then.subarray(-1_000), new Uint8Array(1_000).fill(0xee))).toBe(true);
    rest();
    await vi.waitUntil(() => server.open === 0, PATIENT);
    expect(equal(into, then)).toBe(true);
  },
);

test("a silent server ends the call, before it answers and in the middle of a body", async () => {
  const server = await serve((socket, path) => {
    if (path === "/half") socket.write(answer(bytesOf(9, 1)).subarray(0, -4));
  });
  const from = receiver(server.port, { idleMs: 60 });
  for (const path of ["/none", "/half"]) {
    const outcome = await get(from, place(9).into, LONG, anything, path);
    expect(outcome).toMatchObject({ fault: "timeout", message: "silent for 60 ms" });
  }
  await vi.waitUntil(() => server.open === 0, PATIENT);
});

test("a header that would break the request is refused, and nothing is sent", async () => {
  const server = await serve(() => undefined);
  const call = { path: "/a", headers: { a: "b\r\nc: d" }, into: place(9).into, accept: anything };
  expect(await receiver(server.port).receive(call, LONG)).toMatchObject({ fault: "refused" });
  expect(server.opened).toBe(0);
});

test("hostile answers end in a known way, write into their place alone, and never for the next one", async () => {
  const good = bytesOf(300, 9);
  const bases = [
    answer(good),
    Buffer.from("HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngone\r\n0\r\n\r\n"),
    Buffer.from("HTTP/1.1 100 x\r\n\r\nHTTP/1.1 503 x\r\nConnection: close\r\n\r\nslow"),
  ];
  let bad = Buffer.alloc(0);
  const server = await serve((socket, path) => {
    if (path === "/good") socket.write(answer(good));
    else socket.end(bad);
  });
  const from = receiver(server.port, { connectionsMax: 1 });
  const change = fc.record({ at: fc.nat(400), value: fc.nat(255) });
  const cases = fc.record({
    base: fc.nat(bases.length - 1),
    changes: fc.array(change, { maxLength: 6 }),
    cut: fc.option(fc.nat(400), { freq: 3 }),
    twice: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(cases, async ({ base, changes, cut, twice }) => {
      bad = Buffer.from(bases[base] as Buffer);
      for (const { at, value } of changes) if (at < bad.length) bad[at] = value;
      if (twice) bad = Buffer.concat([bad, bad]);
      if (cut !== null) bad = bad.subarray(0, cut);
      const { into, edges } = place(300);
      const outcome = await get(from, into, LONG, anything, "/bad");
      if (!outcome.ok) expect(FAULT_NAMES).toContain(outcome.fault);
      expect(edges()).toBe(true);
      const then = into.slice();
      const next = place(300);
      const after = await get(from, next.into, LONG, anything, "/good");
      expect(after).toMatchObject({ ok: true, value: { status: 206 } });
      expect([equal(next.into, good), equal(into, then)]).toEqual([true, true]);
    }),
    { numRuns: 300, seed: 20_261_201 },
  );
});
