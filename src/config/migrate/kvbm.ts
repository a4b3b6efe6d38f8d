/**
 * Dynamo KVBM: the variables `DYN_KVBM_*` of its first version. A size there is decimal gigabytes and counts for one
 * engine with all of its ranks.
 */
import { isServiceLink } from "../load.ts";
import {
  booleanOf,
  Draft,
  type ForeignOption,
  GB,
  type Given,
  mapped,
  missing,
  needless,
  plainText,
  type Reading,
  sizeOf,
  sizeText,
} from "./options.ts";
import { absolutePath, bucketGroup, diskGroup, endpointOf } from "./tiers.ts";

const KVBM_PREFIX = "DYN_KVBM_";
const PER_ENGINE = "KVBM counts it per engine, cairn for the node";

export const KVBM_OPTIONS: readonly ForeignOption[] = [
  mapped(
    "DYN_KVBM_CPU_CACHE_GB",
    ["dram.capacityBytes"],
    "GB of one engine; cairn's pool serves all engines of the node",
  ),
  mapped(
    "DYN_KVBM_DISK_CACHE_GB",
    ["nvme.enabled", "nvme.directories"],
    "GB of one engine; taken with DYN_KVBM_DISK_CACHE_DIR only, since KVBM's own default is /tmp",
  ),
  mapped(
    "DYN_KVBM_DISK_CACHE_DIR",
    ["nvme.enabled", "nvme.directories"],
    "the folder `cairn` in it; KVBM's files stay",
  ),
  mapped("DYN_KVBM_DISK_DISABLE_O_DIRECT", ["nvme.direct"], "`true` becomes `off`"),
  mapped("DYN_KVBM_OBJECT_ENABLED", ["remote.enabled", "remote.kind"], "`1` becomes `s3`"),
  mapped(
    "DYN_KVBM_OBJECT_BUCKET",
    ["remote.s3.bucket"],
    "one bucket for all; a name with `{worker_id}` is not taken",
  ),
  mapped("DYN_KVBM_OBJECT_ENDPOINT", ["remote.s3.endpoint"], "with the bucket in the path"),
  mapped("DYN_KVBM_OBJECT_REGION", ["remote.s3.region"], ""),
  ...missing(
    "credentials are never copied; put them into remote.s3.credentialsFile or the standard AWS variables",
    ["DYN_KVBM_OBJECT_ACCESS_KEY", "DYN_KVBM_OBJECT_SECRET_KEY"],
  ),
  ...missing("a count of blocks of one engine says no bytes; set dram.capacityBytes", [
    "DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS",
  ]),
  ...missing("a count of blocks of one engine says no bytes; set nvme.directories", [
    "DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS",
  ]),
  ...missing("a count of blocks says no bytes; set remote.budgetBytes", [
    "DYN_KVBM_OBJECT_NUM_BLOCKS",
  ]),
  ...missing("blocks have no priority; which one leaves first, policy.eviction decides", [
    "DYN_KVBM_HOST_OFFLOAD_PREFIX_MIN_PRIORITY",
  ]),
  ...missing("the daemon uses no NIXL", ["DYN_KVBM_NIXL_BACKEND_*", "DYN_KVBM_NIXL_POSIX_API"]),
  ...missing("nodes share blocks through the remote tier, not with each other", [
    "DYN_KVBM_G2PB_*",
    "DYN_KVBM_G3PB_*",
  ]),
  ...missing("every rank loads its own shard", ["DYN_KVBM_NCCL_MLA_MODE"]),
  ...missing("the daemon records no traces of requests", ["DYN_KVBM_ENABLE_RECORD"]),
  ...needless(
    "blocks go to disk ahead of their eviction; writeBudgetBytesPerDay of a directory protects its drive",
    ["DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER"],
  ),
  ...needless("segments are written from end to end before they are used", [
    "DYN_KVBM_DISK_ZEROFILL_FALLBACK",
    "DYN_KVBM_DISK_ALLOCATOR_TYPE",
  ]),
  ...needless("engines connect to a daemon that runs already", [
    "DYN_KVBM_LEADER_WORKER_INIT_TIMEOUT_SECS",
    "DYN_KVBM_LEADER_ZMQ_HOST",
    "DYN_KVBM_LEADER_ZMQ_PUB_PORT",
    "DYN_KVBM_LEADER_ZMQ_ACK_PORT",
    "DYN_KVBM_TRTLLM_ZMQ_PORT",
  ]),
  ...needless("the daemon publishes events of all tiers itself", [
    "DYN_KVBM_KV_EVENTS_ENABLE_CONSOLIDATOR",
  ]),
  ...needless(
    "copies are batched by the daemon; engineApi.inFlightJobsMax bounds what an engine has under way",
    [
      "DYN_KVBM_MAX_CONCURRENT_TRANSFERS",
      "DYN_KVBM_MAX_TRANSFER_BATCH_SIZE",
      "DYN_KVBM_TRANSFER_BATCH_SIZE",
    ],
  ),
  ...needless("edge.listen always serves /metrics", [
    "DYN_KVBM_METRICS",
    "DYN_KVBM_METRICS_PORT",
    "DYN_KVBM_CACHE_STATS_MAX_REQUESTS",
    "DYN_KVBM_CACHE_STATS_LOG_INTERVAL_SECS",
  ]),
];

