/**
 * The remote tier by itself: the addon's copy threads, a DRAM arena, a staging region and a RemoteTier in this process,
 * without ledger or daemon. Half of the arena's blocks are sources of uploads, the other half targets of fetches; what
 * is exported, hashed, sent, received, verified and imported is what the daemon does.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { type Addon, COPY, EVENT, EVENT_WORDS, ITEM } from "../addon/binding.ts";
import { loadAddon } from "../addon/load.ts";
import { assert } from "../src/assert.ts";
import { Copies } from "../src/transfer/copies.ts";
import { StagingBatches } from "../src/transfer/staging-copies.ts";
import { chunkLayout } from "../tiers/remote/chunk.ts";
import { PRIORITY, RemoteTier } from "../tiers/remote/index.ts";
import type { ObjectStore } from "../tiers/remote/object-store.ts";
import {
  type Chunk,
  type ChunkSealer,
  type ChunkSpace,
  type DramItems,
  KEY_BYTES,
} from "../tiers/remote/types.ts";
import { XorShift } from "./ledger.ts";
import { ChainRecords, openArena, RIG_NAMESPACE, startAddon } from "./rig.ts";

const EVENTS = 4_096;
const DEADLINE_MS = 60_000;

export interface RemoteRigOptions {
  readonly blockBytes: number;
  readonly chunkBlocks: number;
  readonly chunks: number;
  readonly concurrency: number;
  readonly stagingBytes: number;
  /** With one, chunks are sealed by the keys of `tenant`. */
  readonly sealer?: ChunkSealer | undefined;
  readonly tenant?: string | undefined;
}

export class RemoteRig {
  readonly space: ChunkSpace;
  readonly tier: RemoteTier;
  /** What JS sees of the staging region. */
  readonly staging: Uint8Array;
  readonly #options: RemoteRigOptions;
  readonly #addon: Addon = loadAddon();
  readonly #events = new Uint32Array(EVENTS * EVENT_WORDS);
  readonly #statuses = new Uint8Array(65_536);
  readonly #copies = new Copies(this.#addon, () => performance.now());
  readonly #poolDirectory = mkdtempSync("/dev/shm/cairn-bench-remote-");
  readonly #records: ChainRecords;
  readonly #slots: Uint32Array;
  readonly #window: Uint32Array;
  readonly #windowRegion: number;
  readonly #arena: number;
  readonly #ends = new Map<object, (statuses: Uint8Array) => void>();
  #life = 0;

