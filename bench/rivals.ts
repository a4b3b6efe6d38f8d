/**
 * `cairn bench rivals` — the JSON lines of the side-by-side comparison with other node caches, by the same rules:
 * one client process and one thread, a server in another process, one call at a time, blocks of 2 MiB, one warm-up
 * pass thrown away, reads checked byte for byte outside the timed part, 1e9 bytes a GB, milliseconds seen by the client.
 *
 * RIVALS_BLOCKS, RIVALS_RUNS, RIVALS_LOOKUPS and RIVALS_TINY have the meaning and the defaults that the other systems'
 * scripts give them.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { loadAddon } from "../addon/load.ts";
import { assert } from "../src/assert.ts";
import { LIMITS } from "../src/limits.ts";
import { runChild } from "./children.ts";
import type { RoundTripsInput } from "./children/round-trips.ts";
import { type BenchClient, connectBench } from "./client.ts";
import { type BenchDaemon, ROOT, withDaemon } from "./daemon.ts";
import { chainKeys, KEY_WORDS } from "./ledger.ts";
import { residentMemory } from "./processes.ts";
import { loadNow } from "./result.ts";
import { BLOCK_BYTES, fillRows, wrongRows } from "./scenarios/dram.ts";
import { answeredHit, helloFrame, lookupFrame } from "./scenarios/lookup-socket.ts";
import { median, percentile } from "./statistics.ts";

const KEYS = 1_024;
const TINY_BYTES = 64;
const WARM_UP_LOOKUPS = 20;
const WEIGHED_KEYS = 100_000;
const MIB = 2 ** 20;

function setting(name: string, fallback: number): number {
  const value = Number(process.env[name] ?? fallback);
  assert(Number.isSafeInteger(value) && value > 0, "a RIVALS_ setting is a whole number above 0");
  return value;
}

export interface RivalRow {
  readonly system: string;
  readonly version: string;
  readonly scenario: string;
  readonly variant: string;
  readonly value: number;
  readonly unit: string;
  readonly n: number;
  readonly runs: number;
  readonly min: number;
  readonly max: number;
  readonly p50: number | null;
  readonly p99: number | null;
  readonly load1: number;
  readonly note: string;
}

export interface RowInput {
  readonly scenario: string;
  readonly variant: string;
  /** One value per measured pass. */
  readonly values: readonly number[];
  readonly unit: string;
  /** Keys, blocks or look-ups in a pass. */
  readonly n: number;
  readonly callMs?: readonly number[];
  readonly note?: string;
}

export function rivalRow(version: string, input: RowInput): RivalRow {
  const { values, callMs } = input;
  const round = (value: number): number => Number(value.toFixed(4));
  const calls = callMs === undefined || callMs.length === 0 ? undefined : callMs;
  return {
    system: "cairn",
    version,
    scenario: input.scenario,
    variant: input.variant,
    value: round(median(values)),
    unit: input.unit,
    n: input.n,
    runs: values.length,
    min: round(percentile(values, 0)),
    max: round(percentile(values, 1)),
    p50: calls === undefined ? null : round(percentile(calls, 0.5)),
    p99: calls === undefined ? null : round(percentile(calls, 0.99)),
    load1: loadNow(),
    note: input.note ?? "",
  };
}

class Report {
  readonly #version: string;
  readonly #json: boolean;
  readonly runs = setting("RIVALS_RUNS", 7);

  constructor(json: boolean) {
    const manifest = readFileSync(join(ROOT, "package.json"), "utf8");
    this.#version = (JSON.parse(manifest) as { version: string }).version;
    this.#json = json;
  }

