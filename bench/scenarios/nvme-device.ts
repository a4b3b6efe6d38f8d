/**
 * nvme-read and nvme-write: how near the NVMe tier's data path comes to what the device gives anybody.
 *
 * Blocks of 2 MiB lie in the slots of one segment file. A pass moves every slot once, in random order, with headers,
 * identity and checksum as in the daemon. Before each pass fio does the same over the same file: one job, same length
 * of an operation, same depth, O_DIRECT. The figure is the median over pairs of our speed by fio's.
 */
import { monitorEventLoopDelay } from "node:perf_hooks";
import { DISK_SECTOR_BYTES } from "../../addon/binding.ts";
import { LIMITS } from "../../src/limits.ts";
import { type DiskPass, DiskRig } from "../disk.ts";
import { type FioResult, fioPass, fioVersion } from "../fio.ts";
import { Progress } from "../progress.ts";
import { check, type Measurement } from "../result.ts";
import type { Scenario, ScenarioOptions } from "../scenario.ts";
import { median, significant } from "../statistics.ts";

const MIB = 2 ** 20;
const BLOCK_BYTES = 2 * MIB;
/** Blocks in the arena: larger than the CPU's caches, small beside the segment. */
const BLOCKS = 128;
const SLOTS_DEFAULT = 1_024;
const READ_RATIO_MIN = 0.95;
const WRITE_RATIO_MIN = 0.9;
const STALL_MS_MAX = 5;

interface Pair {
  readonly ours: DiskPass;
  readonly cpuSecondsPerGB: number;
  readonly fio: FioResult;
  readonly stallMs: number;
}

interface Run {
  readonly pairs: readonly Pair[];
  readonly wrong: number;
  readonly bytes: number;
  readonly detail: Readonly<Record<string, unknown>>;
}

/** Runs one pass and tells its CPU and the longest time the event loop was kept from its turn. */
async function watched(pass: () => Promise<DiskPass>, gigabytes: number) {
  const resolution = 1;
  const delay = monitorEventLoopDelay({ resolution });
  const before = process.cpuUsage();
  delay.enable();
  const ours = await pass();
  delay.disable();
  const { user, system } = process.cpuUsage(before);
  const stallMs = Math.max(0, delay.max / 1e6 - resolution);
  return { ours, cpuSecondsPerGB: (user + system) / 1e6 / gigabytes, stallMs };
}

async function measure(write: boolean, slots: number, repetitions: number): Promise<Run> {
  const version = await fioVersion();
  const depths = { queueDepth: LIMITS.diskQueueDepth, writeDepth: LIMITS.diskWriteDepth };
  const rig = new DiskRig({ blockBytes: BLOCK_BYTES, blocks: BLOCKS, slots, ...depths });
  const progress = new Progress(write ? "nvme-write" : "nvme-read", repetitions);
  try {
    await rig.open();
    const depth = write ? depths.writeDepth : depths.queueDepth;
    const bytes = slots * rig.slotBytes;
    const file = { file: rig.segmentFile, offsetBytes: DISK_SECTOR_BYTES, blocks: slots };
    const shape = { blockBytes: rig.slotBytes, depth, write, direct: rig.info.direct };
    const pass = (seed: number): Promise<DiskPass> =>
      write ? rig.write(rig.order(seed)) : rig.read(rig.order(seed));
    await pass(1); // a warm-up that is thrown away
    const pairs: Pair[] = [];
    for (let repetition = 0; repetition < repetitions; repetition++) {
      const seed = repetition + 2;
      const fio = await fioPass({ ...file, ...shape, seed });
      pairs.push({ fio, ...(await watched(() => pass(seed), bytes / 1e9)) });
      progress.update(repetition + 1);
    }
    const { registeredBuffers } = rig;
    const { mode, direct } = rig.info;
    const detail = { fio: version, depth, mode, direct, registeredBuffers, slots };
    return { pairs, wrong: await rig.wrong(), bytes, detail };
  } finally {
    progress.end();
    rig.close();
  }
}

function measurement({ pairs, wrong, bytes, detail }: Run, ratioMin: number): Measurement {
  const middle = (figure: (pair: Pair) => number): number => median(pairs.map(figure));
  const value = middle(({ ours }) => ours.GBps);
  const ratio = middle(({ ours, fio }) => ours.GBps / fio.GBps);
  const stallMs = Math.max(...pairs.map((pair) => pair.stallMs));
  const failed = pairs.reduce((sum, { ours }) => sum + ours.failed, 0);
  return {
    value,
    unit: "GB/s",
    bar: ratioMin,
    sense: "atLeast",
    reference: "fio, 1 job, same file, block size and depth, O_DIRECT",
    referenceValue: middle(({ fio }) => fio.GBps),
    repetitions: pairs.length,
    checks: [
      check("ours ÷ fio, median of pairs", ratio, "", "atLeast", ratioMin),
      check("longest stall of the event loop", stallMs, "ms", "atMost", STALL_MS_MAX),
      check("blocks failed or wrong", failed + wrong, "", "atMost", 0),
    ],
    detail: {
      ...detail,
      blockBytes: BLOCK_BYTES,
      passBytes: bytes,
      checksum: "xxh3-128",
      cpuSecondsPerGB: significant(middle((pair) => pair.cpuSecondsPerGB)),
      fioCpuSecondsPerGB: significant(middle(({ fio }) => fio.cpuSeconds / (bytes / 1e9))),
      pairs: pairs.map(({ ours, fio }) => [significant(ours.GBps), significant(fio.GBps)]),
    },
  };
}

async function run(write: boolean, options: ScenarioOptions): Promise<Measurement> {
  const slots = options.residentBlocks ?? SLOTS_DEFAULT;
  const ratioMin = write ? WRITE_RATIO_MIN : READ_RATIO_MIN;
  return measurement(await measure(write, slots, options.repetitions), ratioMin);
}

export const nvmeRead: Scenario = {
  name: "nvme-read",
  summary: "reads of 2 MiB blocks from a disk against fio (GB/s)",
  run: (options) => run(false, options),
};

export const nvmeWrite: Scenario = {
  name: "nvme-write",
  summary: "writes of 2 MiB blocks to a disk against fio (GB/s)",
  run: (options) => run(true, options),
};
