/**
 * `cairn purge`: removes the DRAM pool file and, with --nvme, what the NVMe tier keeps in its directories. A daemon
 * holds an flock on the pool file and on each `directory.cairn` while it runs, so each is deleted by a process that
 * holds the same lock; where util-linux's `flock` is missing, the kernel's own list of locks is asked instead.
 */
import { spawnSync } from "node:child_process";
import { lstatSync, readdirSync, readFileSync, rmSync, type Stats } from "node:fs";
import { join } from "node:path";
import { poolFile } from "../../tiers/dram/preflight.ts";
import { nvmeDirectories } from "../config/defaults.ts";
import { formatBytes } from "../config/units.ts";
import { CairnError } from "../errors.ts";
import { configInForce, readArguments } from "./arguments.ts";
import { EXIT, UsageError } from "./exit.ts";
import { printJson, printLine } from "./output.ts";

/** Exit code by which `flock` says that somebody else holds the lock. */
const LOCKED = 75;
/** A command line has bounded length. */
const PATHS_PER_CALL = 256;

/** What stands in a directory of the NVMe tier (tiers/nvme/README.md); anything else in it is not ours. */
const NVME_LOCK = "directory.cairn";
const NVME_NAMES =
  /^(segment-\d{6}\.cairn|namespaces\.json.*|index(\.opens|\.damaged-.*)?|check\.cairn|directory\.cairn)$/;

/** What one lock guards. */
interface Held {
  readonly lock: string;
  readonly paths: readonly string[];
  readonly bytes: number;
}

function poolFiles(directory: string): Held[] {
  const path = poolFile(directory);
  const stats = lstatSync(path, { throwIfNoEntry: false });
  if (stats === undefined) return [];
  checkOwner(path, stats);
  return [{ lock: path, paths: [path], bytes: stats.size }];
}

function bytesUnder(path: string): number {
  const stats = lstatSync(path);
  if (!stats.isDirectory()) return stats.blocks * 512;
  return readdirSync(path).reduce((sum, name) => sum + bytesUnder(join(path, name)), 0);
}

function nvmeFiles(directory: string): Held[] {
  const lock = join(directory, NVME_LOCK);
  const stats = lstatSync(lock, { throwIfNoEntry: false });
  if (stats === undefined) return [];
  checkOwner(lock, stats);
  const names = readdirSync(directory).filter((name) => NVME_NAMES.test(name));
  // The lock goes last: what is cut off in the middle can be purged again.
  names.sort((left, right) => Number(left === NVME_LOCK) - Number(right === NVME_LOCK));
  const paths = names.map((name) => join(directory, name));
  return [{ lock, paths, bytes: paths.reduce((sum, path) => sum + bytesUnder(path), 0) }];
}

function checkOwner(path: string, stats: Stats): void {
  if (!stats.isFile()) throw new CairnError("directoryUnsafe", `${path} is no plain file`);
  const uid = process.getuid?.() ?? 0;
  if (uid !== 0 && stats.uid !== uid)
    throw new CairnError("directoryUnsafe", `${path} belongs to uid ${stats.uid}, not to us`);
}

/** True if /proc/locks lists a lock on the file. */
function listedAsLocked(path: string): boolean {
  const { ino } = lstatSync(path);
  const lines = readFileSync("/proc/locks", "utf8").split("\n");
  return lines.some((line) => line.split(/\s+/)[5]?.split(":")[2] === String(ino));
}

/** Deletes what one lock guards. throws directoryLocked while a daemon holds it. */
function purgeHeld({ lock, paths }: Held): void {
  for (let from = 0; from < paths.length; from += PATHS_PER_CALL)
    purgePaths(lock, paths.slice(from, from + PATHS_PER_CALL));
}

function purgePaths(lock: string, paths: readonly string[]): void {
  const words = ["-n", "-E", String(LOCKED), lock, "rm", "-rf", "--", ...paths];
  const done = spawnSync("flock", words);
  const busy = new CairnError("directoryLocked", `${lock} is held by a running daemon`);
  if (done.status === 0) return;
  if (done.status === LOCKED) throw busy;
  if (done.error === undefined)
    throw new CairnError("internal", `could not delete ${lock}: ${done.stderr.toString().trim()}`);
  if (listedAsLocked(lock)) throw busy;
  for (const path of paths) rmSync(path, { recursive: true, force: true });
}

export async function purgeCommand(words: readonly string[]): Promise<number> {
  const parsed = readArguments(words, { yes: "boolean", nvme: "boolean" });
  const { dram, nvme } = (await configInForce(parsed)).config;
  const { directory } = dram;
  const disks = nvmeDirectories(nvme).flatMap(({ path }) => nvmeFiles(path));
  const asked = parsed.values.get("nvme") === "true";
  const held = [...poolFiles(directory), ...(asked ? disks : [])];
  const bytes = held.reduce((sum, one) => sum + one.bytes, 0);
  const confirmed = parsed.values.get("yes") === "true";
  if (held.length > 0 && !confirmed) {
    for (const { lock, paths, bytes: size } of held)
      process.stderr.write(`${lock}  ${formatBytes(size)} in ${paths.length} file(s)\n`);
    throw new UsageError("purge deletes these files; say --yes");
  }
  for (const one of held) purgeHeld(one);
  const deleted = held.map(({ lock }) => lock);
  const kept = asked ? [] : disks.map(({ lock }) => lock);
  if (parsed.json) printJson({ directory, deleted, kept, bytes });
  else {
    if (deleted.length === 0) printLine(`no pool file in ${directory}`);
    else printLine(`deleted ${deleted.join(", ")}: ${formatBytes(bytes)}`);
    for (const lock of kept)
      printLine(`${lock} is kept with all its blocks; --nvme deletes them, too`);
  }
  return EXIT.OK;
}
