/** Rows of the lower tiers: disks, and the store of objects that nodes share. */
import { counter, gauge, perDevice, seconds } from "./metric-row.ts";

/** In the order of addon/binding.ts's ITEM. */
export const ITEM_LABELS = [
  "ok",
  "corrupt",
  "identity",
  "cancelled",
  "deadline",
  "region",
  "io",
] as const;
/** The index is the value of cairn_nvme_health and cairn_remote_health. */
export const HEALTH_LABELS = ["ok", "slow", "readOnly", "fenced"] as const;
/** Events of disks, counted by tiers/nvme/counters.ts. */
export const NVME_EVENTS = [
  "ioErrors",
  "corrupt",
  "identity",
  "deadlines",
  "syncFailures",
  "commitFailures",
  "commits",
  "indexDamaged",
  "indexOpenFailures",
  "pagesDropped",
  "entriesDropped",
  "headersRebuilt",
  "stalls",
  "fullEvents",
  "fences",
  "probesFailed",
  "prepareFailures",
  "rowsRefused",
  "entriesHeld",
] as const;
/** The same as values of a label. */
export const NVME_EVENT_LABELS: readonly string[] = NVME_EVENTS.map((name) =>
  name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
);
/** In the order of tiers/remote/object-store.ts's FAULTS, behind `ok`. */
export const REMOTE_OUTCOME_LABELS = [
  "ok",
  "missing",
  "short",
  "cancelled",
  "busy",
  "timeout",
  "throttled",
  "unavailable",
  "truncated",
  "open",
  "refused",
  "full",
  "protocol",
] as const;

export const DEVICE_METRICS = {
  nvmeReadBytes: perDevice("counter", "cairn_nvme_read_bytes_total", "Bytes read from the disk."),
  nvmeWrittenBytes: perDevice(
    "counter",
    "cairn_nvme_written_bytes_total",
    "Bytes written to the disk.",
  ),
  nvmeIoErrors: perDevice(
    "counter",
    "cairn_nvme_io_errors_total",
    "Reads and writes that the disk failed.",
  ),
  nvmeCorruptItems: perDevice(
    "counter",
    "cairn_nvme_corrupt_blocks_total",
    "Blocks whose payload hash differed.",
  ),
  nvmeIdentityItems: perDevice(
    "counter",
    "cairn_nvme_identity_failures_total",
    "Blocks whose header named another block, slot, generation or directory.",
  ),
  nvmeSyncFailures: perDevice("counter", "cairn_nvme_sync_failures_total", "Syncs that failed."),
  nvmeCpuSeconds: perDevice(
    "counter",
    "cairn_nvme_cpu_seconds_total",
    "CPU of the disk's threads.",
  ),
  nvmeCommits: perDevice("counter", "cairn_nvme_commits_total", "Commits of the index."),
  nvmeCommitFailures: perDevice(
    "counter",
    "cairn_nvme_commit_failures_total",
    "Commits of the index that failed.",
  ),
  nvmeFull: perDevice("gauge", "cairn_nvme_full", "1 while the file system has no room."),
  nvmeRebuilding: perDevice(
    "gauge",
    "cairn_nvme_rebuilding",
    "1 while the index is rebuilt from slot headers.",
  ),
  nvmeIndexBytes: perDevice("gauge", "cairn_nvme_index_bytes", "Bytes of the index."),
  nvmeLastCommitSeconds: perDevice(
    "gauge",
    "cairn_nvme_last_commit_seconds",
    "What the last sync and commit took, from first copy to durable.",
  ),
  nvmeLifeWrittenBytes: perDevice(
    "gauge",
    "cairn_nvme_life_written_bytes",
    "Bytes written to the disk ever, as far as its directory remembers.",
  ),
  nvmeHealth: perDevice(
    "gauge",
    "cairn_nvme_health",
    "State of the disk: 0 ok, 1 slow, 2 read-only, 3 fenced.",
  ),
  nvmeCapacityBytes: perDevice(
    "gauge",
    "cairn_nvme_capacity_bytes",
    "Bytes the directory may take.",
  ),
  nvmeUsedBytes: perDevice("gauge", "cairn_nvme_used_bytes", "Bytes of slots in use."),
  nvmeSegments: perDevice("gauge", "cairn_nvme_segments", "Segment files that serve."),
  nvmeSegmentsPreparing: perDevice(
    "gauge",
    "cairn_nvme_segments_preparing",
    "Segment files still to be made, written once from end to end.",
  ),
  nvmeQueuedReads: perDevice("gauge", "cairn_nvme_queued_reads", "Reads that wait for the disk."),
  nvmeQueuedWrites: perDevice(
    "gauge",
    "cairn_nvme_queued_writes",
    "Writes that wait for the disk.",
  ),
  nvmeInFlight: perDevice("gauge", "cairn_nvme_in_flight", "Operations at the disk."),
  nvmeOldestSeconds: perDevice(
    "gauge",
    "cairn_nvme_oldest_operation_seconds",
    "What the oldest operation at the disk has taken so far; 0 when idle.",
  ),
  nvmeWrittenPerDayBytes: perDevice(
    "gauge",
    "cairn_nvme_written_per_day_bytes",
    "Bytes written to the disk a day at the present rate.",
  ),
  nvmeWriteBudgetBytes: perDevice(
    "gauge",
    "cairn_nvme_write_budget_per_day_bytes",
    "Bytes that may be written to the disk in a day; 0 without a budget.",
  ),
  nvmeLifeDays: perDevice(
    "gauge",
    "cairn_nvme_life_days",
    "Days that the disk's rated bytes last at the present rate; +Inf where nothing is rated or written.",
  ),
} as const;

