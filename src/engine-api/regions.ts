/**
 * Regions: engine memory shared with us as a sealed memfd. Block b of a region is the row at
 * offsetBytes + b · strideBytes. A row named by a job is the daemon's until that job's completion;
 * the busy map refuses a second job on it, so that two copies never race for one range. One memfd may be
 * registered several times (another namespace, another stride, another process of the engine): then a row
 * is also held against the busy rows of the other regions, by byte range.
 */
import { assert } from "../assert.ts";
import { CairnError } from "../errors.ts";
import type { RegisterRequest } from "./protocol.ts";
import type { Namespace } from "./namespaces.ts";
import type { Connection, NamespaceView } from "./sessions.ts";

/** A region whose REGISTER is answered once its pages are there. */
export interface Touching {
  readonly connection: Connection;
  readonly region: Region;
  readonly tag: number;
  /** Descriptor of a window that we made, to go out with the reply; −1 for none. */
  readonly descriptor: number;
  readonly missingBytes: number;
}

/** All windows of the daemon, by the memfd behind them. */
export class Windows {
  readonly touching = new Map<number, Touching>();
  /** Bytes that windows being touched will still take from the host. */
  missingBytes = 0;
  readonly #regions = new Map<string, Set<Region>>();

  /** Regions of this memfd. */
  aliases(file: string): number {
    return this.#regions.get(file)?.size ?? 0;
  }

  /** The set of regions of this memfd, the new one among them. */
  enter(file: string, region: Region): ReadonlySet<Region> {
    const regions = this.#regions.get(file) ?? new Set();
    regions.add(region);
    this.#regions.set(file, regions);
    return regions;
  }

  leave(file: string, region: Region): void {
    const regions = this.#regions.get(file);
    assert(regions?.has(region) === true, "a region leaves once");
    regions.delete(region);
    if (regions.size === 0) this.#regions.delete(file);
  }
}

export class Region {
  /** The addon's number; also the id on the wire. */
  readonly id: number;
  readonly view: NamespaceView;
  readonly sizeBytes: number;
  readonly offsetBytes: number;
  readonly strideBytes: number;
  readonly blocks: number;
  readonly seed: number;
  /** The client wants its layout proved. */
  readonly asked: boolean;
  readonly #rowBytes: number;
  readonly #file: string;
  readonly #windows: Windows;
  /** Regions of the same memfd, this one among them. */
  readonly #aliases: ReadonlySet<Region>;
  readonly #busy: Uint8Array;
  /** Rows that are busy. */
  #taken = 0;
  #removed = false;
  /** Its pages are there and REGISTER is answered. */
  ready = false;
  proven: boolean;
  jobs = 0;
  /** Tag of the UNREGISTER that waits for `jobs` to drain; −1 = none. */
  closingTag = -1;

  /** file: name of the memfd, the same for all its regions. */
  constructor(
    id: number,
    view: NamespaceView,
    request: RegisterRequest,
    seed: number,
    windows: Windows,
    file: string,
  ) {
    this.id = id;
    this.view = view;
    this.sizeBytes = request.sizeBytes;
    this.offsetBytes = request.offsetBytes;
    this.strideBytes = request.strideBytes;
    this.blocks = request.blocks;
    this.seed = seed;
    this.asked = request.proof;
    this.proven = !request.proof;
    this.#rowBytes = view.namespace.rowBytes;
    this.#busy = new Uint8Array(request.blocks);
    this.#file = file;
    this.#windows = windows;
    this.#aliases = windows.enter(file, this);
  }

  /** Byte offset of a row in the mapping. */
  rangeAt(block: number): number {
    assert(block < this.blocks, "a row lies in the region");
    return this.offsetBytes + block * this.strideBytes;
  }

  /**
   * Takes the rows named by `count` words at words[at], `step` words apart, all or none.
   * @throws CairnError outOfBounds, rangeBusy (a row named twice is busy too)
   */
  take(words: Uint32Array, at: number, count: number, step: number): void {
    const busy = this.#busy;
    const blocks = this.blocks;
    const alone = this.#aliases.size === 1;
    for (let index = 0; index < count; index++) {
      const block = words[at + index * step]!;
      if (block < blocks && busy[block] === 0 && (alone || this.isFree(block))) {
        busy[block] = 1;
        continue;
      }
      for (let undo = 0; undo < index; undo++) busy[words[at + undo * step]!] = 0;
      if (block >= blocks) throw new CairnError("outOfBounds", `row ${block} of ${blocks}`, index);
      throw new CairnError("rangeBusy", `row ${block}`, index);
    }
    this.#taken += count;
  }

  /** No job owns the row's bytes, under whatever region. */
  isFree(block: number): boolean {
    assert(block < this.blocks, "a row lies in the region");
    if (this.#busy[block] !== 0) return false;
    if (this.#aliases.size === 1) return true;
    const from = this.rangeAt(block);
    for (const other of this.#aliases) {
      if (other !== this && other.#overlaps(from, from + this.#rowBytes)) return false;
    }
    return true;
  }

  /** Some busy row has bytes in [from, to). */
  #overlaps(from: number, to: number): boolean {
    if (this.#taken === 0) return false;
    const first = Math.floor((from - this.#rowBytes - this.offsetBytes) / this.strideBytes) + 1;
    const end = Math.ceil((to - this.offsetBytes) / this.strideBytes);
    return this.#busy.subarray(Math.max(0, first), Math.max(0, end)).includes(1);
  }

  /** Unregistered, or its connection is gone; rows that copies still use stay busy for its aliases. */
  remove(): void {
    assert(!this.#removed, "a region is removed once");
    this.#removed = true;
    if (this.#taken === 0) this.#windows.leave(this.#file, this);
  }

  give(block: number): void {
    assert(this.#busy[block] === 1, "a row given back was taken");
    this.#busy[block] = 0;
    this.#taken--;
    if (this.#removed && this.#taken === 0) this.#windows.leave(this.#file, this);
  }
}

/**
 * Declared geometry against the namespace and the window.
 * @throws CairnError layoutMismatch, outOfBounds
 */
export function checkGeometry(request: RegisterRequest, namespace: Namespace): void {
  const { offsetBytes, strideBytes, blocks, sizeBytes } = request;
  if (strideBytes < namespace.rowBytes) {
    throw new CairnError(
      "layoutMismatch",
      `strideBytes ${strideBytes} is below rowBytes ${namespace.rowBytes}`,
    );
  }
  const end = offsetBytes + (blocks - 1) * strideBytes + namespace.rowBytes;
  if (!Number.isSafeInteger(end) || end > sizeBytes) {
    throw new CairnError("outOfBounds", `rows end at ${end}, the window at ${sizeBytes}`);
  }
}
