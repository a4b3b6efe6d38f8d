/**
 * What the memory limits of this process's cgroup leave. A limit may stand on any group between the process
 * and the root, and each counts all that runs below it, so the one that leaves least decides. Where the
 * hierarchy is mounted, and which part of it, is read from mountinfo: a container often sees its own group as
 * the root of what is mounted.
 */
import { readFileSync } from "node:fs";

/** Text of a file, undefined if it cannot be read. */
export type ReadText = (path: string) => string | undefined;

/** Beyond any memory: how v1 says that there is no limit. */
const UNLIMITED_BYTES = 2 ** 50;
const GROUPS_MAX = 64;

interface Version {
  readonly limit: string;
  readonly usage: string;
  /** A line of /proc/self/cgroup: its controllers (the middle field). */
  readonly isOurs: (controllers: readonly string[]) => boolean;
  /** A mount: its file system and options. */
  readonly isMount: (type: string, options: readonly string[]) => boolean;
}

const VERSIONS: readonly Version[] = [
  {
    limit: "memory.max",
    usage: "memory.current",
    isOurs: (controllers) => controllers[0] === "",
    isMount: (type) => type === "cgroup2",
  },
  {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    isOurs: (controllers) => controllers.includes("memory"),
    isMount: (type, options) => type === "cgroup" && options.includes("memory"),
  },
];

/** Bytes; Infinity without a limit. */
export function cgroupFree(read: ReadText = readFile): number {
  const groups = (read("/proc/self/cgroup") ?? "").split("\n");
  const mounts = (read("/proc/self/mountinfo") ?? "").split("\n");
  let least = Number.POSITIVE_INFINITY;
  for (const version of VERSIONS) {
    const group = groupOf(groups, version);
    const mount = mountOf(mounts, version);
    if (group === undefined || mount === undefined) continue;
    for (const directory of upwards(mount.point, below(mount.root, group))) {
      const limit = numberIn(read(`${directory}/${version.limit}`));
      if (limit === undefined || limit >= UNLIMITED_BYTES) continue;
      const usage = numberIn(read(`${directory}/${version.usage}`)) ?? 0;
      least = Math.min(least, Math.max(0, limit - usage));
    }
  }
  return least;
}

/** Path of our group in the hierarchy: lines are `number:controllers:path`. */
function groupOf(lines: readonly string[], version: Version): string | undefined {
  for (const line of lines) {
    const [number, controllers, ...path] = line.split(":");
    if (number === undefined || controllers === undefined || path.length === 0) continue;
    if (version.isOurs(controllers.split(","))) return path.join(":");
  }
  return undefined;
}

interface Mount {
  /** Which part of the hierarchy is mounted. */
  readonly root: string;
  readonly point: string;
}

/** Lines are `id parent device root point options… - type source options` (proc(5)). */
function mountOf(lines: readonly string[], version: Version): Mount | undefined {
  for (const line of lines) {
    const [before, after] = line.split(" - ");
    const [root, point] = (before ?? "").split(" ").slice(3);
    const [type, , options] = (after ?? "").split(" ");
    if (root === undefined || point === undefined || type === undefined) continue;
    if (version.isMount(type, (options ?? "").split(","))) return { root, point };
  }
  return undefined;
}

/** Names of the groups from the mounted part down to ours; none where ours lies outside. */
function below(root: string, group: string): string[] {
  const base = root === "/" ? "" : root;
  if (group !== base && !group.startsWith(`${base}/`)) return [];
  const names = group
    .slice(base.length)
    .split("/")
    .filter((name) => name !== "");
  return names.includes("..") ? [] : names.slice(0, GROUPS_MAX);
}

/** Directories from our group's up to the mount point. */
function* upwards(point: string, names: readonly string[]): Generator<string> {
  for (let depth = names.length; depth >= 0; depth--) {
    yield [point, ...names.slice(0, depth)].join("/");
  }
}

function numberIn(text: string | undefined): number | undefined {
  const value = text === undefined ? Number.NaN : Number.parseInt(text, 10);
  return Number.isFinite(value) ? value : undefined;
}

function readFile(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined; // No such controller on this host.
  }
}
