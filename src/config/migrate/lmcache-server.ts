/**
 * LMCache's server of a node (multiprocess mode): the flags of `lmcache server`. Sizes are GiB of the whole server, as
 * cairn's are of the whole daemon. Only `cairn config migrate` reads them: nothing hands a daemon another's flags.
 */
import {
  Draft,
  type ForeignOption,
  GIB,
  type Given,
  mapped,
  missing,
  needless,
  plainText,
  type Reading,
  sizeOf,
  sizeText,
} from "./options.ts";
import {
  absolutePath,
  awsBucketOf,
  bucketGroup,
  type Disk,
  diskGroup,
  endpointOf,
} from "./tiers.ts";

const COORDINATOR = "nodes need no coordinator; events and the remote tier connect them";
const BLENDING = "blocks are found by their whole prefix only";

export const LMCACHE_SERVER_OPTIONS: readonly ForeignOption[] = [
  mapped("--l1-size-gb", ["dram.capacityBytes"], "GiB"),
  mapped(
    "--l1-manager",
    ["dram.capacityBytes"],
    "`size_gb` of all of type DRAM; others have no counterpart",
  ),
  mapped(
    "--eviction-policy",
    ["policy.eviction"],
    "`LRU`; ARC, IsolatedLRU and noop have no counterpart",
  ),
  mapped(
    "--l2-adapter",
    [
      "nvme.enabled",
      "nvme.directories",
      "remote.enabled",
      "remote.kind",
      "remote.s3.bucket",
      "remote.s3.endpoint",
      "remote.s3.region",
      "remote.s3.pathStyle",
      "remote.s3.prefix",
      "remote.budgetBytes",
    ],
    "`fs` and `fs_native` become a directory of this node (where `base_path` is shared by nodes, use remote.directory instead), `s3` the bucket; others have no counterpart",
  ),
  ...missing("the daemon moves blocks through DRAM; name directories in nvme.directories", [
    "--gds-l1-path",
    "--gds-l1-backend",
    "--gds-l1-use-direct-io",
    "--no-gds-l1-use-direct-io",
    "--l1-devdax-path",
  ]),
  ...missing(BLENDING, ["--engine-type", "--enable-segmented-prefix", "--enable-dedup-content"]),
  ...missing("models with other layers than full attention are not served yet", [
    "--separate-object-groups",
    "--no-separate-object-groups",
  ]),
  ...missing("nodes share blocks through the remote tier, not with each other", ["--p2p-*"]),
  ...missing(COORDINATOR, ["--coordinator-*", "--instance-id"]),
  ...missing("nothing of others runs inside the daemon", [
    "--runtime-plugin-*",
    "--script-allowed-imports",
    "--run-script-api-enabled",
  ]),
  ...missing("the daemon writes no traces; its log, events and /metrics say what happens", [
    "--enable-tracing",
    "--otlp-endpoint",
    "--trace-level",
    "--trace-output",
    "--lookup-hash-log-*",
  ]),
  ...needless("engines connect to engineApi.socket, a Unix socket", [
    "--transport",
    "--host",
    "--port",
    "--grpc-server-workers",
  ]),
  ...needless("blocks have the engine's own size; remote.chunkBytesMax bounds an object", [
    "--chunk-size",
  ]),
  ...needless("keys are the engine's own block hashes", ["--hash-algorithm", "--null-block-id"]),
  ...needless("dram.copyThreads are derived from the CPUs", [
    "--max-workers",
    "--max-gpu-workers",
    "--max-cpu-workers",
  ]),
  ...needless("engine and daemon share a window of memory that is handed over the socket", [
    "--supported-transfer-mode",
    "--isolated-ipc",
    "--no-isolated-ipc",
    "--shm-name",
    "--layerwise-batch",
  ]),
  ...needless("a lease ends with its engine; engineApi.heartbeatMs says how soon", [
    "--worker-reap-timeout-seconds",
    "--worker-registration-grace-seconds",
    "--l1-write-ttl-seconds",
    "--l1-read-ttl-seconds",
  ]),
  ...needless("edge.listen serves queries and /metrics", [
    "--http-host",
    "--http-port",
    "--prometheus-port",
    "--disable-observability",
    "--disable-metrics",
    "--disable-grpc-metrics",
    "--disable-logging",
    "--event-bus-queue-size",
    "--metrics-sample-rate",
    "--enable-extra-logging",
    "--extra-logging-interval",
  ]),
  ...needless("the daemon serves before its pool is touched", [
    "--l1-use-lazy",
    "--no-l1-use-lazy",
    "--l1-init-size-gb",
    "--l1-align-bytes",
  ]),
  ...needless("dram.hugePages asks for them where the file system has them", [
    "--l1-use-hugepages",
    "--no-l1-use-hugepages",
  ]),
  ...needless(
    "room is made when a slot is wanted, not each second, so dram.highWatermark can be high",
    ["--eviction-trigger-watermark", "--eviction-ratio"],
  ),
  ...needless("blocks go down ahead of their eviction, or at once with nvme.writeThrough", [
    "--l2-store-policy",
  ]),
  ...needless("blocks that are loaded from a lower tier stay in DRAM while there is room", [
    "--l2-prefetch-policy",
    "--l2-prefetch-max-in-flight",
    "--l2-prefetch-load-timeout",
    "--periodic-notifier-interval-ms",
  ]),
  ...needless("the daemon publishes events of all tiers itself", ["--kv-event-log-size"]),
];

