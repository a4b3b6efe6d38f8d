/**
 * A small ledger to write behaviour down with: chains are strings, one letter a block ("abc" is the block c
 * under b under a), namespaces are made on demand. Every test ends with audit().
 */
import { Ledger } from "../../src/ledger/ledger.ts";
import {
  NO_BLOCK,
  RESERVE,
  type LedgerOptions,
  type LookupResult,
  type SlabTierOptions,
} from "../../src/ledger/types.ts";
import { LruPolicy } from "../../src/policy/lru.ts";
import type { EvictionPolicy } from "../../src/policy/policy.ts";
import { FakeStore } from "./store.ts";

export const KEY_WORDS = 8;

export interface SmallOptions {
  readonly dram?: number;
  readonly nvme?: number;
  readonly shards?: number;
  readonly chained?: boolean;
  readonly holesMax?: number;
  readonly blocksMax?: number;
  readonly payloadBytes?: number;
  readonly logEntries?: number;
  readonly store?: FakeStore;
  /** The lower tier's store, instead of one slab of `nvme` slots. */
  readonly lower?: FakeStore;
  readonly policy?: EvictionPolicy;
}

export class Small {
  readonly ledger: Ledger;
  readonly namespace: number;
  readonly dram: FakeStore;
  readonly nvme: FakeStore;
  readonly settled: [string, boolean][] = [];
  readonly reduced: [number, number][] = [];
  readonly #names = new Map<number, string>();

  constructor(options: SmallOptions = {}) {
    this.dram = options.store ?? new FakeStore(1, options.dram ?? 16);
    this.nvme = options.lower ?? new FakeStore(1, options.nvme ?? 1);
    const tiers: SlabTierOptions[] = [this.dram.options];
    if (options.nvme !== undefined || options.lower !== undefined) tiers.push(this.nvme.options);
    const ledgerOptions: LedgerOptions = {
      blocksMax: options.blocksMax ?? 64,
      namespacesMax: 4,
      tenantsMax: 2,
      tiers,
      holesMax: options.holesMax ?? 8,
      splitSamplesMax: 4,
      logEntries: options.logEntries ?? 256,
      observer: {
        settled: (block, visible) => this.settled.push([this.#names.get(block) ?? "?", visible]),
        leaseReduced: (lease, depth) => this.reduced.push([lease, depth]),
      },
    };
    this.ledger = new Ledger(ledgerOptions, options.policy ?? new LruPolicy());
    this.namespace = this.ledger.addNamespace({
      keyWords: KEY_WORDS,
      shards: options.shards ?? 1,
      chained: options.chained ?? true,
      payloadBytes: options.payloadBytes ?? 64,
      tenant: 0,
    });
  }

  /** Keys of a chain's blocks: each names everything before it. */
  words(chain: string): Uint32Array {
    const words = new Uint32Array(chain.length * KEY_WORDS);
    let hash = 2166136261;
    for (let i = 0; i < chain.length; i += 1) {
      hash = Math.imul(hash ^ chain.charCodeAt(i), 16777619);
      for (let k = 0; k < KEY_WORDS; k += 1) words[i * KEY_WORDS + k] = Math.imul(hash, 2 * k + 1);
    }
    return words;
  }

  /** The record of a chain's last block, NO_BLOCK if none. */
  block(chain: string): number {
    return this.ledger.find(this.namespace, this.words(chain), (chain.length - 1) * KEY_WORDS);
  }

  /**
   * Reserves the blocks of `chain` below its first `start`; letters: p present, n pending, w wanted, f
   * full, a absent parent.
   */
  reserve(chain: string, start = 0, shard = 0): string {
    const count = chain.length - start;
    const statuses = new Uint8Array(count);
    const blocks = new Uint32Array(count);
    const words = this.words(chain);
    const at = start * KEY_WORDS;
    this.ledger.reserve(
      this.namespace,
      start,
      words,
      at - KEY_WORDS,
      at,
      count,
      shard,
      statuses,
      blocks,
    );
    blocks.forEach((block, i) => {
      if (block !== NO_BLOCK) this.#names.set(block, chain.slice(0, start + i + 1));
    });
    return [...statuses].map((status) => "pnwfa"[status]).join("");
  }

  start(chain: string, shard = 0): void {
    this.ledger.fillStart(this.block(chain), 0, shard);
    this.dram.fillStart(this.ledger.slotOf(this.block(chain), 0, shard));
  }

  end(chain: string, ok = true, shard = 0): void {
    const slot = this.ledger.slotOf(this.block(chain), 0, shard);
    if (ok) this.dram.fillEnd(slot, this.block(chain), shard, 1);
    this.ledger.fillEnd(this.block(chain), 0, shard, ok);
    this.ledger.flush();
  }

  /**
   * Stores and fills what of the chain is wanted; a touch of the deepest follows, as the engine API does.
   */
  store(chain: string, start = 0): string {
    const statuses = this.reserve(chain, start);
    statuses.split("").forEach((status, i) => {
      if (status === "w") this.start(chain.slice(0, start + i + 1));
    });
    statuses.split("").forEach((status, i) => {
      if (status === "w") this.end(chain.slice(0, start + i + 1));
    });
    const deepest = statuses.search(/[fa]/);
    const last = chain.slice(0, deepest < 0 ? chain.length : start + deepest);
    if (last.length > start) this.ledger.touch(this.block(last));
    return statuses;
  }

  /**
   * Copies each block of the chain to the other tier, missing ancestors first; false where one was refused.
   */
  copy(chain: string, from: number, to: number): boolean {
    for (let depth = 1; depth <= chain.length; depth += 1) {
      const block = this.block(chain.slice(0, depth));
      if (this.ledger.stateOf(block, to) !== 0) continue;
      if (!this.ledger.copyBegin(block, from, to)) return false;
      this.ledger.copyEnd(block, from, to, true);
    }
    return true;
  }

  lookup(chain: string): LookupResult {
    return this.ledger.lookup(this.namespace, this.words(chain), 0, chain.length);
  }

  hit(chain: string): number {
    return this.lookup(chain).depth;
  }

  hitLinear(chain: string): number {
    return this.ledger.lookupLinear(this.namespace, this.words(chain), 0, chain.length).depth;
  }

  lease(lease: number, chain: string): void {
    this.ledger.leaseOpen(lease, 1, this.block(chain));
  }

  /** Sweeps until no hole is left. */
  sweepAll(): void {
    for (let i = 0; i < 1_000 && this.ledger.sweep(7); i += 1);
  }

  isVisible(chain: string): boolean {
    const block = this.block(chain);
    return block !== NO_BLOCK && this.ledger.isVisible(block);
  }
}

export { NO_BLOCK, RESERVE };
