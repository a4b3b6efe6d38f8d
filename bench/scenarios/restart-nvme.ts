/**
 * restart-nvme: a million blocks on a disk and a part of them in DRAM, then kill -9.
 *
 * Timed: exec to the first LOOKUP that finds its whole chain; the same with the index deleted, where serving means an
 * answer, a miss allowed, and the blocks come back in the background. Untimed, after both: every block that had been
 * acknowledged and synced is loaded and compared, and DRAM must hold again what it held.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { DISK_SECTOR_BYTES } from "../../addon/binding.ts";
import { assert } from "../../src/assert.ts";
import { type BenchDaemon, type DaemonOptions, withDaemon } from "../daemon.ts";
import { diskParent } from "../disk.ts";
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
  sleep,
  storeBatch,
  until,
  withClient,
} from "../restarts.ts";
import { check, type Measurement } from "../result.ts";
import type { Scenario, ScenarioOptions } from "../scenario.ts";
import { median, significant } from "../statistics.ts";

const MIB = 2 ** 20;
/** DRAM has room for this part of the blocks at 512 bytes each; its slots are smaller, and it holds twice as many. */
const DRAM_SHARE = 8;
const DRAM_SLOT_BYTES = 512;
const SEGMENT_BYTES = 256 * MIB;
/** Blocks that are stored, but not yet on the disk; more, and stores would push out what is not backed. */
const UNBACKED_MAX = 32_768;
const HOT_SHARE_MIN = 0.99;
const POLL_MS = 100;
const SETTLE_MS = 1_500;

class Bench {
  readonly #daemon: BenchDaemon;
  readonly #chains: number;
  readonly #words = new Uint32Array(CHAIN_BLOCKS * KEY_WORDS);
  readonly #indexPath: string;

  constructor(daemon: BenchDaemon, chains: number, diskPath: string) {
    this.#daemon = daemon;
    this.#chains = chains;
    this.#indexPath = join(diskPath, "index");
  }

  get resident(): number {
    return this.#chains * CHAIN_BLOCKS;
  }

  #chain(chain: number): Uint32Array {
    chainKeys(this.#words, chain, CHAIN_BLOCKS);
    return this.#words;
  }

  /** Stores all chains no faster than the disk takes them, and waits until every block is synced and indexed. */
  async fill(): Promise<void> {
    const daemon = this.#daemon;
    let stored = 0;
    await withClient(daemon, async (client) => {
      for (let chain = 0; chain < this.#chains; chain++) {
        const words = this.#chain(chain);
        for (let depth = 0; depth < CHAIN_BLOCKS; depth += BATCH) {
          await storeBatch(client, words, depth, BATCH);
          stored += BATCH;
          await until("the disk keeps up", POLL_MS, async () => {
            return stored - (await daemon.metric("writtenBackBlocks")) <= UNBACKED_MAX;
          });
        }
      }
    });
    await until("every block is on the disk", POLL_MS, async () => {
      return (await daemon.metric("writtenBackBlocks")) >= stored;
    });
    assert((await daemon.metric("evictedUnbacked")) === 0, "no block left before it was copied");
  }

