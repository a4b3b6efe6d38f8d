/**
 * LOOKUP: the longest readable prefix of a chain, leased. The one call that an engine's scheduler waits
 * for, so it makes nothing but the entry of a new request id, and that is pooled.
 */
import { CairnError } from "../errors.ts";
import { LIMITS } from "../limits.ts";
import { type Block, type LookupResult, NO_BLOCK } from "../ledger/types.ts";
import { METRIC } from "../observe/feed.ts";
import { gate, type GateInput, type GateVerdict } from "../policy/gate.ts";
import type { EngineContext, InboundFrame } from "./context.ts";
import type { Lease } from "./leases.ts";
import type { Namespace } from "./namespaces.ts";
import { BODY } from "./outbound.ts";
import { FLAG, LOOKUP_BITS, LOOKUP_FIXED_BYTES, LOOKUP_REPLY_BYTES, OP } from "./protocol.ts";
import type { Instance, NamespaceView } from "./sessions.ts";

/** Where the keys of this call stand: the frame, or the chain kept for the request. */
const keys: { words: Uint32Array; at: number; count: number } = {
  words: new Uint32Array(0),
  at: 0,
  count: 0,
};

export function lookup(context: EngineContext, frame: InboundFrame): void {
  const { leases, settings, feed } = context;
  const instance = frame.instance;
  const view = instance.view(frame.header.namespace);
  const { namespace } = view;
  frame.expectCount(0);
  frame.expectBody(LOOKUP_FIXED_BYTES + frame.header.count * namespace.keyBytes);
  const request = leases.request(frame.connection, frame.id, settings.leasesPerInstanceMax);
  instance.aliveAt = frame.at;
  try {
    gatherKeys(context, frame, namespace, request);
  } catch (error) {
    if (request.chainKeys === 0) leases.end(request);
    throw error;
  }
  const found = context.ledger.lookup(namespace.index, keys.words, keys.at, keys.count);
  const hit = view.blind ? 0 : found.depth;
  count(context, namespace, found, hit);
  const prefillTokensPerSecond = frame.words[frame.bodyWords + 1]!;
  const { view: out } = context.out;
  for (let at = 0; at < LOOKUP_REPLY_BYTES; at += 8) out.setFloat64(BODY + at, 0, true);
  let bits = found.sampled ? LOOKUP_BITS.SPLIT_SAMPLED : 0;
  const { words, at: keysAt } = keys;
  const whole = hit === 0 ? NO_BLOCK : found.block;
  let shared = leases.shared(instance, namespace, whole, hit, words, keysAt);
  let depth = clip(context, instance, namespace, hit, shared?.depth ?? 0);
  const block = depth === hit ? found.block : blockAt(context, namespace, depth);
  // A clipped depth was not probed: a client whose keys are no chain may have anything there.
  if (block === NO_BLOCK || !context.ledger.isVisible(block)) depth = 0;
  if (depth > 0 && depth < hit) {
    const clipped = leases.shared(instance, namespace, block, depth, words, keysAt);
    if (clipped !== shared) depth = 0;
    shared = clipped;
  }
  if (depth < hit) bits |= LOOKUP_BITS.CLIPPED;
  if (depth > 0 && !frame.has(FLAG.NO_LEASE)) {
    leases.open(request, namespace, block, depth, words, keysAt, shared);
    use(context, namespace, request, block, depth);
  }
  const leaseId = request.id;
  // Nothing to remember: the next call of this request id starts afresh.
  if (leaseId === 0 && request.chainKeys === 0) leases.end(request);
  if (depth > 0 && proofNeeded(context, instance, view)) {
    bits |= LOOKUP_BITS.PROOF_WANTED;
    writeProof(context, view, namespace, depth);
    feed.add(METRIC.unprovenLookups, 1);
    depth = 0;
  } else {
    bits |= writeHit(context, namespace, found, depth, prefillTokensPerSecond);
    if (hit < keys.count) bits |= writeRemotePrefix(context, namespace, hit);
  }
  out.setUint32(BODY + 12, settings.heartbeatMs * settings.heartbeatMisses, true);
  out.setUint32(BODY + 24, bits, true);
  context.out.begin(
    OP.LOOKUP,
    FLAG.REPLY,
    frame.header.tag,
    leaseId,
    depth,
    frame.header.namespace,
  );
  context.out.end(frame.connection.id, LOOKUP_REPLY_BYTES);
}

/** Counts the prefix as used; an unchained namespace holds and touches each block by itself. */
function use(
  context: EngineContext,
  namespace: Namespace,
  request: Lease,
  block: Block,
  depth: number,
): void {
  const { ledger } = context;
  if (namespace.descriptor.chained) {
    ledger.touch(block);
    return;
  }
  ledger.leaseHold(request.id, namespace.index, keys.words, keys.at, depth);
  ledger.touchKeys(namespace.index, keys.words, keys.at, depth);
}

/** Points `keys` at the whole chain of this call. */
function gatherKeys(
  context: EngineContext,
  frame: InboundFrame,
  namespace: Namespace,
  request: Lease,
): void {
  const held = frame.words[frame.bodyWords]!;
  const at = frame.bodyWords + LOOKUP_FIXED_BYTES / 4;
  const { count } = frame.header;
  if (held === 0 && !frame.has(FLAG.KEEP_CHAIN)) {
    if (request.chainKeys > 0) context.leases.forgetChain(request);
    keys.words = frame.words;
    keys.at = at;
    keys.count = count;
    return;
  }
  if (held > LIMITS.chainBytesPerInstanceMax) throw new CairnError("malformedFrame", "heldKeys");
  context.leases.extendChain(request, namespace.keyWords, held, frame.words, at, count);
  keys.words = request.chain;
  keys.at = 0;
  keys.count = request.chainKeys;
}

