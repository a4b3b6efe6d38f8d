/**
 * What crosses between the daemon's main thread and the edge's worker thread. Everything here is plain data
 * (structured clone) or a SharedArrayBuffer. Figures are read from shared memory; only what shared memory
 * does not hold is asked of the main thread, through `EdgeRequest`, one small bounded answer each.
 */
import type { Config } from "../config/schema.ts";
import type { Problem } from "../config/fields.ts";
import type { ErrorName } from "../errors.ts";
import type { SharedLedger } from "../ledger/view.ts";
import type { DeviceReading, RemoteReading } from "../observe/lower.ts";

/** Fixed facts of this daemon life. */
export interface NodeInfo {
  readonly node: string;
  readonly version: string;
  /** New for every start of the daemon. */
  readonly epoch: string;
  readonly pid: number;
  /** Unix time in milliseconds. */
  readonly startedMs: number;
  readonly engineSocket: string;
}

export interface SizeClassSnapshot {
  readonly payloadBytes: number;
  readonly slabs: number;
  readonly slots: number;
  readonly slotsUsed: number;
}

export interface TierSnapshot {
  readonly tier: string;
  readonly state: "serving" | "fenced" | "absent";
  readonly capacityBytes: number;
  readonly usedBytes: number;
  readonly blocks: number;
  readonly visibleBlocks: number;
  readonly slots: number;
  readonly slotsUsed: number;
  readonly slabs: number;
  readonly slabsFree: number;
  readonly classes: readonly SizeClassSnapshot[];
}

export interface NamespaceSnapshot {
  readonly index: number;
  /** 32 hex digits. */
  readonly digest: string;
  readonly tenant: string;
  /** The descriptor as HELLO declared it (docs/protocol.md). */
  readonly descriptor: Readonly<Record<string, unknown>>;
  readonly visibleBlocks: number;
  /** Engine ids that must still prove a block of this namespace. */
  readonly unprovenBy: readonly string[];
}

export interface InstanceSnapshot {
  readonly instance: number;
  readonly engineId: string;
  readonly engine: string;
  readonly tenant: string;
  readonly uid: number;
  readonly connections: number;
  readonly leases: number;
  readonly pinnedBytes: number;
  readonly regions: number;
  readonly windowBytes: number;
  readonly jobs: number;
  readonly heartbeatAgeMs: number;
}

/** A link between two tiers: what it carries, as measured (src/transfer/links.ts). */
export interface LinkSnapshot {
  readonly link: string;
  readonly bytes: number;
  readonly batches: number;
  readonly latencyMicroseconds: number;
  readonly bytesPerSecond: number;
  readonly recentBytesPerSecond: number;
  readonly p50Microseconds: number;
  readonly p99Microseconds: number;
}

export interface NodeSnapshot {
  readonly tiers: readonly TierSnapshot[];
  /** Disks of the NVMe tier; the index is the device number of the metrics. */
  readonly devices: readonly DeviceReading[];
  /** null: no remote tier. */
  readonly remote: RemoteReading | null;
  readonly links: readonly LinkSnapshot[];
  readonly namespaces: readonly NamespaceSnapshot[];
  readonly instances: readonly InstanceSnapshot[];
}

/** Everything the ledger knows of one block, for `/v1/blocks/explain`. */
export interface BlockExplanation {
  readonly namespace: number;
  readonly key: string;
  readonly parentKey: string | null;
  readonly depth: number;
  readonly flags: readonly string[];
  readonly copies: readonly {
    readonly tier: string;
    readonly state: string;
    readonly pins: number;
    readonly children: number;
  }[];
  readonly leases: number;
  readonly children: number;
  /** One sentence: why it is, or is not, readable. */
  readonly verdict: string;
  /** Tier by tier, in words: why it is there, or why it is not. */
  readonly places: readonly BlockPlace[];
}

export interface BlockPlace {
  readonly tier: string;
  readonly why: string;
}

export interface ConfigApplied {
  /** Dotted paths that changed and are in force. */
  readonly applied: readonly string[];
  readonly config: Config;
}

/** Question → answer, by kind. `configPut` throws ConfigError, or restartNeeded naming the fields. */
export interface EdgeAnswers {
  readonly snapshot: NodeSnapshot;
  readonly config: Config;
  readonly configPut: ConfigApplied;
  readonly explain: readonly BlockExplanation[];
  readonly ping: true;
}
export type EdgeKind = keyof EdgeAnswers;

export type EdgeRequest =
  | { readonly kind: "snapshot" }
  | { readonly kind: "config" }
  | { readonly kind: "configPut"; readonly document: unknown }
  | { readonly kind: "explain"; readonly key: Uint8Array }
  | { readonly kind: "ping" };

/** The daemon's side: one method a question. May throw CairnError; anything else becomes `internal`. */
export interface EdgeHandler {
  snapshot(): NodeSnapshot | Promise<NodeSnapshot>;
  config(): Config;
  configPut(document: unknown): ConfigApplied | Promise<ConfigApplied>;
  explain(key: Uint8Array): readonly BlockExplanation[];
}

/** A rare thing worth an operator's glance, shown by the live page and `cairn top`. */
export interface Notice {
  readonly level: "info" | "warn" | "error";
  readonly text: string;
}

export interface ErrorReply {
  readonly name: ErrorName;
  readonly message: string;
  readonly detail: number;
  readonly problems?: readonly Problem[];
}

/** Messages main → worker and worker → main. */
export type ToWorker =
  | { readonly type: "answer"; readonly id: number; readonly value: unknown }
  | { readonly type: "refusal"; readonly id: number; readonly error: ErrorReply }
  | { readonly type: "notice"; readonly atMs: number; readonly notice: Notice }
  | { readonly type: "devices"; readonly directories: readonly string[] }
  | { readonly type: "stop" };
export type ToMain =
  | { readonly type: "listening"; readonly address: string }
  | { readonly type: "failed"; readonly error: ErrorReply }
  | { readonly type: "ask"; readonly id: number; readonly request: EdgeRequest }
  | { readonly type: "stopped" };

/** Contents of the credential files, read once by the main thread before the worker starts. */
export interface EdgeSecrets {
  readonly token?: string;
  readonly tls?: { readonly cert: string; readonly key: string; readonly clientCa?: string };
}

/** Structured-cloneable; every buffer is shared. */
export interface EdgeLedger {
  readonly view: SharedLedger;
  /** [namespace index] = key words; 0 = no such namespace. Namespaces are numbered densely from 0. */
  readonly keyWords: Uint8Array;
}

/** workerData of the edge. */
export interface EdgeWorkerData {
  readonly feed: SharedArrayBuffer;
  /** null: locate and block events are not offered. */
  readonly ledger: EdgeLedger | null;
  readonly info: NodeInfo;
  readonly listen: string;
  readonly secrets: EdgeSecrets;
}

export interface LocatedBlock {
  readonly namespace: number;
  /** Full key, hex. */
  readonly key: string;
  readonly depth: number;
  readonly tiers: readonly string[];
}

export interface BlockEvent {
  readonly sequence: number;
  readonly kind: "stored" | "removed";
  readonly namespace: number;
  readonly key: string;
  readonly tier: string;
}

/** What the worker reads of the ledger over shared memory. */
export interface LedgerReader {
  /** Visible blocks with this key: the full key, or its last 8 bytes (then there may be several). */
  locate(key: Uint8Array): LocatedBlock[];
  /** Sequence of the next entry of the visibility log. */
  head(): number;
  /** Entries from `sequence` on; `lost` counts those already overwritten. */
  read(sequence: number, max: number): { events: BlockEvent[]; next: number; lost: number };
}
