/**
 * Live growth and shrinking of the DRAM pool. Growing is at once. Shrinking empties slabs from the end, a
 * few moves a tick: what is visible and unpinned is copied elsewhere, what finds no room makes room by
 * eviction, what is pinned is waited for. Nothing that a lease holds is dropped.
 */
import { COPY, ITEM } from "../../addon/binding.ts";
import { hostFacts, planPool } from "../../tiers/dram/preflight.ts";
import type { DramTier } from "../../tiers/dram/index.ts";
import { assert } from "../assert.ts";
import type { Ledger } from "../ledger/ledger.ts";
import { MOVE_WORDS } from "../ledger/resize.ts";
import { TIER } from "../ledger/types.ts";
import type { Copies, CopyOwner, CopyTicket } from "./copies.ts";

const MOVES_PER_STEP = 64;
/** Share of slots that an eviction round frees when moves find no room. */
const EVICT_SHARE = 0.02;

export class PoolResizer implements CopyOwner {
  readonly #ledger: Ledger;
  readonly #dram: DramTier;
  readonly #copies: Copies;
  readonly #note: (line: string) => void;
  readonly #moves = new Uint32Array(MOVES_PER_STEP * MOVE_WORDS);
  #target: number;
  #inFlight = false;
  #stopped = false;

  constructor(ledger: Ledger, dram: DramTier, copies: Copies, note: (line: string) => void) {
    this.#ledger = ledger;
    this.#dram = dram;
    this.#copies = copies;
    this.#note = note;
    this.#target = dram.slabs;
  }

  /** Slabs the pool is on its way to. */
  get target(): number {
    return this.#target;
  }

  /** @throws CairnError poolTooLarge; then nothing changes */
  aim(slabs: number, directory: string): void {
    const { slabBytes } = this.#dram;
    planPool(Math.max(1, slabs) * slabBytes, slabBytes, directory, hostFacts(directory));
    this.#target = Math.max(1, slabs);
    if (this.#target > this.#dram.slabs && !this.#inFlight) this.#grow();
  }

  /** One step towards the target; called by the coarse timer. */
  step(): void {
    if (this.#stopped || this.#inFlight || this.#target === this.#dram.slabs) return;
    if (this.#dram.busy) return; // The addon refuses to resize under a scan or pre-touch.
    if (this.#target > this.#dram.slabs) this.#grow();
    else this.#shrink();
  }

  /** No step follows; resolves when moves in flight have ended. */
  async stop(): Promise<void> {
    this.#stopped = true;
    while (this.#inFlight) {
      await new Promise((resolve) => {
        setTimeout(resolve, 1);
      });
    }
  }

  #grow(): void {
    if (this.#dram.busy) return;
    this.#dram.grow(this.#target);
    this.#ledger.growTier(TIER.DRAM, this.#target);
    this.#dram.populate();
    this.#note(`dram: grown to ${this.#target} slabs`);
  }

  #shrink(): void {
    const slab = this.#dram.slabs - 1;
    const planned = this.#ledger.planMoves(TIER.DRAM, slab, this.#moves, MOVES_PER_STEP);
    if (this.#ledger.slabEmpty(TIER.DRAM, slab)) {
      assert(planned === 0, "an empty slab has nothing to move");
      this.#ledger.removeLastSlab(TIER.DRAM);
      this.#dram.shrink(slab);
      if (slab === this.#target) this.#note(`dram: shrunk to ${slab} slabs`);
      return;
    }
    if (planned > 0) this.#move(planned);
    else this.#makeRoom();
  }

  #move(planned: number): void {
    this.#inFlight = true;
    const { core } = this.#ledger;
    for (let index = 0; index < planned; index++) {
      const at = index * MOVE_WORDS;
      const block = this.#moves[at + 2]!;
      const { payloadBytes, shards } = core.namespaceOf(block);
      // Moves of one batch share row length and shard; a slab serves one size class, so batches are long.
      this.#copies.begin(COPY.MOVE, this, this);
      this.#copies.add(this.#moves[at]!, this.#moves[at + 1]!, block, 0, index);
      this.#copies.submit(this.#dram.arena, 0, this.#moves[at + 3]!, shards, payloadBytes, 0);
      this.#pending++;
    }
  }

  #pending = 0;

  copied(ticket: CopyTicket, statuses: Uint8Array, at: number): void {
    for (let item = 0; item < ticket.count; item++) {
      const move = ticket.positions[item]! * MOVE_WORDS;
      const from = this.#moves[move]!;
      const to = this.#moves[move + 1]!;
      const block = this.#moves[move + 2]!;
      const ok = statuses[at + item] === ITEM.OK;
      this.#ledger.moved(TIER.DRAM, block, this.#moves[move + 3]!, from, to, ok);
      // A copy that proves wrong cannot be moved; it is lost like one that a LOAD finds wrong.
      if (!ok && this.#ledger.isVisible(block)) this.#ledger.corrupt(block, TIER.DRAM);
    }
    this.#pending--;
    if (this.#pending === 0) this.#inFlight = false;
  }

  /** Lets the oldest blocks go, until the next plan finds slots outside the slab. */
  #makeRoom(): void {
    const { options, slots } = this.#ledger.core.tier(TIER.DRAM);
    const kept = { highWatermark: options.highWatermark, lowWatermark: options.lowWatermark };
    const used = slots.slotsUsed / Math.max(1, slots.slotsTotal);
    const low = Math.max(0, used - EVICT_SHARE);
    Object.assign(options, { highWatermark: low, lowWatermark: low });
    this.#ledger.evictToWatermark(TIER.DRAM);
    Object.assign(options, kept);
  }
}
