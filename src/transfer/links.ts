/**
 * What each way between two tiers takes: time = latency + bytes / bandwidth, fitted to the batches that went
 * over it. A batch that was queued behind others is charged only what passed since the one before it ended,
 * so that a full queue does not look like a slow device. The fit forgets (a device that is throttled shows
 * within some dozen batches), and answers without allocating, because LOOKUP asks it for every hit.
 */
import { assert } from "../assert.ts";
import { type Feed, METRIC } from "../observe/feed.ts";

/** What an estimate starts from until the link has carried something. */
export interface LinkPrior {
  readonly latencyMicroseconds: number;
  readonly bytesPerMicrosecond: number;
}

/** Weight that an old sample keeps when a new one comes in. */
const KEEP = 31 / 32;
/** Batches until the prior gives way to what was measured. */
const BATCHES_MIN = 4;
/** By this length links are compared. */
const COMPARED_BYTES = 2 ** 23;
/** Smaller batches say nothing about bandwidth. */
const BYTES_MIN = 4_096;
/** Quantiles: buckets of a quarter octave from 1 µs to 2^26 µs; halved at this many samples. */
const BUCKETS_PER_OCTAVE = 4;
const BUCKETS = 26 * BUCKETS_PER_OCTAVE;
const BUCKET_SAMPLES_MAX = 4_096;
/** Time constant of the recent rate. */
const RATE_MS = 10_000;

/** Plain data for the snapshot. */
export interface LinkReading {
  readonly link: string;
  readonly bytes: number;
  readonly batches: number;
  readonly latencyMicroseconds: number;
  readonly bytesPerSecond: number;
  /** What went over it lately, not what it could carry. */
  readonly recentBytesPerSecond: number;
  readonly p50Microseconds: number;
  readonly p99Microseconds: number;
}

export class Link {
  readonly name: string;
  bytes = 0;
  batches = 0;
  latencyMicroseconds: number;
  bytesPerMicrosecond: number;
  readonly #now: () => number;
  /** Decayed sums of weight, bytes, microseconds and their products. */
  #weight = 0;
  #sumBytes = 0;
  #sumTime = 0;
  #sumBytesBytes = 0;
  #sumBytesTime = 0;
  readonly #buckets = new Uint32Array(BUCKETS);
  #bucketSamples = 0;
  #lastEnd = Number.NEGATIVE_INFINITY;
  #rate = 0;
  #rateAt: number;

  /** now: monotonic milliseconds. */
  constructor(name: string, prior: LinkPrior, now: () => number) {
    assert(prior.bytesPerMicrosecond > 0, "a link carries something");
    this.name = name;
    this.#now = now;
    this.#rateAt = now();
    this.latencyMicroseconds = prior.latencyMicroseconds;
    this.bytesPerMicrosecond = prior.bytesPerMicrosecond;
  }

  /** Microseconds that this many bytes would take now. */
  microsecondsFor(bytes: number): number {
    return bytes === 0 ? 0 : this.latencyMicroseconds + bytes / this.bytesPerMicrosecond;
  }

  /** A batch of `bytes` that was submitted at `submittedAt` (monotonic milliseconds) has ended. */
  ended(bytes: number, submittedAt: number): void {
    const now = this.#now();
    const from = Math.max(submittedAt, this.#lastEnd);
    this.#lastEnd = now;
    if (bytes < BYTES_MIN) return;
    this.bytes += bytes;
    this.batches++;
    this.#count(Math.max(1, (now - submittedAt) * 1_000));
    this.#decayRate(now);
    this.#rate += bytes / (RATE_MS / 1_000);
    this.#forget();
    this.#learn(bytes, Math.max(1, (now - from) * 1_000));
    if (this.batches >= BATCHES_MIN) this.#fit();
  }

  get recentBytesPerSecond(): number {
    this.#decayRate(this.#now());
    return this.#rate;
  }

  /** Microseconds from submit to end that this share of recent batches stayed below; 0 without any. */
  quantile(share: number): number {
    assert(share >= 0 && share <= 1, "a quantile lies in [0, 1]");
    let left = share * this.#bucketSamples;
    if (this.#bucketSamples === 0) return 0;
    for (let index = 0; index < BUCKETS; index++) {
      left -= this.#buckets[index]!;
      if (left <= 0) return 2 ** ((index + 1) / BUCKETS_PER_OCTAVE);
    }
    return 2 ** (BUCKETS / BUCKETS_PER_OCTAVE);
  }

  reading(): LinkReading {
    return {
      link: this.name,
      bytes: this.bytes,
      batches: this.batches,
      latencyMicroseconds: this.latencyMicroseconds,
      bytesPerSecond: this.bytesPerMicrosecond * 1e6,
      recentBytesPerSecond: this.recentBytesPerSecond,
      p50Microseconds: this.quantile(0.5),
      p99Microseconds: this.quantile(0.99),
    };
  }

  #learn(bytes: number, microseconds: number): void {
    this.#weight += 1;
    this.#sumBytes += bytes;
    this.#sumTime += microseconds;
    this.#sumBytesBytes += bytes * bytes;
    this.#sumBytesTime += bytes * microseconds;
  }

  #forget(): void {
    this.#weight *= KEEP;
    this.#sumBytes *= KEEP;
    this.#sumTime *= KEEP;
    this.#sumBytesBytes *= KEEP;
    this.#sumBytesTime *= KEEP;
  }

