/**
 * STORE and FILL: reserve first, answer, then copy. A STORE is acknowledged by its completion: the blocks
 * it counts are visible. A job's wanted positions are a chain in order, which gives the abort rule: when
 * the ledger gives up one of them, everything deeper in the job is given up with it.
 *
 * How the job learns of an abort that somebody else caused: the ledger reports blocks that are watched.
 * With one shard only an ancestor of the first wanted block can fail under us, so watching that one block
 * tells all; with several shards any other rank may fail any block, so all wanted blocks are watched.
 */
import { COPY, ITEM } from "../../addon/binding.ts";
import { assert } from "../assert.ts";
import { CairnError, ERRORS } from "../errors.ts";
import { NO_BLOCK, RESERVE, type ReserveResult, STATE, TIER } from "../ledger/types.ts";
import { METRIC } from "../observe/feed.ts";
import type { CopyOwner, CopyTicket } from "../transfer/copies.ts";
import { closeIfDone } from "./completion.ts";
import {
  admitJob,
  copyQueueFull,
  deadlineOf,
  type EngineContext,
  type InboundFrame,
  usableRegion,
} from "./context.ts";
import { type Job, JOB_KIND, POSITION } from "./jobs.ts";
import type { Lease } from "./leases.ts";
import type { Namespace } from "./namespaces.ts";
import { ITEM_ERROR_CODES } from "./op-load.ts";
import { noteLedgerFull, noteRefused, noteUnfilled } from "./not-stored.ts";
import { BODY } from "./outbound.ts";
import { FLAG, OP, STORE_BITS, STORE_FIXED_BYTES, STORE_REPLY_FIXED_BYTES } from "./protocol.ts";
import type { Region } from "./regions.ts";

export function store(context: EngineContext, frame: InboundFrame, owner: CopyOwner): void {
  const instance = frame.instance;
  const view = instance.view(frame.header.namespace);
  const { namespace } = view;
  if (view.blind) throw new CairnError("tooManyNamespaces", "no namespace was left to store into");
  const { count } = frame.header;
  const dataReady = frame.has(FLAG.DATA_READY);
  checkFrame(frame, namespace, dataReady);
  const at = frame.bodyWords;
  const region = usableRegion(frame.connection, frame.words[at + 1]!);
  if (region.view !== view) {
    throw new CairnError("layoutMismatch", "the region was registered for another namespace");
  }
  const lease = frame.id === 0 ? undefined : context.leases.require(instance, frame.id);
  if (lease !== undefined && lease.namespace !== namespace) {
    throw new CairnError("unknownLease", "the lease is of another namespace");
  }
  admitJob(context, frame.connection, count);
  const tag = frame.header.tag;
  const job = context.jobs.take(JOB_KIND.STORE, frame.connection, tag, count, frame.at);
  job.region = region;
  job.namespace = namespace;
  job.shard = frame.words[at + 3]! & 0xffff;
  const rowsAt = at + STORE_FIXED_BYTES / 4 + (count + 1) * namespace.keyWords;
  const keysAt = at + STORE_FIXED_BYTES / 4 + namespace.keyWords;
  const keys = { namespace, words: frame.words, at: keysAt, count };
  let result: ReserveResult;
  try {
    if (dataReady) takeRows(job, region, frame.words, rowsAt);
    result = reserve(context, frame, namespace, job);
  } catch (error) {
    for (let index = 0; index < count; index++) job.giveRow(index);
    context.jobs.recycle(job);
    const full = error instanceof CairnError && error.errorName === "ledgerFull";
    if (full) noteLedgerFull(context, keys);
    throw error;
  }
  noteRefused(context, keys);
  if (result.wanted > 0 && !view.proven && namespace.unprovenWriter !== instance.number) {
    namespace.unprovenWriter = namespace.unprovenWriter === 0 ? instance.number : -1;
  }
  follow(context, frame, namespace, lease, result);
  answer(context, frame, owner, job, result, dataReady);
}

/** @throws CairnError malformedFrame, tooManyKeys, partialBlock, shardOutOfRange */
function checkFrame(frame: InboundFrame, namespace: Namespace, dataReady: boolean): void {
  const { count } = frame.header;
  frame.expectCount(1);
  const perKey = namespace.keyBytes + (dataReady ? 4 : 0);
  frame.expectBody(STORE_FIXED_BYTES + namespace.keyBytes + count * perKey);
  const at = frame.bodyWords;
  const tokens = frame.words[at + 4]!;
  if (tokens !== count * namespace.descriptor.blockTokens) {
    throw new CairnError("partialBlock", `${tokens} tokens in ${count} blocks`, tokens);
  }
  const shard = frame.words[at + 3]! & 0xffff;
  if (shard >= namespace.shards) throw new CairnError("shardOutOfRange", `shard ${shard}`, shard);
}

