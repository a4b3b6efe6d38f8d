/** What the client takes and gives. Keys are raw bytes, `keyBytes` of the namespace each, one after the other. */
import type { ErrorName } from "../../src/errors.ts";
import type { NamespaceDescriptor } from "../../src/engine-api/protocol.ts";
import type { LinkAddon } from "./link.ts";
import type { Window } from "./window.ts";

export interface ClientOptions {
  readonly socket: string;
  /** One engine life; all its processes use the same. */
  readonly engineId: string;
  readonly role?: "scheduler" | "worker";
  readonly rank?: number;
  readonly ranks?: number;
  readonly engine?: { readonly name: string; readonly version: string };
  readonly namespaces: readonly NamespaceDescriptor[];
  /** Bound of every call that has no deadline of its own. Default 5,000. */
  readonly timeoutMs?: number;
  /** Throw typed errors instead of answering a miss. Default false. */
  readonly strict?: boolean;
  /** Connect again after the daemon went away. Default true. */
  readonly reconnect?: boolean;
  /** Heartbeats on a timer. Default true. */
  readonly heartbeat?: boolean;
  /** A new daemon life was joined: leases and chains of the old one are gone. */
  readonly onEpoch?: (epoch: string) => void;
  /** For tests. */
  readonly addon?: LinkAddon;
}

export interface LookupOptions {
  /** Position in `namespaces`. Default 0. */
  readonly namespace?: number;
  /** The daemon keeps the chain; the next call of this request sends only what is new. */
  readonly keepChain?: boolean;
  readonly noLease?: boolean;
  readonly prefillTokensPerSecond?: number;
}

export interface Proof {
  /** Depth of the block to prove; the lease covers it. */
  readonly depth: number;
  readonly key: Uint8Array;
}

export interface LookupAnswer {
  /** Blocks of the longest readable prefix. */
  readonly hit: number;
  /** 0 = none. */
  readonly lease: number;
  readonly dramBlocks: number;
  readonly nvmeBlocks: number;
  /** What other nodes have of the chain, as far as is known: a hint that a prefetch turns into a hit. */
  readonly remotePrefixBlocks: number;
  /** The remote store is being asked for more: a later look-up may know of it. */
  readonly remoteAsking: boolean;
  readonly estimatedLoadMicroseconds: number;
  readonly worthLoadingBlocks: number;
  readonly sampled: boolean;
  readonly clipped: boolean;
  /** The daemon wants a block proved before it answers hits. */
  readonly proof: Proof | undefined;
}

export interface LoadRequest {
  readonly lease: number;
  readonly window: Window;
  /** Blocks of the chain before the first key. */
  readonly startDepth: number;
  readonly keys: Uint8Array;
  /** Window row of each key. */
  readonly rows: ArrayLike<number>;
  readonly shard?: number;
  readonly deadlineMs?: number;
}

export interface FailedBlock {
  readonly index: number;
  readonly error: ErrorName;
}

export interface JobResult {
  /** LOAD: blocks that landed verified. STORE: wanted and pending blocks that are visible now. */
  readonly landed: number;
  readonly failed: readonly FailedBlock[];
  readonly bytes: number;
  readonly microseconds: number;
}

export interface StoreRequest {
  /** 0 or absent = none. */
  readonly lease?: number;
  readonly window: Window;
  readonly startDepth: number;
  /** Key of depth startDepth; needed unless that is 0. */
  readonly parentKey?: Uint8Array;
  readonly keys: Uint8Array;
  /** Window row that carries each key's bytes. */
  readonly rows: ArrayLike<number>;
  /** Tokens covered; default: full blocks. */
  readonly tokens?: number;
  readonly shard?: number;
  readonly deadlineMs?: number;
  /**
   * Writes the bytes of block `index` into its row; called for wanted blocks only. Absent: the bytes lie in
   * the rows already (dataReady).
   */
  readonly gather?: (index: number, row: Uint8Array) => void;
}

export interface StoreResult extends JobResult {
  /** STORE_STATUS of each key. */
  readonly statuses: Uint8Array;
  readonly wanted: number;
  readonly pending: number;
  readonly parentAbsent: boolean;
  /** With parentAbsent: offer again from this depth. */
  readonly residentDepth: number;
}

export interface WindowOptions {
  readonly namespace?: number;
  readonly blocks: number;
  /** Default: the namespace's rowBytes. */
  readonly strideBytes?: number;
  readonly offsetBytes?: number;
  readonly make?: "client" | "daemon";
  /**
   * The adapter's own way of moving one engine block: gather() writes pattern bytes through the engine's
   * layout into the row, scatter() brings the row back. Absent: rows are opaque bytes.
   */
  readonly adapter?: LayoutAdapter;
  readonly hugePages?: boolean;
}

export interface LayoutAdapter {
  /** Puts `pattern` into a free engine block, then gathers that block into `row`. */
  gather(pattern: Uint8Array, row: Uint8Array): void;
  /** Scatters `row` into a free engine block and returns the block's canonical bytes. */
  scatter(row: Uint8Array): Uint8Array;
}

export interface Advice {
  readonly verdict: "accepted" | "clipped" | "refused";
  readonly reason?: string;
}

export interface Prefetched extends Advice {
  readonly resident: number;
}

export interface HintRequest {
  readonly namespace?: number;
  readonly key: Uint8Array;
  readonly kind: "retain" | "drop" | "priority" | "sessionEnd" | "nextUse";
  readonly ttlMs?: number;
  readonly value?: number;
}
