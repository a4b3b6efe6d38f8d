/**
 * Leases and kept chains of instances. The ledger knows which block a lease holds; this side knows whose
 * it is, under which request it was taken, what it costs and when it ends. A lease id is 52 random bits:
 * a client cannot guess another instance's, and one that does is refused all the same.
 *
 * A request may keep its chain here, so that a growing conversation sends only its new keys. Chains are
 * bounded in bytes per instance; the oldest is forgotten first and its client sends it whole again.
 */
import { randomFillSync } from "node:crypto";
import { assert } from "../assert.ts";
import { CairnError } from "../errors.ts";
import type { Ledger } from "../ledger/ledger.ts";
import { type Block, NO_BLOCK } from "../ledger/types.ts";
import { LIMITS } from "../limits.ts";
import type { Namespace } from "./namespaces.ts";
import type { Pin } from "./pins.ts";
import type { Connection, Instance } from "./sessions.ts";
import { TWO_32 } from "../words.ts";

type LeaseLedger = Pick<
  Ledger,
  "leaseOpen" | "leaseClose" | "leaseFollow" | "leaseBlock" | "parentOf"
>;

const NO_WORDS = new Uint32Array(0);

/** One request of an instance: its lease (id 0 = none) and its chain (keys 0 = none). Pooled. */
export class Lease {
  id = 0;
  requestId = 0;
  instance: Instance | undefined;
  connection: Connection | undefined;
  namespace: Namespace | undefined;
  /** Blocks it holds, or will once what it follows is visible. */
  depth = 0;
  /** The prefix that its LOOKUP found, undefined when it fell back or stands elsewhere. */
  pin: Pin | undefined;
  /** Bytes that count for this lease alone: depth below its pin. */
  ownBytes = 0;
  chain: Uint32Array = NO_WORDS;
  chainKeys = 0;
}

/** Random ids, drawn 1,024 at a time. */
class LeaseIds {
  readonly #pool = new Uint32Array(2_048);
  #at = this.#pool.length;

  next(): number {
    if (this.#at === this.#pool.length) {
      randomFillSync(this.#pool);
      this.#at = 0;
    }
    const low = this.#pool[this.#at++]!;
    const high = this.#pool[this.#at++]! & 0xf_ffff;
    return high * TWO_32 + low;
  }
}

export class Leases {
  readonly #ledger: LeaseLedger;
  readonly #byId = new Map<number, Lease>();
  readonly #free: Lease[] = [];
  readonly #ids = new LeaseIds();
  /** Sum over instances; for the gauge. */
  pinnedBytes = 0;

  constructor(ledger: LeaseLedger) {
    this.#ledger = ledger;
  }

  get size(): number {
    return this.#byId.size;
  }

  /** The lease of this id if it is this instance's. @throws CairnError unknownLease */
  require(instance: Instance, id: number): Lease {
    const lease = this.#byId.get(id);
    if (lease === undefined || lease.instance !== instance) {
      throw new CairnError("unknownLease", "no such lease in this instance");
    }
    return lease;
  }

  /**
   * The entry of a request id, made if new; its old lease is given back.
   * @throws CairnError overloaded
   */
  request(connection: Connection, requestId: number, leasesMax: number): Lease {
    const instance = connection.instance;
    assert(instance !== undefined, "a request belongs to an instance");
    let lease = instance.requests.get(requestId);
    if (lease === undefined) {
      if (instance.requests.size >= leasesMax) {
        throw new CairnError("overloaded", "engineApi.leasesPerInstanceMax requests are open");
      }
      lease = this.#free.pop() ?? new Lease();
      assert(lease.instance === undefined && lease.id === 0, "a free lease is blank");
      lease.requestId = requestId;
      lease.instance = instance;
      instance.requests.set(requestId, lease);
    }
    this.release(lease);
    lease.connection = connection;
    return lease;
  }

  /**
   * The longest pin of the instance that `block`, of this depth under the keys at words[at…], stands on:
   * what a lease there would not pin anew.
   */
  shared(
    instance: Instance,
    namespace: Namespace,
    block: Block,
    depth: number,
    words: Uint32Array,
    at: number,
  ): Pin | undefined {
    if (!namespace.descriptor.chained || block === NO_BLOCK) return undefined;
    const pin = instance.pins.candidate(namespace, words, at, depth);
    if (pin === undefined || !this.#above(pin.block, block, depth - pin.depth)) return undefined;
    return pin;
  }

  /** `ancestor` stands `steps` above `block`; false also where that is too far to prove. */
  #above(ancestor: Block, block: Block, steps: number): boolean {
    if (steps < 0 || steps > LIMITS.pinWalkMax) return false;
    let at = block;
    for (let step = 0; step < steps && at !== NO_BLOCK; step++) at = this.#ledger.parentOf(at);
    return at === ancestor;
  }

