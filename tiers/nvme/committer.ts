/**
 * Makes copies count. Each device has one cycle at a time:
 *
 *   tickets that wait → namespaces.json (if a namespace is new here) → sync of the data → index pages → done
 *
 * A cycle begins at once when none runs; what comes meanwhile waits for the next, so a slow device gets larger
 * batches and a fast one short waits. Pages are written from the ledger after the sync, and a slot is only named once
 * it is marked durable, which a ticket's slots are only after the sync that covers them. A cycle without tickets
 * takes freed slots out of the index and refreshes times of last access.
 *
 * Any failure fails every ticket of the cycle. The pages stay dirty; the device decides what the failure means.
 */
import { assert } from "../../src/assert.ts";
import { LIMITS } from "../../src/limits.ts";
import { pageOfSlot, type Marks } from "./marks.ts";

/** What the committer needs of its device. */
export interface CommitDevice {
  readonly marks: Marks;
  /** Pages that the index is to be told of: dirty ones, and those of segments that are gone. */
  readonly owedPages: number;
  /** Index commits are possible: the device is writable and its index open. */
  readonly committable: boolean;
  /** Data written so far is on the device. @throws */
  sync(): Promise<void>;
  /** Rows of all namespaces that these pages name are on the disk. @throws */
  prepareRows(pages: readonly number[]): Promise<void>;
  /** Writes these pages, as the ledger stands now. @throws */
  writePages(pages: readonly number[]): Promise<void>;
  /** A cycle failed in this step. */
  commitFailed(step: "sync" | "index", error: unknown): void;
  /** A cycle ended well after so many milliseconds. */
  commitEnded(milliseconds: number, pages: number): void;
  /** A ticket's owner threw. */
  fault(error: unknown): void;
}

interface Ticket {
  readonly slots: Uint32Array;
  readonly done: (durable: boolean) => void;
}

export class Committer {
  readonly #device: CommitDevice;
  #tickets: Ticket[] = [];
  #cycle: Promise<void> | undefined;

  constructor(device: CommitDevice) {
    this.#device = device;
  }

  get busy(): boolean {
    return this.#cycle !== undefined;
  }

  get waiting(): number {
    return this.#tickets.length;
  }

  /** These slots were written; `done` is called once, later. */
  commit(slots: Uint32Array, count: number, done: (durable: boolean) => void): void {
    assert(count > 0 && count <= slots.length, "a ticket names slots");
    this.#tickets.push({ slots: slots.slice(0, count), done });
    this.#kick();
  }

  /** Writes what is owed although no copies wait; nothing while a cycle runs. */
  flush(): void {
    if (this.#device.owedPages > 0) this.#kick(true);
  }

  /** Resolves when no cycle runs and no ticket waits. */
  async idle(): Promise<void> {
    while (this.#cycle !== undefined) await this.#cycle;
  }

  /** Writes all that is owed, until `deadlineMs` (performance.now()). False: some are left. */
  async drain(deadlineMs: number): Promise<boolean> {
    for (;;) {
      await this.idle();
      const { owedPages, committable } = this.#device;
      if (owedPages === 0) return true;
      if (!committable || performance.now() >= deadlineMs) return false;
      this.flush();
    }
  }

  #kick(evenEmpty = false): void {
    if (this.#cycle !== undefined || (this.#tickets.length === 0 && !evenEmpty)) return;
    this.#cycle = this.#run().finally(() => {
      this.#cycle = undefined;
      this.#kick();
    });
  }

  /** Never rejects. */
  async #run(): Promise<void> {
    // Tickets of one event-loop turn go together.
    await Promise.resolve();
    const began = performance.now();
    const tickets = this.#tickets;
    this.#tickets = [];
    const pages: number[] = [];
    const durable = await this.#step(tickets, pages);
    if (durable) this.#device.commitEnded(performance.now() - began, pages.length);
    else this.#undo(tickets, pages);
    for (const { done } of tickets) this.#tell(done, durable);
  }

  #tell(done: (durable: boolean) => void, durable: boolean): void {
    try {
      done(durable);
    } catch (error) {
      this.#device.fault(error);
    }
  }

  /** `pages`: those the cycle took from the dirty ones. */
  async #step(tickets: readonly Ticket[], pages: number[]): Promise<boolean> {
    const device = this.#device;
    if (!device.committable) return false;
    try {
      if (tickets.length > 0) await device.sync();
    } catch (error) {
      device.commitFailed("sync", error);
      return false;
    }
    try {
      for (const { slots } of tickets) {
        for (const slot of slots) {
          device.marks.setDurable(slot, false);
          const page = pageOfSlot(slot);
          if (device.marks.take(page)) pages.push(page);
        }
      }
      device.marks.takeOldest(LIMITS.nvmeDirtyPagesPerCycle, pages);
      await device.prepareRows(pages);
      await device.writePages(pages);
      return true;
    } catch (error) {
      device.commitFailed("index", error);
      return false;
    }
  }

  #undo(tickets: readonly Ticket[], pages: readonly number[]): void {
    const { marks } = this.#device;
    for (const { slots } of tickets) for (const slot of slots) marks.clearDurable(slot);
    for (const page of pages) if (marks.hasSlab(page)) marks.setDirty(page);
  }
}
