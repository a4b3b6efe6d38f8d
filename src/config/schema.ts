/**
 * The one configuration schema. Everything that names a setting reads it from here: the loader (file,
 * environment, flags), the cross-field proofs, the HTTP validator, `cairn config reference` and the
 * generated docs/config.md. Each field carries three annotations beside its JSON Schema:
 *
 * - `default`: the value that runs with no file at all;
 * - `unit`: "bytes" (text such as `64GiB` is read), "ms" (`2s`, `500ms`) or "mode" (octal);
 * - `reload`: "live" (SIGHUP and PUT /v1/config apply it) or "restart".
 */
import type { Static } from "typebox";
import { LIMITS } from "../limits.ts";
import { Type } from "./shape.ts";

export type Unit = "bytes" | "ms" | "mode";
export type Reload = "live" | "restart";

interface FieldOptions {
  readonly description: string;
  readonly reload?: Reload;
  readonly minimum?: number;
  readonly maximum?: number;
}

/** Largest byte count that every consumer (Float64, file offsets) holds exactly. */
const BYTES_MAX = 2 ** 50;
const MS_MAX = 24 * 3_600_000;

function count(value: number, minimum: number, maximum: number, options: FieldOptions) {
  return Type.Integer({ reload: "restart", ...options, default: value, minimum, maximum });
}

function bytes(value: number, minimum: number, options: FieldOptions) {
  const range = { default: value, minimum, maximum: BYTES_MAX, unit: "bytes" };
  return Type.Integer({ reload: "restart", ...options, ...range });
}

function milliseconds(value: number, minimum: number, options: FieldOptions) {
  const range = { default: value, minimum, maximum: MS_MAX, unit: "ms" };
  return Type.Integer({ reload: "restart", ...options, ...range });
}

/** Ages of what is kept for weeks; a duration beyond setTimeout's reach. */
function ageMilliseconds(value: number, options: FieldOptions) {
  const range = { default: value, minimum: 0, maximum: 3_650 * MS_MAX, unit: "ms" };
  return Type.Integer({ reload: "restart", ...options, ...range });
}

function share(value: number, options: FieldOptions) {
  return Type.Number({ reload: "live", ...options, default: value, minimum: 0.01, maximum: 1 });
}

function flag(value: boolean, options: FieldOptions) {
  return Type.Boolean({ reload: "restart", ...options, default: value });
}

function text(value: string | undefined, options: FieldOptions) {
  const base = { reload: "restart", ...options, maxLength: 4_096 };
  return Type.String(value === undefined ? base : { ...base, default: value });
}

function choice<const T extends string>(values: readonly T[], value: T, options: FieldOptions) {
  return Type.Unsafe<T>(Type.Enum([...values], { reload: "restart", ...options, default: value }));
}

function section<const T extends Parameters<typeof Type.Object>[0]>(
  description: string,
  fields: T,
) {
  return Type.Object(fields, { additionalProperties: false, description });
}

const NodeSection = section("Who this node is.", {
  name: text("", { description: "Node name in events and locate answers. Empty: the host name." }),
});

const EngineApiSection = section("The Unix socket that engines speak to (docs/protocol.md).", {
  socket: text("", {
    description:
      "Path of the socket. Empty: `$XDG_RUNTIME_DIR/cairn/engine.sock`, else `/tmp/cairn-<uid>/engine.sock`.",
  }),
  socketMode: Type.Integer({
    default: 0o660,
    minimum: 0o600,
    maximum: 0o777,
    unit: "mode",
    reload: "restart",
    description: "Mode of the socket: who may connect at all.",
  }),
  connectionsMax: count(LIMITS.connectionsMax, 1, 65_536, {
    description: "Open connections; one more is answered `tooManyConnections`.",
  }),
  inFlightJobsMax: count(LIMITS.inFlightJobsMax, 1, 65_536, {
    reload: "live",
    description: "LOAD and STORE jobs in flight per connection; more: `jobsInFlight`.",
  }),
  leasesPerInstanceMax: count(LIMITS.leasesPerInstanceMax, 1, 1_048_576, {
    reload: "live",
    description: "Leases per instance; more: `overloaded`.",
  }),
  pinnedBytesMax: bytes(LIMITS.pinnedBytesMax, 0, {
    reload: "live",
    description:
      "Bytes an instance may pin by leases, a shared prefix counted once; more: the look-up is clipped. 0: half of DRAM.",
  }),
  windowBytesMax: bytes(LIMITS.windowBytesMax, 4_096, {
    reload: "live",
    description: "Bytes of shared windows per instance; more: `windowBudget`.",
  }),
  heartbeatMs: milliseconds(LIMITS.heartbeatMs, 10, {
    reload: "live",
    description: "An instance must send HEARTBEAT this often.",
  }),
  heartbeatMisses: count(LIMITS.heartbeatMisses, 1, 100, {
    reload: "live",
    description: "Missed heartbeats after which all leases of the instance end.",
  }),
  storeFillMs: milliseconds(LIMITS.storeFillMsMax, 10, {
    reload: "live",
    description: "A reserved shard whose bytes do not come within this time is aborted.",
  }),
  helloTimeoutMs: milliseconds(LIMITS.helloTimeoutMs, 10, {
    description: "A connection must send HELLO within this time.",
  }),
  frameTimeoutMs: milliseconds(LIMITS.frameTimeoutMs, 10, {
    description: "A frame begun must be complete within this time.",
  }),
  proof: choice(["required", "off"], "required", {
    reload: "live",
    description:
      "`required`: an instance sees blocks of earlier lives only after it proved one of them. " +
      "`off`: the operator vouches that model, quantisation and build never change under one name.",
  }),
});

