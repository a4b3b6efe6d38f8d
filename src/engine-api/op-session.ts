/** HELLO, PROVE_LAYOUT, UNREGISTER, HEARTBEAT, STATS: who an engine is and how its windows come and go. */
import { assert } from "../assert.ts";
import { CairnError, ERRORS } from "../errors.ts";
import { LIMITS } from "../limits.ts";
import { METRIC } from "../observe/feed.ts";
import { type ColdMap, decodeCold, integerField, listField, mapValue, textField } from "./codec.ts";
import { settleRegion } from "./completion.ts";
import type { EngineContext, InboundFrame } from "./context.ts";
import { parseDescriptor } from "./descriptor.ts";
import { type Job, JOB_KIND } from "./jobs.ts";
import type { Namespace } from "./namespaces.ts";
import { abortUnfilled } from "./op-store.ts";
import { FLAG, type HelloReply, OP, PROTOCOL_VERSION } from "./protocol.ts";
import type { Connection, Instance } from "./sessions.ts";

export function hello(context: EngineContext, frame: InboundFrame): void {
  const { connection } = frame;
  if (connection.instance !== undefined) throw new CairnError("helloRequired", "HELLO came before");
  const body = decodeCold(frame.coldBody());
  const versions = listField(body, "protocol", 64);
  if (!versions.includes(PROTOCOL_VERSION)) {
    throw new CairnError("versionUnsupported", "this daemon speaks version 1", PROTOCOL_VERSION);
  }
  const engineId = textField(body, "engineId", 256);
  const role = textField(body, "role", 16);
  if (role !== "scheduler" && role !== "worker") {
    throw new CairnError("malformedFrame", "role: scheduler or worker");
  }
  const ranks = integerField(body, "ranks", 1, 65_536);
  const rank = integerField(body, "rank", 0, ranks - 1);
  const engine = mapValue(body["engine"], "engine");
  const engineText = `${textField(engine, "name", 256)} ${textField(engine, "version", 256)}`;
  const instance = openInstance(context, frame, body, engineId, engineText);
  connection.role = role;
  connection.rank = rank;
  context.addon.established(connection.id);
  const reply = helloReply(context, instance);
  context.out.cold(connection.id, OP.HELLO, frame.header.tag, 0, reply);
}

/**
 * Opens the instance, or joins the live one. Namespaces are held from the moment they are opened, so that none
 * takes the row of one opened just before.
 * @throws CairnError badDescriptor, instanceMismatch, tooManyNamespaces
 */
function openInstance(
  context: EngineContext,
  frame: InboundFrame,
  body: ColdMap,
  engineId: string,
  engine: string,
): Instance {
  const { namespaces, sessions } = context;
  const { connection } = frame;
  const live = sessions.find(connection, engineId);
  const opened: Namespace[] = [];
  let instance: Instance | undefined;
  try {
    openNamespaces(context, connection, body, live, opened);
    instance = sessions.join(connection, engineId, engine, opened, frame.at);
    return instance;
  } finally {
    // A new instance keeps what was opened until it ends; a live one holds the same already.
    if (instance === undefined || instance === live) {
      for (const namespace of opened) namespaces.release(namespace);
    }
  }
}

/** @throws CairnError badDescriptor, instanceMismatch, tooManyNamespaces */
function openNamespaces(
  context: EngineContext,
  connection: Connection,
  body: ColdMap,
  live: Instance | undefined,
  opened: Namespace[],
): void {
  const list = listField(body, "namespaces", LIMITS.namespacesPerHelloMax);
  if (list.length === 0) throw new CairnError("malformedFrame", "namespaces: at least one");
  const descriptors = list.map(parseDescriptor);
  if (live !== undefined && live.views.length !== descriptors.length) {
    throw new CairnError("instanceMismatch", "another number of namespaces");
  }
  for (const descriptor of descriptors) {
    const namespace = context.namespaces.open(connection.tenant, descriptor);
    context.namespaces.hold(namespace);
    opened.push(namespace);
  }
  if (new Set(opened).size !== opened.length) {
    throw new CairnError("badDescriptor", "a namespace is declared twice");
  }
  for (const [index, namespace] of opened.entries()) {
    const view = live?.views[index];
    if (view !== undefined && view.declared !== namespace) {
      throw new CairnError("instanceMismatch", `namespace ${index} differs`, index);
    }
  }
}

