/**
 * What no single field can show: relations between fields that must hold before the daemon starts or a
 * reload is applied. Each proof is one row: the field to blame, and a one-line reason when it fails.
 */
import type { Problem } from "./fields.ts";
import { parseListen } from "./listen.ts";
import { NVME_PROOFS, type Proof, REMOTE_PROOFS, SLABS_MAX, when } from "./proofs-lower.ts";
import type { Config } from "./schema.ts";

/** sun_path holds 108 bytes with its final zero. */
const SOCKET_PATH_BYTES_MAX = 107;
const PAGE_BYTES = 4_096;
const LEASE_MS_MAX = 600_000;

function listenProof(config: Config): string | undefined {
  const address = parseListen(config.edge.listen);
  if (address === undefined)
    return `"${config.edge.listen}" is no address; write host:port, [v6]:port or unix:/path`;
  const guarded =
    config.edge.tokenFile !== undefined || config.edge.tls?.clientCaFile !== undefined;
  const offHost = address.kind === "tcp" && !address.loopback;
  if (offHost && !guarded) {
    return `${config.edge.listen} can be reached from other hosts; set edge.tokenFile or edge.tls.clientCaFile`;
  }
  // Any local user can open a loopback port, and HTTP tells where every tenant's blocks are.
  return when(
    config.tenants.length > 0 && address.kind === "tcp" && !guarded,
    "with tenants every local user could ask about the others' blocks; set edge.tokenFile, or edge.listen to unix:/path",
  );
}

function socketPaths(config: Config): readonly string[] {
  const edge = parseListen(config.edge.listen);
  const paths = [config.engineApi.socket, ...config.tenants.flatMap((one) => one.socket ?? [])];
  if (edge?.kind === "unix") paths.push(edge.path);
  return paths.filter((path) => path !== "");
}

function socketsProof(config: Config): string | undefined {
  const paths = socketPaths(config);
  const long = paths.find((path) => Buffer.byteLength(path) > SOCKET_PATH_BYTES_MAX);
  if (long !== undefined) return `${long} is longer than ${SOCKET_PATH_BYTES_MAX} bytes`;
  const relative = paths.find((path) => !path.startsWith("/"));
  if (relative !== undefined) return `${relative} is not an absolute path`;
  const twice = paths.find((path, index) => paths.indexOf(path) !== index);
  return twice === undefined ? undefined : `${twice} is named twice; every listener needs its own`;
}

function tenantsProof(config: Config): string | undefined {
  const names = new Set<string>(["default"]);
  const uids = new Map<number, string>();
  for (const tenant of config.tenants) {
    if (names.has(tenant.name)) return `the name "${tenant.name}" is taken ("default" always is)`;
    names.add(tenant.name);
    if (tenant.socket === undefined && (tenant.uids ?? []).length === 0)
      return `"${tenant.name}" has neither socket nor uids, so nobody could be it`;
    for (const uid of tenant.uids ?? []) {
      const other = uids.get(uid);
      if (other !== undefined) return `uid ${uid} belongs to "${other}" and to "${tenant.name}"`;
      uids.set(uid, tenant.name);
    }
  }
  return undefined;
}

function capacityProof({ dram }: Config): string | undefined {
  if (dram.capacityBytes === "auto") return undefined;
  if (dram.capacityBytes < dram.slabBytes)
    return `${dram.capacityBytes} bytes hold not one slab of ${dram.slabBytes} (dram.slabBytes)`;
  const slabs = Math.floor(dram.capacityBytes / dram.slabBytes);
  return when(slabs > SLABS_MAX, `${slabs} slabs are more than ${SLABS_MAX}; raise dram.slabBytes`);
}

export const PROOFS: readonly Proof[] = [
  {
    path: "dram.lowWatermark",
    check: ({ dram }) =>
      when(
        dram.lowWatermark > dram.highWatermark,
        `${dram.lowWatermark} lies above dram.highWatermark ${dram.highWatermark}; eviction would never end`,
      ),
  },
  { path: "dram.capacityBytes", check: capacityProof },
  {
    path: "dram.slabBytes",
    check: ({ dram }) =>
      when(
        dram.slabBytes % PAGE_BYTES !== 0,
        `${dram.slabBytes} is not a multiple of ${PAGE_BYTES}`,
      ),
  },
  {
    path: "dram.directory",
    check: ({ dram }) =>
      when(
        dram.directory !== "" && !dram.directory.startsWith("/"),
        `${dram.directory} is not an absolute path`,
      ),
  },
  {
    path: "ledger.blocksMax",
    check: ({ ledger, dram, nvme }) => {
      const blocks = dram.blocksMax + (nvme.enabled ? nvme.blocksMax : 0);
      return when(
        ledger.blocksMax !== 0 && blocks > ledger.blocksMax,
        `${ledger.blocksMax} records cannot describe ${blocks} blocks (dram.blocksMax and nvme.blocksMax)`,
      );
    },
  },
  {
    path: "engineApi.heartbeatMisses",
    check: ({ engineApi }) =>
      when(
        engineApi.heartbeatMisses < 2,
        "with 1 a heartbeat that is a moment late frees live leases; use at least 2",
      ),
  },
  {
    path: "engineApi.heartbeatMs",
    check: ({ engineApi }) =>
      when(
        engineApi.heartbeatMs * engineApi.heartbeatMisses > LEASE_MS_MAX,
        `a silent engine would hold its leases ${engineApi.heartbeatMs * engineApi.heartbeatMisses} ms; ` +
          `heartbeatMs × heartbeatMisses may be ${LEASE_MS_MAX}`,
      ),
  },
  {
    path: "engineApi.pinnedBytesMax",
    check: ({ engineApi, dram }) =>
      when(
        dram.capacityBytes !== "auto" && engineApi.pinnedBytesMax > dram.capacityBytes,
        `${engineApi.pinnedBytesMax} is more than dram.capacityBytes ${dram.capacityBytes}; ` +
          "one instance could pin everything",
      ),
  },
  { path: "edge.listen", check: listenProof },
  { path: "engineApi.socket", check: socketsProof },
  { path: "tenants", check: tenantsProof },
  ...NVME_PROOFS,
  ...REMOTE_PROOFS,
];

/** Every proof that does not hold. `sourceOf` tells where a field's value came from. */
export function proveConfig(config: Config, sourceOf: (path: string) => string): Problem[] {
  const problems: Problem[] = [];
  for (const { path, check } of PROOFS) {
    const message = check(config);
    if (message !== undefined) problems.push({ path, source: sourceOf(path), message });
  }
  return problems;
}
