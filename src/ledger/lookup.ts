/**
 * Look-ups (rules 6, 8, 9): the longest visible prefix by galloping and bisection, because visibility is a
 * prefix property; cut at the shallowest hole that lies on the chain. The linear walk is the oracle, the
 * answer for unchained namespaces, and the way while more holes exist than the list takes.
 */
import type { Core, Namespace } from "./core.ts";
import * as R from "./table.ts";
import { NO_BLOCK, TIER, type Block, type LookupResult } from "./types.ts";

/** Keys whose index entries are read ahead of their records in the linear walk. */
const WALK_BATCH = 32;
const walkBlocks = new Uint32Array(WALK_BATCH);
const walkFlags = new Uint32Array(WALK_BATCH);
/** Only written: reading a record's first key word brings that cache line, too. */
const walkKeys = new Uint32Array(WALK_BATCH);

/** Blocks of the prefix that stand in DRAM, by flags of the deepest and samples. */
const DRAM_FLAG = R.FLAG_TIER << TIER.DRAM;

/** The visible block of keys[depth − 1], NO_BLOCK if that key is not visible at that depth. */
function probe(
  core: Core,
  namespace: Namespace,
  words: Uint32Array,
  at: number,
  depth: number,
): Block {
  const keyWords = namespace.keyWords;
  const block = core.table.find(namespace.index, keyWords, words, at + (depth - 1) * keyWords);
  if (block === NO_BLOCK) return NO_BLOCK;
  const base = block * R.RECORD_WORDS;
  if ((core.records[base + R.NAMESPACE]! & R.FLAG_VISIBLE) === 0) return NO_BLOCK;
  if (!namespace.chained) return block;
  return (core.records[base + R.DEPTH]! & R.DEPTH_MASK) === depth ? block : NO_BLOCK;
}

/** See LedgerApi.lookup. */
export function lookup(
  core: Core,
  namespace: Namespace,
  words: Uint32Array,
  at: number,
  count: number,
  result: LookupResult,
): void {
  if (!namespace.chained || core.holes.length > core.options.holesMax) {
    lookupLinear(core, namespace, words, at, count, result);
    return;
  }
  result.probes = 0;
  const limit = core.holes.length === 0 ? count : cutAtHoles(core, namespace, words, at, count);
  const depth = bisect(core, namespace, words, at, limit, result);
  result.depth = depth;
  split(core, namespace, words, at, result);
}

/** Invariant: every depth ≤ low is visible, depth high + 1 is not (or beyond the limit). */
function bisect(
  core: Core,
  namespace: Namespace,
  words: Uint32Array,
  at: number,
  limit: number,
  result: LookupResult,
): number {
  result.block = NO_BLOCK;
  if (limit === 0) return 0;
  // The commonest answers first: all of it, and none of it.
  let block = probe(core, namespace, words, at, limit);
  result.probes += 1;
  if (block !== NO_BLOCK) {
    result.block = block;
    return limit;
  }
  let low = 0;
  let high = limit - 1;
  let step = 1;
  while (low < high) {
    const next = Math.min(low + step, high);
    block = probe(core, namespace, words, at, next);
    result.probes += 1;
    if (block === NO_BLOCK) {
      high = next - 1;
      break;
    }
    result.block = block;
    low = next;
    step *= 2;
  }
  while (low < high) {
    const middle = (low + high + 1) >>> 1;
    block = probe(core, namespace, words, at, middle);
    result.probes += 1;
    if (block === NO_BLOCK) high = middle - 1;
    else {
      low = middle;
      result.block = block;
    }
  }
  return low;
}

/** Rule 8: depth − 1 of the shallowest listed hole that stands on this chain, else count. */
function cutAtHoles(
  core: Core,
  namespace: Namespace,
  words: Uint32Array,
  at: number,
  count: number,
): number {
  let limit = count;
  const records = core.records;
  for (const hole of core.holes) {
    const base = hole * R.RECORD_WORDS;
    const depth = records[base + R.DEPTH]! & R.DEPTH_MASK;
    if (depth > limit) continue;
    if ((records[base + R.NAMESPACE]! & R.NAMESPACE_MASK) !== namespace.index) continue;
    const keyAt = at + (depth - 1) * namespace.keyWords;
    let k = namespace.keyWords - 1;
    while (k >= 0 && records[base + k]! === words[keyAt + k]!) k -= 1;
    if (k < 0) limit = depth - 1;
  }
  return limit;
}

/**
 * Guesses the records of the next keys: those from `next` on, else the first entry of each probe sequence. All index entries are read
 * first, then all records, so that the cache misses of a batch overlap instead of following one another.
 */
function readAhead(
  core: Core,
  namespace: number,
  keyWords: number,
  words: Uint32Array,
  first: number,
  batch: number,
  next: Block,
): void {
  const { hash, mask, indexMask, seed, records, touched } = core.table;
  for (let i = 0, last = first + keyWords - 1; i < batch; i += 1, last += keyWords) {
    const block = next + i;
    const word = block * R.RECORD_WORDS + keyWords - 1;
    if (block < touched && records[word] === words[last]) {
      walkBlocks[i] = block;
      continue;
    }
    const code = R.hashKey(words[last]!, words[last - 1]!, namespace, seed);
    // An empty entry guesses record 0; its key decides.
    walkBlocks[i] = Math.max(0, (hash[code & mask]! & indexMask) - 1);
  }
  for (let i = 0; i < batch; i += 1) {
    const base = walkBlocks[i]! * R.RECORD_WORDS;
    walkKeys[i] = records[base]!;
    walkFlags[i] = records[base + R.NAMESPACE]!;
  }
}

