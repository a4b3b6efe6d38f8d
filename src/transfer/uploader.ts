/**
 * Write-back to the remote tier: a chunk is offered when its last block has been written to NVMe, or, without NVMe,
 * when it has grown old in DRAM. Its blocks are read from DRAM or, where they have left it, from NVMe; the store skips
 * names that exist.
 *
 * The queue holds no chains, only the last block of each chunk and its key, so that an offer and a waiting chunk cost
 * the same however deep the chain is. It is bounded and forgets its oldest entries. What it forgot, what the store
 * failed to take, and what an earlier life left on NVMe is found again by a slow look through the block table. While
 * the store takes nothing, chunks wait in the queue.
 * Every chunk offered is counted by what became of it.
 */
import { NO_DRAM_SLOT } from "../../addon/binding.ts";
import {
  type Chunk,
  type ChunkSpace,
  type DramItems,
  KEY_BYTES,
  type RemoteStorage,
} from "../../tiers/remote/types.ts";
import { assert } from "../assert.ts";
import type { Ledger } from "../ledger/ledger.ts";
import { KEY, KEY_WORDS_MAX, RECORD_WORDS } from "../ledger/table.ts";
import { type Block, NO_BLOCK, STATE, TIER } from "../ledger/types.ts";
import { LIMITS } from "../limits.ts";
import { type Feed, METRIC } from "../observe/feed.ts";
import type { Links } from "./links.ts";

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
  /** Blocks can be read from NVMe for an upload, and whether the device of this slot is read now. */
  readonly readsDisk: ((slot: number) => boolean) | undefined;
  /** All blocks of earlier lives are in the ledger. */
  readonly settled: () => boolean;
  readonly fault: (error: unknown) => void;
  /** Monotonic milliseconds. */
  readonly now: () => number;
}

/** Where the blocks of a chunk are read, root side first. */
interface Sources {
  readonly blocks: Uint32Array;
  /** TIER of each. */
  readonly tiers: Uint8Array;
}

const OLD_PER_STEP = 64;
/** A waiting chunk: its last block, its namespace and that block's key, which tells whether the record is still its. */
const OFFER_WORDS = 2 + KEY_WORDS_MAX;

/** Chunks that wait, in order of their offers. */
class Offers {
  readonly #words = new Uint32Array(LIMITS.uploadQueueMax * OFFER_WORDS);
  #first = 0;
  length = 0;

  /** Namespace of the oldest. */
  get namespace(): number {
    assert(this.length > 0, "something waits");
    return this.#words[this.#first * OFFER_WORDS + 1]!;
  }

