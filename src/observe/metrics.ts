/**
 * Every figure that cairn publishes is a row of this table: name by Prometheus conventions, kind, help and
 * the closed list of label values. The core writes them through feed.ts, the edge reads them at a scrape.
 * A label value that is not listed here cannot be counted, so no client can grow the set of series.
 */
import { counter, gauge, type MetricRow, seconds } from "./metric-row.ts";
import { DEVICE_METRICS, ITEM_LABELS, NVME_METRICS, REMOTE_METRICS } from "./metrics-lower.ts";

export { type MetricKind, type MetricRow } from "./metric-row.ts";
export { ITEM_LABELS };

/** Label values, in the order of their cells. Index 0..n are the offsets that feed.addAt takes. */
export const TIER_LABELS = ["dram", "nvme"] as const;
/** In the order of engine-api's STORE_STATUS. */
export const STORE_STATUS_LABELS = [
  "present",
  "pending",
  "wanted",
  "full",
  "parent_absent",
] as const;
/** In the order of addon/binding.ts's CLOSE_REASON. */
export const CLOSE_LABELS = [
  "peer",
  "bad_magic",
  "frame_too_large",
  "frame_timeout",
  "hello_timeout",
  "slow_reader",
  "local",
  "system",
  "version",
] as const;
/** In the order of policy/gate.ts's GATE_REASON. */
export const GATE_LABELS = ["load", "unknown_rate", "nvme_slow", "slow"] as const;
/** Why a block was not copied down; in the order of transfer/mover.ts's REFUSAL. */
export const WRITE_BACK_REFUSAL_LABELS = [
  "no_room",
  "read_only",
  "write_budget",
  "write_failed",
  "not_durable",
  "source_corrupt",
  "stopped",
  "namespaces_full",
] as const;
/** In the order of transfer/prefetcher.ts's OUTCOME. */
export const PREFETCH_LABELS = ["done", "clipped", "refused", "cancelled", "deadline"] as const;
/** In the order of transfer/links.ts's LINK_NAMES. */
export const LINK_LABELS = [
  "dram_to_window",
  "nvme_to_window",
  "dram_to_nvme",
  "remote_to_dram",
  "dram_to_remote",
] as const;
/** In the order of transfer/uploader.ts's UPLOAD. */
export const UPLOAD_LABELS = ["stored", "exists", "failed", "dropped"] as const;
export const FRAME_ERROR_LABELS = [
  "malformed_frame",
  "unknown_op",
  "hello_required",
  "not_permitted",
  "unknown_namespace",
  "unknown_lease",
  "unknown_region",
  "out_of_bounds",
  "other",
] as const;
export const DROP_LABELS = ["header", "chain", "duplicate", "no_room", "incomplete"] as const;

