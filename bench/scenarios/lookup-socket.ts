/**
 * lookup-socket: the round trip of a LOOKUP with 1,024 full keys (no chain handle) from another process.
 *
 * The client is native and blocking, so that what is timed is the daemon. Its reference is a native echo of equal
 * request and reply sizes over a Unix socket, a process of its own as well, measured in turn with it: once idle, once
 * while a third process copies 2 GB/s through the daemon and /metrics is scraped ten times a second.
 */
import { existsSync } from "node:fs";
import { request as httpRequest } from "node:http";
import { join } from "node:path";
import { loadAddon } from "../../addon/load.ts";
import { assert } from "../../src/assert.ts";
import { coldFrame, writeHeader } from "../../src/engine-api/codec.ts";
import {
  FLAG,
  HEADER,
  HEADER_BYTES,
  LOOKUP_FIXED_BYTES,
  LOOKUP_REPLY_BYTES,
  OP,
} from "../../src/engine-api/protocol.ts";
import { CairnError } from "../../src/errors.ts";
import { type Child, runChild, startChild } from "../children.ts";
import type { RoundTripsInput } from "../children/round-trips.ts";
import { benchHello, connectBench } from "../client.ts";
import { type BenchDaemon, withDaemon } from "../daemon.ts";
import { chainKeys, KEY_WORDS } from "../ledger.ts";
import { FREE, type Placement, placements, placeProcess } from "../placement.ts";
import { type Check, check, type Measurement } from "../result.ts";
import type { Scenario, ScenarioOptions } from "../scenario.ts";
import { median, percentile, significant } from "../statistics.ts";

const KEYS = 1_024;
const REQUEST_BYTES = HEADER_BYTES + LOOKUP_FIXED_BYTES + KEYS * KEY_WORDS * 4;
const REPLY_BYTES = HEADER_BYTES + LOOKUP_REPLY_BYTES;
const ROUND_TRIPS = 3_000;
const WARM_UP = 300;
const MIB = 2 ** 20;
const POOL_BYTES = 1_536 * MIB;
const PAYLOAD_BYTES = 64;
const COPY_BYTES_PER_SECOND = 2e9;
const SCRAPES_PER_SECOND = 10;
const ENGINE_ID = "bench-lookup-socket";

const P50_MICROSECONDS_MAX = 150;
const P99_MICROSECONDS_MAX = 1_000;
const ECHO_FACTOR_MAX = 3;
const ECHO_START_MS_MAX = 20_000;

/** Echoes started so far; each has a socket of its own. */
let echoes = 0;

/** One LOOKUP frame with KEYS full keys. The same request id each time: every reply replaces the lease before it. */
export function lookupFrame(words: Uint32Array, handle: number): Uint8Array {
  const frame = new Uint8Array(REQUEST_BYTES);
  const view = new DataView(frame.buffer);
  writeHeader(view, 0, OP.LOOKUP, 0, REQUEST_BYTES - HEADER_BYTES, 1, 1, KEYS, handle);
  frame.set(
    new Uint8Array(words.buffer, 0, KEYS * KEY_WORDS * 4),
    HEADER_BYTES + LOOKUP_FIXED_BYTES,
  );
  return frame;
}

/**
 * Sends HELLO and the frame once and returns the hit it is answered: the native client measures times and does not look
 * at what comes back.
 */
export function answeredHit(socket: string, hello: Uint8Array, frame: Uint8Array): Promise<number> {
  const addon = loadAddon();
  return new Promise((resolve, reject) => {
    let greeted = false;
    const client = addon.clientOpen(
      socket,
      (reply) => {
        const view = new DataView(reply.buffer, reply.byteOffset, reply.byteLength);
        if ((view.getUint16(HEADER.FLAGS, true) & FLAG.ERROR) !== 0) {
          reject(new CairnError("internal", "the ready-made frame was refused"));
        } else if (greeted) resolve(view.getUint32(HEADER.COUNT, true));
        else {
          greeted = true;
          addon.clientSend(client, frame, 0, frame.length, -1);
          return;
        }
        addon.clientClose(client);
      },
      (reason) => reject(new CairnError("unavailable", reason)),
    );
    addon.clientSend(client, hello, 0, hello.length, -1);
  });
}

