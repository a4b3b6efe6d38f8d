/**
 * The parent's side of the program that reads an index (addon/index_reader): its verdict on an index, and then the
 * index's entries as flat records in order of depth. A child that dies by a signal, exits badly or takes too long
 * means: the index is damaged. One that cannot be started says nothing about the index, which then is not touched.
 *
 * The records come through a file without a name, not through a pipe: on a busy machine the two processes would wait
 * for each other's turn at every few hundred kilobytes.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { close, constants, openSync, readSync, statfsSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { programPath } from "../../addon/load.ts";
import { assert } from "../../src/assert.ts";
import { CairnError } from "../../src/errors.ts";
import { LIMITS } from "../../src/limits.ts";
import type { EnduranceState } from "./endurance.ts";

const READER = "cairn-index-reader";
/** The reader's exit code for a damaged index (addon/index_reader/main.cc). Any other is not its own. */
const DAMAGED = 3;
/** Head and order of the answer: addon/index_reader/answer.h. */
const PROBE_MAGIC = 0x4250_5243;
const PROBE_VERSION = 2;
const HEAD_WORDS = 8;
const RECORDS_PER_PIECE = 8_192;
const STDERR_BYTES_MAX = 4_096;
/** Linux: a file that never has a name. Node knows the flag's number only. */
const O_TMPFILE = 0o20000000 | constants.O_DIRECTORY;
/** Records take at most this many times the bytes of the index. */
const RECORDS_FACTOR = 2;
/** A child that adds nothing for so long has ended, or will not go on. */
const STOOD_MS_MAX = 3_000;
const PAUSE = new Int32Array(new SharedArrayBuffer(4));

/** Word offsets in a record: an entry of an index page (index-pages.ts), then what its page says of it. */
export const RECORD = {
  /** Row of namespaces.json (16 bits) | shard << 16. */
  ROW: 0,
  DEPTH: 1,
  GENERATION: 2,
  LAST_ACCESS_LOW: 3,
  LAST_ACCESS_HIGH: 4,
  KEY: 5,
  /** Zero: none. */
  PARENT_KEY: 13,
  /** segment << SLOT_INDEX_BITS | index */
  SLOT: 21,
  PAYLOAD_BYTES: 22,
} as const;
export const RECORD_WORDS = 23;

export interface IndexMeta {
  /** Run of the host in which it was written. */
  readonly bootId?: string;
  readonly directoryId?: string;
  readonly endurance?: Partial<EnduranceState>;
}

export interface IndexVerdict {
  /** There was an index. */
  readonly found: boolean;
  /** Why it cannot be used; undefined: it can. */
  readonly damage: string | undefined;
  readonly entries: number;
  readonly pages: number;
  /** Keys of pages that did not verify. */
  readonly badPages: readonly number[];
  readonly meta: IndexMeta;
}

/** A run of records: RECORD_WORDS words each, valid until the next one is asked for. */
export interface Piece {
  readonly words: Uint32Array;
  readonly count: number;
}

export interface IndexProbe {
  readonly directory: string;
  /** Rejects when nothing could be asked. @throws CairnError addonMissing, diskUnusable */
  readonly verdict: Promise<IndexVerdict>;
  /** The next records, undefined after the last. After the verdict. */
  next(): Piece | undefined;
  /** Ends the child and lets the records go. Idempotent. */
  stop(): void;
}

/** Starts reading the index of a directory. The directory need not exist. @throws CairnError diskUnusable */
export function startProbe(directory: string): IndexProbe {
  return new Probe(directory);
}

/** A file for the records: in memory where there is room, else beside the index. */
function openRecords(directory: string, indexBytes: number): number {
  const places = ["/dev/shm", directory, tmpdir()];
  const roomy = places.filter((place) => freeBytes(place) > indexBytes * RECORDS_FACTOR);
  for (const place of [...roomy, ...places]) {
    try {
      return openSync(place, O_TMPFILE | constants.O_RDWR, 0o600);
    } catch {
      // Absent, not ours, or a file system that has no such files.
    }
  }
  throw new Error("no directory takes a temporary file");
}

/** 0: it is not there, or cannot be asked. What is wrong with a directory is said where it is opened. */
function sizeOf(file: string): number {
  try {
    return statSync(file).size;
  } catch {
    return 0;
  }
}

function freeBytes(place: string): number {
  try {
    const files = statfsSync(place);
    return files.bavail * files.bsize;
  } catch {
    return 0;
  }
}

class Probe implements IndexProbe {
  readonly directory: string;
  readonly verdict: Promise<IndexVerdict>;
  #repeated = false;
  readonly #child: ChildProcess;
  #descriptor: number;
  #piece: Uint32Array | undefined;
  #left = 0;
  #at = 0;
  #said = "";

  constructor(directory: string) {
    this.directory = directory;
    const bytes = sizeOf(join(directory, "index", "data.mdb"));
    this.#descriptor = openRecords(directory, bytes);
    this.#child = this.#spawn();
    this.verdict = this.#read(Promise.race([this.#ended(bytes), this.#ready()]));
    // It may be some time before somebody asks.
    this.verdict.catch(() => undefined);
  }

