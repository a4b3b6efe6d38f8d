/**
 * What the remote tier is asked and answers: the words between it, the mover that feeds it and the daemon that
 * owns the memory. Keys are always records of KEY_BYTES bytes, zero-padded, as slot headers hold them.
 */
import type { DeviceHealth } from "../tier.ts";
import type { GuardOptions } from "./guarded-store.ts";
import type { CallLimits, Fault, ObjectStore } from "./object-store.ts";

export const KEY_BYTES = 32;
export const DIGEST_BYTES = 16;

/** What all chunks of one namespace have in common. */
export interface ChunkSpace {
  /** Namespace digest, DIGEST_BYTES bytes. */
  readonly namespace: Uint8Array;
  /** Blocks of a chunk: chunkBlocksOf() of chunk.ts. */
  readonly chunkBlocks: number;
  readonly payloadBytes: number;
  readonly shards: number;
  /** Whose data key seals its chunks; absent: nobody's. */
  readonly tenant?: string | undefined;
}

/** One chunk: blocks of depth firstDepth … firstDepth + chunkBlocks − 1 of one chain and shard. Roots have depth 1. */
export interface Chunk {
  readonly space: ChunkSpace;
  readonly shard: number;
  /** cN + 1 */
  readonly firstDepth: number;
  /** chunkBlocks records of KEY_BYTES bytes. */
  readonly keys: Uint8Array;
  /** KEY_BYTES bytes; zeros when firstDepth is 1. */
  readonly parentKey: Uint8Array;
}

/** The local side of a transfer: item i is the block `from + i` of the chunk. */
export interface DramItems {
  /** DRAM slots: sources of an upload, targets of a fetch. NO_DRAM_SLOT: the source is the disk slot beside it. */
  readonly slots: Uint32Array;
  /** By item; absent: all sources stand in DRAM. */
  readonly diskSlots?: Uint32Array | undefined;
  /** Ledger records of the blocks (the addon reads key, parent and depth there). */
  readonly blocks: Uint32Array;
}

/** Order in which requests get memory and connections. */
export const PRIORITY = { DEMAND: 0, PREFETCH: 1, UPLOAD: 2 } as const;
export type Priority = (typeof PRIORITY)[keyof typeof PRIORITY];

/**
 * Copies between DRAM slots and the staging region; built by the daemon over COPY.EXPORT and COPY.IMPORT. Item i
 * lies at `offsetBytes + i * strideBytes` of the region, DISK_HEADER_BYTES of header in front of its payload.
 * Resolves, never rejects, with one ITEM status per item once no item touches the region any more.
 */
export interface StagingCopies {
  exportBlocks(range: StagedRange, items: DramItems): Promise<Uint8Array>;
  /** Verifies identity and payload hash of each item before its slot is valid. */
  importBlocks(range: StagedRange, items: DramItems): Promise<Uint8Array>;
}

export interface StagedRange {
  readonly offsetBytes: number;
  readonly strideBytes: number;
  readonly payloadBytes: number;
  readonly shard: number;
  readonly shards: number;
  readonly deadlineMs: number;
  /** EXPORT seals by it, IMPORT opens. */
  readonly seal?: SealKey | undefined;
}

/** A data key (32 bytes) and what stored blocks call it (SEAL_KEY_ID_BYTES). */
export interface SealKey {
  readonly id: Uint8Array;
  readonly bytes: Uint8Array;
}

/** Memory that both JS and the addon see. Made by the daemon: regionCreate + clientMap; at most 4 GiB. */
export interface StagingMemory {
  readonly bytes: Uint8Array;
}

/**
 * The keys by which chunks are sealed at rest (addon/seal.h does it). Without a sealer, objects hold what EXPORT
 * wrote. It is part of an object's name, so that nodes with and without it never read each other's objects.
 */
export interface ChunkSealer {
  /** Part of object names: `a-z 0-9`. */
  readonly name: string;
  /** Bytes behind each block that it needs, a multiple of 64; 0: nonce and tag stand in the block's header. */
  readonly overheadBytes: number;
  /** For new chunks; undefined: no key, chunks are not stored, and fetches are misses. */
  sealKey(space: ChunkSpace): SealKey | undefined;
  /** For a stored block that names its key; undefined: not here. A miss, and the object stays for those who have it. */
  openKey(space: ChunkSpace, id: Uint8Array): SealKey | undefined;
}

export type UploadResult =
  /** `bytes`: of the object; 0 when somebody else had stored it. */
  | { readonly outcome: "stored" | "present"; readonly bytes: number }
  /** Not stored, and why. `source`: a slot could not be exported (its block left or is corrupt). */
  | { readonly outcome: "failed"; readonly fault: Fault | "source" | "sealing" | "quarantined" };

export interface FetchResult {
  /** ITEM status per item; ITEM.OK: its DRAM slot holds the verified block. */
  readonly statuses: Uint8Array;
  /** Why the object could not be read at all; absent when its bytes came. */
  readonly fault: Fault | "sealing" | "quarantined" | undefined;
  /** Object bytes received. */
  readonly bytes: number;
  readonly microseconds: number;
}