/** HELLO as the native client of `engineId` sends it. */
export function helloFrame(engineId: string, rowBytes: number): Uint8Array {
  return coldFrame(OP.HELLO, 0, 1, 0, 0, benchHello(engineId, rowBytes));
}

interface Pair {
  readonly daemon: readonly number[];
  readonly echo: readonly number[];
}

const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");

async function roundTrips(
  input: Omit<RoundTripsInput, "count">,
  cpu: number | undefined,
): Promise<number[]> {
  const count = WARM_UP + ROUND_TRIPS;
  const times = await runChild<number[]>("bench/children/round-trips.ts", { ...input, count }, cpu);
  return times.slice(WARM_UP);
}

/** The echo takes one client only, so its socket is awaited, not tried. */
async function untilExists(path: string): Promise<void> {
  const endMs = performance.now() + ECHO_START_MS_MAX;
  while (!existsSync(path)) {
    assert(performance.now() < endMs, "the echo starts in time");
    await new Promise((resolve) => {
      setTimeout(resolve, 20);
    });
  }
}

async function echoRoundTrips(
  directory: string,
  { client, server: cpu }: Placement,
): Promise<number[]> {
  echoes += 1;
  const path = join(directory, `echo-${echoes}.sock`);
  const sizes = { requestBytes: REQUEST_BYTES, replyBytes: REPLY_BYTES };
  const server = startChild<null>("bench/children/echo.ts", { path, ...sizes }, cpu);
  await untilExists(path);
  const request = base64(new Uint8Array(REQUEST_BYTES));
  const times = await roundTrips({ path, hello: "", request, replyBytes: REPLY_BYTES }, client);
  await server.result;
  return times;
}

/** One pair a repetition: daemon, then echo. */
async function measurePairs(
  daemon: BenchDaemon,
  request: Uint8Array,
  repetitions: number,
  placement: Placement,
): Promise<Pair[]> {
  placeProcess(daemon.pid, placement.server);
  const hello = base64(helloFrame(ENGINE_ID, PAYLOAD_BYTES));
  const pairs: Pair[] = [];
  for (let repetition = 0; repetition < repetitions; repetition += 1) {
    const input = { path: daemon.socket, hello, request: base64(request), replyBytes: 0 };
    const daemonTimes = await roundTrips(input, placement.client);
    const echoTimes = await echoRoundTrips(daemon.directory, placement);
    pairs.push({ daemon: daemonTimes, echo: echoTimes });
  }
  placeProcess(daemon.pid, undefined);
  return pairs;
}

/** Fetches /metrics ten times a second until stopped; counts what came back whole. */
function startScraping(socketPath: string): { stop: () => number } {
  let answered = 0;
  const timer = setInterval(() => {
    const request = httpRequest({ socketPath, path: "/metrics" }, (response) => {
      response.resume();
      response.on("end", () => {
        if (response.statusCode === 200) answered += 1;
      });
    });
    request.on("error", () => undefined);
    request.end();
  }, 1_000 / SCRAPES_PER_SECOND);
  return {
    stop: () => {
      clearInterval(timer);
      return answered;
    },
  };
}

interface Load {
  readonly pairs: readonly Pair[];
  readonly scrapes: number;
  readonly copiedBytesPerSecond: number;
}

async function underLoad(
  daemon: BenchDaemon,
  request: Uint8Array,
  repetitions: number,
): Promise<Load> {
  const copies: Child<{ bytesPerSecond: number }> = startChild("bench/children/copies.ts", {
    socket: daemon.socket,
    bytesPerSecond: COPY_BYTES_PER_SECOND,
  });
  await new Promise<void>((resolve, reject) => {
    copies.process.stdout?.once("data", () => resolve());
    copies.result.catch(reject);
  });
  const scraping = startScraping(daemon.edgeSocket);
  try {
    const pairs = await measurePairs(daemon, request, repetitions, FREE);
    const scrapes = scraping.stop();
    copies.process.kill("SIGTERM");
    const { bytesPerSecond } = await copies.result;
    return { pairs, scrapes, copiedBytesPerSecond: bytesPerSecond };
  } finally {
    scraping.stop();
    copies.process.kill("SIGTERM");
  }
}

const medianOf = (pairs: readonly Pair[], side: keyof Pair, share: number): number =>
  median(pairs.map((pair) => percentile(pair[side], share)));

