/**
 * How long a prefix of a chain stands in the store. Chunks are uploaded ancestors first, so existence is nearly a
 * prefix property, and a search needs few probes: the next chunk, the last one, then gallop and bisect. A chunk
 * removed from the middle is found out when it is fetched; what this answers is a hint.
 */
import { assert } from "../../src/assert.ts";

/** Of one chunk, all shards together. */
export type ChunkState = "present" | "absent" | "unknown";

export interface PrefixSearch {
  /** Chunks from the root on that exist, as far as known; `first` when none beyond is. */
  readonly chunks: number;
  /** Chunk whose state has to be known to go on; undefined: the search is over. */
  readonly ask: number | undefined;
}

/** Searches among chunks first … count − 1, given those below `first`. */
export function searchPrefix(
  count: number,
  first: number,
  state: (chunk: number) => ChunkState,
): PrefixSearch {
  assert(first >= 0 && first <= count, "a search begins inside the chain");
  let low = first;
  let high = count;
  let step = 1;
  while (low < high) {
    const at = next(low, high, count, step, low > first);
    const found = state(at);
    if (found === "unknown") return { chunks: low, ask: at };
    if (found === "present") {
      low = at + 1;
      step *= 2;
    } else {
      high = at;
    }
    assert(low <= high, "the search closes in");
  }
  return { chunks: low, ask: undefined };
}

/** Which chunk to look at when [low, high) is undecided. */
function next(low: number, high: number, count: number, step: number, tryLast: boolean): number {
  if (tryLast && high === count) return count - 1;
  const gallop = low + step - 1;
  return gallop < high - 1 ? gallop : (low + high - 1) >> 1;
}
