/**
 * Warm restart from the indexes: entries become blocks again, in order of depth over all devices, before any DRAM
 * header is offered (recover.ts of the DRAM tier ends the recovery). Nothing is read from the segments: each read
 * checks header, generation and payload then.
 */
import { type Addon, SLOT_INDEX_BITS } from "../../addon/binding.ts";
import type { Core } from "../../src/ledger/core.ts";
import type { Ledger } from "../../src/ledger/ledger.ts";
import { WARM_MAX } from "../../src/ledger/table.ts";
import { type RecoveredBlock, TIER } from "../../src/ledger/types.ts";
import type { RecoveryReport } from "../tier.ts";
import type { Device } from "./device.ts";
import { PAGE_SLOTS, PAGES_PER_SEGMENT, SEGMENTS_MAX } from "./index-pages.ts";
import { type Marks, pageOfSlot } from "./marks.ts";
import { type IndexProbe, type Piece, RECORD, RECORD_WORDS } from "./probe.ts";
import { TWO_32 } from "../../src/words.ts";

const SLOT_INDEX_MASK = 2 ** SLOT_INDEX_BITS - 1;
const RESTORE_BATCH = 16_384;
const NO_SLAB = -1;

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

export interface NvmeRecoveryHooks {
  /** A namespace has at least one block back. */
  readonly found: (namespace: number) => void;
}

/** What of a device (device.ts) a recovery reads and writes. */
export interface RecoveryDevice {
  readonly disk: number;
  /** Its headers are read later instead. */
  readonly rebuildNeeded: boolean;
  readonly marks: Marks;
  readonly segments: {
    readonly list: Iterable<{
      readonly segment: number;
      readonly slab: number;
      readonly payloadBytes: number;
    }>;
  };
  /** Of namespaces.json; indexOf(row): the daemon's index of that namespace, −1 if it has none. */
  readonly rows: { readonly list: readonly unknown[]; indexOf(row: number): number };
  readonly counters: { entriesDropped: number; entriesHeld: number };
  readonly held: { close(core: Core): void };
  /** An entry of a row that is not bound stays in the index, unread. False: the row names nothing. */
  hold(slot: number, slab: number, row: number): boolean;
  dropPages(keys: readonly number[]): void;
  forgetPages(keys: readonly number[]): void;
  /** All entries were seen: rows that none of them names are for other namespaces. */
  vacateRows(used: (row: number) => boolean): void;
}

export type NvmeRecoveryReport = Omit<RecoveryReport, "clean">;

const offered: Mutable<RecoveredBlock> = {
  namespace: 0,
  depth: 0,
  shard: 0,
  slot: 0,
  generation: 0,
  lastAccess: 0,
};

/** Entries of one device, and where they go. */
class Source {
  readonly device: RecoveryDevice;
  readonly #probe: IndexProbe;
  readonly #addon: Pick<Addon, "diskRestore">;
  /** By segment: its slab and its class. */
  readonly #slabOf = new Int32Array(SEGMENTS_MAX).fill(NO_SLAB);
  readonly #payloadOf = new Uint32Array(SEGMENTS_MAX);
  /** By row of namespaces.json: the daemon's index. */
  readonly #namespaceOf: Int32Array;
  readonly #slots = new Uint32Array(RESTORE_BATCH);
  readonly #generations = new Uint32Array(RESTORE_BATCH);
  #restored = 0;
  #piece: Piece | undefined;
  #at = 0;
  /** By row of namespaces.json: some entry names it. */
  readonly #rowUsed: Uint8Array;
  entries = 0;
  recovered = 0;
  held = 0;

  constructor(device: RecoveryDevice, probe: IndexProbe, addon: Pick<Addon, "diskRestore">) {
    this.device = device;
    this.#probe = probe;
    this.#addon = addon;
    for (const { segment, slab, payloadBytes } of device.segments.list) {
      this.#slabOf[segment] = slab;
      this.#payloadOf[segment] = payloadBytes;
    }
    const { rows } = device;
    this.#rowUsed = new Uint8Array(rows.list.length);
    this.#namespaceOf = Int32Array.from(rows.list, (_row, index) => rows.indexOf(index));
  }