  /** deadlines and probes are those of a healthy store; a bench that needs them has failed anyway. */
  constructor(options: RemoteRigOptions, store: ObjectStore) {
    this.#options = options;
    const { blockBytes, chunkBlocks, chunks, concurrency, stagingBytes } = options;
    const blocks = chunkBlocks * chunks;
    const { tenant, sealer } = options;
    this.space = {
      namespace: RIG_NAMESPACE,
      chunkBlocks,
      payloadBytes: blockBytes,
      shards: 1,
      tenant,
    };
    const shared = { events: this.#events, statuses: this.#statuses };
    startAddon(this.#addon, { ...shared, onReady: () => this.#drain() });
    const { arena, slots } = openArena(this.#addon, this.#poolDirectory, blockBytes, 2 * blocks);
    this.#arena = arena;
    this.#slots = slots;
    this.#records = new ChainRecords(this.#addon, blocks);
    const window = this.#addon.regionCreate(blocks * blockBytes);
    this.#windowRegion = window.region;
    this.#window = new Uint32Array(this.#addon.clientMap(window.descriptor, window.sizeBytes));
    const region = this.#addon.regionCreate(stagingBytes);
    this.staging = new Uint8Array(this.#addon.clientMap(region.descriptor, region.sizeBytes));
    this.tier = new RemoteTier({
      store,
      staging: { bytes: this.staging },
      copies: new StagingBatches(this.#copies, this.#arena, region.region),
      sealer,
      deleteCorrupt: false,
      // Uploads take half of the transfers.
      transfersMax: 2 * concurrency,
      requestDeadlineMs: DEADLINE_MS,
      existence: { entriesMax: 65_536, presentMs: 3_600_000, absentMs: 5_000, probesMax: 64 },
      probeIntervalMs: 1_000,
      slowMsPerMiB: 10_000,
    });
  }

  get blocks(): number {
    return this.#options.chunkBlocks * this.#options.chunks;
  }

  get objectBytes(): number {
    return chunkLayout(this.space, 0).objectBytes;
  }

  /** Gives every source block a fresh key and content. */
  async refill(): Promise<void> {
    this.#life += 1;
    const words = this.#options.blockBytes / 4;
    for (let block = 0; block < this.blocks; block += 1) {
      this.#records.setKey(block, this.#life * 1_000_003 + block * 8);
      this.#pattern(block).fill(this.#window, block * words, (block + 1) * words);
    }
    const statuses = await this.#copy(COPY.STORE, this.#slots.subarray(0, this.blocks));
    assert(
      statuses.every((status) => status === ITEM.OK),
      "the arena is filled",
    );
  }

  async upload(index: number): Promise<void> {
    const result = await this.tier.upload(this.chunk(index), this.#items(index, 0), {
      deadlineMs: DEADLINE_MS,
    });
    if (result.outcome !== "stored") throw new Error(`upload: ${JSON.stringify(result)}`);
  }

  /** Into the target half of the arena; failed blocks. */
  async fetch(index: number): Promise<number> {
    const items = this.#items(index, this.blocks);
    const limits = { deadlineMs: DEADLINE_MS };
    const result = await this.tier.fetch(this.chunk(index), 0, items, PRIORITY.DEMAND, limits);
    return result.statuses.filter((status) => status !== ITEM.OK).length;
  }

  /** Loads all targets into a wiped window and compares: blocks that differ from what refill() wrote. */
  async wrong(): Promise<number> {
    this.#window.fill(0);
    const statuses = await this.#copy(COPY.LOAD, this.#slots.subarray(this.blocks));
    const words = this.#options.blockBytes / 4;
    let wrong = statuses.filter((status) => status !== ITEM.OK).length;
    for (let block = 0; block < this.blocks; block += 1) {
      const pattern = this.#pattern(block);
      if (!pattern.matches(this.#window, block * words, (block + 1) * words)) wrong += 1;
    }
    return wrong;
  }

  chunk(index: number): Chunk {
    const { chunkBlocks } = this.#options;
    const first = index * chunkBlocks;
    const keys = new Uint8Array(chunkBlocks * KEY_BYTES);
    for (let at = 0; at < chunkBlocks; at += 1)
      keys.set(this.#records.key(first + at), at * KEY_BYTES);
    const parentKey = first === 0 ? new Uint8Array(KEY_BYTES) : this.#records.key(first - 1);
    return { space: this.space, shard: 0, firstDepth: first + 1, keys, parentKey };
  }

  async close(): Promise<void> {
    await this.tier.close();
    this.#addon.stop();
    rmSync(this.#poolDirectory, { recursive: true, force: true });
  }

  #items(index: number, slotsFrom: number): DramItems {
    const { chunkBlocks } = this.#options;
    const first = index * chunkBlocks;
    return {
      slots: this.#slots.slice(slotsFrom + first, slotsFrom + first + chunkBlocks),
      blocks: Uint32Array.from({ length: chunkBlocks }, (_, at) => first + at),
    };
  }

  #pattern(block: number): XorShift {
    return new XorShift(this.#life * 65_537 + block + 1);
  }

  #copy(kind: number, slots: Uint32Array): Promise<Uint8Array> {
    const subject = {};
    const owner = {
      copied: (_ticket: unknown, statuses: Uint8Array, at: number): void => {
        this.#ends.get(subject)?.(statuses.slice(at, at + slots.length));
      },
    };
    this.#copies.begin(kind, owner, subject);
    for (const [block, slot] of slots.entries()) {
      this.#copies.add(slot, block * this.#options.blockBytes, block, 0, block);
    }
    return new Promise((resolve) => {
      this.#ends.set(subject, resolve);
      this.#copies.submit(this.#arena, this.#windowRegion, 0, 1, this.#options.blockBytes, 0);
    });
  }

  #drain(): void {
    const count = this.#addon.poll();
    for (let index = 0; index < count; index += 1) {
      const at = index * EVENT_WORDS;
      if (this.#events[at] !== EVENT.COPIED) continue;
      this.#copies.ended(this.#events[at + 1] ?? 0, this.#statuses, this.#events[at + 2] ?? 0);
    }
  }
}
