/**
 * Can this host hold the pool? A pool that does not fit is found out here, in one line, and not by a
 * SIGBUS on the first touch of a page that tmpfs cannot give. Facts are gathered once (hostFacts) and
 * judged by a pure function (planPool), so that every verdict has a test.
 */
import { mkdirSync, readFileSync, type Stats, statfsSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { CairnError } from "../../src/errors.ts";
import { cgroupFree } from "./cgroup.ts";

const MIB = 1024 * 1024;
export const AUTO_SHARE = 0.25;
export const AUTO_BYTES_MIN = 64 * MIB;
/** Share of free memory that an explicit capacity may take: the engine and the kernel need the rest. */
export const EXPLICIT_SHARE = 0.9;

/** Tables in front of the slabs in the pool file. */
const HEAD_BYTES = 4 * MIB;

export interface HostFacts {
  readonly memAvailableBytes: number;
  /** Free bytes of the directory's file system. */
  readonly directoryFreeBytes: number;
  /** Left under the memory limits of our cgroup and those above it, Infinity without one. */
  readonly cgroupFreeBytes: number;
  /** RLIMIT_MEMLOCK, Infinity when unlimited. */
  readonly memlockBytes: number;
  /** Bytes that an existing pool file holds already: they come back to it. */
  readonly poolBytes: number;
  /** Length of that file; its slabs. */
  readonly poolLengthBytes: number;
}

export interface PoolPlan {
  readonly slabs: number;
  readonly capacityBytes: number;
  /** Worth a line in the log; empty when there is nothing to say. */
  readonly notes: readonly string[];
}

export function poolFile(directory: string): string {
  return join(directory, "dram-0.cairn");
}

/**
 * Slabs of the pool.
 * @throws CairnError poolTooLarge (an explicit capacity the host cannot hold, or no room for one slab)
 */
export function planPool(
  capacity: number | "auto",
  slabBytes: number,
  directory: string,
  facts: HostFacts,
): PoolPlan {
  const memory = Math.min(facts.memAvailableBytes, facts.cgroupFreeBytes) + facts.poolBytes;
  const files = Math.max(0, facts.directoryFreeBytes + facts.poolBytes - HEAD_BYTES);
  const notes: string[] = [];
  let bytes: number;
  if (capacity === "auto") {
    const wish = Math.max(AUTO_BYTES_MIN, memory * AUTO_SHARE, facts.poolLengthBytes - HEAD_BYTES);
    bytes = Math.min(wish, files * EXPLICIT_SHARE, memory * EXPLICIT_SHARE);
    if (bytes < wish) notes.push(`dram: auto capacity cut to ${mib(bytes)} by ${directory}`);
  } else {
    bytes = capacity;
    refuse(bytes, memory * EXPLICIT_SHARE, `free memory (${mib(memory)})`);
    refuse(bytes, files, `free space of ${directory} (${mib(files)})`);
  }
  const slabs = Math.floor(bytes / slabBytes);
  if (slabs < 1) {
    throw new CairnError(
      "poolTooLarge",
      `dram: not even one slab of ${mib(slabBytes)} fits: capacity ${mib(bytes)}`,
    );
  }
  if (facts.memlockBytes < slabs * slabBytes) {
    notes.push(
      `dram: memlock limit ${mib(facts.memlockBytes)} is below the pool: its pages are not pinned`,
    );
  }
  return { slabs, capacityBytes: slabs * slabBytes, notes };
}

function refuse(bytes: number, limit: number, what: string): void {
  if (bytes <= limit) return;
  throw new CairnError(
    "poolTooLarge",
    `dram.capacityBytes ${mib(bytes)} exceeds ${what}; the most this host holds is ${mib(limit)}`,
    Math.floor(limit),
  );
}

function mib(bytes: number): string {
  return `${Math.floor(bytes / MIB)} MiB`;
}

/** What somebody has to set right; other errors are the device's or the file system's own. */
const NOT_OURS = new Set(["EACCES", "EPERM", "ENOTDIR", "EEXIST", "ELOOP", "ENAMETOOLONG"]);

/**
 * Makes the directory (0700) or checks that it is ours and closed to others. `broken`: the error for a device that
 * does not answer as it should.
 * @throws CairnError directoryUnsafe, or what `broken` names
 */
export function prepareDirectory(
  directory: string,
  broken: "directoryUnsafe" | "diskUnusable" = "directoryUnsafe",
): void {
  const refusal = (error: unknown): CairnError => {
    const ours = !NOT_OURS.has((error as NodeJS.ErrnoException).code ?? "");
    const name = ours ? broken : "directoryUnsafe";
    return new CairnError(name, `${directory}: cannot be made: ${String(error)}`);
  };
  try {
    mkdirSync(dirname(directory), { recursive: true });
    mkdirSync(directory, { mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") {
      throw refusal(error);
    }
  }
  let found: Stats;
  try {
    found = statSync(directory);
  } catch (error) {
    // What exists is above it, and no directory.
    throw refusal(error);
  }
  const uid = process.getuid?.() ?? 0;
  if (!found.isDirectory()) throw new CairnError("directoryUnsafe", `${directory}: no directory`);
  if (found.uid !== uid) {
    throw new CairnError("directoryUnsafe", `${directory} belongs to uid ${found.uid}, not ${uid}`);
  }
  if ((found.mode & 0o077) !== 0) {
    const mode = (found.mode & 0o777).toString(8);
    throw new CairnError("directoryUnsafe", `${directory} has mode ${mode}; chmod 700 it`);
  }
}

/** Facts of this host for a directory that exists. */
export function hostFacts(directory: string): HostFacts {
  const files = statfsSync(directory);
  const pool = statSync(poolFile(directory), { throwIfNoEntry: false });
  return {
    memAvailableBytes: memAvailable(),
    directoryFreeBytes: files.bavail * files.bsize,
    cgroupFreeBytes: cgroupFree(),
    memlockBytes: memlock(),
    poolBytes: (pool?.blocks ?? 0) * 512,
    poolLengthBytes: pool?.size ?? 0,
  };
}

function memAvailable(): number {
  const line = /^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync("/proc/meminfo", "utf8"));
  return line === null ? 0 : Number(line[1]) * 1024;
}

function memlock(): number {
  try {
    const line = /^Max locked memory\s+(\S+)/m.exec(readFileSync("/proc/self/limits", "utf8"));
    if (line === null || line[1] === "unlimited") return Number.POSITIVE_INFINITY;
    return Number(line[1]);
  } catch {
    return Number.POSITIVE_INFINITY; // No /proc: nothing to warn about.
  }
}
