/**
 * LOAD: copies leased blocks into rows of the engine's window. Pins what it copies from, so a slot cannot
 * be reused under a copy; verifies identity and hash on the way; a block that fails is named in the
 * completion and its row is undefined, every other byte is verified.
 */
import { COPY, ITEM } from "../../addon/binding.ts";
import { assert } from "../assert.ts";
import { CairnError, ERRORS } from "../errors.ts";
import { LIMITS } from "../limits.ts";
import { NO_BLOCK, TIER } from "../ledger/types.ts";
import { METRIC } from "../observe/feed.ts";
import type { CopyOwner, CopyTicket } from "../transfer/copies.ts";
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
];

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
  try {
    region.take(words, rowsAt, count, 1);
  } catch (error) {
    context.jobs.recycle(job);
    throw error;
  }
  for (let index = 0; index < count; index++) job.rows[index] = words[rowsAt + index]!;
  context.jobs.enter(job);
  context.ledger.pinRange(lease.id, words[at]!, words, keysAt, count, shard, job.blocks, job.tiers);
  submit(context, job, owner, deadlineOf(words[at + 2]!, LIMITS.loadDeadlineMs));
}

function submit(context: EngineContext, job: Job, owner: CopyOwner, deadlineMs: number): void {
  const { ledger, copies, feed } = context;
  const { region, namespace } = job;
  assert(region !== undefined && namespace !== undefined, "a LOAD has a region");
  copies.begin(COPY.LOAD, owner, job);
  for (let index = 0; index < job.count; index++) {
    const block = job.blocks[index]!;
    if (block === NO_BLOCK) {
      job.fail(index, ERRORS.blockNotReadable.code);
      continue;
    }
    assert(job.tiers[index] === TIER.DRAM, "only DRAM serves loads");
    const slot = ledger.slotOf(block, TIER.DRAM, job.shard);
    job.states[index] = POSITION.COPYING;
    copies.add(slot, region.rangeAt(job.rows[index]!), block, 0, index);
  }
  if (job.failed > 0) feed.addAt(METRIC.loadBlocks, ITEM.IDENTITY, job.failed);
  const batch = copies.submit(
    context.arena,
    region.id,
    job.shard,
    namespace.shards,
    namespace.rowBytes,
    deadlineMs,
  );
  if (batch !== 0) job.batches.push(batch);
  closeIfDone(context, job);
}

/** A LOAD's batch ended. */
export function loadCopied(
  context: EngineContext,
  job: Job,
  ticket: CopyTicket,
  statuses: Uint8Array,
  at: number,
): void {
  const { ledger, feed } = context;
  const rowBytes = job.namespace?.rowBytes ?? 0;
  let missedDeadline = false;
  for (let item = 0; item < ticket.count; item++) {
    const position = ticket.positions[item]!;
    const block = job.blocks[position]!;
    const status = statuses[at + item]!;
    ledger.unpin(block, TIER.DRAM);
    job.giveRow(position);
    feed.addAt(METRIC.loadBlocks, status, 1);
    if (status === ITEM.OK) {
      job.land(position);
      job.bytes += rowBytes;
      continue;
    }
    job.fail(position, ITEM_ERROR_CODES[status] ?? ERRORS.internal.code);
    if (status === ITEM.DEADLINE) missedDeadline = true;
    if (status === ITEM.CORRUPT || status === ITEM.IDENTITY) {
      feed.add(status === ITEM.CORRUPT ? METRIC.corruptBlocks : METRIC.identityFailures, 1);
      // The same bad block may be named by two LOADs in flight: only the first finds it visible.
      if (ledger.isVisible(block)) ledger.corrupt(block, TIER.DRAM);
    }
  }
  if (missedDeadline) feed.add(METRIC.deadlineMisses, 1);
}
