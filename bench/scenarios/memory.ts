/** memory: bytes the ledger holds, hash table and free lists included, per visible block (32-byte keys, one shard). */
import { check, type Measurement } from "../result.ts";
import type { Scenario, ScenarioOptions } from "../scenario.ts";
import { significant } from "../statistics.ts";
import { filledLedger } from "./lookup.ts";

const BYTES_PER_BLOCK_MAX = 128;
const SIZES = [1_000_000, 10_000_000] as const;

interface Sample {
  readonly visibleBlocks: number;
  readonly ledgerBytes: number;
  readonly bytesPerBlock: number;
  /** Growth of the process by the same fill, key buffers of the bench included: a cross-check from outside. */
  readonly residentGrowthPerBlock: number;
}

function measure(residentBlocks: number): Sample {
  const before = process.memoryUsage.rss();
  const filled = filledLedger(residentBlocks);
  const ledgerBytes = filled.ledger.bytes;
  const growth = process.memoryUsage.rss() - before;
  return {
    visibleBlocks: filled.visible,
    ledgerBytes,
    bytesPerBlock: significant(ledgerBytes / filled.visible),
    residentGrowthPerBlock: significant(growth / filled.visible),
  };
}

function run(options: ScenarioOptions): Promise<Measurement> {
  const sizes = options.residentBlocks === undefined ? SIZES : [options.residentBlocks];
  const samples = sizes.map(measure);
  const value = Math.max(...samples.map((sample) => sample.bytesPerBlock));
  return Promise.resolve({
    value,
    unit: "B/block",
    bar: BYTES_PER_BLOCK_MAX,
    sense: "atMost",
    reference: null,
    referenceValue: null,
    repetitions: 1,
    checks: samples.map((sample) =>
      check(
        `${sample.visibleBlocks} visible blocks`,
        sample.bytesPerBlock,
        "B/block",
        "atMost",
        BYTES_PER_BLOCK_MAX,
      ),
    ),
    detail: { samples },
  });
}

export const memory: Scenario = {
  name: "memory",
  summary: "ledger bytes per visible block, at 1 M and 10 M blocks",
  run,
};
