/**
 * The batch path for load generators: jobs by callback instead of promise, expectations pooled, keys and
 * rows written straight into the outgoing frame. Payload lies in the window already (dataReady).
 */
import type { CairnError } from "../../src/errors.ts";
import {
  FLAG,
  HEADER_BYTES,
  LOAD_FIXED_BYTES,
  OP,
  STORE_FIXED_BYTES,
} from "../../src/engine-api/protocol.ts";
import type { CairnClient } from "./client.ts";
import type { Expectation, Link, Reply } from "./link.ts";
import type { Window } from "./window.ts";

const DEADLINE_MS = 60_000;

/** `landed` blocks are visible (STORE) or verified in their rows (LOAD); `failed` are not; `offered` were named. */
export type JobDone = (landed: number, failed: number, offered: number) => void;

class JobSlot implements Expectation {
  deadlineAt = 0;
  offered = 0;
  done: JobDone | undefined;
  window: Window | undefined;
  readonly #port: BatchPort;

  constructor(port: BatchPort) {
    this.#port = port;
  }

  reply({ header, view }: Reply): boolean {
    if ((header.flags & FLAG.COMPLETION) === 0) {
      if (header.id !== 0) return false;
      // Nothing wanted or pending: every key is present, or refused.
      this.#end(0, 0);
      return true;
    }
    this.#end(header.count, view.getUint32(0, true));
    return true;
  }

  fail(error: CairnError): void {
    const { window } = this;
    this.#end(0, this.offered);
    this.#port.failed(window, error);
  }

  #end(landed: number, failed: number): void {
    const done = this.done;
    this.done = undefined;
    this.window = undefined;
    this.#port.recycle(this);
    done?.(landed, failed, this.offered);
  }
}

export class BatchPort {
  lastError: CairnError | undefined;
  readonly #link: Link;
  readonly #client: CairnClient;
  readonly #free: JobSlot[] = [];

  /** @throws CairnError unavailable */
  constructor(client: CairnClient) {
    this.#client = client;
    this.#link = client.link;
  }

  /** Offers `count` keys of `keys` from key `first` on; row of key i is `firstRow + i`. */
  store(
    window: Window,
    startDepth: number,
    keys: Uint8Array,
    first: number,
    count: number,
    firstRow: number,
    done: JobDone,
    lease = 0,
    shard = 0,
  ): void {
    const { view, out } = this.#link;
    const { keyBytes, blockTokens } = window.descriptor;
    view.setUint32(HEADER_BYTES, startDepth, true);
    view.setUint32(HEADER_BYTES + 4, window.live, true);
    view.setUint32(HEADER_BYTES + 8, 0, true);
    view.setUint32(HEADER_BYTES + 12, shard, true);
    view.setUint32(HEADER_BYTES + 16, count * blockTokens, true);
    view.setUint32(HEADER_BYTES + 20, 0, true);
    let at = HEADER_BYTES + STORE_FIXED_BYTES;
    // The parent key stands right before the first key, unless this is the root.
    const from = startDepth === 0 ? first * keyBytes : (first - 1) * keyBytes;
    if (startDepth === 0) out.fill(0, at, at + keyBytes);
    at += startDepth === 0 ? keyBytes : 0;
    out.set(keys.subarray(from, (first + count) * keyBytes), at);
    at = HEADER_BYTES + STORE_FIXED_BYTES + (count + 1) * keyBytes;
    this.#rows(at, firstRow, count);
    const bodyBytes = at + count * 4 - HEADER_BYTES;
    const handle = this.#client.handle(window.namespace);
    const slot = this.#slot(window, done, count);
    const tag = this.#link.tag();
    this.#link.send(OP.STORE, FLAG.DATA_READY, tag, lease, count, handle, bodyBytes, slot);
  }

  /** Loads `count` keys of `keys` from key `first` on into rows `firstRow`, `firstRow + 1`, … */
  load(
    window: Window,
    lease: number,
    startDepth: number,
    keys: Uint8Array,
    first: number,
    count: number,
    firstRow: number,
    done: JobDone,
    shard = 0,
  ): void {
    const { view, out } = this.#link;
    const { keyBytes } = window.descriptor;
    view.setUint32(HEADER_BYTES, startDepth, true);
    view.setUint32(HEADER_BYTES + 4, window.live, true);
    view.setUint32(HEADER_BYTES + 8, DEADLINE_MS, true);
    view.setUint32(HEADER_BYTES + 12, shard, true);
    const keysAt = HEADER_BYTES + LOAD_FIXED_BYTES;
    out.set(keys.subarray(first * keyBytes, (first + count) * keyBytes), keysAt);
    const rowsAt = keysAt + count * keyBytes;
    this.#rows(rowsAt, firstRow, count);
    const bodyBytes = rowsAt + count * 4 - HEADER_BYTES;
    const handle = this.#client.handle(window.namespace);
    const slot = this.#slot(window, done, count);
    this.#link.send(OP.LOAD, 0, this.#link.tag(), lease, count, handle, bodyBytes, slot);
  }

  failed(window: Window | undefined, error: CairnError): void {
    this.lastError = error;
    if (window !== undefined) this.#client.jobFailed(this.#link, window, error);
  }

  recycle(slot: JobSlot): void {
    this.#free.push(slot);
  }

  #slot(window: Window, done: JobDone, offered: number): JobSlot {
    const slot = this.#free.pop() ?? new JobSlot(this);
    slot.done = done;
    slot.window = window;
    slot.offered = offered;
    slot.deadlineAt = performance.now() + DEADLINE_MS;
    return slot;
  }

  #rows(at: number, firstRow: number, count: number): void {
    const { view } = this.#link;
    for (let index = 0; index < count; index++)
      view.setUint32(at + index * 4, firstRow + index, true);
  }
}