const LedgerSection = section("The block table, sized once at boot.", {
  blocksMax: count(0, 0, 80_000_000, {
    description:
      "Block records; a STORE beyond it lets the oldest blocks go, or answers `ledgerFull`. 0: derived from the capacity.",
  }),
  // More than the default do not fit into the pool's table (addon/arena.h).
  namespacesMax: count(LIMITS.namespacesMax, 1, LIMITS.namespacesMax, {
    description:
      "Namespaces that a pool knows. When it is full, one without blocks and engines is forgotten; without such a one HELLO answers `tooManyNamespaces`.",
  }),
  namespacesPerTenantMax: count(0, 0, LIMITS.namespacesMax, {
    description:
      "Namespaces of one tenant, beyond which only its own are forgotten for it. 0: an equal share of `ledger.namespacesMax`, at least 64.",
  }),
});

const DramSection = section("The DRAM tier: one file in slabs on tmpfs or hugetlbfs.", {
  directory: text("", {
    description: "Directory of the pool file (0700, ours). Empty: `/dev/shm/cairn-<uid>`.",
  }),
  capacityBytes: Type.Union(
    [Type.Integer({ minimum: 0, maximum: BYTES_MAX }), Type.Literal("auto")],
    {
      default: "auto",
      unit: "bytes",
      reload: "live",
      description:
        "Bytes of the pool, rounded down to slabs. `auto`: a quarter of what is free at start, or the surviving pool.",
    },
  ),
  blocksMax: count(0, 0, 100_000_000, {
    description: "Cap on blocks in this tier beside the bytes. 0: as many as the slots.",
  }),
  slabBytes: bytes(LIMITS.slabBytes, 65_536, { description: "Bytes of one slab." }),
  keepOnStop: flag(true, {
    reload: "live",
    description: "Keep the pool file on a clean stop, so that the next start is warm.",
  }),
  hugePages: choice(["auto", "off"], "auto", {
    description: "`auto`: ask for huge pages where the file system has them.",
  }),
  numa: choice(["auto", "off"], "auto", {
    description:
      "`auto`: the pool's pages are spread over all NUMA nodes with memory, where there is more than one.",
  }),
  populateThreads: count(0, 0, 256, {
    description: "Threads that pre-touch the pool at start. 0: one per CPU, at most 16.",
  }),
  copyThreads: count(0, 0, 256, {
    description:
      "Threads that copy and hash payload. 0: a quarter of the CPUs, at least 1, at most 8.",
  }),
  highWatermark: share(0.98, { description: "Eviction starts above this share of used slots." }),
  lowWatermark: share(0.95, { description: "Eviction ends at this share of used slots." }),
});

const PolicySection = section("Which block leaves first.", {
  eviction: choice(["lru"], "lru", {
    reload: "live",
    description: "`lru`: leaf-first least recently used. Changing it drops no block.",
  }),
});

const TenantSection = section("One tenant: who connects by this socket or with these uids.", {
  name: Type.String({ minLength: 1, maxLength: 64, description: "Name of the tenant." }),
  socket: Type.Optional(text(undefined, { description: "A socket of its own for this tenant." })),
  uids: Type.Optional(
    Type.Array(Type.Integer({ minimum: 0, maximum: 0xffff_fffe }), {
      maxItems: 1_024,
      description: "User ids of this tenant on the common socket.",
    }),
  ),
});

