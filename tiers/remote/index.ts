/**
 * The remote tier: chunks of blocks in a store that many nodes share.
 *
 * Bytes go DRAM slot → EXPORT → staging range → object body, and back. The staging range is the only buffer: the
 * addon and the store's transport both work in it. What comes back is worth nothing until IMPORT has checked each
 * block's identity and hash; an object that fails is counted, put under quarantine (and deleted if so configured)
 * and its blocks are misses. Nothing here throws for what a store does, and every call ends by its deadline.
 *
 * See README.md for the failure model.
 */
import { setMaxListeners } from "node:events";
import {
  DISK_VERSION_OFFSET,
  ITEM,
  SEAL_KEY_ID_BYTES,
  SEAL_KEY_ID_OFFSET,
  SEALED_FLAG,
} from "../../addon/binding.ts";
import { assert } from "../../src/assert.ts";
import { LIMITS } from "../../src/limits.ts";
import {
  assertChunk,
  type ChunkLayout,
  checkHeader,
  chunkLayout,
  chunkName,
  decodeHeader,
  type HeaderVerdict,
  encodeHeader,
  lastKeyOf,
} from "./chunk.ts";
import type { DeviceHealth } from "../tier.ts";
import { AskFirst, Existence } from "./existence.ts";
import { collectGarbage, type GarbageReport } from "./garbage.ts";
import { GuardedStore } from "./guarded-store.ts";
import { healthOf, Pace } from "./health.ts";
import type { CallLimits, Failure } from "./object-store.ts";
import { RemotePrefix } from "./remote-prefix.ts";
import { type StagingLease, StagingPool } from "./staging.ts";
import {
  type Chunk,
  type ChunkSpace,
  type DramItems,
  type FetchResult,
  NO_HINT,
  PRIORITY,
  type Priority,
  type RemoteHint,
  type RemoteSnapshot,
  type RemoteStorage,
  type RemoteTierOptions,
  type SealKey,
  type StagedRange,
  type UploadResult,
} from "./types.ts";

export type {
  Chunk,
  ChunkSealer,
  ChunkSpace,
  DramItems,
  FetchResult,
  Priority,
  RemoteSnapshot,
  RemoteStorage,
  RemoteTierOptions,
  SealKey,
  StagedRange,
  StagingCopies,
  UploadResult,
} from "./types.ts";
export { KEY_BYTES, PRIORITY } from "./types.ts";

/** Milliseconds a call has left. */
class Clock {
  readonly #end: number;
  readonly #now: () => number;
  readonly startedAt: number;

  constructor(limits: CallLimits, now: () => number) {
    this.#now = now;
    this.startedAt = now();
    this.#end = this.startedAt + limits.deadlineMs;
  }

