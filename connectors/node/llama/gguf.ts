/**
 * Writes a llama-architecture GGUF file with random weights: a real model for a real engine, without a download.
 *
 * What such a model says is noise; what it *computes* is exactly what a trained one of the same shape
 * computes, so its KV cache, its prefill time and its next-token probabilities exercise a cache as honestly as
 * any. Equal specs give byte-identical files on every machine: a seeded generator draws the weights from a table
 * of 8,192 normally distributed values, which is also what makes 25 million of them a matter of a second.
 *
 * The tokenizer is byte-level: three specials, 256 byte tokens, "▁" (a space), then unused padding.
 */
import { createHash } from "node:crypto";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import path from "node:path";
import { assert } from "../../../src/assert.ts";
import { CairnError } from "../../../src/errors.ts";
import { halfOfNumber } from "./half.ts";

/** Shape of the model. Weights of a layer: embedding · (2 · (heads + kvHeads) · headDimension + 3 · feedForward). */
export interface GgufSpec {
  readonly name: string;
  readonly seed: number;
  readonly layers: number;
  readonly embedding: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDimension: number;
  readonly feedForward: number;
  /** At least `VOCABULARY_MIN`. */
  readonly vocabulary: number;
  readonly contextTokens: number;
  readonly weightType: "f16" | "f32";
}

/** A model file on disk and the digest of its content. */
export interface GgufFile {
  readonly path: string;
  readonly sha256: string;
  readonly bytes: number;
}

const BYTE_TOKENS_FIRST = 3;
export const VOCABULARY_MIN = BYTE_TOKENS_FIRST + 256 + 1;
const ALIGNMENT_BYTES = 32;
const TABLE_ENTRIES = 8192;
/** Part of the spec digest: raise it whenever the same spec would give other bytes. */
const WRITER_REVISION = 1;
const VALUE_TYPE = { UINT32: 4, INT32: 5, FLOAT32: 6, BOOL: 7, STRING: 8, ARRAY: 9 } as const;
const TENSOR_TYPE = { f32: 0, f16: 1 } as const;
const TOKEN_TYPE = { NORMAL: 1, UNKNOWN: 2, CONTROL: 3, UNUSED: 5, BYTE: 6 } as const;

interface Tensor {
  readonly name: string;
  readonly dimensions: readonly number[];
  readonly type: "f16" | "f32";
  /** Standard deviation of the weights, around `mean`. */
  readonly deviation: number;
  readonly mean: number;
}

/** Little-endian byte sink for the GGUF header. */
class HeaderWriter {
  readonly #parts: Buffer[] = [];
  bytes = 0;

