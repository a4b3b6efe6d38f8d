/**
 * Namespaces known to this daemon: digest → index in the ledger. The same index stands in every slot
 * header, so the table is persisted beside the payload and indexes are dense and never renumbered.
 *
 * Rows are scarce and outlive engines, so they are shared out by tenant and used again: when the table, or a
 * tenant's share of it, is full, a new namespace gets the row of the one that was used least recently among
 * those that no instance holds and no record of the ledger names. Headers of the former one cannot be taken
 * for the new one's: their hashes are seeded by the digest (addon/header.h). As long as blocks of an earlier
 * life may still come back (`settled()` is false) no row is given away.
 *
 * A namespace also remembers who wrote into it before having proved anything (DESIGN §7 "incarnation
 * proof"): blocks of an earlier daemon life, one instance, or several. An instance must prove a stored
 * block against its own computation while somebody else's unproven blocks may be there.
 */
import { randomBytes } from "node:crypto";
import { assert } from "../assert.ts";
import { CairnError } from "../errors.ts";
import type { LedgerApi, NamespaceOptions } from "../ledger/types.ts";
import { LIMITS } from "../limits.ts";
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

export interface NamespaceBounds {
  /** Rows of the pool's table. */
  readonly namespacesMax: number;
  /** Rows that one tenant may hold; its descriptors may take the same share of the table's bytes. */
  readonly perTenantMax: number;
}

/**
 * Rows one tenant may hold: what is configured, else (0) an equal share of the table, but no less than one
 * HELLO may name.
 */
export function namespacesPerTenant(
  namespacesMax: number,
  configured: number,
  tenants: number,
): number {
  assert(tenants > 0, "there is always the default tenant");
  const equal = Math.max(LIMITS.namespacesPerHelloMax, Math.floor(namespacesMax / tenants));
  return Math.min(namespacesMax, configured === 0 ? equal : configured);
}

type NamespaceLedger = Pick<LedgerApi, "addNamespace" | "replaceNamespace" | "recordsIn">;

/** Bytes of a row beside its text (NamespaceEntry in addon/arena.cc). */
const ROW_FIXED_BYTES = 24;

/** A row of the table and who needs it. */
interface Row {
  readonly namespace: Namespace;
  /** Bytes it takes in the pool's table. */
  readonly bytes: number;
  /** Instances, and HELLOs under way, that stand on it. */
  holders: number;
  /** Logical time at which it was last opened or let go. */
  usedAt: number;
}

interface Held {
  rows: number;
  bytes: number;
}

export class Namespaces {
  /** All blocks of earlier lives are in the ledger, so that its counts tell what a row still means. */
  settled: () => boolean = () => false;
  readonly #ledger: NamespaceLedger;
  readonly #store: NamespaceStore;
  readonly #bounds: NamespaceBounds;
  readonly #bytesPerTenantMax: number;
  readonly #tenantIndex: ReadonlyMap<string, number>;
  readonly #onPlaced: (namespace: Namespace) => void;
  readonly #byDigest = new Map<string, Namespace>();
  readonly #list: Namespace[] = [];
  readonly #rows: Row[] = [];
  readonly #heldBy = new Map<string, Held>();
  #uses = 0;

  /**
   * @param tenantIndex tenant name → ledger tenant; names no longer configured fall to the last index.
   * @param onPlaced a namespace was added, or took the index of another one.
   */
  constructor(
    ledger: NamespaceLedger,
    store: NamespaceStore,
    bounds: NamespaceBounds,
    tenantIndex: ReadonlyMap<string, number>,
    onPlaced: (namespace: Namespace) => void = () => undefined,
  ) {
    const { namespacesMax, perTenantMax } = bounds;
    assert(perTenantMax > 0 && perTenantMax <= namespacesMax, "a share lies within the table");
    this.#ledger = ledger;
    this.#store = store;
    this.#bounds = bounds;
    this.#bytesPerTenantMax = (LIMITS.namespaceTableBytes * perTenantMax) / namespacesMax;
    this.#tenantIndex = tenantIndex;
    this.#onPlaced = onPlaced;
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
   * The namespace of a descriptor, made on first sight. Until it is held, the next open() may take its row.
   * @throws CairnError badDescriptor (a row that no slab holds), tooManyNamespaces
   */
  open(tenant: string, descriptor: NamespaceDescriptor, variant = ""): Namespace {
    const digest = namespaceDigest(descriptor, tenant, variant);
    const known = this.#byDigest.get(hex(digest));
    if (known !== undefined) {
      this.#rows[known.index]!.usedAt = ++this.#uses;
      return known;
    }
    if (this.#store.slotsPerSlab(descriptor.rowBytes) < 1) {
      throw new CairnError("badDescriptor", `rowBytes ${descriptor.rowBytes} exceeds a slab`);
    }
    const text = encodeRow({ descriptor, tenant, variant });
    // Written before the ledger hears of it: a namespace that is known here and not in the pool would take
    // blocks that no header can name.
    const index = this.#write(tenant, digest, text);
    return this.#place(index, digest, { descriptor, tenant, variant }, text.byteLength);
  }

  /** A fresh namespace of the same descriptor in which no older block is. */
  openVariant(of: Namespace): Namespace {
    return this.open(of.tenant, of.descriptor, randomBytes(16).toString("hex"));
  }

  /** Its row stays with it until as many release() calls. */
  hold(namespace: Namespace): void {
    this.#row(namespace).holders++;
  }

  release(namespace: Namespace): void {
    const row = this.#row(namespace);
    assert(row.holders > 0, "a namespace is let go by who held it");
    row.holders--;
    row.usedAt = ++this.#uses;
  }

  #row(namespace: Namespace): Row {
    const row = this.#rows[namespace.index];
    assert(row?.namespace === namespace, "the row was not given to another namespace");
    return row;
  }

