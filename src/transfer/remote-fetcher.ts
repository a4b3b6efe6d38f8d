/**
 * Chunks of the remote tier become blocks in DRAM. To the ledger it is a STORE by the node itself: blocks are
 * reserved under their parents, filled by IMPORT (which verifies identity and hash), and visible when all shards are.
 * A few chunks of a chain are under way at once; where one is missing the chain ends, and what was begun below it is
 * given up by the ledger's own rule. Chains that begin alike are fetched at the same time by requests that come
 * together: whoever comes second waits for the first one's chunks, and goes on behind them.
 */
import { ITEM } from "../../addon/binding.ts";
import {
  type Chunk,
  type ChunkSpace,
  KEY_BYTES,
  PRIORITY,
  type RemoteStorage,
} from "../../tiers/remote/types.ts";
import { assert } from "../assert.ts";
import { CairnError } from "../errors.ts";
import type { Ledger } from "../ledger/ledger.ts";
import { NO_BLOCK, NO_SLOT, RESERVE, STATE, TIER } from "../ledger/types.ts";
import { LIMITS } from "../limits.ts";
import type { Links } from "./links.ts";
import type { ChainKeys, RemoteSource } from "./prefetcher.ts";

export interface RemoteFetcherOptions {
  readonly ledger: Ledger;
  readonly storage: RemoteStorage;
  readonly links: Links;
  /** Undefined: the namespace is not kept remotely. */
  readonly spaceOf: (namespace: number) => ChunkSpace | undefined;
  /** Blocks of other nodes came into this namespace: they must be proven like those of an earlier life. */
  readonly onImported: (namespace: number) => void;
  readonly fault: (error: unknown) => void;
  /** Monotonic milliseconds. */
  readonly now: () => number;
}

/** Blocks reserved for one shard of a chunk. */
interface Part {
  readonly shard: number;
  readonly blocks: Uint32Array;
  readonly slots: Uint32Array;
  /** First block of the chunk that is wanted. */
  readonly from: number;
}

interface Fetch {
  readonly chain: ChainKeys;
  readonly space: ChunkSpace;
  readonly signal: AbortSignal;
  readonly deadlineAt: number;
  bytes: number;
}

/** Keys of blocks [from, from + count) of the chain, padded to KEY_BYTES each. */
export function paddedKeys(chain: ChainKeys, from: number, count: number): Uint8Array {
  const keys = new Uint8Array(count * KEY_BYTES);
  const words = new Uint32Array(keys.buffer);
  for (let index = 0; index < count; index++) {
    const at = (from + index) * chain.keyWords;
    words.set(chain.words.subarray(at, at + chain.keyWords), (index * KEY_BYTES) / 4);
  }
  return keys;
}

/** Chunk number `index` of a chain that names all its keys. */
export function chunkOf(chain: ChainKeys, space: ChunkSpace, index: number, shard: number): Chunk {
  const from = index * space.chunkBlocks;
  assert(from + space.chunkBlocks <= chain.count, "a chunk is whole");
  const parentKey = from === 0 ? new Uint8Array(KEY_BYTES) : paddedKeys(chain, from - 1, 1);
  const keys = paddedKeys(chain, from, space.chunkBlocks);
  return { space, shard, firstDepth: from + 1, keys, parentKey };
}

type Standing = "present" | "pending" | undefined;
/** Blocks of a chunk cannot be taken: all are here; another fetch or a STORE brings them; no room, or no parent. */
type NotTaken = "present" | "pending" | "none";

/** A fetch that waits looks again at least this often: a STORE that brings its blocks tells nobody. */
const LOOK_AGAIN_MS = 50;

export class RemoteFetcher implements RemoteSource {
  readonly #options: RemoteFetcherOptions;
  /** Of all fetches. */
  #chunksInFlight = 0;
  /** Fetches that wait for a chunk of another one; no more than there are PREFETCHes (prefetchesMax). */
  readonly #waiting = new Set<() => void>();

  constructor(options: RemoteFetcherOptions) {
    this.#options = options;
  }

