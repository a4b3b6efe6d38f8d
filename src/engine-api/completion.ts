/**
 * The end of jobs. Every LOAD and every STORE with something wanted or pending ends here, in exactly one
 * completion, and only when no copy of it is outstanding: so no byte lands after a completion or after
 * the acknowledgement of a CANCEL, which follows it.
 */
import { assert } from "../assert.ts";
import { METRIC } from "../observe/feed.ts";
import type { EngineContext } from "./context.ts";
import { type Job, JOB_KIND, POSITION } from "./jobs.ts";
import { BODY } from "./outbound.ts";
import { COMPLETION_FIXED_BYTES, FLAG, OP } from "./protocol.ts";
import type { Region } from "./regions.ts";
import type { Connection } from "./sessions.ts";
import { TWO_32 } from "../words.ts";

/** Queues the job for completion if nothing of it is open. Safe inside ledger callbacks. */
export function closeIfDone(context: EngineContext, job: Job): void {
  if (job.open || job.finishing || !job.entered) return;
  job.finishing = true;
  context.finished.push(job);
}

/** Completes queued jobs; called after each event, outside ledger calls. */
export function drainFinished(context: EngineContext): void {
  const { finished } = context;
  for (let index = 0; index < finished.length; index++) complete(context, finished[index]!);
  finished.length = 0;
}

function complete(context: EngineContext, job: Job): void {
  if (job.open) {
    // A later item of the same event opened it again.
    job.finishing = false;
    return;
  }
  const { connection, region } = job;
  assert(connection !== undefined && region !== undefined, "a finished job is entered");
  for (let position = 0; position < job.count; position++) job.giveRow(position);
  context.jobs.leave(job);
  const microseconds = Math.max(1, Math.round((performance.now() - job.startedAt) * 1_000));
  count(context, job, microseconds);
  if (!connection.closed) {
    sendCompletion(context, connection, job, microseconds);
    for (const tag of job.cancelTags) {
      context.out.acknowledge(connection.id, OP.CANCEL, tag, job.number, 1);
    }
    settleRegion(context, connection, region);
    settleFlush(context, connection);
  }
  context.jobs.recycle(job);
}

function sendCompletion(
  context: EngineContext,
  connection: Connection,
  job: Job,
  microseconds: number,
): void {
  const { view } = context.out;
  let at = BODY + COMPLETION_FIXED_BYTES;
  for (let position = 0; job.failed > 0 && position < job.count; position++) {
    if (job.states[position] !== POSITION.FAILED) continue;
    view.setUint32(at, position, true);
    view.setUint32(at + 4, job.codes[position]!, true);
    at += 8;
  }
  view.setUint32(BODY, job.failed, true);
  view.setUint32(BODY + 4, Math.min(microseconds, 0xffff_ffff), true);
  view.setUint32(BODY + 8, job.bytes % TWO_32, true);
  view.setUint32(BODY + 12, Math.floor(job.bytes / TWO_32), true);
  const op = job.kind === JOB_KIND.LOAD ? OP.LOAD : OP.STORE;
  const id = job.kind === JOB_KIND.LOAD ? job.tag : job.number;
  context.out.begin(op, FLAG.REPLY | FLAG.COMPLETION, job.tag, id, job.landed);
  context.out.end(connection.id, at - BODY);
}

function count(context: EngineContext, job: Job, microseconds: number): void {
  const { feed } = context;
  if (job.kind === JOB_KIND.STORE) {
    feed.add(METRIC.storedBlocks, job.landed);
    feed.add(METRIC.storedBytes, job.bytes);
    feed.observe(METRIC.storeSeconds, microseconds / 1e6);
    return;
  }
  feed.add(METRIC.loads, 1);
  feed.add(METRIC.loadedBytes, job.bytes);
  feed.observe(METRIC.loadSeconds, microseconds / 1e6);
}

/** Answers a waiting UNREGISTER once the last job of its region is over. */
export function settleRegion(context: EngineContext, connection: Connection, region: Region): void {
  if (region.closingTag === -1 || region.jobs > 0) return;
  removeRegion(context, connection, region);
  context.out.acknowledge(connection.id, OP.UNREGISTER, region.closingTag, region.id, 0);
}

export function removeRegion(context: EngineContext, connection: Connection, region: Region): void {
  const instance = connection.instance;
  assert(instance !== undefined, "regions belong to connections that said HELLO");
  context.addon.regionUnmap(region.id);
  region.remove();
  connection.regions.delete(region.id);
  instance.windowBytes -= region.sizeBytes;
  assert(instance.windowBytes >= 0, "window bytes never go below zero");
  context.feed.add(METRIC.regions, -1);
  context.feed.add(METRIC.regionBytes, -region.sizeBytes);
}

/** Answers waiting FLUSHes once the connection has no job. */
export function settleFlush(context: EngineContext, connection: Connection): void {
  if (connection.jobs.size > 0) return;
  for (const tag of connection.flushTags) {
    context.out.acknowledge(connection.id, OP.FLUSH, tag, 0, 0);
  }
  connection.flushTags.length = 0;
}
