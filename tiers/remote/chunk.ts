/**
 * The chunk: one object of the remote tier, and its codec. Pure.
 *
 * A chunk holds `chunkBlocks` consecutive blocks of one chain and one shard. Its header is self-describing, so that
 * a bucket can be read without the daemon that wrote it; but what a block is worth is decided by the block's own
 * header and payload hash, which IMPORT verifies. All offsets follow from the namespace, so any range of blocks is
 * one ranged read, and the header travels only with reads that begin at block 0.
 *
 * Object: header, padded to a multiple of HEADER_ALIGN_BYTES; then each block, DISK_HEADER_BYTES of header and its
 * payload, padded to a multiple of BLOCK_ALIGN_BYTES, exactly as COPY.EXPORT lays it down.
 *
 * Header, little-endian:
 *     0 u32 magic "CRCK"     4 u32 format version    8 u32 header bytes    12 u32 chunk blocks
 *    16 u32 first depth     20 u32 shard            24 u32 shards          28 u32 payload bytes
 *    32 u32 stride bytes    36 u32 sealer overhead  40 u64 object bytes    48 namespace digest (16)
 *    64 parent key of the first block (32)          96 last key (32)      128 header hash (32, SHA-256 over
 *   the header with these 32 bytes zero)           160 per block: key (32), offset u64
 */
import { createHash } from "node:crypto";
import { DISK_HEADER_BYTES } from "../../addon/binding.ts";
import { assert } from "../../src/assert.ts";
import { LIMITS } from "../../src/limits.ts";
import { type Chunk, type ChunkSpace, DIGEST_BYTES, KEY_BYTES } from "./types.ts";

const MAGIC = 0x4b435243;
export const CHUNK_FORMAT = 1;
const HEADER_ALIGN_BYTES = 4_096;
const BLOCK_ALIGN_BYTES = 64;
const FIXED_BYTES = 160;
const HASH_OFFSET = 128;
const HASH_BYTES = 32;
const ENTRY_BYTES = KEY_BYTES + 8;
/**
 * The namespace's declared chunkBlocks, clipped so that the payload of a chunk is 2 to 16 MiB where it can be:
 * smaller ones waste requests, longer ones memory and latency. Nodes that share a store agree on bytesMax.
 */
export function chunkBlocksOf(
  declaredBlocks: number,
  payloadBytes: number,
  bytesMax: number = LIMITS.chunkBytesMax,
): number {
  assert(declaredBlocks >= 1 && payloadBytes >= 1, "a chunk has blocks and a block has bytes");
  const least = Math.ceil(Math.min(LIMITS.chunkBytesMin, bytesMax) / payloadBytes);
  const most = Math.max(1, Math.floor(bytesMax / payloadBytes));
  return Math.min(Math.max(declaredBlocks, least), most, LIMITS.chunkBlocksMax);
}

function align(bytes: number, step: number): number {
  return Math.ceil(bytes / step) * step;
}

export interface ChunkLayout {
  readonly headerBytes: number;
  /** From one block to the next. */
  readonly strideBytes: number;
  readonly objectBytes: number;
}

/** Where things lie in every chunk of this namespace. overheadBytes: the sealer's, per block. */
export function chunkLayout(space: ChunkSpace, overheadBytes: number): ChunkLayout {
  assert(overheadBytes % BLOCK_ALIGN_BYTES === 0, "a sealer's overhead keeps blocks aligned");
  assert(space.chunkBlocks >= 1, "a chunk has blocks");
  const headerBytes = align(FIXED_BYTES + space.chunkBlocks * ENTRY_BYTES, HEADER_ALIGN_BYTES);
  const block = DISK_HEADER_BYTES + space.payloadBytes;
  const strideBytes = align(block, BLOCK_ALIGN_BYTES) + overheadBytes;
  return { headerBytes, strideBytes, objectBytes: headerBytes + space.chunkBlocks * strideBytes };
}

/** Prefix of all names of this format. Garbage collection touches nothing else. */
export const CHUNK_PREFIX = `v${CHUNK_FORMAT}`;

/** Name of the chunk of this shard that ends with `lastKey`; sealerName "" for none. */
export function chunkName(
  space: ChunkSpace,
  shard: number,
  lastKey: Uint8Array,
  sealerName: string,
): string {
  assert(space.namespace.length === DIGEST_BYTES, "a namespace digest has 16 bytes");
  assert(lastKey.length === KEY_BYTES, "a key record has 32 bytes");
  assert(shard < space.shards, "the shard is one of the namespace's");
  const format = sealerName === "" ? CHUNK_PREFIX : `${CHUNK_PREFIX}-${sealerName}`;
  const shape = `${space.chunkBlocks}-${space.payloadBytes}-${shard}-${space.shards}`;
  return `${format}/${hex(space.namespace)}/${shape}/${hex(lastKey)}`;
}

const CHUNK_NAME = new RegExp(
  `^${CHUNK_PREFIX}(?:-[a-z0-9]+)?/[0-9a-f]{32}/\\d+-\\d+-\\d+-\\d+/[0-9a-f]{64}$`,
);

/** Whether an object is ours to collect. */
export function isChunkName(name: string): boolean {
  return CHUNK_NAME.test(name);
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("hex");
}

export function lastKeyOf(chunk: Chunk): Uint8Array {
  const at = (chunk.space.chunkBlocks - 1) * KEY_BYTES;
  return chunk.keys.subarray(at, at + KEY_BYTES);
}