  /** Least squares; where all batches are of one length, or the line would be absurd, all of it is bandwidth. */
  #fit(): void {
    const meanBytes = this.#sumBytes / this.#weight;
    const meanTime = this.#sumTime / this.#weight;
    const variance = this.#sumBytesBytes / this.#weight - meanBytes * meanBytes;
    const covariance = this.#sumBytesTime / this.#weight - meanBytes * meanTime;
    const slope = variance > (meanBytes / 8) ** 2 ? covariance / variance : 0;
    const latency = meanTime - slope * meanBytes;
    if (slope > 0 && latency >= 0) {
      this.bytesPerMicrosecond = 1 / slope;
      this.latencyMicroseconds = latency;
    } else {
      this.bytesPerMicrosecond = meanBytes / Math.max(1, meanTime);
      this.latencyMicroseconds = 0;
    }
    assert(this.bytesPerMicrosecond > 0, "a link that carried bytes has a bandwidth");
  }

  #count(microseconds: number): void {
    const index = Math.floor(Math.log2(microseconds) * BUCKETS_PER_OCTAVE);
    this.#buckets[Math.min(BUCKETS - 1, Math.max(0, index))]!++;
    this.#bucketSamples++;
    if (this.#bucketSamples < BUCKET_SAMPLES_MAX) return;
    this.#bucketSamples = 0;
    for (let at = 0; at < BUCKETS; at++) {
      this.#buckets[at] = this.#buckets[at]! >>> 1;
      this.#bucketSamples += this.#buckets[at]!;
    }
  }

  #decayRate(now: number): void {
    this.#rate *= Math.exp((this.#rateAt - now) / RATE_MS);
    this.#rateAt = now;
  }
}

const PRIORS = {
  memory: { latencyMicroseconds: 50, bytesPerMicrosecond: 5_000 },
  diskRead: { latencyMicroseconds: 200, bytesPerMicrosecond: 2_000 },
  diskWrite: { latencyMicroseconds: 200, bytesPerMicrosecond: 1_000 },
  remote: { latencyMicroseconds: 20_000, bytesPerMicrosecond: 200 },
} as const satisfies Record<string, LinkPrior>;

/** In the order of observe/metrics.ts's LINK_LABELS: one figure for all disks, the slowest read. */
export const LINK = {
  DRAM_TO_WINDOW: 0,
  NVME_TO_WINDOW: 1,
  DRAM_TO_NVME: 2,
  REMOTE_TO_DRAM: 3,
  DRAM_TO_REMOTE: 4,
} as const;

/** All links of the node. Disks are those of the addon, numbered from 0 or 1 and few. */
export class Links {
  readonly dramToWindow: Link;
  readonly remoteToDram: Link;
  readonly dramToRemote: Link;
  readonly #now: () => number;
  readonly #reads: (Link | undefined)[] = [];
  readonly #writes: (Link | undefined)[] = [];
  /** The read link with the least bandwidth of those that carried something: what LOOKUP reckons with. */
  #slowest: Link;

  constructor(now: () => number) {
    this.#now = now;
    this.dramToWindow = new Link("dram_to_window", PRIORS.memory, now);
    this.remoteToDram = new Link("remote_to_dram", PRIORS.remote, now);
    this.dramToRemote = new Link("dram_to_remote", PRIORS.remote, now);
    this.#slowest = new Link("nvme_to_window", PRIORS.diskRead, now);
  }

  /** nvme:<disk> → window or DRAM. */
  read(disk: number): Link {
    return (this.#reads[disk] ??= new Link(`nvme${disk}_to_window`, PRIORS.diskRead, this.#now));
  }

  /** DRAM → nvme:<disk>. */
  write(disk: number): Link {
    return (this.#writes[disk] ??= new Link(`dram_to_nvme${disk}`, PRIORS.diskWrite, this.#now));
  }

  /** A read batch of this disk ended. */
  readEnded(disk: number, bytes: number, submittedAt: number): void {
    const link = this.read(disk);
    link.ended(bytes, submittedAt);
    if (this.#slowest.batches === 0) this.#slowest = link;
    for (const other of this.#reads) {
      if (other === undefined || other.batches === 0) continue;
      const microseconds = this.#slowest.microsecondsFor(COMPARED_BYTES);
      if (other.microsecondsFor(COMPARED_BYTES) > microseconds) this.#slowest = other;
    }
  }

  /** What a chain on NVMe is reckoned with: the slowest device, for LOOKUP does not know which one it is. */
  get nvmeToWindow(): Link {
    return this.#slowest;
  }

  /** Estimates for the metrics, by LINK; writes are those of the disk that is written slowest. */
  publish(feed: Feed): void {
    let write: Link | undefined;
    for (const link of this.#writes) {
      if (link === undefined || link.batches === 0) continue;
      const slower =
        write === undefined ||
        link.microsecondsFor(COMPARED_BYTES) > write.microsecondsFor(COMPARED_BYTES);
      if (slower) write = link;
    }
    const links = [this.dramToWindow, this.#slowest, write, this.remoteToDram, this.dramToRemote];
    for (const [index, link] of links.entries()) {
      if (link === undefined || link.batches === 0) continue;
      feed.setAt(METRIC.linkBytesPerSecond, index, link.bytesPerMicrosecond * 1e6);
      feed.setAt(METRIC.linkLatencySeconds, index, link.latencyMicroseconds / 1e6);
    }
  }

  readings(): LinkReading[] {
    const fixed = [this.dramToWindow, this.remoteToDram, this.dramToRemote];
    const disks = [...this.#reads, ...this.#writes].filter((link) => link !== undefined);
    return [...fixed, ...disks].map((link) => link.reading());
  }
}
