/**
 * LOAD: copies leased blocks into rows of the engine's window. Pins what it copies from, so a slot cannot
 * be reused under a copy; verifies identity and hash on the way; a block that fails is named in the
 * completion and its row is undefined, every other byte is verified.
 *
 * Blocks in DRAM go by one copy batch. Blocks on NVMe are read straight into the window, in batches of a few
 * MiB, so that the first rows are there while later ones are still being read; on the way they are promoted
 * where the ledger grants a DRAM slot, root first, and else pass through. A copy that proves bad is dropped,
 * and if the block has another one, that is read once before the position fails.
 */
import { COPY, DISK, ITEM, ITEM_PROMOTED, NO_DRAM_SLOT } from "../../addon/binding.ts";
import { assert } from "../assert.ts";
import { CairnError, ERRORS } from "../errors.ts";
import { LIMITS } from "../limits.ts";
import { NO_BLOCK, STATE, TIER } from "../ledger/types.ts";
import { METRIC } from "../observe/feed.ts";
import {
  type CopyOwner,
  type CopyTicket,
  DISK_PRIORITY,
  type DiskSubmit,
  NO_DISK,
} from "../transfer/copies.ts";
import { mayPromote } from "../transfer/promotion.ts";
import { closeIfDone } from "./completion.ts";
import {
  admitJob,
  deadlineOf,
  type EngineContext,
  type InboundFrame,
  usableRegion,
} from "./context.ts";
import { type Job, JOB_KIND, POSITION } from "./jobs.ts";
import { LOAD_FIXED_BYTES } from "./protocol.ts";

/** Error code of each item status, by ITEM. */
export const ITEM_ERROR_CODES: readonly number[] = [
  0,
  ERRORS.checksumMismatch.code,
  ERRORS.staleGeneration.code,
  ERRORS.cancelled.code,
  ERRORS.deadlineExceeded.code,
  ERRORS.unknownRegion.code,
  ERRORS.deviceFailed.code,
];

/** What job.tiers says of a position beside the tier that it is read from. */
const TIER_MASK = 1;
/** Its read fills a DRAM slot, too. */
const PROMOTING = 2;
/** The other tier's copy proved bad before. */
const RETRIED = 4;

export function load(context: EngineContext, frame: InboundFrame, owner: CopyOwner): void {
  const { connection } = frame;
  const { count, tag } = frame.header;
  const instance = frame.instance;
  const lease = context.leases.require(instance, frame.id);
  const { namespace } = lease;
  assert(namespace !== undefined, "a held lease has a namespace");
  frame.expectCount(1);
  frame.expectBody(LOAD_FIXED_BYTES + count * (namespace.keyBytes + 4));
  const at = frame.bodyWords;
  const { words } = frame;
  const shard = words[at + 3]! & 0xffff;
  if (shard >= namespace.shards) throw new CairnError("shardOutOfRange", `shard ${shard}`, shard);
  const region = usableRegion(connection, words[at + 1]!);
  if (region.view.namespace.rowBytes !== namespace.rowBytes) {
    throw new CairnError("layoutMismatch", "the region was registered for another row length");
  }
  if (connection.jobs.has(tag)) throw new CairnError("malformedFrame", "tag names a job in flight");
  admitJob(context, connection, count);
  const job = context.jobs.take(JOB_KIND.LOAD, connection, tag, count, frame.at);
  const keysAt = at + LOAD_FIXED_BYTES / 4;
  const rowsAt = keysAt + count * namespace.keyWords;
  job.region = region;
  job.namespace = namespace;
  job.shard = shard;
  job.deadlineAt = frame.at + deadlineOf(words[at + 2]!, LIMITS.loadDeadlineMs);
  try {
    region.take(words, rowsAt, count, 1);
  } catch (error) {
    context.jobs.recycle(job);
    throw error;
  }
  for (let index = 0; index < count; index++) job.rows[index] = words[rowsAt + index]!;
  context.jobs.enter(job);
  context.ledger.pinRange(lease.id, words[at]!, words, keysAt, count, shard, job.blocks, job.tiers);
  queue(context, job);
  submit(context, job, owner);
  closeIfDone(context, job);
}

/** Marks every pinned position; the others fail. */
function queue(context: EngineContext, job: Job): void {
  for (let index = 0; index < job.count; index++) {
    if (job.blocks[index] === NO_BLOCK) job.fail(index, ERRORS.blockNotReadable.code);
    else job.states[index] = POSITION.QUEUED;
  }
  if (job.failed > 0) context.feed.addAt(METRIC.loadBlocks, ITEM.IDENTITY, job.failed);
}

