/**
 * An ObjectStore in a directory that many nodes share, without a lock: the embedded default.
 *
 * An object is one file in one of 256 sub-directories, chosen by its name's hash. A writer fills a file of its own,
 * syncs it, and gives it its name by link(), which fails when the name exists: the first writer wins, a reader sees
 * a whole object or none, and a writer killed in the middle leaves only a file that no reader looks at; sweep()
 * removes those by age. Where the file system has no hard links the file is renamed instead: then the last of two
 * racing writers wins, which is harmless, since both wrote the same blocks.
 *
 * The kernel cannot be told to give up a read from a directory whose server is gone. Such a call ends at its
 * deadline for the caller, who learns by Failure.released when the buffer is his again; the operations so stuck are
 * bounded, because each holds a thread of the process.
 */
import { createHash, randomBytes } from "node:crypto";
import { constants } from "node:fs";
import {
  access,
  type FileHandle,
  link,
  mkdir,
  open,
  readdir,
  rename,
  stat,
  unlink,
} from "node:fs/promises";
import { join } from "node:path";
import { assert } from "../../src/assert.ts";
import { LIMITS } from "../../src/limits.ts";
import { sharedOperationsMax } from "../../src/pool-threads.ts";
import {
  assertObjectName,
  type CallLimits,
  type Failure,
  type Fault,
  failure,
  isObjectName,
  type ObjectEntry,
  type ObjectInfo,
  type ObjectPage,
  type ObjectStore,
  type Outcome,
  success,
} from "./object-store.ts";
import { underWay } from "../under-way.ts";

export interface SharedDirectoryOptions {
  readonly directory: string;
  /** Mode of files; nodes under several users need a group. 0o640 by default. */
  readonly fileMode?: number;
  /** File operations at once, stuck ones included: each holds a thread of libuv's pool. 3, less where that is small. */
  readonly operationsMax?: number;
}

const SUFFIX = ".chunk";
const WRITING = ".writing-";
const SHARDS = 256;
const CLOSE_MS = 1_000;
const FILE_MODE = 0o640;
const DIRECTORY_MODE = 0o770;
const WRITE_BYTES = 4 * 2 ** 20;

const FAULT_OF_ERRNO: Readonly<Record<string, Fault>> = {
  ENOENT: "missing",
  ENOSPC: "full",
  EDQUOT: "full",
  EFBIG: "full",
  EACCES: "refused",
  EPERM: "refused",
  EROFS: "refused",
  ENOTDIR: "refused",
  ELOOP: "refused",
};

/** File systems that cannot link answer one of these. */
const NO_LINKS = new Set(["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK", "EXDEV"]);

function codeOf(error: unknown): string {
  const code = (error as { readonly code?: unknown } | null)?.code;
  return typeof code === "string" ? code : "";
}

function failureOf(error: unknown): Failure {
  const code = codeOf(error);
  const message = error instanceof Error ? error.message : String(error);
  return failure(FAULT_OF_ERRNO[code] ?? "unavailable", message);
}

interface Place {
  readonly folder: string;
  readonly path: string;
}

/** An operation notices between its system calls that its caller has gone. */
interface Watch {
  gone: boolean;
}

export class SharedDirectory implements ObjectStore {
  readonly description: string;
  readonly #root: string;
  readonly #fileMode: number;
  readonly #operationsMax: number;
  readonly #foldersMade = new Set<string>();
  #running = 0;
  /** Calls that wait for their turn, oldest first. */
  readonly #waiting = new Set<() => void>();
  readonly #idle: (() => void)[] = [];

