/** A DRAM tier in JS behind StagingCopies, and chains of blocks: what the tier's tests move. */
import { createHash } from "node:crypto";
import { DISK_HEADER_BYTES, ITEM } from "../../../addon/binding.ts";
import { RemoteTier } from "../../../tiers/remote/index.ts";
import type { ObjectStore } from "../../../tiers/remote/object-store.ts";
import {
  type Chunk,
  type ChunkSpace,
  type DramItems,
  KEY_BYTES,
  type RemoteTierOptions,
  type StagedRange,
  type StagingCopies,
} from "../../../tiers/remote/types.ts";

export const PAYLOAD_BYTES = 10_000;

export const SPACE: ChunkSpace = {
  namespace: Uint8Array.from({ length: 16 }, (_, at) => at + 1),
  chunkBlocks: 4,
  payloadBytes: PAYLOAD_BYTES,
  shards: 1,
};

/** Key of the block at this depth (from 1) of chain `seed`. */
export function keyOf(seed: number, depth: number): Uint8Array {
  return createHash("sha256").update(`${seed} ${depth}`).digest();
}

export function keysOf(seed: number, blocks: number): Uint8Array {
  return Buffer.concat(Array.from({ length: blocks }, (_, at) => keyOf(seed, at + 1)));
}

export function payloadOf(seed: number, depth: number, shard = 0): Uint8Array {
  const start = createHash("sha256").update(`payload ${seed} ${depth} ${shard}`).digest();
  return Uint8Array.from({ length: PAYLOAD_BYTES }, (_, at) => (start[at % 32] ?? 0) + (at >> 5));
}

export function chunkOf(seed: number, index: number, space = SPACE, shard = 0): Chunk {
  const first = index * space.chunkBlocks + 1;
  const keys = Array.from({ length: space.chunkBlocks }, (_, at) => keyOf(seed, first + at));
  return {
    space,
    shard,
    firstDepth: first,
    keys: Buffer.concat(keys),
    parentKey: first === 1 ? new Uint8Array(KEY_BYTES) : keyOf(seed, first - 1),
  };
}

interface Slot {
  readonly key: string;
  readonly payload: Uint8Array;
}

/** Slots and records by number; a record is a block's key. */
export class FakeDram implements StagingCopies {
  readonly slots = new Map<number, Slot>();
  readonly records: string[] = [];
  /** Copies in the staging memory right now. */
  running = 0;
  readonly #memory: Uint8Array;

  constructor(memory: Uint8Array) {
    this.#memory = memory;
  }

  /** Items for blocks [from, to) of a chunk; `stored`: their slots hold the payload. */
  items(seed: number, chunk: Chunk, from: number, to: number, stored: boolean): DramItems {
    const slots = new Uint32Array(to - from);
    const blocks = new Uint32Array(to - from);
    for (let at = 0; at < to - from; at += 1) {
      const depth = chunk.firstDepth + from + at;
      const key = hex(keyOf(seed, depth));
      blocks[at] = this.records.push(key) - 1;
      const slot = this.records.length + 1_000;
      slots[at] = slot;
      if (stored) this.slots.set(slot, { key, payload: payloadOf(seed, depth, chunk.shard) });
    }
    return { slots, blocks };
  }

  async exportBlocks(range: StagedRange, items: DramItems): Promise<Uint8Array> {
    await this.#pause();
    const statuses = new Uint8Array(items.slots.length);
    for (const [at, slot] of items.slots.entries()) {
      const held = this.slots.get(slot);
      if (held === undefined) {
        statuses[at] = ITEM.IDENTITY;
        continue;
      }
      const into = this.#block(range, at);
      into.fill(0, 0, DISK_HEADER_BYTES);
      into.set(Buffer.from(held.key, "hex"), 0);
      into.set(hash(held.payload), 32);
      into.set(held.payload, DISK_HEADER_BYTES);
    }
    this.running -= 1;
    return statuses;
  }

  async importBlocks(range: StagedRange, items: DramItems): Promise<Uint8Array> {
    await this.#pause();
    const statuses = items.slots.slice(0).map((slot, at) => {
      const from = this.#block(range, at);
      const key = hex(from.subarray(0, 32));
      if (key !== this.records[items.blocks[at] ?? -1]) return ITEM.IDENTITY;
      const payload = from.slice(DISK_HEADER_BYTES, DISK_HEADER_BYTES + range.payloadBytes);
      if (!hash(payload).equals(from.subarray(32, 64))) return ITEM.CORRUPT;
      this.slots.set(slot, { key, payload });
      return ITEM.OK;
    });
    this.running -= 1;
    return Uint8Array.from(statuses);
  }

  /** Whether the slots hold exactly these blocks. */
  holds(items: DramItems, seed: number, chunk: Chunk, from: number): boolean {
    return [...items.slots].every((slot, at) => {
      const wanted = payloadOf(seed, chunk.firstDepth + from + at, chunk.shard);
      return Buffer.compare(this.slots.get(slot)?.payload ?? new Uint8Array(), wanted) === 0;
    });
  }

  #block(range: StagedRange, at: number): Uint8Array {
    const offset = range.offsetBytes + at * range.strideBytes;
    return this.#memory.subarray(offset, offset + DISK_HEADER_BYTES + range.payloadBytes);
  }

  async #pause(): Promise<void> {
    this.running += 1;
    await new Promise<void>((resolve) => {
      setImmediate(resolve);
    });
  }
}

export interface TestTier {
  readonly tier: RemoteTier;
  readonly dram: FakeDram;
  readonly memory: Uint8Array;
  readonly lines: string[];
}

/** A tier of its own memory over `store`: one node. */
export function tierOver(store: ObjectStore, options: Partial<RemoteTierOptions> = {}): TestTier {
  const memory = new Uint8Array(1 << 20);
  const dram = new FakeDram(memory);
  const lines: string[] = [];
  const tier = new RemoteTier({
    store,
    staging: { bytes: memory },
    copies: dram,
    deleteCorrupt: false,
    transfersMax: 8,
    requestDeadlineMs: 10_000,
    existence: { entriesMax: 1_000, presentMs: 60_000, absentMs: 60_000, probesMax: 16 },
    probeIntervalMs: 20,
    slowMsPerMiB: 60_000,
    guard: { delayBaseMs: 1, delayMaxMs: 5, breakerOpenMs: 30 },
    log: (line) => lines.push(line),
    ...options,
  });
  return { tier, dram, memory, lines };
}

function hash(payload: Uint8Array): Buffer {
  return createHash("sha256").update(payload).digest();
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}
