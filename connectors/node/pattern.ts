/** The layout-proof pattern of docs/protocol.md: 64-bit word i of seed s is splitmix64(s · 2^32 + i). */

const MASK = (1n << 64n) - 1n;

export function splitmix64(x: bigint): bigint {
  let z = (x + 0x9e3779b97f4a7c15n) & MASK;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & MASK;
  return z ^ (z >> 31n);
}

/** `bytes` of the pattern; the last word is cut to the row. */
export function layoutPattern(seed: number, bytes: number): Uint8Array<ArrayBuffer> {
  const words = new BigUint64Array(Math.ceil(bytes / 8));
  const base = BigInt(seed) << 32n;
  for (let index = 0; index < words.length; index++)
    words[index] = splitmix64(base + BigInt(index));
  return new Uint8Array(words.buffer, 0, bytes);
}
