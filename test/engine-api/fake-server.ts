/**
 * The engine server over an addon without bytes and threads: frames go in as events, replies are collected, and
 * copy and disk batches wait until the test says how each item ended.
 */
import {
  type Addon,
  type CopyBatch,
  type DiskBatch,
  EVENT,
  EVENT_WORDS,
  ITEM,
  ITEM_WORDS,
} from "../../addon/binding.ts";
import {
  coldFrame,
  emptyHeader,
  type FrameHeader,
  readHeader,
} from "../../src/engine-api/codec.ts";
import { NO_DESCRIPTOR } from "../../src/engine-api/context.ts";
import { Namespaces } from "../../src/engine-api/namespaces.ts";
import { FLAG, HEADER_BYTES, OP } from "../../src/engine-api/protocol.ts";
import { Region } from "../../src/engine-api/regions.ts";
import { EngineServer } from "../../src/engine-api/server.ts";
import { Ledger } from "../../src/ledger/ledger.ts";
import { TIER } from "../../src/ledger/types.ts";
import { Feed } from "../../src/observe/feed.ts";
import { LruPolicy } from "../../src/policy/lru.ts";
import type { NamespaceDescriptor } from "../../src/engine-api/protocol.ts";
import { descriptor } from "../e2e/support.ts";
import { FakeStore } from "../ledger/store.ts";
import { FakeDiskTier } from "../transfer/fake-disk.ts";
import { helloBody, hotFrame, registerBody, storeFrame } from "./support.ts";

export interface Reply {
  readonly header: FrameHeader;
  readonly body: DataView;
}

export interface Batch {
  readonly disk: boolean;
  readonly request: CopyBatch | DiskBatch;
  readonly items: Uint32Array;
  readonly count: number;
}

const CONNECTION = 1;
const REGION = 7;

export class FakeServer {
  readonly ledger: Ledger;
  readonly server: EngineServer;
  readonly feed = new Feed();
  readonly tier = new FakeDiskTier();
  readonly replies: Reply[] = [];
  readonly batches: Batch[] = [];
  readonly cancelled: number[] = [];
  readonly #inbox = new ArrayBuffer(1 << 20);
  readonly #events = new Uint32Array(64 * EVENT_WORDS);
  readonly #statuses = new Uint8Array(1 << 16);
  #queued = 0;

  /** dram, nvme: slots of each tier. */
  constructor(dram: number, nvme: number, over: Partial<NamespaceDescriptor> = {}) {
    const ledgerOptions = {
      blocksMax: 1_024,
      namespacesMax: 4,
      tenantsMax: 2,
      tiers: [new FakeStore(1, dram).options, new FakeStore(1, nvme).options],
      holesMax: 8,
      splitSamplesMax: 64,
      logEntries: 256,
      observer: {
        settled: (block: number, visible: boolean) => this.server.settled(block, visible),
        leaseReduced: (lease: number, depth: number) => this.server.leaseReduced(lease, depth),
      },
    };
    this.ledger = new Ledger(ledgerOptions, new LruPolicy());
    const store = { slotsPerSlab: () => 1_000, putNamespace: () => {} };
    const bounds = { namespacesMax: 4, perTenantMax: 4 };
    const namespaces = new Namespaces(this.ledger, store, bounds, new Map([["default", 0]]));
    this.server = new EngineServer({
      addon: this.#addon(),
      ledger: this.ledger,
      feed: this.feed,
      namespaces,
      settings: {
        inFlightJobsMax: 64,
        leasesPerInstanceMax: 64,
        pinnedBytesMax: 2 ** 40,
        windowBytesMax: 2 ** 40,
        heartbeatMs: 60_000,
        heartbeatMisses: 3,
        storeFillMs: 60_000,
        proofRequired: false,
      },
      tenants: [{ name: "default", uids: [] }],
      arena: 1,
      nvme: this.tier,
      epoch: "00000000-0000-4000-8000-000000000000",
      nodeName: "test",
      inbox: this.#inbox,
      events: this.#events,
      statuses: this.#statuses,
      nodeStats: () => ({}),
      onProgress: () => {},
      onInternalError: (error) => {
        throw error;
      },
      warn: () => {},
    });
    this.event([EVENT.ACCEPT, CONNECTION, 0, 0, 1, 2, 3, 0]);
    this.send(
      coldFrame(OP.HELLO, 0, 1, 0, 0, helloBody("a", { namespaces: [{ ...descriptor(over) }] })),
    );
    this.replies.length = 0;
    this.#region();
  }

