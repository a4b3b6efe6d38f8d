/**
 * Every bound on input from outside and on every queue stands here, with what happens at the bound.
 * Values marked (config) are defaults of a config field of the same meaning.
 */
const KIB = 1024;
const MIB = 1024 * KIB;

export const LIMITS = {
  /** Keys in one frame: a 1 M-token prompt in 16-token blocks. More: tooManyKeys. */
  keysPerFrameMax: 65_536,
  /** Body of one frame: keysPerFrameMax keys of 32 bytes plus 4 bytes each and the fixed part. More: frameTooLarge, connection closed. */
  frameBodyBytesMax: 65_536 * 36 + 4 * KIB,
  /** Body of a cold (msgpack) frame. More: malformedFrame. */
  coldBodyBytesMax: 64 * KIB,
  /** Nesting of a cold body; HELLO needs four. More: malformedFrame. */
  coldDepthMax: 16,
  /** Key bytes, stored and compared in full. */
  keyBytesMax: 32,
  keyBytesMin: 8,
  /** Connections (config). More: answered tooManyConnections and closed. */
  connectionsMax: 1_024,
  /** Before HELLO a connection may exist this long. Then: closed, counted. */
  helloTimeoutMs: 5_000,
  /** The same refusal of a peer is logged again after; so many different ones in that time. More: not logged. */
  refusedPeerSilenceMs: 600_000,
  refusedPeersSaidMax: 64,
  /** A frame begun must be complete within. Then: closed, counted. */
  frameTimeoutMs: 10_000,
  /** Bytes waiting to be written to one client. More: closed as a slow reader, counted. */
  outboundBytesMax: 16 * MIB,
  /** Ring between transport thread and JS. Full: the transport stops reading. */
  inboxBytes: 16 * MIB,
  /** Jobs in flight per connection (config). More: jobsInFlight. */
  inFlightJobsMax: 256,
  /** CANCEL and FLUSH calls of one connection that wait for jobs to end. More: overloaded. */
  waitingTagsMax: 1_024,
  /** Copy items waiting for or in the hands of copy threads. More: overloaded. */
  copyItemsInFlightMax: 1_048_576,
  /** A stopping daemon lets jobs in flight end for this long, then cancels them. */
  drainMs: 5_000,
  /** Leases per instance (config). More: overloaded. */
  leasesPerInstanceMax: 4_096,
  /** Bytes an instance may pin by leases (config; 0 = half of DRAM). More: the lookup is clipped. */
  pinnedBytesMax: 0,
  /** Prefixes of an instance among which a new lease looks for one it shares. Beyond: counted anew. */
  recentPinsMax: 32,
  /** Parent links walked to prove that a lease stands on a shared prefix. Beyond: counted anew. */
  pinWalkMax: 1_024,
  /** Window bytes per instance (config). More: windowBudget. */
  windowBytesMax: 64 * 1024 * MIB,
  /** A window may take at most this share of the memory that is free when it is registered. More: windowMap. */
  windowShareOfFreeMemory: 0.5,
  regionsPerConnectionMax: 64,
  /** Regions over one memfd: each row is held against the busy rows of all. More: overloaded. */
  regionsPerMemfdMax: 16,
  /** Rows of one region; one byte each is kept here. More: malformedFrame. */
  regionBlocksMax: 16 * MIB,
  namespacesPerHelloMax: 64,
  /** Chains kept for extension per instance, in key bytes. More: oldest chain is forgotten (client resends). */
  chainBytesPerInstanceMax: 64 * MIB,
  /** Lease life without heartbeat: three missed beats (config). */
  heartbeatMs: 2_000,
  heartbeatMisses: 3,
  /** A reserved shard whose data never comes is aborted after (config). */
  storeFillMsMax: 10_000,
  /** Default and largest deadline of a LOAD. */
  loadDeadlineMs: 5_000,
  loadDeadlineMsMax: 60_000,
  /** Keys a namespace of one instance waits to see proved. More: the oldest is asked for again. */
  proofsAskedMax: 64,
  shardsMax: 64,
  /** Namespaces that a pool knows, rows of its table (config). Full: one that nothing names is replaced, else tooManyNamespaces. */
  namespacesMax: 4_096,
  /** Bytes of that table (kNamespaceBytes in addon/arena.cc holds a little more), shared out like the rows. */
  namespaceTableBytes: 1_950_000,
  /** Holes listed before look-ups walk (DESIGN §5 rule 8). */
  holesMax: 1_024,
  /** Depths sampled for the per-tier split of a LOOKUP. */
  splitSamplesMax: 64,
  /** Visibility log entries kept for events, metrics and the live page. */
  visibilityLogEntries: 65_536,
  /** Keys in one /v1/blocks/locate call. */
  locateKeysMax: 4_096,
  httpBodyBytesMax: 1 * MIB,
  sseClientsMax: 32,
  /** Share of a file system that is kept free when the tier grows. */
  nvmeHeadroomShare: 0.05,
  /** Below this share free, the file system counts as full: no writes, and segments are given back. */
  nvmeFullShare: 0.005,
  /** An operation at the device for longer: the device is slow. */
  nvmeSlowMs: 1_000,
  /** An operation at the device for longer: the device is fenced. */
  nvmeFenceMs: 30_000,
  /** Failed reads within nvmeErrorWindowMs that fence a device. */
  nvmeReadErrorsMax: 8,
  nvmeErrorWindowMs: 60_000,
  /** First wait before a faulty device is probed; doubled by each failure up to the most. */
  nvmeProbeMs: 1_000,
  nvmeProbeMsMax: 60_000,
  /** A probe, sync or index commit that takes longer counts as failed. */
  nvmeCommitMsMax: 30_000,
  /** Index pages written by one commit cycle beyond those of its own copies. */
  nvmeDirtyPagesPerCycle: 256,
  /** Freed slots leave the index within, when no copies come. */
  nvmeIdleCommitMs: 500,
  /** Pages whose times of last access are refreshed per idle commit of the background round. */
  nvmeRefreshPages: 16,
  nvmeRefreshMs: 10_000,
  /** Longest wait of a clean stop for times of last access to reach the index. */
  nvmeStopRefreshMs: 5_000,
  /** Main-thread time of one slice of a rebuild from headers or of a drain. */
  nvmeSliceMs: 3,
  /** Headers kept until the disks are read that may hold their parents, about 150 bytes each. More are refused. */
  nvmeLateHeadersMax: 65_536,
  /** A child reads an index within this, plus a second for each 50 MB of it. Later: killed, the index counts as damaged. */
  nvmeIndexReadMs: 20_000,
  nvmeIndexBytesPerSecond: 50_000_000,
  /** Starts in a row that died between opening an index and its first commit. Reached: it counts as damaged. */
  nvmeIndexOpensMax: 4,
  /** Entries of the indexes from which on a start has memory made ready for the ledger's tables. */
  recoveryTouchedMin: 65_536,
  /** After engines are served, until the indexes are opened. */
  nvmeIndexOpenDelayMs: 100,
  /** Rows of one directory's namespaces.json; a page names a row by 16 bits. */
  nvmeNamespaceRowsMax: 65_535,
  /** Smallest payload of a slot; smaller rows are rounded up. */
  slotPayloadBytesMin: 64,
  slabBytes: 64 * MIB,
  /** Operations at one disk (config). More wait in its queues. */
  diskQueueDepth: 16,
  /** Of these, writes (config): enough to fill a device, few enough that reads keep their latency. */
  diskWriteDepth: 8,
  /** Staging memory of one disk (config); half of it bounds a slot. Larger blocks stay in DRAM. */
  diskStagingBytes: 64 * MIB,
  /** Bytes of one read batch of a LOAD: the first rows are there while later ones are still being read. */
  diskReadBatchBytes: 4 * MIB,
  /** Bytes of one write-back batch; a device is given two: one at work, one behind it. More wait in DRAM. */
  writeBackBatchBytes: 8 * MIB,
  /** Blocks of one write-back batch, and candidates of one round. */
  writeBackItemsMax: 512,
  /** Bytes written that wait for sync and index. More: write-back waits. */
  writeBackCommittingBytesMax: 256 * MIB,
  /** Share of DRAM's slots that may be on their way down; they cannot leave meanwhile. */
  writeBackPinnedShare: 0.125,
  /** A device that took no writes is asked again after. */
  writeBackPauseMs: 250,
  /** A write batch that takes longer has failed. */
  writeBackDeadlineMs: 30_000,
  /** Entries of the visibility log that write-through reads in one go: a start leaves a full log. */
  writeThroughLogEntriesMax: 4_096,
  /** Blocks that write-through was refused and offers again, first after. More: they wait until they are old. */
  writeThroughRetriesMax: 1_024,
  writeThroughRetryMs: 1_000,
  writeThroughRetryMsMax: 60_000,
  /** PREFETCHes under way, and keys of one. More: refused, or clipped. */
  prefetchesMax: 64,
  prefetchKeysMax: 262_144,
  /** Bytes that all of them have in flight from disks. More wait. */
  prefetchInFlightBytesMax: 64 * MIB,
  /** A PREFETCH brings in at most this share of DRAM. More: clipped. */
  prefetchShareOfDram: 0.5,
  /** Share of DRAM, oldest first, that is kept copied down, less what is free: eviction is that far away. */
  writeBackAheadShare: 0.25,
  /** Bytes that a scrub reads at once, and records it looks at in a step. */
  scrubBatchBytes: 4 * MIB,
  scrubRecordsPerStep: 4_096,
  /** A directory that is taken away is emptied for this long, then given up. */
  nvmeDrainMs: 600_000,
  /** Chunks of one chain, and chunks of uploads, under way at once. */
  remoteChunksInFlight: 4,
  /** Chunks that wait to be uploaded, 40 bytes each. More: the oldest is dropped, and looked for later. */
  uploadQueueMax: 16_384,
  /** Uploads begun between two ticks: chunks that are known to be stored cost no time at the store. */
  uploadStartsPerTick: 16,
  /** Records one tick of that look reads; it stands while so many chunks wait. */
  uploadScanRecordsPerStep: 4_096,
  uploadScanWaitingMax: 256,
  /** Pause before the next look; doubled up to the most while nothing that is found can be stored. */
  uploadScanMs: 10_000,
  uploadScanMsMax: 3_600_000,
  /** An upload, its waiting included, ends within. */
  uploadDeadlineMs: 60_000,
  /** A store that is down is asked again after. */
  remoteProbeMs: 2_000,
  /** Above this average the store counts as slow. */
  remoteSlowMsPerMiB: 250,
  /** Rounds of garbage collection, and the age below which nothing is collected. */
  remoteGarbageMs: 600_000,
  remoteGraceMs: 3_600_000,
  remoteIdleSocketMs: 30_000,
  /** Refused blocks remembered for `explain`. Beyond: the oldest is forgotten. */
  refusalsKept: 4_096,
  // Remote tier
  /** Payload of a chunk where the namespace's rows allow it (config raises or lowers the upper bound). */
  chunkBytesMin: 2 * MIB,
  chunkBytesMax: 16 * MIB,
  /** Blocks of a chunk, however small they are. */
  chunkBlocksMax: 4_096,
  objectNameCharactersMax: 200,
  /** Transfers that wait for staging memory or a connection. More: `busy`, counted. */
  remoteWaitingMax: 1_024,
  /** Of them uploads. More: not stored, counted; the mover comes again. */
  remoteUploadsWaitingMax: 16,
  /** A writer that is slower than this is dead: what it left in a shared directory is swept, this often. */
  remoteSweepMs: 3_600_000,
  /** Chains whose existence is looked up in the background. More: left out, counted. */
  remoteSearchesMax: 64,
  /** Names of objects that failed their checks. More: the oldest is forgotten. */
  quarantinedObjectsMax: 4_096,
  /** Payload that one connection to a store takes in a turn of the event loop. */
  socketReadBytes: 256 * 1_024,
  /** Memory of such a connection: the head of an answer, then what is read of a refusal. */
  answerBufferBytes: 65_536,
  /** Reads of one answer that are not payload, and interim answers before it. More: the store breaks the protocol. */
  answerReadsMax: 1_024,
  interimAnswersMax: 8,
  /** Body of a store's error answer that is read. */
  storeErrorCharactersMax: 65_536,
  /** A file of credentials is read again after: keys are rotated while the node runs. */
  credentialsReadMs: 60_000,
  /** Data keys of all tenants, and the text (file, or a command's output) that holds them. */
  sealKeysMax: 4_096,
  sealKeyTextBytesMax: MIB,
  /** A command that prints data keys ends within. */
  sealKeyCommandMs: 10_000,
  /** Staging memory: what Node can map as one buffer. */
  stagingBytesMax: 4 * 1024 * MIB,
} as const;
