/**
 * Groups that several readers make: disks, and stores that nodes share. A directory of another program is never used
 * itself but a folder `cairn` in it: its mode and its files stay as they are, and cairn's directory must be its own.
 */
import { join, normalize } from "node:path";
import { type Draft, type Given, type Group, sizeText } from "./options.ts";

export const FOLDER = "cairn";

/** Setting one of these is a choice of its own, which no part of another program's choice may alter. */
const DISK_FIELDS = ["nvme.enabled", "nvme.directories"];
const REMOTE_FIELDS = [
  "remote.enabled",
  "remote.kind",
  "remote.directory",
  "remote.s3.bucket",
  "remote.s3.endpoint",
];

export interface Disk {
  readonly path: string;
  readonly capacityBytes: number | "auto";
}

/** The absolute path of `file:///a/b/` or `/a/b`; undefined: there is none, or it needs a shell to be read. */
export function absolutePath(text: string): string | undefined {
  const path = text.trim().replace(/^file:\/\//, "");
  // A control character or a comma in a path is a mistake of whoever wrote it.
  return /^\/[^\p{C},]*$/u.test(path) ? normalize(path) : undefined;
}

export function diskGroup(
  draft: Draft,
  from: readonly Given[],
  disks: readonly Disk[],
  remark: string,
): void {
  const directories = disks.map(({ path, capacityBytes }) => ({
    path: join(path, FOLDER),
    capacityBytes: capacityBytes === "auto" ? capacityBytes : sizeText(capacityBytes),
  }));
  const settings: Group["settings"] = [
    { path: "nvme.enabled", value: true },
    { path: "nvme.directories", value: directories },
  ];
  draft.group(from, settings, remark, DISK_FIELDS);
}

/** A directory that nodes share. */
export function sharedGroup(draft: Draft, from: readonly Given[], path: string): void {
  const settings: Group["settings"] = [
    { path: "remote.enabled", value: true },
    { path: "remote.kind", value: "directory" },
    { path: "remote.directory", value: join(path, FOLDER) },
  ];
  const remark = `the folder ${FOLDER} in it must exist: cairn makes none in a shared directory, which may not be mounted`;
  draft.group(from, settings, remark, REMOTE_FIELDS);
}

export interface Bucket {
  readonly bucket: string;
  /** `http(s)://host[:port]`; absent: AWS. */
  readonly endpoint?: string | undefined;
  readonly region?: string | undefined;
  readonly prefix?: string | undefined;
  readonly pathStyle?: boolean | undefined;
  readonly budgetBytes?: number | undefined;
}

const BUCKET = /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/;
const REGION = /^[A-Za-z0-9-]{1,64}$/;
const PREFIX = /^[A-Za-z0-9._-]+(?:\/[A-Za-z0-9._-]+)*$/;

function bucketFault({ bucket, region, prefix }: Bucket): string | undefined {
  if (!BUCKET.test(bucket)) return "it is no name of one bucket";
  if (region !== undefined && !REGION.test(region)) return "the region is no name";
  if (prefix !== undefined && !PREFIX.test(prefix))
    return "of the prefix, letters, digits, dots, dashes and slashes are taken";
  return undefined;
}

/** A bucket; what cannot be used is noted at each option. */
export function bucketGroup(draft: Draft, from: readonly Given[], store: Bucket): void {
  const fault = bucketFault(store);
  if (fault !== undefined) return draft.refuseAll(from, fault);
  const { bucket, endpoint, region, prefix, pathStyle, budgetBytes } = store;
  const optional: readonly (readonly [string, unknown])[] = [
    ["remote.s3.endpoint", endpoint],
    ["remote.s3.region", region],
    ["remote.s3.pathStyle", pathStyle],
    ["remote.budgetBytes", budgetBytes === undefined ? undefined : sizeText(budgetBytes)],
  ];
  const settings = [
    { path: "remote.enabled", value: true },
    { path: "remote.kind", value: "s3" },
    { path: "remote.s3.bucket", value: bucket },
    { path: "remote.s3.prefix", value: prefix === undefined ? FOLDER : `${prefix}/${FOLDER}` },
    ...optional.flatMap(([path, value]) => (value === undefined ? [] : [{ path, value }])),
  ];
  const remark =
    "objects of the other program are neither read nor removed; credentials come from the environment, a profile, the host's role or remote.s3.credentialsFile";
  draft.group(from, settings, remark, REMOTE_FIELDS);
}

/** `http(s)://host[:port]` of text that may lack the scheme; undefined: it is no such address. */
export function endpointOf(text: string, scheme: "http" | "https"): string | undefined {
  const full = text.includes("://") ? text : `${scheme}://${text}`;
  if (!URL.canParse(full)) return undefined;
  const url = new URL(full);
  const plain = url.pathname === "/" && url.search === "" && url.hash === "";
  const bare = url.username === "" && url.password === "";
  return /^https?:$/.test(url.protocol) && plain && bare ? url.origin : undefined;
}

const AWS_HOST = /^([a-z0-9][a-z0-9-]{1,61}[a-z0-9])\.s3(?:[.-]([a-z0-9-]+))?\.amazonaws\.com$/;

/**
 * The bucket of `s3://bucket` or of AWS's own host name of it. Another host name is not taken apart: where the bucket
 * ends and the store begins is a guess, and a wrong one would send blocks to a stranger.
 */
export function awsBucketOf(
  url: string,
): { readonly bucket: string; readonly region?: string | undefined } | undefined {
  const host = url.replace(/^s3:\/\//, "").replace(/\/$/, "");
  const aws = AWS_HOST.exec(host);
  if (aws !== null) return { bucket: aws[1]!, region: aws[2] };
  return /^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$/.test(host) ? { bucket: host } : undefined;
}