  row(input: RowInput): void {
    const row = rivalRow(this.#version, input);
    const spread = `[${row.min} .. ${row.max}]`;
    const text = `${row.scenario.padEnd(20)} ${row.variant.padEnd(26)} ${row.value} ${row.unit} ${spread} ${row.note}`;
    process.stdout.write(`${this.#json ? JSON.stringify(row) : text}\n`);
  }

  /** Rows lookup_1024_p50_ms and …_p99_ms from the times of each pass. */
  lookups(variant: string, passes: readonly (readonly number[])[], note: string): void {
    for (const [name, share] of [["p50", 0.5] as const, ["p99", 0.99] as const]) {
      this.row({
        scenario: `lookup_1024_${name}_ms`,
        variant,
        values: passes.map((times) => percentile(times, share)),
        unit: "ms",
        n: passes[0]?.length ?? 0,
        callMs: passes.flat(),
        note,
      });
    }
  }
}

/** Runs one warm-up and `runs` measured passes of `calls` calls; returns each pass's seconds and all call times. */
async function passes(
  runs: number,
  calls: number,
  call: (pass: number, index: number) => Promise<void>,
): Promise<{ seconds: number[]; callMs: number[] }> {
  const seconds: number[] = [];
  const callMs: number[] = [];
  for (let pass = 0; pass <= runs; pass += 1) {
    const startMs = performance.now();
    for (let index = 0; index < calls; index += 1) {
      const callStartMs = performance.now();
      await call(pass, index);
      if (pass > 0) callMs.push(performance.now() - callStartMs);
    }
    if (pass > 0) seconds.push((performance.now() - startMs) / 1_000);
  }
  return { seconds, callMs };
}

function keysOf(chain: number, count: number): Uint32Array {
  const words = new Uint32Array(count * KEY_WORDS);
  chainKeys(words, chain, count);
  return words;
}

const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");

async function measureLookups(report: Report, daemon: BenchDaemon): Promise<void> {
  const engineId = "rivals-lookup";
  const client = await connectBench(daemon.socket, engineId, TINY_BYTES, KEYS);
  const lookups = setting("RIVALS_LOOKUPS", 300);
  const helloBytes = helloFrame(engineId, TINY_BYTES);
  const hello = base64(helloBytes);
  try {
    const words = keysOf(1, KEYS);
    for (const variant of ["miss", "hit"] as const) {
      if (variant === "hit") await client.store(0, words, 0, KEYS);
      const expected = variant === "hit" ? KEYS : 0;
      const native: number[][] = [];
      const script: number[][] = [];
      const frame = lookupFrame(words, client.handle);
      const answered = await answeredHit(daemon.socket, helloBytes, frame);
      assert(answered === expected, "the ready-made frame finds what is there");
      const request = base64(frame);
      for (let run = 0; run < report.runs; run += 1) {
        const count = WARM_UP_LOOKUPS + lookups;
        const input: RoundTripsInput = {
          path: daemon.socket,
          hello,
          request,
          replyBytes: 0,
          count,
        };
        const times = await runChild<number[]>("bench/children/round-trips.ts", input);
        native.push(times.slice(WARM_UP_LOOKUPS).map((microseconds) => microseconds / 1_000));
        script.push(await scriptLookups(client, words, expected, count));
      }
      report.lookups(`${variant}, native client`, native, "ready-made frame, blocking socket");
      report.lookups(`${variant}, TypeScript client`, script, "lease included");
    }
  } finally {
    client.close();
  }
}

async function scriptLookups(
  client: BenchClient,
  words: Uint32Array,
  expected: number,
  count: number,
): Promise<number[]> {
  const times: number[] = [];
  for (let index = 0; index < count; index += 1) {
    const startMs = performance.now();
    const { hit } = await client.lookup(7, words, KEYS);
    times.push(performance.now() - startMs);
    assert(hit === expected, "the look-up finds what is there");
  }
  client.endRequest(7);
  return times.slice(WARM_UP_LOOKUPS);
}

async function measureTiny(report: Report, daemon: BenchDaemon): Promise<void> {
  const client = await connectBench(daemon.socket, "rivals-tiny", TINY_BYTES, KEYS);
  const total = setting("RIVALS_TINY", 5_000);
  try {
    client.rows.fill(0x76);
    for (const perCall of [1, 128]) {
      const calls = Math.floor(total / perCall);
      const blocks = calls * perCall;
      const chains = Array.from({ length: report.runs + 1 }, (_, pass) =>
        keysOf(10_000 + perCall * 100 + pass, blocks),
      );
      const { seconds, callMs } = await passes(report.runs, calls, async (pass, index) => {
        const words = chains[pass] as Uint32Array;
        const visible = await client.store(0, words, index * perCall, perCall, 0);
        assert(visible === perCall, "every tiny block is visible");
      });
      report.row({
        scenario: "meta_put_per_s",
        variant: perCall === 1 ? "serial" : "128 a call",
        values: seconds.map((one) => blocks / one),
        unit: "1/s",
        n: blocks,
        callMs,
        note: `${TINY_BYTES}-byte values, ${perCall} a call, acknowledged visible, hash and header written`,
      });
    }
    await weighKeys(report, daemon, client);
  } finally {
    client.close();
  }
}

async function weighKeys(report: Report, daemon: BenchDaemon, client: BenchClient): Promise<void> {
  const before = residentMemory(daemon.pid);
  const words = keysOf(90_000, WEIGHED_KEYS);
  for (let depth = 0; depth < WEIGHED_KEYS; depth += 1_000) {
    await client.store(0, words, depth, 1_000, 0);
  }
  const growth = residentMemory(daemon.pid).totalBytes - before.totalBytes;
  const slotBytes = LIMITS.slabBytes / loadAddon().arenaSlotsPerSlab(LIMITS.slabBytes, TINY_BYTES);
  const weighed = { scenario: "rss_bytes_per_key", unit: "B", n: WEIGHED_KEYS };
  report.row({
    ...weighed,
    variant: "32-byte keys",
    values: [growth / WEIGHED_KEYS],
    note: `${TINY_BYTES}-byte values; the pool is resident from the start, so slots are not in the growth`,
  });
  report.row({
    ...weighed,
    variant: "32-byte keys, with slots",
    values: [growth / WEIGHED_KEYS + slotBytes],
    note: `the growth plus the ${Math.round(slotBytes)} bytes of pool that header and value of one key take`,
  });
}

async function measureBlocks(report: Report, daemon: BenchDaemon): Promise<void> {
  const blocks = setting("RIVALS_BLOCKS", 128);
  const client = await connectBench(daemon.socket, "rivals-blocks", BLOCK_BYTES, blocks);
  try {
    fillRows(client, blocks);
    for (const perCall of [1, 16]) {
      for (const source of ["window", "private memory"] as const) {
        await putAndGet(report, client, blocks, perCall, source);
      }
    }
    residentRow(report, daemon, `with ${blocks} blocks`);
  } finally {
    client.close();
  }
}

/** One put row and one get row. Private memory: the client's copy into or out of the window is in the time. */
async function putAndGet(
  report: Report,
  client: BenchClient,
  blocks: number,
  perCall: number,
  source: "window" | "private memory",
): Promise<void> {
  const calls = Math.floor(blocks / perCall);
  const callBytes = perCall * BLOCK_BYTES;
  const own = source === "window" ? undefined : client.rows.slice(0, calls * callBytes);
  const base = 200_000 + perCall * 1_000 + (own === undefined ? 0 : 500);
  const chains = Array.from({ length: report.runs + 1 }, (_, pass) => keysOf(base + pass, blocks));
  const span = (buffer: Uint8Array, index: number): Uint8Array =>
    buffer.subarray(index * callBytes, (index + 1) * callBytes);
  const put = await passes(report.runs, calls, async (pass, index) => {
    if (own !== undefined) span(client.rows, index).set(span(own, index));
    const words = chains[pass] as Uint32Array;
    const visible = await client.store(0, words, index * perCall, perCall);
    assert(visible === perCall, "every block is visible");
  });
  const last = chains[report.runs] as Uint32Array;
  client.rows.fill(0);
  own?.fill(0);
  const { hit, lease } = await client.lookup(3, last, calls * perCall);
  assert(hit === calls * perCall, "every block put is found");
  const get = await passes(report.runs, calls, async (_pass, index) => {
    const failed = await client.load(lease, last, index * perCall, perCall);
    assert(failed.length === 0, "every block is loaded");
    if (own !== undefined) span(own, index).set(span(client.rows, index));
  });
  client.endRequest(3);
  if (own !== undefined) client.rows.set(own);
  assert(wrongRows(client, calls * perCall) === 0, "every byte read is the byte written");
  const note = `${perCall} a call, fresh keys each pass, checksum written and verified`;
  for (const [scenario, timed] of [
    ["put_2MiB_GBps", put] as const,
    ["get_2MiB_GBps", get] as const,
  ]) {
    report.row({
      scenario,
      variant: `${source}, ${perCall} a call`,
      values: timed.seconds.map((one) => (calls * callBytes) / one / 1e9),
      unit: "GB/s",
      n: calls * perCall,
      callMs: timed.callMs,
      note,
    });
  }
}

function residentRow(report: Report, daemon: BenchDaemon, variant: string): void {
  const memory = residentMemory(daemon.pid);
  report.row({
    scenario: "rss_mb",
    variant,
    values: [memory.totalBytes / MIB],
    unit: "MiB",
    n: 1,
    note: `of it shared memory (the pool, pre-touched) ${Math.round(memory.sharedBytes / MIB)} MiB`,
  });
}

/** Prints the rows, one JSON object a line with --json; resolves to the exit code. */
export async function rivalsMain(json: boolean): Promise<number> {
  const report = new Report(json);
  const options = { capacityBytes: 2_048 * MIB, copyThreads: 1, ledgerBlocksMax: 1_000_000 };
  await withDaemon(options, async (daemon) => {
    residentRow(report, daemon, "idle");
    await measureLookups(report, daemon);
    await measureTiny(report, daemon);
    await measureBlocks(report, daemon);
  });
  return 0;
}
