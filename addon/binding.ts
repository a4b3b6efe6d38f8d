/**
 * The typed face of the native addon: everything TypeScript may ask of the byte-moving side.
 *
 * JS never sees a pointer or a pool-sized buffer. It names memory as (arena, slot) and (region, byte
 * offset), and blocks by their index in the ledger's record table, which the addon reads for keys and
 * depths (attachLedger). One call submits a batch; completions, frames, accepted and closed connections
 * come back through one event queue that is drained by poll() at most once per event-loop turn.
 *
 * Slot number: slab index << SLOT_INDEX_BITS | index inside the slab.
 * Threads: one transport thread (epoll), `copyThreads` copy threads, short-lived pre-touch/scan helpers.
 */

/** Words of one event in `events`: [type, id, offset, length, a, b, c, d]. */
export const EVENT_WORDS = 8;
export const EVENT = {
  /** id = connection; a = pid, b = uid, c = gid, d = listener. */
  ACCEPT: 1,
  /** id = connection; offset/length = the whole frame (header + body) in `inbox`, 8-byte aligned; a = descriptor or 0xffffffff, b = microseconds it waited for poll(). */
  FRAME: 2,
  /** id = connection; a = CLOSE_REASON. No event of this connection follows. */
  CLOSE: 3,
  /** id = batch; offset/length = item status bytes in `statuses`; a = failed items, b = microseconds, c/d = bytes copied low/high. */
  COPIED: 4,
  /** id = task given at the call; a = done, b = total, c = 0 running, 1 ended, 2 failed; d = errno of a window. Pre-touch, scan, window. */
  PROGRESS: 5,
} as const;

export const CLOSE_REASON = {
  PEER: 0,
  BAD_MAGIC: 1,
  FRAME_TOO_LARGE: 2,
  FRAME_TIMEOUT: 3,
  HELLO_TIMEOUT: 4,
  SLOW_READER: 5,
  LOCAL: 6,
  SYSTEM: 7,
  VERSION: 8,
} as const;

/** Item status of a copy batch. */
export const ITEM = {
  OK: 0,
  /** Payload hash differs. */
  CORRUPT: 1,
  /** Header state, key, namespace, shard, depth or length differ. */
  IDENTITY: 2,
  CANCELLED: 3,
  DEADLINE: 4,
  /** Region gone (unmapped) or range out of it: refused before any byte moved. */
  REGION: 5,
  /** The device failed this read or write, or answered short. */
  IO: 6,
} as const;
/**
 * Disk READ with a DRAM target: set beside the status when the target slot holds the verified block, too. (A read can
 * fail for the region, which went, and still have promoted.)
 */
export const ITEM_PROMOTED = 0x80;

export const COPY = {
  STORE: 1,
  LOAD: 2,
  MOVE: 3,
  VERIFY: 4,
  /** DRAM slot → region: the header of a disk slot (DISK_HEADER_BYTES, directory id zero), then the payload; hash checked. */
  EXPORT: 5,
  /**
   * Region → DRAM slot: header and payload as EXPORT made them. IDENTITY unless the header verifies and names the block
   * of the item's ledger record; CORRUPT if the payload hash differs: the slot is then free.
   */
  IMPORT: 6,
} as const;
/** Kinds of disk batches: READ before WRITE before VERIFY. */
export const DISK = { READ: 1, WRITE: 2, VERIFY: 3 } as const;
export const SLOT_INDEX_BITS = 18;

/**
 * Words of one copy item: [slot, rangeLow, rangeHigh, block, generation].
 * range = byte offset in the region (STORE/LOAD: payloadBytes; EXPORT/IMPORT: DISK_HEADER_BYTES + payloadBytes); for
 * MOVE rangeLow = target slot. block = ledger record. generation: LOAD and EXPORT refuse another one (IDENTITY); 0 =
 * any. STORE, MOVE and IMPORT write the slot's last generation + 1.
 */
export const ITEM_WORDS = 5;

/**
 * Words of one disk item: [diskSlot, rangeLow, rangeHigh, block, dramSlot].
 * READ: disk slot → region range and/or DRAM slot. Without a region (batch.region 0) the range is ignored;
 * NO_DRAM_SLOT: no DRAM target. WRITE: DRAM slot → disk slot, its payload hash checked on the way. VERIFY: only read
 * and hashed. READ and VERIFY expect the generation that diskSubmit(WRITE) or diskRestore() last gave the slot.
 */
