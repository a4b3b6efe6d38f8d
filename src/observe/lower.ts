/**
 * The lower tiers as operators see them: plain readings that the daemon takes a few times a second, and how
 * they reach the feed. Counters that a tier keeps itself are mirrored here; those that the core counts as it
 * goes (outcomes, refusals, durations) are written where they happen.
 */
import { assert } from "../assert.ts";
import { type Feed, METRIC } from "./feed.ts";
import { DEVICES_MAX } from "./metric-row.ts";
import { HEALTH_LABELS, NVME_EVENTS, REMOTE_OUTCOME_LABELS } from "./metrics-lower.ts";

/** One disk of the NVMe tier (tiers/nvme/snapshot.ts, and what the ledger knows of it). */
export interface DeviceReading {
  /** Number of the device for the life of the daemon, whatever comes and goes beside it. */
  readonly device: number;
  readonly directory: string;
  readonly health: (typeof HEALTH_LABELS)[number];
  /** The file system has no room: nothing new goes there. */
  readonly full: boolean;
  readonly draining: boolean;
  readonly rebuilding: boolean;
  /** How it is driven: io_uring or threads, O_DIRECT or buffered. */
  readonly mode: "uring" | "threads";
  readonly direct: boolean;
  readonly capacityBytes: number;
  /** Of slots in use. */
  readonly usedBytes: number;
  readonly segments: number;
  readonly segmentsTarget: number;
  readonly indexBytes: number;
  readonly lastCommitMs: number;
  readonly bytesRead: number;
  readonly bytesWritten: number;
  readonly readsQueued: number;
  readonly writesQueued: number;
  readonly inFlight: number;
  readonly oldestMicroseconds: number;
  readonly cpuMicroseconds: number;
  readonly endurance: {
    /** Ever, as far as the directory remembers. */
    readonly writtenBytes: number;
    readonly bytesPerDay: number;
    /** 0: no budget. */
    readonly budgetBytesPerDay: number;
    /** Absent: nothing is rated, or nothing written. */
    readonly lifeDays?: number | undefined;
  };
  /** What went wrong, and commits, by the names of tiers/nvme/counters.ts. */
  readonly counters: Readonly<Record<(typeof NVME_EVENTS)[number], number>>;
}

/** The remote tier. */
export interface RemoteReading {
  readonly description: string;
  readonly health: (typeof HEALTH_LABELS)[number];
  /** Attempts by outcome (REMOTE_OUTCOME_LABELS). */
  readonly requests: Readonly<Partial<Record<(typeof REMOTE_OUTCOME_LABELS)[number], number>>>;
  readonly retries: number;
  readonly breakerOpened: number;
  readonly readOnlyTurns: number;
  readonly writeProbesFailed: number;
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
  /** Chunks that wait to be stored, and those that are being stored. */
  readonly uploadsWaiting: number;
  readonly corruptObjects: number;
  readonly misplacedObjects: number;
  readonly sealKeyMissing: number;
  readonly unsealedObjects: number;
  readonly getBytesPerSecond: number;
  readonly putBytesPerSecond: number;
  readonly lastFault: string;
}

/** [metric, field] of what is copied as it is. */
const DEVICE_FIELDS = [
  [METRIC.nvmeCapacityBytes, "capacityBytes"],
  [METRIC.nvmeUsedBytes, "usedBytes"],
  [METRIC.nvmeSegments, "segments"],
  [METRIC.nvmeIndexBytes, "indexBytes"],
  [METRIC.nvmeReadBytes, "bytesRead"],
  [METRIC.nvmeWrittenBytes, "bytesWritten"],
  [METRIC.nvmeQueuedReads, "readsQueued"],
  [METRIC.nvmeQueuedWrites, "writesQueued"],
  [METRIC.nvmeInFlight, "inFlight"],
] as const satisfies readonly (readonly [number, keyof DeviceReading])[];

const DEVICE_COUNTERS = [
  [METRIC.nvmeIoErrors, "ioErrors"],
  [METRIC.nvmeCorruptItems, "corrupt"],
  [METRIC.nvmeIdentityItems, "identity"],
  [METRIC.nvmeCommits, "commits"],
  [METRIC.nvmeCommitFailures, "commitFailures"],
  [METRIC.nvmeSyncFailures, "syncFailures"],
] as const satisfies readonly (readonly [number, (typeof NVME_EVENTS)[number]])[];