/** The instance has ended: what it stood on is held by one less. */
export function releaseNamespaces(context: EngineContext, instance: Instance): void {
  for (const { declared, namespace } of instance.views) {
    context.namespaces.release(declared);
    if (namespace !== declared) context.namespaces.release(namespace);
  }
}

function helloReply(context: EngineContext, instance: Instance): HelloReply {
  const { settings } = context;
  return {
    protocol: PROTOCOL_VERSION,
    instance: instance.number,
    epoch: context.epoch,
    node: context.nodeName,
    namespaces: instance.views.map(({ handle, namespace }) => ({
      handle,
      digest: namespace.digest,
    })),
    heartbeatMs: settings.heartbeatMs,
    leaseMs: settings.heartbeatMs * settings.heartbeatMisses,
    limits: {
      keysPerFrameMax: LIMITS.keysPerFrameMax,
      frameBodyBytesMax: LIMITS.frameBodyBytesMax,
      inFlightJobsMax: settings.inFlightJobsMax,
      windowBytesMax: settings.windowBytesMax,
      loadDeadlineMsMax: LIMITS.loadDeadlineMsMax,
      storeFillMs: settings.storeFillMs,
    },
  };
}

export function proveLayout(context: EngineContext, frame: InboundFrame): void {
  const { connection } = frame;
  const region = connection.regions.get(frame.id);
  if (region === undefined || !region.ready) {
    throw new CairnError("unknownRegion", "no such region");
  }
  const body = decodeCold(frame.coldBody());
  const block = integerField(body, "block", 0, region.blocks - 1);
  if (!region.isFree(block)) throw new CairnError("rangeBusy", `row ${block}`, block);
  const { rowBytes } = region.view.namespace;
  const at = region.rangeAt(block);
  if (!context.addon.regionProve(region.id, at, rowBytes, region.seed)) {
    context.feed.add(METRIC.layoutProofFailures, 1);
    throw new CairnError("layoutMismatch", "the gathered pattern differs");
  }
  region.proven = true;
  context.out.cold(connection.id, OP.PROVE_LAYOUT, frame.header.tag, region.id, { ok: true });
}

/**
 * The region takes no new job; STOREs that wait for FILL are cancelled, copies in flight end, then the
 * reply goes out. `cancel` is the CANCEL operation's own routine; a STORE with copies in flight gets it when
 * they have ended.
 */
export function unregister(
  context: EngineContext,
  frame: InboundFrame,
  cancel: (job: Job) => void,
): void {
  const { connection } = frame;
  const region = connection.regions.get(frame.id);
  if (region === undefined || region.closingTag !== -1 || !region.ready) {
    throw new CairnError("unknownRegion", "no such region");
  }
  region.closingTag = frame.header.tag;
  for (const job of connection.jobs.values()) {
    if (job.region !== region || job.kind !== JOB_KIND.STORE) continue;
    if (job.batches.length === 0) cancel(job);
    else abortUnfilled(context, job, ERRORS.cancelled.code);
  }
  settleRegion(context, connection, region);
}

export function heartbeat(context: EngineContext, frame: InboundFrame): void {
  const instance = frame.instance;
  instance.aliveAt = frame.at;
  if (frame.noReply) return;
  const { out, epochNumber } = context;
  const { tag } = frame.header;
  out.acknowledge(frame.connection.id, OP.HEARTBEAT, tag, epochNumber, instance.leaseCount);
}

export function stats(context: EngineContext, frame: InboundFrame): void {
  const { connection } = frame;
  const instance = frame.instance;
  assert(!connection.closed, "frames come from open connections");
  context.out.cold(connection.id, OP.STATS, frame.header.tag, 0, {
    instance: instance.number,
    leases: instance.leaseCount,
    pinnedBytes: instance.pinnedBytes,
    jobs: connection.jobs.size,
    regions: connection.regions.size,
    node: context.nodeStats(connection.tenant),
  });
}

/** END_REQUEST: count of the reply = 1 if the request was known. */
export function endRequest(context: EngineContext, frame: InboundFrame): void {
  const known = context.leases.endRequest(frame.instance, frame.id);
  if (frame.noReply) return;
  const { tag } = frame.header;
  context.out.begin(OP.END_REQUEST, FLAG.REPLY, tag, frame.id, known ? 1 : 0);
  context.out.end(frame.connection.id, 0);
}
