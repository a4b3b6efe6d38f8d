/**
 * The engine API: the only door for engines. Drains the addon's event queue on the JS thread, dispatches
 * frames to operations, turns everything an operation throws into one typed error reply, and cleans up
 * after connections. Nothing here waits: an operation answers at once or leaves a job behind.
 */
import { type Addon, CLOSE_REASON, DISK, EVENT, EVENT_WORDS } from "../../addon/binding.ts";
import { assert } from "../assert.ts";
import { CairnError, ERRORS, type ErrorName } from "../errors.ts";
import { LIMITS } from "../limits.ts";
import type { Ledger } from "../ledger/ledger.ts";
import { type Feed, METRIC } from "../observe/feed.ts";
import { FRAME_ERROR_LABELS } from "../observe/metrics.ts";
import { Copies, type CopyOwner, type CopyTicket } from "../transfer/copies.ts";
import { Links } from "../transfer/links.ts";
import { Refusals } from "../transfer/refusals.ts";
import { Prefetcher } from "../transfer/prefetcher.ts";
import type { DiskTier } from "../../tiers/tier.ts";
import { closeIfDone, drainFinished, removeRegion } from "./completion.ts";
import { type EngineContext, type EngineSettings, InboundFrame, NO_DESCRIPTOR } from "./context.ts";
import { type Job, JOB_KIND, Jobs } from "./jobs.ts";
import { Leases } from "./leases.ts";
import type { Namespaces } from "./namespaces.ts";
import { hint, prove, touch } from "./op-advice.ts";
import { load, loadCopied } from "./op-load.ts";
import { lookup } from "./op-lookup.ts";
import { PrefetchCalls } from "./op-prefetch.ts";
import { REGION_TASK_FIRST, register, windowTouched } from "./op-register.ts";
import {
  endRequest,
  heartbeat,
  hello,
  proveLayout,
  releaseNamespaces,
  stats,
  unregister,
} from "./op-session.ts";
import {
  abandonWaiting,
  abortUnfilled,
  expireStore,
  fill,
  settlePosition,
  store,
  storeCopied,
} from "./op-store.ts";
import { asCairnError, Outbound } from "./outbound.ts";
import { OP } from "./protocol.ts";
import { RefusedPeers } from "./refused-peers.ts";
import { Windows } from "./regions.ts";
import { type Instance, Sessions, type Tenant } from "./sessions.ts";
import { Waiters } from "./waiters.ts";

export interface EngineServerOptions {
  readonly addon: Addon;
  readonly ledger: Ledger;
  readonly feed: Feed;
  readonly namespaces: Namespaces;
  readonly settings: EngineSettings;
  readonly tenants: readonly Tenant[];
  readonly arena: number;
  /** Undefined: the node has no NVMe tier. */
  readonly nvme: DiskTier | undefined;
  readonly epoch: string;
  readonly nodeName: string;
  readonly inbox: ArrayBuffer;
  readonly events: Uint32Array;
  readonly statuses: Uint8Array;
  readonly nodeStats: (tenant: string) => object;
  /** PROGRESS events (pre-touch, scan): task, done, total, outcome (0 running, 1 ended, 2 failed). */
  readonly onProgress: (
    task: number,
    done: number,
    total: number,
    outcome: number,
    errno: number,
  ) => void;
  /** A fault in cairn was answered as `internal`. */
  readonly onInternalError: (error: unknown) => void;
  /** Something an operator should know of. */
  readonly warn: (line: string) => void;
}

/** Polls per turn; beyond it the loop gets a turn first. */
const POLLS_PER_TURN_MAX = 16;
const DRAIN_ALLOWED = new Set<number>([
  OP.FILL,
  OP.CANCEL,
  OP.FLUSH,
  OP.UNREGISTER,
  OP.END_REQUEST,
  OP.HEARTBEAT,
  OP.STATS,
  OP.TOUCH,
]);

