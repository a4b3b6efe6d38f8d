/** Block keys from token ids: SHA-256, chained, as DESIGN §3 wants them: key i names block i and all before it. */
import { createHash } from "node:crypto";

export const CHAIN_KEY_BYTES = 32;

/**
 * Keys of all full blocks of `tokens`, 32 bytes each, one after the other.
 * key i = SHA-256(key i−1 (first: SHA-256 of the seed's UTF-8) ‖ tokens of block i as little-endian u32).
 */
export function chainKeys(
  tokens: ArrayLike<number>,
  blockTokens: number,
  seed: string,
): Uint8Array<ArrayBuffer> {
  if (!Number.isInteger(blockTokens) || blockTokens < 1) {
    throw new RangeError("blockTokens is a positive integer");
  }
  const blocks = Math.floor(tokens.length / blockTokens);
  const keys = new Uint8Array(blocks * CHAIN_KEY_BYTES);
  const block = Buffer.alloc(blockTokens * 4);
  let previous: Uint8Array = createHash("sha256").update(seed, "utf8").digest();
  for (let index = 0; index < blocks; index++) {
    for (let token = 0; token < blockTokens; token++) {
      block.writeUInt32LE(tokens[index * blockTokens + token]!, token * 4);
    }
    previous = createHash("sha256").update(previous).update(block).digest();
    keys.set(previous, index * CHAIN_KEY_BYTES);
  }
  return keys;
}