/** Idle pairs of each placement. */
type Idle = readonly { readonly placement: Placement; readonly pairs: readonly Pair[] }[];

/** The bar holds for every placement; left to the scheduler it fails when that places the two pairs differently. */
function idleChecks(idle: Idle): Check[] {
  const checks: Check[] = [];
  for (const { placement, pairs } of idle) {
    const p50 = medianOf(pairs, "daemon", 0.5);
    const p99 = medianOf(pairs, "daemon", 0.99);
    checks.push(check(`idle p50, ${placement.name}`, p50, "µs", "atMost", P50_MICROSECONDS_MAX));
    checks.push(check(`idle p99, ${placement.name}`, p99, "µs", "atMost", P99_MICROSECONDS_MAX));
    const factor = p50 / medianOf(pairs, "echo", 0.5);
    checks.push(
      check(`idle p50 ÷ echo p50, ${placement.name}`, factor, "", "atMost", ECHO_FACTOR_MAX),
    );
  }
  return checks;
}

function idleDetail(idle: Idle): Record<string, unknown> {
  const figures = (pairs: readonly Pair[], side: keyof Pair): object => ({
    p50: significant(medianOf(pairs, side, 0.5)),
    p99: significant(medianOf(pairs, side, 0.99)),
  });
  return Object.fromEntries(
    idle.map(({ placement, pairs }) => [
      placement.name,
      { daemon: figures(pairs, "daemon"), echo: figures(pairs, "echo") },
    ]),
  );
}

function measurement(idle: Idle, load: Load): Measurement {
  // The last placement is the hardest one measured: client and daemon apart, each wake-up across cores.
  const main = idle.at(-1);
  assert(main !== undefined, "at least the scheduler's own placement is measured");
  const load99 = medianOf(load.pairs, "daemon", 0.99);
  const echoLoad99 = medianOf(load.pairs, "echo", 0.99);
  const load99Max = Math.max(P99_MICROSECONDS_MAX, ECHO_FACTOR_MAX * echoLoad99);
  return {
    value: medianOf(main.pairs, "daemon", 0.5),
    unit: "µs",
    bar: P50_MICROSECONDS_MAX,
    sense: "atMost",
    reference: `native echo of equal sizes and placement (${main.placement.name}), p50`,
    referenceValue: medianOf(main.pairs, "echo", 0.5),
    repetitions: main.pairs.length,
    checks: [
      ...idleChecks(idle),
      check("p99 under copies and scrapes", load99, "µs", "atMost", load99Max),
    ],
    detail: {
      requestBytes: REQUEST_BYTES,
      replyBytes: REPLY_BYTES,
      roundTrips: ROUND_TRIPS,
      idle: idleDetail(idle),
      load: {
        p50: significant(medianOf(load.pairs, "daemon", 0.5)),
        p99: significant(load99),
        echoP50: significant(medianOf(load.pairs, "echo", 0.5)),
        echoP99: significant(echoLoad99),
        copiedGBPerSecond: significant(load.copiedBytesPerSecond / 1e9),
        scrapes: load.scrapes,
      },
    },
  };
}

function run(options: ScenarioOptions): Promise<Measurement> {
  const settings = { capacityBytes: POOL_BYTES, ledgerBlocksMax: 2_000_000 };
  return withDaemon(settings, async (daemon) => {
    const client = await connectBench(daemon.socket, ENGINE_ID, PAYLOAD_BYTES, KEYS);
    try {
      const words = new Uint32Array(KEYS * KEY_WORDS);
      chainKeys(words, 1, KEYS);
      await client.store(0, words, 0, KEYS);
      const request = lookupFrame(words, client.handle);
      const hello = helloFrame(ENGINE_ID, PAYLOAD_BYTES);
      assert((await answeredHit(daemon.socket, hello, request)) === KEYS, "the frame hits");
      const idle: { placement: Placement; pairs: Pair[] }[] = [];
      for (const placement of placements()) {
        const pairs = await measurePairs(daemon, request, options.repetitions, placement);
        idle.push({ placement, pairs });
      }
      const load = await underLoad(daemon, request, options.repetitions);
      return measurement(idle, load);
    } finally {
      client.close();
    }
  });
}

export const lookupSocket: Scenario = {
  name: "lookup-socket",
  summary: "round trip of 1,024 keys from another process, idle and under 2 GB/s of copies (µs)",
  run,
};