export class EngineServer implements CopyOwner {
  readonly context: EngineContext;
  /** Lifts chains into DRAM; ticked with the rest. */
  readonly prefetcher: Prefetcher;
  readonly #prefetches: PrefetchCalls;
  readonly #options: EngineServerOptions;
  readonly #refusedPeers: RefusedPeers;
  readonly #operations: readonly (((frame: InboundFrame) => void) | undefined)[];
  readonly #settled = (job: Job, position: number, visible: boolean): void =>
    settlePosition(this.context, job, position, visible);
  #pumping = false;
  /** When the events in hand were polled, monotonic milliseconds. */
  #polledAt = 0;
  #stopped = false;

  constructor(options: EngineServerOptions) {
    const { addon, ledger, feed } = options;
    this.#options = options;
    this.#refusedPeers = new RefusedPeers(options.warn, () => performance.now());
    this.context = {
      addon,
      ledger,
      feed,
      out: new Outbound(addon),
      copies: new Copies(addon, () => performance.now(), diskTimes(feed)),
      sessions: new Sessions(options.tenants),
      leases: new Leases(ledger),
      namespaces: options.namespaces,
      jobs: new Jobs(),
      waiters: new Waiters(),
      notStored: new Refusals(() => Date.now()),
      windows: new Windows(),
      settings: options.settings,
      frame: new InboundFrame(options.inbox),
      epoch: options.epoch,
      epochNumber: Number.parseInt(options.epoch.replaceAll("-", "").slice(0, 13), 16),
      nodeName: options.nodeName,
      arena: options.arena,
      finished: [],
      statuses: new Uint8Array(LIMITS.keysPerFrameMax),
      links: new Links(() => performance.now()),
      nvme: options.nvme,
      remotePrefix: undefined,
      draining: false,
      nodeStats: options.nodeStats,
    };
    assert(Number.isSafeInteger(this.context.epochNumber), "the epoch starts with 52 bits of hex");
    this.prefetcher = new Prefetcher({
      ledger,
      tier: options.nvme,
      copies: this.context.copies,
      links: this.context.links,
      feed,
      arena: options.arena,
      now: () => performance.now(),
    });
    this.#prefetches = new PrefetchCalls(this.context, this.prefetcher);
    this.#operations = this.#table();
  }

  #table(): (((frame: InboundFrame) => void) | undefined)[] {
    const { context } = this;
    const table: (((frame: InboundFrame) => void) | undefined)[] = [];
    table[OP.HELLO] = (frame) => hello(context, frame);
    table[OP.REGISTER] = (frame) => register(context, frame);
    table[OP.PROVE_LAYOUT] = (frame) => proveLayout(context, frame);
    table[OP.UNREGISTER] = (frame) => unregister(context, frame, (job) => this.#cancelJob(job));
    table[OP.LOOKUP] = (frame) => this.#lookup(frame);
    table[OP.LOAD] = (frame) => load(context, frame, this);
    table[OP.STORE] = (frame) => store(context, frame, this);
    table[OP.FILL] = (frame) => fill(context, frame, this);
    table[OP.CANCEL] = (frame) => this.#cancel(frame);
    table[OP.FLUSH] = (frame) => this.#flush(frame);
    table[OP.END_REQUEST] = (frame) => {
      this.#prefetches.endRequest(frame.instance, frame.id);
      endRequest(context, frame);
    };
    table[OP.TOUCH] = (frame) => touch(context, frame);
    table[OP.HINT] = (frame) => hint(context, frame);
    table[OP.PREFETCH] = (frame) => this.#prefetches.prefetch(frame);
    table[OP.PROVE] = (frame) => prove(context, frame);
    table[OP.HEARTBEAT] = (frame) => heartbeat(context, frame);
    table[OP.STATS] = (frame) => stats(context, frame);
    return table;
  }

