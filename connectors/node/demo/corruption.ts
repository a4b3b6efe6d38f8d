/**
 * The negative control: one bit of a stored block is flipped behind the daemon's back.
 *
 * The demo owns the daemon's private pool directory, so it finds the block by its content in the pool file and writes
 * the changed byte there. The file is mapped shared by the daemon, hence the very slot changes. Nothing in the daemon
 * has to offer a way to do harm, and nothing here depends on the slot layout.
 */
import {
  closeSync,
  fstatSync,
  openSync,
  readdirSync,
  readSync,
  statSync,
  writeSync,
} from "node:fs";
import path from "node:path";
import { assert } from "../../../src/assert.ts";

const CHUNK_BYTES = 16 * 1024 * 1024;

function* filesUnder(directory: string): Generator<string> {
  for (const entry of readdirSync(directory, { recursive: true, encoding: "utf8" })) {
    const filePath = path.join(directory, entry);
    if (statSync(filePath, { throwIfNoEntry: false })?.isFile() === true) yield filePath;
  }
}

/** Offsets of `needle` in an open file. */
function offsetsOf(descriptor: number, needle: Buffer): number[] {
  const offsets: number[] = [];
  const size = fstatSync(descriptor).size;
  const chunk = Buffer.allocUnsafe(CHUNK_BYTES + needle.byteLength - 1);
  for (let start = 0; start < size; start += CHUNK_BYTES) {
    const read = readSync(descriptor, chunk, 0, chunk.byteLength, start);
    const view = chunk.subarray(0, read);
    for (
      let at = view.indexOf(needle);
      at !== -1 && at < CHUNK_BYTES;
      at = view.indexOf(needle, at + 1)
    ) {
      offsets.push(start + at);
    }
  }
  return offsets;
}

/**
 * Flips bit `bit` of `tail`, the last bytes of a block, wherever that tail stands in a file under `directory`.
 * @returns how many copies were changed; 0 means that the block was not found
 */
export function flipStoredBit(directory: string, tail: Buffer, bit: number): number {
  assert(
    tail.byteLength >= 64 && bit >= 0 && bit < tail.byteLength * 8,
    "a tail long enough to be unique",
  );
  const byteIndex = bit >>> 3;
  const changed = Buffer.from([(tail[byteIndex] ?? 0) ^ (1 << (bit & 7))]);
  let copies = 0;
  for (const filePath of filesUnder(directory)) {
    const descriptor = openSync(filePath, "r+");
    try {
      for (const offset of offsetsOf(descriptor, tail)) {
        writeSync(descriptor, changed, 0, 1, offset + byteIndex);
        copies += 1;
      }
    } finally {
      closeSync(descriptor);
    }
  }
  return copies;
}