const TlsSection = section("TLS for a listener off the host.", {
  certFile: text(undefined, { description: "PEM certificate chain." }),
  keyFile: text(undefined, { description: "PEM private key, mode 0600." }),
  clientCaFile: Type.Optional(
    text(undefined, { description: "PEM authorities of client certificates: mutual TLS." }),
  ),
});

const EdgeSection = section("HTTP: admin and query API, metrics, live page.", {
  listen: text("127.0.0.1:7411", {
    description:
      "`host:port`, `[v6]:port`, or `unix:/path`. Off the loopback only with tokenFile or mutual TLS.",
  }),
  tokenFile: Type.Optional(
    text(undefined, {
      description: "File (0600) whose first line is the bearer token every request must carry.",
    }),
  ),
  tls: Type.Optional(TlsSection),
});

const LogSection = section("JSON lines on standard error.", {
  level: choice(["debug", "info", "warn", "error"], "info", {
    reload: "live",
    description: "Least level that is written.",
  }),
});

const NvmeDirectory = section("One directory, and so one device.", {
  path: Type.String({
    minLength: 1,
    maxLength: 4_096,
    description: "Absolute path; made with mode 0700 if absent, locked by one daemon.",
  }),
  capacityBytes: Type.Optional(
    Type.Union([Type.Integer({ minimum: 0, maximum: BYTES_MAX }), Type.Literal("auto")], {
      unit: "bytes",
      description:
        "Bytes of all files in it, index included. `auto` (default): what is free there, less 5 %. Made smaller: free segments go first, then those with the fewest blocks.",
    }),
  ),
  writeBudgetBytesPerDay: Type.Optional(
    bytes(0, 0, {
      description:
        "Bytes that may be written to it in a day; write-back waits beyond. 0: no limit.",
    }),
  ),
  ratedWriteBytes: Type.Optional(
    bytes(0, 0, {
      description:
        "Bytes the drive may take in its life (TBW of its data sheet), for the estimate of its life. 0: unknown.",
    }),
  ),
});

const NvmeSection = section(
  "The NVMe tier: blocks on local disks, one directory a device (tiers/nvme/README.md).",
  {
    enabled: flag(false, { description: "Whether this node has the tier." }),
    directories: Type.Array(NvmeDirectory, {
      default: [],
      maxItems: 64,
      reload: "live",
      description:
        "One entry a device. While running, an entry that is added is opened, one that is removed is drained, and one that changed takes its new limits.",
    }),
    segmentBytes: bytes(1_073_741_824, 1_048_576, {
      description: "Bytes of one segment file, written once from end to end before it is used.",
    }),
    mode: choice(["auto", "uring", "threads"], "auto", {
      description:
        "`auto`: io_uring where a probe read works, else a few threads. `uring` refuses to start without it.",
    }),
    direct: choice(["auto", "off"], "auto", {
      description: "`auto`: O_DIRECT where a probe read and write work, else buffered.",
    }),
    queueDepth: count(LIMITS.diskQueueDepth, 1, 256, {
      description: "Reads and writes in flight at one device.",
    }),
    writeDepth: count(LIMITS.diskWriteDepth, 1, 256, {
      description: "Of these, writes; one batch at a time, since writes stall reads.",
    }),
    stagingBytes: bytes(LIMITS.diskStagingBytes, 1_048_576, {
      description: "Aligned memory for blocks under way, per device. Half of it bounds a block.",
    }),
    blocksMax: count(0, 0, 100_000_000, {
      description: "Cap on blocks in this tier beside the bytes. 0: as many as the slots.",
    }),
    writeThrough: flag(false, {
      reload: "live",
      description:
        "`false`: blocks are copied down ahead of their eviction from DRAM. `true`: as soon as they are stored.",
    }),
    scrubBytesPerSecond: bytes(16_777_216, 0, {
      reload: "live",
      description:
        "Bytes verified each second while the device has nothing else to do. 0: no scrub.",
    }),
    highWatermark: share(0.98, { description: "Eviction starts above this share of used slots." }),
    lowWatermark: share(0.95, { description: "Eviction ends at this share of used slots." }),
  },
);