/** The hit that the instance's pin budget allows; its first `shared` blocks are pinned already. */
function clip(
  context: EngineContext,
  instance: Instance,
  namespace: Namespace,
  hit: number,
  shared: number,
): number {
  const room = context.settings.pinnedBytesMax - instance.pinnedBytes;
  if ((hit - shared) * namespace.blockBytes <= room || hit === shared) return hit;
  context.feed.add(METRIC.lookupClipped, 1);
  return shared + Math.max(0, Math.floor(room / namespace.blockBytes));
}

function blockAt(context: EngineContext, namespace: Namespace, depth: number): Block {
  if (depth === 0) return NO_BLOCK;
  const at = keys.at + (depth - 1) * namespace.keyWords;
  return context.ledger.find(namespace.index, keys.words, at);
}

/**
 * Somebody else's unproven blocks may be in the namespace and this instance has not yet compared one
 * with its own computation.
 */
export function proofNeeded(
  context: EngineContext,
  instance: Instance,
  view: NamespaceView,
): boolean {
  if (view.proven || !context.settings.proofRequired) return false;
  const { recovered, unprovenWriter } = view.namespace;
  return recovered || (unprovenWriter !== 0 && unprovenWriter !== instance.number);
}

function writeProof(
  context: EngineContext,
  asking: NamespaceView,
  namespace: Namespace,
  depth: number,
): void {
  const { view } = context.out;
  view.setUint32(BODY + 28, depth, true);
  const at = keys.at + (depth - 1) * namespace.keyWords;
  for (let word = 0; word < namespace.keyWords; word++) {
    view.setUint32(BODY + 32 + word * 4, keys.words[at + word]!, true);
  }
  asking.ask(context.out.bytes.subarray(BODY + 32, BODY + 32 + namespace.keyBytes));
}

/** What the remote tier has of the whole chain: a hint. Returns the bits of the reply that belong to it. */
function writeRemotePrefix(context: EngineContext, namespace: Namespace, hit: number): number {
  if (context.remotePrefix === undefined) return 0;
  const { buffer, byteOffset } = keys.words;
  const bytes = new Uint8Array(buffer, byteOffset + keys.at * 4, keys.count * namespace.keyBytes);
  const { blocks, asking } = context.remotePrefix(namespace.index, bytes, hit);
  context.out.view.setUint32(BODY + 8, blocks, true);
  return asking ? LOOKUP_BITS.REMOTE_ASKING : 0;
}

/** Bits of the reply that say why not all of it is worth loading. */
function writeHit(
  context: EngineContext,
  namespace: Namespace,
  found: LookupResult,
  depth: number,
  prefillTokensPerSecond: number,
): number {
  const { links, feed } = context;
  const { view } = context.out;
  const nvme = Math.min(found.nvmeBlocks, depth);
  view.setUint32(BODY, depth - nvme, true);
  view.setUint32(BODY + 4, nvme, true);
  gateInput.dramBlocks = depth - nvme;
  gateInput.nvmeBlocks = nvme;
  gateInput.blockBytes = namespace.blockBytes;
  gateInput.blockTokens = namespace.descriptor.blockTokens;
  gateInput.prefillTokensPerSecond = prefillTokensPerSecond;
  gateInput.dram = links.dramToWindow;
  gateInput.nvme = links.nvmeToWindow;
  gate(gateInput, gateVerdict);
  const estimate = Math.min(0xffff_ffff, Math.ceil(gateVerdict.estimatedMicroseconds));
  view.setUint32(BODY + 16, estimate, true);
  view.setUint32(BODY + 20, gateVerdict.worthBlocks, true);
  if (depth > 0) feed.addAt(METRIC.gateVerdicts, gateVerdict.reason, 1);
  return GATE_BITS[gateVerdict.reason]!;
}

/** Reused for every hit. */
const gateInput: GateInput = {
  dramBlocks: 0,
  nvmeBlocks: 0,
  blockBytes: 0,
  blockTokens: 0,
  prefillTokensPerSecond: 0,
  dram: { latencyMicroseconds: 0, bytesPerMicrosecond: 1 },
  nvme: { latencyMicroseconds: 0, bytesPerMicrosecond: 1 },
};
const gateVerdict: GateVerdict = { estimatedMicroseconds: 0, worthBlocks: 0, reason: 0 };
/** Bits of the reply, by GATE_REASON. */
const GATE_BITS = [0, 0, LOOKUP_BITS.NVME_SLOW, LOOKUP_BITS.SLOW] as const;

function count(
  context: EngineContext,
  namespace: Namespace,
  found: LookupResult,
  hit: number,
): void {
  const { feed } = context;
  const { blockTokens } = namespace.descriptor;
  feed.add(METRIC.lookups, 1);
  feed.add(METRIC.lookupBlocksRequested, keys.count);
  feed.add(METRIC.lookupTokensRequested, keys.count * blockTokens);
  feed.add(METRIC.lookupTokensHit, hit * blockTokens);
  feed.addAt(METRIC.lookupBlocksHit, 0, hit - Math.min(hit, found.nvmeBlocks));
  feed.addAt(METRIC.lookupBlocksHit, 1, Math.min(hit, found.nvmeBlocks));
  feed.add(METRIC.lookupProbes, found.probes);
}