  fetch(
    chain: ChainKeys,
    from: number,
    deadlineMs: number,
    signal: AbortSignal,
    done: (blocks: number, bytes: number) => void,
  ): void {
    const space = this.#options.spaceOf(chain.namespace);
    if (space === undefined) {
      queueMicrotask(() => done(0, 0));
      return;
    }
    const deadlineAt = this.#options.now() + deadlineMs;
    const fetching: Fetch = { chain, space, signal, deadlineAt, bytes: 0 };
    this.#run(fetching, from)
      .catch((error: unknown) => this.#options.fault(error))
      .finally(() => done(this.#visible(chain, from), fetching.bytes));
  }

  /** Chunks in order, a few at once. */
  async #run(fetching: Fetch, from: number): Promise<void> {
    const { chunkBlocks } = fetching.space;
    const running: Promise<boolean>[] = [];
    let index = Math.floor(from / chunkBlocks);
    let more = true;
    while (more || running.length > 0) {
      const named = (index + 1) * chunkBlocks <= fetching.chain.count;
      more &&= named && !fetching.signal.aborted && this.#left(fetching) > 0;
      if (more && running.length < LIMITS.remoteChunksInFlight) {
        const parts = this.#reserve(fetching, index, Math.max(from, index * chunkBlocks));
        const others = parts === "pending" && this.#chunksInFlight > 0;
        // What another fetch brings may come with this one's chunks, and so may the parent of what stands on none yet.
        const later = (others || parts === "none") && running.length > 0;
        if (!later) {
          if (others) await this.#anotherChunk(fetching);
          else if (parts === "present") index++;
          else if (typeof parts === "string") more = false;
          else running.push(this.#fetchChunk(fetching, index++, parts));
          continue;
        }
      }
      // Also when the chain has ended: nothing may be in flight when the caller is told.
      const good = await running.shift();
      if (good === false) more = false;
    }
  }

  /** Until a chunk of any fetch has ended, or this one's time; not long. */
  async #anotherChunk(fetching: Fetch): Promise<void> {
    const { signal } = fetching;
    const left = Math.max(1, Math.min(LOOK_AGAIN_MS, this.#left(fetching)));
    await new Promise<void>((resolve) => {
      const end = (): void => {
        clearTimeout(timer);
        signal.removeEventListener("abort", end);
        this.#waiting.delete(end);
        resolve();
      };
      const timer = setTimeout(end, left);
      signal.addEventListener("abort", end);
      this.#waiting.add(end);
    });
  }

  #left({ deadlineAt }: Fetch): number {
    return deadlineAt - this.#options.now();
  }

  /**
   * What there is of blocks [from, end) of the chain: all, or up to one that somebody else brings in any shard, or lets
   * go of. Undefined: the first that is not here is nobody's.
   */
  #standing({ namespace, words, keyWords }: ChainKeys, from: number, end: number): Standing {
    const { ledger } = this.#options;
    for (let depth = from; depth < end; depth++) {
      const block = ledger.find(namespace, words, depth * keyWords);
      if (block === NO_BLOCK) return undefined;
      if (ledger.isVisible(block)) continue;
      const state = ledger.stateOf(block, TIER.DRAM);
      return state === STATE.ABSENT || state === STATE.QUARANTINED ? undefined : "pending";
    }
    return "present";
  }

  /** Takes what is missing of the chunk's blocks from depth `from` + 1 on, up to what is not, in all shards or none. */
  #reserve(fetching: Fetch, index: number, from: number): readonly Part[] | NotTaken {
    const { space, chain } = fetching;
    const standing = this.#standing(chain, from, (index + 1) * space.chunkBlocks);
    if (standing !== undefined) return standing;
    const parts: Part[] = [];
    for (let shard = 0; shard < space.shards; shard++) {
      const part = this.#reserveShard(fetching, index, from, shard);
      const [other] = parts;
      const alike =
        other === undefined ||
        (part?.from === other.from && part.blocks.length === other.blocks.length);
      if (part === undefined || !alike) {
        if (part !== undefined) parts.push(part);
        this.#giveUp(parts);
        return "none";
      }
      parts.push(part);
    }
    for (const { blocks, shard } of parts) {
      for (const block of blocks) this.#options.ledger.fillStart(block, TIER.DRAM, shard);
    }
    return parts;
  }

  #reserveShard(fetching: Fetch, index: number, from: number, shard: number): Part | undefined {
    const { ledger } = this.#options;
    const { chain, space } = fetching;
    const { keyWords, words, namespace } = chain;
    const count = (index + 1) * space.chunkBlocks - from;
    const statuses = new Uint8Array(count);
    const blocks = new Uint32Array(count);
    const at = from * keyWords;
    try {
      ledger.reserve(namespace, from, words, at - keyWords, at, count, shard, statuses, blocks);
    } catch (error) {
      if (error instanceof CairnError) return undefined; // ledgerFull, chainMismatch
      throw error;
    }
    // What is here already leads. Behind what is wanted there may be what has lost its parent: it comes back with it.
    let first = 0;
    while (first < count && statuses[first] === RESERVE.PRESENT) first++;
    let end = first;
    while (end < count && statuses[end] === RESERVE.WANTED) end++;
    const fits = end === count || statuses[end] !== RESERVE.FULL;
    const kept = fits ? end : first;
    for (let i = count - 1; i >= kept; i--) {
      if (statuses[i] === RESERVE.WANTED) ledger.fillAbort(blocks[i]!, TIER.DRAM, shard);
    }
    if (kept === first) return undefined;
    const wanted = blocks.subarray(first, end);
    const slots = wanted.map((block) =>
      block === NO_BLOCK ? NO_SLOT : ledger.slotOf(block, TIER.DRAM, shard),
    );
    return { shard, blocks: wanted, slots, from: from + first - index * space.chunkBlocks };
  }

