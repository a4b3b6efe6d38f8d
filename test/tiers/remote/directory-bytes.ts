/** Content whose every part tells its seed, so that a mixture of two writers is seen. */
export function bytesFor(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, at) => (seed * 31 + (at >> 12) * 7 + (at & 3)) & 0xff);
}