function takeRows(job: Job, region: Region, words: Uint32Array, rowsAt: number): void {
  region.take(words, rowsAt, job.count, 1);
  for (let index = 0; index < job.count; index++) job.rows[index] = words[rowsAt + index]!;
}

function reserve(
  context: EngineContext,
  frame: InboundFrame,
  namespace: Namespace,
  job: Job,
): ReserveResult {
  const parentAt = frame.bodyWords + STORE_FIXED_BYTES / 4;
  return context.ledger.reserve(
    namespace.index,
    frame.words[frame.bodyWords]!,
    frame.words,
    parentAt,
    parentAt + namespace.keyWords,
    job.count,
    job.shard,
    context.statuses,
    job.blocks,
  );
}

/** Moves the lease along with what was stored, as far as the pin budget goes. */
function follow(
  context: EngineContext,
  frame: InboundFrame,
  namespace: Namespace,
  lease: Lease | undefined,
  result: ReserveResult,
): void {
  if (lease === undefined || result.deepest === NO_BLOCK || result.parentAbsent) return;
  let depth = frame.words[frame.bodyWords]!;
  for (let index = 0; index < frame.header.count; index++) {
    if (context.statuses[index]! <= RESERVE.WANTED) depth++;
  }
  const more = (depth - lease.depth) * namespace.blockBytes;
  if (frame.instance.pinnedBytes + more > context.settings.pinnedBytesMax) return;
  context.leases.follow(lease, result.deepest, depth);
}

/** Replies, then starts the copies of a dataReady STORE. */
function answer(
  context: EngineContext,
  frame: InboundFrame,
  owner: CopyOwner,
  job: Job,
  result: ReserveResult,
  dataReady: boolean,
): void {
  const { out, settings } = context;
  const { count } = job;
  countStatuses(context, count, result);
  const openJob = result.wanted + result.pending > 0;
  if (openJob) {
    const fallback = settings.storeFillMs;
    const deadlineMs = deadlineOf(frame.words[frame.bodyWords + 2]!, fallback);
    job.deadlineAt = frame.at + deadlineMs;
    job.fillAt = frame.at + Math.min(deadlineMs, fallback);
    context.jobs.enter(job);
    openPositions(context, job, dataReady);
  }
  out.bytes.set(context.statuses.subarray(0, count), BODY + STORE_REPLY_FIXED_BYTES);
  out.view.setUint32(BODY, result.wanted, true);
  out.view.setUint32(BODY + 4, result.pending, true);
  out.view.setUint32(BODY + 8, result.residentDepth, true);
  out.view.setUint32(BODY + 12, result.parentAbsent ? STORE_BITS.PARENT_ABSENT : 0, true);
  out.begin(OP.STORE, FLAG.REPLY, job.tag, job.number, count, frame.header.namespace);
  out.end(frame.connection.id, STORE_REPLY_FIXED_BYTES + count);
  if (!openJob) {
    for (let index = 0; index < count; index++) job.giveRow(index);
    context.jobs.recycle(job);
    return;
  }
  if (dataReady && result.wanted > 0) copyWanted(context, job, owner);
  closeIfDone(context, job);
}

function openPositions(context: EngineContext, job: Job, dataReady: boolean): void {
  const { namespace } = job;
  assert(namespace !== undefined, "a STORE has a namespace");
  for (let index = 0; index < job.count; index++) {
    const status = context.statuses[index]!;
    if (status === RESERVE.WANTED) {
      job.states[index] = POSITION.UNFILLED;
      job.unfilled++;
      if (namespace.shards > 1 || job.watchedPosition === -1) watch(context, job, index);
      if (job.watchedPosition === -1) job.watchedPosition = index;
      continue;
    }
    if (dataReady) job.giveRow(index);
    if (status !== RESERVE.PENDING) continue;
    job.states[index] = POSITION.WAITING;
    job.waiting++;
    watch(context, job, index);
  }
}

function watch(context: EngineContext, job: Job, position: number): void {
  const block = job.blocks[position]!;
  assert(block !== NO_BLOCK, "only a block with a record can be waited for");
  if (context.waiters.add(block, job, position)) context.ledger.watch(block);
}

