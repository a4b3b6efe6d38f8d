/**
 * The one error table. Every error that leaves the daemon (socket, HTTP, CLI) is a row of it: a stable
 * number and name, whether a retry can help, the HTTP status, what it means and what an operator does.
 * docs/errors.md is generated from this table; tests assert names, never messages.
 */
export interface ErrorRow {
  readonly code: number;
  readonly retryable: boolean;
  readonly httpStatus: number;
  readonly meaning: string;
  readonly action: string;
}

function row(
  code: number,
  retryable: boolean,
  httpStatus: number,
  meaning: string,
  action: string,
): ErrorRow {
  return { code, retryable, httpStatus, meaning, action };
}

const UPGRADE = "Use a client whose protocol version this daemon speaks (docs/protocol.md).";
const CLIENT_BUG = "A fault in the client: compare its frames with docs/protocol.md.";

export const ERRORS = {
  // 1xx: framing and session
  badMagic: row(100, false, 400, "the frame does not start with CRN1", CLIENT_BUG),
  versionUnsupported: row(101, false, 400, "no common protocol version", UPGRADE),
  unknownOp: row(102, false, 400, "the operation code is not known", UPGRADE),
  malformedFrame: row(103, false, 400, "the body does not fit its operation", CLIENT_BUG),
  frameTooLarge: row(104, false, 413, "the body is longer than frameBodyBytesMax", CLIENT_BUG),
  helloRequired: row(105, false, 401, "the first frame must be HELLO, once", CLIENT_BUG),
  frameTimeout: row(
    106,
    true,
    408,
    "a frame was begun and not finished in time",
    "See what stalls the client.",
  ),
  tooManyConnections: row(
    107,
    true,
    503,
    "connectionsMax is reached",
    "Raise engineApi.connectionsMax or close idle engines.",
  ),
  overloaded: row(
    108,
    true,
    503,
    "a bounded queue is full",
    "Lower the rate, or raise the bound named in the message.",
  ),
  shuttingDown: row(
    109,
    true,
    503,
    "the daemon is draining",
    "Reconnect after the restart; blocks survive it.",
  ),
  // 2xx: identity and authority
  notPermitted: row(
    200,
    false,
    403,
    "this uid may not use this socket",
    "Add the uid to tenants[].uids or use its own socket.",
  ),
  instanceMismatch: row(
    201,
    false,
    409,
    "uid or namespaces differ from the live instance of this engine id",
    "Give each engine its own engine id.",
  ),
  unknownNamespace: row(
    202,
    false,
    404,
    "the namespace handle was not given out by HELLO",
    CLIENT_BUG,
  ),
  tooManyNamespaces: row(
    203,
    false,
    507,
    "the pool's table, or the tenant's share of it, is full of namespaces with blocks or engines",
    "End engines that are idle, wait for eviction, or raise the bound that the message names.",
  ),
  unknownLease: row(
    204,
    true,
    404,
    "no such lease in this instance: never given, ended or expired",
    "Send HEARTBEAT in time; look up again.",
  ),
  unknownRegion: row(205, false, 404, "no such region of this connection", CLIENT_BUG),
  unknownJob: row(206, false, 404, "no such job of this connection", CLIENT_BUG),
  badDescriptor: row(
    207,
    false,
    400,
    "the namespace descriptor is incomplete or contradicts itself",
    CLIENT_BUG,
  ),
  // 3xx: regions
  windowNotSealed: row(
    300,
    false,
    400,
    "the memfd lacks F_SEAL_SHRINK|F_SEAL_GROW",
    "Seal the memfd before REGISTER.",
  ),
  windowTooSmall: row(301, false, 400, "the memfd is shorter than the declared window", CLIENT_BUG),
  windowBudget: row(
    302,
    false,
    507,
    "the instance's window bytes are used up",
    "Raise engineApi.windowBytesMax or register less.",
  ),
  windowMap: row(
    303,
    true,
    500,
    "the descriptor could not be mapped",
    "See the daemon's log for the system error.",
  ),
  layoutMismatch: row(
    304,
    false,
    400,
    "declared layout and namespace (or the pattern proof) disagree",
    "Fix the adapter's gather/scatter or its descriptor.",
  ),
  regionUnproven: row(
    305,
    false,
    409,
    "the region's layout proof has not passed",
    "Run PROVE_LAYOUT after REGISTER.",
  ),
  outOfBounds: row(306, false, 400, "a region block index lies outside the region", CLIENT_BUG),
  rangeBusy: row(
    307,
    false,
    409,
    "a range is still owned by an earlier job",
    "Wait for the completion or CANCEL.",
  ),
  memoryUnsupported: row(
    308,
    false,
    501,
    "this daemon maps no memory of that kind",
    "Run the engine without it, or a daemon that maps device memory.",
  ),
  // 4xx: blocks
  chainMismatch: row(
    400,
    false,
    409,
    "a key already stands under another parent or depth",
    "Two different chains use one key: check hashing and namespace.",
  ),
  partialBlock: row(
    401,
    false,
    400,
    "only full blocks are stored",
    "Leave the partial tail block out.",
  ),
  ledgerFull: row(
    402,
    true,
    507,
    "ledger.blocksMax records are in use, and the blocks of too few of them may go",
    "Raise ledger.blocksMax; restart.",
  ),
  tooManyKeys: row(403, false, 413, "more than keysPerFrameMax keys", "Split the call."),
  blockNotReadable: row(
    404,
    true,
    404,
    "the block is not visible (evicted, hole or never stored)",
    "A miss: recompute.",
  ),
  checksumMismatch: row(
    405,
    false,
    500,
    "the stored payload does not match its hash; the block is dropped",
    "A miss: recompute; watch the corruption counters.",
  ),
  staleGeneration: row(406, true, 409, "the slot was reused since", "A miss: recompute."),
  shardOutOfRange: row(407, false, 400, "the shard is not one of the namespace's", CLIENT_BUG),
  deadlineExceeded: row(
    408,
    true,
    504,
    "the operation's deadline passed",
    "A miss: recompute; see the latency histograms.",
  ),
  cancelled: row(409, true, 499, "the job was cancelled", "None."),
  tierUnavailable: row(410, true, 503, "the tier is fenced or absent", "See /v1/tiers."),
  jobsInFlight: row(
    411,
    true,
    429,
    "the connection has inFlightJobsMax jobs",
    "Wait for completions.",
  ),
  pinBudget: row(
    412,
    true,
    429,
    "the instance's pinned bytes are used up",
    "End requests, or raise engineApi.pinnedBytesMax.",
  ),
  deviceFailed: row(
    413,
    true,
    503,
    "the device failed the read",
    "A miss: recompute; see the device's health and the kernel's log.",
  ),
  // 5xx: operator
  configInvalid: row(
    500,
    false,
    400,
    "the configuration is not valid; the old one stays",
    "Fix the named field; `cairn config check`.",
  ),
  restartNeeded: row(
    501,
    false,
    409,
    "this field cannot change while running",
    "Restart the daemon.",
  ),
  directoryLocked: row(
    502,
    false,
    409,
    "another daemon holds this directory",
    "Stop it or give this one its own directory.",
  ),
  directoryUnsafe: row(
    503,
    false,
    403,
    "the directory or file is not ours or is open to others",
    "Fix owner and mode (0700 / 0600).",
  ),
  poolTooLarge: row(
    504,
    false,
    507,
    "the host cannot hold the DRAM pool",
    "Lower dram.capacityBytes.",
  ),
  formatUnsupported: row(
    505,
    false,
    409,
    "the pool file has another format version",
    "Use the matching version or `cairn purge`.",
  ),
  unauthorized: row(
    506,
    false,
    401,
    "token or client certificate missing or wrong",
    "Send `Authorization: Bearer`.",
  ),
  notFound: row(507, false, 404, "no such resource", "See /openapi.json."),
  badRequest: row(508, false, 400, "the request does not fit the schema", "See /openapi.json."),
  addonMissing: row(
    509,
    false,
    500,
    "the native addon is not built for this host",
    "Run `npm run build:addon`.",
  ),
  unavailable: row(
    510,
    true,
    503,
    "no daemon answers at this address",
    "Start it, or name its socket.",
  ),
  bodyTooLarge: row(
    511,
    false,
    413,
    "the HTTP body is longer than httpBodyBytesMax",
    "Split the call.",
  ),
  crossSite: row(
    512,
    false,
    403,
    "the Host or Origin header names another site",
    "Use the listen address itself as the URL.",
  ),
  diskUnusable: row(
    513,
    false,
    500,
    "a directory of the NVMe tier cannot be opened as a device",
    "See the message: `nvme.mode`, `nvme.direct`, the file system, or the device itself.",
  ),
  internal: row(599, true, 500, "a fault in cairn", "Report it with the log."),
  // 6xx: connectors
  engineStateMalformed: row(
    600,
    false,
    500,
    "the engine's saved state is not laid out as this connector knows",
    "Use the engine version the connector names, with flash attention on.",
  ),
} as const satisfies Record<string, ErrorRow>;

export type ErrorName = keyof typeof ERRORS;

/** Typed error: `name` is the row, `message` says which value was wrong. */
export class CairnError extends Error {
  readonly errorName: ErrorName;
  readonly detail: number;

  constructor(errorName: ErrorName, message: string, detail = 0) {
    super(message);
    this.name = "CairnError";
    this.errorName = errorName;
    this.detail = detail;
  }

  get row(): ErrorRow {
    return ERRORS[this.errorName];
  }
}

const byCode = new Map<number, ErrorName>(
  (Object.keys(ERRORS) as ErrorName[]).map((name) => [ERRORS[name].code, name]),
);

/** Name of a code read from the wire; an unknown code (a newer daemon) reads as `internal`. */
export function errorNameOfCode(code: number): ErrorName {
  return byCode.get(code) ?? "internal";
}
