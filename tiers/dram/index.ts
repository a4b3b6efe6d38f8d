/**
 * The DRAM tier: one tmpfs or hugetlbfs file in slabs, mapped by the addon. The file outlives the process,
 * so a restart, clean or not, is warm: headers are scanned at start, payload hashes are checked by each
 * load. Failure model: README.md.
 */
import { existsSync } from "node:fs";
import { type Addon, type NamespaceInfo, SLOT_INDEX_BITS } from "../../addon/binding.ts";
import { assert } from "../../src/assert.ts";
import { CairnError } from "../../src/errors.ts";
import { type SlabTierOptions, TIER } from "../../src/ledger/types.ts";
import type { Tier, TierLimits, TierProgress } from "../tier.ts";
import { interleaveNodes, memoryNodes } from "./numa.ts";
import { hostFacts, planPool, poolFile, prepareDirectory } from "./preflight.ts";

export interface DramOptions {
  readonly directory: string;
  readonly capacityBytes: number | "auto";
  readonly slabBytes: number;
  readonly hugePages: boolean;
  /** `auto`: pages are spread over all NUMA nodes with memory. Default off. */
  readonly numa?: "auto" | "off";
  /** 0 = one per CPU, at most 16. */
  readonly populateThreads: number;
}

export interface DramHooks {
  readonly note: (line: string) => void;
  readonly progress: TierProgress;
}

/** Slabs that a slot number can name (addon/binding.ts). */
const SLABS_MAX = 2 ** (32 - SLOT_INDEX_BITS);
/** Task numbers of PROGRESS events. */
const TASK = { SCAN: 1, POPULATE: 2 } as const;
const OUTCOME_RUNNING = 0;
const OUTCOME_FAILED = 2;

type DramAddon = Pick<
  Addon,
  | "arenaOpen"
  | "arenaClose"
  | "arenaPopulate"
  | "arenaSlabs"
  | "arenaAssign"
  | "arenaRelease"
  | "arenaSlotsPerSlab"
  | "arenaResize"
  | "arenaNamespaces"
  | "arenaPutNamespace"
  | "arenaInvalidate"
  | "arenaTouch"
  | "arenaScan"
  | "arenaScanRead"
>;

export class DramTier implements Tier {
  readonly index = TIER.DRAM;
  readonly name = "dram";
  readonly slabBytes: number;
  readonly arena: number;
  readonly reopened: boolean;
  readonly clean: boolean;
  readonly addon: DramAddon;
  readonly #hooks: DramHooks;
  readonly #threads: number;
  /** Payload bytes each slab serves in the file, 0 = free. */
  readonly #assigned: Uint32Array;
  /** The pool file was not there before. */
  readonly #created: boolean;
  #slabs: number;
  #populateFrom: number;
  #populating = false;
  #scanEnd: { readonly resolve: () => void; readonly reject: (error: Error) => void } | undefined;

  /**
   * Checks the directory and the host, then opens or makes the pool.
   * @throws CairnError poolTooLarge, directoryUnsafe, directoryLocked, formatUnsupported
   */
  constructor(addon: DramAddon, options: DramOptions, threads: number, hooks: DramHooks) {
    this.addon = addon;
    this.#hooks = hooks;
    this.#threads = options.populateThreads === 0 ? Math.min(16, threads) : options.populateThreads;
    prepareDirectory(options.directory);
    const facts = hostFacts(options.directory);
    const { directory, capacityBytes, slabBytes } = options;
    const plan = planPool(capacityBytes, slabBytes, directory, facts);
    for (const note of plan.notes) hooks.note(note);
    this.#created = !existsSync(poolFile(directory));
    const nodes = interleaveNodes(options.numa ?? "off", memoryNodes());
    const info = openArena(addon, options, plan.slabs, nodes);
    if (nodes.length > 0) {
      const spread = info.numaPolicySet ? "spread over" : "not spread (the kernel refused) over";
      hooks.note(`dram: pages are ${spread} NUMA nodes ${nodes.join(", ")}`);
    }
    this.arena = info.arena;
    this.reopened = info.reopened;
    this.clean = info.clean;
    this.slabBytes = info.slabBytes;
    this.#slabs = info.slabs;
    this.#populateFrom = 0;
    this.#assigned = new Uint32Array(SLABS_MAX);
    for (const slab of addon.arenaSlabs(this.arena)) this.#assigned[slab.slab] = slab.payloadBytes;
    this.#fitLength(plan.slabs);
  }

  /** A scan or pre-touch runs: the addon neither resizes nor closes now. */
  get busy(): boolean {
    return this.#populating || this.#scanEnd !== undefined;
  }

  get slabs(): number {
    return this.#slabs;
  }

  get capacityBytes(): number {
    return this.#slabs * this.slabBytes;
  }

  slotsPerSlab(payloadBytes: number): number {
    return this.addon.arenaSlotsPerSlab(this.slabBytes, payloadBytes);
  }

