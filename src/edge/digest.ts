/**
 * The feed boiled down for people: totals since start, and rates, hit rate and latency quantiles of the
 * last seconds. One digest a second is kept, so that a page that opens shows the last two minutes at once.
 */
import { type FeedReader, type HistogramReading, quantile } from "../observe/feed.ts";
import type { MetricName } from "../observe/metrics.ts";
import { TIER_LABELS } from "../observe/metrics.ts";
import { HEALTH_LABELS } from "../observe/metrics-lower.ts";

/** Digests kept: two minutes at one a second. */
export const HISTORY_MAX = 120;
/** Rates and quantiles look back this many digests. */
const WINDOW = 10;

const TOTALS = [
  "lookups",
  "lookupBlocksRequested",
  "lookupBlocksHit",
  "loads",
  "loadedBytes",
  "stores",
  "storedBlocks",
  "storedBytes",
  "evictions",
  "corruptBlocks",
  "identityFailures",
  "proofFailures",
  "leasesExpired",
  "deadlineMisses",
  "fillTimeouts",
  "fullRefusals",
  "chainMismatches",
  "recoveredBlocks",
  "injectedFaults",
  "writtenBackBlocks",
  "writtenBackBytes",
  "writeBackRefusals",
  "evictedUnbacked",
  "promotedBlocks",
  "passThroughBlocks",
  "nvmeIoErrors",
  "nvmeSyncFailures",
  "scrubFailures",
  "remoteFetchedBlocks",
  "remoteReceivedBytes",
  "remoteSentBytes",
  "remoteCorruptBlocks",
  "remoteCorruptObjects",
  "remoteMisplacedObjects",
  "remoteLeftOut",
] as const satisfies readonly MetricName[];

const GAUGES = [
  "ready",
  "instances",
  "connections",
  "leases",
  "pinnedBytes",
  "regions",
  "jobs",
  "orphans",
  "holes",
  "namespaces",
  "namespacesUnproven",
  "ledgerBlocks",
  "ledgerBlocksMax",
  "residentBytes",
  "nvmeLeftOut",
] as const satisfies readonly MetricName[];

const LATENCIES = [
  "lookupSeconds",
  "loadSeconds",
  "storeSeconds",
  "frameQueueSeconds",
  "eventLoopSeconds",
  "nvmeReadSeconds",
  "nvmeWriteSeconds",
  "nvmeCommitSeconds",
] as const satisfies readonly MetricName[];

export type Totals = Readonly<Record<(typeof TOTALS)[number], number>>;
export type Gauges = Readonly<Record<(typeof GAUGES)[number], number>>;

export interface TierDigest {
  readonly tier: string;
  readonly capacityBytes: number;
  readonly usedBytes: number;
  readonly blocks: number;
  readonly visibleBlocks: number;
  readonly slots: number;
  readonly slotsUsed: number;
}

/** One disk. Rates are those of the last seconds. */
export interface DeviceDigest {
  readonly device: number;
  readonly directory: string;
  readonly health: string;
  /** No room on its file system. */
  readonly full: boolean;
  /** Its index is being rebuilt from slot headers. */
  readonly rebuilding: boolean;
  readonly capacityBytes: number;
  readonly usedBytes: number;
  readonly preparing: number;
  readonly readBytesPerSecond: number;
  readonly writeBytesPerSecond: number;
  readonly queuedReads: number;
  readonly queuedWrites: number;
  readonly inFlight: number;
  readonly writtenPerDayBytes: number;
  readonly writeBudgetBytes: number;
  /** null: nothing is rated, or nothing written. */
  readonly lifeDays: number | null;
}

/** The store of the remote tier. */
export interface RemoteDigest {
  readonly health: string;
  readonly transfers: number;
  readonly waiting: number;
  /** Chunks that wait to be stored, and those that are being stored. */
  readonly uploadsWaiting: number;
  readonly receivedBytesPerSecond: number;
  readonly sentBytesPerSecond: number;
}

