import { spawn } from "node:child_process";
import { chmodSync, existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { type IncomingMessage, request, type RequestOptions } from "node:http";
import { request as secureRequest } from "node:https";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import type { Config } from "../../src/config/schema.ts";
import { type EdgeHandle, type EdgeOptions, readSecrets, startEdge } from "../../src/edge/edge.ts";
import { CairnError } from "../../src/errors.ts";
import { Feed, METRIC } from "../../src/observe/feed.ts";
import { FakeDaemon, INFO, SNAPSHOT } from "./fixture.ts";
import { makeCertificates } from "./tls.ts";
import { PATIENT } from "../harness/eventually.ts";

let directory = "";
let handles: EdgeHandle[] = [];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "cairn-edge-"));
  handles = [];
});
afterEach(async () => {
  await Promise.all(handles.map((handle) => handle.stop()));
  rmSync(directory, { recursive: true });
});

async function start(config: Config["edge"], more: Partial<EdgeOptions> = {}) {
  const feed = new Feed();
  const daemon = new FakeDaemon();
  const handle = await startEdge({
    config,
    feed: feed.buffer,
    ledger: null,
    info: INFO,
    handler: daemon,
    ...more,
  });
  handles.push(handle);
  return { handle, feed, daemon };
}

function secretFile(name: string, text: string): string {
  const path = join(directory, name);
  writeFileSync(path, text, { mode: 0o600 });
  return path;
}

async function fetchFrom(options: RequestOptions, secure = false) {
  const message = await new Promise<IncomingMessage>((resolve, reject) => {
    const sent = (secure ? secureRequest : request)({ agent: false, ...options }, resolve);
    sent.on("error", reject).end();
  });
  let text = "";
  for await (const part of message.setEncoding("utf8") as AsyncIterable<string>) text += part;
  return { status: message.statusCode, text };
}

function portOf(handle: EdgeHandle): number {
  return Number(handle.address.split(":").at(-1));
}

describe("the edge's worker thread", () => {
  test("it answers over TCP: figures from shared memory, questions from the main thread", async () => {
    const { handle, feed, daemon } = await start({ listen: "127.0.0.1:0" });
    expect(handle.address).toMatch(/^127\.0\.0\.1:\d+$/);
    const at = { host: "127.0.0.1", port: portOf(handle) };
    feed.add(METRIC.loads, 41);
    expect((await fetchFrom({ ...at, path: "/metrics" })).text).toContain(
      "\ncairn_loads_total 41\n",
    );
    expect(JSON.parse((await fetchFrom({ ...at, path: "/v1/tiers" })).text)).toEqual({
      node: "node-a",
      tiers: SNAPSHOT.tiers,
      devices: SNAPSHOT.devices,
      remote: SNAPSHOT.remote,
      links: SNAPSHOT.links,
    });
    handle.devices(["/mnt/a"]);
    await vi.waitUntil(
      async () =>
        (await fetchFrom({ ...at, path: "/metrics" })).text.includes('directory="/mnt/a"'),
      PATIENT,
    );
    expect((await fetchFrom({ ...at, path: "/healthz" })).status).toBe(200);
    const put = await new Promise<number | undefined>((resolve, reject) => {
      const headers = { "content-type": "application/json" };
      const sent = request({ ...at, path: "/v1/config", method: "PUT", headers }, (answer) => {
        answer.resume();
        resolve(answer.statusCode);
      });
      sent.on("error", reject).end('{"log":{"level":"error"}}');
    });
    expect(put).toBe(200);
    expect(daemon.running.log.level).toBe("error");
  });

  test("what the main thread throws reaches the client as its row", async () => {
    const handler = new FakeDaemon();
    handler.snapshot = () => {
      throw new CairnError("tierUnavailable", "the tier is fenced");
    };
    const { handle } = await start({ listen: "127.0.0.1:0" }, { handler });
    const answer = await fetchFrom({ host: "127.0.0.1", port: portOf(handle), path: "/v1/tiers" });
    expect(answer.status).toBe(503);
    expect(JSON.parse(answer.text)).toMatchObject({
      name: "tierUnavailable",
      message: "the tier is fenced",
    });
  });

  test("the socket that a killed daemon left behind is replaced", async () => {
    const path = join(directory, "left.sock");
    const script = `require("net").createServer().listen(${JSON.stringify(path)}, () => console.log("up"))`;
    const child = spawn(process.execPath, ["-e", script], { stdio: ["ignore", "pipe", "ignore"] });
    await new Promise((resolve) => child.stdout.once("data", resolve));
    child.kill("SIGKILL");
    await new Promise((resolve) => child.once("close", resolve));
    expect(existsSync(path)).toBe(true);
    await start({ listen: `unix:${path}` });
    expect((await fetchFrom({ socketPath: path, path: "/healthz" })).status).toBe(200);
  });

  test("a Unix socket is made for its owner and group, and a living one or a file is refused", async () => {
    const path = join(directory, "run", "edge.sock");
    const listen = `unix:${path}`;
    const first = await start({ listen });
    expect(statSync(path).mode & 0o777).toBe(0o660);
    const answer = await fetchFrom({ socketPath: path, path: "/healthz", headers: { host: "x" } });
    expect(answer.status).toBe(200);
    await expect(start({ listen })).rejects.toMatchObject({ errorName: "directoryLocked" });
    await first.handle.stop();
    expect(existsSync(path)).toBe(false);
    writeFileSync(path, "not a socket");
    await expect(start({ listen })).rejects.toMatchObject({ errorName: "directoryUnsafe" });
  });

  test("a port in use is a configuration error, not a crash", async () => {
    const { handle } = await start({ listen: "127.0.0.1:0" });
    const again = start({ listen: handle.address });
    await expect(again).rejects.toMatchObject({ errorName: "configInvalid" });
  });

  test("the token comes from a file of ours; short, open or missing ones are refused", async () => {
    const listen = "127.0.0.1:0";
    const tokenFile = secretFile("token", "0123456789abcdef0123\nsecond line\n");
    const { handle } = await start({ listen, tokenFile });
    const at = { host: "127.0.0.1", port: portOf(handle), path: "/v1/stats" };
    expect((await fetchFrom(at)).status).toBe(401);
    const headers = { authorization: "Bearer 0123456789abcdef0123" };
    expect((await fetchFrom({ ...at, headers })).status).toBe(200);
    const short = secretFile("short", "abc\n");
    expect(() => readSecrets({ listen, tokenFile: short })).toThrow(/16 to/);
    expect(() => readSecrets({ listen, tokenFile: join(directory, "none") })).toThrow(/tokenFile/);
    chmodSync(tokenFile, 0o644);
    expect(() => readSecrets({ listen, tokenFile })).toThrow(/open to others/);
  });

  test("with mutual TLS only a client whose certificate we signed is answered", async () => {
    const pem = makeCertificates(directory);
    const tls = { certFile: pem.serverCert, keyFile: pem.serverKey, clientCaFile: pem.ca };
    const { handle } = await start({ listen: "127.0.0.1:0", tls });
    const at = {
      host: "localhost",
      port: portOf(handle),
      path: "/v1/stats",
      servername: "localhost",
    };
    const trusted = { ...at, ca: pem.read(pem.ca) };
    const known = { cert: pem.read(pem.clientCert), key: pem.read(pem.clientKey) };
    expect((await fetchFrom({ ...trusted, ...known }, true)).status).toBe(200);
    // Whoever comes from another host names this one as its network does.
    const headers = { host: `node-7.example:${portOf(handle)}` };
    expect((await fetchFrom({ ...trusted, ...known, headers }, true)).status).toBe(200);
    await expect(fetchFrom(trusted, true)).rejects.toThrow();
    const stranger = { cert: pem.read(pem.strangerCert), key: pem.read(pem.strangerKey) };
    await expect(fetchFrom({ ...trusted, ...stranger }, true)).rejects.toThrow();
  });

  test("stopping is idempotent and ends open streams", async () => {
    const { handle } = await start({ listen: "127.0.0.1:0" });
    const at = { host: "127.0.0.1", port: portOf(handle), path: "/v1/events" };
    const stream = fetchFrom(at).then(
      () => "ended",
      () => "cut",
    );
    await fetchFrom({ ...at, path: "/healthz" });
    await Promise.all([handle.stop(), handle.stop()]);
    expect(["ended", "cut"]).toContain(await stream);
    await expect(fetchFrom(at)).rejects.toThrow();
  });
});