export const DISK_ITEM_WORDS = 5;
export const NO_DRAM_SLOT = 0xffff_ffff;
/** Bytes in front of the payload in a disk slot: the slot header, the namespace digest, the directory's id. */
export const DISK_HEADER_BYTES = 192;
/** Offset of the u32 format version in these bytes; a sealed block has SEALED_FLAG in it (addon/seal.h). */
export const DISK_VERSION_OFFSET = 160;
export const SEALED_FLAG = 0x8000_0000;
/** Offset and length of the data key's id in a sealed block's header. */
export const SEAL_KEY_ID_OFFSET = 144;
export const SEAL_KEY_ID_BYTES = 16;
export const SEAL_KEY_BYTES = 32;
/** Disk slots and segment headers are multiples of this (O_DIRECT). */
export const DISK_SECTOR_BYTES = 4_096;

export interface LedgerLayout {
  /** The ledger's record table (over a SharedArrayBuffer). */
  readonly records: Uint32Array;
  readonly recordWords: number;
  /** Word offsets inside a record. Parent is a record index, 0xffffffff for none. */
  readonly keyWord: number;
  readonly parentWord: number;
  readonly depthWord: number;
  readonly depthMask: number;
  readonly namespaceWord: number;
  readonly namespaceMask: number;
}

export interface ArenaOptions {
  /** Pool file; created with mode 0600, locked, owner and mode checked. */
  readonly path: string;
  readonly slabBytes: number;
  readonly slabs: number;
  /** Bind to this NUMA node, -1 for none. */
  readonly numaNode: number;
  /** Spread pages over these NUMA nodes; absent or empty for none. Where the kernel refuses, pages lie where they fall. */
  readonly interleaveNodes?: readonly number[];
  /** madvise huge pages where the file system has them. */
  readonly hugePages: boolean;
}

/**
 * Thrown errors of the addon carry `code`: LOCKED, UNSAFE, FORMAT, CLOSED, ARGUMENT, BUSY (copies, a scan or
 * pre-touch still use it), NOT_SEALED, TOO_SMALL, NO_CIPHER, or an errno name such as ENOSPC.
 */
export type AddonErrorCode = string;

export interface ArenaInfo {
  readonly arena: number;
  /** The file existed and its format was readable. */
  readonly reopened: boolean;
  /** The last owner closed it in order (after-images of last access are in the headers). */
  readonly clean: boolean;
  readonly slabs: number;
  readonly slabBytes: number;
  /** interleaveNodes was asked for and holds. */
  readonly numaPolicySet: boolean;
}

export interface SlabInfo {
  readonly slab: number;
  /** Payload bytes per slot as assigned (0 = free slab). */
  readonly payloadBytes: number;
  readonly slots: number;
}

export interface NamespaceInfo {
  readonly index: number;
  readonly digest: Uint8Array;
  readonly descriptor: Uint8Array;
}

/** Words of one scanned header: 32 words of the 128-byte slot header (addon/header.h) + [slot]. */
export const SCAN_WORDS = 33;
/** Word offsets in the 128-byte slot header, little-endian (addon/header.h is the definition; a golden file holds both together). */
export const SLOT_HEADER = {
  STATE: 0,
  MAGIC: 1,
  NAMESPACE: 2,
  DEPTH: 3,
  /** shard index | shard count << 16 */
  SHARD: 4,
  GENERATION: 5,
  LENGTH: 6,
  VERSION: 7,
  LAST_ACCESS_LOW: 8,
  LAST_ACCESS_HIGH: 9,
  PAYLOAD_HASH: 10,
  HEADER_HASH: 14,
  KEY: 16,
  PARENT_KEY: 24,
} as const;

export interface TransportOptions {
  readonly frameBodyBytesMax: number;
  readonly connectionsMax: number;
  readonly outboundBytesMax: number;
  readonly frameTimeoutMs: number;
  readonly helloTimeoutMs: number;
  readonly magic: number;
  readonly version: number;
  /** Whole frames by CLOSE_REASON: the last words before the transport closes for that reason. */
  readonly farewells?: readonly (Uint8Array | undefined)[];
  /** The same for a connection beyond connectionsMax. */
  readonly refusal?: Uint8Array;
}

export interface RegionInfo {
  readonly region: number;
  readonly sizeBytes: number;
}

