/** Copies between DRAM slots and the staging region of the remote tier, as promises over copy batches. */
import { COPY, ITEM } from "../../addon/binding.ts";
import type { DramItems, StagedRange, StagingCopies } from "../../tiers/remote/types.ts";
import type { Copies, CopyOwner, CopyTicket } from "./copies.ts";

interface Waiting {
  readonly resolve: (statuses: Uint8Array) => void;
}

export class StagingBatches implements StagingCopies, CopyOwner {
  readonly #copies: Copies;
  readonly #arena: number;
  readonly #region: number;

  constructor(copies: Copies, arena: number, region: number) {
    this.#copies = copies;
    this.#arena = arena;
    this.#region = region;
  }

  exportBlocks(range: StagedRange, items: DramItems): Promise<Uint8Array> {
    return this.#submit(COPY.EXPORT, range, items);
  }

  importBlocks(range: StagedRange, items: DramItems): Promise<Uint8Array> {
    return this.#submit(COPY.IMPORT, range, items);
  }

  #submit(kind: number, range: StagedRange, items: DramItems): Promise<Uint8Array> {
    const count = items.slots.length;
    if (this.#copies.full(count)) {
      return Promise.resolve(new Uint8Array(count).fill(ITEM.CANCELLED));
    }
    return new Promise((resolve) => {
      const waiting: Waiting = { resolve };
      this.#copies.begin(kind, this, waiting);
      for (let item = 0; item < count; item++) {
        const at = range.offsetBytes + item * range.strideBytes;
        this.#copies.add(items.slots[item]!, at, items.blocks[item]!, 0, item);
      }
      const { shard, shards, payloadBytes, deadlineMs, seal } = range;
      const left = Math.max(1, Math.ceil(deadlineMs));
      this.#copies.submit(this.#arena, this.#region, shard, shards, payloadBytes, left, seal);
    });
  }

  copied(ticket: CopyTicket, statuses: Uint8Array, at: number): void {
    (ticket.subject as Waiting).resolve(statuses.slice(at, at + ticket.count));
  }
}