  ledgerOptions(limits: TierLimits): SlabTierOptions {
    const { addon, arena } = this;
    return {
      slabs: this.#slabs,
      slotsPerSlab: (payloadBytes) => this.slotsPerSlab(payloadBytes),
      assignSlab: (slab, payloadBytes) => this.#assign(slab, payloadBytes),
      releaseSlab: (slab) => this.#release(slab),
      invalidate: (slots, count) => addon.arenaInvalidate(arena, slots, count),
      ...limits,
    };
  }

  /**
   * After a restart a slab may stand assigned in the file although no block of it was taken back: the
   * ledger counts it free and may hand it out for another size.
   */
  #assign(slab: number, payloadBytes: number): boolean {
    if (this.#assigned[slab] === payloadBytes) return true;
    if (this.#assigned[slab] !== 0) this.addon.arenaRelease(this.arena, slab);
    this.addon.arenaAssign(this.arena, slab, payloadBytes);
    this.#assigned[slab] = payloadBytes;
    return true;
  }

  #release(slab: number): void {
    if (this.#assigned[slab] === 0) return;
    this.addon.arenaRelease(this.arena, slab);
    this.#assigned[slab] = 0;
  }

  /** Brings the file to the planned length at start, before any block is taken back. */
  #fitLength(planned: number): void {
    for (let slab = planned; slab < this.#slabs; slab++) this.#release(slab);
    if (planned === this.#slabs) return;
    if (planned < this.#slabs) {
      this.#hooks.note(`dram: pool shrunk from ${this.#slabs} to ${planned} slabs at start`);
    }
    this.addon.arenaResize(this.arena, planned);
    this.#slabs = planned;
  }

  namespaces(): readonly NamespaceInfo[] {
    return this.addon.arenaNamespaces(this.arena);
  }

  putNamespace(index: number, digest: Uint8Array, descriptor: Uint8Array): void {
    this.addon.arenaPutNamespace(this.arena, index, digest, descriptor);
  }

  /** Verifies all headers on native threads; resolves when arenaScanRead may begin. */
  scan(): Promise<void> {
    assert(this.#scanEnd === undefined, "one scan at a time");
    return new Promise((resolve, reject) => {
      this.#scanEnd = { resolve, reject };
      this.addon.arenaScan(this.arena, this.#threads, TASK.SCAN);
    });
  }

  populate(): void {
    if (this.#populateFrom >= this.#slabs) return;
    const { addon, arena } = this;
    addon.arenaPopulate(arena, this.#populateFrom, this.#slabs, this.#threads, TASK.POPULATE);
    this.#populateFrom = this.#slabs;
    this.#populating = true;
  }

  onProgress(task: number, done: number, total: number, outcome: number): boolean {
    if (task !== TASK.SCAN && task !== TASK.POPULATE) return false;
    this.#hooks.progress(task === TASK.SCAN ? "scan" : "populate", done, total);
    if (outcome === OUTCOME_RUNNING) return true;
    if (task === TASK.POPULATE) {
      this.#populating = false;
      if (outcome === OUTCOME_FAILED)
        this.#hooks.note("dram: pre-touching failed; pages come late");
      return true;
    }
    const end = this.#scanEnd;
    assert(end !== undefined, "a scan that ended was begun");
    this.#scanEnd = undefined;
    if (outcome === OUTCOME_FAILED)
      end.reject(new CairnError("internal", "the header scan failed"));
    else end.resolve();
    return true;
  }

  /** Makes the file longer; the ledger is told by the caller. New slabs are pre-touched by populate(). */
  grow(slabs: number): void {
    assert(slabs > this.#slabs, "grow() adds slabs");
    this.#populateFrom = this.#slabs;
    this.addon.arenaResize(this.arena, slabs);
    this.#slabs = slabs;
  }

  /** Cuts free upper slabs off the file. */
  shrink(slabs: number): void {
    assert(slabs > 0 && slabs < this.#slabs, "shrink() leaves at least one slab");
    this.addon.arenaResize(this.arena, slabs);
    this.#slabs = slabs;
    this.#populateFrom = Math.min(this.#populateFrom, slabs);
  }

  close(keep: boolean): void {
    this.addon.arenaClose(this.arena, keep);
  }

  /** The start has failed: an empty pool file that it made would take memory until somebody finds it. */
  abandon(): void {
    if (this.#created) this.close(false);
  }
}

function openArena(
  addon: DramAddon,
  options: DramOptions,
  slabs: number,
  nodes: readonly number[],
) {
  const path = poolFile(options.directory);
  try {
    return addon.arenaOpen({
      path,
      slabBytes: options.slabBytes,
      slabs,
      numaNode: -1,
      interleaveNodes: nodes,
      hugePages: options.hugePages,
    });
  } catch (error) {
    const code = (error as { code?: unknown }).code;
    const reason = error instanceof Error ? error.message : String(error);
    if (code === "LOCKED") throw new CairnError("directoryLocked", `${path}: ${reason}`);
    if (code === "UNSAFE") throw new CairnError("directoryUnsafe", `${path}: ${reason}`);
    if (code === "FORMAT") throw new CairnError("formatUnsupported", `${path}: ${reason}`);
    if (code === "ENOSPC" || code === "ENOMEM") {
      throw new CairnError("poolTooLarge", `${path}: ${reason}`);
    }
    throw error;
  }
}