  /** Loads every block of every chain and compares it. */
  async loadAll(): Promise<Loaded> {
    const total: Loaded = { wrong: 0, missing: 0 };
    await withClient(this.#daemon, async (client) => {
      for (let chain = 0; chain < this.#chains; chain++)
        await loadChain(client, this.#chain(chain), total);
    });
    return total;
  }

  async killed(repetition: number): Promise<number> {
    // A daemon that dies again and again before its first commit mistrusts its index (limits.ts).
    await sleep(SETTLE_MS);
    await this.#daemon.kill();
    return restarted(this.#daemon, this.#chain(repetition % this.#chains), CHAIN_BLOCKS);
  }

  /** Seconds to the first answer without an index, and until every chain is found whole again. */
  async rebuilt(): Promise<{ readonly servingSeconds: number; readonly rebuildSeconds: number }> {
    const daemon = this.#daemon;
    await daemon.kill();
    rmSync(this.#indexPath, { recursive: true });
    const startMs = performance.now();
    const servingSeconds = await restarted(daemon, this.#chain(0), 0);
    await withClient(daemon, async (client) => {
      for (let chain = 0; chain < this.#chains; chain++) {
        const words = this.#chain(chain);
        await until("the chain is found again", POLL_MS, async () => {
          const { hit } = await client.lookup(1, words, CHAIN_BLOCKS);
          client.endRequest(1);
          return hit === CHAIN_BLOCKS;
        });
      }
    });
    return { servingSeconds, rebuildSeconds: (performance.now() - startMs) / 1_000 };
  }
}

interface Outcome {
  readonly resident: number;
  readonly seconds: readonly number[];
  readonly afterKill: Loaded;
  readonly afterRebuild: Loaded;
  readonly servingSeconds: number;
  readonly rebuildSeconds: number;
  readonly hotShare: number;
}

async function measure(daemon: BenchDaemon, bench: Bench, repetitions: number): Promise<Outcome> {
  const progress = new Progress("restart-nvme", repetitions + 1);
  await bench.fill();
  // Gauges are a quarter of a second old, and what was backed just now may still be on its way out of DRAM.
  await sleep(SETTLE_MS);
  const hotBefore = await daemon.metric("tierVisibleBlocks", "dram");
  const seconds: number[] = [];
  for (let repetition = 0; repetition < repetitions; repetition++) {
    seconds.push(await bench.killed(repetition));
    progress.update(repetition + 1);
  }
  // The gauges of the first quarter second are those of the start.
  await daemon.ready();
  await sleep(1_000);
  const hotShare = (await daemon.metric("tierVisibleBlocks", "dram")) / hotBefore;
  const afterKill = await bench.loadAll();
  const { servingSeconds, rebuildSeconds } = await bench.rebuilt();
  const afterRebuild = await bench.loadAll();
  progress.end();
  const { resident } = bench;
  return { resident, seconds, afterKill, afterRebuild, servingSeconds, rebuildSeconds, hotShare };
}

function measurement(outcome: Outcome): Measurement {
  const { seconds, afterKill, afterRebuild, servingSeconds, rebuildSeconds, hotShare } = outcome;
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
      check("wrong blocks after kill -9", afterKill.wrong, "", "atMost", 0),
      check("missing blocks after kill -9", afterKill.missing, "", "atMost", 0),
      check("hot set of DRAM that came back", hotShare, "", "atLeast", HOT_SHARE_MIN),
      check("exec to serving without an index", servingSeconds, "s", "atMost", SECONDS_MAX),
      check("wrong blocks after the rebuild", afterRebuild.wrong, "", "atMost", 0),
      check("missing blocks after the rebuild", afterRebuild.missing, "", "atMost", 0),
    ],
    detail: {
      residentBlocks: outcome.resident,
      payloadBytes: PAYLOAD_BYTES,
      seconds: seconds.map((one) => significant(one)),
      rebuildSeconds: significant(rebuildSeconds),
    },
  };
}

async function run(options: ScenarioOptions): Promise<Measurement> {
  const chains = Math.ceil((options.residentBlocks ?? RESIDENT_DEFAULT) / CHAIN_BLOCKS);
  const resident = chains * CHAIN_BLOCKS;
  const path = join(mkdtempSync(join(diskParent(), "cairn-bench-restart-")), "disk");
  // One sector a slot, a header a segment, the index, and room that eviction never needs.
  const capacityBytes =
    Math.ceil((resident * DISK_SECTOR_BYTES * 1.2) / SEGMENT_BYTES + 2) * SEGMENT_BYTES;
  const disk = { path, capacityBytes, segmentBytes: SEGMENT_BYTES, writeThrough: true };
  const slabBytes = 8 * MIB;
  const dramBytes = Math.ceil(resident / DRAM_SHARE) * DRAM_SLOT_BYTES;
  const settings: DaemonOptions = {
    capacityBytes: Math.max(4 * slabBytes, dramBytes),
    slabBytes,
    ledgerBlocksMax: resident + 2 * CHAIN_BLOCKS,
    disk,
  };
  try {
    return await withDaemon(settings, async (daemon) =>
      measurement(await measure(daemon, new Bench(daemon, chains, path), options.repetitions)),
    );
  } finally {
    rmSync(join(path, ".."), { recursive: true, force: true });
  }
}

export const restartNvme: Scenario = {
  name: "restart-nvme",
  summary: "kill -9 with 1 M blocks on a disk to the first look-up (s)",
  run,
};
