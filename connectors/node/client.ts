/**
 * CairnClient: an engine's view of the daemon. Every call is bounded in time, and the daemon's absence,
 * death or slowness is a miss, never an exception in the engine's path (unless `strict`). After a restart
 * of the daemon the client says HELLO again and registers its windows again by itself.
 */
import { loadAddon } from "../../addon/load.ts";
import { CairnError } from "../../src/errors.ts";
import { type ColdMap, decodeCold, encodeCold } from "../../src/engine-api/codec.ts";
import {
  FLAG,
  HEADER_BYTES,
  type HelloReply,
  type NamespaceDescriptor,
  OP,
  PROTOCOL_VERSION,
} from "../../src/engine-api/protocol.ts";
import { LIMITS } from "../../src/limits.ts";
import {
  countKeys,
  loadRefused,
  MISS,
  prefetchReplies,
  readCompletion,
  readLookup,
  readStoreReply,
  type StoreReply,
  storeRefused,
  writeLoad,
  writeLookup,
  writeStore,
} from "./calls.ts";
import { Link, type LinkAddon, type Reply } from "./link.ts";
import type {
  Advice,
  ClientOptions,
  HintRequest,
  JobResult,
  LoadRequest,
  LookupAnswer,
  LookupOptions,
  Prefetched,
  StoreRequest,
  StoreResult,
  WindowOptions,
} from "./types.ts";
import type { Window } from "./window.ts";
import { discardWindow, makeWindow, registerWindow, renewWindow } from "./windows.ts";

const RECONNECT_MS_MIN = 50;
const RECONNECT_MS_MAX = 2_000;
/** A job's deadline is the daemon's; the client waits this much longer for its completion. */
const COMPLETION_GRACE_MS = 2_000;
const KEPT_CHAINS_MAX = 65_536;

export class CairnClient {
  readonly options: ClientOptions;
  readonly addon: LinkAddon;
  readonly timeoutMs: number;
  readonly #windows = new Set<Window>();
  /** Request id → keys of its chain that the daemon holds. */
  readonly #kept = new Map<number, number>();
  #link: Link | undefined;
  #hello: HelloReply | undefined;
  #handles: readonly number[] = [];
  #heartbeat: NodeJS.Timeout | undefined;
  #reconnect: NodeJS.Timeout | undefined;
  #backoffMs = RECONNECT_MS_MIN;
  #closed = false;
  #connecting: Promise<void> | undefined;

  constructor(options: ClientOptions) {
    this.options = options;
    this.addon = options.addon ?? loadAddon();
    this.timeoutMs = options.timeoutMs ?? 5_000;
  }

  /** A client that is connected; or, unless `strict`, one that keeps trying. */
  static async connect(options: ClientOptions): Promise<CairnClient> {
    const client = new CairnClient(options);
    try {
      await client.connect();
    } catch (error) {
      if (options.strict === true) {
        client.close();
        throw error;
      }
      client.#later();
    }
    return client;
  }

  get connected(): boolean {
    return this.#hello !== undefined && this.#link?.open === true;
  }

  /** The reply to HELLO on the live connection. */
  get session(): HelloReply | undefined {
    return this.connected ? this.#hello : undefined;
  }

  /** The live connection, for BatchPort. @throws CairnError unavailable */
  get link(): Link {
    return this.#live();
  }

