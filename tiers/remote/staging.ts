/**
 * The staging memory: who may use which bytes of it, and in what order. A transfer gets a range and the right to a
 * connection in one step, so that none waits for the one while it holds the other. Demand comes before prefetch
 * before upload, first come first served within each; uploads never hold more than half of either, so that a slow
 * upload does not stand between an engine and its blocks. Who waits is bounded: back-pressure in bytes.
 */
import { assert } from "../../src/assert.ts";
import { LIMITS } from "../../src/limits.ts";
import { type CallLimits, type Failure, failure, type Outcome, success } from "./object-store.ts";
import { PRIORITY, type Priority } from "./types.ts";

const ALIGN_BYTES = 4_096;

/** A range in use. release() exactly once. */
export interface StagingLease {
  readonly offsetBytes: number;
  readonly bytes: Uint8Array;
  release(): void;
}

interface Range {
  readonly offset: number;
  readonly length: number;
  readonly priority: Priority;
}

interface Waiter {
  readonly length: number;
  readonly priority: Priority;
  readonly grant: (range: Range) => void;
}

export class StagingPool {
  readonly #memory: Uint8Array;
  readonly #transfersMax: number;
  /** By offset. */
  readonly #ranges: Range[] = [];
  readonly #waiting: readonly Set<Waiter>[] = [new Set(), new Set(), new Set()];
  #usedBytes = 0;

  constructor(memory: Uint8Array, transfersMax: number) {
    assert(memory.length <= LIMITS.stagingBytesMax, "staging memory is one buffer");
    assert(transfersMax >= 1, "at least one transfer runs");
    this.#memory = memory;
    this.#transfersMax = transfersMax;
  }

  get totalBytes(): number {
    return this.#memory.length;
  }

  get usedBytes(): number {
    return this.#usedBytes;
  }

  get transfers(): number {
    return this.#ranges.length;
  }

  get waiting(): number {
    return this.#waiting.reduce((sum, queue) => sum + queue.size, 0);
  }

  /** Whether acquire() would grant at once. */
  free(length: number, priority: Priority): boolean {
    const before = this.#waiting.slice(0, priority + 1).some((queue) => queue.size > 0);
    return !before && this.#place(align(length), priority) !== undefined;
  }

  /** Waits until a range of `length` bytes may be used. busy: too many wait, or it can never fit. */
  async acquire(
    length: number,
    priority: Priority,
    limits: CallLimits,
  ): Promise<Outcome<StagingLease>> {
    assert(length > 0, "a transfer has bytes");
    if (limits.signal?.aborted === true) return failure("cancelled", "cancelled before it began");
    const aligned = align(length);
    if (aligned > this.totalBytes) return failure("busy", `${length} bytes exceed the staging`);
    if (this.free(length, priority)) {
      const offset = this.#place(aligned, priority);
      assert(offset !== undefined, "what is free has a place");
      return success(this.#lease(this.#take(offset, aligned, priority), length));
    }
    if (!this.#mayWait(priority)) return failure("busy", `${this.waiting} transfers wait`);
    const range = await this.#wait(aligned, priority, limits);
    return "fault" in range ? range : success(this.#lease(range, length));
  }

  #mayWait(priority: Priority): boolean {
    const queue = this.#waiting[priority] as Set<Waiter>;
    if (priority === PRIORITY.UPLOAD && queue.size >= LIMITS.remoteUploadsWaitingMax) return false;
    return this.waiting < LIMITS.remoteWaitingMax;
  }

  #wait(length: number, priority: Priority, limits: CallLimits): Promise<Range | Failure> {
    return new Promise((resolve) => {
      const queue = this.#waiting[priority] as Set<Waiter>;
      const end = (result: Range | Failure): void => {
        queue.delete(waiter);
        clearTimeout(timer);
        limits.signal?.removeEventListener("abort", onAbort);
        resolve(result);
      };
      const leave = (result: Failure): void => {
        end(result);
        // Whoever waited behind may fit where this one did not.
        this.#grantWaiting();
      };
      const waiter: Waiter = { length, priority, grant: end };
      const onAbort = (): void => leave(failure("cancelled", "cancelled"));
      const timer = setTimeout(
        () => leave(failure("timeout", "no staging memory in time")),
        limits.deadlineMs,
      );
      limits.signal?.addEventListener("abort", onAbort, { once: true });
      queue.add(waiter);
    });
  }

  #grantWaiting(): void {
    for (const queue of this.#waiting) {
      for (const waiter of queue) {
        const offset = this.#place(waiter.length, waiter.priority);
        // Nobody overtakes: what is large would otherwise wait for ever.
        if (offset === undefined) return;
        waiter.grant(this.#take(offset, waiter.length, waiter.priority));
      }
    }
  }

  /** First fit; undefined when there is no room, or it is not this priority's. */
  #place(length: number, priority: Priority): number | undefined {
    if (this.#ranges.length >= this.#transfersMax) return undefined;
    if (priority === PRIORITY.UPLOAD && !this.#uploadFits(length)) return undefined;
    let at = 0;
    for (const range of this.#ranges) {
      if (range.offset - at >= length) return at;
      at = range.offset + range.length;
    }
    return this.totalBytes - at >= length ? at : undefined;
  }

  #uploadFits(length: number): boolean {
    const uploads = this.#ranges.filter((range) => range.priority === PRIORITY.UPLOAD);
    if (uploads.length === 0) return true;
    const bytes = uploads.reduce((sum, range) => sum + range.length, 0);
    return (
      uploads.length < Math.floor(this.#transfersMax / 2) && bytes + length <= this.totalBytes / 2
    );
  }

  #take(offset: number, length: number, priority: Priority): Range {
    const range: Range = { offset, length, priority };
    const behind = this.#ranges.findIndex((other) => other.offset > offset);
    this.#ranges.splice(behind === -1 ? this.#ranges.length : behind, 0, range);
    this.#usedBytes += length;
    assert(this.#usedBytes <= this.totalBytes, "ranges do not overlap");
    return range;
  }

  #lease(range: Range, length: number): StagingLease {
    return {
      offsetBytes: range.offset,
      bytes: this.#memory.subarray(range.offset, range.offset + length),
      release: () => {
        const at = this.#ranges.indexOf(range);
        assert(at !== -1, "a range is released once");
        this.#ranges.splice(at, 1);
        this.#usedBytes -= range.length;
        this.#grantWaiting();
      },
    };
  }
}

function align(bytes: number): number {
  return Math.ceil(bytes / ALIGN_BYTES) * ALIGN_BYTES;
}