/** Starts the copies of all queued positions, each from the tier that job.tiers names. */
function submit(context: EngineContext, job: Job, owner: CopyOwner): void {
  const { ledger, copies } = context;
  const { region, namespace } = job;
  assert(region !== undefined && namespace !== undefined, "a LOAD has a region");
  let onDisk = 0;
  copies.begin(COPY.LOAD, owner, job);
  for (let index = 0; index < job.count; index++) {
    if (job.states[index] !== POSITION.QUEUED) continue;
    if ((job.tiers[index]! & TIER_MASK) === TIER.NVME) {
      onDisk++;
      continue;
    }
    const block = job.blocks[index]!;
    const slot = ledger.slotOf(block, TIER.DRAM, job.shard);
    job.states[index] = POSITION.COPYING;
    copies.add(slot, region.rangeAt(job.rows[index]!), block, 0, index);
  }
  const { shards, rowBytes } = namespace;
  const left = millisecondsLeft(job);
  const batch = copies.submit(context.arena, region.id, job.shard, shards, rowBytes, left);
  if (batch !== 0) job.batches.push(batch);
  if (onDisk > 0) submitReads(context, job, owner);
}

function millisecondsLeft(job: Job): number {
  return Math.max(1, Math.ceil(job.deadlineAt - performance.now()));
}

/** Reused for every read batch. */
const read: DiskSubmit = {
  disk: 0,
  arena: 0,
  region: 0,
  shard: 0,
  shards: 1,
  payloadBytes: 0,
  deadlineMs: 0,
  priority: DISK_PRIORITY.DEMAND,
};

/** Queued positions on NVMe, in order of depth, a batch for each few MiB of one disk. */
function submitReads(context: EngineContext, job: Job, owner: CopyOwner): void {
  const { ledger, copies, nvme } = context;
  const { region, namespace } = job;
  assert(region !== undefined && namespace !== undefined, "a LOAD has a region");
  assert(nvme !== undefined, "a block on NVMe has a tier");
  const itemsMax = Math.max(1, Math.floor(LIMITS.diskReadBatchBytes / namespace.rowBytes));
  let disk = NO_DISK;
  for (let index = 0; index < job.count; index++) {
    if (job.states[index] !== POSITION.QUEUED) continue;
    const block = job.blocks[index]!;
    const slot = ledger.slotOf(block, TIER.NVME, job.shard);
    if (!nvme.mayRead(slot)) {
      refuseFenced(context, job, index);
      continue;
    }
    const home = nvme.diskOf(slot);
    if (disk !== NO_DISK && (disk !== home || copies.filled >= itemsMax)) {
      submitRead(context, job, disk);
      disk = NO_DISK;
    }
    if (disk === NO_DISK) copies.begin(DISK.READ, owner, job);
    disk = home;
    const target = promote(context, job, index);
    job.states[index] = POSITION.COPYING;
    copies.add(slot, region.rangeAt(job.rows[index]!), block, target, index);
  }
  if (disk !== NO_DISK) submitRead(context, job, disk);
}

function submitRead(context: EngineContext, job: Job, disk: number): void {
  const { region, namespace } = job;
  assert(region !== undefined && namespace !== undefined, "a LOAD has a region");
  read.disk = disk;
  read.arena = context.arena;
  read.region = region.id;
  read.shard = job.shard;
  read.shards = namespace.shards;
  read.payloadBytes = namespace.rowBytes;
  read.deadlineMs = millisecondsLeft(job);
  const batch = context.copies.submitDisk(read);
  assert(batch !== 0, "a read batch has items");
  job.batches.push(batch);
}

/** The device does not serve reads now; the copy stays where it is. */
function refuseFenced(context: EngineContext, job: Job, position: number): void {
  context.ledger.unpin(job.blocks[position]!, TIER.NVME);
  context.feed.addAt(METRIC.loadBlocks, ITEM.IO, 1);
  job.giveRow(position);
  job.fail(position, ERRORS.tierUnavailable.code);
}

/**
 * A DRAM slot for what is about to be read, if there is one to be had. Blocks of several shards pass through:
 * one rank reads one shard only.
 */
function promote(context: EngineContext, job: Job, position: number): number {
  const { ledger, feed } = context;
  const block = job.blocks[position]!;
  const single = job.namespace?.shards === 1;
  if (!single || !mayPromote(ledger) || !ledger.copyBegin(block, TIER.NVME, TIER.DRAM)) {
    feed.add(METRIC.passThroughBlocks, 1);
    return NO_DRAM_SLOT;
  }
  job.tiers[position] = job.tiers[position]! | PROMOTING;
  return ledger.slotOf(block, TIER.DRAM, job.shard);
}

