/** Proofs of the lower tiers' sections (proofs.ts): what a disk and a store of objects need to work at all. */
import { isKeyPrefix } from "../../tiers/remote/object-store.ts";
import { nvmeDirectories, remoteSealed } from "./defaults.ts";
import type { Config } from "./schema.ts";

/** Slab index of a slot number has 14 bits (addon/binding.ts). */
export const SLABS_MAX = 2 ** 14;
const SECTOR_BYTES = 4_096;

export interface Proof {
  readonly path: string;
  /** The reason it does not hold, or undefined. */
  readonly check: (config: Config) => string | undefined;
}

export function when(failed: boolean, reason: string): string | undefined {
  return failed ? reason : undefined;
}

/** Whether one of two absolute paths is the other, or lies in it. */
function overlap(left: string, right: string): boolean {
  const [a, b] = [`${left}/`, `${right}/`];
  return a.startsWith(b) || b.startsWith(a);
}

function directoriesProof(config: Config): string | undefined {
  const { nvme, dram } = config;
  const directories = nvmeDirectories(nvme);
  if (nvme.enabled && directories.length === 0) return "nvme.enabled needs at least one directory";
  for (const [index, { path, capacityBytes }] of directories.entries()) {
    if (!path.startsWith("/")) return `${path} is not an absolute path`;
    const other = directories.slice(0, index).find((one) => overlap(one.path, path));
    if (other !== undefined) return `${other.path} and ${path} overlap; every device needs its own`;
    if (dram.directory !== "" && overlap(dram.directory, path))
      return `${path} and dram.directory ${dram.directory} overlap`;
    if (capacityBytes !== "auto" && capacityBytes < 2 * nvme.segmentBytes) {
      return (
        `${path}: ${capacityBytes} bytes hold not two segments of ${nvme.segmentBytes} ` +
        "(nvme.segmentBytes)"
      );
    }
  }
  return undefined;
}

function segmentsProof({ nvme }: Config): string | undefined {
  if (nvme.segmentBytes % SECTOR_BYTES !== 0)
    return `${nvme.segmentBytes} is not a multiple of ${SECTOR_BYTES}`;
  let segments = 0;
  for (const { capacityBytes } of nvmeDirectories(nvme)) {
    if (capacityBytes !== "auto") segments += Math.floor(capacityBytes / nvme.segmentBytes);
  }
  return when(
    segments > SLABS_MAX,
    `${segments} segments are more than ${SLABS_MAX}; raise nvme.segmentBytes`,
  );
}

export const NVME_PROOFS: readonly Proof[] = [
  { path: "nvme.directories", check: directoriesProof },
  { path: "nvme.segmentBytes", check: segmentsProof },
  {
    path: "nvme.stagingBytes",
    check: ({ nvme }) =>
      when(
        nvme.stagingBytes % (2 * SECTOR_BYTES) !== 0,
        `${nvme.stagingBytes} is not a multiple of ${2 * SECTOR_BYTES}`,
      ),
  },
  {
    path: "nvme.writeDepth",
    check: ({ nvme }) =>
      when(
        nvme.writeDepth > nvme.queueDepth,
        `${nvme.writeDepth} writes cannot be among nvme.queueDepth ${nvme.queueDepth} operations`,
      ),
  },
  {
    path: "nvme.lowWatermark",
    check: ({ nvme }) =>
      when(
        nvme.lowWatermark > nvme.highWatermark,
        `${nvme.lowWatermark} lies above nvme.highWatermark ${nvme.highWatermark}; eviction would never end`,
      ),
  },
];

function sharedDirectoryProof({ remote, dram, nvme }: Config): string | undefined {
  const { directory } = remote;
  if (remote.enabled && remote.kind === "directory" && directory === undefined)
    return "remote.kind directory needs a directory that all nodes mount";
  if (directory === undefined) return undefined;
  if (!directory.startsWith("/")) return `${directory} is not an absolute path`;
  const ours = [dram.directory, ...nvmeDirectories(nvme).map(({ path }) => path)];
  const other = ours.find((path) => path !== "" && overlap(path, directory));
  return other === undefined ? undefined : `${directory} and ${other} overlap`;
}

function endpointProof({ remote }: Config): string | undefined {
  const { endpoint } = remote.s3;
  if (endpoint === "") return undefined;
  const url = URL.canParse(endpoint) ? new URL(endpoint) : undefined;
  const named = url !== undefined && /^https?:$/.test(url.protocol) && url.port !== "0";
  // Behind the name stands nothing: no user, path, query or fragment.
  const bare = url !== undefined && `${url.username}${url.password}${url.search}${url.hash}` === "";
  return when(
    !named || !bare || url.pathname !== "/",
    `"${endpoint}" is no endpoint; write http(s)://host[:port]`,
  );
}

function prefixProof({ remote }: Config): string | undefined {
  const { prefix } = remote.s3;
  return when(!isKeyPrefix(prefix), `"${prefix}" is not parts of A-Z a-z 0-9 . _ - and /`);
}

function bucketProof({ remote }: Config): string | undefined {
  const { bucket } = remote.s3;
  if (bucket === "") {
    return when(
      remote.enabled && remote.kind === "s3",
      "remote.kind s3 needs the name of a bucket",
    );
  }
  const arn = /^arn:[A-Za-z0-9:/._-]+$/.test(bucket);
  return when(
    !arn && !/^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$/.test(bucket),
    `"${bucket}" is no bucket`,
  );
}

function sealingProof(config: Config): string | undefined {
  const { enabled, keyFile, keyCommand } = config.remote;
  if (keyFile !== undefined && keyCommand !== undefined)
    return "remote.keyFile and remote.keyCommand are both set; keys come from one of them";
  return when(
    enabled && remoteSealed(config) && keyFile === undefined && keyCommand === undefined,
    "chunks are sealed (with tenants by default), which needs remote.keyFile or remote.keyCommand",
  );
}

function absoluteProof(path: string | undefined): string | undefined {
  return when(path !== undefined && !path.startsWith("/"), `${path} is not an absolute path`);
}

export const REMOTE_PROOFS: readonly Proof[] = [
  { path: "remote.sealing", check: sealingProof },
  { path: "remote.keyFile", check: ({ remote }) => absoluteProof(remote.keyFile) },
  { path: "remote.keyCommand", check: ({ remote }) => absoluteProof(remote.keyCommand?.[0]) },
  { path: "remote.directory", check: sharedDirectoryProof },
  { path: "remote.s3.bucket", check: bucketProof },
  { path: "remote.s3.prefix", check: prefixProof },
  {
    path: "remote.s3.region",
    check: ({ remote: { s3 } }) =>
      when(!/^[A-Za-z0-9-]{1,64}$/.test(s3.region), `"${s3.region}" is no region`),
  },
  {
    path: "remote.s3.credentialsFile",
    check: ({ remote }) => absoluteProof(remote.s3.credentialsFile),
  },
  { path: "remote.s3.endpoint", check: endpointProof },
  {
    path: "remote.inFlightBytesMax",
    check: ({ remote }) =>
      when(
        remote.inFlightBytesMax < 2 * remote.chunkBytesMax,
        `${remote.inFlightBytesMax} bytes hold not two chunks of remote.chunkBytesMax ${remote.chunkBytesMax}`,
      ),
  },
];