  #spawn(): ChildProcess {
    const descriptor = this.#descriptor;
    try {
      const stdio = ["ignore", "pipe", "pipe", descriptor] as const;
      return spawn(programPath(READER), [this.directory], { stdio: [...stdio], env: {} });
    } catch (error) {
      close(descriptor, () => undefined);
      throw notStarted(this.directory, error as NodeJS.ErrnoException);
    }
  }

  /** The child says that its verdict stands; its records come while they are read. */
  async #ready(): Promise<undefined> {
    // A process that could not be made has no pipes; its error says so (#ended).
    return new Promise((resolve) => {
      this.#child.stdout?.once("data", () => resolve(undefined));
    });
  }

  /** undefined: the child ended well; else why it did not. @throws CairnError: it did not even begin */
  async #ended(indexBytes: number): Promise<string | undefined> {
    const child = this.#child;
    child.stderr?.on("data", (text: Buffer) => {
      if (this.#said.length < STDERR_BYTES_MAX) this.#said += text.toString();
    });
    const milliseconds =
      LIMITS.nvmeIndexReadMs + (indexBytes / LIMITS.nvmeIndexBytesPerSecond) * 1_000;
    const timer = setTimeout(() => {
      this.#said = `not read within ${milliseconds} ms`;
      child.kill("SIGKILL");
    }, milliseconds);
    const end = await new Promise<string | undefined>((resolve, reject) => {
      child.once("error", (error: NodeJS.ErrnoException) => {
        if (child.pid === undefined) reject(notStarted(this.directory, error));
        else resolve(String(error));
      });
      child.once("close", (code, signal) => {
        if (code === 0) resolve(undefined);
        else if (code === null) resolve(`signal ${signal}`);
        else if (code === DAMAGED) resolve("an unknown reason");
        else {
          // The dynamic linker's: a library, or a version of one, that this host lacks.
          const said = this.#said.trim() || `${READER} ended with code ${code}`;
          reject(new CairnError("addonMissing", said));
        }
      });
    }).finally(() => clearTimeout(timer));
    if (end === undefined) return undefined;
    return this.#said.trim().split("\n")[0] || `the reader ended by ${end}`;
  }

  async #read(ended: Promise<string | undefined>): Promise<IndexVerdict> {
    const none = { entries: 0, pages: 0, badPages: [], meta: {} };
    const damage = await ended;
    if (damage !== undefined) return { ...none, found: true, damage };
    const [magic, version, found, entries = 0, metaBytes = 0, bad = 0, pages = 0] =
      this.#words(HEAD_WORDS);
    if (magic !== PROBE_MAGIC || version !== PROBE_VERSION) {
      return { ...none, found: true, damage: "the reader's answer makes no sense" };
    }
    const badPages = [...this.#words(bad)];
    const words = this.#words(Math.ceil(metaBytes / 4));
    const meta = parseMeta(Buffer.from(words.buffer, words.byteOffset, metaBytes));
    this.#left = entries;
    return { found: found === 1, damage: undefined, entries, pages, badPages, meta };
  }

  next(): Piece | undefined {
    const count = Math.min(this.#left, RECORDS_PER_PIECE);
    if (count === 0) {
      this.stop();
      return undefined;
    }
    this.#left -= count;
    this.#piece ??= new Uint32Array(RECORDS_PER_PIECE * RECORD_WORDS);
    this.#fill(new Uint8Array(this.#piece.buffer, 0, count * RECORD_WORDS * 4));
    return { words: this.#piece, count };
  }

  stop(): void {
    this.#left = 0;
    this.#piece = undefined;
    if (this.#descriptor < 0) return;
    this.#child.kill("SIGKILL");
    // Letting go of a large file in memory takes a while: not on this thread.
    close(this.#descriptor, () => undefined);
    this.#descriptor = -1;
  }

  #words(count: number): Uint32Array {
    const words = new Uint32Array(count);
    this.#fill(new Uint8Array(words.buffer));
    return words;
  }

  /** Reads the next bytes; waits for a child that has not written them yet. */
  #fill(into: Uint8Array): void {
    let stoodMs = 0;
    for (let at = 0; at < into.length; ) {
      const read = readSync(this.#descriptor, into, at, into.length - at, this.#at);
      at += read;
      this.#at += read;
      if (read > 0) continue;
      Atomics.wait(PAUSE, 0, 0, 1);
      stoodMs += 1;
      if (stoodMs <= STOOD_MS_MAX) continue;
      this.#again();
      stoodMs = 0;
    }
  }

  /**
   * The child ended between its verdict and its last record. Part of them is in the ledger already, so the rest must
   * come: the same index gives the same bytes, and a second child writes them all.
   */
  #again(): void {
    this.#child.kill("SIGKILL");
    assert(!this.#repeated, `the index of ${this.directory} could not be read to its end`);
    this.#repeated = true;
    const descriptor = openRecords(this.directory, this.#at);
    const { status } = spawnSync(programPath(READER), [this.directory], {
      stdio: ["ignore", "ignore", "ignore", descriptor],
      env: {},
      timeout: LIMITS.nvmeIndexReadMs,
    });
    assert(status === 0, `the index of ${this.directory} could not be read to its end`);
    close(this.#descriptor, () => undefined);
    this.#descriptor = descriptor;
  }
}

/** A program that is not there is not built; anything else, such as no room for a process, may pass. */
function notStarted(directory: string, error: NodeJS.ErrnoException): CairnError {
  const missing = error.code === "ENOENT" || error.code === "EACCES";
  if (missing) return new CairnError("addonMissing", String(error));
  return new CairnError("diskUnusable", `${directory}: its index cannot be read: ${String(error)}`);
}

/** A meta entry that is no JSON is as good as none. */
function parseMeta(bytes: Buffer): IndexMeta {
  try {
    const parsed = JSON.parse(bytes.toString("utf8")) as unknown;
    return typeof parsed === "object" && parsed !== null ? (parsed as IndexMeta) : {};
  } catch {
    return {};
  }
}
