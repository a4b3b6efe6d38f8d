/**
 * dram: how fast payload moves between a client's window and the DRAM tier, checksum on.
 *
 * This process is the engine: its payload already stands in a window of 1 GiB. It stores 512 blocks of 2 MiB under fresh
 * keys and loads them back, 16 blocks a call with two calls in flight, timed from the first submit to the last
 * completion; the daemon has one copy thread. Before each pass the reference runs: memcpy by one thread between two
 * pre-touched shared mappings. What an engine pays besides (gather into the window, scatter out of it) is printed.
 */
import { loadAddon } from "../../addon/load.ts";
import { assert } from "../../src/assert.ts";
import { type BenchClient, connectBench } from "../client.ts";
import { type BenchDaemon, withDaemon } from "../daemon.ts";
import { chainKeys, KEY_WORDS, XorShift } from "../ledger.ts";
import { cpuSeconds } from "../processes.ts";
import { Progress } from "../progress.ts";
import { check, type Measurement } from "../result.ts";
import type { Scenario, ScenarioOptions } from "../scenario.ts";
import { median, significant } from "../statistics.ts";

const MIB = 2 ** 20;
export const BLOCK_BYTES = 2 * MIB;
const BLOCKS = 512;
const SIDE_BYTES = BLOCKS * BLOCK_BYTES;
/** Two sides fit, so that a pass evicts the chain of the pass before the last one. */
const POOL_BYTES = 2 * SIDE_BYTES + 512 * MIB;
const CALLS_IN_FLIGHT = 2;
const RATIO_MIN = 0.9;
const RATIO_ONE_BLOCK_MIN = 0.55;
const CPU_SECONDS_PER_GB_MAX = 0.25;

/** Runs `calls` calls in order, at most `inFlight` at a time. */
export async function pipelined(
  calls: number,
  inFlight: number,
  call: (index: number, lane: number) => Promise<void>,
): Promise<void> {
  assert(inFlight >= 1, "at least one call runs");
  let next = 0;
  const lane = async (number: number): Promise<void> => {
    while (next < calls) {
      const index = next;
      next += 1;
      await call(index, number);
    }
  };
  await Promise.all(Array.from({ length: inFlight }, (_, number) => lane(number)));
}

export function fillRows(client: BenchClient, rows: number): void {
  const words = new Uint32Array(client.rows.buffer, client.rows.byteOffset, client.rows.length / 4);
  const perRow = client.rowBytes / 4;
  for (let row = 0; row < rows; row += 1) {
    new XorShift(row + 1).fill(words, row * perRow, (row + 1) * perRow);
  }
}

/** Rows whose content is not what fillRows wrote. */
export function wrongRows(client: BenchClient, rows: number): number {
  const words = new Uint32Array(client.rows.buffer, client.rows.byteOffset, client.rows.length / 4);
  const perRow = client.rowBytes / 4;
  let wrong = 0;
  for (let row = 0; row < rows; row += 1) {
    if (!new XorShift(row + 1).matches(words, row * perRow, (row + 1) * perRow)) wrong += 1;
  }
  return wrong;
}

interface Pass {
  readonly storeGBps: number;
  readonly loadGBps: number;
  readonly memcpyGBps: number;
  /** CPU of this process and the daemon during the store and the load. */
  readonly cpuSeconds: number;
}

function memcpyGBps(): number {
  return median(loadAddon().benchMemcpy(SIDE_BYTES, BLOCK_BYTES, 1, false));
}

const rate = (milliseconds: number): number => SIDE_BYTES / milliseconds / 1e6;

async function onePass(
  client: BenchClient,
  daemon: BenchDaemon,
  chain: number,
  perCall: number,
): Promise<Pass> {
  const words = new Uint32Array(BLOCKS * KEY_WORDS);
  chainKeys(words, chain, BLOCKS);
  const memcpy = memcpyGBps();
  const cpu = (): number => cpuSeconds(daemon.pid) + cpuSeconds(process.pid);
  const cpuBefore = cpu();
  let stored = 0;
  const storeStartMs = performance.now();
  await pipelined(BLOCKS / perCall, CALLS_IN_FLIGHT, async (call) => {
    const visible = await client.store(0, words, call * perCall, perCall);
    stored += visible;
  });
  const storeMs = performance.now() - storeStartMs;
  assert(stored === BLOCKS, "every block is stored");
  const { hit, lease } = await client.lookup(chain, words, BLOCKS);
  assert(hit === BLOCKS, "every block stored is found");
  let failed = 0;
  const loadStartMs = performance.now();
  await pipelined(BLOCKS / perCall, CALLS_IN_FLIGHT, async (call) => {
    const missing = await client.load(lease, words, call * perCall, perCall);
    failed += missing.length;
  });
  const loadMs = performance.now() - loadStartMs;
  const cpuUsed = cpu() - cpuBefore;
  assert(failed === 0, "every block found is loaded");
  client.endRequest(chain);
  const rates = { storeGBps: rate(storeMs), loadGBps: rate(loadMs), memcpyGBps: memcpy };
  return { ...rates, cpuSeconds: cpuUsed };
}

