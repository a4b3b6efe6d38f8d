/**
 * restart: kill -9 with a million blocks resident, then the time from exec to the first LOOKUP that finds its whole
 * chain. Header hashes are checked by then; afterwards every block is loaded, untimed, and compared.
 */
import type { BenchClient } from "../client.ts";
import { withDaemon } from "../daemon.ts";
import { chainKeys, KEY_WORDS } from "../ledger.ts";
import { Progress } from "../progress.ts";
import {
  BATCH,
  CHAIN_BLOCKS,
  type Loaded,
  loadChain,
  PAYLOAD_BYTES,
  RESIDENT_DEFAULT,
  restarted,
  SECONDS_MAX,
  storeBatch,
  withClient,
} from "../restarts.ts";
import { check, type Measurement } from "../result.ts";
import type { Scenario, ScenarioOptions } from "../scenario.ts";
import { median, significant } from "../statistics.ts";

const SLOT_BYTES = 512;

async function storeChain(client: BenchClient, words: Uint32Array): Promise<void> {
  for (let depth = 0; depth < CHAIN_BLOCKS; depth += BATCH) {
    await storeBatch(client, words, depth, BATCH);
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
      seconds.push(await restarted(daemon, words, CHAIN_BLOCKS));
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
