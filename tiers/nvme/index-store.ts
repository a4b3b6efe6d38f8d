/**
 * The index of one directory: an LMDB environment of pages (index-pages.ts) under integer keys, and one `meta`
 * entry. LMDB holds no payload and is never needed for a look-up; it is what makes a restart short.
 *
 * A write ends when LMDB has flushed it to the device (default overlapping sync; noSync would lose acknowledged
 * pages in a power cut). After a failed or overdue write the store is `broken` and takes no more. A commit that found
 * no room left the environment as it was, and is tried again when there is some (retry()). After any other failure
 * nobody knows what reached the disk, and lmdb can not close such an environment either: it is left behind, and a
 * new index is begun in its place (replace()), which the ledger can fill.
 *
 * LMDB maps its file, so a bad file can end the process. A child reads it first (probe.ts). What a child cannot see
 * (the list of free pages) is met by the first commit; so starts that die between open() and that commit are counted
 * in a file, and after nvmeIndexOpensMax of them the index counts as damaged: a bad index cannot make a crash loop.
 *
 * lmdb 3.5.6 also ends the process when its open fails after data.mdb is open (it frees the environment twice). So
 * what can fail there is tried first, where it is an error (tryFiles()).
 */
import {
  accessSync,
  closeSync,
  constants,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { RootDatabase } from "lmdb";
import { assert } from "../../src/assert.ts";
import { withinTime } from "./tasks.ts";

export const INDEX_FOLDER = "index";
const OPENS_FILE = "index.opens";
/** No page has this key. */
export const META_KEY = 0xffff_ffff;
export const META_VERSION = 1;
/** LMDB's two meta pages; the magic stands behind the page header of the first. */
const META_PAGES_BYTES = 8_192;
const MAGIC_AT = 24;
const LMDB_MAGIC = 0xbeef_c0de;
/** More than LMDB writes before its first commit. */
const NEW_INDEX_BYTES = 65_536;

/** Why a commit failed. `full`: no room, by LMDB's code and statfs (the caller's judgement). */
export class IndexWriteError extends Error {
  readonly code: number;

  constructor(message: string, code: number) {
    super(message);
    this.name = "IndexWriteError";
    this.code = code;
  }
}

export interface PageWrite {
  readonly key: number;
  /** undefined: the page has no slot left. */
  readonly bytes: Buffer | undefined;
}

/** Starts in a row whose index never came to a commit. */
export function opensOf(directory: string): number {
  try {
    return Number.parseInt(readFileSync(join(directory, OPENS_FILE), "utf8"), 10) || 0;
  } catch {
    return 0; // The usual case: the last life committed.
  }
}

function countOpen(directory: string): void {
  try {
    writeFileSync(join(directory, OPENS_FILE), String(opensOf(directory) + 1), { mode: 0o600 });
  } catch {
    // A full or failing file system: the index may still be read, and a commit will tell.
  }
}

/**
 * Does what LMDB does when it opens its two files: makes the folder and the lock file, takes room for a new data file,
 * or reads the head of the one that is there. @throws errno names
 */
function tryFiles(folder: string): void {
  mkdirSync(folder, { recursive: true });
  const lock = join(folder, "lock.mdb");
  // LMDB writes it through a map, where want of room is a SIGBUS. Without blocks it holds nothing but zeros. One with
  // blocks is not opened: to close it again would end the locks of an environment that was left behind.
  if (statusOf(lock).blocks === 0) {
    const { O_RDWR, O_CREAT } = constants;
    withFile(lock, O_RDWR | O_CREAT, (file) => writeSync(file, Buffer.alloc(1), 0, 1, 0));
  }
  accessSync(lock, constants.R_OK | constants.W_OK);
  const data = join(folder, "data.mdb");
  if (statusOf(data).size === 0) return takeRoom(join(folder, "room"));
  const head = Buffer.alloc(META_PAGES_BYTES);
  const read = withFile(data, constants.O_RDWR, (file) => readSync(file, head, 0, head.length, 0));
  if (read < head.length || head.readUInt32LE(MAGIC_AT) !== LMDB_MAGIC) {
    throw new Error(`${data} is no LMDB file`);
  }
}

function statusOf(path: string): { readonly size: number; readonly blocks: number } {
  return statSync(path, { throwIfNoEntry: false }) ?? { size: 0, blocks: 0 };
}

function withFile<T>(path: string, flags: number, use: (file: number) => T): T {
  const file = openSync(path, flags, 0o600);
  try {
    return use(file);
  } finally {
    closeSync(file);
  }
}

function takeRoom(path: string): void {
  try {
    writeFileSync(path, Buffer.alloc(NEW_INDEX_BYTES), { mode: 0o600 });
  } finally {
    rmSync(path, { force: true });
  }
}

/** Moves a damaged index aside; an empty one is made by the next open(). False: there was none. */
export function setIndexAside(directory: string, stamp: string): boolean {
  const path = join(directory, INDEX_FOLDER);
  rmSync(join(directory, OPENS_FILE), { force: true });
  if (statSync(path, { throwIfNoEntry: false }) === undefined) return false;
  renameSync(path, `${path}.damaged-${stamp}`);
  return true;
}

export class IndexStore {
  readonly #directory: string;
  #database: RootDatabase<Buffer, number> | undefined;
  #proven = false;
  #writing = false;
  broken = false;
  /** Some write failed: lmdb would wait for ever for its flush at close(). */
  #failed = false;

  private constructor(directory: string, database: RootDatabase<Buffer, number>) {
    this.#directory = directory;
    this.#database = database;
  }

  /**
   * Opens or makes the environment. The directory's lock is held, and a child has read it.
   * @throws LMDB's errors and errno names
   */
  static async open(directory: string): Promise<IndexStore> {
    const { open } = await import("lmdb");
    const folder = join(directory, INDEX_FOLDER);
    tryFiles(folder);
    countOpen(directory);
    const database = open<Buffer, number>({
      path: folder,
      keyEncoding: "uint32",
      encoding: "binary",
      cache: false,
      compression: false,
      eventTurnBatching: false,
      pageSize: 4_096,
      maxReaders: 16,
    });
    return new IndexStore(directory, database);
  }

  /** A new, empty index in the place of one that failed. @throws LMDB's errors and errno names */
  static async replace(directory: string): Promise<IndexStore> {
    await rm(join(directory, INDEX_FOLDER), { recursive: true, force: true });
    return IndexStore.open(directory);
  }

  get bytes(): number {
    const path = join(this.#directory, INDEX_FOLDER, "data.mdb");
    return (statSync(path, { throwIfNoEntry: false })?.blocks ?? 0) * 512;
  }

  /**
   * Writes these pages and the meta entry in one transaction; resolves when they are flushed. One at a time.
   * @throws IndexWriteError; the store is broken then
   */
  async write(pages: readonly PageWrite[], meta: object): Promise<void> {
    const database = this.#database;
    assert(database !== undefined && !this.broken, "a closed or broken index takes no pages");
    assert(!this.#writing, "one commit at a time");
    this.#writing = true;
    try {
      await withinTime(this.#put(database, pages, meta));
    } catch (error) {
      this.broken = true;
      this.#failed = true;
      throw await describe(error);
    } finally {
      this.#writing = false;
    }
    if (!this.#proven) {
      this.#proven = true;
      rmSync(join(this.#directory, OPENS_FILE), { force: true });
    }
  }

  /**
   * One batch is one transaction. (With lmdb's batching by event turns a failed commit would also reject a promise of
   * its own that nobody can get hold of, and so end the process.)
   */
  async #put(
    database: RootDatabase<Buffer, number>,
    pages: readonly PageWrite[],
    meta: object,
  ): Promise<void> {
    const text = JSON.stringify({ version: META_VERSION, ...meta });
    const committed = database.batch(() => {
      for (const { key, bytes } of pages) {
        const put = bytes === undefined ? database.remove(key) : database.put(key, bytes);
        put.catch(() => undefined); // The batch says it.
      }
      database.put(META_KEY, Buffer.from(text)).catch(() => undefined);
    });
    await committed;
    await database.flushed;
  }

  /** There is room again, and want of it was what failed: the next write may go through. */
  retry(): void {
    this.broken = false;
  }

  /** Ends the environment, unless a write of it failed: that one goes with the process. */
  async close(): Promise<void> {
    const database = this.#database;
    this.#database = undefined;
    if (database !== undefined && !this.#failed) await database.close();
  }
}

/** lmdb rejects with a general error whose `commitError` is a promise that rejects with the cause. */
async function describe(error: unknown): Promise<IndexWriteError> {
  if (error instanceof IndexWriteError) return error;
  const outer = error as { message?: string; code?: unknown; commitError?: Promise<unknown> };
  let cause: { message?: string; code?: unknown } = outer;
  const silence = new Promise<undefined>((resolve) => setTimeout(resolve, 1_000, undefined));
  try {
    await Promise.race([outer.commitError, silence]);
  } catch (inner) {
    cause = inner as typeof cause;
  }
  const code = typeof cause.code === "number" ? cause.code : 0;
  return new IndexWriteError(cause.message ?? String(error), code);
}

/** Bytes that these writes put into the index. */
export function pagesBytes(writes: readonly PageWrite[]): number {
  let bytes = 0;
  for (const write of writes) bytes += write.bytes?.length ?? 0;
  return bytes;
}
