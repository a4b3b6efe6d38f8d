/**
 * Why a block is where it is, and why it is not elsewhere: everything the ledger and the movers know of one key, in
 * words. For a person who asks; nothing here is on a hot path.
 */
import type { BlockExplanation, BlockPlace } from "./edge/contract.ts";
import type { Namespace } from "./engine-api/namespaces.ts";
import { mayLeave } from "./ledger/ages.ts";
import type { Ledger } from "./ledger/ledger.ts";
import { FLAG_HOLE, LIVE, RECORD_WORDS } from "./ledger/table.ts";
import { type Block, NO_BLOCK, STATE, type State, TIER, TIER_NAMES } from "./ledger/types.ts";
import type { RefusalNote, Refusals } from "./transfer/refusals.ts";

const STATE_NAMES = Object.entries(STATE).map(([name]) => name.toLowerCase());

/** What explanations are made from; a tier that is absent is undefined. */
export interface ExplainSources {
  readonly ledger: Ledger;
  readonly namespaces: readonly Namespace[];
  /** Why keys were not stored (STORE_REFUSAL). */
  readonly notStored: Refusals;
  readonly nvme:
    | {
        readonly refusals: Refusals;
        readonly writeThrough: boolean;
        readonly directoryOf: (slot: number) => string;
      }
    | undefined;
  readonly remote:
    | { readonly description: string; readonly chunkBlocksOf: (namespace: number) => number }
    | undefined;
  /** Milliseconds of Unix time. */
  readonly nowMs: number;
}

/** By REFUSAL. */
const REFUSAL_WORDS = [
  "NVMe had no slot for it that could be freed, or an ancestor of it is not there",
  "its device took no writes",
  "its device's endurance budget was used up",
  "the device failed the write",
  "it was written, but sync or index commit failed",
  "its copy in DRAM proved wrong",
  "the daemon stopped",
  "its directory's table of namespaces is full",
  "it was evicted from DRAM before its turn came",
] as const;

/** By STORE_REFUSAL. */
const STORE_REFUSAL_WORDS = [
  "no slot could be freed: all is leased, being copied, or has children that are",
  "no record of the ledger could be freed (ledger.blocksMax)",
  "the block that it continues was not here",
  "its bytes did not come before the deadline, or the call was cancelled",
] as const;

const STATE_WORDS: Readonly<Record<State, string>> = {
  [STATE.ABSENT]: "no copy",
  [STATE.RESERVED]: "a slot is reserved, its bytes have not come yet",
  [STATE.FILLING]: "its bytes are being written now",
  [STATE.LANDED]: "complete, but its parent is not readable yet",
  [STATE.VISIBLE]: "complete and readable",
  [STATE.ORPHAN]: "complete, but its parent is gone: it leaves first",
  [STATE.DRAINING]: "given up; a copy job still holds the slot",
  [STATE.QUARANTINED]: "it proved wrong; readers still hold the slot",
};

/** What the rings say of one key. */
interface Notes {
  /** Why it was not copied down. */
  readonly copy: RefusalNote | undefined;
  /** Why it was not stored. */
  readonly store: RefusalNote | undefined;
}

/** Everything known of the blocks with this full key, over all namespaces. */
export function explainKey(sources: ExplainSources, key: Uint8Array): BlockExplanation[] {
  const { ledger, namespaces, nvme, notStored } = sources;
  const out: BlockExplanation[] = [];
  const words = new Uint32Array(8);
  new Uint8Array(words.buffer).set(key.subarray(0, 32));
  for (const namespace of namespaces) {
    if (namespace.keyBytes !== key.byteLength) continue;
    const block = ledger.find(namespace.index, words, 0);
    const { index, keyWords } = namespace;
    const notes: Notes = {
      copy: nvme?.refusals.find(index, words, 0, keyWords),
      store: notStored.find(index, words, 0, keyWords),
    };
    if (block !== NO_BLOCK) out.push(explainBlock(sources, namespace, block, notes));
    else if (notes.copy !== undefined || notes.store !== undefined) {
      out.push(explainGone(sources, namespace, key, notes));
    }
  }
  return out;
}

function explainBlock(
  sources: ExplainSources,
  namespace: Namespace,
  block: Block,
  notes: Notes,
): BlockExplanation {
  const { ledger } = sources;
  const { core } = ledger;
  const parent = core.parentOf(block);
  const hole = core.hasFlag(block, FLAG_HOLE);
  const children = core.records[block * RECORD_WORDS + LIVE] ?? 0;
  const copies = TIER_NAMES.flatMap((tier, index) => {
    const state = core.stateOf(block, index);
    if (state === STATE.ABSENT) return [];
    const name = STATE_NAMES[state] ?? "unknown";
    return [{ tier, state: name, pins: core.pinsOf(block, index), children }];
  });
  return {
    namespace: namespace.index,
    key: keyHex(ledger, block, namespace),
    parentKey: parent === NO_BLOCK ? null : keyHex(ledger, parent, namespace),
    depth: core.depthOf(block),
    flags: [...(hole ? ["hole"] : []), ...(core.isVisible(block) ? ["visible"] : [])],
    copies,
    leases: core.leasesOf(block),
    children,
    verdict: verdictOf(core.isVisible(block), hole, copies.length),
    places: [
      { tier: "dram", why: dramWords(sources, block, notes.store) },
      { tier: "nvme", why: nvmeWords(sources, block, notes.copy) },
      { tier: "remote", why: remoteWords(sources, namespace, core.depthOf(block)) },
    ],
  };
}

