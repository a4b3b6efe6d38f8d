/**
 * PREFETCH: lifts a chain that an engine has announced into DRAM before it is loaded. The chain is one that the
 * daemon holds for a request (LOOKUP with keepChain), the whole keys in the call itself, or what the lease stands on.
 * It touches no engine memory, so it is no job: FLUSH and UNREGISTER do not wait for it. It ends in one completion,
 * whatever happens: done, nothing more to be had, deadline, CANCEL, END_REQUEST.
 */
import { CairnError } from "../errors.ts";
import { NO_BLOCK, TIER } from "../ledger/types.ts";
import { LIMITS } from "../limits.ts";
import { DISK_PRIORITY } from "../transfer/copies.ts";
import {
  type ChainKeys,
  chainKeysOf,
  LIFT,
  type Lift,
  type Prefetcher,
} from "../transfer/prefetcher.ts";
import { bytesField, type ColdMap, decodeCold, integerField } from "./codec.ts";
import { deadlineOf, type EngineContext, type InboundFrame } from "./context.ts";
import type { Lease } from "./leases.ts";
import type { Namespace } from "./namespaces.ts";
import { BODY } from "./outbound.ts";
import { COMPLETION_FIXED_BYTES, FLAG, OP } from "./protocol.ts";
import type { Connection, Instance } from "./sessions.ts";
import { TWO_32 } from "../words.ts";

/** One PREFETCH under way. */
interface Call {
  readonly connection: Connection;
  readonly instance: Instance;
  readonly requestId: number;
  readonly tag: number;
  readonly startedAt: number;
  readonly cancelTags: number[];
  lift: Lift | undefined;
}

export class PrefetchCalls {
  readonly #context: EngineContext;
  readonly #prefetcher: Prefetcher;
  /** Few: prefetchesMax. */
  readonly #calls = new Set<Call>();

  constructor(context: EngineContext, prefetcher: Prefetcher) {
    this.#context = context;
    this.#prefetcher = prefetcher;
  }