/** The flags of a command line; what stands before the first (`lmcache server`) is skipped. */
export function serverGiven(words: readonly string[]): Given[] {
  const given: { name: string; values: string[] }[] = [];
  for (const word of words) {
    const flag = /^(--[^=]+)(?:=(.*))?$/s.exec(word);
    if (flag !== null)
      given.push({ name: flag[1]!, values: flag[2] === undefined ? [] : [flag[2]] });
    else given.at(-1)?.values.push(word);
  }
  return given.map(({ name, values }) => ({ name, value: values.join(" "), source: name }));
}

type Tree = Readonly<Record<string, unknown>>;

function objectOf(given: Given): Tree | undefined {
  try {
    const value = JSON.parse(plainText(given.value)) as unknown;
    return typeof value === "object" && value !== null && !Array.isArray(value)
      ? (value as Tree)
      : undefined;
  } catch {
    return undefined;
  }
}

function textOf(tree: Tree, key: string): string | undefined {
  const value = tree[key];
  return typeof value === "string" && value !== "" ? value : undefined;
}

function readDram(draft: Draft): void {
  const size = draft.take("--l1-size-gb");
  const taken: Given[] = [];
  let total = 0;
  const add = (given: Given, value: unknown): void => {
    const bytes = sizeOf(value, GIB);
    if (typeof bytes === "string") return draft.refuse(given, bytes);
    taken.push(given);
    total += bytes;
  };
  if (size !== undefined) add(size, size.value);
  for (const manager of draft.takeAll("--l1-manager")) {
    const tree = objectOf(manager);
    if (tree === undefined) draft.refuse(manager, "it is no JSON object");
    else if (tree["type"] !== "DRAM")
      draft.refuse(manager, "of L1 managers, DRAM alone has a counterpart");
    else add(manager, tree["size_gb"]);
  }
  if (taken.length === 0) return;
  draft.group(taken, [{ path: "dram.capacityBytes", value: sizeText(total) }], "");
}

function diskOf(draft: Draft, adapter: Given, tree: Tree): Disk | undefined {
  const path = absolutePath(textOf(tree, "base_path") ?? "");
  const size = tree["max_capacity_gb"] ?? 0;
  const capacityBytes = size === 0 ? "auto" : sizeOf(size, GIB);
  if (path === undefined) draft.refuse(adapter, "base_path is no absolute path");
  else if (typeof capacityBytes === "string" && capacityBytes !== "auto")
    draft.refuse(adapter, `max_capacity_gb: ${capacityBytes}`);
  else return { path, capacityBytes };
  return undefined;
}

function readBucket(draft: Draft, adapter: Given, tree: Tree): void {
  const endpoint = textOf(tree, "s3_endpoint") ?? "";
  const byPath = tree["s3_addressing_style"] === "path";
  const bucket = byPath ? textOf(tree, "s3_bucket") : awsBucketOf(endpoint)?.bucket;
  const address = byPath
    ? endpointOf(endpoint, tree["disable_tls"] === true ? "http" : "https")
    : undefined;
  const limit = tree["max_capacity_gb"] ?? 0;
  const budgetBytes = limit === 0 ? undefined : sizeOf(limit, GIB);
  if (tree["s3_enable_s3express"] === true)
    return draft.refuse(adapter, "S3 Express buckets are not served");
  if (bucket === undefined || (byPath && address === undefined))
    return draft.refuse(
      adapter,
      "bucket and store are not told apart; set remote.s3.bucket and remote.s3.endpoint",
    );
  if (typeof budgetBytes === "string")
    return draft.refuse(adapter, `max_capacity_gb: ${budgetBytes}`);
  const region = textOf(tree, "s3_region");
  const pathStyle = byPath ? true : undefined;
  bucketGroup(draft, [adapter], { bucket, endpoint: address, region, pathStyle, budgetBytes });
}

function readAdapters(draft: Draft): void {
  const disks: Disk[] = [];
  const taken: Given[] = [];
  for (const adapter of draft.takeAll("--l2-adapter")) {
    const tree = objectOf(adapter);
    const type = tree?.["type"];
    if (tree === undefined) draft.refuse(adapter, "it is no JSON object");
    else if (type === "s3") readBucket(draft, adapter, tree);
    else if (type === "fs" || type === "fs_native") {
      const disk = diskOf(draft, adapter, tree);
      if (disk === undefined) continue;
      disks.push(disk);
      taken.push(adapter);
    } else
      draft.refuse(
        adapter,
        "this type of adapter has no counterpart: tiers are directories and S3",
      );
  }
  const remark = "where nodes share the path, use remote.directory instead";
  if (disks.length > 0) diskGroup(draft, taken, disks, remark);
}

function readPolicy(draft: Draft): void {
  const policy = draft.take("--eviction-policy");
  if (policy === undefined) return;
  if (policy.value === "LRU")
    draft.group([policy], [{ path: "policy.eviction", value: "lru" }], "");
  else draft.refuse(policy, "no counterpart: the least recently used leaf leaves first");
}

export function readServer(given: Iterable<Given>): Reading {
  const draft = new Draft(LMCACHE_SERVER_OPTIONS, given);
  readDram(draft);
  readAdapters(draft);
  readPolicy(draft);
  return draft.end();
}
