/**
 * The index of one device as its owner sees it: the LMDB store, the rows of namespaces.json, and what the index is
 * still owed beside the dirty pages of marks.ts: keys of segments that are gone. A segment's number is not given to
 * a new file while the index still holds keys of the old one, so no page is ever read as another segment's.
 */
import { readFileSync } from "node:fs";
import { assert } from "../../src/assert.ts";
import type { Core } from "../../src/ledger/core.ts";
import { LIMITS } from "../../src/limits.ts";
import { PAGES_PER_SEGMENT } from "./index-pages.ts";
import { IndexStore, type PageWrite, pagesBytes, setIndexAside } from "./index-store.ts";
import { indexOfPage, type Marks, slabOfPage } from "./marks.ts";
import { type NamespaceRow, Rows, setNamespacesAside, writeNamespaces } from "./namespaces.ts";
import type { Segments } from "./segments.ts";
import { namespacesOfPage, serialisePage } from "./serialise.ts";
import { withinTime } from "./tasks.ts";

/** Of the host's run; empty where the kernel tells none. */
const BOOT_ID = bootId();

export interface IndexParts {
  readonly directory: string;
  readonly marks: Marks;
  readonly segments: Segments;
  readonly core: () => Core;
  /** What the daemon knows under this index. */
  readonly namespace: (index: number) => NamespaceRow | undefined;
  /** Generations of these slots, as the disk has them. */
  readonly generations: (slots: Uint32Array, count: number, into: Uint32Array) => void;
  /** What stands beside the pages. */
  readonly meta: () => object;
}

export class DeviceIndex {
  readonly rows: Rows;
  readonly #parts: IndexParts;
  readonly #stale = new StaleKeys();
  /** namespaces.json could not be read. */
  readonly rowsDamaged: boolean;
  #distrusted = false;
  #otherBoot = false;
  #closed = false;
  #opening = false;
  #tried = false;
  #store: IndexStore | undefined;

  /** `rows`: undefined when they are damaged. */
  constructor(parts: IndexParts, rows: readonly NamespaceRow[] | undefined) {
    this.#parts = parts;
    this.rows = new Rows(rows ?? []);
    this.rowsDamaged = rows === undefined;
  }

  /** It takes pages. */
  get isOpen(): boolean {
    return this.#store !== undefined && !this.#store.broken;
  }

  /**
   * The first open() has ended, well or not: from now on it may be called again. Before, nobody knows whether what is
   * there can be mapped (index-store.ts).
   */
  get tried(): boolean {
    return this.#tried;
  }

  /** A commit failed: open() begins a new one. */
  get broken(): boolean {
    return this.#store?.broken === true;
  }

  get bytes(): number {
    return this.#store?.bytes ?? 0;
  }

  /** Keys of pages to be removed. */
  get staleKeys(): number {
    return this.#stale.size;
  }

  /** Pages of an earlier segment of this number may still stand in the index. */
  names(segment: number): boolean {
    return this.#stale.names(segment);
  }

  /**
   * The host has started anew since the index was written. A reader takes the newest commit, which may not have been
   * flushed; lmdb, which opens it first after a start of the host, goes back to the last one that was. What the ledger
   * took over is therefore written again.
   */
  get rewriteNeeded(): boolean {
    return this.#otherBoot;
  }

  /** `meta`: as the reader found it. */
  restoreMeta(meta: { readonly bootId?: string }): void {
    this.#otherBoot = meta.bootId !== BOOT_ID;
  }