/** Probes every key in order until one is not visible. */
export function lookupLinear(
  core: Core,
  namespace: Namespace,
  words: Uint32Array,
  at: number,
  count: number,
  result: LookupResult,
): void {
  const { keyWords, chained, index } = namespace;
  const records = core.records;
  let depth = 0;
  let dram = 0;
  let last = NO_BLOCK;
  // Chains that were stored in order lie in order: while the last batch did, the next record is tried first.
  let next = NO_BLOCK;
  walk: while (depth < count) {
    const batch = Math.min(WALK_BATCH, count - depth);
    const first = at + depth * keyWords;
    readAhead(core, index, keyWords, words, first, batch, next);
    const begin = depth;
    const before = last;
    for (let i = 0; i < batch; i += 1) {
      const keyAt = first + i * keyWords;
      let block = walkBlocks[i]!;
      let flags = walkFlags[i]!;
      const base = block * R.RECORD_WORDS;
      const hit =
        (flags & (R.NAMESPACE_MASK | R.IN_USE)) === (index | R.IN_USE) &&
        R.sameWords(records, base, words, keyAt, keyWords);
      if (!hit) {
        // The first entry of the probe sequence was another key's.
        block = core.table.find(index, keyWords, words, keyAt);
        if (block === NO_BLOCK) break walk;
        flags = records[block * R.RECORD_WORDS + R.NAMESPACE]!;
      }
      if ((flags & R.FLAG_VISIBLE) === 0) break walk;
      if (chained && core.depthOf(block) !== depth + 1) break walk;
      if ((flags & DRAM_FLAG) !== 0) dram += 1;
      last = block;
      depth += 1;
    }
    const inOrder = before === NO_BLOCK || last - before === depth - begin;
    next = inOrder ? last + 1 : NO_BLOCK;
  }
  result.depth = depth;
  result.block = last;
  result.dramBlocks = dram;
  result.nvmeBlocks = depth - dram;
  result.sampled = false;
  result.probes = depth < count ? depth + 1 : depth;
}

/**
 * How many blocks of the prefix stand in DRAM: exact when only one tier has any, or for short prefixes;
 * else sampled.
 */
function split(
  core: Core,
  namespace: Namespace,
  words: Uint32Array,
  at: number,
  result: LookupResult,
): void {
  const depth = result.depth;
  const samples = core.options.splitSamplesMax;
  const nvme = core.tiers[TIER.NVME]?.blocks ?? 0;
  result.sampled = false;
  let dram = depth;
  if (depth > 0 && nvme > 0) {
    const probes = Math.min(depth, samples);
    result.sampled = probes < depth;
    let found = 0;
    for (let i = 1; i <= probes; i += 1) {
      const block = probe(core, namespace, words, at, Math.floor((depth * i) / probes));
      if (block !== NO_BLOCK && core.hasFlag(block, DRAM_FLAG)) found += 1;
    }
    result.probes += probes;
    dram = Math.round((depth * found) / Math.max(1, probes));
  }
  result.dramBlocks = dram;
  result.nvmeBlocks = depth - dram;
}

/**
 * LOAD under a lease (rules 7, 9): walks up from the lease's block, compares each key, pins the copies it
 * will read. blocks[i] is NO_BLOCK where the key differs or nothing readable is there. Returns how many
 * were pinned.
 */
export function pinRange(
  core: Core,
  lease: number,
  startDepth: number,
  words: Uint32Array,
  at: number,
  count: number,
  blocks: Uint32Array,
  tiers: Uint8Array,
  pin: (core: Core, block: Block, tier: number) => void,
): number {
  blocks.fill(NO_BLOCK, 0, count);
  tiers.fill(0, 0, count);
  let block = core.leases.blockOf(lease);
  if (block === NO_BLOCK) return 0;
  const namespace = core.namespaceOf(block);
  const keyWords = namespace.keyWords;
  let pinned = 0;
  if (namespace.chained && core.depthOf(block) > startDepth + count) {
    block = core.leases.ancestor(core, lease, startDepth + count);
  }
  const deepest = namespace.chained ? core.depthOf(block) - startDepth : count;
  for (let i = deepest - 1; i >= 0; i -= 1) {
    const keyAt = at + i * keyWords;
    if (!namespace.chained) {
      block = core.table.find(namespace.index, keyWords, words, keyAt);
      if (block === NO_BLOCK || !core.leases.holds(lease, block)) continue;
    }
    if (core.isVisible(block) && sameKey(core, block, keyWords, words, keyAt)) {
      const tier = core.hasFlag(block, DRAM_FLAG) ? TIER.DRAM : TIER.NVME;
      pin(core, block, tier);
      blocks[i] = block;
      tiers[i] = tier;
      pinned += 1;
    }
    if (namespace.chained) block = core.parentOf(block);
  }
  return pinned;
}

function sameKey(
  core: Core,
  block: Block,
  keyWords: number,
  words: Uint32Array,
  at: number,
): boolean {
  const base = block * R.RECORD_WORDS;
  for (let k = 0; k < keyWords; k += 1) {
    if (core.records[base + k] !== words[at + k]) return false;
  }
  return true;
}
