/**
 * The edge's worker thread: wiring only. It owns the HTTP server, the second's tick and the questions to
 * the main thread; it ends when it is told to, or with the process.
 */
import { chmodSync, existsSync, lstatSync, mkdirSync, unlinkSync } from "node:fs";
import { createConnection } from "node:net";
import { dirname } from "node:path";
import { parentPort, workerData } from "node:worker_threads";
import type { FastifyInstance } from "fastify";
import { assert } from "../assert.ts";
import { type ListenAddress, parseListen } from "../config/listen.ts";
import { CairnError } from "../errors.ts";
import { FeedReader } from "../observe/feed.ts";
import { buildApp } from "./app.ts";
import { Asker } from "./ask.ts";
import type { EdgeWorkerData, ToMain, ToWorker } from "./contract.ts";
import { Digests } from "./digest.ts";
import { EventHub } from "./events.ts";
import { openLedgerReader } from "./ledger-reader.ts";
import { buildMetrics } from "./prometheus.ts";
import { replyOf } from "./replies.ts";

const TICK_MS = 1_000;

function tell(message: ToMain): void {
  parentPort!.postMessage(message);
}

/** True if somebody answers on this socket. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}

/** Makes room for a Unix socket: a live one is an error, the leftover of a dead daemon goes. */
async function clearSocket(path: string): Promise<void> {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  if (!existsSync(path)) return;
  if (!lstatSync(path).isSocket())
    throw new CairnError("directoryUnsafe", `${path} exists and is no socket`);
  if (await answers(path))
    throw new CairnError("directoryLocked", `${path} is served by another process`);
  unlinkSync(path);
}

async function listen(app: FastifyInstance, address: ListenAddress): Promise<string> {
  if (address.kind === "unix") {
    await clearSocket(address.path);
    await app.listen({ path: address.path });
    chmodSync(address.path, 0o660);
    return `unix:${address.path}`;
  }
  await app.listen({ host: address.host, port: address.port });
  const bound = app.server.address();
  assert(bound !== null && typeof bound === "object", "a listening server has an address");
  const host = address.host.includes(":") ? `[${address.host}]` : address.host;
  return `${host}:${bound.port}`;
}

async function run(data: EdgeWorkerData): Promise<void> {
  const address = parseListen(data.listen);
  assert(address !== undefined, "the listen address was proven before");
  const feed = new FeedReader(data.feed);
  const digests = new Digests(feed, Date.now());
  const metrics = buildMetrics(feed, data.info);
  const reader = openLedgerReader(data.ledger);
  const events = new EventHub(digests, metrics, reader);
  const asker = new Asker((id, request) => tell({ type: "ask", id, request }));
  const { secrets, info } = data;
  const now = (): number => Date.now();
  const services = { address, secrets, info, feed, digests, metrics, events, reader, now };
  const app = await buildApp({ ...services, ask: asker.ask });
  const bound = await listen(app, address);
  const timer = setInterval(() => events.tick(Date.now()), TICK_MS);
  const stop = async (): Promise<void> => {
    clearInterval(timer);
    asker.close();
    events.close();
    await app.close();
    tell({ type: "stopped" });
    parentPort!.close();
  };
  parentPort!.on("message", (message: ToWorker) => {
    if (message.type === "answer") asker.answer(message.id, message.value);
    else if (message.type === "refusal") asker.refuse(message.id, message.error);
    else if (message.type === "notice") events.notice(message.atMs, message.notice);
    else if (message.type === "devices") {
      metrics.devices(message.directories);
      digests.directories = message.directories;
    } else void stop();
  });
  tell({ type: "listening", address: bound });
}

run(workerData as EdgeWorkerData).catch((error: unknown) => {
  tell({ type: "failed", error: replyOf(listenFault(error)) });
  parentPort!.close();
});

/** A busy or forbidden address is the operator's to solve, not a fault of ours. */
function listenFault(error: unknown): unknown {
  const code = (error as { readonly code?: unknown } | null)?.code;
  if (code === "EADDRINUSE" || code === "EACCES" || code === "EADDRNOTAVAIL")
    return new CairnError("configInvalid", `edge.listen: ${String(error)}`);
  return error;
}
