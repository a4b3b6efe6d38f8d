/**
 * lookup and lookup-walk: what one request costs the ledger, in process.
 *
 * lookup: the longest prefix of 32,768 keys, its per-tier split, a touch and a lease. Each sample asks for another
 * chain, cut at a random depth and continued with keys that nobody stored, so that neither the bisection's path nor
 * the record table stays in cache. The linear walk of the same keys is printed beside it.
 *
 * lookup-walk: the linear walk over a fully resident chain, per block: the figure that index-per-block rivals publish.
 *
 * Both run for at least ten seconds while the garbage collector's pauses are recorded.
 */
import { assert } from "../../src/assert.ts";
import type { Ledger } from "../../src/ledger/ledger.ts";
import {
  addChainedNamespace,
  bareLedger,
  chainKeys,
  fillChains,
  KEY_WORDS,
  XorShift,
} from "../ledger.ts";
import { type GcPauses, GcWatch, nextTurn, settleHeap } from "../processes.ts";
import { Progress } from "../progress.ts";
import { check, type Measurement } from "../result.ts";
import type { Scenario, ScenarioOptions } from "../scenario.ts";
import { median, percentile, significant, summarize } from "../statistics.ts";

export const CHAIN_BLOCKS = 32_768;
const RESIDENT_DEFAULT = 1_000_000;
const RESIDENT_SECOND_BAR = 10_000_000;
const SECONDS_MIN = 10;
const GC_PAUSE_MS_MAX = 2;
const SAMPLES_PER_TURN = 16;
const SAMPLES_MAX = 1 << 20;

export interface Filled {
  readonly ledger: Ledger;
  readonly namespace: number;
  readonly chains: number;
  readonly visible: number;
}

/** A ledger with `residentBlocks` visible, in chains of CHAIN_BLOCKS, rounded up to whole chains. */
export function filledLedger(residentBlocks: number): Filled {
  assert(residentBlocks >= CHAIN_BLOCKS, "at least one chain is resident");
  const chains = Math.ceil(residentBlocks / CHAIN_BLOCKS);
  const ledger = bareLedger({
    capacityBlocks: chains * CHAIN_BLOCKS,
    highWatermark: 1,
    lowWatermark: 1,
    reserveBlocksMax: 512,
  });
  const namespace = addChainedNamespace(ledger);
  const progress = new Progress("fill", CHAIN_BLOCKS / 512);
  const visible = fillChains(ledger, namespace, chains, CHAIN_BLOCKS, (segment) =>
    progress.update(segment + 1),
  );
  progress.end();
  assert(visible === chains * CHAIN_BLOCKS, "every block stored is visible");
  return { ledger, namespace, chains, visible };
}

/** Samples kept without making garbage: what the collector does here must be the ledger's doing. */
class SampleBuffer {
  readonly #values = new Float64Array(SAMPLES_MAX);
  #length = 0;