/** The ledger has forgotten it; the ring of refusals has not. */
function explainGone(
  sources: ExplainSources,
  namespace: Namespace,
  key: Uint8Array,
  { copy, store }: Notes,
): BlockExplanation {
  // Of two notes the newer one tells of its last time here.
  const refused = store !== undefined && (copy === undefined || store.atMs >= copy.atMs);
  const places: BlockPlace[] = refused
    ? [{ tier: "dram", why: storeWords(sources, store) }]
    : [{ tier: "dram", why: "no copy: it was stored here and has left since" }];
  if (!refused && copy !== undefined)
    places.push({ tier: "nvme", why: refusalWords(sources, copy) });
  return {
    namespace: namespace.index,
    key: Buffer.from(key).toString("hex"),
    parentKey: null,
    depth: 0,
    flags: [],
    copies: [],
    leases: 0,
    children: 0,
    verdict: refused
      ? "Not readable: it was offered and not stored."
      : "Not readable: its last copy left before it was copied down.",
    places,
  };
}

function verdictOf(visible: boolean, hole: boolean, copies: number): string {
  if (visible) return "Readable: all shards are complete and the parent is readable.";
  if (hole) return "Not readable: its last copy was lost while it had children.";
  if (copies === 0) return "Not readable: no copy; the record stands for its children.";
  return "Not readable: a shard is missing, or the parent is not readable.";
}

function dramWords(sources: ExplainSources, block: Block, note: RefusalNote | undefined): string {
  const { ledger } = sources;
  const { core } = ledger;
  const state = core.stateOf(block, TIER.DRAM);
  const below = core.stateOf(block, TIER.NVME) === STATE.VISIBLE;
  if (state === STATE.ABSENT) {
    if (!below && note !== undefined) return storeWords(sources, note);
    return below
      ? "no copy: it left by age, or was found on disk at the start; a load or PREFETCH promotes it"
      : STATE_WORDS[STATE.ABSENT];
  }
  if (state !== STATE.VISIBLE) return STATE_WORDS[state];
  return `${STATE_WORDS[state]}; ${stayWords(ledger, block, TIER.DRAM)}`;
}

/** What keeps a copy from being evicted. */
function stayWords(ledger: Ledger, block: Block, tier: number): string {
  const { core } = ledger;
  if (mayLeave(core, block, tier)) return "it may leave when its turn by age comes";
  const reasons = [
    ...(core.pinsOf(block, tier) > 0 ? [`${core.pinsOf(block, tier)} copy jobs use it`] : []),
    ...(core.leasesOf(block) > 0 ? [`${core.leasesOf(block)} leases hold it`] : []),
    ...((core.records[block * RECORD_WORDS + LIVE] ?? 0) > 0 ? ["children stand on it"] : []),
  ];
  return `it stays: ${reasons.length === 0 ? "a lease holds a descendant" : reasons.join(", ")}`;
}

function nvmeWords(sources: ExplainSources, block: Block, note: RefusalNote | undefined): string {
  const { ledger, nvme } = sources;
  if (nvme === undefined) return "this node has no NVMe tier";
  const state = ledger.stateOf(block, TIER.NVME);
  if (state === STATE.VISIBLE) {
    const directory = nvme.directoryOf(ledger.slotOf(block, TIER.NVME, 0));
    return `synced and indexed in ${directory}; ${stayWords(ledger, block, TIER.NVME)}`;
  }
  if (state !== STATE.ABSENT) return STATE_WORDS[state];
  if (note !== undefined) return refusalWords(sources, note);
  return nvme.writeThrough
    ? "not written yet: write-through takes blocks in the order in which they came"
    : "not written yet: write-back takes the oldest quarter of DRAM, and this block is younger";
}

function refusalWords({ nowMs }: ExplainSources, { reason, atMs }: RefusalNote): string {
  return `not written ${secondsSince(nowMs, atMs)} s ago: ${REFUSAL_WORDS[reason] ?? "unknown"}`;
}

function storeWords({ nowMs }: ExplainSources, { reason, atMs }: RefusalNote): string {
  return `not stored ${secondsSince(nowMs, atMs)} s ago: ${STORE_REFUSAL_WORDS[reason] ?? "unknown"}`;
}

function secondsSince(nowMs: number, atMs: number): number {
  return Math.max(0, Math.round((nowMs - atMs) / 1_000));
}

function remoteWords({ remote }: ExplainSources, namespace: Namespace, depth: number): string {
  if (remote === undefined) return "this node has no remote tier";
  if (!namespace.descriptor.chained) return "unchained namespaces are not kept remotely";
  const blocks = remote.chunkBlocksOf(namespace.index);
  const first = Math.floor((depth - 1) / blocks) * blocks + 1;
  const range = `depths ${first} to ${first + blocks - 1}`;
  return `${remote.description}: stored with its chunk (${range}) once all of it is here, never alone`;
}

function keyHex(ledger: Ledger, block: Block, namespace: Namespace): string {
  const { records } = ledger.core;
  const from = records.byteOffset + block * RECORD_WORDS * 4;
  return Buffer.from(records.buffer)
    .subarray(from, from + namespace.keyBytes)
    .toString("hex");
}