/** The variables among `env` that are KVBM's. */
export function kvbmGiven(env: Readonly<Record<string, string | undefined>>): Given[] {
  return Object.entries(env).flatMap(([name, value]) => {
    if (!name.startsWith(KVBM_PREFIX) || value === undefined) return [];
    const known = KVBM_OPTIONS.some((row) => row.name === name);
    return !known && isServiceLink(name, "DYN_KVBM") ? [] : [{ name, value, source: name }];
  });
}

function readDram(draft: Draft): void {
  const size = draft.take("DYN_KVBM_CPU_CACHE_GB");
  if (size === undefined) return;
  const bytes = sizeOf(size.value, GB);
  if (typeof bytes === "string") draft.refuse(size, bytes);
  else {
    const settings = [{ path: "dram.capacityBytes", value: sizeText(bytes) }];
    draft.group([size], settings, PER_ENGINE);
  }
}

function readDirect(draft: Draft): void {
  const direct = draft.take("DYN_KVBM_DISK_DISABLE_O_DIRECT");
  if (direct === undefined) return;
  const off = booleanOf(direct.value);
  if (off === true) draft.group([direct], [{ path: "nvme.direct", value: "off" }], "");
  else if (off === false) draft.refuse(direct, "nvme.direct finds out by itself");
  else draft.refuse(direct, "it is neither true nor false");
}

function readDisk(draft: Draft): void {
  const size = draft.take("DYN_KVBM_DISK_CACHE_GB");
  const place = draft.take("DYN_KVBM_DISK_CACHE_DIR");
  const given = [size, place].filter((one) => one !== undefined);
  if (size === undefined)
    return draft.refuseAll(given, "without DYN_KVBM_DISK_CACHE_GB there is no disk tier");
  const bytes = sizeOf(size.value, GB);
  if (typeof bytes === "string") return draft.refuseAll(given, `DYN_KVBM_DISK_CACHE_GB: ${bytes}`);
  if (place === undefined)
    return draft.refuseAll(
      given,
      "DYN_KVBM_DISK_CACHE_DIR is not set, and KVBM's default, /tmp, is not taken over",
    );
  const path = absolutePath(plainText(place.value));
  if (path === undefined)
    return draft.refuseAll(given, "DYN_KVBM_DISK_CACHE_DIR is no absolute path");
  diskGroup(draft, given, [{ path, capacityBytes: bytes }], PER_ENGINE);
}

function readBucket(draft: Draft): void {
  const enabled = draft.take("DYN_KVBM_OBJECT_ENABLED");
  const names = ["DYN_KVBM_OBJECT_BUCKET", "DYN_KVBM_OBJECT_ENDPOINT", "DYN_KVBM_OBJECT_REGION"];
  const [bucket, endpoint, region] = names.map((name) => draft.take(name));
  const given = [enabled, bucket, endpoint, region].filter((one) => one !== undefined);
  const refuseAll = (why: string): void => draft.refuseAll(given, why);
  if (given.length === 0) return;
  if (enabled === undefined || booleanOf(enabled.value) !== true)
    return refuseAll("DYN_KVBM_OBJECT_ENABLED does not turn it on");
  if (bucket === undefined) return refuseAll("DYN_KVBM_OBJECT_BUCKET is not set");
  const address =
    endpoint === undefined ? undefined : endpointOf(plainText(endpoint.value), "https");
  if (endpoint !== undefined && address === undefined)
    return refuseAll("DYN_KVBM_OBJECT_ENDPOINT is no http(s)://host[:port]");
  bucketGroup(draft, given, {
    bucket: plainText(bucket.value),
    endpoint: address,
    region: region === undefined ? undefined : plainText(region.value),
    pathStyle: address === undefined ? undefined : true,
  });
}

export function readKvbm(given: Iterable<Given>): Reading {
  const draft = new Draft(KVBM_OPTIONS, given);
  readDram(draft);
  readDirect(draft);
  readDisk(draft);
  readBucket(draft);
  return draft.end();
}
