/**
 * Lifts chains into DRAM, root first: what stands on NVMe is read into DRAM slots, what lies in the remote tier is
 * fetched behind it. Only chains that an engine announced come here (PREFETCH), so nothing is guessed.
 *
 * A lift holds nothing but its keys: each block is looked up when its turn comes, because it may have gone, or have
 * been brought by somebody else, since. What is in flight is bounded for all lifts together, and reads behind demand
 * loads at the disk. A lift ends with its chain, at its deadline, when it is cancelled, or at the first block that
 * cannot be had; it then says how many blocks of the chain stand in DRAM.
 */
import { DISK, ITEM, ITEM_PROMOTED } from "../../addon/binding.ts";
import type { DiskTier } from "../../tiers/tier.ts";
import { assert } from "../assert.ts";
import type { Ledger } from "../ledger/ledger.ts";
import { KEY, RECORD_WORDS } from "../ledger/table.ts";
import { type Block, NO_BLOCK, STATE, TIER } from "../ledger/types.ts";
import { LIMITS } from "../limits.ts";
import { type Feed, METRIC } from "../observe/feed.ts";
import type { Copies, CopyOwner, CopyTicket, DiskSubmit } from "./copies.ts";
import { type DiskGroup, DiskGroups, ShardTally, WELL } from "./disk-groups.ts";
import type { Links } from "./links.ts";
import { mayPromote } from "./promotion.ts";

/** How a lift ended. Labels: observe/metrics.ts PREFETCH_LABELS. */
export const LIFT = { DONE: 0, CLIPPED: 1, REFUSED: 2, CANCELLED: 3, DEADLINE: 4 } as const;

/** Keys of a chain from its root on. */
export interface ChainKeys {
  readonly namespace: number;
  readonly keyWords: number;
  /** count · keyWords words */
  readonly words: Uint32Array;
  readonly count: number;
}

/** Keys of the chain that ends at this block, by its parent links. */
export function chainKeysOf(ledger: Ledger, last: Block): ChainKeys {
  const namespace = ledger.namespaceOf(last);
  const { keyWords, chained } = ledger.namespace(namespace);
  const { records } = ledger.core;
  const count = chained ? ledger.depthOf(last) : 1;
  const words = new Uint32Array(count * keyWords);
  let block = last;
  for (let at = words.length - keyWords; at >= 0; at -= keyWords) {
    assert(block !== NO_BLOCK, "a block of depth n has n - 1 ancestors");
    const from = block * RECORD_WORDS + KEY;
    for (let word = 0; word < keyWords; word++) words[at + word] = records[from + word]!;
    block = ledger.parentOf(block);
  }
  return { namespace, keyWords, words, count };
}

/** The remote tier, as far as lifting goes (daemon/remote-source.ts). */
export interface RemoteSource {
  /**
   * Brings blocks from depth `from` + 1 on into DRAM, as many as can be had in order. `done` is called once, when no
   * byte of it lands any more: blocks that came, and their bytes.
   */
  fetch(
    chain: ChainKeys,
    from: number,
    deadlineMs: number,
    signal: AbortSignal,
    done: (blocks: number, bytes: number) => void,
  ): void;
}

export interface LiftRequest {
  readonly chain: ChainKeys;
  /** Monotonic milliseconds. */
  readonly deadlineAt: number;
  /** DISK_PRIORITY. */
  readonly priority: number;
  /** Called once. resident: blocks of the chain that stand in DRAM, from the root on without a gap. */
  readonly done: (outcome: number, resident: number, bytes: number) => void;
}

export interface PrefetcherOptions {
  readonly ledger: Ledger;
  readonly tier: DiskTier | undefined;
  readonly copies: Copies;
  readonly links: Links;
  readonly feed: Feed;
  /** The DRAM arena. */
  readonly arena: number;
  /** Monotonic milliseconds. */
  readonly now: () => number;
}

export class Lift {
  readonly request: LiftRequest;
  /** Next block of the chain to look at. */
  cursor = 0;
  /** Why it ends before its chain does; undefined while it goes on. */
  ending: number | undefined;
  bytesInFlight = 0;
  bytes = 0;
  batches: number[] = [];
  /** The remote part, while it runs. */
  remote: AbortController | undefined;
  /** The remote part has been asked. */
  asked = false;

  constructor(request: LiftRequest) {
    this.request = request;
  }
}

/** What a batch of reads belongs to. */
interface Reading {
  readonly lift: Lift;
  readonly group: DiskGroup;
}

const FAILED = 0;

export class Prefetcher implements CopyOwner {
  readonly #options: PrefetcherOptions;
  readonly #lifts = new Set<Lift>();
  readonly #tally = new ShardTally();
  readonly #groups: DiskGroups;
  /** Set once the remote tier is there. */
  remote: RemoteSource | undefined;
  #gathering: Lift | undefined;
  #bytesInFlight = 0;
  #stopped = false;