describe("server-sent events", () => {
  test("a client gets the history at once, then digests and notices", async () => {
    const { handle, feed } = await start({ listen: "127.0.0.1:0" });
    feed.set(METRIC.instances, 2);
    let text = "";
    const message = await new Promise<IncomingMessage>((resolve, reject) => {
      request({ host: "127.0.0.1", port: portOf(handle), path: "/v1/events" }, resolve)
        .on("error", reject)
        .end();
    });
    expect(message.headers["content-type"]).toContain("text/event-stream");
    message.setEncoding("utf8").on("data", (part: string) => {
      text += part;
    });
    await vi.waitUntil(() => text.includes("event: history\n"), PATIENT);
    handle.notice({ level: "warn", text: "a corrupt block was dropped" });
    await vi.waitUntil(() => text.includes("event: notice\n"), PATIENT);
    await vi.waitUntil(() => text.includes("event: digest\n"), PATIENT);
    expect(text).toContain("a corrupt block was dropped");
    expect(text).toContain('"instances":2');
    message.destroy();
  });

  test("a client that reads nothing is cut off and counted, and the edge goes on", async () => {
    const { handle } = await start({ listen: "127.0.0.1:0" });
    const port = portOf(handle);
    const slow = connect(port, "127.0.0.1");
    slow.pause();
    const closed = new Promise<void>((resolve) => {
      slow.once("close", () => resolve());
      slow.once("error", () => resolve());
    });
    slow.write("GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    const cut = /cairn_edge_event_clients_cut_total 1\n/;
    // The gate lets 20 notices a second through; each is 64 KiB, far more than socket buffers hold.
    const text = "x".repeat(65_536);
    const pump = setInterval(() => handle.notice({ level: "info", text }), 20);
    const metrics = async () =>
      (await fetchFrom({ host: "127.0.0.1", port, path: "/metrics" })).text;
    await vi.waitUntil(async () => cut.test(await metrics()), { ...PATIENT, interval: 200 });
    clearInterval(pump);
    expect(await metrics()).toContain("cairn_edge_event_clients 0\n");
    slow.resume();
    await closed;
    expect((await fetchFrom({ host: "127.0.0.1", port, path: "/healthz" })).status).toBe(200);
  });
});
