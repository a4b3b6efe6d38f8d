/**
 * The lower tiers as operators see them: plain readings that the daemon takes a few times a second, and how
 * they reach the feed. Counters that a tier keeps itself are mirrored here; those that the core counts as it
 * goes (outcomes, refusals, durations) are written where they happen.
 */
import { assert } from "../assert.ts";
import { type Feed, METRIC } from "./feed.ts";
import { DEVICES_MAX } from "./metric-row.ts";
import { HEALTH_LABELS, REMOTE_HEALTH_LABELS, REMOTE_OUTCOME_LABELS } from "./metrics-lower.ts";

/** One disk of the NVMe tier. Numbers of devices stay with their directories for the life of the daemon. */
export interface DeviceReading {
  readonly directory: string;
  readonly health: (typeof HEALTH_LABELS)[number];
  /** How it is driven: io_uring or threads, O_DIRECT or buffered. */
  readonly mode: "uring" | "threads";
  readonly direct: boolean;
  readonly capacityBytes: number;
  readonly usedBytes: number;
  readonly segments: number;
  readonly segmentsPreparing: number;
  readonly quarantinedSlots: number;
  readonly bytesRead: number;
  readonly bytesWritten: number;
  readonly readItems: number;
  readonly writeItems: number;
  readonly ioErrors: number;
  readonly itemsCorrupt: number;
  readonly itemsIdentity: number;
  readonly readsQueued: number;
  readonly writesQueued: number;
  readonly inFlight: number;
  readonly oldestMicroseconds: number;
  readonly cpuMicroseconds: number;
  readonly syncs: number;
  readonly syncFailures: number;
  readonly scrubbedBytes: number;
  readonly bytesPerDay: number;
  /** 0: no budget. */
  readonly budgetBytesPerDay: number;
  /** null: nothing is rated, or nothing written. */
  readonly lifeDays: number | null;
}

/** The remote tier. */
export interface RemoteReading {
  readonly description: string;
  readonly health: (typeof REMOTE_HEALTH_LABELS)[number];
  /** Attempts by outcome (REMOTE_OUTCOME_LABELS). */
  readonly requests: Readonly<Partial<Record<(typeof REMOTE_OUTCOME_LABELS)[number], number>>>;
  readonly retries: number;
  readonly breakerOpened: number;
  readonly receivedBytes: number;
  readonly sentBytes: number;
  readonly fetchedBlocks: number;
  readonly failedBlocks: number;
  readonly corruptBlocks: number;
  readonly existenceHits: number;
  readonly existenceMisses: number;
  readonly collected: number;
  readonly quarantined: number;
  readonly transfers: number;
  readonly waiting: number;
  readonly stagingUsedBytes: number;
  readonly getBytesPerSecond: number;
  readonly putBytesPerSecond: number;
  readonly lastFault: string;
}

/** [metric, field] of what is copied as it is. */
const DEVICE_FIELDS = [
  [METRIC.nvmeCapacityBytes, "capacityBytes"],
  [METRIC.nvmeUsedBytes, "usedBytes"],
  [METRIC.nvmeSegments, "segments"],
  [METRIC.nvmeSegmentsPreparing, "segmentsPreparing"],
  [METRIC.nvmeQuarantinedSlots, "quarantinedSlots"],
  [METRIC.nvmeReadBytes, "bytesRead"],
  [METRIC.nvmeWrittenBytes, "bytesWritten"],
  [METRIC.nvmeReadItems, "readItems"],
  [METRIC.nvmeWriteItems, "writeItems"],
  [METRIC.nvmeIoErrors, "ioErrors"],
  [METRIC.nvmeCorruptItems, "itemsCorrupt"],
  [METRIC.nvmeIdentityItems, "itemsIdentity"],
  [METRIC.nvmeQueuedReads, "readsQueued"],
  [METRIC.nvmeQueuedWrites, "writesQueued"],
  [METRIC.nvmeInFlight, "inFlight"],
  [METRIC.nvmeSyncs, "syncs"],
  [METRIC.nvmeSyncFailures, "syncFailures"],
  [METRIC.nvmeScrubbedBytes, "scrubbedBytes"],
  [METRIC.nvmeWrittenPerDayBytes, "bytesPerDay"],
  [METRIC.nvmeWriteBudgetBytes, "budgetBytesPerDay"],
] as const satisfies readonly (readonly [number, keyof DeviceReading])[];

/** Puts what the disks say into the feed; the index of a reading is the device's number. */
export function publishDevices(feed: Feed, devices: readonly DeviceReading[]): void {
  assert(devices.length <= DEVICES_MAX, "the feed has a column for every device");
  feed.set(METRIC.nvmeDevices, devices.length);
  for (const [device, reading] of devices.entries()) {
    const health = HEALTH_LABELS.indexOf(reading.health);
    assert(health >= 0, "a device is in a known state");
    feed.setAt(METRIC.nvmeHealth, device, health);
    for (const [handle, name] of DEVICE_FIELDS) feed.setAt(handle, device, reading[name]);
    feed.setAt(METRIC.nvmeOldestSeconds, device, reading.oldestMicroseconds / 1e6);
    feed.setAt(METRIC.nvmeCpuSeconds, device, reading.cpuMicroseconds / 1e6);
    feed.setAt(METRIC.nvmeLifeDays, device, reading.lifeDays ?? Number.POSITIVE_INFINITY);
  }
}

const REMOTE_FIELDS = [
  [METRIC.remoteRetries, "retries"],
  [METRIC.remoteBreakerOpened, "breakerOpened"],
  [METRIC.remoteReceivedBytes, "receivedBytes"],
  [METRIC.remoteSentBytes, "sentBytes"],
  [METRIC.remoteFetchedBlocks, "fetchedBlocks"],
  [METRIC.remoteFailedBlocks, "failedBlocks"],
  [METRIC.remoteCorruptBlocks, "corruptBlocks"],
  [METRIC.remoteExistenceHits, "existenceHits"],
  [METRIC.remoteExistenceMisses, "existenceMisses"],
  [METRIC.remoteCollected, "collected"],
  [METRIC.remoteQuarantined, "quarantined"],
  [METRIC.remoteTransfers, "transfers"],
  [METRIC.remoteWaiting, "waiting"],
  [METRIC.remoteStagingUsedBytes, "stagingUsedBytes"],
  [METRIC.remoteGetBandwidth, "getBytesPerSecond"],
  [METRIC.remotePutBandwidth, "putBytesPerSecond"],
] as const satisfies readonly (readonly [number, keyof RemoteReading])[];

/** Puts what the remote tier says into the feed. */
export function publishRemote(feed: Feed, reading: RemoteReading): void {
  feed.set(METRIC.remoteStores, 1);
  const health = REMOTE_HEALTH_LABELS.indexOf(reading.health);
  assert(health >= 0, "a store is in a known state");
  feed.set(METRIC.remoteHealth, health);
  for (const [index, outcome] of REMOTE_OUTCOME_LABELS.entries())
    feed.setAt(METRIC.remoteRequests, index, reading.requests[outcome] ?? 0);
  for (const [handle, name] of REMOTE_FIELDS) feed.set(handle, reading[name]);
}