/** Copies every unfilled position from the row it names. */
function copyWanted(context: EngineContext, job: Job, owner: CopyOwner): void {
  context.copies.begin(COPY.STORE, owner, job);
  for (let index = 0; index < job.count; index++) {
    if (job.states[index] === POSITION.UNFILLED) addCopy(context, job, index);
  }
  submitCopies(context, job);
}

function addCopy(context: EngineContext, job: Job, position: number): void {
  const { ledger } = context;
  const { region } = job;
  assert(region !== undefined, "a STORE has a region");
  const block = job.blocks[position]!;
  ledger.fillStart(block, TIER.DRAM, job.shard);
  const slot = ledger.slotOf(block, TIER.DRAM, job.shard);
  job.states[position] = POSITION.COPYING;
  job.unfilled--;
  context.copies.add(slot, region.rangeAt(job.rows[position]!), block, 0, position);
}

function submitCopies(context: EngineContext, job: Job): void {
  const { namespace, region } = job;
  assert(namespace !== undefined && region !== undefined, "a STORE has namespace and region");
  const left = Math.max(1, Math.ceil(job.deadlineAt - performance.now()));
  const batch = context.copies.submit(
    context.arena,
    region.id,
    job.shard,
    namespace.shards,
    namespace.rowBytes,
    left,
  );
  if (batch !== 0) job.batches.push(batch);
}

/** FILL: the client has gathered some or all wanted positions into rows of the STORE's region. */
export function fill(context: EngineContext, frame: InboundFrame, owner: CopyOwner): void {
  const { count } = frame.header;
  const { words } = frame;
  const job = frame.connection.jobs.get(frame.id);
  if (job === undefined || job.kind !== JOB_KIND.STORE || job.cancelled) {
    throw new CairnError("unknownJob", "no such STORE of this connection");
  }
  frame.expectCount(1);
  frame.expectBody(count * 8);
  const { region } = job;
  assert(region !== undefined, "a STORE has a region");
  const at = frame.bodyWords;
  for (let index = 0; index < count; index++) {
    const position = words[at + index * 2]!;
    if (position >= job.count || job.states[position] === POSITION.NONE) {
      throw new CairnError("malformedFrame", `position ${position} is not wanted`, position);
    }
  }
  if (context.copies.full(count)) throw copyQueueFull();
  region.take(words, at + 1, count, 2);
  context.copies.begin(COPY.STORE, owner, job);
  for (let index = 0; index < count; index++) {
    const position = words[at + index * 2]!;
    const row = words[at + index * 2 + 1]!;
    // Aborted meanwhile, or named twice: the row goes straight back.
    if (job.states[position] !== POSITION.UNFILLED) {
      region.give(row);
      continue;
    }
    job.rows[position] = row;
    addCopy(context, job, position);
  }
  submitCopies(context, job);
}

/** A STORE's batch ended. */
export function storeCopied(
  context: EngineContext,
  job: Job,
  ticket: CopyTicket,
  statuses: Uint8Array,
  at: number,
): void {
  const { ledger } = context;
  const rowBytes = job.namespace?.rowBytes ?? 0;
  const allWatched = (job.namespace?.shards ?? 1) > 1;
  for (let item = 0; item < ticket.count; item++) {
    const position = ticket.positions[item]!;
    const block = job.blocks[position]!;
    const status = statuses[at + item]!;
    job.giveRow(position);
    if (job.states[position] === POSITION.DRAINING) {
      ledger.fillEnd(block, TIER.DRAM, job.shard, false);
      job.fail(position, ERRORS.blockNotReadable.code);
      continue;
    }
    assert(job.states[position] === POSITION.COPYING, "a copied position was copying");
    if (status !== ITEM.OK) {
      failCopy(context, job, position, status);
      continue;
    }
    job.bytes += rowBytes;
    job.states[position] = POSITION.COPIED;
    job.waiting++;
    ledger.fillEnd(block, TIER.DRAM, job.shard, true); // May settle this position at once.
    if (job.states[position] !== POSITION.COPIED) continue;
    if (ledger.isVisible(block)) {
      job.waiting--;
      job.land(position);
    } else if (!allWatched && position !== job.watchedPosition) {
      watch(context, job, position);
    }
  }
}

function failCopy(context: EngineContext, job: Job, position: number, status: number): void {
  const code = ITEM_ERROR_CODES[status] ?? ERRORS.internal.code;
  if (status === ITEM.DEADLINE) context.feed.add(METRIC.deadlineMisses, 1);
  job.fail(position, code);
  context.ledger.fillEnd(job.blocks[position]!, TIER.DRAM, job.shard, false);
  abortAfter(context, job, position, code);
}