const S3Section = section("The S3 bucket of `remote.kind: s3`.", {
  endpoint: text("", { description: "`http(s)://host[:port]`. Empty: AWS in the region." }),
  bucket: text("", { description: "Name of the bucket. It must exist." }),
  prefix: text("", { description: "Put in front of every object's name." }),
  region: text("us-east-1", { description: "Region that requests are signed for." }),
  pathStyle: flag(true, {
    description: "`true`: the bucket stands in the path. `false`: in the host name.",
  }),
  credentialsFile: Type.Optional(
    text(undefined, {
      description:
        "AWS credentials file (0600, profile `default`), absolute path; read again every minute. Absent: environment, profile, or role of the host.",
    }),
  ),
  signPayload: flag(false, {
    description:
      "Sign bodies, too. Blocks carry their own hash; over plain HTTP some stores insist on it.",
  }),
});

const RemoteSection = section(
  "The remote tier: chunks of blocks in a store that many nodes share (tiers/remote/README.md).",
  {
    enabled: flag(false, { description: "Whether this node has the tier." }),
    kind: choice(["directory", "s3"], "directory", {
      description: "`directory`: a path all nodes mount. `s3`: a bucket.",
    }),
    directory: Type.Optional(
      text(undefined, { description: "Absolute path of the shared directory." }),
    ),
    s3: S3Section,
    sealing: choice(["auto", "on", "off"], "auto", {
      description:
        "AES-256-GCM under a data key of the block's tenant. `auto`: on where there are tenants. Without a key a tenant's blocks are neither stored nor found.",
    }),
    keyFile: Type.Optional(
      text(undefined, {
        description:
          "File (0600, ours) of data keys, one a line: tenant, label, 32 bytes in base64; a tenant's current key first, older ones still open what they sealed.",
      }),
    ),
    keyCommand: Type.Optional(
      Type.Array(Type.String({ minLength: 1, maxLength: 4_096 }), {
        minItems: 1,
        maxItems: 64,
        reload: "restart",
        description:
          "Program (absolute path) and arguments, run without a shell, that prints such lines: a KMS client, say.",
      }),
    ),
    keyRefreshMs: milliseconds(300_000, 1_000, {
      description: "Data keys are read again this often, and at every reload.",
    }),
    chunkBytesMax: bytes(16_777_216, 65_536, {
      description:
        "Payload of the largest object. Nodes that share a store must agree on it: objects are named by it.",
    }),
    requestTimeoutMs: milliseconds(10_000, 100, {
      description:
        "A request must end within this time, its body and what is sent again of it included: one that hangs so long is not sent again.",
    }),
    retriesMax: count(3, 0, 10, {
      description: "Times a request is sent again; all requests share one retry budget beside.",
    }),
    concurrencyMax: count(16, 1, 256, {
      description:
        "Requests under way. So many connections are kept for reads, and as many for all else.",
    }),
    inFlightBytesMax: bytes(268_435_456, 1_048_576, {
      description:
        "Bytes of chunks under way, both ways together; more wait. Above 4 GiB is as good as 4 GiB.",
    }),
    cacheEntries: count(65_536, 1, 10_000_000, {
      description: "Objects whose existence (or absence) is remembered.",
    }),
    cacheMs: milliseconds(300_000, 0, { description: "How long existence is remembered." }),
    cacheAbsentMs: milliseconds(5_000, 0, { description: "How long absence is remembered." }),
    deleteCorrupt: flag(false, {
      description:
        "Whether an object that failed its checks is removed, so that a good one can take its name. A node whose path to the store damages bytes would remove good ones.",
    }),
    budgetBytes: bytes(0, 0, {
      description:
        "Bytes the store may hold; beyond, the oldest objects are removed. 0: no limit here.",
    }),
    ageMsMax: ageMilliseconds(0, {
      description: "Objects older than this are removed. 0: kept.",
    }),
  },
);

export const ConfigSchema = Type.Object(
  {
    node: NodeSection,
    engineApi: EngineApiSection,
    ledger: LedgerSection,
    dram: DramSection,
    policy: PolicySection,
    tenants: Type.Array(TenantSection, {
      default: [],
      maxItems: 256,
      reload: "restart",
      description: "Tenants beside the default one. A block is never shared between tenants.",
    }),
    edge: EdgeSection,
    log: LogSection,
    nvme: NvmeSection,
    remote: RemoteSection,
  },
  { additionalProperties: false, description: "Configuration of cairn." },
);

/**
 * A complete, valid configuration. Bytes and milliseconds are plain numbers. Values that depend on the
 * host (empty `node.name`, `engineApi.socket`, `dram.directory`) are filled in by resolve.ts.
 */
export type Config = Static<typeof ConfigSchema>;
export type TenantConfig = Config["tenants"][number];
export type NvmeConfig = Config["nvme"];
export type RemoteConfig = Config["remote"];