  /** @throws CairnError unknownLease, unknownNamespace, malformedFrame */
  prefetch(frame: InboundFrame): void {
    const { connection, instance } = frame;
    const { tag } = frame.header;
    const request = this.#request(frame);
    const body = decodeCold(frame.coldBody());
    const requested = optionalInteger(body, "deadlineMs", LIMITS.loadDeadlineMsMax);
    const priority = optionalInteger(body, "priority", DISK_PRIORITY.OTHER);
    const namespace = this.#namespace(frame, request);
    if (this.#find(connection, tag) !== undefined || connection.jobs.has(tag)) {
      throw new CairnError("malformedFrame", "tag names a job in flight");
    }
    const chain = namespace === undefined ? undefined : this.#chain(request, namespace, body);
    const refusal = this.#prefetcher.refusal() ?? (chain === undefined ? NO_CHAIN : undefined);
    if (refusal !== undefined || chain === undefined || namespace === undefined) {
      this.#reply(frame, { verdict: "refused", reason: refusal ?? NO_CHAIN });
      return;
    }
    const count = Math.min(chain.count, this.#blocksMax(namespace));
    const clipped = count < chain.count;
    this.#reply(frame, {
      verdict: clipped ? "clipped" : "accepted",
      ...(clipped ? { reason: "a chain may take half of DRAM" } : {}),
      blocks: count,
    });
    const call: Call = {
      connection,
      instance,
      requestId: request.requestId,
      tag,
      startedAt: frame.at,
      cancelTags: [],
      lift: undefined,
    };
    this.#calls.add(call);
    const deadlineAt = frame.at + deadlineOf(requested ?? 0, LIMITS.loadDeadlineMs);
    const done = (outcome: number, resident: number, bytes: number): void =>
      this.#complete(call, outcome, resident, bytes);
    call.lift = this.#prefetcher.begin({
      chain: { ...chain, count },
      deadlineAt,
      priority: priority ?? DISK_PRIORITY.PREFETCH,
      done,
    });
  }

  /** CANCEL of a PREFETCH by its tag; false: no such one. */
  cancel(connection: Connection, tag: number, cancelTag: number): boolean {
    const call = this.#find(connection, tag);
    if (call === undefined) return false;
    call.cancelTags.push(cancelTag);
    this.#end(call);
    return true;
  }

  /** The request is over. */
  endRequest(instance: Instance, requestId: number): void {
    for (const call of this.#calls) {
      if (call.instance === instance && call.requestId === requestId) this.#end(call);
    }
  }

  /** The peer is gone, or all leases of its instance are. */
  endConnection(connection: Connection): void {
    for (const call of this.#calls) if (call.connection === connection) this.#end(call);
  }

  #end(call: Call): void {
    if (call.lift !== undefined) this.#prefetcher.cancel(call.lift, LIFT.CANCELLED);
  }

  #find(connection: Connection, tag: number): Call | undefined {
    for (const call of this.#calls) {
      if (call.connection === connection && call.tag === tag) return call;
    }
    return undefined;
  }

  /** Only what was announced: a lease of the instance, or a request that a LOOKUP named. */
  #request(frame: InboundFrame): Lease {
    const { instance, id } = frame;
    if (!frame.has(FLAG.BY_REQUEST)) return this.#context.leases.require(instance, id);
    const request = instance.requests.get(id);
    if (request === undefined) throw new CairnError("unknownLease", "no such request is open");
    return request;
  }

  /** The header's namespace, else the lease's; undefined when neither names one. */
  #namespace(frame: InboundFrame, request: Lease): Namespace | undefined {
    const handle = frame.header.namespace;
    if (handle === 0) return request.namespace;
    const view = frame.instance.view(handle);
    return view.blind ? undefined : view.namespace;
  }

  #chain(request: Lease, namespace: Namespace, body: ColdMap): ChainKeys | undefined {
    const { index, keyWords, keyBytes, descriptor } = namespace;
    if (!descriptor.chained) return undefined;
    let words: Uint32Array | undefined;
    if (body["keys"] !== undefined && body["keys"] !== null) {
      const keys = bytesField(body, "keys");
      if (keys.byteLength % keyBytes !== 0) {
        throw new CairnError("malformedFrame", `keys of ${keys.byteLength} bytes`, keyBytes);
      }
      words = new Uint32Array(keys.slice().buffer);
    } else if (request.chainKeys > 0) {
      words = request.chain.slice(0, request.chainKeys * keyWords);
    } else if (request.id !== 0 && request.namespace === namespace) {
      const block = this.#context.ledger.leaseBlock(request.id);
      if (block !== NO_BLOCK) words = chainKeysOf(this.#context.ledger, block).words;
    }
    if (words === undefined || words.length === 0) return undefined;
    const count = Math.min(words.length / keyWords, LIMITS.prefetchKeysMax);
    return { namespace: index, keyWords, words, count };
  }

  #blocksMax(namespace: Namespace): number {
    const { options, slots } = this.#context.ledger.core.tier(TIER.DRAM);
    const total =
      options.slotsPerSlab(namespace.rowBytes) * slots.slabs * LIMITS.prefetchShareOfDram;
    return Math.max(1, Math.floor(total / namespace.shards));
  }

  #reply(frame: InboundFrame, body: object): void {
    const { out } = this.#context;
    out.cold(frame.connection.id, OP.PREFETCH, frame.header.tag, frame.id, body);
  }

  #complete(call: Call, outcome: number, resident: number, bytes: number): void {
    this.#calls.delete(call);
    const { out } = this.#context;
    const { connection, tag } = call;
    if (connection.closed) return;
    const microseconds = Math.max(1, Math.round((performance.now() - call.startedAt) * 1_000));
    const { view } = out;
    view.setUint32(BODY, outcome, true);
    view.setUint32(BODY + 4, Math.min(microseconds, 0xffff_ffff), true);
    view.setUint32(BODY + 8, bytes % TWO_32, true);
    view.setUint32(BODY + 12, Math.floor(bytes / TWO_32), true);
    out.begin(OP.PREFETCH, FLAG.REPLY | FLAG.COMPLETION, tag, tag, resident);
    out.end(connection.id, COMPLETION_FIXED_BYTES);
    for (const cancelTag of call.cancelTags) {
      out.acknowledge(connection.id, OP.CANCEL, cancelTag, tag, 1);
    }
  }
}

const NO_CHAIN = "no chain is known: send keys, or keep the chain in LOOKUP";

function optionalInteger(body: ColdMap, name: string, maximum: number): number | undefined {
  const value = body[name];
  if (value === undefined || value === null) return undefined;
  return integerField(body, name, 0, maximum);
}