/** The ledger gave up `position`; in a chain it gave up everything deeper too. Safe inside ledger callbacks. */
function abortAfter(context: EngineContext, job: Job, position: number, code: number): void {
  if (job.namespace?.descriptor.chained !== true) return;
  for (let index = position + 1; index < job.count; index++) {
    const state = job.states[index];
    if (state === POSITION.UNFILLED) {
      job.unfilled--;
      job.fail(index, code);
    } else if (state === POSITION.COPYING) {
      job.states[index] = POSITION.DRAINING;
    } else if (isWaiting(state)) {
      job.waiting--;
      context.waiters.remove(job.blocks[index]!, job, index);
      job.fail(index, code);
    }
  }
}

/** The ledger says what became of a block that this position waits for. */
export function settlePosition(
  context: EngineContext,
  job: Job,
  position: number,
  visible: boolean,
): void {
  const state = job.states[position];
  if (isWaiting(state)) {
    job.waiting--;
    if (visible) job.land(position);
    else job.fail(position, ERRORS.blockNotReadable.code);
  } else if (!visible && state === POSITION.UNFILLED) {
    job.unfilled--;
    job.fail(position, ERRORS.blockNotReadable.code);
  } else if (!visible && state === POSITION.COPYING) {
    job.states[position] = POSITION.DRAINING;
  } else {
    return; // Already over for this job.
  }
  if (!visible) abortAfter(context, job, position, ERRORS.blockNotReadable.code);
  closeIfDone(context, job);
}

/** Gives up what was reserved and not filled, deepest first, so that each abort takes only itself. */
export function abortUnfilled(context: EngineContext, job: Job, code: number): void {
  for (let index = job.count - 1; index >= 0 && job.unfilled > 0; index--) {
    if (job.states[index] !== POSITION.UNFILLED) continue;
    job.unfilled--;
    job.fail(index, code);
    context.waiters.remove(job.blocks[index]!, job, index);
    noteUnfilled(context, job.blocks[index]!);
    context.ledger.fillAbort(job.blocks[index]!, TIER.DRAM, job.shard);
    abortAfter(context, job, index, code);
  }
}

/**
 * Stops waiting for others. What we landed stays with the ledger, except a block whose other shards never
 * came: it would hold our slot for ever, so it is given up (rule 1: such a shard fails at a deadline).
 */
export function abandonWaiting(context: EngineContext, job: Job, code: number): void {
  const { ledger, waiters } = context;
  for (let index = job.count - 1; index >= 0 && job.waiting > 0; index--) {
    const state = job.states[index];
    if (!isWaiting(state)) continue;
    const block = job.blocks[index]!;
    job.waiting--;
    waiters.remove(block, job, index);
    job.fail(index, code);
    if (state !== POSITION.COPIED || ledger.stateOf(block, TIER.DRAM) !== STATE.FILLING) continue;
    ledger.fillEnd(block, TIER.DRAM, job.shard, false);
  }
}

function isWaiting(state: number | undefined): boolean {
  return state === POSITION.WAITING || state === POSITION.COPIED;
}

/** Ends a STORE whose time is up. Copies that run end by their own deadline. */
export function expireStore(context: EngineContext, job: Job, now: number): void {
  const { feed } = context;
  if (job.unfilled > 0 && now >= job.fillAt) {
    feed.add(METRIC.fillTimeouts, job.unfilled);
    abortUnfilled(context, job, ERRORS.deadlineExceeded.code);
  }
  if (job.waiting > 0 && now >= job.deadlineAt) {
    feed.add(METRIC.deadlineMisses, 1);
    abandonWaiting(context, job, ERRORS.deadlineExceeded.code);
  }
  closeIfDone(context, job);
}

function countStatuses(context: EngineContext, count: number, result: ReserveResult): void {
  const { feed, statuses } = context;
  tally.fill(0);
  for (let index = 0; index < count; index++) tally[statuses[index]!]!++;
  feed.add(METRIC.stores, 1);
  for (let status = 0; status < tally.length; status++) {
    if (tally[status]! > 0) feed.addAt(METRIC.storeBlocks, status, tally[status]!);
  }
  feed.add(METRIC.fullRefusals, tally[RESERVE.FULL]!);
  if (result.parentAbsent) feed.add(METRIC.parentAbsent, 1);
  assert(result.wanted === tally[RESERVE.WANTED]!, "the ledger counts what it marks");
}

const tally = new Uint32Array(5);
