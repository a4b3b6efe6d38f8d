/**
 * llama.cpp's saved sequence state, cut into blocks of 16 tokens and put together again.
 *
 * `llama_state_seq_save_file` writes (all little-endian; read from a v0.5.0 build, checked at every engine start by
 * taking a state apart and rebuilding it byte for byte):
 *
 *     u32 magic "ggsq" · u32 version 3 · u32 tokens · i32 token[tokens]
 *     u32 streams = 1 · u32 cells · per cell { i32 position · u32 sequences = 1 · i32 sequence }
 *     u32 transposedValues = 0 · u32 layers
 *     per layer { i32 type · u64 rowBytes · cells · rowBytes }     keys, then the same again for values
 *
 * A row is one token's K (or V) of one layer, so any run of tokens can be cut out. Only with flash attention are the
 * values stored in rows (transposedValues = 0). The canonical bytes of a block are, for its 16 tokens, the key
 * rows of layer 0, 1, … and then the value rows of layer 0, 1, ….
 *
 * The input is treated as hostile: every read is checked against the end of the buffer, every count against the bytes
 * that would have to follow it, and a state that differs from the layout above in any way is refused with
 * `engineStateMalformed`. llama.cpp itself may crash on a state of another model, so what is handed to it is
 * only ever rebuilt from a `StateShape` that this very engine produced.
 */
import { assert } from "../../../src/assert.ts";
import { CairnError } from "../../../src/errors.ts";

export const BLOCK_TOKENS = 16;

const STATE_MAGIC = 0x67677371;
const STATE_VERSION = 3;
const CELL_BYTES = 12;
/** Far above any real model; keeps a corrupt count from sizing an allocation. */
const LAYERS_MAX = 4096;
const ROW_BYTES_MAX = 1 << 24;

/** One layer's keys or values: ggml type number and bytes of one token's row. */
export interface RowShape {
  readonly type: number;
  readonly rowBytes: number;
}

/** Everything about a state that does not depend on its tokens; equal for all states of one engine context. */
export interface StateShape {
  readonly version: number;
  readonly sequence: number;
  readonly keys: readonly RowShape[];
  readonly values: readonly RowShape[];
}

/** A state taken apart. `bytes` is the input, not a copy; offsets point into it. */
export interface SequenceState {
  readonly shape: StateShape;
  readonly tokens: Int32Array;
  readonly bytes: Uint8Array;
  /** First byte of the rows of each layer's keys, then of each layer's values. */
  readonly rowOffsets: readonly number[];
}

function malformed(message: string, detail = 0): CairnError {
  return new CairnError("engineStateMalformed", message, detail);
}

/** Bounds-checked little-endian reads. */
class StateReader {
  readonly bytes: Uint8Array;
  readonly #view: DataView;
  offset = 0;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }
  /** Claims `length` bytes and returns where they begin. */
  skip(length: number, what: string): number {
    assert(Number.isSafeInteger(length) && length >= 0, "a length is a count of bytes");
    if (length > this.bytes.byteLength - this.offset)
      throw malformed(`the state ends inside ${what}`, this.offset);
    const begin = this.offset;
    this.offset += length;
    return begin;
  }
  uint32(what: string): number {
    return this.#view.getUint32(this.skip(4, what), true);
  }
  int32(what: string): number {
    return this.#view.getInt32(this.skip(4, what), true);
  }
  /** A 64-bit count that must fit `max`. */
  uint64(what: string, max: number): number {
    const value = this.#view.getBigUint64(this.skip(8, what), true);
    if (value > BigInt(max)) throw malformed(`${what} is ${value}, more than ${max}`, this.offset);
    return Number(value);
  }
  expect(what: string, wanted: number): void {
    const found = this.uint32(what);
    if (found !== wanted) throw malformed(`${what} is ${found}, not ${wanted}`, this.offset);
  }
}

function readCells(reader: StateReader, tokens: number): number {
  reader.expect("the count of streams", 1);
  reader.expect("the count of cells", tokens);
  let sequence = -1;
  for (let cell = 0; cell < tokens; cell++) {
    const position = reader.int32("a cell");
    if (position !== cell) throw malformed(`cell ${cell} holds position ${position}`, cell);
    reader.expect("a cell's count of sequences", 1);
    const named = reader.int32("a cell");
    if (sequence === -1) sequence = named;
    if (named !== sequence || named < 0)
      throw malformed(`cell ${cell} belongs to sequence ${named}`, cell);
  }
  return sequence;
}

function readRows(
  reader: StateReader,
  layers: number,
  tokens: number,
  rowOffsets: number[],
): RowShape[] {
  const shapes: RowShape[] = [];
  for (let layer = 0; layer < layers; layer++) {
    const type = reader.int32("a layer's type");
    const rowBytes = reader.uint64("a layer's row bytes", ROW_BYTES_MAX);
    if (type < 0 || rowBytes === 0)
      throw malformed(`layer ${layer} has type ${type}, row bytes ${rowBytes}`, layer);
    rowOffsets.push(reader.skip(rowBytes * tokens, "a layer's rows"));
    shapes.push({ type, rowBytes });
  }
  return shapes;
}