  /** What is there cannot be believed: open() moves it aside, with the rows that it names if these are not good. */
  distrust(): void {
    assert(this.#store === undefined, "an open index is replaced, not moved aside");
    this.#distrusted = true;
  }

  /**
   * Whatever keeps the index from taking pages is ended: what is damaged goes aside, what is not open is opened, what
   * is broken begins anew. A child has read it before. What fails is tried again by the next call.
   * @throws LMDB's errors and errno names
   */
  async open(): Promise<void> {
    assert(!this.#opening, "one open at a time");
    this.#opening = true;
    try {
      await this.#open();
    } finally {
      this.#opening = false;
      this.#tried = true;
    }
  }

  async #open(): Promise<void> {
    const { directory } = this.#parts;
    // Loading takes a while, in which the device may be closed: its directory may be another daemon's by then.
    await import("lmdb");
    if (this.#closed) return;
    if (this.#distrusted) {
      // The index first: entries without their rows would be another namespace's.
      const stamp = new Date().toISOString().replaceAll(/[:.]/g, "-");
      setIndexAside(directory, stamp);
      if (this.rowsDamaged) setNamespacesAside(directory, stamp);
      this.#distrusted = false;
    }
    if (this.#store === undefined) await this.#keep(await IndexStore.open(directory));
    else if (this.#store.broken) {
      await this.#keep(await IndexStore.replace(directory));
      this.#stale.clear();
    }
  }

  /** The device may have been closed while its index was being opened. */
  async #keep(store: IndexStore): Promise<void> {
    if (this.#closed) await store.close();
    else this.#store = store;
  }

  /** There is room again, and want of it was what failed. */
  retry(): void {
    this.#store?.retry();
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#store?.close();
  }

  /** Pages in the index whose segment is gone: removed by the next commits. */
  forget(keys: Iterable<number>): void {
    for (const key of keys) this.#stale.add(key);
  }

  /** A segment is gone, of which so many pages may stand in the index. */
  forgetSegment(segment: number, pages: number): void {
    for (let page = 0; page < pages; page++) this.#stale.add(segment * PAGES_PER_SEGMENT + page);
  }

  /** Pages that did not verify are written afresh: their blocks are forgotten. */
  drop(keys: readonly number[]): void {
    const { segments, marks } = this.#parts;
    for (const key of keys) {
      const segment = segments.ofSegment(Math.floor(key / PAGES_PER_SEGMENT));
      if (segment === undefined) this.#stale.add(key);
      else marks.setDirty(segment.slab * PAGES_PER_SEGMENT + (key % PAGES_PER_SEGMENT));
    }
  }

  /** Rows of all namespaces that these pages name are on the disk. @throws errno names, OverdueError */
  async prepareRows(pages: readonly number[]): Promise<void> {
    const { marks, directory } = this.#parts;
    for (;;) {
      const core = this.#parts.core();
      for (const page of pages) {
        namespacesOfPage(core, marks, page, (index) => {
          assert(this.admit(index), "a block is refused before it is written for want of a row");
        });
      }
      if (!this.rows.unwritten) return;
      const { revision, list } = this.rows;
      await withinTime(writeNamespaces(directory, [...list]));
      this.rows.written(revision);
    }
  }

  /** Blocks of this namespace can be named by the index: it has a row, or gets one. False: the table is full. */
  admit(index: number): boolean {
    if (this.rows.rowOf(index) >= 0) return true;
    const row = this.#parts.namespace(index);
    assert(row !== undefined, "a namespace is made known before it has blocks");
    return this.rows.add(index, row);
  }

  /** Writes these pages as the ledger stands now, and removes stale ones; bytes written. @throws IndexWriteError */
  async writePages(pages: readonly number[]): Promise<number> {
    const store = this.#store;
    assert(store !== undefined, "the index is open while copies are committed");
    const stale = this.#stale.first(LIMITS.nvmeDirtyPagesPerCycle);
    const writes: PageWrite[] = stale.map((key) => ({ key, bytes: undefined }));
    const { segments, marks, generations, meta } = this.#parts;
    const core = this.#parts.core();
    const nowMs = Date.now();
    const rowOf = (namespace: number): number => this.rows.rowOf(namespace);
    for (const page of pages) {
      const segment = segments.at(slabOfPage(page));
      if (segment === undefined) continue;
      const key = segments.keyOf(segment.slab, indexOfPage(page));
      const place = { page, key, payloadBytes: segment.payloadBytes };
      const bytes = serialisePage(core, marks, place, rowOf, generations, nowMs);
      writes.push({ key, bytes });
    }
    await store.write(writes, { ...meta(), bootId: BOOT_ID });
    this.#stale.removed(stale);
    return pagesBytes(writes);
  }
}

function bootId(): string {
  try {
    return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  } catch {
    return "";
  }
}

/** Keys whose pages are to be removed, until a commit has removed them. */
export class StaleKeys {
  readonly #bySegment = new Map<number, Set<number>>();
  size = 0;

  names(segment: number): boolean {
    return this.#bySegment.has(segment);
  }

  add(key: number): void {
    const segment = Math.floor(key / PAGES_PER_SEGMENT);
    const keys = this.#bySegment.get(segment) ?? new Set<number>();
    this.#bySegment.set(segment, keys);
    this.size += keys.has(key) ? 0 : 1;
    keys.add(key);
  }

  /** Up to so many of them; they stay until removed(). */
  first(count: number): number[] {
    const first: number[] = [];
    for (const keys of this.#bySegment.values()) {
      for (const key of keys) {
        if (first.length === count) return first;
        first.push(key);
      }
    }
    return first;
  }

  removed(keys: readonly number[]): void {
    for (const key of keys) {
      const segment = Math.floor(key / PAGES_PER_SEGMENT);
      const of = this.#bySegment.get(segment);
      if (of?.delete(key) !== true) continue;
      this.size -= 1;
      if (of.size === 0) this.#bySegment.delete(segment);
    }
  }

  clear(): void {
    this.#bySegment.clear();
    this.size = 0;
  }
}