  constructor(options: SharedDirectoryOptions) {
    this.description = `directory ${options.directory}`;
    this.#root = options.directory;
    this.#fileMode = options.fileMode ?? FILE_MODE;
    this.#operationsMax = options.operationsMax ?? sharedOperationsMax();
    assert(this.#operationsMax >= 1, "at least one operation runs");
  }

  get(name: string, from: number, into: Uint8Array, limits: CallLimits): Promise<Outcome<number>> {
    const { path } = this.#place(name);
    return this.#bounded(limits, (watch) => readRange(path, from, into, watch));
  }

  put(name: string, body: Uint8Array, limits: CallLimits): Promise<Outcome<"stored" | "present">> {
    const place = this.#place(name);
    return this.#bounded(limits, (watch) => this.#write(place, body, watch));
  }

  head(name: string, limits: CallLimits): Promise<Outcome<ObjectInfo>> {
    const { path } = this.#place(name);
    return this.#bounded(limits, async () => {
      const { size, mtimeMs } = await stat(path);
      return success({ bytes: size, modifiedMs: mtimeMs });
    });
  }

  list(
    prefix: string,
    cursor: string | undefined,
    limits: CallLimits,
  ): Promise<Outcome<ObjectPage>> {
    const shard = cursor === undefined ? 0 : Number.parseInt(cursor, 16);
    assert(shard >= 0 && shard < SHARDS, "a cursor is one that list() gave");
    return this.#bounded(limits, async (watch) => {
      const entries = await this.#entries(shard, prefix, watch);
      const next = shard + 1 < SHARDS ? shardName(shard + 1) : undefined;
      return success({ entries, cursor: next });
    });
  }

  delete(name: string, limits: CallLimits): Promise<Outcome<"deleted" | "missing">> {
    const { path } = this.#place(name);
    return this.#bounded(limits, async () => {
      try {
        await unlink(path);
        return success("deleted");
      } catch (error) {
        if (codeOf(error) === "ENOENT") return success("missing");
        throw error;
      }
    });
  }

  check(limits: CallLimits): Promise<Outcome<"reachable">> {
    return this.#bounded(limits, async () => {
      await access(this.#root, constants.R_OK | constants.X_OK);
      return success("reachable");
    });
  }

  sweep(beforeMs: number, limits: CallLimits): Promise<Outcome<number>> {
    return this.#bounded(limits, async (watch) => {
      let swept = 0;
      for (let shard = 0; shard < SHARDS && !watch.gone; shard += 1) {
        swept += await sweepFolder(join(this.#root, shardName(shard)), beforeMs);
      }
      return success(swept);
    });
  }

  /** Resolves when no operation runs any more; one that is stuck for ever is not waited for by a stopping daemon. */
  async close(): Promise<void> {
    if (this.#running === 0) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, CLOSE_MS);
      this.#idle.push(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  #place(name: string): Place {
    assertObjectName(name);
    const shard = createHash("sha256").update(name).digest()[0] as number;
    const folder = join(this.#root, shardName(shard));
    return { folder, path: join(folder, name.replaceAll("/", ".") + SUFFIX) };
  }

  /** Runs one operation under deadline, signal and the bound on operations. */
  async #bounded<T>(
    limits: CallLimits,
    operation: (watch: Watch) => Promise<Outcome<T>>,
  ): Promise<Outcome<T>> {
    const asked = performance.now();
    const refused = await this.#turn(limits);
    if (refused !== undefined) return refused;
    const watch: Watch = { gone: false };
    const outcome = underWay(
      `${this.#root} does not answer`,
      operation(watch).catch((error: unknown) => this.#failureOf(error)),
    );
    const released = outcome.then(() => this.#endTurn());
    const leftMs = Math.max(1, limits.deadlineMs - (performance.now() - asked));
    return endOf(outcome, { deadlineMs: leftMs, signal: limits.signal }, watch, released);
  }

  /** An object that is missing is an answer, a directory that is missing is none. */
  async #failureOf(error: unknown): Promise<Failure> {
    const gone = codeOf(error) === "ENOENT" && !(await exists(this.#root).catch(() => true));
    if (!gone) return failureOf(error);
    return failure("unavailable", `no such directory: ${this.#root}`);
  }

  /** Waits for one of the operations to be over; a failure when that takes too long or too many wait. */
  async #turn(limits: CallLimits): Promise<Failure | undefined> {
    if (limits.signal?.aborted === true) return failure("cancelled", "cancelled before it began");
    if (this.#running < this.#operationsMax) {
      this.#running += 1;
      return undefined;
    }
    if (this.#waiting.size >= LIMITS.remoteWaitingMax)
      return failure("busy", `${LIMITS.remoteWaitingMax} calls wait`);
    const watch: Watch = { gone: false };
    let begin: () => void = () => undefined;
    const turn = new Promise<Outcome<true>>((resolve) => {
      begin = () => resolve(success(true));
    });
    this.#waiting.add(begin);
    const outcome = await endOf(turn, limits, watch, undefined);
    if (outcome.ok) return undefined;
    // The turn may have been given in the same moment: pass it on.
    if (!this.#waiting.delete(begin)) this.#endTurn();
    return outcome;
  }

  #endTurn(): void {
    assert(this.#running > 0, "an operation that ends was running");
    const [next] = this.#waiting;
    if (next === undefined) {
      this.#running -= 1;
      if (this.#running === 0) for (const idle of this.#idle.splice(0)) idle();
      return;
    }
    this.#waiting.delete(next);
    next();
  }

  async #folder(folder: string): Promise<void> {
    if (this.#foldersMade.has(folder)) return;
    // Not recursive: a directory whose mount is gone must not be made anew on the disk below.
    try {
      await mkdir(folder, { mode: DIRECTORY_MODE });
      await syncFolder(this.#root);
    } catch (error) {
      if (codeOf(error) !== "EEXIST") throw error;
    }
    this.#foldersMade.add(folder);
  }

  async #write(
    place: Place,
    body: Uint8Array,
    watch: Watch,
  ): Promise<Outcome<"stored" | "present">> {
    if (await exists(place.path)) return success("present");
    await this.#folder(place.folder);
    const own = join(place.folder, `${WRITING}${randomBytes(12).toString("hex")}`);
    let file: FileHandle;
    try {
      file = await open(own, "wx", this.#fileMode);
    } catch (error) {
      // Somebody removed the folder that this node had made.
      if (codeOf(error) === "ENOENT") this.#foldersMade.delete(place.folder);
      return failure(
        codeOf(error) === "ENOENT" ? "unavailable" : failureOf(error).fault,
        String(error),
      );
    }
    try {
      try {
        await writeAll(file, body, watch);
        await file.sync();
      } finally {
        await file.close();
      }
      if (watch.gone) return failure("cancelled", "the caller has gone");
      const first = await giveName(own, place.path);
      if (first) await syncFolder(place.folder);
      return success(first ? "stored" : "present");
    } finally {
      await unlink(own).catch(() => undefined);
    }
  }

  async #entries(shard: number, prefix: string, watch: Watch): Promise<ObjectEntry[]> {
    const folder = join(this.#root, shardName(shard));
    const entries: ObjectEntry[] = [];
    for (const file of await filesOf(folder)) {
      if (watch.gone) break;
      const name = nameOf(file);
      if (name === undefined || !name.startsWith(prefix)) continue;
      const found = await stat(join(folder, file)).catch(() => undefined);
      if (found?.isFile() === true) {
        entries.push({ name, bytes: found.size, modifiedMs: found.mtimeMs });
      }
    }
    return entries;
  }
}

/** The outcome, or a failure at the deadline or the signal, whichever is first. */
function endOf<T>(
  outcome: Promise<Outcome<T>>,
  limits: CallLimits,
  watch: Watch,
  released: Promise<void> | undefined,
): Promise<Outcome<T>> {
  return new Promise((resolve) => {
    const giveUp = (fault: Fault, message: string): void => {
      watch.gone = true;
      settle(failure(fault, message, released));
    };
    const timer = setTimeout(() => giveUp("timeout", "past the deadline"), limits.deadlineMs);
    const onAbort = (): void => giveUp("cancelled", "cancelled");
    const settle = (result: Outcome<T>): void => {
      clearTimeout(timer);
      limits.signal?.removeEventListener("abort", onAbort);
      resolve(result);
    };
    limits.signal?.addEventListener("abort", onAbort, { once: true });
    void outcome.then(settle);
  });
}

function shardName(shard: number): string {
  return shard.toString(16).padStart(2, "0");
}

/** The object a file holds; undefined for foreign files. */
function nameOf(file: string): string | undefined {
  if (!file.endsWith(SUFFIX)) return undefined;
  const name = file.slice(0, -SUFFIX.length).replaceAll(".", "/");
  return isObjectName(name) ? name : undefined;
}

async function filesOf(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    if (codeOf(error) === "ENOENT") return [];
    throw error;
  }
}

async function sweepFolder(folder: string, beforeMs: number): Promise<number> {
  let swept = 0;
  for (const file of await filesOf(folder)) {
    if (!file.startsWith(WRITING)) continue;
    const path = join(folder, file);
    const found = await stat(path).catch(() => undefined);
    if (found === undefined || !found.isFile() || found.mtimeMs >= beforeMs) continue;
    if (
      await unlink(path).then(
        () => true,
        () => false,
      )
    )
      swept += 1;
  }
  return swept;
}

async function exists(path: string): Promise<boolean> {
  try {
    await access(path, constants.F_OK);
    return true;
  } catch (error) {
    if (codeOf(error) === "ENOENT") return false;
    throw error;
  }
}

async function readRange(
  path: string,
  from: number,
  into: Uint8Array,
  watch: Watch,
): Promise<Outcome<number>> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    const { size } = await file.stat();
    if (from + into.length > size) return failure("short", `the object has ${size} bytes`);
    let at = 0;
    while (at < into.length && !watch.gone) {
      const { bytesRead } = await file.read(into, at, into.length - at, from + at);
      if (bytesRead === 0) return failure("truncated", "the file became shorter");
      at += bytesRead;
    }
    return success(size);
  } finally {
    await file.close();
  }
}

/** Slices, so that a caller that has gone is noticed. */
async function writeAll(file: FileHandle, body: Uint8Array, watch: Watch): Promise<void> {
  let at = 0;
  while (at < body.length && !watch.gone) {
    const length = Math.min(WRITE_BYTES, body.length - at);
    const { bytesWritten } = await file.write(body, at, length, at);
    assert(bytesWritten > 0, "a write without an error writes");
    at += bytesWritten;
  }
}

/** Gives a written file its name; false when the name was taken before. */
async function giveName(own: string, path: string): Promise<boolean> {
  try {
    await link(own, path);
    return true;
  } catch (error) {
    if (codeOf(error) === "EEXIST") return false;
    if (!NO_LINKS.has(codeOf(error))) throw error;
  }
  if (await exists(path)) return false;
  await rename(own, path);
  return true;
}

async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