  constructor(options: PrefetcherOptions) {
    this.#options = options;
    this.#groups = new DiskGroups((group) => this.#submit(group));
  }

  get lifts(): number {
    return this.#lifts.size;
  }

  /** There is a tier to lift from, and room for one more lift. */
  refusal(): string | undefined {
    if (this.#options.tier === undefined && this.remote === undefined) {
      return "every leased block is in DRAM; no lower tier is enabled";
    }
    if (this.#stopped) return "the daemon is stopping";
    if (this.#lifts.size >= LIMITS.prefetchesMax) return "prefetchesMax prefetches are under way";
    return undefined;
  }

  /** Call refusal() before. `done` may be called before this returns. */
  begin(request: LiftRequest): Lift {
    assert(!this.#stopped, "nothing begins in a daemon that stops");
    const lift = new Lift(request);
    this.#lifts.add(lift);
    this.#advance(lift);
    return lift;
  }

  /** Ends the lift as soon as nothing of it is in flight. */
  cancel(lift: Lift, outcome: number): void {
    if (!this.#lifts.has(lift)) return;
    lift.ending ??= outcome;
    lift.remote?.abort();
    for (const batch of lift.batches) this.#options.copies.cancel(batch);
    this.#endIfIdle(lift);
  }

  /** Deadlines, and lifts that waited for room; called by the coarse timer. */
  tick(): void {
    const now = this.#options.now();
    for (const lift of this.#lifts) {
      if (now >= lift.request.deadlineAt) this.cancel(lift, LIFT.DEADLINE);
      else this.#advance(lift);
    }
  }

  /** Cancels all; resolves when nothing is in flight. Events must still be drained. */
  async stop(): Promise<void> {
    this.#stopped = true;
    for (const lift of this.#lifts) this.cancel(lift, LIFT.CANCELLED);
    const until = this.#options.now() + LIMITS.drainMs;
    while (this.#lifts.size > 0 && this.#options.now() < until) {
      await new Promise((resolve) => {
        setTimeout(resolve, 2);
      });
    }
  }

  /** Looks at the next blocks while there is room for what they bring. */
  #advance(lift: Lift): void {
    this.#gathering = lift;
    const { chain } = lift.request;
    // While the remote tier is asked the cursor is its own: what it brings is counted when it has ended.
    const mine = lift.remote === undefined;
    while (mine && lift.ending === undefined && lift.cursor < chain.count) {
      if (this.#bytesInFlight >= LIMITS.prefetchInFlightBytesMax || !this.#look(lift)) break;
    }
    this.#groups.submitAll();
    this.#gathering = undefined;
    this.#endIfIdle(lift);
  }

  /** One block; false when it stands nowhere here and the remote tier was asked for the rest. */
  #look(lift: Lift): boolean {
    const { remote } = this;
    const { ledger } = this.#options;
    const { namespace, keyWords, words } = lift.request.chain;
    const block = ledger.find(namespace, words, lift.cursor * keyWords);
    if (block !== NO_BLOCK && ledger.isVisible(block)) {
      // In DRAM, or on its way there by somebody else.
      if (ledger.stateOf(block, TIER.DRAM) !== STATE.ABSENT || this.#read(lift, block)) {
        lift.cursor++;
      } else {
        lift.ending = LIFT.CLIPPED;
      }
      return true;
    }
    if (remote === undefined || lift.asked) {
      lift.ending = LIFT.CLIPPED;
      return true;
    }
    this.#askRemote(lift, remote);
    return false;
  }

  /** Starts the reads of all shards; false: no room in DRAM, or the device serves no reads. */
  #read(lift: Lift, block: Block): boolean {
    const { ledger, tier } = this.#options;
    if (tier === undefined || ledger.stateOf(block, TIER.NVME) !== STATE.VISIBLE) return false;
    const { shards, payloadBytes } = ledger.namespace(ledger.namespaceOf(block));
    for (let shard = 0; shard < shards; shard++) {
      if (!tier.mayRead(ledger.slotOf(block, TIER.NVME, shard))) return false;
    }
    if (!mayPromote(ledger) || !ledger.copyBegin(block, TIER.NVME, TIER.DRAM)) return false;
    this.#tally.begin(block, shards);
    for (let shard = 0; shard < shards; shard++) {
      const slot = ledger.slotOf(block, TIER.NVME, shard);
      const target = ledger.slotOf(block, TIER.DRAM, shard);
      this.#groups.add(tier.diskOf(slot), payloadBytes, shard, shards, block, slot, target);
      lift.bytesInFlight += payloadBytes;
      this.#bytesInFlight += payloadBytes;
    }
    return true;
  }

  #submit(group: DiskGroup): void {
    const { copies, arena, now } = this.#options;
    const lift = this.#gathering;
    assert(lift !== undefined, "reads belong to a lift");
    const reading: Reading = { lift, group };
    copies.begin(DISK.READ, this, reading);
    for (let item = 0; item < group.count; item++) {
      copies.add(group.slots[item]!, 0, group.blocks[item]!, group.dramSlots[item]!, item);
    }
    read.disk = group.disk;
    read.arena = arena;
    read.shard = group.shard;
    read.shards = group.shards;
    read.payloadBytes = group.payloadBytes;
    read.deadlineMs = Math.max(1, Math.ceil(lift.request.deadlineAt - now()));
    read.priority = lift.request.priority;
    lift.batches.push(copies.submitDisk(read));
  }

  copied(ticket: CopyTicket, statuses: Uint8Array, at: number): void {
    const { tier, links, feed } = this.#options;
    const { lift, group } = ticket.subject as Reading;
    assert(tier !== undefined, "reads come from a tier");
    lift.batches = lift.batches.filter((batch) => batch !== ticket.number);
    lift.bytesInFlight -= group.bytes;
    this.#bytesInFlight -= group.bytes;
    assert(lift.bytesInFlight >= 0 && this.#bytesInFlight >= 0, "bytes never go below zero");
    let good = 0;
    for (let item = 0; item < group.count; item++) {
      const block = group.blocks[item]!;
      const status = statuses[at + item]!;
      const outcome = status & ~ITEM_PROMOTED;
      tier.ended(group.slots[item]!, DISK.READ, outcome, ticket.microseconds);
      const well = (status & ITEM_PROMOTED) !== 0;
      if (well) good++;
      else if (lift.ending === undefined) lift.ending = LIFT.CLIPPED;
      this.#settle(block, well, outcome);
    }
    if (good === group.count) links.readEnded(group.disk, group.bytes, ticket.submittedAt);
    feed.addAt(METRIC.loadedTierBytes, TIER.NVME, good * group.payloadBytes);
    lift.bytes += good * group.payloadBytes;
    this.#groups.free(group);
    this.#advance(lift);
  }

  /** One shard's read ended. */
  #settle(block: Block, well: boolean, status: number): void {
    const { ledger, feed } = this.#options;
    const bad = status === ITEM.CORRUPT || status === ITEM.IDENTITY || status === ITEM.IO;
    if (status === ITEM.CORRUPT) feed.add(METRIC.corruptBlocks, 1);
    if (status === ITEM.IDENTITY) feed.add(METRIC.identityFailures, 1);
    if (status === ITEM.IO) feed.add(METRIC.deviceReadErrors, 1);
    // Pinned by copyBegin until the last shard ends, so the quarantined copy keeps its record.
    if (bad) ledger.corrupt(block, TIER.NVME);
    const outcome = this.#tally.end(block, well ? WELL : FAILED);
    if (outcome === undefined) return;
    ledger.copyEnd(block, TIER.NVME, TIER.DRAM, outcome === WELL);
    if (outcome === WELL) feed.add(METRIC.prefetchedBlocks, 1);
  }

  #askRemote(lift: Lift, remote: RemoteSource): void {
    const { chain, deadlineAt } = lift.request;
    const control = new AbortController();
    lift.asked = true;
    lift.remote = control;
    const left = Math.max(1, Math.ceil(deadlineAt - this.#options.now()));
    remote.fetch(chain, lift.cursor, left, control.signal, (blocks, bytes) => {
      lift.remote = undefined;
      lift.cursor += blocks;
      lift.bytes += bytes;
      this.#options.feed.add(METRIC.prefetchedBlocks, blocks);
      assert(lift.cursor <= chain.count, "the remote tier brings no more than the chain");
      this.#advance(lift);
    });
  }

  #endIfIdle(lift: Lift): void {
    const { chain, done } = lift.request;
    if (lift.bytesInFlight > 0 || lift.remote !== undefined) return;
    const over = lift.ending !== undefined || lift.cursor === chain.count;
    if (!over || !this.#lifts.delete(lift)) return;
    const outcome = lift.ending ?? LIFT.DONE;
    this.#options.feed.addAt(METRIC.prefetches, outcome, 1);
    done(outcome, this.#resident(chain), lift.bytes);
  }

  #resident(chain: ChainKeys): number {
    const { ledger } = this.#options;
    let depth = 0;
    while (depth < chain.count) {
      const block = ledger.find(chain.namespace, chain.words, depth * chain.keyWords);
      if (block === NO_BLOCK || ledger.stateOf(block, TIER.DRAM) !== STATE.VISIBLE) break;
      depth++;
    }
    return depth;
  }
}

/** Reused for every read batch. */
const read: DiskSubmit = {
  disk: 0,
  arena: 0,
  region: 0,
  shard: 0,
  shards: 1,
  payloadBytes: 0,
  deadlineMs: 0,
  priority: 0,
};
