/** The remote tier without a store: what is asked is kept for the test to answer. */
import {
  type Chunk,
  type ChunkSpace,
  type DramItems,
  type FetchResult,
  NO_HINT,
  type Priority,
  type RemoteHint,
  type RemoteSnapshot,
  type RemoteStorage,
  type UploadResult,
} from "../../tiers/remote/types.ts";
import type { DeviceHealth } from "../../tiers/tier.ts";
import type { CallLimits } from "../../tiers/remote/object-store.ts";
import type { ChainKeys } from "../../src/transfer/prefetcher.ts";
import { KEY_WORDS, type Small } from "../ledger/small.ts";

export const CHUNK_BLOCKS = 2;

export interface AskedUpload {
  readonly chunk: Chunk;
  readonly items: DramItems;
  readonly limits: CallLimits;
  readonly end: (result: UploadResult) => void;
  readonly fail: (error: Error) => void;
}

export interface AskedFetch {
  readonly chunk: Chunk;
  readonly from: number;
  readonly items: DramItems;
  readonly priority: Priority;
  readonly limits: CallLimits;
  readonly end: (result: FetchResult) => void;
  readonly fail: (error: Error) => void;
}

export class FakeStorage implements RemoteStorage {
  readonly description = "fake";
  health: DeviceHealth = "ok";
  /** What mayUpload() says. */
  open = true;
  /** Given at once where it is set. */
  answer: UploadResult | undefined;
  readonly uploads: AskedUpload[] = [];
  readonly fetches: AskedFetch[] = [];

  mayUpload(): boolean {
    return this.open;
  }
  upload(chunk: Chunk, items: DramItems, limits: CallLimits): Promise<UploadResult> {
    if (this.answer !== undefined) return Promise.resolve(this.answer);
    return new Promise((end, fail) => {
      this.uploads.push({ chunk, items, limits, end, fail });
    });
  }
  fetch(
    chunk: Chunk,
    from: number,
    items: DramItems,
    priority: Priority,
    limits: CallLimits,
  ): Promise<FetchResult> {
    return new Promise((end, fail) => {
      this.fetches.push({ chunk, from, items, priority, limits, end, fail });
    });
  }
  remotePrefix(): RemoteHint {
    return NO_HINT;
  }
  snapshot(): RemoteSnapshot {
    throw new Error("nobody asks for it here");
  }
  close(): Promise<void> {
    return Promise.resolve();
  }
}

export function spaceOf(shards = 1): ChunkSpace {
  const namespace = new Uint8Array(16).fill(9);
  return { namespace, chunkBlocks: CHUNK_BLOCKS, payloadBytes: 64, shards };
}

/** Keys of the last `count` blocks of a chain, as chunks hold them. */
export function keysOf(small: Small, chain: string, count: number): Uint8Array {
  const words = small.words(chain).slice((chain.length - count) * KEY_WORDS);
  return new Uint8Array(words.buffer);
}

export function chainOf(small: Small, chain: string): ChainKeys {
  const { namespace } = small;
  return { namespace, keyWords: KEY_WORDS, words: small.words(chain), count: chain.length };
}

/** Lets everything run that waits for promises alone. */
export async function settle(): Promise<void> {
  await new Promise<void>((resolve) => {
    setImmediate(resolve);
  });
}