  /** Connects, says HELLO, registers windows. @throws CairnError */
  async connect(): Promise<void> {
    if (this.#closed) throw new CairnError("unavailable", "the client is closed");
    if (this.connected) return;
    this.#connecting ??= this.#connect().finally(() => {
      this.#connecting = undefined;
    });
    await this.#connecting;
  }

  async #connect(): Promise<void> {
    const link = new Link(this.addon, this.options.socket, () => this.#lost(link));
    try {
      this.#link = link;
      const reply = await this.#sayHello(link);
      this.#handles = reply.namespaces.map(({ handle }) => handle);
      for (const window of this.#windows) await registerWindow(this, window);
      this.#hello = reply;
      this.#backoffMs = RECONNECT_MS_MIN;
      this.#startHeartbeat(reply.heartbeatMs);
      this.options.onEpoch?.(reply.epoch);
    } catch (error) {
      link.close("HELLO failed");
      throw error;
    }
  }

  async #sayHello(link: Link): Promise<HelloReply> {
    const { options } = this;
    const body = encodeCold({
      protocol: [PROTOCOL_VERSION],
      engineId: options.engineId,
      role: options.role ?? "scheduler",
      rank: options.rank ?? 0,
      ranks: options.ranks ?? 1,
      engine: options.engine ?? { name: "node", version: process.version },
      namespaces: options.namespaces,
    });
    link.out.set(body, HEADER_BYTES);
    const map = await this.#cold(link, OP.HELLO, 0, body.byteLength);
    return map as unknown as HelloReply;
  }

  #startHeartbeat(everyMs: number): void {
    if (this.options.heartbeat === false) return;
    clearInterval(this.#heartbeat);
    this.#heartbeat = setInterval(() => {
      try {
        this.#link?.send(OP.HEARTBEAT, FLAG.NO_REPLY, 0, 0, 0, 0, 0, undefined);
      } catch {
        // The connection is going; its end is reported by itself.
      }
    }, everyMs);
    this.#heartbeat.unref();
  }

  #lost(link: Link): void {
    if (this.#link !== link) return;
    clearInterval(this.#heartbeat);
    this.#link = undefined;
    this.#hello = undefined;
    this.#kept.clear();
    for (const window of this.#windows) {
      window.region = 0;
      if (window.unsettled) this.#renew(window);
    }
    this.#later();
  }

  /** The daemon may still write into the window's memory: it gets another. */
  #renew(window: Window): void {
    try {
      if (this.#closed) discardWindow(this.addon, window);
      else renewWindow(this.addon, window);
    } catch {
      // No memory for another: the window stays unregistered for ever, and its jobs are misses.
      this.#windows.delete(window);
    }
  }

  #later(): void {
    if (this.#closed || this.options.reconnect === false || this.#reconnect !== undefined) return;
    this.#reconnect = setTimeout(() => {
      this.#reconnect = undefined;
      this.connect().catch(() => this.#later());
    }, this.#backoffMs);
    this.#reconnect.unref();
    this.#backoffMs = Math.min(RECONNECT_MS_MAX, this.#backoffMs * 2);
  }

  /** Ends the connection; the daemon frees what it held. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#reconnect);
    clearInterval(this.#heartbeat);
    this.#link?.close("closed by the client");
    for (const { memfd } of this.#windows) if (memfd !== -1) this.addon.closeDescriptor(memfd);
    this.#windows.clear();
  }

  /** Longest readable prefix of a chain, leased under `requestId`. A fault is a miss. */
  async lookup(
    requestId: number,
    keys: Uint8Array,
    options: LookupOptions = {},
  ): Promise<LookupAnswer> {
    try {
      return await this.#lookup(requestId, keys, options);
    } catch (error) {
      return this.#soften(error, MISS);
    }
  }

  async #lookup(
    requestId: number,
    keys: Uint8Array,
    options: LookupOptions,
  ): Promise<LookupAnswer> {
    const descriptor = this.namespace(options.namespace ?? 0);
    const total = countKeys(keys, descriptor);
    if (options.keepChain !== true) return this.#ask(requestId, 0, keys, options);
    const held = Math.min(this.#kept.get(requestId) ?? 0, total);
    try {
      const rest = keys.subarray(held * descriptor.keyBytes);
      const answer = await this.#ask(requestId, held, rest, options);
      this.#keep(requestId, total);
      return answer;
    } catch (error) {
      const forgotten = error instanceof CairnError && error.errorName === "malformedFrame";
      if (!forgotten || held === 0) throw error;
      const answer = await this.#ask(requestId, 0, keys, options);
      this.#keep(requestId, total);
      return answer;
    }
  }

  #keep(requestId: number, keys: number): void {
    this.#kept.delete(requestId);
    this.#kept.set(requestId, keys);
    if (this.#kept.size <= KEPT_CHAINS_MAX) return;
    for (const oldest of this.#kept.keys()) {
      this.#kept.delete(oldest);
      return;
    }
  }

  #ask(
    requestId: number,
    held: number,
    keys: Uint8Array,
    options: LookupOptions,
  ): Promise<LookupAnswer> {
    const link = this.#live();
    const position = options.namespace ?? 0;
    const { keyBytes } = this.namespace(position);
    const rate = options.prefillTokensPerSecond ?? 0;
    const bodyBytes = writeLookup(link, held, rate, keys);
    const flags =
      (options.keepChain === true ? FLAG.KEEP_CHAIN : 0) |
      (options.noLease === true ? FLAG.NO_LEASE : 0);
    return new Promise((resolve, reject) => {
      const expectation = {
        deadlineAt: performance.now() + this.timeoutMs,
        reply: (reply: Reply) => {
          resolve(readLookup(reply, keyBytes));
          return true;
        },
        fail: reject,
      };
      const count = keys.byteLength / keyBytes;
      const handle = this.handle(position);
      const { LOOKUP } = OP;
      link.send(LOOKUP, flags, link.tag(), requestId, count, handle, bodyBytes, expectation);
    });
  }

  /** Copies leased blocks into window rows. Blocks that fail are named; a fault fails them all. */
  async load(request: LoadRequest): Promise<JobResult> {
    let count = 0;
    try {
      count = countKeys(request.keys, request.window.descriptor);
      const link = this.#live();
      const bodyBytes = writeLoad(link, request, count);
      const waitMs = (request.deadlineMs ?? LIMITS.loadDeadlineMs) + COMPLETION_GRACE_MS;
      return await new Promise((resolve, reject) => {
        const expectation = {
          deadlineAt: performance.now() + waitMs,
          reply: (reply: Reply) => {
            resolve(readCompletion(reply));
            return true;
          },
          fail: (error: CairnError) => {
            reject(error);
            this.jobFailed(link, request.window, error);
          },
        };
        const handle = this.handle(request.window.namespace);
        const tag = link.tag();
        link.send(OP.LOAD, 0, tag, request.lease, count, handle, bodyBytes, expectation);
      });
    } catch (error) {
      const refused =
        error instanceof CairnError ? error : new CairnError("internal", String(error));
      return this.#soften(error, loadRefused(count, refused));
    }
  }

  /**
   * A job without its completion may still write into the window: the connection is given up, which makes
   * the daemon end it, and the window gets other memory, for a daemon that is frozen ends nothing.
   */
  jobFailed(link: Link, window: Window, error: CairnError): void {
    const timedOut = error.errorName === "deadlineExceeded";
    // On an open connection any other error is the daemon's answer: it took no job.
    if (timedOut || !link.open) window.unsettled = true;
    if (timedOut) link.close("a job was not completed in time");
  }

  /** Offers blocks; gathers and sends what the daemon wants; resolves with the acknowledgement. */
  async store(request: StoreRequest): Promise<StoreResult> {
    let count = 0;
    try {
      count = countKeys(request.keys, request.window.descriptor);
      return await this.#store(request, count);
    } catch (error) {
      return this.#soften(error, storeRefused(count));
    }
  }

  #store(request: StoreRequest, count: number): Promise<StoreResult> {
    const link = this.#live();
    const bodyBytes = writeStore(link, request, count);
    const flags = request.gather === undefined ? FLAG.DATA_READY : 0;
    const fillMs = this.#hello?.limits.storeFillMs ?? this.timeoutMs;
    const waitMs = Math.max(fillMs, request.deadlineMs ?? 0) + COMPLETION_GRACE_MS;
    return new Promise((resolve, reject) => {
      let first: StoreReply | undefined;
      let fillTag = 0;
      const expectation = {
        deadlineAt: performance.now() + waitMs,
        reply: (reply: Reply) => {
          if ((reply.header.flags & FLAG.COMPLETION) !== 0) {
            link.forget(fillTag);
            if (first !== undefined) resolve({ ...readCompletion(reply), ...storeFacts(first) });
            return true;
          }
          first = readStoreReply(reply);
          if (first.job === 0) {
            const nothing = { landed: 0, failed: [], bytes: 0, microseconds: 0 };
            resolve({ ...nothing, ...storeFacts(first) });
            return true;
          }
          if (request.gather !== undefined && first.wanted > 0) {
            fillTag = this.#gather(link, request, first, reject);
          }
          return false;
        },
        fail: (error: CairnError) => {
          link.forget(fillTag);
          reject(error);
          this.jobFailed(link, request.window, error);
        },
      };
      const handle = this.handle(request.window.namespace);
      const lease = request.lease ?? 0;
      link.send(OP.STORE, flags, link.tag(), lease, count, handle, bodyBytes, expectation);
    });
  }

  /**
   * Gathers the wanted blocks and sends FILL, which is answered only when it is refused; that, and a gather that
   * throws, cancels the job. Tag under which a refusal would come, 0 if nothing was sent.
   */
  #gather(
    link: Link,
    request: StoreRequest,
    first: StoreReply,
    reject: (error: unknown) => void,
  ): number {
    const giveUp = (error: unknown): void => {
      reject(error);
      try {
        link.send(OP.CANCEL, 0, link.tag(), first.job, 0, 0, 0, undefined);
      } catch {
        // The connection is going, and the job with it.
      }
    };
    try {
      let filled = 0;
      for (let index = 0; index < first.statuses.length; index++) {
        if (first.statuses[index] !== 2) continue;
        const row = request.rows[index]!;
        request.gather?.(index, request.window.row(row));
        link.view.setUint32(HEADER_BYTES + filled * 8, index, true);
        link.view.setUint32(HEADER_BYTES + filled * 8 + 4, row, true);
        filled++;
      }
      const tag = link.tag();
      const refusal = { deadlineAt: Number.POSITIVE_INFINITY, reply: () => true, fail: giveUp };
      link.send(OP.FILL, 0, tag, first.job, filled, 0, filled * 8, refusal);
      return tag;
    } catch (error) {
      giveUp(error);
      return 0;
    }
  }

  /** Ends a request: its lease and kept chain. Fire and forget. */
  endRequest(requestId: number): void {
    this.#kept.delete(requestId);
    this.#tell(OP.END_REQUEST, requestId, 0, 0, 0);
  }

  /** Chains that were used, each by the key of its deepest block. Fire and forget. */
  touch(keys: Uint8Array, namespace = 0): void {
    const count = countKeys(keys, this.namespace(namespace));
    this.#link?.out.set(keys, HEADER_BYTES);
    this.#tell(OP.TOUCH, 0, count, this.#handles[namespace] ?? 0, keys.byteLength);
  }

  #tell(op: number, id: number, count: number, handle: number, bodyBytes: number): void {
    if (!this.connected) return;
    try {
      this.#link?.send(op, FLAG.NO_REPLY, 0, id, count, handle, bodyBytes, undefined);
    } catch {
      // Advice that does not arrive costs nothing.
    }
  }

  async hint(request: HintRequest): Promise<Advice> {
    const { namespace = 0, ...rest } = request;
    return (await this.cold(OP.HINT, 0, () => ({
      ...rest,
      namespace: this.handle(namespace),
    }))) as unknown as Advice;
  }

  async prefetch(lease: number, deadlineMs?: number): Promise<Advice> {
    return (await this.cold(OP.PREFETCH, lease, () => ({ deadlineMs }))) as unknown as Advice;
  }

  /**
   * PREFETCH of a chain that a LOOKUP of this request named, whether or not any of it was found. Resolves when it has
   * ended: whole, at what cannot be had, or at the deadline. `resident`: blocks of the chain in DRAM from its root on.
   */
  prefetchRequest(requestId: number, keys: Uint8Array, deadlineMs: number): Promise<Prefetched> {
    const link = this.#live();
    const body = encodeCold({ keys, deadlineMs });
    link.out.set(body, HEADER_BYTES);
    const handle = this.handle(0);
    return new Promise((resolve, reject) => {
      const deadlineAt = performance.now() + deadlineMs + COMPLETION_GRACE_MS;
      const expectation = { deadlineAt, reply: prefetchReplies(resolve), fail: reject };
      const tag = link.tag();
      link.send(OP.PREFETCH, FLAG.BY_REQUEST, tag, requestId, 0, handle, body.length, expectation);
    });
  }

  /** Verdict of an incarnation proof: the stored block equals the computed one, or not. */
  async prove(key: Uint8Array, ok: boolean, namespace = 0): Promise<boolean> {
    const reply = await this.cold(OP.PROVE, 0, () => ({
      namespace: this.handle(namespace),
      key,
      ok,
    }));
    return reply["proven"] === true;
  }

  async stats(): Promise<ColdMap> {
    return this.cold(OP.STATS, 0, undefined);
  }

  /** Renews all leases; the daemon answers how many the instance holds. */
  async heartbeat(): Promise<number> {
    return (await this.#plain(OP.HEARTBEAT, 0)).count;
  }

  /** Gives up a LOAD (its tag) or STORE (its job id). True if it was in flight; no byte lands after. */
  async cancel(job: number): Promise<boolean> {
    return (await this.#plain(OP.CANCEL, job)).count === 1;
  }

  /** Resolves once no job of this connection is in flight. */
  async flush(): Promise<void> {
    await this.#plain(OP.FLUSH, 0);
  }

  /** A window of rows for one namespace, registered and with its layout proved. @throws CairnError */
  async createWindow(options: WindowOptions): Promise<Window> {
    this.#live();
    const window = await makeWindow(this, options);
    this.#windows.add(window);
    return window;
  }

  /** Takes a window back from the daemon, after every copy drained. */
  async releaseWindow(window: Window): Promise<void> {
    this.#windows.delete(window);
    if (window.region !== 0) await this.#plain(OP.UNREGISTER, window.region);
    window.region = 0;
    if (window.memfd !== -1) this.addon.closeDescriptor(window.memfd);
    window.memfd = -1;
  }

  namespace(position: number): NamespaceDescriptor {
    const descriptor = this.options.namespaces[position];
    if (descriptor === undefined) throw new CairnError("unknownNamespace", `position ${position}`);
    return descriptor;
  }

  /** Handle on the wire of a namespace position. */
  handle(position: number): number {
    const handle = this.#handles[position];
    if (handle === undefined) throw new CairnError("unavailable", "not connected");
    return handle;
  }

  /** One cold call; `body` is built when the connection is known to be open. @throws CairnError */
  async cold(
    op: number,
    id: number,
    body: (() => object) | undefined,
    descriptor = -1,
    onDescriptor?: (descriptor: number) => void,
  ): Promise<ColdMap> {
    const link = this.#link;
    if (link === undefined) throw new CairnError("unavailable", "not connected");
    const bytes = body === undefined ? new Uint8Array(0) : encodeCold(body());
    link.out.set(bytes, HEADER_BYTES);
    return this.#cold(link, op, id, bytes.byteLength, descriptor, onDescriptor);
  }

  #cold(
    link: Link,
    op: number,
    id: number,
    bodyBytes: number,
    descriptor = -1,
    onDescriptor?: (descriptor: number) => void,
  ): Promise<ColdMap> {
    return new Promise((resolve, reject) => {
      const expectation = {
        deadlineAt: performance.now() + this.timeoutMs,
        reply: (reply: Reply) => {
          if (reply.descriptor !== -1) onDescriptor?.(reply.descriptor);
          resolve(decodeCold(reply.body));
          return true;
        },
        fail: reject,
      };
      link.send(op, 0, link.tag(), id, 0, 0, bodyBytes, expectation, descriptor);
    });
  }

  #plain(op: number, id: number): Promise<{ count: number; id: number }> {
    this.#live();
    return this.acknowledged(op, id);
  }

  /** A call without a body that is answered without one; also before HELLO and windows are through. */
  async acknowledged(op: number, id: number): Promise<{ count: number; id: number }> {
    const link = this.#link;
    if (link === undefined) throw new CairnError("unavailable", "not connected");
    return new Promise((resolve, reject) => {
      const expectation = {
        deadlineAt: performance.now() + this.timeoutMs + LIMITS.storeFillMsMax,
        reply: ({ header }: Reply) => {
          resolve({ count: header.count, id: header.id });
          return true;
        },
        fail: reject,
      };
      link.send(op, 0, link.tag(), id, 0, 0, 0, expectation);
    });
  }

  #live(): Link {
    const link = this.#link;
    if (link === undefined || !this.connected) {
      throw new CairnError("unavailable", "no daemon is connected");
    }
    return link;
  }

  /** In strict mode faults are thrown; otherwise they are a miss. */
  #soften<T>(error: unknown, miss: T): T {
    if (this.options.strict === true) throw error;
    return miss;
  }
}

function storeFacts(reply: StoreReply) {
  const { statuses, wanted, pending, parentAbsent, residentDepth } = reply;
  return { statuses, wanted, pending, parentAbsent, residentDepth };
}
