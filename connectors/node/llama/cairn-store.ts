/**
 * The block store that is a cairn daemon: one client, one window of rows shared with it.
 *
 * The client is strict here: a fault rejects, the engine counts it and goes on without the cache. Each look-up
 * connects if need be, so a daemon that comes back is used again by the next request.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { assert } from "../../../src/assert.ts";
import { type NamespaceDescriptor, STORE_STATUS } from "../../../src/engine-api/protocol.ts";
import { CairnClient, type LookupAnswer as Found, type Window } from "../index.ts";
import type { BlockStore, LookupAnswer, StoreAnswer } from "./blockstore.ts";

export interface CairnStoreOptions {
  /** Path of the daemon's engine socket. */
  readonly socket: string;
  /** New for every life of the engine. */
  readonly engineId: string;
  readonly descriptor: NamespaceDescriptor;
  /** Rows of the window, hence blocks of one LOAD or STORE. Default 64. */
  readonly windowBlocks?: number;
  /** Longest wait for one answer. Default 2,000. */
  readonly timeoutMs?: number;
  /** Longest wait for blocks that another node stored in the remote tier. Default 0: only what is local counts. */
  readonly remoteWaitMs?: number;
}

const WINDOW_BLOCKS = 64;
const TIMEOUT_MS = 2_000;
const REMOTE_POLL_MS = 10;
/** The daemon asks its store in the background; by this share of the wait it knows. */
const REMOTE_HINT_SHARE = 0.25;

export class CairnStore implements BlockStore {
  readonly #client: CairnClient;
  readonly #windowBlocks: number;
  readonly #rowBytes: number;
  readonly #deadlineMs: number;
  readonly #remoteWaitMs: number;
  /** Request id → lease of the live daemon. */
  readonly #leases = new Map<number, number>();
  #window: Window | undefined;