/** Loads one chain into a wiped window and compares every word. */
async function wrongAfterWipe(client: BenchClient, chain: number): Promise<number> {
  const words = new Uint32Array(BLOCKS * KEY_WORDS);
  chainKeys(words, chain, BLOCKS);
  client.rows.fill(0);
  const { lease } = await client.lookup(chain, words, BLOCKS);
  const failed = await client.load(lease, words, 0, BLOCKS);
  client.endRequest(chain);
  return failed.length + wrongRows(client, BLOCKS);
}

/** GB/s of a plain copy between private memory and the window: what an engine's gather and scatter cost at least. */
function gatherScatterGBps(client: BenchClient): { gather: number; scatter: number } {
  const bytes = 64 * MIB;
  const own = new Uint8Array(bytes).fill(1);
  const window = client.rows.subarray(0, bytes);
  const saved = window.slice();
  const time = (copy: () => void): number => {
    const startMs = performance.now();
    copy();
    return bytes / (performance.now() - startMs) / 1e6;
  };
  const gather = time(() => window.set(own));
  const scatter = time(() => own.set(window));
  window.set(saved);
  return { gather: significant(gather), scatter: significant(scatter) };
}

interface Run {
  readonly sixteen: readonly Pass[];
  readonly one: readonly Pass[];
  readonly cpuSecondsPerGB: number;
  readonly wrong: number;
  readonly gatherScatter: { gather: number; scatter: number };
}

async function measure(daemon: BenchDaemon, repetitions: number): Promise<Run> {
  const client = await connectBench(daemon.socket, "bench-dram", BLOCK_BYTES, BLOCKS);
  try {
    const progress = new Progress("dram", repetitions);
    fillRows(client, BLOCKS);
    const sixteen: Pass[] = [];
    const one: Pass[] = [];
    await onePass(client, daemon, 1, 16); // a warm-up that is thrown away
    for (let repetition = 0; repetition < repetitions; repetition += 1) {
      sixteen.push(await onePass(client, daemon, 2 + repetition * 2, 16));
      one.push(await onePass(client, daemon, 3 + repetition * 2, 1));
      progress.update(repetition + 1);
    }
    progress.end();
    const wrong = await wrongAfterWipe(client, 3 + (repetitions - 1) * 2);
    const cpu = sixteen.reduce((sum, pass) => sum + pass.cpuSeconds, 0);
    const cpuSecondsPerGB = cpu / ((repetitions * 2 * SIDE_BYTES) / 1e9);
    fillRows(client, 64);
    const gatherScatter = gatherScatterGBps(client);
    return { sixteen, one, cpuSecondsPerGB, wrong, gatherScatter };
  } finally {
    client.close();
  }
}

const slower = (pass: Pass): number => Math.min(pass.storeGBps, pass.loadGBps);
const field = (passes: readonly Pass[], name: keyof Pass): number =>
  significant(median(passes.map((pass) => pass[name])));

function measurement(run: Run): Measurement {
  const value = Math.min(field(run.sixteen, "storeGBps"), field(run.sixteen, "loadGBps"));
  const reference = field(run.sixteen, "memcpyGBps");
  const pairRatio = (passes: readonly Pass[]): number =>
    median(passes.map((pass) => slower(pass) / pass.memcpyGBps));
  const shown = (passes: readonly Pass[]): object => ({
    storeGBps: field(passes, "storeGBps"),
    loadGBps: field(passes, "loadGBps"),
    memcpyGBps: field(passes, "memcpyGBps"),
    ratioOfPairs: significant(pairRatio(passes)),
  });
  const { cpuSecondsPerGB } = run;
  return {
    value,
    unit: "GB/s",
    bar: RATIO_MIN,
    sense: "atLeast",
    reference: "memcpy, 1 thread, between shared mappings",
    referenceValue: reference,
    repetitions: run.sixteen.length,
    checks: [
      check("min(store, load) ÷ memcpy, 16 a call", value / reference, "", "atLeast", RATIO_MIN),
      check("the same, 1 a call", pairRatio(run.one), "", "atLeast", RATIO_ONE_BLOCK_MIN),
      check("CPU of all processes", cpuSecondsPerGB, "s/GB", "atMost", CPU_SECONDS_PER_GB_MAX),
      check("wrong blocks", run.wrong, "", "atMost", 0),
    ],
    detail: {
      blockBytes: BLOCK_BYTES,
      blocksPerSide: BLOCKS,
      callsInFlight: CALLS_IN_FLIGHT,
      sixteenPerCall: shown(run.sixteen),
      onePerCall: shown(run.one),
      gatherGBps: run.gatherScatter.gather,
      scatterGBps: run.gatherScatter.scatter,
    },
  };
}

function run(options: ScenarioOptions): Promise<Measurement> {
  return withDaemon({ capacityBytes: POOL_BYTES, copyThreads: 1 }, async (daemon) =>
    measurement(await measure(daemon, options.repetitions)),
  );
}

export const dram: Scenario = {
  name: "dram",
  summary: "store and load of 2 MiB blocks against memcpy (GB/s)",
  run,
};
