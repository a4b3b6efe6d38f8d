/**
 * A window: rows of memory shared with the daemon. It outlives daemon lives; the region number does not.
 *
 * When a connection ends while a job owns rows, the daemon may be frozen in the middle of a copy and write
 * on when it wakes up. Then the window gets new memory with the same contents, and the old is detached:
 * views taken before have length 0, so nobody reads a late write or fills a row that no daemon sees. Take
 * row() anew for each job.
 */
import { CairnError } from "../../src/errors.ts";
import type { NamespaceDescriptor } from "../../src/engine-api/protocol.ts";

export class Window {
  /** Position in the client's namespaces. */
  readonly namespace: number;
  readonly descriptor: NamespaceDescriptor;
  readonly blocks: number;
  readonly strideBytes: number;
  readonly offsetBytes: number;
  readonly sizeBytes: number;
  readonly hugePages: boolean;
  /** The memfd; kept to register it again after a restart of the daemon. */
  memfd: number;
  bytes: Uint8Array;
  /** A job may still own rows although nobody waits for it any more. */
  unsettled = false;
  /** Its layout was proved to a daemon, once for all its lives. */
  proven = false;
  /** Region on the live connection, 0 while there is none. */
  region = 0;

  constructor(
    namespace: number,
    descriptor: NamespaceDescriptor,
    geometry: { blocks: number; strideBytes: number; offsetBytes: number; sizeBytes: number },
    memfd: number,
    buffer: ArrayBuffer,
    hugePages = false,
  ) {
    this.namespace = namespace;
    this.descriptor = descriptor;
    this.blocks = geometry.blocks;
    this.strideBytes = geometry.strideBytes;
    this.offsetBytes = geometry.offsetBytes;
    this.sizeBytes = geometry.sizeBytes;
    this.memfd = memfd;
    this.hugePages = hugePages;
    this.bytes = new Uint8Array(buffer, 0, geometry.sizeBytes);
  }

  /** The bytes of one row. @throws CairnError outOfBounds */
  row(block: number): Uint8Array {
    if (!Number.isInteger(block) || block < 0 || block >= this.blocks) {
      throw new CairnError("outOfBounds", `row ${block} of ${this.blocks}`);
    }
    const at = this.offsetBytes + block * this.strideBytes;
    return this.bytes.subarray(at, at + this.descriptor.rowBytes);
  }

  /** The region number. @throws CairnError unavailable while no daemon knows the window */
  get live(): number {
    if (this.region === 0) throw new CairnError("unavailable", "the window is not registered");
    return this.region;
  }
}
