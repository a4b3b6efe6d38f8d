/**
 * Regions: engine memory shared with us as a sealed memfd. Block b of a region is the row at
 * offsetBytes + b · strideBytes. A row named by a job is the daemon's until that job's completion;
 * the busy map refuses a second job on it, so that two copies never race for one range.
 */
import { assert } from "../assert.ts";
import { CairnError } from "../errors.ts";
import type { RegisterRequest } from "./protocol.ts";
import type { Namespace } from "./namespaces.ts";
import type { NamespaceView } from "./sessions.ts";

export class Region {
  /** The addon's number; also the id on the wire. */
  readonly id: number;
  readonly view: NamespaceView;
  readonly sizeBytes: number;
  readonly offsetBytes: number;
  readonly strideBytes: number;
  readonly blocks: number;
  readonly seed: number;
  readonly #busy: Uint8Array;
  proven: boolean;
  jobs = 0;
  /** Tag of the UNREGISTER that waits for `jobs` to drain; −1 = none. */
  closingTag = -1;

  constructor(id: number, view: NamespaceView, request: RegisterRequest, seed: number) {
    this.id = id;
    this.view = view;
    this.sizeBytes = request.sizeBytes;
    this.offsetBytes = request.offsetBytes;
    this.strideBytes = request.strideBytes;
    this.blocks = request.blocks;
    this.seed = seed;
    this.proven = !request.proof;
    this.#busy = new Uint8Array(request.blocks);
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
    for (let index = 0; index < count; index++) {
      const block = words[at + index * step]!;
      if (block < blocks && busy[block] === 0) {
        busy[block] = 1;
        continue;
      }
      for (let undo = 0; undo < index; undo++) busy[words[at + undo * step]!] = 0;
      if (block >= blocks) throw new CairnError("outOfBounds", `row ${block} of ${blocks}`, index);
      throw new CairnError("rangeBusy", `row ${block}`, index);
    }
  }

  give(block: number): void {
    assert(this.#busy[block] === 1, "a row given back was taken");
    this.#busy[block] = 0;
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