  leftMs(atMost: number): number {
    return Math.max(1, Math.min(this.#end - this.#now(), atMost));
  }

  elapsedMs(): number {
    return this.#now() - this.startedAt;
  }
}

/** What a fetch has to know on its way. */
interface Fetching {
  readonly chunk: Chunk;
  readonly from: number;
  readonly items: DramItems;
  readonly name: string;
  readonly layout: ChunkLayout;
  readonly limits: CallLimits;
  readonly clock: Clock;
}

export class RemoteTier implements RemoteStorage {
  readonly #options: RemoteTierOptions;
  readonly #store: GuardedStore;
  readonly #staging: StagingPool;
  readonly #existence: Existence;
  readonly #prefix: RemotePrefix;
  /** Nobody waits for what runs in the background: an error of it must not end the process. */
  readonly #fault: (error: unknown) => void;
  readonly #askFirst = new AskFirst();
  readonly #overheadBytes: number;
  readonly #sealerName: string;
  readonly #now: () => number;
  readonly #getPace = new Pace();
  readonly #putPace = new Pace();
  readonly #stop = new AbortController();
  readonly #timers: NodeJS.Timeout[] = [];
  readonly #work = new Set<Promise<unknown>>();
  readonly #counts = {
    receivedBytes: 0,
    sentBytes: 0,
    fetchedBlocks: 0,
    failedBlocks: 0,
    corruptBlocks: 0,
    corruptObjects: 0,
    misplacedObjects: 0,
    sealKeyMissing: 0,
    unsealedObjects: 0,
    storedChunks: 0,
    presentChunks: 0,
    failedChunks: 0,
    collected: 0,
  };
  #collecting = false;

  constructor(options: RemoteTierOptions) {
    this.#options = options;
    // Every call in flight listens to it; the staging pool bounds how many those are.
    setMaxListeners(0, this.#stop.signal);
    this.#now = options.now ?? (() => performance.now());
    this.#store = new GuardedStore(options.store, {
      now: this.#now,
      log: options.log,
      ...options.guard,
    });
    this.#staging = new StagingPool(options.staging.bytes, options.transfersMax);
    this.#overheadBytes = options.sealer?.overheadBytes ?? 0;
    this.#sealerName = options.sealer?.name ?? "";
    this.#existence = new Existence(options.existence, (name) => this.#probe(name), this.#now);
    this.#fault = options.fault ?? ((error) => options.log?.(`remote: ${String(error)}`));
    this.#prefix = new RemotePrefix(this.#existence, this.#sealerName, this.#fault);
    this.#every(options.probeIntervalMs, () => this.#tick());
    const { garbage } = options;
    if (garbage !== undefined) this.#every(garbage.intervalMs, () => this.collect());
    else this.#every(LIMITS.remoteSweepMs, () => this.#sweep());
  }

  get description(): string {
    return this.#options.store.description;
  }

