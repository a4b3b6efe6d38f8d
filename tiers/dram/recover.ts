/**
 * Warm restart: headers that survived become blocks again. The addon has verified every header's hash and
 * sorted them by depth, newest generation first; the ledger links each to its parent or drops it. Payload
 * is not read here: each LOAD verifies what it copies, so a torn payload is a miss then.
 */
import { SCAN_WORDS, SLOT_HEADER } from "../../addon/binding.ts";
import type { Ledger } from "../../src/ledger/ledger.ts";
import { WARM_MAX } from "../../src/ledger/table.ts";
import { type RecoveredBlock, TIER } from "../../src/ledger/types.ts";
import type { RecoveryReport } from "../tier.ts";
import type { DramTier } from "./index.ts";
import { TWO_32 } from "../../src/words.ts";

const HEADERS_PER_READ = 8_192;
/** The slot number stands behind the 32 words of a scanned header. */
const SLOT_WORD = 32;

/** Fields of RecoveredBlock, writable: one object is reused for every header. */
type Mutable<T> = { -readonly [K in keyof T]: T[K] };

export interface RecoveryHooks {
  /** A namespace has at least one block back. */
  readonly found: (namespace: number) => void;
}

/** Namespaces must have been restored into the ledger before. `scanned`: a scan that runs already. */
export async function recoverDram(
  tier: DramTier,
  ledger: Ledger,
  namespaces: number,
  hooks: RecoveryHooks,
  scanned?: Promise<void>,
): Promise<RecoveryReport> {
  const began = performance.now();
  const { reopened, clean } = tier;
  let headers = 0;
  let recovered = 0;
  if (reopened) {
    await (scanned ?? tier.scan());
    for (const slab of tier.addon.arenaSlabs(tier.arena)) {
      if (slab.payloadBytes > 0) ledger.recoverSlab(TIER.DRAM, slab.slab, slab.payloadBytes);
    }
    const words = new Uint32Array(HEADERS_PER_READ * SCAN_WORDS);
    const dropped = new Uint32Array(HEADERS_PER_READ);
    const found = new Uint8Array(namespaces);
    for (;;) {
      const count = tier.addon.arenaScanRead(tier.arena, words);
      if (count === 0) break;
      headers += count;
      const lost = takeBack(ledger, words, count, found, dropped);
      recovered += count - lost;
      if (lost > 0) tier.addon.arenaInvalidate(tier.arena, dropped, lost);
    }
    for (let index = 0; index < namespaces; index++) if (found[index] === 1) hooks.found(index);
  }
  ledger.recoverEnd(Date.now());
  return {
    reopened,
    clean,
    headers,
    recovered,
    dropped: headers - recovered,
    milliseconds: performance.now() - began,
  };
}

const offered: Mutable<RecoveredBlock> = {
  namespace: 0,
  depth: 0,
  shard: 0,
  slot: 0,
  generation: 0,
  lastAccess: 0,
};

/** Offers a batch of headers; slots of refused ones go to `dropped`. Returns how many were refused. */
function takeBack(
  ledger: Ledger,
  words: Uint32Array,
  count: number,
  found: Uint8Array,
  dropped: Uint32Array,
): number {
  let lost = 0;
  for (let index = 0; index < count; index++) {
    const at = index * SCAN_WORDS;
    const namespace = words[at + SLOT_HEADER.NAMESPACE]!;
    offered.namespace = namespace;
    offered.depth = words[at + SLOT_HEADER.DEPTH]!;
    offered.shard = words[at + SLOT_HEADER.SHARD]! & 0xffff;
    offered.slot = words[at + SLOT_WORD]!;
    offered.generation = words[at + SLOT_HEADER.GENERATION]!;
    offered.lastAccess =
      words[at + SLOT_HEADER.LAST_ACCESS_HIGH]! * TWO_32 + words[at + SLOT_HEADER.LAST_ACCESS_LOW]!;
    const keyAt = at + SLOT_HEADER.KEY;
    const parentAt = at + SLOT_HEADER.PARENT_KEY;
    const known = namespace < found.length;
    if (known && index % WARM_MAX === 0) {
      const next = Math.min(WARM_MAX, count - index);
      ledger.recoverSoon(namespace, words, keyAt, SCAN_WORDS, next);
    }
    if (known && ledger.recover(offered, TIER.DRAM, words, keyAt, parentAt)) found[namespace] = 1;
    else dropped[lost++] = offered.slot;
  }
  return lost;
}