  /**
   * Takes a lease on `block` for an entry that holds none. words[at…]: keys of its chain; `pin`: what
   * shared() found for this very block and depth.
   */
  open(
    lease: Lease,
    namespace: Namespace,
    block: Block,
    depth: number,
    words: Uint32Array,
    at: number,
    pin: Pin | undefined,
  ): void {
    assert(lease.id === 0 && lease.instance !== undefined, "one lease per request");
    assert(block !== NO_BLOCK && depth > 0, "a lease holds a block");
    let id = this.#ids.next();
    while (id === 0 || this.#byId.has(id)) id = this.#ids.next();
    lease.id = id;
    lease.namespace = namespace;
    this.#byId.set(id, lease);
    lease.instance.leaseCount++;
    const before = lease.instance.pinnedBytes;
    if (namespace.descriptor.chained) {
      const keyAt = at + (depth - 1) * namespace.keyWords;
      lease.pin = lease.instance.pins.take(namespace, block, depth, pin, words, keyAt);
    }
    this.pinnedBytes += lease.instance.pinnedBytes - before;
    this.#charge(lease, depth);
    this.#ledger.leaseOpen(id, lease.instance.number, block);
  }

  /** The lease moves to a deeper block once that is visible. */
  follow(lease: Lease, block: Block, depth: number): void {
    assert(lease.id !== 0, "only a held lease follows");
    if (depth <= lease.depth) return;
    // A client may store another chain under its lease: that one shares nothing.
    if (lease.pin !== undefined && !this.#above(lease.pin.block, block, depth - lease.pin.depth)) {
      this.#unpin(lease);
    }
    this.#ledger.leaseFollow(lease.id, block);
    this.#charge(lease, depth);
  }

  /** The ledger cut the lease short (hole below it). */
  reduced(id: number, depth: number): void {
    const lease = this.#byId.get(id);
    if (lease === undefined) return;
    if (lease.pin !== undefined && lease.pin.depth > depth) this.#unpin(lease);
    this.#charge(lease, depth);
  }

  /** Gives the ledger's lease back; the entry and its chain stay. */
  release(lease: Lease): void {
    if (lease.id === 0) return;
    const instance = lease.instance;
    assert(instance !== undefined, "a held lease has an instance");
    this.#ledger.leaseClose(lease.id);
    this.#byId.delete(lease.id);
    instance.leaseCount--;
    this.#unpin(lease);
    this.#charge(lease, 0);
    lease.id = 0;
    lease.namespace = undefined;
  }

  /** Ends a request: lease and chain. */
  end(lease: Lease): void {
    const instance = lease.instance;
    assert(instance !== undefined, "a request is ended once");
    this.release(lease);
    this.forgetChain(lease);
    instance.requests.delete(lease.requestId);
    lease.instance = undefined;
    lease.connection = undefined;
    lease.requestId = 0;
    if (this.#free.length < 4_096) this.#free.push(lease);
  }

  endRequest(instance: Instance, requestId: number): boolean {
    const lease = instance.requests.get(requestId);
    if (lease === undefined) return false;
    this.end(lease);
    return true;
  }

  /** Frees the requests that `connection` opened, or all of the instance. Returns leases freed. */
  endAll(instance: Instance, connection: Connection | undefined): number {
    let freed = 0;
    for (const lease of instance.requests.values()) {
      if (connection !== undefined && lease.connection !== connection) continue;
      if (lease.id !== 0) freed++;
      this.end(lease);
    }
    return freed;
  }

  /** Frees the leases of an instance that lie in `namespace`, keeping chains. */
  releaseIn(instance: Instance, namespace: Namespace): void {
    for (const lease of instance.requests.values()) {
      if (lease.namespace === namespace) this.release(lease);
    }
  }

  /**
   * Extends the kept chain of a request from `held` keys with `count` keys at words[at…].
   * @throws CairnError malformedFrame with detail = keys held, when fewer than `held` are
   */
  extendChain(
    lease: Lease,
    keyWords: number,
    held: number,
    words: Uint32Array,
    at: number,
    count: number,
  ): void {
    if (lease.chainKeys < held) {
      throw new CairnError("malformedFrame", "the chain is not held", lease.chainKeys);
    }
    const used = held * keyWords;
    const total = used + count * keyWords;
    if (lease.chain.length < total) this.#growChain(lease, total, used);
    const chain = lease.chain;
    for (let index = 0; index < count * keyWords; index++) chain[used + index] = words[at + index]!;
    lease.chainKeys = held + count;
  }

  forgetChain(lease: Lease): void {
    assert(lease.instance !== undefined, "a chain belongs to a request");
    lease.instance.chainBytes -= lease.chain.byteLength;
    lease.chain = NO_WORDS;
    lease.chainKeys = 0;
  }

  #growChain(lease: Lease, words: number, used: number): void {
    const instance = lease.instance;
    assert(instance !== undefined, "a chain belongs to a request");
    if (words * 4 > LIMITS.chainBytesPerInstanceMax) {
      throw new CairnError("tooManyKeys", "the chain exceeds chainBytesPerInstanceMax");
    }
    const grown = new Uint32Array(Math.max(256, Math.ceil(words * 1.25)));
    grown.set(lease.chain.subarray(0, used));
    instance.chainBytes += grown.byteLength - lease.chain.byteLength;
    lease.chain = grown;
    if (instance.chainBytes <= LIMITS.chainBytesPerInstanceMax) return;
    for (const other of instance.requests.values()) {
      if (other === lease || other.chainKeys === 0) continue;
      this.forgetChain(other);
      if (instance.chainBytes <= LIMITS.chainBytesPerInstanceMax) return;
    }
  }

  /** The lease no longer counts on its shared prefix. */
  #unpin(lease: Lease): void {
    const { instance, pin } = lease;
    if (pin === undefined) return;
    assert(instance !== undefined, "a pinned lease has an instance");
    const before = instance.pinnedBytes;
    instance.pins.give(pin);
    lease.pin = undefined;
    this.pinnedBytes += instance.pinnedBytes - before;
  }

  #charge(lease: Lease, depth: number): void {
    const { instance, namespace } = lease;
    assert(instance !== undefined && namespace !== undefined, "a charged lease is held");
    const shared = lease.pin?.depth ?? 0;
    assert(depth >= shared, "a lease is at least as deep as its pin");
    const bytes = (depth - shared) * namespace.blockBytes;
    instance.storedPinnedBytes += bytes - lease.ownBytes;
    this.pinnedBytes += bytes - lease.ownBytes;
    lease.ownBytes = bytes;
    lease.depth = depth;
    assert(instance.storedPinnedBytes >= 0, "pinned bytes never go below zero");
  }
}