  #giveUp(parts: readonly Part[]): void {
    const { ledger } = this.#options;
    for (const { blocks, shard } of parts) {
      for (const block of blocks.toReversed()) ledger.fillAbort(block, TIER.DRAM, shard);
    }
  }

  /** True when all of it came. */
  async #fetchChunk(fetching: Fetch, index: number, parts: readonly Part[]): Promise<boolean> {
    this.#chunksInFlight++;
    try {
      const asked = parts.map((part) => this.#fetchPart(fetching, index, part));
      return (await Promise.all(asked)).every((good) => good);
    } finally {
      this.#chunksInFlight--;
      for (const end of this.#waiting) end();
    }
  }

  async #fetchPart(fetching: Fetch, index: number, part: Part): Promise<boolean> {
    const { ledger, storage, links, now, onImported, fault } = this.#options;
    const { chain, space, signal } = fetching;
    const { blocks, slots, shard, from } = part;
    const began = now();
    const limits = { deadlineMs: Math.max(1, this.#left(fetching)), signal };
    const chunk = chunkOf(chain, space, index, shard);
    const items = { slots, blocks };
    const asked = storage.fetch(chunk, from, items, PRIORITY.PREFETCH, limits);
    const result = await asked.catch((error: unknown) => {
      fault(error);
      return undefined;
    });
    onImported(chain.namespace);
    let good = 0;
    for (let item = 0; item < blocks.length; item++) {
      // What ended by a fault in the tier is a miss; its slots are given back, and other chunks go on.
      const ok = result?.statuses[item] === ITEM.OK;
      if (ok) good++;
      ledger.fillEnd(blocks[item]!, TIER.DRAM, shard, ok);
    }
    ledger.flush();
    fetching.bytes += good * space.payloadBytes;
    if (good === blocks.length) links.remoteToDram.ended(result?.bytes ?? 0, began);
    return good === blocks.length;
  }

  /** Blocks of the chain from depth `from` + 1 on that are readable now. */
  #visible(chain: ChainKeys, from: number): number {
    const { ledger } = this.#options;
    let depth = from;
    while (depth < chain.count) {
      const block = ledger.find(chain.namespace, chain.words, depth * chain.keyWords);
      if (block === NO_BLOCK || !ledger.isVisible(block)) break;
      depth++;
    }
    return depth - from;
  }
}
