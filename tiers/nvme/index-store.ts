/**
 * The index of one directory: an LMDB environment of pages (index-pages.ts) under integer keys, and one `meta`
 * entry. LMDB holds no payload and is never needed for a look-up; it is what makes a restart short.
 *
 * A write ends when LMDB has flushed it to the device (default overlapping sync; noSync would lose acknowledged
 * pages in a power cut). A failed or overdue write leaves an environment whose state nobody knows: the store is then
 * `broken`, refuses all else, and is opened again from what the disk holds.
 *
 * LMDB maps its file, so a bad file can end the process. A child reads it first (probe.mjs). What a child cannot see
 * (the list of free pages) is met by the first commit; so starts that die between open() and that commit are counted
 * in a file, and after nvmeIndexOpensMax of them the index counts as damaged: a bad index cannot make a crash loop.
 */
import { readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { RootDatabase } from "lmdb";
import { assert } from "../../src/assert.ts";
import { withinTime } from "./tasks.ts";

export const INDEX_FOLDER = "index";
const OPENS_FILE = "index.opens";
/** No page has this key. */
export const META_KEY = 0xffff_ffff;
export const META_VERSION = 1;

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
  /** The last write came to an end, well or not: only then the environment can be closed. */
  settled = true;

  private constructor(directory: string, database: RootDatabase<Buffer, number>) {
    this.#directory = directory;
    this.#database = database;
  }

  /** Opens or makes the environment. The directory's lock is held, and a child has read it. @throws LMDB's errors */
  static async open(directory: string): Promise<IndexStore> {
    const { open } = await import("lmdb");
    countOpen(directory);
    const database = open<Buffer, number>({
      path: join(directory, INDEX_FOLDER),
      keyEncoding: "uint32",
      encoding: "binary",
      cache: false,
      compression: false,
      pageSize: 4_096,
      maxReaders: 16,
    });
    return new IndexStore(directory, database);
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
    this.settled = false;
    try {
      const put = this.#put(database, pages, meta).finally(() => {
        this.settled = true;
      });
      await withinTime(put);
    } catch (error) {
      this.broken = true;
      throw await describe(error);
    } finally {
      this.#writing = false;
    }
    if (!this.#proven) {
      this.#proven = true;
      rmSync(join(this.#directory, OPENS_FILE), { force: true });
    }
  }

  /** All puts of one turn fall into one transaction (lmdb's event-turn batching). */
  async #put(
    database: RootDatabase<Buffer, number>,
    pages: readonly PageWrite[],
    meta: object,
  ): Promise<void> {
    const pending: Promise<unknown>[] = [];
    for (const { key, bytes } of pages) {
      pending.push(bytes === undefined ? database.remove(key) : database.put(key, bytes));
    }
    const text = JSON.stringify({ version: META_VERSION, ...meta });
    pending.push(database.put(META_KEY, Buffer.from(text)));
    await Promise.all(pending);
    await database.flushed;
  }

  /** Ends the environment; false: a write still hangs at the device, so that it cannot be ended. */
  async close(): Promise<boolean> {
    const database = this.#database;
    if (database === undefined) return true;
    if (!this.settled) return false;
    this.#database = undefined;
    await database.close();
    return true;
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
