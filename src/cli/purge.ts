/**
 * `cairn purge`: removes the DRAM pool files. A daemon holds an flock on its files while it runs, so each
 * file is deleted by a process that holds the same lock; where util-linux's `flock` is missing, the
 * kernel's own list of locks is asked instead.
 */
import { spawnSync } from "node:child_process";
import { lstatSync, readFileSync, type Stats, unlinkSync } from "node:fs";
import { poolFile } from "../../tiers/dram/preflight.ts";
import { formatBytes } from "../config/units.ts";
import { CairnError } from "../errors.ts";
import { configOf, readArguments } from "./arguments.ts";
import { EXIT, UsageError } from "./exit.ts";
import { printJson, printLine } from "./output.ts";

/** Exit code by which `flock` says that somebody else holds the lock. */
const LOCKED = 75;

interface PoolFile {
  readonly path: string;
  readonly bytes: number;
}

function poolFiles(directory: string): PoolFile[] {
  const path = poolFile(directory);
  const stats = lstatSync(path, { throwIfNoEntry: false });
  if (stats === undefined) return [];
  checkOwner(path, stats);
  return [{ path, bytes: stats.size }];
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

/** Deletes one pool file. throws directoryLocked while a daemon holds it. */
export function purgeFile(path: string): void {
  const done = spawnSync("flock", ["-n", "-E", String(LOCKED), path, "rm", "--", path]);
  const busy = new CairnError("directoryLocked", `${path} is held by a running daemon`);
  if (done.status === 0) return;
  if (done.status === LOCKED) throw busy;
  if (done.error === undefined)
    throw new CairnError("internal", `could not delete ${path}: ${done.stderr.toString().trim()}`);
  if (listedAsLocked(path)) throw busy;
  unlinkSync(path);
}

export async function purgeCommand(words: readonly string[]): Promise<number> {
  const parsed = readArguments(words, { yes: "boolean" });
  const { directory } = configOf(parsed).config.dram;
  const files = poolFiles(directory);
  const confirmed = parsed.values.get("yes") === "true";
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
  const paths = files.map(({ path }) => path);
  if (files.length > 0 && !confirmed) {
    for (const file of files) process.stderr.write(`${file.path}  ${formatBytes(file.bytes)}\n`);
    throw new UsageError("purge deletes these files; say --yes");
  }
  for (const path of paths) purgeFile(path);
  if (parsed.json) printJson({ directory, deleted: paths, bytes });
  else if (paths.length === 0) printLine(`no pool file in ${directory}`);
  else printLine(`deleted ${paths.length} pool file(s), ${formatBytes(bytes)}, in ${directory}`);
  return EXIT.OK;
}
