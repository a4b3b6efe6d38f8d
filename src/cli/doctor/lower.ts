/** What the lower tiers will find: the file system, O_DIRECT, room and owner of each directory, locked memory. */
import { spawnSync } from "node:child_process";
import { existsSync, lstatSync, readFileSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { nvmeDirectories, type NvmeDirectory } from "../../config/defaults.ts";
import type { Config } from "../../config/schema.ts";
import { formatBytes } from "../../config/units.ts";
import { finding, type Finding } from "./finding.ts";

const FILE_SYSTEMS: Readonly<Record<number, string>> = {
  0xef53: "ext4",
  0x5846_5342: "xfs",
  0x9123_683e: "btrfs",
  0x2fc1_2fc1: "zfs",
  0x0102_1994: "tmpfs",
  0x794c_7630: "overlay",
  0x6969: "nfs",
  0x00c3_6400: "ceph",
  0x6573_5546: "fuse",
  0xf2f5_2010: "f2fs",
};
/** Where bytes are in memory, or on another machine: no device of ours. */
const NO_DISK = new Set(["tmpfs", "overlay", "nfs", "ceph"]);
const PROBE_MS = 10_000;

function fileSystemName(type: number): string {
  return FILE_SYSTEMS[type] ?? `file system 0x${type.toString(16)}`;
}

/** Writes one sector past the page cache; undefined when it works, else why not. */
function directRefusal(directory: string): string | undefined {
  const path = join(directory, `.cairn-doctor-${process.pid}`);
  const words = ["if=/dev/zero", `of=${path}`, "bs=4096", "count=1", "oflag=direct"];
  try {
    const done = spawnSync("dd", words, { timeout: PROBE_MS, encoding: "utf8" });
    if (done.error !== undefined) return `dd: ${done.error.message}`;
    if (done.status === 0) return undefined;
    const last = done.stderr.trim().split("\n").at(-1) ?? "";
    return last.split(": ").at(-1) ?? "dd failed";
  } finally {
    rmSync(path, { force: true });
  }
}

/** Why the daemon would refuse the directory, with what to do; undefined when it would take it. */
function unsafe(path: string): { readonly found: string; readonly fix: string } | undefined {
  const stats = lstatSync(path, { throwIfNoEntry: false });
  if (stats === undefined) return undefined;
  if (!stats.isDirectory())
    return { found: "is no directory", fix: `Make ${path} a directory, not a link or a file.` };
  const uid = process.getuid?.() ?? 0;
  if (stats.uid !== uid)
    return { found: `belongs to uid ${stats.uid}`, fix: `chown ${uid} ${path}` };
  if ((stats.mode & 0o077) !== 0)
    return {
      found: `is open to others (mode ${(stats.mode & 0o777).toString(8)})`,
      fix: `chmod 700 ${path}`,
    };
  return undefined;
}

function existingParent(path: string): string {
  let at = path;
  while (!existsSync(at) && at !== "/") at = dirname(at);
  return at;
}

function roomFix(directory: NvmeDirectory, segmentBytes: number, free: number): string | null {
  const { path, capacityBytes } = directory;
  // What is there already counts as free: a directory in use is no shortage.
  if (existsSync(join(path, "directory.cairn"))) return null;
  const wanted = capacityBytes === "auto" ? 2 * segmentBytes : capacityBytes;
  if (free >= wanted) return null;
  return capacityBytes === "auto"
    ? `Free ${formatBytes(wanted)} there (two segments), or lower nvme.segmentBytes.`
    : `Lower its capacityBytes (${formatBytes(wanted)}) or free room there.`;
}

/** One directory of the NVMe tier. */
export function nvmeCheck(directory: NvmeDirectory, segmentBytes: number): Finding {
  const { path } = directory;
  const wrong = unsafe(path);
  if (wrong !== undefined)
    return finding("nvme", "fail", `${path} ${wrong.found}`, wrong.fix, `lstat ${path}`);
  const at = existingParent(path);
  const { type, bavail, bsize, blocks } = statfsSync(at);
  const kind = fileSystemName(type);
  const free = bavail * bsize;
  const size = `${formatBytes(free)} free of ${formatBytes(blocks * bsize)}`;
  const refusal = directRefusal(at);
  const direct = refusal === undefined ? "O_DIRECT works" : `no O_DIRECT (${refusal})`;
  const found = `${path} on ${kind}, ${direct}, ${size}`;
  const source = `statfs and a direct write in ${at}`;
  const room = roomFix(directory, segmentBytes, free);
  if (room !== null) return finding("nvme", "warn", found, room, source);
  if (refusal === undefined && !NO_DISK.has(kind))
    return finding("nvme", "ok", found, null, source);
  const fix =
    refusal === undefined
      ? "Put it on a local disk (ext4 or xfs): this is none."
      : "Mount a local ext4 or xfs there (in a container: a volume, not the overlay); buffered, each byte costs memory twice.";
  return finding("nvme", "warn", found, fix, source);
}

function limitOf(text: string): number {
  const soft = /^Max locked memory\s+(\S+)/m.exec(text)?.[1];
  return soft === "unlimited" ? Number.POSITIVE_INFINITY : Number(soft ?? 0);
}

/** Staging memory that io_uring keeps registered counts against the limit, unless we are root. */
export function registeredCheck(
  { nvme }: Pick<Config, "nvme">,
  limits: string,
  root: boolean,
): Finding {
  const needed = nvme.stagingBytes * nvme.directories.length;
  const limit = limitOf(limits);
  const found = `${formatBytes(needed)} of staging memory to register, ${
    limit === Number.POSITIVE_INFINITY ? "no limit" : `limit ${formatBytes(limit)}`
  }`;
  const fits = root || limit >= needed;
  const fix = fits
    ? null
    : "LimitMEMLOCK=infinity (systemd), --ulimit memlock=-1 (Docker); else reads and writes cost about three times the CPU.";
  return finding("nvme memlock", fits ? "ok" : "warn", found, fix, "/proc/self/limits");
}

/** Writes a small file; undefined when it works, else why not. */
function writeRefusal(directory: string): string | undefined {
  const path = join(directory, `.cairn-doctor-${process.pid}`);
  try {
    writeFileSync(path, new Uint8Array(4_096), { flush: true });
    return undefined;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  } finally {
    rmSync(path, { force: true });
  }
}

function sharedCheck({ remote }: Config): Finding[] {
  const { directory } = remote;
  if (remote.kind !== "directory" || directory === undefined) return [];
  const stats = lstatSync(directory, { throwIfNoEntry: false });
  if (stats === undefined) {
    const fix = `Mount the file system that all nodes share, then mkdir ${directory}.`;
    return [finding("remote", "fail", `${directory} does not exist`, fix, `lstat ${directory}`)];
  }
  const { type, bavail, bsize } = statfsSync(directory);
  const found = `${directory} on ${fileSystemName(type)}, ${formatBytes(bavail * bsize)} free`;
  const refusal = writeRefusal(directory);
  const source = `statfs and a write in ${directory}`;
  if (refusal === undefined) return [finding("remote", "ok", found, null, source)];
  const fix = `Give the daemon's user permission and room to write there: until then what is stored is read, and nothing is added.`;
  return [finding("remote", "warn", `${found}, takes no files (${refusal})`, fix, source)];
}

/** Checks of the tiers that the configuration enables; none where it enables none. */
export function lowerChecks(config: Config): Finding[] {
  const { nvme, remote } = config;
  const findings: Finding[] = [];
  if (nvme.enabled) {
    for (const directory of nvmeDirectories(nvme))
      findings.push(nvmeCheck(directory, nvme.segmentBytes));
    if (nvme.mode !== "threads")
      findings.push(
        registeredCheck(
          config,
          readFileSync("/proc/self/limits", "utf8"),
          process.getuid?.() === 0,
        ),
      );
  }
  if (remote.enabled) findings.push(...sharedCheck(config));
  return findings;
}
