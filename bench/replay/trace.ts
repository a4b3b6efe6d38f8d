/**
 * Reads a workload trace (JSON lines; Mooncake's format) into what a replay needs.
 *
 * One line is one request: `timestamp` (ms), `input_length` and `output_length` (tokens), `hash_ids` (one per
 * 512-token block; equal id means equal content and equal prefix). The conversion is count-exact: every line
 * becomes one request, every full block one key (the id of a partial tail block may stand in the line or be left
 * out; it is not counted), and a line that does not fit is refused with its number. It is
 * never skipped, since a trace with a hole in it gives a hit rate that means nothing.
 *
 * A block's key is SHA-256 of its hash id (as 8 little-endian bytes): 32 bytes, opaque, equal for equal ids.
 */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { access, constants } from "node:fs/promises";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { assert } from "../../src/assert.ts";

export const BLOCK_TOKENS = 512;
export const KEY_BYTES = 32;
export const KEY_WORDS = KEY_BYTES / 4;
/** Largest prompt taken, in blocks: as many keys as one frame carries. */
const REQUEST_BLOCKS_MAX = 65_536;

/** Why a trace was refused: `line` counts from 1; 0 = the file as a whole. */
export class TraceError extends Error {
  override readonly name = "TraceError";
  readonly line: number;

  constructor(line: number, message: string) {
    super(line === 0 ? message : `line ${line}: ${message}`);
    this.line = line;
  }
}

export interface Trace {
  readonly requests: number;
  /** Full blocks named by all requests. */
  readonly blocks: number;
  readonly requestBlocksMax: number;
  /** Request i names blocks starts[i] … starts[i + 1] of `blockIndexes`. */
  readonly starts: Uint32Array;
  /** Dense index of a distinct block; its hash id is `hashIds[index]`. */
  readonly blockIndexes: Uint32Array;
  readonly hashIds: Float64Array;
}

interface RequestLine {
  readonly inputLength: number;
  readonly hashIds: readonly number[];
}

function count(value: unknown, line: number, field: string): number {
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0) {
    throw new TraceError(line, `${field} is not a whole number of 0 or more`);
  }
  return value;
}

/** Parses one line. Throws TraceError naming the field. */
export function parseLine(text: string, line: number): RequestLine {
  assert(line >= 1, "lines count from 1");
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new TraceError(line, "not JSON");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new TraceError(line, "not a JSON object");
  }
  const fields = value as Record<string, unknown>;
  const timestamp = fields["timestamp"];
  if (typeof timestamp !== "number" || !(timestamp >= 0)) {
    throw new TraceError(line, "timestamp is not a number of 0 or more");
  }
  const inputLength = count(fields["input_length"], line, "input_length");
  count(fields["output_length"], line, "output_length");
  const hashIds = fields["hash_ids"];
  if (!Array.isArray(hashIds)) throw new TraceError(line, "hash_ids is not an array");
  const full = Math.floor(inputLength / BLOCK_TOKENS);
  const withTail = Math.ceil(inputLength / BLOCK_TOKENS);
  if (hashIds.length !== full && hashIds.length !== withTail) {
    throw new TraceError(
      line,
      `hash_ids has ${hashIds.length} entries where input_length ${inputLength} needs ${withTail}`,
    );
  }
  if (full > REQUEST_BLOCKS_MAX) {
    throw new TraceError(line, `a prompt of ${full} blocks is beyond ${REQUEST_BLOCKS_MAX}`);
  }
  for (const id of hashIds) count(id, line, "an entry of hash_ids");
  return { inputLength, hashIds: hashIds as number[] };
}

/** Array of numbers that doubles when full, so that ten million references do not become ten million boxed values. */
class GrowingWords {
  words = new Uint32Array(1 << 16);
  length = 0;

  push(value: number): void {
    if (this.length === this.words.length) {
      const grown = new Uint32Array(this.words.length * 2);
      grown.set(this.words);
      this.words = grown;
    }
    this.words[this.length] = value;
    this.length += 1;
  }

  taken(): Uint32Array {
    return this.words.slice(0, this.length);
  }
}

/** Collects lines into a Trace; checks that equal ids always stand under the same parent. */
export class TraceBuilder {
  readonly #indexOf = new Map<number, number>();
  readonly #parents = new GrowingWords();
  readonly #starts = new GrowingWords();
  readonly #blocks = new GrowingWords();
  readonly #hashIds: number[] = [];
  #requestBlocksMax = 0;

  constructor() {
    this.#starts.push(0);
  }

  add(text: string, line: number): void {
    const request = parseLine(text, line);
    const blocks = Math.floor(request.inputLength / BLOCK_TOKENS);
    let parent = 0;
    for (let position = 0; position < blocks; position += 1) {
      parent = this.#block(request.hashIds[position] as number, parent, line);
      this.#blocks.push(parent - 1);
    }
    this.#starts.push(this.#blocks.length);
    this.#requestBlocksMax = Math.max(this.#requestBlocksMax, blocks);
  }

