/** Block keys: a chain of SHA-256 over the token ids, so that a key names its block and everything before it. */
import { createHash } from "node:crypto";
import { assert } from "../../../src/assert.ts";
import { BLOCK_TOKENS } from "./state.ts";

export const HASH_ALGORITHM = "sha256-chain-u32le";
/** The chain's first parent is SHA-256 of this text. */
export const HASH_SEED = "cairn-llama-1";
export const KEY_BYTES = 32;

/**
 * Keys of the whole blocks of `tokens`, root first: key = SHA-256(parent key · 16 token ids as u32 LE).
 * The partial tail has no key.
 */
export function chainKeys(tokens: readonly number[]): Uint8Array[] {
  const keys: Uint8Array[] = [];
  let parent: Uint8Array = createHash("sha256").update(HASH_SEED).digest();
  const packed = Buffer.alloc(BLOCK_TOKENS * 4);
  for (let start = 0; start + BLOCK_TOKENS <= tokens.length; start += BLOCK_TOKENS) {
    for (let index = 0; index < BLOCK_TOKENS; index++)
      packed.writeUInt32LE(tokens[start + index] ?? 0, 4 * index);
    parent = createHash("sha256").update(parent).update(packed).digest();
    assert(parent.byteLength === KEY_BYTES, "a key is a whole digest");
    keys.push(new Uint8Array(parent));
  }
  return keys;
}
