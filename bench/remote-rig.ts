/**
 * The remote tier by itself: the addon's copy threads, a DRAM arena, a staging region and a RemoteTier in this process,
 * without ledger or daemon. Half of the arena's blocks are sources of uploads, the other half targets of fetches; what
 * is exported, hashed, sent, received, verified and imported is what the daemon does.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { type Addon, COPY, EVENT, EVENT_WORDS, ITEM, SLOT_INDEX_BITS } from "../addon/binding.ts";
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

const MIB = 2 ** 20;
const SLAB_BYTES = 64 * MIB;
const RECORD_WORDS = 20;
const KEY_WORDS = 8;
const PARENT_WORD = 8;
const DEPTH_WORD = 9;
const NAMESPACE_WORD = 10;
const NO_PARENT = 0xffff_ffff;
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
  readonly #records: Uint32Array;
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
    const namespace = new Uint8Array(16).fill(7);
    const { tenant, sealer } = options;
    this.space = { namespace, chunkBlocks, payloadBytes: blockBytes, shards: 1, tenant };
    this.#start();
    this.#records = new Uint32Array(new SharedArrayBuffer(blocks * RECORD_WORDS * 4));
    this.#slots = new Uint32Array(2 * blocks);
    this.#arena = this.#openArena(2 * blocks);
    this.#attach();
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
      for (let word = 0; word < KEY_WORDS; word += 1) {
        this.#records[block * RECORD_WORDS + word] = this.#life * 1_000_003 + block * 8 + word;
      }
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
    for (let at = 0; at < chunkBlocks; at += 1) keys.set(this.#key(first + at), at * KEY_BYTES);
    const parentKey = first === 0 ? new Uint8Array(KEY_BYTES) : this.#key(first - 1);
    return { space: this.space, shard: 0, firstDepth: first + 1, keys, parentKey };
  }

  async close(): Promise<void> {
    await this.tier.close();
    this.#addon.stop();
    rmSync(this.#poolDirectory, { recursive: true, force: true });
  }

  #key(block: number): Uint8Array {
    const at = block * RECORD_WORDS;
    return new Uint8Array(this.#records.slice(at, at + KEY_WORDS).buffer);
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

  #start(): void {
    this.#addon.start({
      copyThreads: 1,
      inbox: new ArrayBuffer(MIB),
      events: this.#events,
      statuses: this.#statuses,
      transport: {
        frameBodyBytesMax: 65_536,
        connectionsMax: 1,
        outboundBytesMax: MIB,
        frameTimeoutMs: 1_000,
        helloTimeoutMs: 1_000,
        magic: 0,
        version: 0,
      },
      onReady: () => this.#drain(),
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

  #openArena(slots: number): number {
    const { blockBytes } = this.#options;
    const perSlab = this.#addon.arenaSlotsPerSlab(SLAB_BYTES, blockBytes);
    assert(perSlab > 0, "a slab holds blocks of this length");
    const slabs = Math.ceil(slots / perSlab);
    const path = join(this.#poolDirectory, "pool");
    const options = { path, slabBytes: SLAB_BYTES, slabs, numaNode: -1, hugePages: false };
    const { arena } = this.#addon.arenaOpen(options);
    this.#addon.arenaPutNamespace(arena, 0, this.space.namespace, new Uint8Array(1));
    for (let slab = 0; slab < slabs; slab += 1) this.#addon.arenaAssign(arena, slab, blockBytes);
    for (let slot = 0; slot < slots; slot += 1) {
      const slab = Math.floor(slot / perSlab);
      this.#slots[slot] = slab * 2 ** SLOT_INDEX_BITS + (slot % perSlab);
    }
    return arena;
  }

  #attach(): void {
    for (let block = 0; block < this.blocks; block += 1) {
      const at = block * RECORD_WORDS;
      this.#records[at + PARENT_WORD] = block === 0 ? NO_PARENT : block - 1;
      this.#records[at + DEPTH_WORD] = block + 1;
    }
    this.#addon.attachLedger({
      records: this.#records,
      recordWords: RECORD_WORDS,
      keyWord: 0,
      parentWord: PARENT_WORD,
      depthWord: DEPTH_WORD,
      depthMask: 0xff_ffff,
      namespaceWord: NAMESPACE_WORD,
      namespaceMask: 0xffff,
    });
  }
}
