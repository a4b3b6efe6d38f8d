/**
 * Hostile frames by the hundred thousand, over real sockets, against a real daemon. Throughout: the daemon lives and
 * never answers `internal`, framing ends exactly where the page says, every error is a row of the table, a neighbour
 * reads right bytes; afterwards nothing is held and memory and descriptors are where they were.
 */
import fc from "fast-check";
import { afterAll, beforeAll, expect, it } from "vitest";
import { FLAG, OP } from "../../src/engine-api/protocol.ts";
import { TestDaemon } from "../harness/daemon.ts";
import { chainOf, TestEngine } from "../harness/engine.ts";
import { eventually } from "../harness/eventually.ts";
import {
  descriptorOf,
  frameOf,
  helloOf,
  join,
  lookupBody,
  registerOf,
  storeBody,
} from "../harness/frames.ts";
import { LONG, scaled } from "../harness/scale.ts";
import { errorName, errorOf, type Frame, isError, Wire } from "../harness/wire.ts";
import {
  breakingCase,
  bytesOf,
  type Case,
  CHAINS,
  ERROR_NAMES,
  hostileCase,
  outcomeOf,
  type Own,
} from "./mutate.ts";

const CASES = scaled(4_000, 250_000);
const PER_CONNECTION = 64;
const LIMIT_MS = LONG ? 400_000 : 120_000;
const NOTHING: Own = { region: 0, lease: 0, job: 0 };
const FENCE_TAG = 0xffff_fff0;
const MEMORY_SLACK_BYTES = 96 * 1024 * 1024;

let daemon: TestDaemon;
let neighbour: TestEngine;
let neighbourRounds = 0;
let neighbourFailure: unknown;
let stopNeighbour = false;
let neighbourLoop: Promise<void>;

beforeAll(async () => {
  daemon = await TestDaemon.start({ engineApi: { storeFillMs: 200 } });
  neighbour = await TestEngine.start(daemon.socket, {
    engineId: "neighbour",
    descriptor: { model: "neighbour" },
  });
  neighbourLoop = neighbourLife().catch((error: unknown) => {
    neighbourFailure = error;
  });
});

afterAll(async () => {
  neighbour?.close();
  await daemon?.remove();
});

