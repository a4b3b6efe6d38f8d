/**
 * Namespaces known to this daemon: digest → index in the ledger. The same index stands in every slot
 * header, so the table is persisted beside the payload and indexes are dense and never renumbered.
 *
 * A namespace also remembers who wrote into it before having proved anything (DESIGN §7 "incarnation
 * proof"): blocks of an earlier daemon life, one instance, or several. An instance must prove a stored
 * block against its own computation while somebody else's unproven blocks may be there.
 */
import { randomBytes } from "node:crypto";
import { assert } from "../assert.ts";
import { CairnError } from "../errors.ts";
import type { LedgerApi } from "../ledger/types.ts";
import { type ColdMap, mapValue } from "./codec.ts";
import { namespaceDigest, parseDescriptor } from "./descriptor.ts";
import type { NamespaceDescriptor } from "./protocol.ts";

export interface Namespace {
  /** Index in the ledger and in slot headers. */
  readonly index: number;
  readonly digest: Uint8Array;
  readonly digestHex: string;
  readonly descriptor: NamespaceDescriptor;
  readonly tenant: string;
  /** Empty, or the nonce of a variant that hides older blocks. */
  readonly variant: string;
  readonly keyBytes: number;
  readonly keyWords: number;
  readonly rowBytes: number;
  readonly shards: number;
  /** Bytes of one block over all shards. */
  readonly blockBytes: number;
  /** Blocks were found at start. */
  recovered: boolean;
  /** Instance number of the only unproven writer of this life; 0 = none, −1 = several. */
  unprovenWriter: number;
}

/** What a slab-backed tier offers for namespaces: room for a row, and a table that survives. */
export interface NamespaceStore {
  slotsPerSlab(payloadBytes: number): number;
  putNamespace(index: number, digest: Uint8Array, descriptor: Uint8Array): void;
}

export interface StoredNamespace {
  readonly index: number;
  readonly digest: Uint8Array;
  readonly descriptor: Uint8Array;
}

export class Namespaces {
  readonly #ledger: Pick<LedgerApi, "addNamespace">;
  readonly #store: NamespaceStore;
  readonly #namespacesMax: number;
  readonly #tenantIndex: ReadonlyMap<string, number>;
  readonly #onAdded: (namespace: Namespace) => void;
  readonly #byDigest = new Map<string, Namespace>();
  readonly #list: Namespace[] = [];

  /** @param tenantIndex tenant name → ledger tenant; names no longer configured fall to the last index. */
  constructor(
    ledger: Pick<LedgerApi, "addNamespace">,
    store: NamespaceStore,
    namespacesMax: number,
    tenantIndex: ReadonlyMap<string, number>,
    onAdded: (namespace: Namespace) => void = () => undefined,
  ) {
    this.#ledger = ledger;
    this.#store = store;
    this.#namespacesMax = namespacesMax;
    this.#tenantIndex = tenantIndex;
    this.#onAdded = onAdded;
  }

  get list(): readonly Namespace[] {
    return this.#list;
  }

  get size(): number {
    return this.#list.length;
  }

  at(index: number): Namespace | undefined {
    return this.#list[index];
  }

  /**
   * The namespace of a descriptor, made on first sight.
   * @throws CairnError badDescriptor (a row that no slab holds), tooManyNamespaces
   */
  open(tenant: string, descriptor: NamespaceDescriptor, variant = ""): Namespace {
    const digest = namespaceDigest(descriptor, tenant, variant);
    const known = this.#byDigest.get(hex(digest));
    if (known !== undefined) return known;
    if (this.#store.slotsPerSlab(descriptor.rowBytes) < 1) {
      throw new CairnError("badDescriptor", `rowBytes ${descriptor.rowBytes} exceeds a slab`);
    }
    if (this.#list.length >= this.#namespacesMax) {
      throw new CairnError("tooManyNamespaces", `${this.#namespacesMax} namespaces`);
    }
    this.#persist(digest, JSON.stringify({ descriptor, tenant, variant }));
    return this.#add(digest, descriptor, tenant, variant);
  }

  /**
   * Before the ledger hears of it: a namespace that is known here and not in the pool would take blocks that no
   * header can name. @throws CairnError tooManyNamespaces when the pool's table has no room
   */
  #persist(digest: Uint8Array, json: string): void {
    try {
      this.#store.putNamespace(this.#list.length, digest, new TextEncoder().encode(json));
    } catch (error) {
      if ((error as { code?: unknown }).code !== "ENOSPC") throw error;
      throw new CairnError("tooManyNamespaces", "the pool's table of descriptors is full");
    }
  }

  /** A fresh namespace of the same descriptor in which no older block is. */
  openVariant(of: Namespace): Namespace {
    return this.open(of.tenant, of.descriptor, randomBytes(16).toString("hex"));
  }

  /**
   * Takes back the persisted table, in order of index, before any block is recovered. False: the table
   * has a gap or an entry that does not match its digest, so that the pool cannot be trusted.
   */
  restore(stored: readonly StoredNamespace[]): boolean {
    assert(this.#list.length === 0, "namespaces are restored once, at start");
    const sorted = stored.toSorted((a, b) => a.index - b.index);
    const parsed = sorted.map(parseStored);
    for (const [position, entry] of parsed.entries()) {
      if (entry === undefined || sorted[position]?.index !== position) return false;
    }
    for (const [position, entry] of parsed.entries()) {
      assert(entry !== undefined, "entries were checked above");
      const { descriptor, tenant, variant } = entry;
      const added = this.#add(sorted[position]!.digest, descriptor, tenant, variant);
      assert(added.index === position, "the ledger numbers namespaces in order");
    }
    return true;
  }

  #add(
    digest: Uint8Array,
    descriptor: NamespaceDescriptor,
    tenant: string,
    variant: string,
  ): Namespace {
    const index = this.#ledger.addNamespace({
      keyWords: descriptor.keyBytes / 4,
      shards: descriptor.shards,
      chained: descriptor.chained,
      payloadBytes: descriptor.rowBytes,
      tenant: this.#tenantIndex.get(tenant) ?? this.#tenantIndex.size,
    });
    assert(index === this.#list.length, "namespace indexes are dense");
    const namespace: Namespace = {
      index,
      digest: digest.slice(),
      digestHex: hex(digest),
      descriptor,
      tenant,
      variant,
      keyBytes: descriptor.keyBytes,
      keyWords: descriptor.keyBytes / 4,
      rowBytes: descriptor.rowBytes,
      shards: descriptor.shards,
      blockBytes: descriptor.rowBytes * descriptor.shards,
      recovered: false,
      unprovenWriter: 0,
    };
    this.#list.push(namespace);
    this.#byDigest.set(namespace.digestHex, namespace);
    this.#onAdded(namespace);
    return namespace;
  }
}

interface Persisted {
  readonly descriptor: NamespaceDescriptor;
  readonly tenant: string;
  readonly variant: string;
}

function parseStored(entry: StoredNamespace): Persisted | undefined {
  try {
    const map = JSON.parse(new TextDecoder().decode(entry.descriptor)) as ColdMap;
    const descriptor = parseDescriptor(mapValue(map["descriptor"], "descriptor"));
    const { tenant, variant } = map;
    if (typeof tenant !== "string" || typeof variant !== "string") return undefined;
    const digest = namespaceDigest(descriptor, tenant, variant);
    return hex(digest) === hex(entry.digest) ? { descriptor, tenant, variant } : undefined;
  } catch {
    return undefined; // Not ours or damaged: the caller starts with an empty pool.
  }
}

export function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("hex");
}
