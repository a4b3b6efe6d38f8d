/**
 * The parent's side of the probe child (probe.mjs): its verdict on an index, and then the index's entries as a stream
 * of flat records in order of depth, read as fast as they are taken. A child that dies by a signal, exits badly or is
 * silent for too long means: the index is damaged.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { SCAN_WORDS } from "../../addon/binding.ts";
import { assert } from "../../src/assert.ts";
import { LIMITS } from "../../src/limits.ts";
import type { EnduranceState } from "./endurance.ts";

const PROBE_MAGIC = 0x4250_5243;
const PROBE_VERSION = 1;
const HEAD_WORDS = 8;
const RECORDS_PER_PIECE = 8_192;
const STDERR_BYTES_MAX = 4_096;

export interface IndexMeta {
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

/** A run of records: SCAN_WORDS words each, valid until the next one is asked for. */
export interface Piece {
  readonly words: Uint32Array;
  readonly count: number;
}

export interface IndexProbe {
  readonly directory: string;
  /** Never rejects. */
  readonly verdict: Promise<IndexVerdict>;
  /** The next records, undefined after the last. @throws when the child died half-way */
  next(): Promise<Piece | undefined>;
  stop(): void;
}

/** Starts reading the index of a directory. The directory need not exist. */
export function startProbe(directory: string): IndexProbe {
  return new Probe(directory);
}

class Probe implements IndexProbe {
  readonly directory: string;
  readonly verdict: Promise<IndexVerdict>;
  readonly #child: ChildProcess;
  readonly #chunks: AsyncIterator<Buffer>;
  readonly #exit: Promise<string | undefined>;
  readonly #piece = new Uint32Array(RECORDS_PER_PIECE * SCAN_WORDS);
  #rest: Buffer = Buffer.alloc(0);
  #left = 0;
  #said = "";

  constructor(directory: string) {
    this.directory = directory;
    const script = fileURLToPath(new URL("probe.mjs", import.meta.url));
    this.#child = spawn(process.execPath, [script, directory], {
      stdio: ["ignore", "pipe", "pipe"],
      env: { PATH: process.env["PATH"] },
    });
    const { stdout, stderr } = this.#child;
    assert(stdout !== null && stderr !== null, "both are pipes");
    stderr.on("data", (text: Buffer) => {
      if (this.#said.length < STDERR_BYTES_MAX) this.#said += text.toString();
    });
    this.#chunks = stdout[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
    this.#exit = new Promise((resolve) => {
      this.#child.once("error", (error) => resolve(String(error)));
      this.#child.once("close", (code, signal) =>
        resolve(code === 0 ? undefined : this.#reason(code, signal)),
      );
    });
    this.verdict = this.#read();
  }

  #reason(code: number | null, signal: string | null): string {
    const first = this.#said.trim().split("\n")[0] ?? "";
    if (first !== "") return first;
    return signal === null ? `the reader ended with ${code}` : `the reader died of ${signal}`;
  }

  async #read(): Promise<IndexVerdict> {
    try {
      const head = await this.#words(HEAD_WORDS);
      const [magic, version, found, entries = 0, metaBytes = 0, bad = 0, pages = 0] = head;
      if (magic !== PROBE_MAGIC || version !== PROBE_VERSION) throw new Error("not a probe");
      const badPages = [...(await this.#words(bad))];
      const words = await this.#words(Math.ceil(metaBytes / 4));
      const meta = parseMeta(Buffer.from(words.buffer, words.byteOffset, metaBytes));
      this.#left = entries;
      return { found: found === 1, damage: undefined, entries, pages, badPages, meta };
    } catch (error) {
      this.#child.kill("SIGKILL");
      const damage = (await this.#exit) ?? String(error);
      return { found: true, damage, entries: 0, pages: 0, badPages: [], meta: {} };
    }
  }

  async next(): Promise<Piece | undefined> {
    const count = Math.min(this.#left, RECORDS_PER_PIECE);
    if (count === 0) return undefined;
    this.#left -= count;
    const bytes = new Uint8Array(this.#piece.buffer, 0, count * SCAN_WORDS * 4);
    await this.#fill(bytes);
    return { words: this.#piece, count };
  }

  stop(): void {
    this.#left = 0;
    this.#child.kill("SIGKILL");
  }

  async #words(count: number): Promise<Uint32Array> {
    const words = new Uint32Array(count);
    await this.#fill(new Uint8Array(words.buffer));
    return words;
  }

  async #fill(into: Uint8Array): Promise<void> {
    let at = 0;
    while (at < into.length) {
      if (this.#rest.length === 0) this.#rest = await this.#chunk();
      const taken = Math.min(this.#rest.length, into.length - at);
      into.set(this.#rest.subarray(0, taken), at);
      this.#rest = this.#rest.subarray(taken);
      at += taken;
    }
  }

  /** @throws when the child ended or is silent */
  async #chunk(): Promise<Buffer> {
    const timer = setTimeout(() => {
      this.#said ||= `silent for ${LIMITS.nvmeIndexSilenceMs} ms`;
      this.#child.kill("SIGKILL");
    }, LIMITS.nvmeIndexSilenceMs);
    try {
      const { done, value } = await this.#chunks.next();
      if (done === true) throw new Error((await this.#exit) ?? "the reader ended early");
      return value;
    } finally {
      clearTimeout(timer);
    }
  }
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