export const NVME_METRICS = {
  nvmeReadSeconds: seconds(
    "cairn_nvme_read_seconds",
    "A batch of reads from a disk, handed over to ended; all disks.",
  ),
  nvmeWriteSeconds: seconds(
    "cairn_nvme_write_seconds",
    "A batch of writes to a disk, handed over to ended; all disks.",
  ),
  nvmeCommitSeconds: seconds(
    "cairn_nvme_commit_seconds",
    "Copies written to durable: sync and commit of the index, the wait for the ones before included.",
  ),
  nvmeDevices: gauge("cairn_nvme_devices", "Disks that the NVMe tier had in this life."),
  nvmeLeftOut: gauge(
    "cairn_nvme_left_out",
    "Directories of the configuration that could not be opened; each is asked again.",
  ),
  nvmeEvents: counter(
    "cairn_nvme_events_total",
    "What happened to disks and their indexes, by kind, all disks together.",
    "event",
    NVME_EVENT_LABELS,
  ),
} as const;

export const REMOTE_METRICS = {
  remoteStores: gauge(
    "cairn_remote_stores",
    "Stores of the remote tier: 1, or 0 without the tier.",
  ),
  remoteHealth: gauge(
    "cairn_remote_health",
    "State of the store: 0 ok, 1 slow, 2 read-only, 3 fenced.",
  ),
  remoteRequests: counter(
    "cairn_remote_requests_total",
    "Requests to the store, by outcome of the last attempt.",
    "outcome",
    REMOTE_OUTCOME_LABELS,
  ),
  remoteRetries: counter("cairn_remote_retries_total", "Requests sent again."),
  remoteBreakerOpened: counter(
    "cairn_remote_breaker_opened_total",
    "Times the store was taken for away.",
  ),
  remoteReadOnlyTurns: counter(
    "cairn_remote_read_only_total",
    "Times the store stopped taking objects.",
  ),
  remoteWriteProbesFailed: counter(
    "cairn_remote_write_probes_failed_total",
    "Probes that found that the store still takes no objects.",
  ),
  remoteUploadsWaiting: gauge(
    "cairn_remote_uploads_waiting",
    "Chunks that wait to be stored, and those that are being stored.",
  ),
  remoteReceivedBytes: counter("cairn_remote_received_bytes_total", "Bytes of objects read."),
  remoteSentBytes: counter("cairn_remote_sent_bytes_total", "Bytes of objects written."),
  remoteFetchedBlocks: counter("cairn_remote_fetched_blocks_total", "Blocks brought into DRAM."),
  remoteFailedBlocks: counter(
    "cairn_remote_failed_blocks_total",
    "Blocks asked of the store that did not come.",
  ),
  remoteCorruptBlocks: counter(
    "cairn_remote_corrupt_blocks_total",
    "Blocks of objects that failed identity or hash.",
  ),
  remoteCorruptObjects: counter(
    "cairn_remote_corrupt_objects_total",
    "Objects whose own header failed its checks.",
  ),
  remoteMisplacedObjects: counter(
    "cairn_remote_misplaced_objects_total",
    "Objects that hold another chunk than their name says.",
  ),
  remoteLeftOut: counter(
    "cairn_remote_left_out_total",
    "Starts that left the remote tier out: the log says why.",
  ),
  remoteSealKeyMissing: counter(
    "cairn_remote_seal_key_missing_total",
    "Uploads and reads of chunks left out for want of the tenant's data key.",
  ),
  remoteUnsealedObjects: counter(
    "cairn_remote_unsealed_objects_total",
    "Objects under the name of sealed ones that held open blocks.",
  ),
  remoteExistenceHits: counter(
    "cairn_remote_existence_hits_total",
    "Questions for existence that the cache answered.",
  ),
  remoteExistenceMisses: counter(
    "cairn_remote_existence_misses_total",
    "Questions for existence that the store had to answer.",
  ),
  remoteCollected: counter(
    "cairn_remote_collected_objects_total",
    "Objects removed by age or budget.",
  ),
  remoteQuarantined: gauge("cairn_remote_quarantined_objects", "Objects avoided after a fault."),
  remoteTransfers: gauge("cairn_remote_transfers", "Transfers under way."),
  remoteWaiting: gauge("cairn_remote_waiting", "Transfers that wait for memory or a connection."),
  remoteStagingUsedBytes: gauge("cairn_remote_staging_used_bytes", "Staging memory in use."),
  remoteGetBandwidth: gauge(
    "cairn_remote_get_bytes_per_second",
    "Speed of the last transfers from the store.",
  ),
  remotePutBandwidth: gauge(
    "cairn_remote_put_bytes_per_second",
    "Speed of the last transfers to the store.",
  ),
} as const;