  /** @throws CairnError addonMissing; a daemon need not be there. */
  constructor(options: CairnStoreOptions) {
    this.#windowBlocks = options.windowBlocks ?? WINDOW_BLOCKS;
    this.#rowBytes = options.descriptor.rowBytes;
    this.#deadlineMs = options.timeoutMs ?? TIMEOUT_MS;
    this.#remoteWaitMs = options.remoteWaitMs ?? 0;
    assert(this.#windowBlocks > 0 && this.#deadlineMs > 0, "a window of rows and time to use them");
    this.#client = new CairnClient({
      socket: options.socket,
      engineId: options.engineId,
      engine: { name: "llama.cpp", version: options.descriptor.engineBuild },
      namespaces: [options.descriptor],
      timeoutMs: this.#deadlineMs,
      strict: true,
      onEpoch: () => this.#leases.clear(),
    });
  }

  async lookup(requestId: number, keys: readonly Uint8Array[]): Promise<LookupAnswer> {
    await this.#client.connect();
    const whole = Buffer.concat(keys);
    // A request is announced by its chain, whether or not the first look-up finds anything.
    const announced = { keepChain: this.#remoteWaitMs > 0 };
    let answer = await this.#client.lookup(requestId, whole, announced);
    if (this.#remoteWaitMs > 0 && answer.hit < keys.length)
      answer = await this.#withRemote(requestId, whole, answer);
    if (answer.lease !== 0) this.#leases.set(requestId, answer.lease);
    return { hitBlocks: answer.hit, proof: answer.proof };
  }

  /**
   * Announces what only the remote tier has and looks up again when that has ended: whole, or as far as it could be
   * had. A hint that does not come while the store is asked, or within a share of the wait, is none.
   */
  async #withRemote(requestId: number, keys: Uint8Array, first: Found): Promise<Found> {
    const hintUntil = performance.now() + this.#remoteWaitMs * REMOTE_HINT_SHARE;
    let answer = first;
    while (answer.proof === undefined && answer.remotePrefixBlocks <= answer.hit) {
      if (!answer.remoteAsking || performance.now() >= hintUntil) return answer;
      await sleep(REMOTE_POLL_MS);
      answer = await this.#client.lookup(requestId, keys, { keepChain: true });
    }
    if (answer.proof !== undefined) return answer;
    await this.#client.prefetchRequest(requestId, keys, this.#remoteWaitMs);
    return this.#client.lookup(requestId, keys, { keepChain: true });
  }

  async load(
    requestId: number,
    startDepth: number,
    keys: readonly Uint8Array[],
    rows: Uint8Array,
  ): Promise<boolean[]> {
    assert(rows.byteLength === keys.length * this.#rowBytes, "one row for each key");
    const landed = keys.map(() => false);
    for (let from = 0; from < keys.length; from += this.#windowBlocks) {
      const part = keys.slice(from, from + this.#windowBlocks);
      const failed = await this.#loadPart(requestId, startDepth + from, part, (index, row) =>
        rows.set(row, (from + index) * this.#rowBytes),
      );
      for (let index = 0; index < part.length; index++) landed[from + index] = !failed.has(index);
      // What lies behind a missing block is of no use: the engine restores a prefix.
      if (failed.size > 0) break;
    }
    return landed;
  }

  /** Loads at most a window of blocks and hands out the rows that landed; returns the indexes that did not. */
  async #loadPart(
    requestId: number,
    startDepth: number,
    keys: readonly Uint8Array[],
    take: (index: number, row: Uint8Array) => void,
  ): Promise<Set<number>> {
    return await this.#withWindow(async (window) => {
      const result = await this.#client.load({
        lease: this.#leases.get(requestId) ?? 0,
        window,
        startDepth,
        keys: Buffer.concat(keys),
        rows: keys.map((_, index) => index),
        deadlineMs: this.#deadlineMs,
      });
      const failed = new Set(result.failed.map(({ index }) => index));
      for (let index = 0; index < keys.length; index++) {
        if (!failed.has(index)) take(index, window.row(index));
      }
      return failed;
    });
  }

  async store(
    requestId: number,
    startDepth: number,
    parentKey: Uint8Array | undefined,
    keys: readonly Uint8Array[],
    rows: Uint8Array,
  ): Promise<StoreAnswer> {
    await this.#client.connect();
    const total = { stored: 0, present: 0, refused: 0 };
    for (let from = 0; from < keys.length; from += this.#windowBlocks) {
      const part = keys.slice(from, from + this.#windowBlocks);
      const parent = from === 0 ? parentKey : keys[from - 1];
      const result = await this.#withWindow((window) =>
        this.#client.store({
          lease: this.#leases.get(requestId) ?? 0,
          window,
          startDepth: startDepth + from,
          ...(parent === undefined ? {} : { parentKey: parent }),
          keys: Buffer.concat(part),
          rows: part.map((_, index) => index),
          gather: (index, row) => {
            const at = (from + index) * this.#rowBytes;
            row.set(rows.subarray(at, at + this.#rowBytes));
          },
        }),
      );
      total.stored += result.landed;
      total.present += result.statuses.filter((status) => status === STORE_STATUS.PRESENT).length;
      total.refused = Math.min(keys.length, from + part.length) - total.stored - total.present;
      if (result.parentAbsent && from === 0) return { ...total, offerFrom: result.residentDepth };
      // A block needs its parent: past a refused one the rest would be refused too.
      if (total.refused > 0) break;
    }
    return { ...total, refused: keys.length - total.stored - total.present };
  }

  async prove(key: Uint8Array, ok: boolean): Promise<void> {
    await this.#client.prove(key, ok);
  }

  async endRequest(requestId: number): Promise<void> {
    this.#leases.delete(requestId);
    this.#client.endRequest(requestId);
  }

  close(): void {
    this.#client.close();
  }

  /**
   * Runs one job over the window. A job that ends without its completion may still be writing, so its window
   * is given up for a new one: no late byte lands in rows that are used again.
   */
  async #withWindow<T>(run: (window: Window) => Promise<T>): Promise<T> {
    const window =
      this.#window ?? (await this.#client.createWindow({ blocks: this.#windowBlocks }));
    this.#window = window;
    try {
      return await run(window);
    } catch (error) {
      this.#window = undefined;
      await this.#client.releaseWindow(window).catch(() => undefined);
      throw error;
    }
  }
}
