/**
 * restart-index: the index of a disk with ten million blocks, from the start of the process that reads it to a ledger
 * that knows every block. In this process and without segments, of which a restart reads nothing: ten million blocks
 * would take 40 GB. The index itself is written by the daemon's own writer, to the disk.
 */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { assert } from "../../src/assert.ts";
import type { Ledger } from "../../src/ledger/ledger.ts";
import { TIER } from "../../src/ledger/types.ts";
import {
  KEY_WORDS,
  PAGE_SLOTS,
  PAGES_PER_SEGMENT,
  PageWriter,
  PARENT,
} from "../../tiers/nvme/index-pages.ts";
import { IndexStore, type PageWrite } from "../../tiers/nvme/index-store.ts";
import { Marks } from "../../tiers/nvme/marks.ts";
import { startProbe } from "../../tiers/nvme/probe.ts";
import { type RecoveryDevice, recoverNvme } from "../../tiers/nvme/recover.ts";
import { diskParent } from "../disk.ts";
import { addChainedNamespace, bareLedger, chainKeys } from "../ledger.ts";
import { Progress } from "../progress.ts";
import { CHAIN_BLOCKS, PAYLOAD_BYTES } from "../restarts.ts";
import { check, type Measurement } from "../result.ts";
import type { Scenario, ScenarioOptions } from "../scenario.ts";
import { median, significant } from "../statistics.ts";

const RESIDENT_DEFAULT = 10_000_000;
const SECONDS_PER_MILLION_MAX = 1;
const SLOTS_PER_SEGMENT = 1 << 16;
const PAGES_PER_WRITE = 4_096;
const CHAIN_PAGES = CHAIN_BLOCKS / PAGE_SLOTS;

/** Key of the page of the index in which these slots of the directory stand, counted through all its segments. */
function pageKey(page: number): number {
  const pagesOfSegment = SLOTS_PER_SEGMENT / PAGE_SLOTS;
  return Math.floor(page / pagesOfSegment) * PAGES_PER_SEGMENT + (page % pagesOfSegment);
}

/** The page's blocks of the chain in `words`: stored in order, so each parent but the first stands before its child. */
function pageOf(
  writer: PageWriter,
  words: Uint32Array,
  chain: number,
  page: number,
  nowMs: number,
): PageWrite {
  const key = pageKey(chain * CHAIN_PAGES + page);
  writer.begin(key, PAYLOAD_BYTES);
  for (let position = 0; position < PAGE_SLOTS; position++) {
    const index = page * PAGE_SLOTS + position;
    const at = index * KEY_WORDS;
    const above = position === 0 ? PARENT.SPELLED : position - 1;
    const parent = index === 0 ? PARENT.NONE : above;
    const depth = index + 1;
    writer.add(position, 0, 0, depth, 1, nowMs, words, at, parent, at - KEY_WORDS);
  }
  return { key, bytes: writer.end() };
}

async function writeIndex(directory: string, chains: number): Promise<void> {
  const store = await IndexStore.open(directory);
  const writer = new PageWriter();
  const words = new Uint32Array(CHAIN_BLOCKS * KEY_WORDS);
  const nowMs = Date.now();
  let pages: PageWrite[] = [];
  for (let chain = 0; chain < chains; chain++) {
    chainKeys(words, chain, CHAIN_BLOCKS);
    for (let page = 0; page < CHAIN_PAGES; page++) {
      pages.push(pageOf(writer, words, chain, page, nowMs));
      if (pages.length < PAGES_PER_WRITE) continue;
      await store.write(pages, {});
      pages = [];
    }
  }
  await store.write(pages, {});
  await store.close();
}

/** What a device is to a recovery, without its disk: segment n is slab n. */
function bareDevice(segments: number): RecoveryDevice {
  const marks = new Marks();
  const list = Array.from({ length: segments }, (_none, segment) => {
    marks.addSlab(segment);
    return { segment, slab: segment, payloadBytes: PAYLOAD_BYTES };
  });
  const dropped = (keys: readonly number[]): void =>
    assert(keys.length === 0, "the index was written just now");
  return {
    disk: 0,
    rebuildNeeded: false,
    marks,
    segments: { list },
    rows: { list: [{}], indexOf: (row) => row },
    counters: { entriesDropped: 0, entriesHeld: 0 },
    held: { close: () => undefined },
    hold: () => false,
    dropPages: dropped,
    forgetPages: dropped,
    vacateRows: (used) => assert(used(0), "every entry names the one row"),
  };
}

interface Start {
  readonly readSeconds: number;
  readonly seconds: number;
  readonly recovered: number;
}

async function start(directory: string, blocks: number): Promise<Start> {
  const beganMs = performance.now();
  const probe = startProbe(directory);
  const verdict = await probe.verdict;
  assert(verdict.damage === undefined && verdict.found, "the index was written just now");
  const readSeconds = (performance.now() - beganMs) / 1_000;
  const ledger: Ledger = bareLedger({
    capacityBlocks: SLOTS_PER_SEGMENT,
    nvmeBlocks: blocks,
    highWatermark: 1,
    lowWatermark: 1,
    reserveBlocksMax: 0,
  });
  addChainedNamespace(ledger);
  const device = bareDevice(Math.ceil(blocks / SLOTS_PER_SEGMENT));
  const addon = { diskRestore: () => undefined };
  const { recovered } = await recoverNvme([device], [probe], addon, ledger, { found: () => {} });
  ledger.recoverEnd(Date.now());
  const seconds = (performance.now() - beganMs) / 1_000;
  assert(ledger.core.tier(TIER.NVME).blocks === recovered, "the ledger counts what it took back");
  return { readSeconds, seconds, recovered };
}

async function run(options: ScenarioOptions): Promise<Measurement> {
  const chains = Math.ceil((options.residentBlocks ?? RESIDENT_DEFAULT) / CHAIN_BLOCKS);
  const blocks = chains * CHAIN_BLOCKS;
  const parent = mkdtempSync(join(diskParent(), "cairn-bench-index-"));
  const directory = join(parent, "disk");
  mkdirSync(directory, { mode: 0o700 });
  try {
    await writeIndex(directory, chains);
    const progress = new Progress("restart-index", options.repetitions);
    const starts: Start[] = [];
    for (let repetition = 0; repetition < options.repetitions; repetition++) {
      starts.push(await start(directory, blocks));
      progress.update(repetition + 1);
    }
    progress.end();
    return measurement(starts, blocks);
  } finally {
    rmSync(parent, { recursive: true, force: true });
  }
}

function measurement(starts: readonly Start[], blocks: number): Measurement {
  const value = median(starts.map(({ seconds }) => seconds));
  const bar = (blocks / 1e6) * SECONDS_PER_MILLION_MAX;
  const missing = Math.max(...starts.map(({ recovered }) => blocks - recovered));
  return {
    value,
    unit: "s",
    bar,
    sense: "atMost",
    reference: null,
    referenceValue: null,
    repetitions: starts.length,
    checks: [
      check("index to ledger", value, "s", "atMost", bar),
      check("blocks not taken back", missing, "", "atMost", 0),
    ],
    detail: {
      blocks,
      seconds: starts.map(({ seconds }) => significant(seconds)),
      readSeconds: starts.map(({ readSeconds }) => significant(readSeconds)),
    },
  };
}

export const restartIndex: Scenario = {
  name: "restart-index",
  summary: "the index of a disk with 10 M blocks, read into a ledger (s)",
  run,
};
