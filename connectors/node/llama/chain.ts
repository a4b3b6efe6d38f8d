/** Block keys of this connector: the client's SHA-256 chain over token ids in blocks of 16, with its own seed. */
import { assert } from "../../../src/assert.ts";
import { CHAIN_KEY_BYTES, chainKeys as chainedKeys } from "../keys.ts";
import { BLOCK_TOKENS } from "./state.ts";

export const HASH_ALGORITHM = "sha256-chain-u32le";
/** The chain's first parent is SHA-256 of this text. */
export const HASH_SEED = "cairn-llama-1";
export const KEY_BYTES = CHAIN_KEY_BYTES;

/** Keys of the whole blocks of `tokens`, root first; the partial tail has none. */
export function chainKeys(tokens: ArrayLike<number>): Uint8Array[] {
  const joined = chainedKeys(tokens, BLOCK_TOKENS, HASH_SEED);
  const blocks = Math.floor(tokens.length / BLOCK_TOKENS);
  assert(joined.byteLength === blocks * KEY_BYTES, "one key for each whole block");
  return Array.from({ length: blocks }, (_, index) =>
    joined.subarray(index * KEY_BYTES, (index + 1) * KEY_BYTES),
  );
}