  #addon(): Addon {
    const face: Partial<Addon> = {
      poll: () => {
        const events = this.#queued;
        this.#queued = 0;
        return events;
      },
      send: (_connection, from, offset, length) => {
        const bytes = from.slice(offset, offset + length);
        const view = new DataView(bytes.buffer);
        const header = emptyHeader();
        readHeader(view, 0, header);
        this.replies.push({ header, body: new DataView(bytes.buffer, HEADER_BYTES) });
        return true;
      },
      established: () => {},
      regionUnmap: () => {},
      copySubmit: (request, items, count) => this.#submitted(false, request, items, count),
      diskSubmit: (request, items, count) => this.#submitted(true, request, items, count),
      copyCancel: (batch) => this.cancelled.push(batch),
      diskCancel: (_disk, batch) => this.cancelled.push(batch),
    };
    return face as Addon;
  }

  #submitted(
    disk: boolean,
    request: CopyBatch | DiskBatch,
    items: Uint32Array,
    count: number,
  ): void {
    const kept = items.slice(0, count * ITEM_WORDS);
    this.batches.push({ disk, request: { ...request }, items: kept, count });
  }

  #region(): void {
    const { sessions, windows } = this.server.context;
    const connection = sessions.connections.get(CONNECTION);
    const view = connection?.instance?.view(1);
    if (connection === undefined || view === undefined) throw new Error("HELLO failed");
    const blocks = 256;
    const request = { ...registerBody(blocks), strideBytes: view.namespace.rowBytes };
    const region = new Region(REGION, view, request as never, 1, windows, "memfd");
    region.ready = true;
    connection.regions.set(REGION, region);
    if (connection.instance !== undefined) connection.instance.windowBytes += region.sizeBytes;
  }

  event(words: readonly number[]): void {
    this.#events.set(words, this.#queued * EVENT_WORDS);
    this.#queued++;
    this.server.pump();
  }

  send(frame: Uint8Array): void {
    new Uint8Array(this.#inbox).set(frame);
    this.event([EVENT.FRAME, CONNECTION, 0, frame.byteLength, NO_DESCRIPTOR, 0, 0, 0]);
  }

  /** The peer is gone. */
  hangUp(): void {
    this.event([EVENT.CLOSE, CONNECTION, 0, 0, 0, 0, 0, 0]);
  }

  /** Ends the oldest batch. */
  end(statusOf: (item: number) => number = () => ITEM.OK): Batch {
    const batch = this.batches.shift();
    if (batch === undefined) throw new Error("no batch is in flight");
    for (let item = 0; item < batch.count; item++) this.#statuses[item] = statusOf(item);
    this.event([EVENT.COPIED, batch.request.batch, 0, batch.count, 0, 100, 0, 0]);
    return batch;
  }

  /** Stores and fills a chain; all of it is then visible in DRAM. */
  store(keys: Uint8Array): void {
    const rows = Array.from({ length: keys.byteLength / 32 }, (_, row) => row);
    this.send(storeFrame(10, REGION, keys, rows));
    this.end();
    this.replies.length = 0;
  }

  blocksOf(keys: Uint8Array): number[] {
    const words = new Uint32Array(keys.slice().buffer);
    return Array.from({ length: keys.byteLength / 32 }, (_, index) =>
      this.ledger.find(0, words, index * 8),
    );
  }

  /** Copies a chain to NVMe, as the mover would; `drop`: it then leaves DRAM. */
  demote(keys: Uint8Array, drop: boolean): void {
    const blocks = this.blocksOf(keys);
    for (const block of blocks) {
      if (!this.ledger.copyBegin(block, TIER.DRAM, TIER.NVME)) throw new Error("no room on NVMe");
      this.ledger.copyEnd(block, TIER.DRAM, TIER.NVME, true);
    }
    if (drop) for (const block of blocks.toReversed()) this.ledger.corrupt(block, TIER.DRAM);
  }

  /** Leases the chain; the lease's id. */
  lease(keys: Uint8Array, requestId = 5, flags = 0, prefillTokensPerSecond = 0): number {
    const count = keys.byteLength / 32;
    const parts = [0, prefillTokensPerSecond, keys];
    this.send(hotFrame(OP.LOOKUP, flags, 20, requestId, count, parts));
    const reply = this.replies.at(-1);
    if (reply === undefined) throw new Error("no reply");
    return reply.header.id;
  }

  load(lease: number, keys: Uint8Array, tag = 30, shard = 0): void {
    const count = keys.byteLength / 32;
    const rows = Array.from({ length: count }, (_, row) => row);
    this.send(hotFrame(OP.LOAD, 0, tag, lease, count, [0, REGION, 0, shard, keys, ...rows]));
  }

  /** The one completion that has come: [landed, [[index, code], …]]. */
  completion(): { readonly landed: number; readonly failed: readonly [number, number][] } {
    const found = this.replies.filter(({ header }) => (header.flags & FLAG.COMPLETION) !== 0);
    const [reply] = found;
    if (reply === undefined || found.length > 1) throw new Error(`${found.length} completions`);
    const failed = Array.from({ length: reply.body.getUint32(0, true) }, (_, index) => {
      const at = 16 + index * 8;
      return [reply.body.getUint32(at, true), reply.body.getUint32(at + 4, true)] as [
        number,
        number,
      ];
    });
    return { landed: reply.header.count, failed };
  }
}