  raw(part: Buffer): void {
    this.#parts.push(part);
    this.bytes += part.byteLength;
  }
  uint32(value: number): void {
    const part = Buffer.allocUnsafe(4);
    part.writeUInt32LE(value);
    this.raw(part);
  }
  uint64(value: number): void {
    const part = Buffer.allocUnsafe(8);
    part.writeBigUInt64LE(BigInt(value));
    this.raw(part);
  }
  float32(value: number): void {
    const part = Buffer.allocUnsafe(4);
    part.writeFloatLE(value);
    this.raw(part);
  }
  text(value: string): void {
    const part = Buffer.from(value, "utf8");
    this.uint64(part.byteLength);
    this.raw(part);
  }
  align(): void {
    this.raw(Buffer.alloc((ALIGNMENT_BYTES - (this.bytes % ALIGNMENT_BYTES)) % ALIGNMENT_BYTES));
  }
  joined(): Buffer {
    return Buffer.concat(this.#parts);
  }
}

type Metadata = readonly [key: string, type: number, write: (sink: HeaderWriter) => void];

function uint32Entry(key: string, value: number): Metadata {
  return [key, VALUE_TYPE.UINT32, (sink) => sink.uint32(value)];
}
function textEntry(key: string, value: string): Metadata {
  return [key, VALUE_TYPE.STRING, (sink) => sink.text(value)];
}
function boolEntry(key: string, value: boolean): Metadata {
  return [key, VALUE_TYPE.BOOL, (sink) => sink.raw(Buffer.from([value ? 1 : 0]))];
}
function arrayEntry(
  key: string,
  type: number,
  count: number,
  write: (sink: HeaderWriter, index: number) => void,
): Metadata {
  return [
    key,
    VALUE_TYPE.ARRAY,
    (sink) => {
      sink.uint32(type);
      sink.uint64(count);
      for (let index = 0; index < count; index++) write(sink, index);
    },
  ];
}

function tokenText(token: number): string {
  if (token < BYTE_TOKENS_FIRST) return ["<unk>", "<s>", "</s>"][token] ?? "";
  if (token < BYTE_TOKENS_FIRST + 256) {
    const byte = token - BYTE_TOKENS_FIRST;
    return `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
  }
  return token === VOCABULARY_MIN - 1 ? "▁" : `<pad${token}>`;
}

function tokenType(token: number): number {
  if (token === 0) return TOKEN_TYPE.UNKNOWN;
  if (token < BYTE_TOKENS_FIRST) return TOKEN_TYPE.CONTROL;
  if (token < BYTE_TOKENS_FIRST + 256) return TOKEN_TYPE.BYTE;
  return token === VOCABULARY_MIN - 1 ? TOKEN_TYPE.NORMAL : TOKEN_TYPE.UNUSED;
}

function metadataOf(spec: GgufSpec): Metadata[] {
  return [
    textEntry("general.architecture", "llama"),
    textEntry("general.name", spec.name),
    uint32Entry("general.alignment", ALIGNMENT_BYTES),
    uint32Entry("general.file_type", spec.weightType === "f16" ? 1 : 0),
    uint32Entry("llama.context_length", spec.contextTokens),
    uint32Entry("llama.embedding_length", spec.embedding),
    uint32Entry("llama.block_count", spec.layers),
    uint32Entry("llama.feed_forward_length", spec.feedForward),
    uint32Entry("llama.attention.head_count", spec.heads),
    uint32Entry("llama.attention.head_count_kv", spec.kvHeads),
    uint32Entry("llama.attention.key_length", spec.headDimension),
    uint32Entry("llama.attention.value_length", spec.headDimension),
    uint32Entry("llama.rope.dimension_count", spec.headDimension),
    uint32Entry("llama.vocab_size", spec.vocabulary),
    ["llama.attention.layer_norm_rms_epsilon", VALUE_TYPE.FLOAT32, (sink) => sink.float32(1e-5)],
    textEntry("tokenizer.ggml.model", "llama"),
    arrayEntry("tokenizer.ggml.tokens", VALUE_TYPE.STRING, spec.vocabulary, (sink, token) =>
      sink.text(tokenText(token)),
    ),
    arrayEntry("tokenizer.ggml.scores", VALUE_TYPE.FLOAT32, spec.vocabulary, (sink, token) =>
      sink.float32(-token),
    ),
    arrayEntry("tokenizer.ggml.token_type", VALUE_TYPE.INT32, spec.vocabulary, (sink, token) =>
      sink.uint32(tokenType(token)),
    ),
    uint32Entry("tokenizer.ggml.unknown_token_id", 0),
    uint32Entry("tokenizer.ggml.bos_token_id", 1),
    uint32Entry("tokenizer.ggml.eos_token_id", 2),
    boolEntry("tokenizer.ggml.add_bos_token", true),
    boolEntry("tokenizer.ggml.add_eos_token", false),
    boolEntry("tokenizer.ggml.add_space_prefix", false),
  ];
}

function tensorsOf(spec: GgufSpec): Tensor[] {
  const weight = (name: string, columns: number, rows: number, gain = 1): Tensor => ({
    name: `${name}.weight`,
    dimensions: [columns, rows],
    type: spec.weightType,
    deviation: gain / Math.sqrt(columns),
    mean: 0,
  });
  const norm = (name: string): Tensor => ({
    name: `${name}.weight`,
    dimensions: [spec.embedding],
    type: "f32",
    deviation: 0.05,
    mean: 1,
  });
  const query = spec.heads * spec.headDimension;
  const keyValue = spec.kvHeads * spec.headDimension;
  const tensors: Tensor[] = [
    weight("token_embd", spec.embedding, spec.vocabulary, Math.sqrt(spec.embedding)),
  ];
  for (let layer = 0; layer < spec.layers; layer++) {
    const prefix = `blk.${layer}`;
    tensors.push(
      norm(`${prefix}.attn_norm`),
      weight(`${prefix}.attn_q`, spec.embedding, query),
      weight(`${prefix}.attn_k`, spec.embedding, keyValue),
      weight(`${prefix}.attn_v`, spec.embedding, keyValue),
      weight(`${prefix}.attn_output`, query, spec.embedding),
      norm(`${prefix}.ffn_norm`),
      weight(`${prefix}.ffn_gate`, spec.embedding, spec.feedForward),
      weight(`${prefix}.ffn_up`, spec.embedding, spec.feedForward),
      weight(`${prefix}.ffn_down`, spec.feedForward, spec.embedding),
    );
  }
  // A gain of 3 makes the next-token distribution peaked, as a trained model's is.
  tensors.push(norm("output_norm"), weight("output", spec.embedding, spec.vocabulary, 3));
  return tensors;
}

function tensorElements(tensor: Tensor): number {
  return tensor.dimensions.reduce((product, dimension) => product * dimension, 1);
}

function tensorBytes(tensor: Tensor): number {
  return tensorElements(tensor) * (tensor.type === "f16" ? 2 : 4);
}

function paddedBytes(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
}

/** Seeded xorshift32; returns unsigned 32-bit integers, never 0. */
function xorshift32(seed: number): () => number {
  let state = (Math.imul(seed, 0x9e3779b1) ^ 0x85ebca6b) >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state;
  };
}

/**
 * 8,192 standard-normal values as sums of twelve uniforms: additions only, so every machine gets the same bits
 * (Math.log and Math.cos may differ in the last place between builds).
 */
function normalTable(next: () => number): Float64Array {
  const table = new Float64Array(TABLE_ENTRIES);
  for (let entry = 0; entry < TABLE_ENTRIES; entry++) {
    let sum = -6;
    for (let draw = 0; draw < 12; draw++) sum += next() / 2 ** 32;
    table[entry] = sum;
  }
  return table;
}

function tensorData(tensor: Tensor, normals: Float64Array, next: () => number): Buffer {
  const elements = tensorElements(tensor);
  const data = Buffer.alloc(paddedBytes(tensorBytes(tensor)));
  const scaled = normals.map((normal) => tensor.mean + tensor.deviation * normal);
  const mask = TABLE_ENTRIES - 1;
  if (tensor.type === "f16") {
    const halves = Uint16Array.from(scaled, halfOfNumber);
    const target = new Uint16Array(data.buffer, data.byteOffset, elements);
    for (let index = 0; index < elements; index++)
      target[index] = halves[(next() >>> 9) & mask] ?? 0;
  } else {
    const target = new Float32Array(data.buffer, data.byteOffset, elements);
    for (let index = 0; index < elements; index++)
      target[index] = scaled[(next() >>> 9) & mask] ?? 0;
  }
  return data;
}

function checkSpec(spec: GgufSpec): void {
  assert(spec.vocabulary >= VOCABULARY_MIN, "the vocabulary must hold every byte token");
  assert(spec.heads % spec.kvHeads === 0, "heads must be a multiple of kvHeads");
  assert(spec.headDimension % 2 === 0, "rotary embedding needs an even head dimension");
  assert(
    spec.layers > 0 && spec.embedding % 32 === 0 && spec.feedForward % 32 === 0,
    "layers > 0; widths in 32s",
  );
}

/**
 * The file's bytes in order, one chunk for the header and one for each tensor.
 * Deterministic: equal specs yield equal bytes.
 */
export function* ggufChunks(spec: GgufSpec): Generator<Buffer> {
  checkSpec(spec);
  const metadata = metadataOf(spec);
  const tensors = tensorsOf(spec);
  const header = new HeaderWriter();
  header.raw(Buffer.from("GGUF", "latin1"));
  header.uint32(3);
  header.uint64(tensors.length);
  header.uint64(metadata.length);
  for (const [key, type, write] of metadata) {
    header.text(key);
    header.uint32(type);
    write(header);
  }
  let offsetBytes = 0;
  for (const tensor of tensors) {
    header.text(tensor.name);
    header.uint32(tensor.dimensions.length);
    for (const dimension of tensor.dimensions) header.uint64(dimension);
    header.uint32(TENSOR_TYPE[tensor.type]);
    header.uint64(offsetBytes);
    offsetBytes += paddedBytes(tensorBytes(tensor));
  }
  header.align();
  yield header.joined();
  const next = xorshift32(spec.seed);
  const normals = normalTable(next);
  for (const tensor of tensors) yield tensorData(tensor, normals, next);
}

/** Hex SHA-256 of a file's content, read in 4 MiB pieces. */
export function fileSha256(filePath: string): { readonly sha256: string; readonly bytes: number } {
  const descriptor = openSync(filePath, "r");
  try {
    const hash = createHash("sha256");
    const piece = Buffer.allocUnsafe(4 * 1024 * 1024);
    let bytes = 0;
    for (;;) {
      const read = readSync(descriptor, piece, 0, piece.byteLength, null);
      if (read === 0) return { sha256: hash.digest("hex"), bytes };
      hash.update(piece.subarray(0, read));
      bytes += read;
    }
  } finally {
    closeSync(descriptor);
  }
}

/**
 * The model file of `spec` in `directory`, written on first use. The name carries the spec's and the content's
 * digest; a file whose content no longer matches its name is written anew. Safe when several processes ask at
 * once.
 * @throws CairnError directoryUnsafe if the directory is not ours or others may write to it
 */
export function ensureGguf(spec: GgufSpec, directory: string): GgufFile {
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const { uid, mode } = statSync(directory);
  if (uid !== process.getuid?.() || (mode & 0o022) !== 0) {
    throw new CairnError("directoryUnsafe", `${directory}: others could place a model there`);
  }
  const specDigest = createHash("sha256")
    .update(JSON.stringify([WRITER_REVISION, spec]))
    .digest("hex")
    .slice(0, 16);
  for (const name of readdirSync(directory)) {
    if (!name.startsWith(`${specDigest}-`) || !name.endsWith(".gguf")) continue;
    const filePath = path.join(directory, name);
    const found = fileSha256(filePath);
    if (name === `${specDigest}-${found.sha256}.gguf`) return { path: filePath, ...found };
    rmSync(filePath, { force: true });
  }
  const temporaryPath = path.join(directory, `.${specDigest}.${process.pid}.partial`);
  const hash = createHash("sha256");
  let bytes = 0;
  const descriptor = openSync(temporaryPath, "w", 0o600);
  try {
    for (const chunk of ggufChunks(spec)) {
      hash.update(chunk);
      for (let at = 0; at < chunk.byteLength; ) at += writeSync(descriptor, chunk, at);
      bytes += chunk.byteLength;
    }
  } finally {
    closeSync(descriptor);
  }
  const sha256 = hash.digest("hex");
  const filePath = path.join(directory, `${specDigest}-${sha256}.gguf`);
  renameSync(temporaryPath, filePath);
  assert(existsSync(filePath), "the model file stands under its final name");
  return { path: filePath, sha256, bytes };
}