  /** Depth of the next entry, Infinity after the last. */
  get depth(): number {
    if (this.#piece === undefined || this.#at >= this.#piece.count) {
      this.#at = 0;
      this.#piece = this.#probe.next();
    }
    const piece = this.#piece;
    if (piece === undefined) return Number.POSITIVE_INFINITY;
    return piece.words[this.#at * RECORD_WORDS + RECORD.DEPTH]!;
  }

  /** Offers all entries of this depth. */
  offer(ledger: Ledger, depth: number, found: Uint8Array): void {
    while (this.depth === depth) {
      if (this.#at % WARM_MAX === 0) this.#warm(ledger);
      const at = this.#at * RECORD_WORDS;
      this.#at += 1;
      this.entries += 1;
      if (this.#take(ledger, this.#piece!.words, at, found)) this.recovered += 1;
    }
  }

  /** Nearly all entries are of one namespace, and a wrong guess costs a few reads. */
  #warm(ledger: Ledger): void {
    const { words, count } = this.#piece!;
    const at = this.#at * RECORD_WORDS;
    const namespace = this.#namespaceOf[words[at + RECORD.ROW]! & 0xffff] ?? -1;
    if (namespace < 0) return;
    const next = Math.min(WARM_MAX, count - this.#at);
    ledger.recoverSoon(namespace, words, at + RECORD.KEY, RECORD_WORDS, next);
  }

  #take(ledger: Ledger, words: Uint32Array, at: number, found: Uint8Array): boolean {
    const place = words[at + RECORD.SLOT]!;
    const segment = place >>> SLOT_INDEX_BITS;
    const index = place & SLOT_INDEX_MASK;
    const slab = this.#slabOf[segment]!;
    if (slab === NO_SLAB) {
      this.device.forgetPages([keyOfPlace(place)]);
      return false;
    }
    const slot = ((slab << SLOT_INDEX_BITS) | index) >>> 0;
    const row = words[at + RECORD.ROW]! & 0xffff;
    this.#rowUsed[row] = 1;
    const namespace = this.#namespaceOf[row] ?? -1;
    const sameClass = words[at + RECORD.PAYLOAD_BYTES] === this.#payloadOf[segment];
    if (namespace < 0 && sameClass && this.device.hold(slot, slab, row)) {
      this.held += 1;
      return false;
    }
    if (namespace < 0 || !sameClass || !this.#offer(ledger, words, at, slot, namespace)) {
      this.device.marks.setDirty(pageOfSlot(slot));
      return false;
    }
    found[namespace] = 1;
    this.device.marks.setDurable(slot, true);
    this.#slots[this.#restored] = slot;
    this.#generations[this.#restored] = offered.generation;
    this.#restored += 1;
    if (this.#restored === RESTORE_BATCH) this.restoreGenerations();
    return true;
  }

  #offer(ledger: Ledger, words: Uint32Array, at: number, slot: number, namespace: number): boolean {
    offered.namespace = namespace;
    offered.depth = words[at + RECORD.DEPTH]!;
    offered.shard = words[at + RECORD.ROW]! >>> 16;
    offered.slot = slot;
    offered.generation = words[at + RECORD.GENERATION]!;
    offered.lastAccess =
      words[at + RECORD.LAST_ACCESS_HIGH]! * TWO_32 + words[at + RECORD.LAST_ACCESS_LOW]!;
    const keyAt = at + RECORD.KEY;
    return ledger.recover(offered, TIER.NVME, words, keyAt, at + RECORD.PARENT_KEY);
  }

  /** After the last entry. */
  vacateRows(): void {
    this.device.vacateRows((row) => this.#rowUsed[row] === 1);
  }

  restoreGenerations(): void {
    if (this.#restored === 0) return;
    this.#addon.diskRestore(this.device.disk, this.#slots, this.#generations, this.#restored);
    this.#restored = 0;
  }
}

/**
 * Namespaces must have been restored into the ledger and bound to the tier before; the caller ends the recovery.
 * `probes` as readIndexes() returned them: one for each device, in order.
 */
export async function recoverNvme(
  devices: readonly RecoveryDevice[],
  probes: readonly IndexProbe[],
  addon: Pick<Addon, "diskRestore">,
  ledger: Ledger,
  hooks: NvmeRecoveryHooks,
): Promise<NvmeRecoveryReport> {
  const began = performance.now();
  const found = new Uint8Array(ledger.namespaceCount);
  const sources: Source[] = [];
  for (const [index, probe] of probes.entries()) {
    const device = devices[index]!;
    if (device.rebuildNeeded) continue; // Its headers are read once engines are served.
    for (const { slab, payloadBytes } of device.segments.list) {
      if (payloadBytes > 0) ledger.recoverSlab(TIER.NVME, slab, payloadBytes);
    }
    device.dropPages((await probe.verdict).badPages);
    sources.push(new Source(device, probe, addon));
  }
  merge(ledger, sources, found);
  let entries = 0;
  let recovered = 0;
  let unread = 0;
  for (const source of sources) {
    source.restoreGenerations();
    source.vacateRows();
    const { device, held } = source;
    device.counters.entriesDropped += source.entries - source.recovered - held;
    device.counters.entriesHeld += held;
    device.held.close(ledger.core);
    unread += held;
    entries += source.entries;
    recovered += source.recovered;
  }
  for (let index = 0; index < found.length; index++) if (found[index] === 1) hooks.found(index);
  return {
    reopened: sources.some((source) => source.entries > 0),
    headers: entries,
    recovered,
    dropped: entries - recovered - unread,
    milliseconds: performance.now() - began,
  };
}

/** A directory that is added takes its blocks from headers; of its index only what no file stands behind is looked at. */
export async function forgetGone(
  device: Pick<Device, "segments" | "forgetPages">,
  probe: IndexProbe,
): Promise<void> {
  for (let piece = probe.next(); piece !== undefined; piece = probe.next()) {
    for (let at = 0; at < piece.count; at++) {
      const place = piece.words[at * RECORD_WORDS + RECORD.SLOT]!;
      const segment = place >>> SLOT_INDEX_BITS;
      if (device.segments.ofSegment(segment) === undefined) device.forgetPages([keyOfPlace(place)]);
    }
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
  }
}

/** Key of the page that holds a place: segment << SLOT_INDEX_BITS | index. */
function keyOfPlace(place: number): number {
  const page = Math.floor((place & SLOT_INDEX_MASK) / PAGE_SLOTS);
  return (place >>> SLOT_INDEX_BITS) * PAGES_PER_SEGMENT + page;
}

/** Parents before children, also across devices. */
function merge(ledger: Ledger, sources: readonly Source[], found: Uint8Array): void {
  for (;;) {
    let depth = Number.POSITIVE_INFINITY;
    for (const source of sources) if (source.depth < depth) depth = source.depth;
    if (depth === Number.POSITIVE_INFINITY) return;
    for (const source of sources) source.offer(ledger, depth, found);
  }
}