/**
 * Takes a saved state apart without copying its rows.
 * @throws CairnError engineStateMalformed if a single byte is not where the layout says.
 */
export function parseSequenceState(bytes: Uint8Array): SequenceState {
  const reader = new StateReader(bytes);
  reader.expect("the magic", STATE_MAGIC);
  reader.expect("the version", STATE_VERSION);
  const count = reader.uint32("the count of tokens");
  if (count === 0) throw malformed("the state holds no token");
  const tokensAt = reader.skip(count * 4, "the tokens");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const tokens = Int32Array.from({ length: count }, (_, index) =>
    view.getInt32(tokensAt + 4 * index, true),
  );
  const sequence = readCells(reader, count);
  reader.expect("the flag of transposed values", 0);
  const layers = reader.uint32("the count of layers");
  if (layers === 0 || layers > LAYERS_MAX) throw malformed(`the state has ${layers} layers`);
  const rowOffsets: number[] = [];
  const keys = readRows(reader, layers, count, rowOffsets);
  const values = readRows(reader, layers, count, rowOffsets);
  if (reader.offset !== bytes.byteLength)
    throw malformed("bytes follow the last row", reader.offset);
  assert(
    rowOffsets.length === 2 * layers,
    "one run of rows for the keys and one for the values of each layer",
  );
  return { shape: { version: STATE_VERSION, sequence, keys, values }, tokens, bytes, rowOffsets };
}

function allRows(shape: StateShape): RowShape[] {
  return [...shape.keys, ...shape.values];
}

/** Canonical bytes of one block: 16 tokens of every layer's keys and values. */
export function blockRowBytes(shape: StateShape): number {
  return allRows(shape).reduce((sum, row) => sum + row.rowBytes * BLOCK_TOKENS, 0);
}

/** Equal shapes can exchange blocks. */
export function sameShape(left: StateShape, right: StateShape): boolean {
  const signature = (shape: StateShape): string =>
    JSON.stringify([shape.version, shape.keys, shape.values]);
  return signature(left) === signature(right);
}

/**
 * Copies block `block` (tokens 16 · block … 16 · block + 15) in canonical order into `target`.
 * @throws CairnError engineStateMalformed if the state does not hold that whole block.
 */
export function copyBlock(state: SequenceState, block: number, target: Uint8Array): void {
  assert(Number.isInteger(block) && block >= 0, "a block is named by its index");
  assert(target.byteLength === blockRowBytes(state.shape), "the target is one block");
  if ((block + 1) * BLOCK_TOKENS > state.tokens.length)
    throw malformed(`the state does not hold block ${block}`, block);
  let at = 0;
  for (const [index, row] of allRows(state.shape).entries()) {
    const length = row.rowBytes * BLOCK_TOKENS;
    const from = (state.rowOffsets[index] ?? 0) + block * length;
    assert(from + length <= state.bytes.byteLength, "parsed rows lie inside the state");
    target.set(state.bytes.subarray(from, from + length), at);
    at += length;
  }
}

/** Bytes of the state file that `buildSequenceState` makes for so many blocks. */
export function stateBytes(shape: StateShape, blocks: number): number {
  const tokens = blocks * BLOCK_TOKENS;
  const rows = allRows(shape);
  const head = 12 + tokens * 4 + 8 + tokens * CELL_BYTES + 8;
  return head + rows.reduce((sum, row) => sum + 12 + row.rowBytes * tokens, 0);
}

/**
 * A loadable state of the first `blocks` blocks.
 * @param tokens at least 16 · blocks token ids
 * @param rows canonical bytes of block 0, 1, …, one after the other; at least blocks · blockRowBytes
 */
export function buildSequenceState(
  shape: StateShape,
  tokens: ArrayLike<number>,
  rows: Uint8Array,
  blocks: number,
): Uint8Array {
  const count = blocks * BLOCK_TOKENS;
  const blockBytes = blockRowBytes(shape);
  assert(blocks > 0 && tokens.length >= count, "there are tokens for every block");
  assert(rows.byteLength >= blocks * blockBytes, "there are rows for every block");
  const bytes = new Uint8Array(stateBytes(shape, blocks));
  const view = new DataView(bytes.buffer);
  let at = 0;
  const word = (value: number): void => {
    view.setInt32(at, value, true);
    at += 4;
  };
  word(STATE_MAGIC);
  word(shape.version);
  word(count);
  for (let index = 0; index < count; index++) word(tokens[index] ?? 0);
  word(1);
  word(count);
  for (let index = 0; index < count; index++) {
    word(index);
    word(1);
    word(shape.sequence);
  }
  word(0);
  word(shape.keys.length);
  let inBlock = 0;
  for (const row of allRows(shape)) {
    word(row.type);
    view.setBigUint64(at, BigInt(row.rowBytes), true);
    at += 8;
    const length = row.rowBytes * BLOCK_TOKENS;
    for (let block = 0; block < blocks; block++) {
      const from = block * blockBytes + inBlock;
      bytes.set(rows.subarray(from, from + length), at);
      at += length;
    }
    inBlock += length;
  }
  assert(at === bytes.byteLength && inBlock === blockBytes, "the state is filled exactly");
  return bytes;
}