export const METRICS = {
  // Look-ups
  lookups: counter("cairn_lookups_total", "LOOKUP calls answered."),
  lookupBlocksRequested: counter(
    "cairn_lookup_requested_blocks_total",
    "Keys named by LOOKUP calls.",
  ),
  lookupBlocksHit: counter(
    "cairn_lookup_hit_blocks_total",
    "Blocks found readable by LOOKUP, by the tier that would serve them.",
    "tier",
    TIER_LABELS,
  ),
  lookupTokensRequested: counter(
    "cairn_lookup_requested_tokens_total",
    "Tokens named by LOOKUP calls.",
  ),
  lookupTokensHit: counter("cairn_lookup_hit_tokens_total", "Tokens of the blocks found readable."),
  lookupProbes: counter("cairn_lookup_probes_total", "Block-table probes made by LOOKUP."),
  lookupClipped: counter("cairn_lookup_clipped_total", "LOOKUPs cut short by the pin budget."),
  lookupSeconds: seconds("cairn_lookup_seconds", "LOOKUP: frame handled to reply queued."),
  // Loads
  loads: counter("cairn_loads_total", "LOAD jobs completed."),
  loadBlocks: counter(
    "cairn_load_blocks_total",
    "Blocks of LOAD jobs, by outcome.",
    "outcome",
    ITEM_LABELS,
  ),
  loadedBytes: counter("cairn_loaded_bytes_total", "Payload bytes delivered and verified."),
  loadSeconds: seconds("cairn_load_seconds", "LOAD: frame handled to completion queued."),
  loadedTierBytes: counter(
    "cairn_loaded_tier_bytes_total",
    "Payload bytes delivered and verified, by the tier they were read from.",
    "tier",
    TIER_LABELS,
  ),
  loadRetries: counter(
    "cairn_load_retries_total",
    "Blocks of LOADs that were read again from another tier, because one copy proved bad.",
  ),
  gateVerdicts: counter(
    "cairn_gate_verdicts_total",
    "Hits by what loading them is worth against computing them.",
    "verdict",
    GATE_LABELS,
  ),
  // Movement between tiers
  promotedBlocks: counter(
    "cairn_promoted_blocks_total",
    "Blocks that a read from NVMe brought into DRAM, too.",
  ),
  passThroughBlocks: counter(
    "cairn_pass_through_blocks_total",
    "Blocks read from NVMe that found no place in DRAM.",
  ),
  writtenBackBlocks: counter(
    "cairn_written_back_blocks_total",
    "Blocks copied from DRAM to NVMe, synced and indexed.",
  ),
  writtenBackBytes: counter("cairn_written_back_bytes_total", "Payload bytes of these."),
  writeBackRefusals: counter(
    "cairn_write_back_refusals_total",
    "Blocks that were not copied to NVMe, by reason.",
    "reason",
    WRITE_BACK_REFUSAL_LABELS,
  ),
  writeBackBytesInFlight: gauge(
    "cairn_write_back_in_flight_bytes",
    "Payload bytes on their way to NVMe.",
  ),
  evictedUnbacked: counter(
    "cairn_evicted_unbacked_blocks_total",
    "Last copies evicted from DRAM before they could be copied to NVMe.",
  ),
  prefetches: counter(
    "cairn_prefetches_total",
    "PREFETCH calls, by outcome.",
    "outcome",
    PREFETCH_LABELS,
  ),
  prefetchedBlocks: counter(
    "cairn_prefetched_blocks_total",
    "Blocks that PREFETCHes found in DRAM when they ended, brought by them or, meanwhile, by another.",
  ),
  scrubbedBlocks: counter("cairn_scrubbed_blocks_total", "Copies on NVMe verified at idle."),
  scrubFailures: counter("cairn_scrub_failures_total", "Of these, bad ones; they were dropped."),
  uploadedChunks: counter(
    "cairn_uploaded_chunks_total",
    "Chunks offered to the remote tier, by outcome.",
    "outcome",
    UPLOAD_LABELS,
  ),
  linkBytesPerSecond: gauge(
    "cairn_link_bytes_per_second",
    "What a link between tiers carries when it is used, as estimated.",
    "link",
    LINK_LABELS,
  ),
  linkLatencySeconds: gauge(
    "cairn_link_latency_seconds",
    "What a transfer takes before its first byte, as estimated.",
    "link",
    LINK_LABELS,
  ),
  // Stores
  stores: counter("cairn_stores_total", "STORE calls answered."),
  storeBlocks: counter(
    "cairn_store_blocks_total",
    "Keys of STORE calls, by the status each was answered.",
    "status",
    STORE_STATUS_LABELS,
  ),
  storedBlocks: counter("cairn_stored_blocks_total", "Blocks that became visible through STORE."),
  storedBytes: counter("cairn_stored_bytes_total", "Payload bytes written and hashed."),
  storeSeconds: seconds("cairn_store_seconds", "STORE: frame handled to completion queued."),
  // Transport
  framesReceived: counter("cairn_frames_received_total", "Frames read from engines."),
  framesSent: counter("cairn_frames_sent_total", "Frames written to engines."),
  framesReceivedBytes: counter("cairn_frames_received_bytes_total", "Bytes read from engines."),
  framesSentBytes: counter("cairn_frames_sent_bytes_total", "Bytes written to engines."),
  frameQueueSeconds: seconds("cairn_frame_queue_seconds", "Frame complete to frame handled."),
  frameErrors: counter(
    "cairn_frame_errors_total",
    "Frames answered with an error, by reason.",
    "reason",
    FRAME_ERROR_LABELS,
  ),
  connectionsAccepted: counter("cairn_connections_accepted_total", "Connections accepted."),
  connectionsRefused: counter(
    "cairn_connections_refused_total",
    "Connections beyond connectionsMax.",
  ),
  connectionsClosed: counter(
    "cairn_connections_closed_total",
    "Connections closed, by reason.",
    "reason",
    CLOSE_LABELS,
  ),
  inboxStalls: counter(
    "cairn_inbox_stalls_total",
    "Times the transport stopped reading, inbox full.",
  ),
  // Faults and refusals: each has its own row, so that an alert can name it
  corruptBlocks: counter(
    "cairn_corrupt_blocks_total",
    "Blocks dropped because the payload hash differed.",
  ),
  identityFailures: counter(
    "cairn_identity_failures_total",
    "Copies refused because the slot header named another block.",
  ),
  deviceReadErrors: counter(
    "cairn_device_read_errors_total",
    "Blocks dropped because the device failed to read them.",
  ),
  proofFailures: counter("cairn_proof_failures_total", "Incarnation proofs that failed."),
  proofsPassed: counter("cairn_proofs_passed_total", "Incarnation proofs that passed."),
  layoutProofFailures: counter(
    "cairn_layout_proof_failures_total",
    "Regions refused by the layout proof.",
  ),
  leasesExpired: counter("cairn_leases_expired_total", "Leases ended by missed heartbeats."),
  leasesReduced: counter("cairn_leases_reduced_total", "Leases cut short by a hole below them."),
  deadlineMisses: counter("cairn_deadline_misses_total", "Jobs that ended at their deadline."),
  fillTimeouts: counter("cairn_fill_timeouts_total", "Reserved shards aborted after storeFillMs."),
  fullRefusals: counter(
    "cairn_full_refusals_total",
    "Blocks refused because no slot could be freed.",
  ),
  ledgerFullRefusals: counter(
    "cairn_ledger_full_refusals_total",
    "STOREs refused with ledgerFull.",
  ),
  parentAbsent: counter("cairn_parent_absent_total", "STOREs answered parentAbsent."),
  chainMismatches: counter("cairn_chain_mismatches_total", "STOREs refused with chainMismatch."),
  overloads: counter("cairn_overloads_total", "Calls refused because a bounded queue was full."),
  jobsRefused: counter("cairn_jobs_refused_total", "Jobs refused with jobsInFlight."),
  unprovenLookups: counter("cairn_unproven_lookups_total", "LOOKUPs answered proofWanted."),
  // Residency
  evictions: counter("cairn_evicted_blocks_total", "Copies evicted.", "tier", TIER_LABELS),
  recordEvictions: counter(
    "cairn_record_evicted_blocks_total",
    "Blocks let go, from every tier, because all records of the ledger were in use.",
  ),
  abortedBlocks: counter("cairn_aborted_blocks_total", "Pending blocks that were aborted."),
  holesMade: counter(
    "cairn_holes_made_total",
    "Blocks that lost their last copy while they had children.",
  ),
  orphansMade: counter("cairn_orphans_made_total", "Blocks that became orphans."),
  recoveredBlocks: counter("cairn_recovered_blocks_total", "Blocks found again at start."),
  droppedBlocks: counter(
    "cairn_recovery_dropped_blocks_total",
    "Blocks not taken back at start, by reason.",
    "reason",
    DROP_LABELS,
  ),
  injectedFaults: counter(
    "cairn_injected_faults_total",
    "Faults injected on purpose (tests, demo).",
  ),
  ...NVME_METRICS,
  ...DEVICE_METRICS,
  ...REMOTE_METRICS,
  // Gauges
  tierCapacityBytes: gauge("cairn_tier_capacity_bytes", "Bytes of the tier.", "tier", TIER_LABELS),
  tierUsedBytes: gauge("cairn_tier_used_bytes", "Bytes of slots in use.", "tier", TIER_LABELS),
  tierBlocks: gauge("cairn_tier_blocks", "Blocks with a copy in the tier.", "tier", TIER_LABELS),
  tierVisibleBlocks: gauge("cairn_tier_visible_blocks", "Of these, visible.", "tier", TIER_LABELS),
  tierSlots: gauge("cairn_tier_slots", "Slots of assigned slabs.", "tier", TIER_LABELS),
  tierSlotsUsed: gauge("cairn_tier_slots_used", "Slots in use.", "tier", TIER_LABELS),
  tierSlabs: gauge("cairn_tier_slabs", "Slabs of the tier.", "tier", TIER_LABELS),
  tierSlabsFree: gauge(
    "cairn_tier_slabs_free",
    "Slabs given to no size class.",
    "tier",
    TIER_LABELS,
  ),
  ledgerBlocks: gauge("cairn_ledger_blocks", "Block records in use."),
  ledgerBlocksMax: gauge("cairn_ledger_blocks_max", "Block records the ledger has room for."),
  ledgerBytes: gauge("cairn_ledger_bytes", "Bytes of the ledger's tables."),
  orphans: gauge("cairn_orphans", "Blocks that are orphans now."),
  holes: gauge("cairn_holes", "Holes listed now."),
  namespaces: gauge("cairn_namespaces", "Namespaces known."),
  namespacesUnproven: gauge(
    "cairn_namespaces_unproven",
    "Namespaces with an instance that must prove.",
  ),
  leases: gauge("cairn_leases", "Leases held."),
  pinnedBytes: gauge("cairn_pinned_bytes", "Bytes pinned by leases."),
  instances: gauge("cairn_instances", "Engine instances alive."),
  connections: gauge("cairn_connections", "Connections open."),
  regions: gauge("cairn_regions", "Regions registered."),
  regionBytes: gauge("cairn_region_bytes", "Bytes of registered windows."),
  jobs: gauge("cairn_jobs", "Jobs in flight."),
  copyQueueItems: gauge("cairn_copy_queue_items", "Copies waiting for a thread."),
  copyQueueBytes: gauge("cairn_copy_queue_bytes", "Bytes of copies waiting."),
  copyBusySeconds: counter(
    "cairn_copy_busy_seconds_total",
    "Seconds copy threads worked, all together.",
  ),
  ready: gauge("cairn_ready", "1 while the daemon serves engines."),
  startTime: gauge("cairn_start_time_seconds", "Unix time of this start."),
  restartSeconds: gauge("cairn_restart_seconds", "Start of the process to serving."),
  configReloads: counter("cairn_config_reloads_total", "Reloads, by outcome.", "outcome", [
    "applied",
    "rejected",
  ]),
  // Processes
  eventLoopSeconds: seconds("cairn_event_loop_delay_seconds", "Delay of the ledger's event loop."),
  heapUsedBytes: gauge("cairn_heap_used_bytes", "V8 heap of the ledger's thread."),
  residentBytes: gauge("cairn_resident_bytes", "Resident set of the daemon, windows included."),
  cpuSeconds: counter("cairn_cpu_seconds_total", "CPU of the daemon, all threads."),
} as const satisfies Record<string, MetricRow>;

export type MetricName = keyof typeof METRICS;