export interface RemoteTierOptions {
  readonly store: ObjectStore;
  readonly staging: StagingMemory;
  readonly copies: StagingCopies;
  readonly sealer?: ChunkSealer | undefined;
  /** Delete objects that fail their checks; else they are only avoided. */
  readonly deleteCorrupt: boolean;
  /** Transfers at the store at once. Uploads take at most half of them, and of the staging memory. */
  readonly transfersMax: number;
  readonly requestDeadlineMs: number;
  readonly existence: ExistenceOptions;
  readonly guard?: Partial<GuardOptions>;
  /** Absent: this node removes nothing. */
  readonly garbage?: GarbageOptions | undefined;
  /** How often it is looked whether a store that is fenced or read-only is due to be asked. */
  readonly probeIntervalMs: number;
  /** Above this many milliseconds per MiB (average) the tier is slow. */
  readonly slowMsPerMiB: number;
  readonly log?: (line: string) => void;
  /** What should not happen, and what is behind it goes on as a miss; log() by default. */
  readonly fault?: ((error: unknown) => void) | undefined;
  /** Milliseconds of any monotonic clock; performance.now by default. */
  readonly now?: () => number;
}

export interface GarbageOptions {
  readonly intervalMs: number;
  /** Objects older than this go; 0: no limit. */
  readonly ageMsMax: number;
  /** Bytes the store may hold, oldest go first; 0: no limit. */
  readonly bytesMax: number;
  /** Nothing younger is touched, whatever the budget says; covers the clocks' differences. */
  readonly graceMs: number;
  /** In each round a node removes one of so many parts: about the number of nodes that collect. */
  readonly parts: number;
}

export interface ExistenceOptions {
  readonly entriesMax: number;
  readonly presentMs: number;
  readonly absentMs: number;
  readonly probesMax: number;
}

/** What is known of a chain in the store. */
export interface RemoteHint {
  /** 0, or a multiple of chunkBlocks beyond what is local. */
  readonly blocks: number;
  /** The store is being asked: a later call may know more. */
  readonly asking: boolean;
}

export const NO_HINT: RemoteHint = { blocks: 0, asking: false };

/** The remote tier as the mover and the engine API see it (index.ts builds it). */
export interface RemoteStorage {
  readonly description: string;
  readonly health: DeviceHealth;
  /** Whether an upload of a chunk would begin now: the store takes objects, and there is memory. */
  mayUpload(space: ChunkSpace): boolean;
  /** Resolves, never rejects. Existing objects are found in the cache first and cost no copy. */
  upload(chunk: Chunk, items: DramItems, limits: CallLimits): Promise<UploadResult>;
  /**
   * Brings blocks [from, from + items.slots.length) of the chunk into DRAM slots. Resolves, never rejects, once no
   * byte lands in the slots any more.
   */
  fetch(
    chunk: Chunk,
    from: number,
    items: DramItems,
    priority: Priority,
    limits: CallLimits,
  ): Promise<FetchResult>;
  /**
   * Blocks of this chain (keys of keyBytes bytes each from the root on, as frames hold them) that stand in the store
   * in all shards, as far as the cache knows. A hint without a lease, answered at once; what is not known is asked in
   * the background, so that a later call knows.
   */
  remotePrefix(
    space: ChunkSpace,
    keys: Uint8Array,
    keyBytes: number,
    localBlocks: number,
  ): RemoteHint;
  snapshot(): RemoteSnapshot;
  close(): Promise<void>;
}

/** One reading of all its counters and gauges; the first part is what src/observe publishes. */
export interface RemoteSnapshot {
  readonly description: string;
  readonly health: DeviceHealth;
  /** Attempts at the store by outcome. */
  readonly requests: Readonly<Record<Fault | "ok", number>>;
  readonly retries: number;
  /** Retries that the budget did not allow. */
  readonly retriesDenied: number;
  readonly breakerOpened: number;
  /** Times the store stopped taking objects, and probes that found that it still takes none. */
  readonly readOnlyTurns: number;
  readonly writeProbesFailed: number;
  readonly receivedBytes: number;
  readonly sentBytes: number;
  readonly fetchedBlocks: number;
  readonly failedBlocks: number;
  readonly corruptBlocks: number;
  /** Objects whose header or length was wrong. */
  readonly corruptObjects: number;
  /** Sound objects under another object's name. */
  readonly misplacedObjects: number;
  /** Uploads not begun and fetches that were misses, for want of the tenant's data key. */
  readonly sealKeyMissing: number;
  /** Objects that hold open blocks under the name of sealed ones. */
  readonly unsealedObjects: number;
  readonly storedChunks: number;
  readonly presentChunks: number;
  readonly failedChunks: number;
  readonly existenceHits: number;
  readonly existenceMisses: number;
  readonly existenceEntries: number;
  /** Probes and searches left out at their bound. */
  readonly probesDropped: number;
  /** Objects that garbage collection removed. */
  readonly collected: number;
  readonly quarantined: number;
  readonly stagingBytes: number;
  readonly stagingUsedBytes: number;
  readonly transfers: number;
  readonly waiting: number;
  /** Of one transfer alone, averaged; 0 before the first. */
  readonly getBytesPerSecond: number;
  readonly putBytesPerSecond: number;
  readonly lastFault: string;
}