/** Over the last seconds; null where nothing happened (no data is not zero). */
export interface Recent {
  readonly seconds: number;
  readonly lookupsPerSecond: number;
  readonly hitRate: number | null;
  readonly loadBytesPerSecond: number;
  readonly storeBytesPerSecond: number;
  readonly evictionsPerSecond: number;
  readonly latencySeconds: Readonly<
    Record<(typeof LATENCIES)[number], { readonly p50: number; readonly p99: number } | null>
  >;
}

export interface Digest {
  readonly atMs: number;
  readonly totals: Totals;
  readonly gauges: Gauges;
  readonly hitRate: number | null;
  readonly tiers: readonly TierDigest[];
  readonly devices: readonly DeviceDigest[];
  /** null: no remote tier. */
  readonly remote: RemoteDigest | null;
  readonly recent: Recent;
}

interface Reading {
  readonly atMs: number;
  readonly totals: Totals;
  readonly histograms: Readonly<Record<(typeof LATENCIES)[number], HistogramReading>>;
  /** Bytes by device. */
  readonly deviceRead: readonly number[];
  readonly deviceWritten: readonly number[];
}

function pick<const N extends MetricName>(
  feed: FeedReader,
  names: readonly N[],
): Record<N, number> {
  const out = {} as Record<N, number>;
  for (const name of names) out[name] = feed.value(name);
  return out;
}

function read(feed: FeedReader, atMs: number): Reading {
  const histograms = {} as Record<(typeof LATENCIES)[number], HistogramReading>;
  for (const name of LATENCIES) histograms[name] = feed.histogram(name);
  const devices = Array.from({ length: feed.value("nvmeDevices") }, (_, device) => String(device));
  return {
    atMs,
    totals: pick(feed, TOTALS),
    histograms,
    deviceRead: devices.map((device) => feed.value("nvmeReadBytes", device)),
    deviceWritten: devices.map((device) => feed.value("nvmeWrittenBytes", device)),
  };
}

function ratio(part: number, whole: number): number | null {
  return whole > 0 ? part / whole : null;
}

function since(now: HistogramReading, before: HistogramReading): HistogramReading {
  const buckets = now.buckets.map((count, index) => count - before.buckets[index]!);
  const count = buckets.reduce((sum, bucket) => sum + bucket, 0);
  return { count, sumSeconds: now.sumSeconds - before.sumSeconds, buckets };
}

function secondsBetween(now: Reading, before: Reading): number {
  return Math.max(0.001, (now.atMs - before.atMs) / 1_000);
}

function recentOf(now: Reading, before: Reading): Recent {
  const seconds = secondsBetween(now, before);
  const gained = (name: keyof Totals): number => now.totals[name] - before.totals[name];
  const latencySeconds = {} as Record<
    (typeof LATENCIES)[number],
    { p50: number; p99: number } | null
  >;
  for (const name of LATENCIES) {
    const reading = since(now.histograms[name], before.histograms[name]);
    latencySeconds[name] =
      reading.count === 0 ? null : { p50: quantile(reading, 0.5), p99: quantile(reading, 0.99) };
  }
  return {
    seconds,
    lookupsPerSecond: gained("lookups") / seconds,
    hitRate: ratio(gained("lookupBlocksHit"), gained("lookupBlocksRequested")),
    loadBytesPerSecond: gained("loadedBytes") / seconds,
    storeBytesPerSecond: gained("storedBytes") / seconds,
    evictionsPerSecond: gained("evictions") / seconds,
    latencySeconds,
  };
}

function tiersOf(feed: FeedReader): TierDigest[] {
  const tiers = TIER_LABELS.map((tier) => ({
    tier,
    capacityBytes: feed.value("tierCapacityBytes", tier),
    usedBytes: feed.value("tierUsedBytes", tier),
    blocks: feed.value("tierBlocks", tier),
    visibleBlocks: feed.value("tierVisibleBlocks", tier),
    slots: feed.value("tierSlots", tier),
    slotsUsed: feed.value("tierSlotsUsed", tier),
  }));
  return tiers.filter(({ capacityBytes }) => capacityBytes > 0);
}