  get health(): DeviceHealth {
    const { breakerState, readOnly } = this.#store;
    const msPerMiB = Math.max(this.#getPace.msPerMiB, this.#putPace.msPerMiB);
    return healthOf(breakerState, readOnly, msPerMiB, this.#options.slowMsPerMiB);
  }

  mayUpload(space: ChunkSpace): boolean {
    const { health } = this;
    const { objectBytes } = chunkLayout(space, this.#overheadBytes);
    const takes = health === "ok" || health === "slow";
    return takes && this.#staging.free(objectBytes, PRIORITY.UPLOAD);
  }

  remotePrefix(
    space: ChunkSpace,
    keys: Uint8Array,
    keyBytes: number,
    localBlocks: number,
  ): RemoteHint {
    if (this.health === "fenced" || !this.#hasKey(space)) return NO_HINT;
    return this.#prefix.hint(space, keys, keyBytes, localBlocks);
  }

  async upload(chunk: Chunk, items: DramItems, limits: CallLimits): Promise<UploadResult> {
    assertChunk(chunk);
    assert(
      items.slots.length === chunk.space.chunkBlocks,
      "an upload has every block of its chunk",
    );
    const result = await this.#tracked(
      this.#within(limits, (own) => this.#upload(chunk, items, own)),
    );
    if (result.outcome === "stored") this.#counts.storedChunks += 1;
    else if (result.outcome === "present") this.#counts.presentChunks += 1;
    else this.#counts.failedChunks += 1;
    return result;
  }

  async fetch(
    chunk: Chunk,
    from: number,
    items: DramItems,
    priority: Priority,
    limits: CallLimits,
  ): Promise<FetchResult> {
    assertChunk(chunk);
    const count = items.slots.length;
    assert(count > 0 && from >= 0 && from + count <= chunk.space.chunkBlocks, "a range of blocks");
    assert(items.blocks.length === count, "each slot has its record");
    const name = chunkName(chunk.space, chunk.shard, lastKeyOf(chunk), this.#sealerName);
    const layout = chunkLayout(chunk.space, this.#overheadBytes);
    const clock = new Clock(limits, this.#now);
    const result = await this.#tracked(
      this.#within(limits, (own) =>
        this.#fetch({ chunk, from, items, name, layout, clock, limits: own }, priority),
      ),
    );
    const good = result.statuses.reduce((sum, status) => sum + (status === ITEM.OK ? 1 : 0), 0);
    this.#counts.fetchedBlocks += good;
    this.#counts.failedBlocks += count - good;
    return result;
  }

  /** One round of garbage collection; undefined when none is configured or one runs. */
  async collect(): Promise<GarbageReport | undefined> {
    const { garbage, log } = this.#options;
    if (garbage === undefined || this.#collecting || this.health === "fenced") return undefined;
    this.#collecting = true;
    try {
      const report = await collectGarbage({
        store: this.#store,
        options: garbage,
        nowMs: Date.now(),
        salt: `${Math.random()}`,
        limits: { deadlineMs: this.#options.requestDeadlineMs, signal: this.#stop.signal },
        deleted: (name) => this.#existence.learn(name, false),
      });
      this.#counts.collected += report.removed;
      if (report.removed > 0) log?.(`remote: ${report.removed} old objects removed`);
      return report;
    } finally {
      this.#collecting = false;
    }
  }

  snapshot(): RemoteSnapshot {
    const guard = this.#store.counters();
    return {
      ...this.#counts,
      description: this.description,
      health: this.health,
      requests: { ...guard.faults, ok: guard.succeeded },
      retries: guard.retries,
      retriesDenied: guard.retriesDenied,
      breakerOpened: guard.breakerOpened,
      readOnlyTurns: guard.readOnlyTurns,
      writeProbesFailed: guard.writeProbesFailed,
      existenceHits: this.#existence.hits,
      existenceMisses: this.#existence.misses,
      existenceEntries: this.#existence.entries,
      probesDropped: this.#existence.dropped + this.#prefix.dropped,
      quarantined: this.#existence.quarantined,
      stagingBytes: this.#staging.totalBytes,
      stagingUsedBytes: this.#staging.usedBytes,
      transfers: this.#staging.transfers,
      waiting: this.#staging.waiting,
      getBytesPerSecond: this.#getPace.bytesPerSecond,
      putBytesPerSecond: this.#putPace.bytesPerSecond,
      lastFault: this.#store.lastFault,
    };
  }

  /** Cancels what runs, waits for it, closes the store. After it the staging memory is the caller's again. */
  async close(): Promise<void> {
    for (const timer of this.#timers) clearInterval(timer);
    this.#stop.abort();
    await Promise.allSettled(this.#work);
    await this.#store.close();
  }

  async #upload(chunk: Chunk, items: DramItems, limits: CallLimits): Promise<UploadResult> {
    const name = chunkName(chunk.space, chunk.shard, lastKeyOf(chunk), this.#sealerName);
    const clock = new Clock(limits, this.#now);
    if (this.#existence.isQuarantined(name)) return { outcome: "failed", fault: "quarantined" };
    if (!this.#hasKey(chunk.space)) {
      this.#counts.sealKeyMissing += 1;
      return { outcome: "failed", fault: "sealing" };
    }
    if (await this.#isStored(name)) return { outcome: "present", bytes: 0 };
    // The PUT would be refused: nothing is copied for it.
    if (this.#store.readOnly) return { outcome: "failed", fault: "open" };
    const layout = chunkLayout(chunk.space, this.#overheadBytes);
    const wait = { ...limits, deadlineMs: clock.leftMs(limits.deadlineMs) };
    const lease = await this.#staging.acquire(layout.objectBytes, PRIORITY.UPLOAD, wait);
    if (!lease.ok) return { outcome: "failed", fault: lease.fault };
    let released: Promise<void> | undefined;
    try {
      const problem = await this.#fill(chunk, items, layout, lease.value, clock);
      if (problem !== undefined) return { outcome: "failed", fault: problem };
      const deadlineMs = clock.leftMs(this.#options.requestDeadlineMs);
      const began = this.#now();
      const put = await this.#store.put(name, lease.value.bytes, { ...limits, deadlineMs });
      if (!put.ok) {
        released = put.released;
        return { outcome: "failed", fault: put.fault };
      }
      this.#existence.learn(name, true);
      this.#askFirst.learn(put.value === "present");
      if (put.value === "present") return { outcome: "present", bytes: 0 };
      this.#putPace.add(layout.objectBytes, this.#now() - began);
      this.#counts.sentBytes += layout.objectBytes;
      return { outcome: "stored", bytes: layout.objectBytes };
    } finally {
      releaseAfter(lease.value, released);
    }
  }

  /** Known to be there, or found there where asking pays. False: the PUT will tell. */
  async #isStored(name: string): Promise<boolean> {
    const known = this.#existence.known(name);
    if (known !== undefined || !this.#askFirst.worthwhile()) return known === true;
    const found = (await this.#existence.resolve(name)) === true;
    if (found) this.#askFirst.learn(true);
    return found;
  }

  /** Lays the whole object down in the staging range. */
  async #fill(
    chunk: Chunk,
    items: DramItems,
    layout: ChunkLayout,
    lease: StagingLease,
    clock: Clock,
  ): Promise<"source" | "sealing" | undefined> {
    const { headerBytes, strideBytes } = layout;
    encodeHeader(chunk, this.#overheadBytes, lease.bytes);
    // Padding behind a block is part of the object: never what another chunk left there.
    const used = strideBytes - this.#overheadBytes;
    for (let at = headerBytes; at < layout.objectBytes; at += strideBytes) {
      lease.bytes.fill(0, at + used - PADDING_BYTES_MAX, at + strideBytes);
    }
    const seal = this.#options.sealer?.sealKey(chunk.space);
    if (seal === undefined && this.#options.sealer !== undefined) return "sealing";
    const range = this.#range(chunk, lease.offsetBytes + headerBytes, strideBytes, clock);
    const statuses = await this.#options.copies.exportBlocks({ ...range, seal }, items);
    assert(statuses.length === items.slots.length, "each item has a status");
    return statuses.every((status) => status === ITEM.OK) ? undefined : "source";
  }

  /** Whether chunks of the space can be stored and read: always where nothing is sealed. */
  #hasKey(space: ChunkSpace): boolean {
    const { sealer } = this.#options;
    return sealer === undefined || sealer.sealKey(space) !== undefined;
  }

  #range(chunk: Chunk, offsetBytes: number, strideBytes: number, clock: Clock): StagedRange {
    const { payloadBytes, shards } = chunk.space;
    const deadlineMs = clock.leftMs(this.#options.requestDeadlineMs);
    return { offsetBytes, strideBytes, payloadBytes, shard: chunk.shard, shards, deadlineMs };
  }

  async #fetch(fetching: Fetching, priority: Priority): Promise<FetchResult> {
    const { from, items, layout, limits, clock, name } = fetching;
    if (this.#existence.isQuarantined(name)) return this.#nothing(fetching, "quarantined");
    if (!this.#hasKey(fetching.chunk.space)) {
      this.#counts.sealKeyMissing += 1;
      return this.#nothing(fetching, "sealing");
    }
    if (this.#existence.known(name) === false) return this.#nothing(fetching, "missing");
    const headBytes = from === 0 ? layout.headerBytes : 0;
    const length = headBytes + items.slots.length * layout.strideBytes;
    const wait = { ...limits, deadlineMs: clock.leftMs(limits.deadlineMs) };
    const lease = await this.#staging.acquire(length, priority, wait);
    if (!lease.ok) return this.#nothing(fetching, lease.fault);
    let released: Promise<void> | undefined;
    try {
      const deadlineMs = clock.leftMs(this.#options.requestDeadlineMs);
      const at = from === 0 ? 0 : layout.headerBytes + from * layout.strideBytes;
      const began = this.#now();
      const get = await this.#store.get(name, at, lease.value.bytes, { ...limits, deadlineMs });
      if (!get.ok) {
        released = get.released;
        await this.#unread(name, get);
        return this.#nothing(fetching, get.fault);
      }
      this.#getPace.add(length, this.#now() - began);
      this.#counts.receivedBytes += length;
      return await this.#accept(fetching, lease.value, headBytes, get.value);
    } finally {
      releaseAfter(lease.value, released);
    }
  }

  /** Bytes have come: are they the chunk's? Then into DRAM. */
  async #accept(
    fetching: Fetching,
    lease: StagingLease,
    headBytes: number,
    objectBytes: number,
  ): Promise<FetchResult> {
    const { chunk, items, layout, clock, name } = fetching;
    const verdict =
      objectBytes === layout.objectBytes
        ? this.#checkHeader(fetching, lease, headBytes)
        : "corrupt";
    if (verdict === "asker")
      return { ...this.#nothing(fetching, "missing"), bytes: lease.bytes.length };
    if (verdict !== "ok") {
      this.#counts[verdict === "other" ? "misplacedObjects" : "corruptObjects"] += 1;
      await this.#quarantine(name);
      return { ...this.#nothing(fetching, "quarantined"), bytes: lease.bytes.length };
    }
    const seal = await this.#openKey(fetching, lease.bytes.subarray(headBytes));
    if (seal === "missing")
      return { ...this.#nothing(fetching, "sealing"), bytes: lease.bytes.length };
    if (seal === "unsealed")
      return { ...this.#nothing(fetching, "quarantined"), bytes: lease.bytes.length };
    const range = this.#range(chunk, lease.offsetBytes + headBytes, layout.strideBytes, clock);
    const statuses = await this.#options.copies.importBlocks({ ...range, seal }, items);
    assert(statuses.length === items.slots.length, "each item has a status");
    const bad = statuses.filter((one) => one === ITEM.CORRUPT || one === ITEM.IDENTITY).length;
    if (bad > 0) {
      this.#counts.corruptBlocks += bad;
      // Without its header an object of another chain looks like this, and the asker may be the one who is wrong.
      if (headBytes > 0 || statuses.includes(ITEM.CORRUPT)) await this.#quarantine(name);
    } else {
      this.#existence.learn(name, true);
    }
    const microseconds = Math.round(clock.elapsedMs() * 1_000);
    return { statuses, fault: undefined, bytes: lease.bytes.length, microseconds };
  }

  /** The key that the first block names: one key seals all of an object. Undefined where nothing is sealed. */
  async #openKey(
    { chunk, name }: Fetching,
    blocks: Uint8Array,
  ): Promise<SealKey | "missing" | "unsealed" | undefined> {
    const { sealer } = this.#options;
    if (sealer === undefined) return undefined;
    const version = new DataView(blocks.buffer, blocks.byteOffset).getUint32(
      DISK_VERSION_OFFSET,
      true,
    );
    if ((version & SEALED_FLAG) === 0) {
      this.#counts.unsealedObjects += 1;
      await this.#quarantine(name);
      return "unsealed";
    }
    const id = blocks.slice(SEAL_KEY_ID_OFFSET, SEAL_KEY_ID_OFFSET + SEAL_KEY_ID_BYTES);
    const key = sealer.openKey(chunk.space, id);
    if (key !== undefined) return key;
    this.#counts.sealKeyMissing += 1;
    // Not asked for again at once; others may well have the key.
    this.#existence.learn(name, false);
    return "missing";
  }

  /**
   * "asker": the object is what its name says, and the chain that was asked for is not: objects are named by their
   * last key alone, so a client may name true last keys under another depth or other keys.
   */
  #checkHeader(
    { chunk, name }: Fetching,
    lease: StagingLease,
    headBytes: number,
  ): HeaderVerdict | "asker" {
    if (headBytes === 0) return "ok";
    const scratch = new Uint8Array(headBytes);
    const verdict = checkHeader(lease.bytes, chunk, this.#overheadBytes, scratch);
    const found = verdict === "other" ? decodeHeader(lease.bytes)?.chunk : undefined;
    if (found === undefined) return verdict;
    const own = chunkName(found.space, found.shard, lastKeyOf(found), this.#sealerName);
    return own === name ? "asker" : verdict;
  }

  /** What a failed read says about the object itself. */
  async #unread(name: string, get: Failure): Promise<void> {
    if (get.fault === "missing") this.#existence.learn(name, false);
    if (get.fault !== "short") return;
    this.#counts.corruptObjects += 1;
    await this.#quarantine(name);
  }

  #nothing(fetching: Fetching, fault: FetchResult["fault"]): FetchResult {
    const statuses = new Uint8Array(fetching.items.slots.length).fill(ITEM.IO);
    const microseconds = Math.round(fetching.clock.elapsedMs() * 1_000);
    return { statuses, fault, bytes: 0, microseconds };
  }

  /** A bad object is never read again; if so configured, it makes room for a good one. */
  async #quarantine(name: string): Promise<void> {
    this.#existence.quarantine(name);
    this.#options.log?.(`remote: object ${name} failed its checks`);
    if (!this.#options.deleteCorrupt) return;
    const deadlineMs = this.#options.requestDeadlineMs;
    const removed = this.#store.delete(name, { deadlineMs, signal: this.#stop.signal });
    // Not awaited: whoever fetched has his answer already.
    this.#tracked(removed).then((outcome) => {
      if (outcome.ok) this.#existence.pardon(name);
    }, this.#fault);
  }

  async #probe(name: string): Promise<boolean | undefined> {
    const deadlineMs = this.#options.requestDeadlineMs;
    const head = await this.#store.head(name, { deadlineMs, signal: this.#stop.signal });
    if (head.ok) return true;
    return head.fault === "missing" ? false : undefined;
  }

  /** Where nothing is collected, what dead writers left is removed all the same. */
  #sweep(): Promise<unknown> {
    const limits = { deadlineMs: this.#options.requestDeadlineMs, signal: this.#stop.signal };
    return this.#store.sweep(Date.now() - LIMITS.remoteSweepMs, limits);
  }

  async #tick(): Promise<void> {
    this.#getPace.fade();
    this.#putPace.fade();
    const deadlineMs = this.#options.requestDeadlineMs;
    await this.#store.probe({ deadlineMs, signal: this.#stop.signal });
  }

  #every(milliseconds: number, work: () => Promise<unknown>): void {
    let running = false;
    const run = async (): Promise<void> => {
      if (running) return;
      running = true;
      try {
        await this.#tracked(work());
      } finally {
        running = false;
      }
    };
    this.#timers.push(setInterval(() => run().catch(this.#fault), milliseconds).unref());
  }

  /** Runs work under the caller's signal and the tier's own end. */
  async #within<T>(limits: CallLimits, work: (own: CallLimits) => Promise<T>): Promise<T> {
    // AbortSignal.any() would keep something of every call for as long as the tier lives.
    const abort = new AbortController();
    const onAbort = (): void => abort.abort();
    const sources = [this.#stop.signal, ...(limits.signal === undefined ? [] : [limits.signal])];
    for (const source of sources) {
      if (source.aborted) abort.abort();
      source.addEventListener("abort", onAbort, { once: true });
    }
    try {
      return await work({ deadlineMs: limits.deadlineMs, signal: abort.signal });
    } finally {
      for (const source of sources) source.removeEventListener("abort", onAbort);
    }
  }

  #tracked<T>(work: Promise<T>): Promise<T> {
    this.#work.add(work);
    const forget = (): void => {
      this.#work.delete(work);
    };
    work.then(forget, forget);
    return work;
  }
}

/** At most this much lies between the end of a payload and the next multiple of 64. */
const PADDING_BYTES_MAX = 64;

function releaseAfter(lease: StagingLease, released: Promise<void> | undefined): void {
  if (released === undefined) lease.release();
  else void released.then(() => lease.release());
}
