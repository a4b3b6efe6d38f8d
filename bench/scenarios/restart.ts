/**
 * restart: kill -9 with a million blocks resident, then the time from exec to the first LOOKUP that finds its whole
 * chain. Header hashes are checked by then; afterwards every block is loaded, untimed, and compared.
 */
import { assert } from "../../src/assert.ts";
import { CairnError } from "../../src/errors.ts";
import { type BenchClient, connectBench } from "../client.ts";
import { type BenchDaemon, withDaemon } from "../daemon.ts";
import { chainKeys, KEY_WORDS } from "../ledger.ts";
import { Progress } from "../progress.ts";
import { isPayload, writePayload } from "../replay/payload.ts";
import { check, type Measurement } from "../result.ts";
import type { Scenario, ScenarioOptions } from "../scenario.ts";
import { median, significant } from "../statistics.ts";

export const PAYLOAD_BYTES = 64;
const CHAIN_BLOCKS = 32_768;
const RESIDENT_DEFAULT = 1_000_000;
const BATCH = 4_096;
const SLOT_BYTES = 512;
const SECONDS_MAX = 2;
const GIVE_UP_MS = 60_000;
const RETRY_MS = 5;
const ENGINE_ID = "bench-restart";

const row = (client: BenchClient, index: number): Uint32Array =>
  new Uint32Array(
    client.rows.buffer,
    client.rows.byteOffset + index * PAYLOAD_BYTES,
    PAYLOAD_BYTES / 4,
  );

/** Stores blocks [depth, depth + count) of the chain under payloads that name them. */
export async function storeBatch(
  client: BenchClient,
  words: Uint32Array,
  depth: number,
  count: number,
): Promise<void> {
  for (let index = 0; index < count; index += 1) {
    writePayload(row(client, index), words, (depth + index) * KEY_WORDS);
  }
  const visible = await client.store(0, words, depth, count, 0);
  assert(visible === count, "every block of the batch is visible");
}

async function storeChain(client: BenchClient, words: Uint32Array): Promise<void> {
  for (let depth = 0; depth < CHAIN_BLOCKS; depth += BATCH) {
    await storeBatch(client, words, depth, BATCH);
  }
}

export interface Loaded {
  wrong: number;
  missing: number;
}

/** Loads one chain of CHAIN_BLOCKS blocks and adds what is missing or differs to `total`. */
export async function loadChain(
  client: BenchClient,
  words: Uint32Array,
  total: Loaded,
): Promise<void> {
  const { hit, lease } = await client.lookup(1, words, CHAIN_BLOCKS);
  total.missing += CHAIN_BLOCKS - hit;
  for (let depth = 0; depth < hit; depth += BATCH) {
    const count = Math.min(BATCH, hit - depth);
    client.rows.fill(0);
    const failed = new Set(await client.load(lease, words, depth, count, 0));
    total.missing += failed.size;
    for (let index = 0; index < count; index += 1) {
      if (failed.has(depth + index)) continue;
      if (!isPayload(row(client, index), words, (depth + index) * KEY_WORDS)) total.wrong += 1;
    }
  }
  client.endRequest(1);
}

/** Connects as soon as the new daemon lets us and asks for one whole chain. */
async function firstLookup(daemon: BenchDaemon, words: Uint32Array): Promise<number> {
  const startMs = performance.now();
  daemon.launch();
  while (performance.now() - startMs < GIVE_UP_MS) {
    try {
      const client = await connectBench(daemon.socket, ENGINE_ID, PAYLOAD_BYTES, BATCH);
      const { hit } = await client.lookup(1, words, CHAIN_BLOCKS);
      client.close();
      if (hit === CHAIN_BLOCKS) return (performance.now() - startMs) / 1_000;
    } catch (error) {
      if (!(error instanceof CairnError) || !error.row.retryable) throw error;
    }
    await new Promise((resolve) => {
      setTimeout(resolve, RETRY_MS);
    });
  }
  throw new CairnError("unavailable", `no look-up succeeded: ${daemon.logTail()}`);
}

async function withClient<T>(
  daemon: BenchDaemon,
  use: (client: BenchClient) => Promise<T>,
): Promise<T> {
  const client = await connectBench(daemon.socket, ENGINE_ID, PAYLOAD_BYTES, BATCH);
  try {
    return await use(client);
  } finally {
    client.close();
  }
}

async function run(options: ScenarioOptions): Promise<Measurement> {
  const chains = Math.ceil((options.residentBlocks ?? RESIDENT_DEFAULT) / CHAIN_BLOCKS);
  const resident = chains * CHAIN_BLOCKS;
  const words = new Uint32Array(CHAIN_BLOCKS * KEY_WORDS);
  const settings = { capacityBytes: resident * SLOT_BYTES, ledgerBlocksMax: resident + 65_536 };
  return withDaemon(settings, async (daemon) => {
    const progress = new Progress("restart", options.repetitions);
    await withClient(daemon, async (client) => {
      for (let chain = 0; chain < chains; chain += 1) {
        chainKeys(words, chain, CHAIN_BLOCKS);
        await storeChain(client, words);
      }
    });
    const seconds: number[] = [];
    const total: Loaded = { wrong: 0, missing: 0 };
    for (let repetition = 0; repetition < options.repetitions; repetition += 1) {
      await daemon.kill();
      chainKeys(words, repetition % chains, CHAIN_BLOCKS);
      seconds.push(await firstLookup(daemon, words));
      await withClient(daemon, async (client) => {
        for (let chain = 0; chain < chains; chain += 1) {
          chainKeys(words, chain, CHAIN_BLOCKS);
          await loadChain(client, words, total);
        }
      });
      progress.update(repetition + 1);
    }
    progress.end();
    return measurement(seconds, total, resident);
  });
}

function measurement(seconds: readonly number[], total: Loaded, resident: number): Measurement {
  const value = median(seconds);
  return {
    value,
    unit: "s",
    bar: SECONDS_MAX,
    sense: "atMost",
    reference: null,
    referenceValue: null,
    repetitions: seconds.length,
    checks: [
      check("exec to first look-up", value, "s", "atMost", SECONDS_MAX),
      check("wrong blocks", total.wrong, "", "atMost", 0),
      check("missing blocks", total.missing, "", "atMost", 0),
    ],
    detail: {
      residentBlocks: resident,
      payloadBytes: PAYLOAD_BYTES,
      seconds: seconds.map((one) => significant(one)),
    },
  };
}

export const restart: Scenario = {
  name: "restart",
  summary: "kill -9 with 1 M blocks resident to the first look-up (s)",
  run,
};
