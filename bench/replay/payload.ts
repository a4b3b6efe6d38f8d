/** Payload of a replayed block: a stream that its key seeds, so that any byte of any block can be told in advance. */
import { assert } from "../../src/assert.ts";
import { XorShift } from "../ledger.ts";
import { KEY_WORDS } from "./trace.ts";

function streamOf(words: Uint32Array, at: number): XorShift {
  assert(at + KEY_WORDS <= words.length, "the key lies in its array");
  return new XorShift(((words[at] as number) ^ (words[at + KEY_WORDS - 1] as number)) >>> 0);
}

/** Writes the payload of the key at `words[at…]` over all of `into`. */
export function writePayload(into: Uint32Array, words: Uint32Array, at: number): void {
  streamOf(words, at).fill(into, 0, into.length);
}

/** True when `payload` is exactly what the key's block must hold. */
export function isPayload(payload: Uint32Array, words: Uint32Array, at: number): boolean {
  return streamOf(words, at).matches(payload, 0, payload.length);
}
