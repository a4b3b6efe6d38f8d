/** Constants of the wire protocol, version 1. docs/protocol.md is the description; both change together. */

export const MAGIC = 0x314e5243; // "CRN1"
export const PROTOCOL_VERSION = 1;
export const HEADER_BYTES = 32;

export const OP = {
  HELLO: 1,
  REGISTER: 2,
  PROVE_LAYOUT: 3,
  UNREGISTER: 4,
  LOOKUP: 5,
  LOAD: 6,
  STORE: 7,
  FILL: 8,
  CANCEL: 9,
  FLUSH: 10,
  END_REQUEST: 11,
  TOUCH: 12,
  HINT: 13,
  PREFETCH: 14,
  PROVE: 15,
  HEARTBEAT: 16,
  STATS: 17,
} as const;
export type OpName = keyof typeof OP;

export const FLAG = {
  REPLY: 1,
  ERROR: 2,
  COMPLETION: 4,
  DESCRIPTOR: 8,
  NO_REPLY: 16,
  /** LOOKUP */
  KEEP_CHAIN: 256,
  NO_LEASE: 512,
  /** STORE */
  DATA_READY: 256,
  /** PREFETCH */
  BY_REQUEST: 256,
} as const;

/** Byte offsets of header fields. */
export const HEADER = {
  MAGIC: 0,
  VERSION: 4,
  OP: 5,
  FLAGS: 6,
  BODY_BYTES: 8,
  TAG: 12,
  ID: 16,
  COUNT: 24,
  NAMESPACE: 28,
} as const;

export const LOOKUP_FIXED_BYTES = 8;
export const LOOKUP_REPLY_BYTES = 64;
export const LOOKUP_BITS = {
  PROOF_WANTED: 1,
  SPLIT_SAMPLED: 2,
  CLIPPED: 4,
  /** What is on NVMe takes longer to load than to compute. */
  NVME_SLOW: 8,
  /** So does everything. */
  SLOW: 16,
  /** The remote store is being asked for more of the chain: a later LOOKUP may know of it. */
  REMOTE_ASKING: 32,
} as const;
export const LOAD_FIXED_BYTES = 16;
export const STORE_FIXED_BYTES = 24;
export const STORE_REPLY_FIXED_BYTES = 16;
export const STORE_BITS = { PARENT_ABSENT: 1 } as const;
export const COMPLETION_FIXED_BYTES = 16;

export const STORE_STATUS = {
  PRESENT: 0,
  PENDING: 1,
  WANTED: 2,
  FULL: 3,
  PARENT_ABSENT: 4,
} as const;

/** What an engine declares about its blocks; equal in every field or no hit (DESIGN §3 "namespace"). */
export interface NamespaceDescriptor {
  readonly model: string;
  readonly revision: string;
  readonly kvDtype: string;
  readonly quantScales: boolean;
  readonly layout: string;
  /** Canonical bytes of one shard of one block. */
  readonly rowBytes: number;
  readonly groupKinds: readonly string[];
  readonly draft: boolean;
  readonly blockTokens: number;
  readonly hashAlgorithm: string;
  readonly hashSeed: string;
  readonly engineBuild: string;
  readonly keyBytes: number;
  readonly shards: number;
  readonly chained: boolean;
  readonly chunkBlocks?: number;
}

export interface HelloRequest {
  readonly protocol: readonly number[];
  readonly engineId: string;
  readonly role: "scheduler" | "worker";
  readonly rank: number;
  readonly ranks: number;
  readonly engine: { readonly name: string; readonly version: string };
  readonly namespaces: readonly NamespaceDescriptor[];
}

export interface HelloReply {
  readonly protocol: number;
  readonly instance: number;
  readonly epoch: string;
  readonly node: string;
  readonly namespaces: readonly { readonly handle: number; readonly digest: Uint8Array }[];
  readonly heartbeatMs: number;
  readonly leaseMs: number;
  readonly limits: {
    readonly keysPerFrameMax: number;
    readonly frameBodyBytesMax: number;
    readonly inFlightJobsMax: number;
    readonly windowBytesMax: number;
    readonly loadDeadlineMsMax: number;
    readonly storeFillMs: number;
  };
}

export interface RegisterRequest {
  readonly kind: "window";
  readonly make: "client" | "daemon";
  readonly namespace: number;
  readonly sizeBytes: number;
  readonly offsetBytes: number;
  readonly strideBytes: number;
  readonly blocks: number;
  readonly proof: boolean;
}

export interface RegisterReply {
  readonly region: number;
  readonly sizeBytes: number;
  readonly proof: boolean;
  readonly seed: number;
  readonly block: number;
}

export interface ErrorBody {
  readonly code: number;
  readonly name: string;
  readonly retryable: boolean;
  readonly message: string;
  readonly action: string;
  readonly detail: number;
}