export interface AddonCounters {
  readonly framesReceived: number;
  readonly bytesReceived: number;
  readonly framesSent: number;
  readonly bytesSent: number;
  readonly connections: number;
  readonly connectionsRefused: number;
  readonly inboxFullStalls: number;
  readonly copyQueueItems: number;
  readonly copyQueueBytes: number;
  readonly bytesStored: number;
  readonly bytesLoaded: number;
  readonly copyBusyMicroseconds: number;
  readonly itemsCorrupt: number;
  readonly itemsIdentity: number;
  /** Faults injected on purpose (arenaFlipBit). */
  readonly faultsInjected: number;
}

export interface CopyBatch {
  readonly kind: number;
  readonly batch: number;
  readonly arena: number;
  /** 0 for MOVE and VERIFY. */
  readonly region: number;
  readonly shard: number;
  readonly shards: number;
  readonly payloadBytes: number;
  /** Milliseconds from now; 0 = none. Items not begun by then end DEADLINE. */
  readonly deadlineMs: number;
  /**
   * EXPORT seals its blocks by AES-256-GCM under this data key (32 bytes, copied, wiped when the batch ends); IMPORT
   * takes only blocks sealed by it (not sealed or another keyId: IDENTITY, another tag: CORRUPT). Throws NO_CIPHER
   * where sealing() is false.
   */
  readonly key?: Uint8Array | undefined;
  /** With a key: its id, SEAL_KEY_ID_BYTES, which stands in each block's header. */
  readonly keyId?: Uint8Array | undefined;
}

export interface DiskOptions {
  /** Directory of one device: exists, ours, 0700. Locked by its file `directory.cairn`, which open() makes or reads. */
  readonly directory: string;
  readonly segmentBytes: number;
  /** auto: io_uring if a probe read works, else threads. */
  readonly mode: "auto" | "uring" | "threads";
  /** auto: O_DIRECT if a probe read and write work, else buffered. */
  readonly direct: "auto" | "off";
  /** Reads and writes in flight at the device. */
  readonly queueDepth: number;
  /** Writes in flight at the device (one batch at a time). */
  readonly writeDepth: number;
  /** Staging memory: half of it bounds the largest slot. */
  readonly stagingBytes: number;
}

export interface DiskInfo {
  readonly disk: number;
  /** The directory held a directory.cairn. */
  readonly reopened: boolean;
  /** 16 bytes, made once; stands in every slot header. */
  readonly directoryId: Uint8Array;
  readonly segmentBytes: number;
  readonly mode: "uring" | "threads";
  readonly direct: boolean;
  /** Why a better mode was not taken; one line each, for the log. */
  readonly notes: readonly string[];
}

export interface SegmentInfo {
  readonly segment: number;
  /** Payload bytes a slot serves, 0 = free. */
  readonly payloadBytes: number;
  /** Written once from end to end. One that is not is prepared again. */
  readonly prepared: boolean;
}

export interface DiskCounters {
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
  /** io_uring reads and writes registered memory. Not at first: memory is touched and registered beside the first work. */
  readonly registeredBuffers: boolean;
  /** Microseconds the oldest operation at the device has taken so far; 0 when idle. A stalled device shows here. */
  readonly oldestMicroseconds: number;
  /** Microseconds of CPU of this disk's threads. */
  readonly cpuMicroseconds: number;
}

export interface DiskBatch {
  readonly kind: number;
  readonly batch: number;
  readonly disk: number;
  /** The DRAM arena: its namespaces seed the header hashes; its slots are sources and targets. */
  readonly arena: number;
  /** 0 = none. */
  readonly region: number;
  readonly shard: number;
  readonly shards: number;
  readonly payloadBytes: number;
  /** Milliseconds from now; 0 = none. Items not ended by then end DEADLINE, also those a stalled device sits on: their bytes then go nowhere. */
  readonly deadlineMs: number;
  /** Smaller first among READs: 0 demand load, 1 prefetch, 2 others. */
  readonly priority: number;
}

export interface Addon {
  /** Starts the threads. onReady is called (coalesced) on the JS thread when poll() has something. Once per process life; stop() ends it. */
  start(options: {
    readonly copyThreads: number;
    readonly inbox: ArrayBuffer;
    readonly events: Uint32Array;
    readonly statuses: Uint8Array;
    readonly transport: TransportOptions;
    readonly onReady: () => void;
  }): void;
  /** Ends all threads, closes connections, unmaps; idempotent; also runs at environment clean-up. */
  stop(): void;
  /** Fills `events`; returns how many. Frame and status bytes handed out stay valid until the next poll(). */
  poll(): number;

