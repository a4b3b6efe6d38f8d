/** Answers `remotePrefix` from the existence cache and lets the cache learn what it did not know, in the background. */
import { assert } from "../../src/assert.ts";
import { LIMITS } from "../../src/limits.ts";
import { chunkName } from "./chunk.ts";
import type { Existence } from "./existence.ts";
import { type ChunkState, type PrefixSearch, searchPrefix } from "./prefix.ts";
import { type ChunkSpace, KEY_BYTES, NO_HINT, type RemoteHint } from "./types.ts";

/** Last keys of the chunks of one chain. */
interface Boundaries {
  readonly space: ChunkSpace;
  readonly chunks: number;
  readonly lastKey: (chunk: number) => Uint8Array;
}

export class RemotePrefix {
  readonly #existence: Existence;
  readonly #sealerName: string;
  readonly #fault: (error: unknown) => void;
  /** Searches that run, by the name of the chunk they ask for. */
  readonly #searching = new Set<string>();
  #dropped = 0;

  /** fault: is told what should not happen; a search that ends so is a miss. */
  constructor(existence: Existence, sealerName: string, fault: (error: unknown) => void) {
    this.#existence = existence;
    this.#sealerName = sealerName;
    this.#fault = fault;
  }

  /** Searches left out at their bound. */
  get dropped(): number {
    return this.#dropped;
  }

  /** As far as is known at once; what is not is asked in the background. */
  hint(space: ChunkSpace, keys: Uint8Array, keyBytes: number, localBlocks: number): RemoteHint {
    assert(keyBytes <= KEY_BYTES && keys.length % keyBytes === 0, "keys are whole");
    const step = space.chunkBlocks * keyBytes;
    const chunks = Math.floor(keys.length / step);
    const first = Math.min(chunks, Math.floor(localBlocks / space.chunkBlocks));
    if (first === chunks) return NO_HINT;
    const lastKey = (chunk: number): Uint8Array =>
      padded(keys.subarray((chunk + 1) * step - keyBytes, (chunk + 1) * step));
    const found = this.#search({ space, chunks, lastKey }, first);
    const asking = found.ask !== undefined && this.#learn(space, chunks, first, found.ask, lastKey);
    const known = found.chunks * space.chunkBlocks;
    const blocks = found.chunks > first && known > localBlocks ? known : 0;
    return { blocks, asking };
  }

  #search(chain: Boundaries, first: number): PrefixSearch {
    return searchPrefix(chain.chunks, first, (chunk) => this.#state(chain, chunk));
  }

  #state({ space, lastKey }: Boundaries, chunk: number): ChunkState {
    const key = lastKey(chunk);
    let state: ChunkState = "present";
    for (let shard = 0; shard < space.shards; shard += 1) {
      const known = this.#existence.known(chunkName(space, shard, key, this.#sealerName));
      if (known === false) return "absent";
      if (known === undefined) state = "unknown";
    }
    return state;
  }

  /**
   * Goes on with the search in the background; the keys are copied, for a frame's do not last. False at the bound:
   * nobody asks.
   */
  #learn(
    space: ChunkSpace,
    chunks: number,
    first: number,
    ask: number,
    lastKey: (chunk: number) => Uint8Array,
  ): boolean {
    const name = chunkName(space, 0, lastKey(ask), this.#sealerName);
    if (this.#searching.has(name)) return true;
    if (this.#searching.size >= LIMITS.remoteSearchesMax) {
      this.#dropped += 1;
      return false;
    }
    this.#searching.add(name);
    const copy = Array.from({ length: chunks }, (_, chunk) =>
      chunk < first ? EMPTY : lastKey(chunk),
    );
    const chain = { space, chunks, lastKey: (chunk: number) => copy[chunk] ?? EMPTY };
    const forget = (): void => void this.#searching.delete(name);
    this.#run(chain, first).then(forget, (error: unknown) => {
      forget();
      this.#fault(error);
    });
    return true;
  }

  async #run(chain: Boundaries, first: number): Promise<void> {
    for (let steps = 0; steps < STEPS_MAX; steps += 1) {
      const { ask } = this.#search(chain, first);
      if (ask === undefined) return;
      const names = Array.from({ length: chain.space.shards }, (_, shard) =>
        chunkName(chain.space, shard, chain.lastKey(ask), this.#sealerName),
      );
      const answers = await Promise.all(names.map((name) => this.#existence.resolve(name)));
      // One absent shard settles it; else all have to be known, or the search waits for a better time.
      if (!answers.includes(false) && answers.includes(undefined)) return;
    }
  }
}

const EMPTY = new Uint8Array(KEY_BYTES);
/** Far more than a search of the longest chain takes; entries that age while it runs must not keep it going. */
const STEPS_MAX = 64;

function padded(key: Uint8Array): Uint8Array {
  const record = new Uint8Array(KEY_BYTES);
  record.set(key);
  return record;
}
