/**
 * What the rigs of the lower tiers (disk.ts, remote-rig.ts) stand on: the addon started without engines, an arena of DRAM
 * slots, and records of one chain of blocks in place of a ledger's.
 */
import { join } from "node:path";
import { type Addon, SLOT_INDEX_BITS } from "../addon/binding.ts";
import { assert } from "../src/assert.ts";

const MIB = 2 ** 20;
const SLAB_BYTES = 64 * MIB;
/** Words of a record, and where its parts stand; the key comes first. */
const RECORD_WORDS = 16;
const KEY_WORDS = 8;
const PARENT_WORD = 8;
const DEPTH_WORD = 9;
const NAMESPACE_WORD = 10;
const NO_PARENT = 0xffff_ffff;
/** Digest of the one namespace. */
export const RIG_NAMESPACE: Uint8Array = new Uint8Array(16).fill(7);

/** One copy thread, and a transport that nobody connects to. */
export function startAddon(
  addon: Addon,
  shared: Pick<Parameters<Addon["start"]>[0], "events" | "statuses" | "onReady">,
): void {
  addon.start({
    copyThreads: 1,
    inbox: new ArrayBuffer(MIB),
    transport: {
      frameBodyBytesMax: 65_536,
      connectionsMax: 1,
      outboundBytesMax: MIB,
      frameTimeoutMs: 1_000,
      helloTimeoutMs: 1_000,
      magic: 0,
      version: 0,
    },
    ...shared,
  });
}

/** An arena in `directory` for as many blocks of this length: its number and the numbers of its slots. */
export function openArena(
  addon: Addon,
  directory: string,
  blockBytes: number,
  count: number,
): { readonly arena: number; readonly slots: Uint32Array } {
  const perSlab = addon.arenaSlotsPerSlab(SLAB_BYTES, blockBytes);
  assert(perSlab > 0, "a slab holds blocks of this length");
  const slabs = Math.ceil(count / perSlab);
  const path = join(directory, "pool");
  const options = { path, slabBytes: SLAB_BYTES, slabs, numaNode: -1, hugePages: false };
  const { arena } = addon.arenaOpen(options);
  addon.arenaPutNamespace(arena, 0, RIG_NAMESPACE, new Uint8Array(1));
  for (let slab = 0; slab < slabs; slab += 1) addon.arenaAssign(arena, slab, blockBytes);
  const slots = Uint32Array.from({ length: count }, (_, slot) => {
    return Math.floor(slot / perSlab) * 2 ** SLOT_INDEX_BITS + (slot % perSlab);
  });
  return { arena, slots };
}

/** Records of one chain, attached in place of a ledger's; keys are 0 until setKey(). */
export class ChainRecords {
  readonly #words: Uint32Array;

  constructor(addon: Addon, blocks: number) {
    this.#words = new Uint32Array(new SharedArrayBuffer(blocks * RECORD_WORDS * 4));
    for (let block = 0; block < blocks; block += 1) {
      const at = block * RECORD_WORDS;
      this.#words[at + PARENT_WORD] = block === 0 ? NO_PARENT : block - 1;
      this.#words[at + DEPTH_WORD] = block + 1;
    }
    addon.attachLedger({
      records: this.#words,
      recordWords: RECORD_WORDS,
      keyWord: 0,
      parentWord: PARENT_WORD,
      depthWord: DEPTH_WORD,
      depthMask: 0xff_ffff,
      namespaceWord: NAMESPACE_WORD,
      namespaceMask: 0xffff,
    });
  }

  /** The key of a block becomes `first`, `first` + 1, …, one a word. */
  setKey(block: number, first: number): void {
    const at = block * RECORD_WORDS;
    for (let word = 0; word < KEY_WORDS; word += 1) this.#words[at + word] = first + word;
  }

  /** A copy of the block's key. */
  key(block: number): Uint8Array {
    const at = block * RECORD_WORDS;
    return new Uint8Array(this.#words.slice(at, at + KEY_WORDS).buffer);
  }
}
