/** A window: rows of memory shared with the daemon. It outlives daemon lives; the region number does not. */
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
  /** The memfd; kept to register it again after a restart of the daemon. */
  readonly memfd: number;
  readonly bytes: Uint8Array;
  /** Region on the live connection, 0 while there is none. */
  region = 0;

  constructor(
    namespace: number,
    descriptor: NamespaceDescriptor,
    geometry: { blocks: number; strideBytes: number; offsetBytes: number; sizeBytes: number },
    memfd: number,
    buffer: ArrayBuffer,
  ) {
    this.namespace = namespace;
    this.descriptor = descriptor;
    this.blocks = geometry.blocks;
    this.strideBytes = geometry.strideBytes;
    this.offsetBytes = geometry.offsetBytes;
    this.sizeBytes = geometry.sizeBytes;
    this.memfd = memfd;
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
