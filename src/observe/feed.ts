/**
 * The feed: counters, gauges and histograms of metrics.ts in one SharedArrayBuffer. The core writes it
 * with plain stores (no allocation, no message, no lock), the edge's worker thread reads it whenever it is
 * scraped, so that nothing an operator does can cost the look-up path more than a cache line.
 *
 * There is one writer thread. Cells are aligned 64-bit floats, which the supported platforms (x64, arm64)
 * store whole; a reader may see one cell a moment older than its neighbour, and a histogram's count is
 * always derived from its own buckets, so a scrape is never inconsistent with itself.
 *
 * Cells of a histogram: [sum, bucket 0 … bucket n], the last bucket being +Inf.
 */
import { assert } from "../assert.ts";
import { METRICS, type MetricName, type MetricRow } from "./metrics.ts";

/** Upper bounds in seconds, 1–2–5 from 1 µs to 20 s. Index i counts values ≤ bounds[i]. */
export const BUCKET_BOUNDS_SECONDS: readonly number[] = bucketBounds();
const BUCKETS = BUCKET_BOUNDS_SECONDS.length + 1;
const HISTOGRAM_CELLS = 1 + BUCKETS;
const bounds = Float64Array.from(BUCKET_BOUNDS_SECONDS);

function bucketBounds(): number[] {
  const out: number[] = [];
  for (let exponent = -6; exponent <= 1; exponent++) {
    for (const digit of [1, 2, 5]) {
      const bound = Number(`${digit}e${exponent}`);
      if (bound <= 20) out.push(bound);
    }
  }
  return out;
}

function cellsOf(row: MetricRow): number {
  const variants = row.values?.length ?? 1;
  return row.kind === "histogram" ? HISTOGRAM_CELLS * variants : variants;
}

function layout(): { readonly handles: Record<MetricName, number>; readonly cells: number } {
  const handles = {} as Record<MetricName, number>;
  let cells = 0;
  for (const name of Object.keys(METRICS) as MetricName[]) {
    handles[name] = cells;
    cells += cellsOf(METRICS[name]);
  }
  return { handles, cells };
}

const LAYOUT = layout();

/** Integer handle of each metric: the first cell of its row. Add a label's index to reach its variant. */
export const METRIC: Readonly<Record<MetricName, number>> = LAYOUT.handles;
export const FEED_CELLS = LAYOUT.cells;
export const FEED_BYTES = FEED_CELLS * 8;

/** Writer. Handles come from METRIC; none of the calls allocates. */
export class Feed {
  readonly buffer: SharedArrayBuffer;
  private readonly cells: Float64Array;

  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(FEED_BYTES)) {
    assert(buffer.byteLength === FEED_BYTES, "feed buffer has another layout");
    this.buffer = buffer;
    this.cells = new Float64Array(buffer);
  }

  /** Adds to a counter, or moves a gauge. */
  add(handle: number, amount: number): void {
    this.cells[handle]! += amount;
  }

  /** Adds to the variant of a labelled row: `index` is the position in its `values`. */
  addAt(handle: number, index: number, amount: number): void {
    this.cells[handle + index]! += amount;
  }

  /** Sets a gauge, or mirrors a counter that is kept elsewhere. */
  set(handle: number, value: number): void {
    this.cells[handle] = value;
  }

  setAt(handle: number, index: number, value: number): void {
    this.cells[handle + index] = value;
  }

  /** Records one duration in a histogram. */
  observe(handle: number, seconds: number): void {
    const cells = this.cells;
    cells[handle]! += seconds;
    cells[handle + 1 + bucketOf(seconds)]! += 1;
  }

  get(handle: number): number {
    return this.cells[handle]!;
  }
}

/** First bucket whose bound holds the value. */
function bucketOf(seconds: number): number {
  let low = 0;
  let high = BUCKETS - 1;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (seconds <= bounds[middle]!) high = middle;
    else low = middle + 1;
  }
  return low;
}

export interface HistogramReading {
  readonly count: number;
  readonly sumSeconds: number;
  /** Per bucket, not cumulative; the last is +Inf. */
  readonly buckets: readonly number[];
}

/** Reader for the edge and for tests. */
export class FeedReader {
  private readonly cells: Float64Array;

  constructor(buffer: SharedArrayBuffer) {
    assert(buffer.byteLength === FEED_BYTES, "feed buffer has another layout");
    this.cells = new Float64Array(buffer);
  }

  /** Value of a counter or gauge; `label` picks the variant, without it the sum of all variants. */
  value(name: MetricName, label?: string): number {
    const row: MetricRow = METRICS[name];
    assert(row.kind !== "histogram", "a histogram has no single value");
    const handle = METRIC[name];
    const values = row.values;
    if (values === undefined) return this.cells[handle]!;
    if (label !== undefined) {
      const index = values.indexOf(label);
      assert(index >= 0, "no such label value");
      return this.cells[handle + index]!;
    }
    let sum = 0;
    for (let index = 0; index < values.length; index++) sum += this.cells[handle + index]!;
    return sum;
  }

  histogram(name: MetricName): HistogramReading {
    assert(METRICS[name].kind === "histogram", "not a histogram");
    const handle = METRIC[name];
    const buckets = Array.from(this.cells.subarray(handle + 1, handle + HISTOGRAM_CELLS));
    const count = buckets.reduce((sum, bucket) => sum + bucket, 0);
    return { count, sumSeconds: this.cells[handle]!, buckets };
  }
}

/**
 * Quantile of a histogram in seconds, interpolated inside its bucket as Prometheus does; 0 when empty, the
 * largest bound when it falls into +Inf.
 */
export function quantile(reading: HistogramReading, q: number): number {
  assert(q >= 0 && q <= 1, "a quantile lies in [0, 1]");
  if (reading.count === 0) return 0;
  const rank = q * reading.count;
  let seen = 0;
  for (let index = 0; index < BUCKET_BOUNDS_SECONDS.length; index++) {
    const inside = reading.buckets[index]!;
    if (seen + inside >= rank && inside > 0) {
      const from = index === 0 ? 0 : BUCKET_BOUNDS_SECONDS[index - 1]!;
      return from + (BUCKET_BOUNDS_SECONDS[index]! - from) * ((rank - seen) / inside);
    }
    seen += inside;
  }
  return BUCKET_BOUNDS_SECONDS[BUCKET_BOUNDS_SECONDS.length - 1]!;
}