export function assertChunk(chunk: Chunk): void {
  const { space } = chunk;
  assert(chunk.keys.length === space.chunkBlocks * KEY_BYTES, "a chunk names each of its blocks");
  assert(chunk.parentKey.length === KEY_BYTES, "a parent key has 32 bytes");
  assert((chunk.firstDepth - 1) % space.chunkBlocks === 0, "a chunk begins at a multiple of N");
  assert(chunk.shard < space.shards, "the shard is one of the namespace's");
}

/** Writes the header into into[0, layout.headerBytes). */
export function encodeHeader(chunk: Chunk, overheadBytes: number, into: Uint8Array): void {
  assertChunk(chunk);
  const layout = chunkLayout(chunk.space, overheadBytes);
  assert(into.length >= layout.headerBytes, "the header fits");
  const bytes = into.subarray(0, layout.headerBytes).fill(0);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (const [index, value] of words(chunk, layout, overheadBytes).entries()) {
    view.setUint32(index * 4, value, true);
  }
  view.setBigUint64(40, BigInt(layout.objectBytes), true);
  bytes.set(chunk.space.namespace, 48);
  bytes.set(chunk.parentKey, 64);
  bytes.set(lastKeyOf(chunk), 96);
  for (let block = 0; block < chunk.space.chunkBlocks; block += 1) {
    const at = FIXED_BYTES + block * ENTRY_BYTES;
    bytes.set(chunk.keys.subarray(block * KEY_BYTES, (block + 1) * KEY_BYTES), at);
    const offset = layout.headerBytes + block * layout.strideBytes;
    view.setBigUint64(at + KEY_BYTES, BigInt(offset), true);
  }
  bytes.set(createHash("sha256").update(bytes).digest(), HASH_OFFSET);
}

function words(chunk: Chunk, layout: ChunkLayout, overheadBytes: number): number[] {
  const { space } = chunk;
  return [
    MAGIC,
    CHUNK_FORMAT,
    layout.headerBytes,
    space.chunkBlocks,
    chunk.firstDepth,
    chunk.shard,
    space.shards,
    space.payloadBytes,
    layout.strideBytes,
    overheadBytes,
  ];
}

export type HeaderVerdict = "ok" | "corrupt" | "other";

/**
 * Holds a received header against the chunk that was asked for. "corrupt": its hash does not match, or it is no
 * header at all; "other": a sound header of another chunk (an object under a wrong name).
 */
export function checkHeader(
  bytes: Uint8Array,
  chunk: Chunk,
  overheadBytes: number,
  scratch: Uint8Array,
): HeaderVerdict {
  const { headerBytes } = chunkLayout(chunk.space, overheadBytes);
  if (bytes.length < headerBytes) return "corrupt";
  const given = bytes.subarray(0, headerBytes);
  encodeHeader(chunk, overheadBytes, scratch);
  if (Buffer.compare(given, scratch.subarray(0, headerBytes)) === 0) return "ok";
  return decodeHeader(given) === undefined ? "corrupt" : "other";
}

export interface ChunkHeader {
  readonly chunk: Chunk;
  readonly overheadBytes: number;
  readonly layout: ChunkLayout;
}

/** Reads a header without knowing what it should say; undefined unless all of it is sound. */
export function decodeHeader(bytes: Uint8Array): ChunkHeader | undefined {
  if (bytes.length < FIXED_BYTES) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const word = (index: number): number => view.getUint32(index * 4, true);
  const headerBytes = word(2);
  const fits = headerBytes <= bytes.length && headerBytes % HEADER_ALIGN_BYTES === 0;
  if (word(0) !== MAGIC || word(1) !== CHUNK_FORMAT || !fits || headerBytes === 0) return undefined;
  // Not slice(): a Buffer's would be a view, and its owner's hash would be wiped.
  const copy = Uint8Array.from(bytes.subarray(0, headerBytes));
  copy.fill(0, HASH_OFFSET, HASH_OFFSET + HASH_BYTES);
  const hash = createHash("sha256").update(copy).digest();
  if (hash.compare(bytes, HASH_OFFSET, HASH_OFFSET + HASH_BYTES) !== 0) return undefined;
  const chunkBlocks = word(3);
  const overheadBytes = word(9);
  const sane = chunkBlocks >= 1 && chunkBlocks <= LIMITS.chunkBlocksMax && word(5) < word(6);
  if (!sane || overheadBytes % BLOCK_ALIGN_BYTES !== 0) return undefined;
  const space: ChunkSpace = {
    namespace: copy.slice(48, 48 + DIGEST_BYTES),
    chunkBlocks,
    payloadBytes: word(7),
    shards: word(6),
  };
  const layout = chunkLayout(space, overheadBytes);
  if (layout.headerBytes !== headerBytes || word(4) < 1 || (word(4) - 1) % chunkBlocks !== 0) {
    return undefined;
  }
  const keys = new Uint8Array(chunkBlocks * KEY_BYTES);
  for (let block = 0; block < chunkBlocks; block += 1) {
    const at = FIXED_BYTES + block * ENTRY_BYTES;
    keys.set(copy.subarray(at, at + KEY_BYTES), block * KEY_BYTES);
  }
  const parentKey = copy.slice(64, 64 + KEY_BYTES);
  const chunk: Chunk = { space, shard: word(5), firstDepth: word(4), keys, parentKey };
  return { chunk, overheadBytes, layout };
}