/** A LOAD's batch ended. */
export function loadCopied(
  context: EngineContext,
  job: Job,
  ticket: CopyTicket,
  statuses: Uint8Array,
  at: number,
  owner: CopyOwner,
): void {
  const { ledger, feed } = context;
  let landed = 0;
  let missedDeadline = false;
  let retries = 0;
  for (let item = 0; item < ticket.count; item++) {
    const position = ticket.positions[item]!;
    const block = job.blocks[position]!;
    const tier = job.tiers[position]! & TIER_MASK;
    const status = statuses[at + item]! & ~ITEM_PROMOTED;
    if (ticket.disk !== NO_DISK) endRead(context, job, position, ticket, statuses[at + item]!);
    feed.addAt(METRIC.loadBlocks, status, 1);
    if (status === ITEM.OK) {
      ledger.unpin(block, tier);
      job.giveRow(position);
      job.land(position);
      landed++;
      continue;
    }
    if (status === ITEM.DEADLINE) missedDeadline = true;
    if (failCopy(context, job, position, status)) {
      retries++;
      continue;
    }
    job.giveRow(position);
    job.fail(position, ITEM_ERROR_CODES[status] ?? ERRORS.internal.code);
  }
  if (missedDeadline) feed.add(METRIC.deadlineMisses, 1);
  countLanded(context, job, ticket, landed);
  if (retries === 0) return;
  feed.add(METRIC.loadRetries, retries);
  submit(context, job, owner);
}

function countLanded(context: EngineContext, job: Job, ticket: CopyTicket, landed: number): void {
  const bytes = landed * ticket.payloadBytes;
  const tier = ticket.disk === NO_DISK ? TIER.DRAM : TIER.NVME;
  job.bytes += bytes;
  context.feed.addAt(METRIC.loadedTierBytes, tier, bytes);
  if (landed < ticket.count) return; // A batch that was cut short says nothing about bandwidth.
  const { links } = context;
  if (ticket.disk === NO_DISK) links.dramToWindow.ended(bytes, ticket.submittedAt);
  else links.readEnded(ticket.disk, bytes, ticket.submittedAt);
}

/** Tells the device's health, and ends the promotion that rode on this read. */
function endRead(
  context: EngineContext,
  job: Job,
  position: number,
  ticket: CopyTicket,
  status: number,
): void {
  const { ledger, nvme, feed } = context;
  const block = job.blocks[position]!;
  const slot = ledger.slotOf(block, TIER.NVME, job.shard);
  nvme?.ended(slot, DISK.READ, status & ~ITEM_PROMOTED, ticket.microseconds);
  if ((job.tiers[position]! & PROMOTING) === 0) return;
  const promoted = (status & ITEM_PROMOTED) !== 0;
  job.tiers[position] = job.tiers[position]! & ~PROMOTING;
  ledger.copyEnd(block, TIER.NVME, TIER.DRAM, promoted);
  if (promoted) feed.add(METRIC.promotedBlocks, 1);
}

/** Drops a copy that proved bad and gives its pin back. True: the position is queued again, at the other copy. */
function failCopy(context: EngineContext, job: Job, position: number, status: number): boolean {
  const { ledger, feed } = context;
  const block = job.blocks[position]!;
  const tier = job.tiers[position]! & TIER_MASK;
  const bad = status === ITEM.CORRUPT || status === ITEM.IDENTITY || status === ITEM.IO;
  if (!bad) {
    ledger.unpin(block, tier);
    return false;
  }
  if (status === ITEM.CORRUPT) feed.add(METRIC.corruptBlocks, 1);
  if (status === ITEM.IDENTITY) feed.add(METRIC.identityFailures, 1);
  if (status === ITEM.IO) feed.add(METRIC.deviceReadErrors, 1);
  // The same bad copy may be named by two LOADs in flight: the second finds it quarantined already.
  ledger.corrupt(block, tier);
  const other = 1 - tier;
  const again =
    (job.tiers[position]! & RETRIED) === 0 &&
    !job.cancelled &&
    ledger.stateOf(block, other) === STATE.VISIBLE;
  if (again) {
    ledger.pin(block, other);
    job.tiers[position] = other | RETRIED;
    job.states[position] = POSITION.QUEUED;
  }
  ledger.unpin(block, tier);
  return again;
}