  /** Ledger callbacks; bound by the composition root before the ledger is used. */
  settled(block: number, visible: boolean): void {
    this.context.waiters.settle(block, visible, this.#settled);
  }

  leaseReduced(lease: number, depth: number): void {
    this.context.leases.reduced(lease, depth);
    this.context.feed.add(METRIC.leasesReduced, 1);
  }

  /** Drains the addon's events; its onReady. */
  pump(): void {
    if (this.#pumping || this.#stopped) return;
    this.#pumping = true;
    try {
      for (let turn = 0; turn < POLLS_PER_TURN_MAX; turn++) {
        this.#polledAt = performance.now();
        const events = this.#options.addon.poll();
        for (let index = 0; index < events; index++) this.#event(index * EVENT_WORDS);
        this.context.ledger.flush();
        // Whatever came meanwhile rings again; only a full array says that more may be waiting.
        if ((events + 1) * EVENT_WORDS <= this.#options.events.length) return;
      }
      setImmediate(() => this.pump());
    } finally {
      this.#pumping = false;
    }
  }

  #event(at: number): void {
    const { events } = this.#options;
    const id = events[at + 1]!;
    switch (events[at]!) {
      case EVENT.ACCEPT:
        this.#accept(id, events[at + 4]!, events[at + 5]!, events[at + 7]!);
        break;
      case EVENT.FRAME:
        this.#frame(id, events[at + 2]!, events[at + 3]!, events[at + 4]!, events[at + 5]!);
        break;
      case EVENT.CLOSE:
        this.#close(id, events[at + 4]!);
        break;
      case EVENT.COPIED:
        this.context.copies.ended(id, this.#options.statuses, events[at + 2]!, events[at + 5]!);
        break;
      case EVENT.PROGRESS:
        this.#progress(id, events[at + 4]!, events[at + 5]!, events[at + 6]!, events[at + 7]!);
        break;
      default:
        assert(false, "the addon sends only events of its table");
    }
    drainFinished(this.context);
  }

  #progress(task: number, done: number, total: number, outcome: number, errno: number): void {
    if (task < REGION_TASK_FIRST) {
      this.#options.onProgress(task, done, total, outcome, errno);
      return;
    }
    const error = windowTouched(this.context, task - REGION_TASK_FIRST, errno);
    if (error !== undefined) this.#countError(error.errorName);
  }

  #accept(id: number, pid: number, uid: number, listener: number): void {
    const { sessions, feed, out, addon } = this.context;
    feed.add(METRIC.connectionsAccepted, 1);
    try {
      sessions.accept(id, pid, uid, sessions.tenantOf(listener, uid));
    } catch (error) {
      const { errorName, message, detail } = asCairnError(error);
      this.#countError(errorName);
      this.#refusedPeers.connection({ uid, pid }, error);
      out.error(id, 0, 0, 0, errorName, message, detail);
      addon.closeConnection(id, CLOSE_REASON.LOCAL);
    }
  }

  /** waitedMicroseconds: from the frame's last byte to the poll. */
  #frame(
    id: number,
    offset: number,
    length: number,
    descriptor: number,
    waitedMicroseconds: number,
  ): void {
    const { frame, sessions, feed } = this.context;
    const connection = sessions.connections.get(id);
    if (connection === undefined) {
      // Refused at accept; what it sent meanwhile is not looked at.
      if (descriptor !== NO_DESCRIPTOR) this.context.addon.closeDescriptor(descriptor);
      return;
    }
    frame.load(connection, offset, length, descriptor, performance.now());
    feed.add(METRIC.framesReceived, 1);
    const seconds = waitedMicroseconds / 1e6 + (frame.at - this.#polledAt) / 1e3;
    feed.observe(METRIC.frameQueueSeconds, seconds);
    try {
      this.#dispatch(frame);
    } catch (error) {
      this.#refuse(frame, error);
    }
    if (frame.descriptor !== NO_DESCRIPTOR) this.context.addon.closeDescriptor(frame.descriptor);
  }

  #dispatch(frame: InboundFrame): void {
    const { op } = frame.header;
    const operation = this.#operations[op];
    if (operation === undefined) throw new CairnError("unknownOp", `operation ${op}`, op);
    if (op !== OP.HELLO && frame.connection.instance === undefined) {
      throw new CairnError("helloRequired", "send HELLO first");
    }
    if (this.context.draining && !DRAIN_ALLOWED.has(op)) {
      throw new CairnError("shuttingDown", "the daemon is draining");
    }
    operation(frame);
  }

