/**
 * Who is talking to us. A connection is one process; an instance is one engine life with all its
 * processes (a scheduler that looks up and workers that load). What a connection owns dies with it:
 * regions, jobs, the leases it took. What the instance owns dies with its last connection: proofs,
 * chains, budgets.
 */
import { assert } from "../assert.ts";
import { CairnError } from "../errors.ts";
import type { Job } from "./jobs.ts";
import type { Lease } from "./leases.ts";
import { LIMITS } from "../limits.ts";
import { hex, type Namespace } from "./namespaces.ts";
import { Pins } from "./pins.ts";
import type { Region } from "./regions.ts";

export interface Tenant {
  readonly name: string;
  readonly uids: readonly number[];
}

export class Connection {
  readonly id: number;
  readonly pid: number;
  readonly uid: number;
  readonly tenant: string;
  instance: Instance | undefined;
  role: "scheduler" | "worker" = "scheduler";
  rank = 0;
  closed = false;
  readonly regions = new Map<number, Region>();
  /** LOADs by tag, STOREs by job id (at least 2^32, so the two never meet). */
  readonly jobs = new Map<number, Job>();
  /** Tags of FLUSH calls that wait for `jobs` to become empty. */
  readonly flushTags: number[] = [];

  constructor(id: number, pid: number, uid: number, tenant: string) {
    this.id = id;
    this.pid = pid;
    this.uid = uid;
    this.tenant = tenant;
  }
}

/** A namespace as one instance sees it; handle = position + 1. */
export class NamespaceView {
  readonly handle: number;
  /** What HELLO declared. */
  readonly declared: Namespace;
  /** The same, or the variant that replaced it when the instance's proof failed. */
  namespace: Namespace;
  /** No further namespace could be made for a failed proof: everything here is a miss. */
  blind = false;
  /** This instance has compared a stored block with its own and found them equal. */
  proven = false;
  /** Keys, in hex, that a LOOKUP was answered proofWanted for; the oldest is forgotten first. */
  readonly #askedKeys = new Set<string>();

  constructor(handle: number, namespace: Namespace) {
    this.handle = handle;
    this.declared = namespace;
    this.namespace = namespace;
  }

  /** A LOOKUP has been answered proofWanted. */
  get asked(): boolean {
    return this.#askedKeys.size > 0;
  }

  ask(key: Uint8Array): void {
    this.#askedKeys.add(hex(key));
    if (this.#askedKeys.size <= LIMITS.proofsAskedMax) return;
    const [oldest] = this.#askedKeys;
    assert(oldest !== undefined, "a set above its bound has entries");
    this.#askedKeys.delete(oldest);
  }

  /** Takes the question back; false when this key was not asked for. */
  answered(key: Uint8Array): boolean {
    return this.#askedKeys.delete(hex(key));
  }
}

export class Instance {
  readonly number: number;
  readonly key: string;
  readonly engineId: string;
  readonly engine: string;
  readonly tenant: string;
  readonly uid: number;
  readonly views: NamespaceView[];
  readonly connections = new Set<Connection>();
  /** Request id → lease and kept chain. */
  readonly requests = new Map<number, Lease>();
  leaseCount = 0;
  readonly pins = new Pins();
  /** Bytes that leases stored on top of their pins. */
  storedPinnedBytes = 0;
  windowBytes = 0;
  chainBytes = 0;
  /** Monotonic milliseconds of the last HEARTBEAT or LOOKUP. */
  aliveAt = 0;

  constructor(
    number: number,
    key: string,
    connection: Connection,
    engineId: string,
    engine: string,
    namespaces: readonly Namespace[],
  ) {
    this.number = number;
    this.key = key;
    this.engineId = engineId;
    this.engine = engine;
    this.tenant = connection.tenant;
    this.uid = connection.uid;
    this.views = namespaces.map((namespace, index) => new NamespaceView(index + 1, namespace));
  }

  /** What its leases pin; a prefix that several share counts once (pins.ts). */
  get pinnedBytes(): number {
    return this.pins.bytes + this.storedPinnedBytes;
  }

  /** @throws CairnError unknownNamespace */
  view(handle: number): NamespaceView {
    const view = this.views[handle - 1];
    if (view === undefined) throw new CairnError("unknownNamespace", `handle ${handle}`, handle);
    return view;
  }
}

export class Sessions {
  readonly connections = new Map<number, Connection>();
  readonly instances = new Map<string, Instance>();
  readonly #tenants: readonly Tenant[];
  #lastInstance = 0;

  /** @param tenants listener 0 is the common socket, listener i the socket of tenants[i]. */
  constructor(tenants: readonly Tenant[]) {
    assert(tenants.length > 0, "there is always the default tenant");
    this.#tenants = tenants;
  }

  /**
   * The tenant of a new peer: the listener's, or on the common socket the one that lists its uid.
   * @throws CairnError notPermitted
   */
  tenantOf(listener: number, uid: number): string {
    const tenant = this.#tenants[listener];
    assert(tenant !== undefined, "every listener has a tenant");
    if (listener > 0) {
      if (tenant.uids.length > 0 && !tenant.uids.includes(uid)) {
        throw new CairnError("notPermitted", `uid ${uid} on the socket of ${tenant.name}`, uid);
      }
      return tenant.name;
    }
    const mapped = this.#tenants.find((candidate) => candidate.uids.includes(uid));
    return (mapped ?? tenant).name;
  }

  accept(id: number, pid: number, uid: number, tenant: string): Connection {
    assert(!this.connections.has(id), "a connection is accepted once");
    const connection = new Connection(id, pid, uid, tenant);
    this.connections.set(id, connection);
    return connection;
  }

  /**
   * Opens the instance of an engine id, or joins the live one.
   * @throws CairnError instanceMismatch
   */
  join(
    connection: Connection,
    engineId: string,
    engine: string,
    namespaces: readonly Namespace[],
    now: number,
  ): Instance {
    assert(connection.instance === undefined, "a connection joins one instance");
    const key = `${connection.tenant}\n${engineId}`;
    let instance = this.instances.get(key);
    if (instance === undefined) {
      const number = ++this.#lastInstance;
      instance = new Instance(number, key, connection, engineId, engine, namespaces);
      instance.aliveAt = now;
      this.instances.set(key, instance);
    }
    if (instance.uid !== connection.uid) {
      throw new CairnError("instanceMismatch", `uid ${connection.uid}, instance ${instance.uid}`);
    }
    instance.connections.add(connection);
    connection.instance = instance;
    return instance;
  }

  /** The live instance of an engine id in this connection's tenant. */
  find(connection: Connection, engineId: string): Instance | undefined {
    return this.instances.get(`${connection.tenant}\n${engineId}`);
  }

  /** Forgets the connection; true when it was the last of its instance, which ends with it. */
  leave(connection: Connection): boolean {
    connection.closed = true;
    this.connections.delete(connection.id);
    const instance = connection.instance;
    if (instance === undefined) return false;
    instance.connections.delete(connection);
    if (instance.connections.size > 0) return false;
    this.instances.delete(instance.key);
    return true;
  }
}