function publishDevice(feed: Feed, reading: DeviceReading): void {
  const { device, endurance } = reading;
  const health = HEALTH_LABELS.indexOf(reading.health);
  assert(health >= 0, "a device is in a known state");
  assert(device < DEVICES_MAX, "the feed has a column for every device");
  feed.setAt(METRIC.nvmeHealth, device, health);
  feed.setAt(METRIC.nvmeFull, device, reading.full ? 1 : 0);
  feed.setAt(METRIC.nvmeRebuilding, device, reading.rebuilding ? 1 : 0);
  for (const [handle, name] of DEVICE_FIELDS) feed.setAt(handle, device, reading[name]);
  for (const [handle, name] of DEVICE_COUNTERS) feed.setAt(handle, device, reading.counters[name]);
  const preparing = Math.max(0, reading.segmentsTarget - reading.segments);
  feed.setAt(METRIC.nvmeSegmentsPreparing, device, preparing);
  feed.setAt(METRIC.nvmeLastCommitSeconds, device, reading.lastCommitMs / 1e3);
  feed.setAt(METRIC.nvmeOldestSeconds, device, reading.oldestMicroseconds / 1e6);
  feed.setAt(METRIC.nvmeCpuSeconds, device, reading.cpuMicroseconds / 1e6);
  feed.setAt(METRIC.nvmeLifeWrittenBytes, device, endurance.writtenBytes);
  feed.setAt(METRIC.nvmeWrittenPerDayBytes, device, endurance.bytesPerDay);
  feed.setAt(METRIC.nvmeWriteBudgetBytes, device, endurance.budgetBytesPerDay);
  feed.setAt(METRIC.nvmeLifeDays, device, endurance.lifeDays ?? Number.POSITIVE_INFINITY);
}

/** Puts what the disks say into the feed. Numbers of devices that are gone keep their last figures, capacity 0. */
export function publishDevices(feed: Feed, devices: readonly DeviceReading[]): void {
  const known = Math.max(feed.get(METRIC.nvmeDevices), ...devices.map(({ device }) => device + 1));
  feed.set(METRIC.nvmeDevices, known);
  for (let device = 0; device < known; device++) {
    const reading = devices.find((one) => one.device === device);
    if (reading !== undefined) publishDevice(feed, reading);
    else feed.setAt(METRIC.nvmeCapacityBytes, device, 0);
  }
  for (const [index, event] of NVME_EVENTS.entries()) {
    const sum = devices.reduce((total, { counters }) => total + counters[event], 0);
    feed.setAt(METRIC.nvmeEvents, index, Math.max(sum, feed.get(METRIC.nvmeEvents + index)));
  }
}

const REMOTE_FIELDS = [
  [METRIC.remoteRetries, "retries"],
  [METRIC.remoteBreakerOpened, "breakerOpened"],
  [METRIC.remoteReadOnlyTurns, "readOnlyTurns"],
  [METRIC.remoteWriteProbesFailed, "writeProbesFailed"],
  [METRIC.remoteUploadsWaiting, "uploadsWaiting"],
  [METRIC.remoteReceivedBytes, "receivedBytes"],
  [METRIC.remoteSentBytes, "sentBytes"],
  [METRIC.remoteFetchedBlocks, "fetchedBlocks"],
  [METRIC.remoteFailedBlocks, "failedBlocks"],
  [METRIC.remoteCorruptBlocks, "corruptBlocks"],
  [METRIC.remoteCorruptObjects, "corruptObjects"],
  [METRIC.remoteMisplacedObjects, "misplacedObjects"],
  [METRIC.remoteSealKeyMissing, "sealKeyMissing"],
  [METRIC.remoteUnsealedObjects, "unsealedObjects"],
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
  const health = HEALTH_LABELS.indexOf(reading.health);
  assert(health >= 0, "a store is in a known state");
  feed.set(METRIC.remoteHealth, health);
  for (const [index, outcome] of REMOTE_OUTCOME_LABELS.entries())
    feed.setAt(METRIC.remoteRequests, index, reading.requests[outcome] ?? 0);
  for (const [handle, name] of REMOTE_FIELDS) feed.set(handle, reading[name]);
}
