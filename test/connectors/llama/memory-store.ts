/** A block store in this process's memory, without checksums, so that tests can damage what it holds. */
import type {
  BlockStore,
  LookupAnswer,
  StoreAnswer,
} from "../../../connectors/node/llama/blockstore.ts";

export class MemoryStore implements BlockStore {
  readonly rowBytes: number;
  readonly blocks = new Map<string, Uint8Array>();
  readonly proofs: { readonly key: string; readonly ok: boolean }[] = [];
  readonly ended: number[] = [];
  /** Depth to be proven at the next look-up. */
  proofDepth = 0;
  /** Keys whose load fails. */
  readonly failing = new Set<string>();
  /** Set: every call rejects. */
  dead = false;
  /** Set: LOOKUP, LOAD and STORE never answer. */
  stalled = false;
  calls = 0;
  /** Set: a STORE below this depth finds its parent gone and is told to offer from here. */
  offerFrom: number | undefined;

  constructor(rowBytes: number) {
    this.rowBytes = rowBytes;
  }

  async #answer(): Promise<void> {
    this.calls += 1;
    this.#check();
    if (this.stalled) await new Promise(() => undefined);
  }

  #check(): void {
    if (this.dead) throw new Error("the daemon is gone");
  }

  async lookup(_requestId: number, keys: readonly Uint8Array[]): Promise<LookupAnswer> {
    await this.#answer();
    const missing = keys.findIndex((key) => !this.blocks.has(hex(key)));
    const hitBlocks = missing === -1 ? keys.length : missing;
    const key = keys[this.proofDepth - 1];
    if (this.proofDepth > 0 && key !== undefined && hitBlocks >= this.proofDepth) {
      return { hitBlocks: 0, proof: { depth: this.proofDepth, key } };
    }
    return { hitBlocks };
  }

  async load(
    _id: number,
    _startDepth: number,
    keys: readonly Uint8Array[],
    rows: Uint8Array,
  ): Promise<boolean[]> {
    await this.#answer();
    return keys.map((key, index) => {
      const block = this.blocks.get(hex(key));
      if (block === undefined || this.failing.has(hex(key))) return false;
      rows.set(block, index * this.rowBytes);
      return true;
    });
  }

  async store(
    _requestId: number,
    startDepth: number,
    _parentKey: Uint8Array | undefined,
    keys: readonly Uint8Array[],
    rows: Uint8Array,
  ): Promise<StoreAnswer> {
    await this.#answer();
    const { offerFrom } = this;
    if (offerFrom !== undefined && startDepth > offerFrom) {
      return { stored: 0, present: 0, refused: keys.length, offerFrom };
    }
    let stored = 0;
    for (const [index, key] of keys.entries()) {
      if (this.blocks.has(hex(key))) continue;
      this.blocks.set(hex(key), rows.slice(index * this.rowBytes, (index + 1) * this.rowBytes));
      stored++;
    }
    return { stored, present: keys.length - stored, refused: 0 };
  }

  async prove(key: Uint8Array, ok: boolean): Promise<void> {
    this.#check();
    this.proofs.push({ key: hex(key), ok });
    if (ok) this.proofDepth = 0;
  }

  async endRequest(requestId: number): Promise<void> {
    this.#check();
    this.ended.push(requestId);
  }
}

export function hex(key: Uint8Array): string {
  return Buffer.from(key).toString("hex");
}
