/**
 * What every operation works with: one object, built once by the server. Operations are plain functions
 * of (context, frame); they answer through `out`, refuse by throwing a CairnError, and never keep the
 * frame, whose bytes are valid only until the next poll of the addon.
 */
import type { Addon } from "../../addon/binding.ts";
import { assert } from "../assert.ts";
import { CairnError } from "../errors.ts";
import { LIMITS } from "../limits.ts";
import type { Ledger } from "../ledger/ledger.ts";
import type { Feed } from "../observe/feed.ts";
import type { Copies } from "../transfer/copies.ts";
import type { Links } from "../transfer/links.ts";
import type { Refusals } from "../transfer/refusals.ts";
import type { RemoteHint } from "../../tiers/remote/types.ts";
import type { DiskTier } from "../../tiers/tier.ts";
import { emptyHeader, type FrameHeader, readHeader } from "./codec.ts";
import type { Job, Jobs } from "./jobs.ts";
import type { Leases } from "./leases.ts";
import type { Namespaces } from "./namespaces.ts";
import type { Outbound } from "./outbound.ts";
import { FLAG, HEADER_BYTES } from "./protocol.ts";
import type { Region, Windows } from "./regions.ts";
import type { Connection, Instance, Sessions } from "./sessions.ts";
import type { Waiters } from "./waiters.ts";

/** Descriptor word of a frame event that carries none. */
export const NO_DESCRIPTOR = 0xffff_ffff;

/** Bounds and switches that a reload may change; read at each use. */
export interface EngineSettings {
  inFlightJobsMax: number;
  leasesPerInstanceMax: number;
  /** Bytes; resolved, never 0. */
  pinnedBytesMax: number;
  windowBytesMax: number;
  heartbeatMs: number;
  heartbeatMisses: number;
  storeFillMs: number;
  proofRequired: boolean;
}

/** The frame in hand. One object, refilled for every frame. */
export class InboundFrame {
  readonly header: FrameHeader = emptyHeader();
  readonly bytes: Uint8Array;
  readonly words: Uint32Array;
  readonly view: DataView;
  /** Byte offset of the frame in the inbox, a multiple of 8. */
  offset = 0;
  /** File descriptor that came with it and is still ours to close, NO_DESCRIPTOR = none. */
  descriptor = NO_DESCRIPTOR;
  /** Monotonic milliseconds at which handling began. */
  at = 0;
  #connection: Connection | undefined;

  constructor(inbox: ArrayBuffer) {
    this.bytes = new Uint8Array(inbox);
    this.words = new Uint32Array(inbox);
    this.view = new DataView(inbox);
  }

  load(connection: Connection, offset: number, length: number, descriptor: number, at: number) {
    assert(offset % 8 === 0, "frames are 8-byte aligned in the inbox");
    readHeader(this.view, offset, this.header);
    assert(this.header.bodyBytes + HEADER_BYTES === length, "the transport checked the length");
    this.#connection = connection;
    this.offset = offset;
    this.descriptor = descriptor;
    this.at = at;
  }

  get connection(): Connection {
    assert(this.#connection !== undefined, "a frame in hand has a connection");
    return this.#connection;
  }

  /** The connection's instance. @throws CairnError helloRequired */
  get instance(): Instance {
    const instance = this.connection.instance;
    if (instance === undefined) throw new CairnError("helloRequired", "send HELLO first");
    return instance;
  }

  /** Byte offset of the body. */
  get body(): number {
    return this.offset + HEADER_BYTES;
  }

  /** Word index of the body. */
  get bodyWords(): number {
    return (this.offset + HEADER_BYTES) >>> 2;
  }

  get noReply(): boolean {
    return (this.header.flags & FLAG.NO_REPLY) !== 0;
  }

  has(flag: number): boolean {
    return (this.header.flags & flag) !== 0;
  }

  coldBody(): Uint8Array {
    return this.bytes.subarray(this.body, this.body + this.header.bodyBytes);
  }

  /** @throws CairnError malformedFrame */
  expectBody(bytes: number): void {
    if (this.header.bodyBytes === bytes) return;
    const found = this.header.bodyBytes;
    throw new CairnError("malformedFrame", `a body of ${found} bytes where ${bytes} belong`, bytes);
  }

  /** @throws CairnError malformedFrame, tooManyKeys */
  expectCount(minimum: number): void {
    const { count } = this.header;
    if (count > LIMITS.keysPerFrameMax) {
      throw new CairnError("tooManyKeys", `${count} keys`, LIMITS.keysPerFrameMax);
    }
    if (count < minimum) throw new CairnError("malformedFrame", `count ${count}`);
  }

  /** The header's id. @throws CairnError malformedFrame when beyond 2^53 − 1 */
  get id(): number {
    if (this.header.id < 0) throw new CairnError("malformedFrame", "id is beyond 2^53 - 1");
    return this.header.id;
  }
}

export interface EngineContext {
  readonly addon: Addon;
  readonly ledger: Ledger;
  readonly feed: Feed;
  readonly out: Outbound;
  readonly copies: Copies;
  readonly sessions: Sessions;
  readonly leases: Leases;
  readonly namespaces: Namespaces;
  readonly jobs: Jobs;
  readonly waiters: Waiters;
  readonly windows: Windows;
  readonly settings: EngineSettings;
  readonly frame: InboundFrame;
  readonly epoch: string;
  /** First 52 bits of the epoch, for HEARTBEAT replies. */
  readonly epochNumber: number;
  readonly nodeName: string;
  /** The DRAM arena. */
  readonly arena: number;
  /** Jobs whose last position closed; completed after the event in hand. */
  readonly finished: Job[];
  /** Scratch of one STORE or LOAD: statuses of a reservation. */
  readonly statuses: Uint8Array;
  /** What each way between tiers takes. */
  readonly links: Links;
  /** Why keys were not stored (STORE_REFUSAL). */
  readonly notStored: Refusals;
  /** The NVMe tier, undefined when it is off. */
  readonly nvme: DiskTier | undefined;
  /** What the remote tier is known to have of a chain (keys as frames hold them); without it undefined. */
  remotePrefix:
    | ((namespace: number, keys: Uint8Array, localBlocks: number) => RemoteHint)
    | undefined;
  draining: boolean;
  /** What STATS says of the node to this tenant. */
  readonly nodeStats: (tenant: string) => object;
}

/** Region of a hot call, checked. @throws CairnError unknownRegion, regionUnproven */
export function usableRegion(connection: Connection, id: number): Region {
  const region = connection.regions.get(id);
  if (region === undefined || region.closingTag !== -1 || !region.ready) {
    throw new CairnError("unknownRegion", `region ${id}`, id);
  }
  if (!region.proven) throw new CairnError("regionUnproven", `region ${id}`, id);
  return region;
}

/** Room for one more job. @throws CairnError jobsInFlight, overloaded */
export function admitJob(context: EngineContext, connection: Connection, items: number): void {
  if (connection.jobs.size >= context.settings.inFlightJobsMax) {
    throw new CairnError("jobsInFlight", `${connection.jobs.size} jobs in flight`);
  }
  if (context.copies.full(items)) throw copyQueueFull();
}

export function copyQueueFull(): CairnError {
  return new CairnError("overloaded", "the copy queue is full (copyItemsInFlightMax)");
}

/** Milliseconds of a deadline field: 0 = default, never beyond the maximum. */
export function deadlineOf(requested: number, fallback: number): number {
  return requested === 0 ? fallback : Math.min(requested, LIMITS.loadDeadlineMsMax);
}
