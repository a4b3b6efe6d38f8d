/**
 * Write-back to the remote tier: a chunk is offered when its last block has been written to NVMe, or, without NVMe,
 * when it has grown old in DRAM. It is stored if all its blocks stand in DRAM then; the store skips names that exist.
 * The queue is bounded and forgets its oldest entries; every chunk offered is counted by what became of it.
 */
import type { ChunkSpace, RemoteStorage } from "../../tiers/remote/types.ts";
import { assert } from "../assert.ts";
import type { Ledger } from "../ledger/ledger.ts";
import { type Block, NO_BLOCK, STATE, TIER } from "../ledger/types.ts";
import { LIMITS } from "../limits.ts";
import { type Feed, METRIC } from "../observe/feed.ts";
import type { Links } from "./links.ts";
import { type ChainKeys, chainKeysOf } from "./prefetcher.ts";
import { chunkOf } from "./remote-fetcher.ts";

/** What became of a chunk. Labels: observe/metrics.ts UPLOAD_LABELS. */
export const UPLOAD = { STORED: 0, EXISTS: 1, FAILED: 2, DROPPED: 3 } as const;

export interface UploaderOptions {
  readonly ledger: Ledger;
  readonly storage: RemoteStorage;
  readonly links: Links;
  readonly feed: Feed;
  /** Undefined: the namespace is not kept remotely. */
  readonly spaceOf: (namespace: number) => ChunkSpace | undefined;
  /** There is no NVMe tier whose write-back offers chunks. */
  readonly offersOld: boolean;
  readonly fault: (error: unknown) => void;
  /** Monotonic milliseconds. */
  readonly now: () => number;
}

/** A chunk by its last block; the key tells whether the record is still that block's. */
interface Offer {
  readonly block: Block;
  readonly chain: ChainKeys;
}

const OLD_PER_STEP = 64;

export class Uploader {
  readonly #options: UploaderOptions;
  readonly #queue: Offer[] = [];
  readonly #old = new Uint32Array(OLD_PER_STEP);
  readonly #stop = new AbortController();
  #running = 0;

  constructor(options: UploaderOptions) {
    this.#options = options;
  }

  get waiting(): number {
    return this.#queue.length + this.#running;
  }

  /** This block is on NVMe, or old: if it ends a chunk, the chunk is queued. */
  offer(block: Block): void {
    const { ledger, spaceOf, feed } = this.#options;
    const space = spaceOf(ledger.namespaceOf(block));
    if (space === undefined || ledger.depthOf(block) % space.chunkBlocks !== 0) return;
    this.#queue.push({ block, chain: chainKeysOf(ledger, block) });
    if (this.#queue.length <= LIMITS.uploadQueueMax) return;
    this.#queue.shift();
    feed.addAt(METRIC.uploadedChunks, UPLOAD.DROPPED, 1);
  }

  /** Called by the coarse timer. */
  step(): void {
    if (this.#stop.signal.aborted) return;
    if (this.#options.offersOld) this.#offerOld();
    while (this.#queue.length > 0 && this.#running < LIMITS.remoteChunksInFlight) {
      const [next] = this.#queue;
      assert(next !== undefined, "the queue is not empty");
      const space = this.#options.spaceOf(next.chain.namespace);
      if (space !== undefined && !this.#options.storage.mayUpload(space)) return;
      this.#queue.shift();
      if (space !== undefined) this.#start(next, space);
    }
  }

  /** What would be copied to NVMe now, if there were one; each block is offered once in a while. */
  #offerOld(): void {
    const { ledger } = this.#options;
    const count = ledger.demotable(TIER.DRAM, TIER.NVME, this.#old, OLD_PER_STEP);
    for (let index = 0; index < count; index++) {
      this.offer(this.#old[index]!);
      ledger.demotionRefused(this.#old[index]!);
    }
  }

  #start(offer: Offer, space: ChunkSpace): void {
    const { fault, feed } = this.#options;
    this.#running++;
    this.#upload(offer, space)
      .then((outcome) => feed.addAt(METRIC.uploadedChunks, outcome, 1))
      .catch(fault)
      .finally(() => {
        this.#running--;
      });
  }

  async #upload({ block, chain }: Offer, space: ChunkSpace): Promise<number> {
    const { ledger, storage, links, now } = this.#options;
    const { chunkBlocks, shards } = space;
    const blocks = this.#blocksOf(block, chain, chunkBlocks);
    if (blocks === undefined) return UPLOAD.DROPPED;
    for (const each of blocks) ledger.pin(each, TIER.DRAM);
    try {
      let stored = false;
      const index = chain.count / chunkBlocks - 1;
      for (let shard = 0; shard < shards; shard++) {
        const slots = blocks.map((each) => ledger.slotOf(each, TIER.DRAM, shard));
        const began = now();
        const chunk = chunkOf(chain, space, index, shard);
        const limits = { deadlineMs: LIMITS.uploadDeadlineMs, signal: this.#stop.signal };
        const result = await storage.upload(chunk, { slots, blocks }, limits);
        if (result.outcome === "failed") return UPLOAD.FAILED;
        if (result.outcome === "present") continue;
        stored = true;
        links.dramToRemote.ended(result.bytes, began);
      }
      return stored ? UPLOAD.STORED : UPLOAD.EXISTS;
    } finally {
      for (const each of blocks) ledger.unpin(each, TIER.DRAM);
    }
  }

  /** The chunk's blocks, root side first; undefined when one has left DRAM. */
  #blocksOf(last: Block, chain: ChainKeys, count: number): Uint32Array | undefined {
    const { ledger } = this.#options;
    const at = (chain.count - 1) * chain.keyWords;
    if (ledger.find(chain.namespace, chain.words, at) !== last) return undefined;
    const blocks = new Uint32Array(count);
    let block = last;
    for (let index = count - 1; index >= 0; index--) {
      if (block === NO_BLOCK || ledger.stateOf(block, TIER.DRAM) !== STATE.VISIBLE)
        return undefined;
      blocks[index] = block;
      block = ledger.parentOf(block);
    }
    return blocks;
  }

  /** Cancels what runs; resolves when nothing holds a block any more. */
  async stop(): Promise<void> {
    this.#stop.abort();
    this.#queue.length = 0;
    while (this.#running > 0) {
      await new Promise((resolve) => {
        setTimeout(resolve, 2);
      });
    }
  }
}
