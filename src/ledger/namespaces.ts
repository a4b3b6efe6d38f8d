/**
 * Namespaces of the ledger: dense indexes that records, headers and the log carry. An index outlives its
 * namespace: once no record names it, it may be given to another one, which then finds nothing of the former.
 * Size classes follow: one that no namespace names and no slab serves is given a new payload, so that neither
 * indexes nor classes grow with the number of namespaces ever seen.
 */
import { assert } from "../assert.ts";
import { CairnError } from "../errors.ts";
import type { Core, Namespace, Tier } from "./core.ts";
import { AgeHeap } from "./heap.ts";
import { classBytes } from "./slots.ts";
import * as R from "./table.ts";
import type { NamespaceIndex, NamespaceOptions } from "./types.ts";

/** throws tooManyNamespaces. */
export function addNamespace(core: Core, options: NamespaceOptions): NamespaceIndex {
  if (core.namespaces.length >= core.options.namespacesMax) {
    throw new CairnError("tooManyNamespaces", `${core.options.namespacesMax} namespaces`);
  }
  const index = core.namespaces.length;
  core.namespaces.push(describe(core, index, options));
  return index;
}

/** Gives the index to another namespace; no record may name it (recordsOf is 0). */
export function replaceNamespace(
  core: Core,
  index: NamespaceIndex,
  options: NamespaceOptions,
): void {
  assert(index < core.namespaces.length, "only a namespace that exists can be replaced");
  assert(!core.recovering, "a block that is being recovered may name this namespace");
  assert(core.table.recordsOf[index] === 0, "records name this namespace");
  core.namespaces[index] = describe(core, index, options);
}

function describe(core: Core, index: NamespaceIndex, options: NamespaceOptions): Namespace {
  assert(options.keyWords >= 2 && options.keyWords <= R.KEY_WORDS_MAX, "keys have 2 to 8 words");
  assert(options.shards >= 1, "a block has at least one shard");
  assert(options.tenant >= 0 && options.tenant < core.options.tenantsMax, "no such tenant");
  const classOfTier = core.tiers.map((tier, t) => {
    if (tier === undefined) return 0;
    return openClass(tier, options.payloadBytes, () => spareClass(core, tier, t, index));
  });
  core.table.keyWords[index] = options.keyWords;
  return { ...options, index, classOfTier, classBytes: classBytes(options.payloadBytes) };
}

/** The class of a payload, made on first use in place of the one that `spare` names, if any (−1: none). */
export function openClass(tier: Tier, payloadBytes: number, spare: () => number): number {
  const { slots } = tier;
  const bytes = classBytes(payloadBytes);
  if (!slots.classes.some((entry) => entry.payloadBytes === bytes)) {
    const instead = spare();
    if (instead >= 0) slots.replaceClass(instead, payloadBytes);
  }
  const index = slots.classOf(payloadBytes);
  while (tier.heaps.length <= index) {
    tier.heaps.push([new AgeHeap()]);
    tier.orphans.push([new AgeHeap()]);
  }
  return index;
}

/** A class without slabs that no namespace but `index` names, −1 if there is none. */
function spareClass(core: Core, tier: Tier, t: number, index: NamespaceIndex): number {
  const named = new Set<number>();
  for (const namespace of core.namespaces) {
    if (namespace.index !== index) named.add(namespace.classOfTier[t]!);
  }
  return tier.slots.classes.findIndex((entry, i) => entry.slabs === 0 && !named.has(i));
}