  listen(path: string, mode: number, listener: number): void;
  unlisten(listener: number): void;
  /** Queues bytes [offset, offset+length) of `from` for the connection; tries to write at once. descriptor -1 = none. False: connection gone. */
  send(
    connection: number,
    from: Uint8Array,
    offset: number,
    length: number,
    descriptor: number,
  ): boolean;
  /** The first HELLO of this connection was accepted: the hello timeout is over. */
  established(connection: number): void;
  closeConnection(connection: number, reason: number): void;
  closeDescriptor(descriptor: number): void;

  /** Maps a sealed memfd (checks seals and size); touches no page. Takes over the descriptor. Throws code NOT_SEALED, TOO_SMALL or an errno. */
  regionMap(descriptor: number, sizeBytes: number): RegionInfo;
  /** Makes a sealed memfd and maps it untouched; the descriptor is for send(), then closeDescriptor(). */
  regionCreate(sizeBytes: number): RegionInfo & { readonly descriptor: number };
  /**
   * Touches every page on a native thread, windows in turn; one PROGRESS event under `task`: ended, or failed
   * with an errno (ECANCELED: unmapped meanwhile).
   */
  regionTouch(region: number, task: number): void;
  /** Unmaps once no copy uses it; items not begun end REGION. */
  regionUnmap(region: number): void;
  /** Layout-proof pattern (docs/protocol.md): compare, then write that of seed + 1. False on difference. */
  regionProve(region: number, offsetBytes: number, rowBytes: number, seed: number): boolean;

  arenaOpen(options: ArenaOptions): ArenaInfo;
  arenaClose(arena: number, keep: boolean): void;
  /** Pre-touches slabs [from, to) with `threads`; PROGRESS events under `task`. */
  arenaPopulate(arena: number, from: number, to: number, threads: number, task: number): void;
  arenaSlabs(arena: number): SlabInfo[];
  /** Gives a free slab to a size class; returns its slot count. */
  arenaAssign(arena: number, slab: number, payloadBytes: number): number;
  arenaRelease(arena: number, slab: number): void;
  /** Slots a slab would hold for this payload. */
  arenaSlotsPerSlab(slabBytes: number, payloadBytes: number): number;
  /** Grows or (upper slabs released before) shrinks the file. */
  arenaResize(arena: number, slabs: number): void;
  arenaNamespaces(arena: number): NamespaceInfo[];
  arenaPutNamespace(arena: number, index: number, digest: Uint8Array, descriptor: Uint8Array): void;
  /** Sets state = free in these slots' headers (release). */
  arenaInvalidate(arena: number, slots: Uint32Array, count: number): void;
  /** Writes last access (milliseconds of Unix time) into headers; for a clean stop. */
  arenaTouch(arena: number, slots: Uint32Array, lastAccess: Float64Array, count: number): void;
  /** Verifies every header (hash seeded by the namespace's digest), parallel; then PROGRESS ended. Invalid headers are freed and counted in `b`-`a`. */
  arenaScan(arena: number, threads: number, task: number): void;
  /** After the scan: copies up to `into.length / SCAN_WORDS` valid headers, sorted by depth then generation descending, from the cursor on; returns how many, 0 at the end. */
  arenaScanRead(arena: number, into: Uint32Array): number;
  /** Test and demo seam: flips one bit of a stored payload. Counted as an injected fault. */
  arenaFlipBit(arena: number, slot: number, bit: number): void;

  attachLedger(layout: LedgerLayout): void;
  /**
   * Has memory made ready for the first `count` words, beside, which change nothing by that: JS that fills a large table
   * does not stop at every page. No event follows.
   */
  touchWords(words: Uint32Array, count: number): void;
  /** items: ITEM_WORDS each, from word 0. Copied before return. LOAD before STORE and IMPORT before MOVE and EXPORT before VERIFY. */
  copySubmit(batch: CopyBatch, items: Uint32Array, count: number): void;
  /** Items not begun end CANCELLED; the batch still ends in one COPIED event. */
  copyCancel(batch: number): void;
  /** Whether this process can seal: AES-256-GCM of the OpenSSL that the node binary exports. */
  sealing(): boolean;