function devicesOf(
  feed: FeedReader,
  directories: readonly string[],
  now: Reading,
  before: Reading,
): DeviceDigest[] {
  const seconds = secondsBetween(now, before);
  return now.deviceRead.map((readBytes, device) => {
    const value = (name: MetricName): number => feed.value(name, String(device));
    // A device that came within the window has no earlier reading: its rate starts with it.
    const readBefore = before.deviceRead[device] ?? readBytes;
    const written = now.deviceWritten[device]!;
    const lifeDays = value("nvmeLifeDays");
    return {
      device,
      directory: directories[device] ?? "",
      health: HEALTH_LABELS[value("nvmeHealth")] ?? "unknown",
      full: value("nvmeFull") === 1,
      rebuilding: value("nvmeRebuilding") === 1,
      capacityBytes: value("nvmeCapacityBytes"),
      usedBytes: value("nvmeUsedBytes"),
      preparing: value("nvmeSegmentsPreparing"),
      readBytesPerSecond: (readBytes - readBefore) / seconds,
      writeBytesPerSecond: (written - (before.deviceWritten[device] ?? written)) / seconds,
      queuedReads: value("nvmeQueuedReads"),
      queuedWrites: value("nvmeQueuedWrites"),
      inFlight: value("nvmeInFlight"),
      writtenPerDayBytes: value("nvmeWrittenPerDayBytes"),
      writeBudgetBytes: value("nvmeWriteBudgetBytes"),
      lifeDays: Number.isFinite(lifeDays) ? lifeDays : null,
    };
  });
}

/** A directory that was drained keeps its number; it is no longer shown. */
function present({ capacityBytes, preparing }: DeviceDigest): boolean {
  return capacityBytes > 0 || preparing > 0;
}

function remoteOf(feed: FeedReader, now: Reading, before: Reading): RemoteDigest | null {
  if (feed.value("remoteStores") === 0) return null;
  const seconds = secondsBetween(now, before);
  const gained = (name: keyof Totals): number => now.totals[name] - before.totals[name];
  return {
    health: HEALTH_LABELS[feed.value("remoteHealth")] ?? "unknown",
    transfers: feed.value("remoteTransfers"),
    waiting: feed.value("remoteWaiting"),
    uploadsWaiting: feed.value("remoteUploadsWaiting"),
    receivedBytesPerSecond: gained("remoteReceivedBytes") / seconds,
    sentBytesPerSecond: gained("remoteSentBytes") / seconds,
  };
}

export class Digests {
  readonly history: Digest[] = [];
  /** By device number; the feed holds only figures. */
  directories: readonly string[] = [];
  private readonly feed: FeedReader;
  private readonly readings: Reading[] = [];

  constructor(feed: FeedReader, atMs: number) {
    this.feed = feed;
    this.readings.push(read(feed, atMs));
  }

  /** What holds now; rates against the oldest reading of the window. */
  now(atMs: number): Digest {
    return this.digest(read(this.feed, atMs));
  }

  /** Takes the digest of this second into the history. */
  tick(atMs: number): Digest {
    const reading = read(this.feed, atMs);
    const digest = this.digest(reading);
    this.readings.push(reading);
    if (this.readings.length > WINDOW) this.readings.shift();
    this.history.push(digest);
    if (this.history.length > HISTORY_MAX) this.history.shift();
    return digest;
  }

  private digest(reading: Reading): Digest {
    const { totals } = reading;
    const before = this.readings[0]!;
    return {
      atMs: reading.atMs,
      totals,
      gauges: pick(this.feed, GAUGES),
      hitRate: ratio(totals.lookupBlocksHit, totals.lookupBlocksRequested),
      tiers: tiersOf(this.feed),
      devices: devicesOf(this.feed, this.directories, reading, before).filter(present),
      remote: remoteOf(this.feed, reading, before),
      recent: recentOf(reading, before),
    };
  }
}