/** Stores, reads and compares until told to stop; its blocks may be evicted, its bytes may not be wrong. */
async function neighbourLife(): Promise<void> {
  while (!stopNeighbour) {
    const keys = chainOf(`neighbour-${neighbourRounds % 16}`, 32);
    await neighbour.store(keys);
    const answer = await neighbour.read(keys);
    expect(answer).toMatchObject({ landed: answer.hit, failed: [], wrong: 0 });
    expect(answer.hit).toBe(32);
    neighbourRounds += 1;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

let connections = 0;

async function greet(): Promise<{ readonly wire: Wire; readonly own: Own }> {
  connections += 1;
  const wire = await Wire.connect(daemon.socket);
  const unchained = descriptorOf({ model: "unchained", chained: false });
  const hello = helloOf(`fuzz-${connections % 5}`, [descriptorOf(), unchained]);
  expect(errorName(await wire.cold(OP.HELLO, hello))).toBe("none");
  const window = registerOf({ blocks: 16, sizeBytes: 16 * 4_096 });
  const { id: region } = await wire.cold(OP.REGISTER, window);
  const keys = CHAINS[0]!.slice(0, 4);
  const ready = storeBody({ region, keys, tokens: 64, rows: [0, 1, 2, 3] });
  const fields = { op: OP.STORE, flags: FLAG.DATA_READY, count: 4, namespace: 1, body: ready };
  const stored = await wire.call(fields);
  if (stored.id !== 0) await wire.completion(stored.tag);
  const request = 10 ** 9 + connections;
  const body = lookupBody(keys);
  const found = await wire.call({ op: OP.LOOKUP, id: request, count: 4, namespace: 1, body });
  const fresh = chainOf(`fresh-${connections}`, 8);
  const reserve = storeBody({ region, keys: fresh, tokens: 128 });
  const job = await wire.call({ op: OP.STORE, count: 8, namespace: 1, body: reserve });
  for (const frame of [stored, found, job]) checkAnswer(frame);
  return { wire, own: { region, lease: found.id, job: job.id } };
}

const seen = new Map<string, number>();

function checkAnswer(frame: Frame): void {
  const name = isError(frame) ? errorOf(frame).name : "none";
  seen.set(name, (seen.get(name) ?? 0) + 1);
  expect(name === "none" || ERROR_NAMES.has(name), name).toBe(true);
  expect(name).not.toBe("internal");
}

/** One client: greets well, sends the cases in one stream, and ends as the framing rules say it must. */
async function attack(cases: readonly Case[]): Promise<void> {
  const { wire, own } = await greet();
  try {
    const stream = join(cases.map((one) => bytesOf(one, own)));
    const outcome = outcomeOf(stream);
    wire.send(stream);
    if (outcome === "whole") {
      wire.send(frameOf({ op: OP.HEARTBEAT, tag: FENCE_TAG }));
      const fence = await wire.take((frame) => frame.tag === FENCE_TAG);
      expect(errorName(fence)).toBe("none");
    } else if (outcome === "closed") {
      await eventually("a broken stream is closed", () => wire.isClosed);
    } else {
      await neighbour.wire.beat();
      expect(wire.isClosed).toBe(false);
    }
    for (const frame of wire.frames) checkAnswer(frame);
  } finally {
    wire.close();
  }
}

/** One client that begins with the cases: HELLOs that are nearly right, and everything else before any HELLO. */
async function barge(cases: readonly Case[]): Promise<void> {
  const wire = await Wire.connect(daemon.socket);
  try {
    const hellos = cases.map((one, index) =>
      one.kind !== "call" && index % 2 === 0 ? { ...one, base: 0 } : one,
    );
    const stream = join(hellos.map((one) => bytesOf(one, NOTHING)));
    const outcome = outcomeOf(stream);
    wire.send(stream);
    if (outcome === "closed") await eventually("a broken stream is closed", () => wire.isClosed);
    if (outcome === "whole") {
      wire.send(frameOf({ op: OP.HEARTBEAT, tag: FENCE_TAG }));
      // A HELLO of another protocol version ends the connection, too.
      const fence = await wire.take((frame) => frame.tag === FENCE_TAG).catch(() => undefined);
      expect(fence !== undefined || wire.isClosed).toBe(true);
    }
    for (const frame of wire.frames) checkAnswer(frame);
  } finally {
    wire.close();
  }
}

it(
  `${CASES} hostile frames change nothing for anybody else`,
  async () => {
    const seed = Number(process.env["CAIRN_TEST_SEED"] ?? Date.now() % 2 ** 31);
    process.stdout.write(`frame fuzz: seed ${seed} (CAIRN_TEST_SEED repeats it)\n`);
    let sent = 0;
    let early: { readonly bytes: number; readonly descriptors: number } | undefined;
    const property = fc.asyncProperty(
      fc.array(hostileCase, { minLength: PER_CONNECTION, maxLength: PER_CONNECTION }),
      breakingCase,
      fc.nat(7),
      async (cases, last, manner) => {
        if (manner === 0) await barge([...cases, last]);
        else await attack([...cases, last]);
        sent += cases.length + 1;
        if (early === undefined && sent > CASES / 4) {
          early = { bytes: daemon.privateBytes(), descriptors: daemon.descriptors() };
        }
      },
    );
    const numRuns = Math.ceil(CASES / PER_CONNECTION);
    await fc.assert(property, { seed, numRuns, endOnFailure: !LONG });
    expect(sent).toBeGreaterThanOrEqual(CASES);
    stopNeighbour = true;
    await neighbourLoop;
    expect(neighbourFailure).toBeUndefined();
    expect(neighbourRounds).toBeGreaterThan(5);
    await daemon.settles("connections", 1);
    await daemon.settles("regions", 1);
    for (const gauge of ["leases", "pinnedBytes", "jobs"] as const) await daemon.settles(gauge, 0);
    expect(daemon.log()).not.toMatch(/assert|fault in cairn/i);
    expect(await daemon.metric("frameErrors")).toBeGreaterThan(sent / 4);
    expect(early).toBeDefined();
    await eventually("descriptors go back", () => daemon.descriptors() <= early!.descriptors + 8);
    expect(daemon.privateBytes() - early!.bytes).toBeLessThan(MEMORY_SLACK_BYTES);
    // A fuzzer that meets one error only has stopped fuzzing.
    expect(seen.size).toBeGreaterThan(10);
    process.stdout.write(
      `frame fuzz: ${sent} frames, answers ${JSON.stringify(Object.fromEntries(seen))}\n`,
    );
  },
  LIMIT_MS,
);
