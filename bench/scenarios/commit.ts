/**
 * commit: how many small blocks a second become visible. STORE with 64-byte payloads in batches of 512, header and hash
 * written; a block counts once a LOOKUP finds it, so the clock stops after the last chain was looked up whole.
 */
import { assert } from "../../src/assert.ts";
import { type BenchClient, connectBench } from "../client.ts";
import { withDaemon } from "../daemon.ts";
import { chainKeys, KEY_WORDS } from "../ledger.ts";
import { check, type Measurement } from "../result.ts";
import type { Scenario, ScenarioOptions } from "../scenario.ts";
import { median, significant } from "../statistics.ts";
import { pipelined } from "./dram.ts";

const PAYLOAD_BYTES = 64;
const BATCH = 512;
const CHAIN_BLOCKS = 65_536;
const CHAINS = 8;
const CALLS_IN_FLIGHT = 8;
const BLOCKS = CHAINS * CHAIN_BLOCKS;
const BLOCKS_PER_SECOND_MIN = 1_000_000;
/** Bytes of a small block in the pool, header included, with room to spare. */
const SLOT_BYTES = 512;

async function onePass(client: BenchClient, pass: number): Promise<number> {
  const chains = Array.from({ length: CHAINS }, (_, index) => {
    const words = new Uint32Array(CHAIN_BLOCKS * KEY_WORDS);
    chainKeys(words, pass * CHAINS + index, CHAIN_BLOCKS);
    return words;
  });
  const startMs = performance.now();
  for (const words of chains) {
    // Each lane has rows of its own: a row is the daemon's until its call completes.
    await pipelined(CHAIN_BLOCKS / BATCH, CALLS_IN_FLIGHT, async (call, lane) => {
      const visible = await client.storeFresh(words, call * BATCH, BATCH, lane * BATCH);
      assert(visible === BATCH, "every block of the batch is visible");
    });
  }
  for (const [index, words] of chains.entries()) {
    const { hit } = await client.lookup(index + 1, words, CHAIN_BLOCKS);
    assert(hit === CHAIN_BLOCKS, "the look-up finds what was committed");
  }
  const seconds = (performance.now() - startMs) / 1_000;
  for (const index of chains.keys()) client.endRequest(index + 1);
  return BLOCKS / seconds;
}

function run(options: ScenarioOptions): Promise<Measurement> {
  const passes = options.repetitions + 1;
  const settings = {
    capacityBytes: passes * BLOCKS * SLOT_BYTES,
    ledgerBlocksMax: (passes + 1) * BLOCKS,
  };
  return withDaemon(settings, async (daemon) => {
    const rows = CALLS_IN_FLIGHT * BATCH;
    const client = await connectBench(daemon.socket, "bench-commit", PAYLOAD_BYTES, rows);
    try {
      client.rows.fill(0x5a);
      const rates: number[] = [];
      for (let pass = 0; pass < passes; pass += 1) {
        const blocksPerSecond = await onePass(client, pass);
        if (pass > 0) rates.push(blocksPerSecond); // the first pass warms up
      }
      return measurement(rates);
    } finally {
      client.close();
    }
  });
}

function measurement(rates: readonly number[]): Measurement {
  const value = median(rates);
  return {
    value,
    unit: "blocks/s",
    bar: BLOCKS_PER_SECOND_MIN,
    sense: "atLeast",
    reference: null,
    referenceValue: null,
    repetitions: rates.length,
    checks: [check("blocks visible", value, "blocks/s", "atLeast", BLOCKS_PER_SECOND_MIN)],
    detail: {
      payloadBytes: PAYLOAD_BYTES,
      batch: BATCH,
      callsInFlight: CALLS_IN_FLIGHT,
      blocksPerRepetition: BLOCKS,
      rates: rates.map((one) => significant(one)),
    },
  };
}

export const commit: Scenario = {
  name: "commit",
  summary: "64-byte blocks made visible by STOREs of 512 (blocks/s)",
  run,
};