  /** Opens one device's directory. Throws LOCKED, UNSAFE, FORMAT or an errno name. */
  diskOpen(options: DiskOptions): DiskInfo;
  /** Ends the disk's threads. Operations a stalled device sits on are given up: their items end CANCELLED. */
  diskClose(disk: number): void;
  /** Segment files found, ascending. */
  diskSegments(disk: number): SegmentInfo[];
  /**
   * Creates the file and writes it once from end to end, in the background and behind all reads and writes. PROGRESS
   * under `task` (done, total in MiB): running, ended, or failed with errno d (the file is then removed).
   */
  diskPrepare(disk: number, segment: number, task: number): void;
  /** From now on slot numbers of `slab` (slab << SLOT_INDEX_BITS | index) name this prepared segment. */
  diskAttach(disk: number, segment: number, slab: number): void;
  /** Detaches the slab; `remove` deletes the file. Throws BUSY while items use it. */
  diskDetach(disk: number, slab: number, remove: boolean): void;
  /** Gives a free attached segment to a size class (its segment header goes out before the first slot); returns slots. */
  diskAssign(disk: number, slab: number, payloadBytes: number): number;
  diskRelease(disk: number, slab: number): void;
  /** Slots a segment would hold for this payload. */
  diskSlotsPerSegment(segmentBytes: number, payloadBytes: number): number;
  /** Start-up: generations known from the index. */
  diskRestore(disk: number, slots: Uint32Array, generations: Uint32Array, count: number): void;
  /** Generations of these slots, for the index. */
  diskGenerations(disk: number, slots: Uint32Array, count: number, into: Uint32Array): void;
  /** Reads every slot header of the attached slabs in the background, verified; PROGRESS under `task` (slots). */
  diskScan(disk: number, arena: number, task: number): void;
  /** After the scan: like arenaScanRead (SCAN_WORDS words each, depth ascending, generation descending), NAMESPACE = the arena's index for the header's digest. Restores generations as it goes. */
  diskScanRead(disk: number, into: Uint32Array): number;
  /** fdatasync of every segment written since the last call; then PROGRESS under `task`: ended, or failed with errno d. Covers all writes that had ended before the call. */
  diskSync(disk: number, task: number): void;
  /** items: DISK_ITEM_WORDS each. Copied before return. One COPIED event, as for copySubmit; diskCancel likewise. Batch numbers are shared with copySubmit. */
  diskSubmit(batch: DiskBatch, items: Uint32Array, count: number): void;
  diskCancel(disk: number, batch: number): void;
  diskCounters(disk: number): DiskCounters;

  counters(): AddonCounters;
  /** memcpy between two fresh shared mappings, GB/s; the bench reference. Synchronous. */
  benchMemcpy(bytes: number, blockBytes: number, passes: number, hugePages: boolean): number[];

  /**
   * Blocking native load generator for benches (no event loop in the way): sends `request` and waits for a
   * frame-sized reply of `replyBytes` (0 = read one whole frame), `count` times; returns microseconds of each
   * round trip. Its twin is benchEcho: answers every `requestBytes` with `replyBytes` until the client leaves.
   */
  benchRoundTrips(
    path: string,
    hello: Uint8Array,
    request: Uint8Array,
    replyBytes: number,
    count: number,
  ): Float64Array;
  benchEcho(path: string, requestBytes: number, replyBytes: number): void;

  /** Client side (connectors/node, tests); independent of start(). */
  clientMemfd(
    sizeBytes: number,
    hugePages: boolean,
  ): { readonly descriptor: number; readonly buffer: ArrayBuffer };
  /** Maps a received memfd as an external ArrayBuffer (at most 4 GiB). */
  clientMap(descriptor: number, sizeBytes: number): ArrayBuffer;
  /** Takes the memory away from this ArrayBuffer and every view of it: they have length 0 from here on. */
  clientDetach(buffer: ArrayBuffer): void;
  /**
   * Connects; frames are read by uv_poll on the JS loop (no thread). onFrame gets a view that is valid during the
   * call only; descriptor -1 = none. onClose is called once. Throws an errno name if nobody listens.
   */
  clientOpen(
    path: string,
    onFrame: (frame: Uint8Array, descriptor: number) => void,
    onClose: (reason: string) => void,
  ): number;
  /** False: connection gone, or more than 64 MiB unsent. */
  clientSend(
    client: number,
    bytes: Uint8Array,
    offset: number,
    length: number,
    descriptor: number,
  ): boolean;
  clientClose(client: number): void;
}