  /** Index + 1 of the block; `parent` is the same of the block before it, 0 at the start of a chain. */
  #block(hashId: number, parent: number, line: number): number {
    const known = this.#indexOf.get(hashId);
    if (known !== undefined) {
      if (this.#parents.words[known - 1] !== parent) {
        throw new TraceError(line, `hash id ${hashId} stands after another block than before`);
      }
      return known;
    }
    this.#hashIds.push(hashId);
    this.#parents.push(parent);
    this.#indexOf.set(hashId, this.#hashIds.length);
    return this.#hashIds.length;
  }

  build(): Trace {
    assert(this.#starts.length >= 1, "starts has a first entry");
    assert(this.#parents.length === this.#hashIds.length, "each distinct block has one parent");
    return {
      requests: this.#starts.length - 1,
      blocks: this.#blocks.length,
      requestBlocksMax: this.#requestBlocksMax,
      starts: this.#starts.taken(),
      blockIndexes: this.#blocks.taken(),
      hashIds: Float64Array.from(this.#hashIds),
    };
  }
}

/** Programs that unpack an .xz file to standard output, in the order in which they are tried. */
const UNPACKERS: readonly (readonly string[])[] = [
  ["xz", "-dc", "--"],
  [
    "python3",
    "-c",
    "import lzma,shutil,sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)",
  ],
];

/**
 * Reads TRACE: `.jsonl`, `.jsonl.xz` through the program xz or python3, whichever is there, or `-` for standard input.
 * Throws TraceError.
 */
export async function readTrace(path: string): Promise<Trace> {
  if (path === "-") return build(process.stdin);
  try {
    await access(path, constants.R_OK);
  } catch {
    throw new TraceError(0, `cannot read ${path}`);
  }
  if (!path.endsWith(".xz")) return build(createReadStream(path));
  for (const unpacker of UNPACKERS) {
    const trace = await unpack(unpacker, path);
    if (trace !== undefined) return trace;
  }
  throw new TraceError(0, `${path} is xz-compressed and neither xz nor python3 is installed`);
}

async function build(input: Readable): Promise<Trace> {
  const builder = new TraceBuilder();
  await readLines(input, builder);
  return builder.build();
}

/** undefined: this program is not installed. */
async function unpack(command: readonly string[], path: string): Promise<Trace | undefined> {
  const [program, ...args] = command;
  assert(program !== undefined, "an unpacker has a name");
  const child = spawn(program, [...args, path], { stdio: ["ignore", "pipe", "pipe"] });
  let complaint = "";
  let missing = false;
  child.stderr.on("data", (chunk: Buffer) => {
    complaint = (complaint + chunk.toString("utf8")).slice(-1_000);
  });
  const ended = new Promise<void>((resolve, reject) => {
    child.on("error", () => {
      missing = true;
      resolve();
    });
    child.on("close", (code) => {
      if (code === 0 || missing) resolve();
      else reject(new TraceError(0, `${program} could not unpack ${path}: ${complaint.trim()}`));
    });
  });
  try {
    const [trace] = await Promise.all([build(child.stdout), ended]);
    return missing ? undefined : trace;
  } finally {
    child.kill();
  }
}

async function readLines(input: Readable, builder: TraceBuilder): Promise<void> {
  const lines = createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY });
  let line = 0;
  for await (const text of lines) {
    line += 1;
    builder.add(text, line);
  }
}

/** Keys of all distinct blocks, KEY_WORDS words each, at their dense index. */
export function traceKeys(trace: Trace): Uint32Array {
  const keys = new Uint32Array(trace.hashIds.length * KEY_WORDS);
  const bytes = new Uint8Array(keys.buffer);
  const id = new DataView(new ArrayBuffer(8));
  for (let index = 0; index < trace.hashIds.length; index += 1) {
    id.setBigUint64(0, BigInt(trace.hashIds[index] as number), true);
    bytes.set(createHash("sha256").update(id).digest(), index * KEY_BYTES);
  }
  return keys;
}

/** Share of blocks that a cache without bounds would serve, with its hits: the trace's ideal. */
export function idealHits(trace: Trace): number {
  const seen = new Uint8Array(trace.hashIds.length);
  let hits = 0;
  for (let request = 0; request < trace.requests; request += 1) {
    let leading = true;
    const end = trace.starts[request + 1] as number;
    for (let at = trace.starts[request] as number; at < end; at += 1) {
      const block = trace.blockIndexes[at] as number;
      leading &&= seen[block] === 1;
      if (leading) hits += 1;
      seen[block] = 1;
    }
  }
  return hits;
}