  add(value: number): void {
    if (this.#length === this.#values.length) return;
    this.#values[this.#length] = value;
    this.#length += 1;
  }

  get length(): number {
    return this.#length;
  }

  since(from: number): Float64Array {
    return this.#values.subarray(from, this.#length);
  }
}

interface Samples {
  readonly requestMicroseconds: SampleBuffer;
  readonly walkMicroseconds: SampleBuffer;
  probes: number;
}

/** Draws a chain and a depth, and writes the keys of a request that matches to that depth. */
function drawRequest(filled: Filled, random: XorShift, words: Uint32Array): number {
  const depth = 1 + (random.next() % CHAIN_BLOCKS);
  chainKeys(words, random.next() % filled.chains, CHAIN_BLOCKS);
  for (let word = depth * KEY_WORDS; word < words.length; word += 1) {
    words[word] = ((words[word] as number) ^ 0x5a5a_5a5a) >>> 0;
  }
  return depth;
}

function oneRequest(
  filled: Filled,
  lease: number,
  words: Uint32Array,
  expected: number,
  samples: Samples,
): void {
  const { ledger, namespace } = filled;
  const startMs = performance.now();
  const result = ledger.lookup(namespace, words, 0, CHAIN_BLOCKS);
  const { depth, probes } = result;
  ledger.touch(result.block);
  ledger.leaseOpen(lease, 1, result.block);
  samples.requestMicroseconds.add((performance.now() - startMs) * 1_000);
  samples.probes += probes;
  assert(depth === expected, "the look-up finds the prefix that was stored");
  ledger.leaseClose(lease);
}

async function runLookup(options: ScenarioOptions): Promise<Measurement> {
  const resident = options.residentBlocks ?? RESIDENT_DEFAULT;
  const filled = filledLedger(resident);
  const words = new Uint32Array(CHAIN_BLOCKS * KEY_WORDS);
  const random = new XorShift(7);
  const medians: number[] = [];
  const samples: Samples = {
    requestMicroseconds: new SampleBuffer(),
    walkMicroseconds: new SampleBuffer(),
    probes: 0,
  };
  await settleHeap();
  const watch = new GcWatch();
  let lease = 0;
  for (let repetition = 0; repetition < options.repetitions; repetition += 1) {
    const from = samples.requestMicroseconds.length;
    const endMs = performance.now() + (SECONDS_MIN * 1_000) / options.repetitions;
    while (performance.now() < endMs) {
      for (let sample = 0; sample < SAMPLES_PER_TURN; sample += 1) {
        const depth = drawRequest(filled, random, words);
        lease += 1;
        oneRequest(filled, lease, words, depth, samples);
      }
      samples.walkMicroseconds.add(walkMicroseconds(filled, words));
      await nextTurn();
    }
    medians.push(median(samples.requestMicroseconds.since(from)));
  }
  await nextTurn();
  const gc = watch.end();
  filled.ledger.audit();
  return lookupMeasurement(filled, medians, samples, gc, options.repetitions);
}

function walkMicroseconds(filled: Filled, words: Uint32Array): number {
  const startMs = performance.now();
  const { depth } = filled.ledger.lookupLinear(filled.namespace, words, 0, CHAIN_BLOCKS);
  const elapsed = (performance.now() - startMs) * 1_000;
  assert(depth >= 1, "the walk finds the prefix");
  return elapsed;
}

function lookupMeasurement(
  filled: Filled,
  medians: readonly number[],
  all: Samples,
  gc: GcPauses,
  repetitions: number,
): Measurement {
  const bar = filled.visible >= RESIDENT_SECOND_BAR ? 50 : 25;
  const value = median(medians);
  return {
    value,
    unit: "µs",
    bar,
    sense: "atMost",
    reference: null,
    referenceValue: null,
    repetitions,
    checks: [
      check("request of 32,768 keys, median", value, "µs", "atMost", bar),
      check("longest GC pause", gc.longestMs, "ms", "atMost", GC_PAUSE_MS_MAX),
    ],
    detail: {
      residentBlocks: filled.visible,
      keys: CHAIN_BLOCKS,
      medians: medians.map((one) => significant(one)),
      samples: all.requestMicroseconds.length,
      p99Microseconds: significant(percentile(all.requestMicroseconds.since(0), 0.99)),
      probesMean: significant(all.probes / all.requestMicroseconds.length),
      linearWalkMicroseconds: significant(median(all.walkMicroseconds.since(0))),
      gc,
    },
  };
}

async function runWalk(options: ScenarioOptions): Promise<Measurement> {
  const filled = filledLedger(options.residentBlocks ?? RESIDENT_DEFAULT);
  const words = new Uint32Array(CHAIN_BLOCKS * KEY_WORDS);
  const random = new XorShift(11);
  const perBlock = new SampleBuffer();
  const medians: number[] = [];
  await settleHeap();
  const watch = new GcWatch();
  for (let repetition = 0; repetition < options.repetitions; repetition += 1) {
    const from = perBlock.length;
    const endMs = performance.now() + (SECONDS_MIN * 1_000) / options.repetitions;
    while (performance.now() < endMs) {
      chainKeys(words, random.next() % filled.chains, CHAIN_BLOCKS);
      const startMs = performance.now();
      const { depth } = filled.ledger.lookupLinear(filled.namespace, words, 0, CHAIN_BLOCKS);
      perBlock.add(((performance.now() - startMs) * 1e6) / CHAIN_BLOCKS);
      assert(depth === CHAIN_BLOCKS, "the whole chain is resident");
      await nextTurn();
    }
    medians.push(median(perBlock.since(from)));
  }
  await nextTurn();
  const gc = watch.end();
  const bar = filled.visible >= RESIDENT_SECOND_BAR ? 110 : 60;
  const value = median(medians);
  return {
    value,
    unit: "ns/block",
    bar,
    sense: "atMost",
    reference: null,
    referenceValue: null,
    repetitions: options.repetitions,
    checks: [
      check("linear walk per block, median", value, "ns", "atMost", bar),
      check("longest GC pause", gc.longestMs, "ms", "atMost", GC_PAUSE_MS_MAX),
    ],
    detail: {
      residentBlocks: filled.visible,
      medians: medians.map((one) => significant(one)),
      spread: summarize(perBlock.since(0)),
      gc,
    },
  };
}

export const lookup: Scenario = {
  name: "lookup",
  summary: "longest prefix + per-tier split + lease for 32,768 keys, in process (µs)",
  run: runLookup,
};

export const lookupWalk: Scenario = {
  name: "lookup-walk",
  summary: "linear walk over resident keys, in process (ns per block)",
  run: runWalk,
};