  #refuse(frame: InboundFrame, error: unknown): void {
    const { errorName, message, detail } = asCairnError(error);
    if (errorName === "internal") this.#options.onInternalError(error);
    this.#countError(errorName);
    const { op, tag, id } = frame.header;
    if (op === OP.HELLO) this.#refusedPeers.hello(frame, error);
    const { connection } = frame;
    if (!frame.noReply) {
      this.context.out.error(connection.id, op, tag, Math.max(0, id), errorName, message, detail);
    }
    if (errorName !== "versionUnsupported") return;
    this.context.addon.closeConnection(connection.id, CLOSE_REASON.VERSION);
  }

  #countError(name: ErrorName): void {
    const { feed } = this.context;
    const row = REFUSAL_ROWS[name];
    if (row !== undefined) feed.add(row, 1);
    feed.addAt(METRIC.frameErrors, FRAME_ERROR_INDEX[name] ?? FRAME_ERROR_OTHER, 1);
  }

  #lookup(frame: InboundFrame): void {
    lookup(this.context, frame);
    this.context.feed.observe(METRIC.lookupSeconds, (performance.now() - frame.at) / 1_000);
  }

  /** CopyOwner: a batch of one of our jobs ended. */
  copied(ticket: CopyTicket, statuses: Uint8Array, at: number): void {
    const job = ticket.subject as Job;
    const index = job.batches.indexOf(ticket.number);
    assert(index >= 0, "the batch belongs to its job");
    job.batches.splice(index, 1);
    if (job.kind === JOB_KIND.LOAD) loadCopied(this.context, job, ticket, statuses, at, this);
    else storeCopied(this.context, job, ticket, statuses, at);
    // CANCEL, a closed connection and UNREGISTER wait for copies, not for what others may still bring; what
    // was copied since has begun to wait for them.
    const over = job.cancelled || (job.region !== undefined && job.region.closingTag !== -1);
    if (over && job.batches.length === 0) this.#cancelJob(job);
    else closeIfDone(this.context, job);
  }

  #cancel(frame: InboundFrame): void {
    const { connection, header } = frame;
    const job = connection.jobs.get(frame.id);
    if (job === undefined) {
      if (this.#prefetches.cancel(connection, frame.id, header.tag)) return;
      this.context.out.acknowledge(connection.id, OP.CANCEL, header.tag, frame.id, 0);
      return;
    }
    if (job.cancelTags.length >= LIMITS.waitingTagsMax) throw tooManyWait();
    job.cancelTags.push(header.tag);
    this.#cancelJob(job);
  }

  /** Gives up everything of a job that has not begun; it completes when its running copies end. */
  #cancelJob(job: Job): void {
    job.cancelled = true;
    for (const batch of job.batches) this.context.copies.cancel(batch);
    if (job.kind === JOB_KIND.STORE) {
      abortUnfilled(this.context, job, ERRORS.cancelled.code);
      abandonWaiting(this.context, job, ERRORS.cancelled.code);
    }
    closeIfDone(this.context, job);
  }

  #flush(frame: InboundFrame): void {
    const { connection, header } = frame;
    if (connection.jobs.size === 0) {
      this.context.out.acknowledge(connection.id, OP.FLUSH, header.tag, 0, 0);
    } else {
      if (connection.flushTags.length >= LIMITS.waitingTagsMax) throw tooManyWait();
      connection.flushTags.push(header.tag);
    }
  }

  /** The peer is gone: everything it took goes back, jobs as soon as their copies end. */
  #close(id: number, reason: number): void {
    const { sessions, leases, feed } = this.context;
    feed.addAt(METRIC.connectionsClosed, reason, 1);
    const connection = sessions.connections.get(id);
    if (connection === undefined) return;
    connection.closed = true;
    for (const job of connection.jobs.values()) this.#cancelJob(job);
    this.#prefetches.endConnection(connection);
    const { instance } = connection;
    if (instance !== undefined) {
      leases.endAll(instance, connection);
      for (const region of connection.regions.values()) {
        removeRegion(this.context, connection, region);
      }
    }
    if (!sessions.leave(connection) || instance === undefined) return;
    leases.endAll(instance, undefined);
    releaseNamespaces(this.context, instance);
  }

  /**
   * The coarse timer: lease expiry and STORE deadlines. Events are drained first, so that a late turn of
   * ours expires nobody.
   */
  tick(): void {
    this.pump();
    const { context } = this;
    const now = performance.now();
    for (const job of context.jobs.stores) {
      if (now >= job.fillAt || now >= job.deadlineAt) expireStore(context, job, now);
    }
    this.prefetcher.tick();
    const leaseMs = context.settings.heartbeatMs * context.settings.heartbeatMisses;
    for (const instance of context.sessions.instances.values()) {
      if (instance.leaseCount > 0 && now - instance.aliveAt > leaseMs) this.#expire(instance);
    }
    drainFinished(context);
    this.#publish();
  }

  #expire(instance: Instance): void {
    const freed = this.context.leases.endAll(instance, undefined);
    this.context.feed.add(METRIC.leasesExpired, freed);
    for (const connection of instance.connections) {
      this.#prefetches.endConnection(connection);
      for (const job of connection.jobs.values()) {
        if (job.kind === JOB_KIND.LOAD) this.#cancelJob(job);
      }
    }
  }

  /** New work is refused from here on; what is in flight may end. */
  drain(): void {
    this.context.draining = true;
  }

  /** Cancels whatever is still in flight. */
  cancelAll(): void {
    for (const connection of this.context.sessions.connections.values()) {
      for (const job of connection.jobs.values()) this.#cancelJob(job);
    }
    drainFinished(this.context);
  }

  get jobsInFlight(): number {
    return this.context.jobs.inFlight;
  }

  /** No event is handled after this. */
  stop(): void {
    this.#stopped = true;
  }

  #publish(): void {
    const { feed, leases, sessions, jobs, namespaces, copies } = this.context;
    feed.set(METRIC.leases, leases.size);
    feed.set(METRIC.pinnedBytes, leases.pinnedBytes);
    feed.set(METRIC.instances, sessions.instances.size);
    feed.set(METRIC.connections, sessions.connections.size);
    feed.set(METRIC.jobs, jobs.inFlight);
    feed.set(METRIC.namespaces, namespaces.size);
    feed.set(METRIC.copyQueueItems, copies.itemsInFlight);
    feed.set(METRIC.namespacesUnproven, unprovenNamespaces(sessions));
  }
}

