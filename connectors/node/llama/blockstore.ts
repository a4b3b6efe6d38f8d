/**
 * What an engine needs of a block cache, and nothing about sockets. The engine treats every rejection as a
 * miss, so an implementation may simply reject when its daemon is gone.
 */

/** Answer to a look-up. */
export interface LookupAnswer {
  /** Blocks of the longest readable prefix; 0 with `proof`. */
  readonly hitBlocks: number;
  /** Set when the cache wants to be shown first that this engine computes what its stored blocks hold. */
  readonly proof?: { readonly depth: number; readonly key: Uint8Array } | undefined;
}

/** What became of a STORE's blocks. */
export interface StoreAnswer {
  /** Newly visible because of this call. */
  readonly stored: number;
  /** Already there. */
  readonly present: number;
  /** Neither: no room, no parent, a failed copy. */
  readonly refused: number;
  /** Set when the chain ends above the first block offered: offer again from this depth. */
  readonly offerFrom?: number;
}

export interface BlockStore {
  /** Longest cached prefix of the chain `keys` (root first); holds it readable until `endRequest`. */
  lookup(requestId: number, keys: readonly Uint8Array[]): Promise<LookupAnswer>;
  /**
   * Copies the blocks `keys` (depths startDepth + 1 …) into `rows`, block after block.
   * Returns one flag per key; a block whose flag is false left undefined bytes.
   */
  load(
    requestId: number,
    startDepth: number,
    keys: readonly Uint8Array[],
    rows: Uint8Array,
  ): Promise<boolean[]>;
  /**
   * Offers whole blocks; `parentKey` is the key of depth `startDepth`, undefined at 0. Resolves once they are
   * visible.
   */
  store(
    requestId: number,
    startDepth: number,
    parentKey: Uint8Array | undefined,
    keys: readonly Uint8Array[],
    rows: Uint8Array,
  ): Promise<StoreAnswer>;
  /** Verdict on the block that a look-up asked to be proven. */
  prove(key: Uint8Array, ok: boolean): Promise<void>;
  endRequest(requestId: number): Promise<void>;
}
