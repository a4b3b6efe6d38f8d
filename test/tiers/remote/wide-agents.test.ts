/** Sockets read in long steps: everything comes, in order, whoever listens and however slowly. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { type Agent, createServer, request, type ServerResponse } from "node:http";
import { createServer as createTlsServer, request as requestTls } from "node:https";
import {
  type AddressInfo,
  createServer as createNetServer,
  type Server,
  type Socket,
} from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";
import { LIMITS } from "../../../src/limits.ts";
import { WideHttpAgent, WideHttpsAgent } from "../../../tiers/remote/wide-agents.ts";
import { bytesOf } from "./contract.ts";

const closing: (() => void)[] = [];

afterEach(() => {
  for (const close of closing.splice(0)) close();
});

function listen(server: Server): Promise<number> {
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => resolve((server.address() as AddressInfo).port));
  });
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, milliseconds);
  });
}

/** Answers with the body that the path's number names: so many bytes, written in pieces of uneven lengths. */
function serve(path: string, response: ServerResponse): void {
  const length = Number(path.slice(1));
  const body = bytesOf(length, length % 251);
  response.writeHead(200, { "content-length": String(length) });
  let step = 1;
  for (let at = 0; at < length; at += step) {
    step = 1 + ((step * 7) % 400_000);
    response.write(body.subarray(at, at + step));
  }
  response.end();
}

/** Body of a GET, collected without a copy; `slow`: by a reader that makes the sockets wait. */
function get(agent: Agent, port: number, length: number, secure: boolean, slow: boolean) {
  const open = secure ? requestTls : request;
  const options = { host: "127.0.0.1", port, path: `/${length}`, agent };
  return new Promise<Buffer>((resolve, reject) => {
    const sent = open(options, async (response) => {
      const parts: Buffer[] = [];
      for await (const part of response) {
        parts.push(part as Buffer);
        if (slow) await sleep(1);
      }
      resolve(Buffer.concat(parts));
    });
    sent.on("error", reject);
    sent.end();
  });
}

const LENGTHS = [0, 1, 1_000, 65_536, LIMITS.socketReadBytes, 3_000_000];

async function bodies(agent: Agent, port: number, secure: boolean): Promise<void> {
  for (const slow of [false, true]) {
    const asked = [...LENGTHS, ...LENGTHS].map((length) => get(agent, port, length, secure, slow));
    const wrong = (await Promise.all(asked)).filter(
      (body) => Buffer.compare(body, bytesOf(body.length, body.length % 251)) !== 0,
    );
    const lengths = (await Promise.all(asked)).map((body) => body.length);
    expect(lengths).toEqual([...LENGTHS, ...LENGTHS]);
    expect(wrong).toEqual([]);
  }
}

test("bodies of every length come whole over few kept connections, to a fast and to a slow reader", async () => {
  const server = createServer((asked, response) => serve(asked.url ?? "", response));
  let connections = 0;
  server.on("connection", () => {
    connections += 1;
  });
  const agent = new WideHttpAgent({ keepAlive: true, maxSockets: 3 });
  closing.push(
    () => agent.destroy(),
    () => server.close(),
  );
  await bodies(agent, await listen(server), false);
  expect(connections).toBe(3);
});

test("over TLS, too", async () => {
  const folder = mkdtempSync(join(tmpdir(), "cairn-tls-"));
  const files = ["-keyout", join(folder, "key"), "-out", join(folder, "cert")];
  const subject = ["-subj", "/CN=wide", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"];
  const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  execFileSync("openssl", ["req", "-x509", ...curve, ...files, ...subject], { stdio: "ignore" });
  const [cert, key] = ["cert", "key"].map((name) => readFileSync(join(folder, name), "utf8"));
  rmSync(folder, { recursive: true });
  const identity = { cert: cert ?? "", key: key ?? "" };
  const server = createTlsServer(identity, (asked, response) => serve(asked.url ?? "", response));
  const agent = new WideHttpsAgent({ keepAlive: true, maxSockets: 3, ca: cert });
  closing.push(
    () => agent.destroy(),
    () => server.close(),
  );
  await bodies(agent, await listen(server), true);
});

/** A connection of the agent's whose other end is ours. */
async function connection(): Promise<{ readonly ours: Socket; readonly theirs: Socket }> {
  let theirs: (socket: Socket) => void = () => undefined;
  const accepted = new Promise<Socket>((resolve) => {
    theirs = resolve;
  });
  const server = createNetServer((socket) => theirs(socket));
  const port = await listen(server);
  const agent = new WideHttpAgent();
  const stream = agent.createConnection({ host: "127.0.0.1", port }, () => undefined) as Socket;
  const other = await accepted;
  closing.push(
    () => stream.destroy(),
    () => other.destroy(),
    () => server.close(),
  );
  return { ours: stream, theirs: other };
}

test("what waits for a reader is not overwritten by what comes behind it", async () => {
  const { ours, theirs } = await connection();
  for (const [at, letter] of ["a", "b", "c"].entries()) {
    theirs.write(letter.repeat(100));
    while (ours.readableLength < (at + 1) * 100) await sleep(1);
  }
  expect(String(ours.read())).toBe("a".repeat(100) + "b".repeat(100) + "c".repeat(100));
});

test("a read takes as much as there is, up to its bound", async () => {
  const { ours, theirs } = await connection();
  ours.pause();
  const sent = bytesOf(3 * LIMITS.socketReadBytes, 5);
  theirs.end(sent);
  // The kernel holds more than a read takes before the first one begins.
  await sleep(50);
  const parts: number[] = [];
  let at = 0;
  let equal = true;
  ours.on("data", (part: Buffer) => {
    parts.push(part.length);
    equal &&= Buffer.compare(part, sent.subarray(at, at + part.length)) === 0;
    at += part.length;
  });
  const ended = new Promise((resolve) => {
    ours.on("end", resolve);
  });
  ours.resume();
  await ended;
  expect([at, equal]).toEqual([sent.length, true]);
  expect(Math.max(...parts)).toBeLessThanOrEqual(LIMITS.socketReadBytes);
  expect(Math.max(...parts)).toBeGreaterThan(65_536);
});