  /** Writes the row into the pool's table, at the end or over one that is spare. @throws CairnError tooManyNamespaces */
  #write(tenant: string, digest: Uint8Array, text: Uint8Array): number {
    const { namespacesMax, perTenantMax } = this.#bounds;
    const bytes = text.byteLength + ROW_FIXED_BYTES;
    const held = this.#heldBy.get(tenant) ?? { rows: 0, bytes: 0 };
    const more = held.rows < perTenantMax && held.bytes + bytes <= this.#bytesPerTenantMax;
    const end = this.#list.length;
    if (more && end < namespacesMax && this.#put(end, digest, text)) return end;
    const fits = (row: Row): boolean =>
      more ||
      (row.namespace.tenant === tenant &&
        held.bytes - row.bytes + bytes <= this.#bytesPerTenantMax);
    const spare = this.#spare(fits);
    if (spare >= 0 && this.#put(spare, digest, text)) return spare;
    // The table is full by bytes: only a row that is as long makes room for this one.
    const longer = this.#spare((row) => fits(row) && row.bytes >= bytes);
    if (longer >= 0 && this.#put(longer, digest, text)) return longer;
    if (more) throw new CairnError("tooManyNamespaces", `all ${end} rows of the pool's table`, end);
    const share = `${perTenantMax} rows and ${Math.floor(this.#bytesPerTenantMax)} bytes`;
    const has = `tenant "${tenant}" holds ${held.rows} rows of ${held.bytes} bytes`;
    const bound = `its share is ${share} (ledger.namespacesPerTenantMax)`;
    throw new CairnError("tooManyNamespaces", `${has}; ${bound}`, perTenantMax);
  }

  /** Index of the least recently used row that nobody needs, −1 if there is none. */
  #spare(fits: (row: Row) => boolean): number {
    if (!this.settled()) return -1;
    let best: Row | undefined;
    for (const row of this.#rows) {
      if (row.holders > 0 || (best !== undefined && row.usedAt > best.usedAt)) continue;
      if (this.#ledger.recordsIn(row.namespace.index) === 0 && fits(row)) best = row;
    }
    return best?.namespace.index ?? -1;
  }

  /** False: the table has no room for these bytes. */
  #put(index: number, digest: Uint8Array, text: Uint8Array): boolean {
    try {
      this.#store.putNamespace(index, digest, text);
      return true;
    } catch (error) {
      if ((error as { code?: unknown }).code !== "ENOSPC") throw error;
      return false;
    }
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
      const { digest, descriptor } = sorted[position]!;
      assert(entry !== undefined, "entries were checked above");
      this.#place(position, digest, entry, descriptor.byteLength);
    }
    return true;
  }

  /** Ledger and lists take the namespace over, at the end or in place of another one. */
  #place(index: number, digest: Uint8Array, from: Persisted, textBytes: number): Namespace {
    const { descriptor, tenant } = from;
    const options = {
      keyWords: descriptor.keyBytes / 4,
      shards: descriptor.shards,
      chained: descriptor.chained,
      payloadBytes: descriptor.rowBytes,
      tenant: this.#tenantIndex.get(tenant) ?? this.#tenantIndex.size,
    };
    if (index < this.#list.length) this.#replace(index, options);
    else assert(this.#ledger.addNamespace(options) === index, "namespace indexes are dense");
    const namespace = namespaceOf(index, digest, from);
    const row = { namespace, bytes: textBytes + ROW_FIXED_BYTES, holders: 0, usedAt: ++this.#uses };
    this.#list[index] = namespace;
    this.#rows[index] = row;
    this.#byDigest.set(namespace.digestHex, namespace);
    this.#count(tenant, 1, row.bytes);
    this.#onPlaced(namespace);
    return namespace;
  }

  #replace(index: number, options: NamespaceOptions): void {
    const { namespace, bytes, holders } = this.#rows[index]!;
    assert(holders === 0, "a namespace in use keeps its row");
    this.#ledger.replaceNamespace(index, options);
    this.#byDigest.delete(namespace.digestHex);
    this.#count(namespace.tenant, -1, -bytes);
  }

  #count(tenant: string, rows: number, bytes: number): void {
    const held = this.#heldBy.get(tenant) ?? { rows: 0, bytes: 0 };
    held.rows += rows;
    held.bytes += bytes;
    assert(held.rows >= 0 && held.bytes >= 0, "a tenant gives back what it held");
    if (held.rows === 0) this.#heldBy.delete(tenant);
    else this.#heldBy.set(tenant, held);
  }
}

function namespaceOf(index: number, digest: Uint8Array, from: Persisted): Namespace {
  const { descriptor, tenant, variant } = from;
  return {
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
}

interface Persisted {
  readonly descriptor: NamespaceDescriptor;
  readonly tenant: string;
  readonly variant: string;
}

function encodeRow({ descriptor, tenant, variant }: Persisted): Uint8Array {
  return new TextEncoder().encode(JSON.stringify({ descriptor, tenant, variant }));
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