function tooManyWait(): CairnError {
  return new CairnError("overloaded", "waitingTagsMax calls wait for jobs to end");
}

/** Namespaces in which some live instance was asked for a proof and has not given it. */
function unprovenNamespaces(sessions: Sessions): number {
  const unproven = new Set<number>();
  for (const instance of sessions.instances.values()) {
    for (const view of instance.views) {
      if (view.asked && !view.proven && view.namespace === view.declared) {
        unproven.add(view.namespace.index);
      }
    }
  }
  return unproven.size;
}

/** Counts how long batches at disks take; a scrub's are no measure of what engines wait for. */
function diskTimes(feed: Feed): (kind: number, seconds: number) => void {
  return (kind, seconds) => {
    if (kind === DISK.READ) feed.observe(METRIC.nvmeReadSeconds, seconds);
    else if (kind === DISK.WRITE) feed.observe(METRIC.nvmeWriteSeconds, seconds);
  };
}

const FRAME_ERROR_OTHER = FRAME_ERROR_LABELS.indexOf("other");
/** Error name → index of its label; names without a label count as `other`. */
const FRAME_ERROR_INDEX: Partial<Record<ErrorName, number>> = {};
for (const name of Object.keys(ERRORS) as ErrorName[]) {
  const label = name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  const index = (FRAME_ERROR_LABELS as readonly string[]).indexOf(label);
  if (index >= 0) FRAME_ERROR_INDEX[name] = index;
}

/** Refusals that have a metric of their own. */
const REFUSAL_ROWS: Partial<Record<ErrorName, number>> = {
  overloaded: METRIC.overloads,
  jobsInFlight: METRIC.jobsRefused,
  ledgerFull: METRIC.ledgerFullRefusals,
  chainMismatch: METRIC.chainMismatches,
};