  /** False: the oldest had to go for it. */
  push(ledger: Ledger, block: Block): boolean {
    const room = this.length < LIMITS.uploadQueueMax;
    if (!room) this.#drop();
    const at = ((this.#first + this.length) % LIMITS.uploadQueueMax) * OFFER_WORDS;
    const key = block * RECORD_WORDS + KEY;
    this.#words[at] = block;
    this.#words[at + 1] = ledger.namespaceOf(block);
    this.#words.set(ledger.core.records.subarray(key, key + KEY_WORDS_MAX), at + 2);
    this.length++;
    return room;
  }

  /** The oldest; NO_BLOCK when its record is another block's by now. */
  take(ledger: Ledger): Block {
    const at = this.#first * OFFER_WORDS;
    const { namespace } = this;
    this.#drop();
    const block = this.#words[at]!;
    return ledger.find(namespace, this.#words, at + 2) === block ? block : NO_BLOCK;
  }

  clear(): void {
    this.length = 0;
  }

  #drop(): void {
    this.#first = (this.#first + 1) % LIMITS.uploadQueueMax;
    this.length--;
  }
}

export class Uploader {
  readonly #options: UploaderOptions;
  readonly #offers = new Offers();
  readonly #old = new Uint32Array(OLD_PER_STEP);
  readonly #stop = new AbortController();
  #running = 0;
  #startsLeft = 0;
  /** Chunks may stand on NVMe that nobody offers: those of an earlier life, and what was dropped or failed. */
  #lost: boolean;
  /** The record that the look through the table comes to next; undefined: none is under way. */
  #cursor: number | undefined;
  #scanAt: number;
  #pauseMs: number = LIMITS.uploadScanMs;
  /** Something was stored since the last look began. */
  #stored = true;
  /** The store takes no chunks: those that come wait. */
  #held = false;

  constructor(options: UploaderOptions) {
    this.#options = options;
    this.#lost = !options.offersOld;
    this.#scanAt = options.now();
  }

  get waiting(): number {
    return this.#offers.length + this.#running;
  }

  /** This block is on NVMe, or old: if it ends a chunk, the chunk is queued. */
  offer(block: Block): void {
    const { ledger, spaceOf, feed } = this.#options;
    const space = spaceOf(ledger.namespaceOf(block));
    if (space === undefined || ledger.depthOf(block) % space.chunkBlocks !== 0) return;
    if (this.#offers.push(ledger, block)) return;
    this.#lost = true;
    feed.addAt(METRIC.uploadedChunks, UPLOAD.DROPPED, 1);
  }

  /** Called by the coarse timer. */
  step(): void {
    if (this.#stop.signal.aborted) return;
    this.#watchStore();
    if (this.#options.offersOld) this.#offerOld();
    else this.#scan();
    this.#startsLeft = LIMITS.uploadStartsPerTick;
    this.#pump();
  }

  /** What failed before the store stopped taking chunks, or was dropped since, is looked for when it takes them again. */
  #watchStore(): void {
    const { health } = this.#options.storage;
    const held = health === "readOnly" || health === "fenced";
    if (this.#held && !held) this.lookAgain();
    this.#held = held;
  }

  #pump(): void {
    const { ledger, spaceOf, storage, feed } = this.#options;
    while (this.#offers.length > 0 && this.#running < LIMITS.remoteChunksInFlight) {
      if (this.#startsLeft === 0 || this.#stop.signal.aborted) return;
      const space = spaceOf(this.#offers.namespace);
      if (space !== undefined && !storage.mayUpload(space)) return;
      const block = this.#offers.take(ledger);
      this.#startsLeft--;
      if (space !== undefined && block !== NO_BLOCK) this.#start(block, space);
      else feed.addAt(METRIC.uploadedChunks, UPLOAD.DROPPED, 1);
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

  /** One slice of a look through the block table for chunks that are whole on NVMe. */
  #scan(): void {
    const { ledger, now, settled } = this.#options;
    const { core } = ledger;
    if (this.#cursor === undefined) {
      if (!this.#lost || now() < this.#scanAt || !settled()) return;
      this.#lost = false;
      this.#cursor = 0;
      const longer = Math.min(2 * this.#pauseMs, LIMITS.uploadScanMsMax);
      this.#pauseMs = this.#stored ? LIMITS.uploadScanMs : longer;
      this.#stored = false;
    }
    const size = core.table.touched;
    const end = Math.min(size, this.#cursor + LIMITS.uploadScanRecordsPerStep);
    while (this.#cursor < end && this.#offers.length < LIMITS.uploadScanWaitingMax) {
      const block = this.#cursor++;
      if (core.inUse(block) && core.stateOf(block, TIER.NVME) === STATE.VISIBLE) this.offer(block);
    }
    if (this.#cursor < size) return;
    this.#cursor = undefined;
    this.#scanAt = now() + this.#pauseMs;
  }

  /** What hindered uploads may have gone (a key has come): what was lost is looked for soon. */
  lookAgain(): void {
    this.#stored = true;
    this.#scanAt = Math.min(this.#scanAt, this.#options.now());
  }

  #start(block: Block, space: ChunkSpace): void {
    const { fault, feed } = this.#options;
    this.#running++;
    this.#upload(block, space)
      .then((outcome) => {
        if (outcome === UPLOAD.STORED) this.#stored = true;
        feed.addAt(METRIC.uploadedChunks, outcome, 1);
      })
      .catch(fault)
      .finally(() => {
        this.#running--;
        this.#pump();
      });
  }

  async #upload(last: Block, space: ChunkSpace): Promise<number> {
    const { ledger, storage, links, now } = this.#options;
    const sources = this.#sourcesOf(last, space.chunkBlocks);
    if (sources === undefined) return UPLOAD.DROPPED;
    const { blocks, tiers } = sources;
    blocks.forEach((block, index) => ledger.pin(block, tiers[index]!));
    try {
      let stored = false;
      const inDram = !tiers.includes(TIER.NVME);
      for (let shard = 0; shard < space.shards; shard++) {
        const began = now();
        const chunk = chunkEndingAt(ledger, blocks, space, shard);
        const limits = { deadlineMs: LIMITS.uploadDeadlineMs, signal: this.#stop.signal };
        const result = await storage.upload(chunk, itemsOf(ledger, sources, shard), limits);
        if (result.outcome === "failed") {
          // A name under quarantine is not to be had for long; the rest may do better later.
          if (result.fault !== "quarantined") this.#lost = true;
          return UPLOAD.FAILED;
        }
        if (result.outcome === "present") continue;
        stored = true;
        if (inDram) links.dramToRemote.ended(result.bytes, began);
      }
      return stored ? UPLOAD.STORED : UPLOAD.EXISTS;
    } finally {
      blocks.forEach((block, index) => ledger.unpin(block, tiers[index]!));
    }
  }

  /** Undefined when one of the blocks can be read nowhere here. */
  #sourcesOf(last: Block, count: number): Sources | undefined {
    const { ledger } = this.#options;
    const blocks = new Uint32Array(count);
    const tiers = new Uint8Array(count);
    let block = last;
    for (let index = count - 1; index >= 0; index--) {
      assert(block !== NO_BLOCK, "a chunk ends at a multiple of its length");
      if (ledger.stateOf(block, TIER.DRAM) === STATE.VISIBLE) tiers[index] = TIER.DRAM;
      else if (this.#readable(block)) tiers[index] = TIER.NVME;
      else return undefined;
      blocks[index] = block;
      block = ledger.parentOf(block);
    }
    return { blocks, tiers };
  }

  #readable(block: Block): boolean {
    const { ledger, readsDisk } = this.#options;
    if (readsDisk === undefined || ledger.stateOf(block, TIER.NVME) !== STATE.VISIBLE) return false;
    const { shards } = ledger.namespace(ledger.namespaceOf(block));
    for (let shard = 0; shard < shards; shard++) {
      if (!readsDisk(ledger.slotOf(block, TIER.NVME, shard))) return false;
    }
    return true;
  }

  /** Cancels what runs; resolves when nothing holds a block any more. */
  async stop(): Promise<void> {
    this.#stop.abort();
    this.#offers.clear();
    while (this.#running > 0) {
      await new Promise((resolve) => {
        setTimeout(resolve, 2);
      });
    }
  }
}

/** The chunk that these blocks of a chain are, root side first. */
function chunkEndingAt(
  ledger: Ledger,
  blocks: Uint32Array,
  space: ChunkSpace,
  shard: number,
): Chunk {
  const [first] = blocks;
  assert(first !== undefined, "a chunk has blocks");
  const firstDepth = ledger.depthOf(first);
  assert(firstDepth % space.chunkBlocks === 1 % space.chunkBlocks, "chunks begin behind chunks");
  const parent = ledger.parentOf(first);
  const parentKey = new Uint8Array(KEY_BYTES);
  if (parent !== NO_BLOCK) putKey(ledger, parent, parentKey, 0);
  const keys = new Uint8Array(blocks.length * KEY_BYTES);
  blocks.forEach((block, index) => putKey(ledger, block, keys, index));
  return { space, shard, firstDepth, keys, parentKey };
}

/** Writes the block's key, zero-padded, as number `index` of records of KEY_BYTES bytes. */
function putKey(ledger: Ledger, block: Block, into: Uint8Array, index: number): void {
  const { keyWords } = ledger.namespace(ledger.namespaceOf(block));
  const from = block * RECORD_WORDS + KEY;
  const words = new Uint32Array(into.buffer);
  words.set(ledger.core.records.subarray(from, from + keyWords), (index * KEY_BYTES) / 4);
}

function itemsOf(ledger: Ledger, { blocks, tiers }: Sources, shard: number): DramItems {
  const slots = new Uint32Array(blocks.length).fill(NO_DRAM_SLOT);
  const diskSlots = new Uint32Array(blocks.length);
  blocks.forEach((block, index) => {
    const into = tiers[index] === TIER.DRAM ? slots : diskSlots;
    into[index] = ledger.slotOf(block, tiers[index]!, shard);
  });
  return { slots, diskSlots, blocks };
}
