/**
 * The NVMe tier inside the daemon: opened in the order that its README asks for, its namespaces made one with the
 * pool's, and what moves blocks to and from it (mover, scrub, drained devices). Everything that the composition root
 * asks of the tier goes through here; without the tier there is no such object.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { type DrainOutcome, NvmeTier } from "../../tiers/nvme/index.ts";
import type { NvmeDirectoryOptions } from "../../tiers/nvme/context.ts";
import type { NamespaceRow } from "../../tiers/nvme/namespaces.ts";
import { directoryFacts, planSegments } from "../../tiers/nvme/plan.ts";
import type { IndexProbe } from "../../tiers/nvme/probe.ts";
import { recoverNvme, type NvmeRecoveryReport } from "../../tiers/nvme/recover.ts";
import type { Addon } from "../../addon/binding.ts";
import { assert } from "../assert.ts";
import { nvmeDirectories } from "../config/defaults.ts";
import type { NvmeConfig } from "../config/schema.ts";
import { type ColdMap, mapValue } from "../engine-api/codec.ts";
import { parseDescriptor } from "../engine-api/descriptor.ts";
import type { Namespace, Namespaces } from "../engine-api/namespaces.ts";
import type { EngineServer } from "../engine-api/server.ts";
import { CairnError } from "../errors.ts";
import type { ExplainSources } from "../explain.ts";
import type { Ledger } from "../ledger/ledger.ts";
import type { SlotTable } from "../ledger/slots.ts";
import { type SlabTierOptions, TIER } from "../ledger/types.ts";
import { LIMITS } from "../limits.ts";
import type { DeviceReading } from "../observe/lower.ts";
import { type Feed, METRIC } from "../observe/feed.ts";
import { DISK_PRIORITY } from "../transfer/copies.ts";
import { LeftOut } from "./left-out.ts";
import { Dropped } from "../transfer/dropped.ts";
import { Mover } from "../transfer/mover.ts";
import { chainKeysOf } from "../transfer/prefetcher.ts";
import { Refusals } from "../transfer/refusals.ts";
import { Scrubber } from "../transfer/scrubber.ts";
import { WriteThrough } from "../transfer/write-through.ts";

const POLL_MS = 2;

export interface NvmeHooks {
  readonly note: (level: "info" | "warn" | "error", line: string) => void;
  readonly fault: (error: unknown) => void;
}

const DRAINED: Readonly<Record<DrainOutcome, string>> = {
  emptied: "emptied and closed",
  givenUp: "closed; what could not leave in time was given up",
  kept: "wanted again before it was empty; it stays",
  stopped: "not empty when the daemon stopped; what is left stays in it",
};

export class NvmeParts {
  readonly tier: NvmeTier;
  readonly refusals = new Refusals(() => Date.now());
  readonly #addon: Addon;
  readonly #hooks: NvmeHooks;
  #config: NvmeConfig;
  #probes: readonly IndexProbe[] = [];
  #ledger: Ledger | undefined;
  #server: EngineServer | undefined;
  #mover: Mover | undefined;
  #scrubber: Scrubber | undefined;
  #writeThrough: WriteThrough | undefined;
  /** Directories being opened or drained, until that has ended. */
  readonly #following = new Map<string, Promise<void>>();
  #dropped: Dropped | undefined;
  readonly #leftOut: LeftOut;
  #opening: Promise<void> = Promise.resolve();
  /** Of all indexes that were found sound. */
  #entries = 0;
  #closing = false;

  /**
   * Opens the directories. A device that cannot be used is left out until it can (left-out.ts); what another daemon holds, is not
   * ours or has another format refuses the start.
   * @throws CairnError directoryUnsafe, directoryLocked, formatUnsupported
   */
  constructor(addon: Addon, config: NvmeConfig, hooks: NvmeHooks) {
    this.#addon = addon;
    this.#config = config;
    this.#hooks = hooks;
    const works = (path: string): void => {
      assert(this.#server !== undefined, "devices are asked while engines are served");
      this.#follow(path, this.#server.context.namespaces);
    };
    this.#leftOut = new LeftOut({ note: hooks.note, works, now: () => performance.now() });
    this.tier = this.#open(nvmeDirectories(config));
  }

  #open(directories: readonly NvmeDirectoryOptions[]): NvmeTier {
    const { segmentBytes, mode, direct, queueDepth, writeDepth, stagingBytes } = this.#config;
    const options = {
      directories,
      segmentBytes,
      mode,
      direct,
      queueDepth,
      writeDepth,
      stagingBytes,
    };
    const hooks = { ...this.#hooks, promote: (block: number) => this.#promote(block) };
    try {
      return new NvmeTier(this.#addon, options, hooks);
    } catch (error) {
      if (!unusable(error)) throw error;
      const bad = directories.find(({ path }) => error.message.startsWith(`${path}: `));
      if (bad === undefined) throw error;
      this.#hooks.note("error", `nvme: left out for now: ${error.message}`);
      this.#leftOut.add(bad.path);
      return this.#open(directories.filter((entry) => entry !== bad));
    }
  }

  /** Takes the probes' verdicts; the directories' sizes are known then. */
  async readIndexes(probes: readonly IndexProbe[]): Promise<void> {
    this.#probes = await this.tier.readIndexes(probes);
    for (const { verdict } of this.#probes) this.#entries += (await verdict).entries;
  }

  /** Bytes that the directories may grow to, for the size of the ledger. */
  get plannedBytes(): number {
    let bytes = 0;
    const { devices, segmentBytes } = this.tier;
    for (const { directory, options, segments } of devices) {
      const { capacityBytes } = options;
      bytes += plannedOf(directory, capacityBytes, segmentBytes, segments.count);
    }
    return bytes;
  }

  /** Segments that the directories may grow to. */
  get plannedSegments(): number {
    return Math.floor(this.plannedBytes / this.tier.segmentBytes);
  }

  ledgerOptions(): SlabTierOptions {
    const { blocksMax, highWatermark, lowWatermark } = this.#config;
    const limits = { blocksMax, highWatermark, lowWatermark };
    return Object.assign(this.tier.ledgerOptions(limits), limits);
  }

  attach(ledger: Ledger, arena: number): void {
    this.#ledger = ledger;
    this.tier.attach(ledger, arena);
    if (this.#entries < LIMITS.recoveryTouchedMin) return;
    for (const [words, count] of ledger.tablesFor(this.#entries)) {
      this.#addon.touchWords(words, count);
    }
  }

  /** A namespace was added, or took the index of another one. */
  bind(namespace: Namespace): void {
    this.tier.bindNamespace(namespace.index, namespace.digest, encodeRow(namespace));
  }

  /**
   * Makes namespaces known that only the directories know; those of the pool were restored before. One that does not
   * fit keeps its blocks on disk, unread.
   */
  unite(namespaces: Namespaces): void {
    const seen = new Set(namespaces.list.map(({ digestHex }) => digestHex));
    for (const rows of this.tier.namespaceRows()) {
      // Newest first: where not all fit, those in use do.
      for (const row of rows.toReversed()) {
        const hex = Buffer.from(row.digest).toString("hex");
        if (seen.has(hex)) continue;
        seen.add(hex);
        this.#openRow(namespaces, row, hex);
      }
    }
    this.#expectProofs(namespaces);
  }

  /**
   * Blocks that are adopted from headers while engines are served are those of an earlier life: their namespaces
   * must be proven, whether a block of theirs has come back yet or not.
   */
  #expectProofs(namespaces: Namespaces): void {
    const digests = new Set<string>();
    for (const device of this.tier.devices) {
      if (!device.rebuildNeeded) continue;
      for (const { digest } of device.rows.list) digests.add(Buffer.from(digest).toString("hex"));
    }
    for (const namespace of namespaces.list) {
      if (digests.has(namespace.digestHex)) namespace.recovered = true;
    }
  }

  #openRow(namespaces: Namespaces, row: NamespaceRow, hex: string): void {
    try {
      const map = JSON.parse(new TextDecoder().decode(row.descriptor)) as ColdMap;
      const descriptor = parseDescriptor(mapValue(map["descriptor"], "descriptor"));
      const { tenant, variant } = map;
      assert(typeof tenant === "string" && typeof variant === "string", "a row names its tenant");
      const opened = namespaces.open(tenant, descriptor, variant);
      if (opened.digestHex !== hex) throw new Error("its descriptor has another digest");
    } catch (error) {
      this.#hooks.note("warn", `nvme: namespace ${hex} is not taken back: ${String(error)}`);
    }
  }

  async recover(ledger: Ledger, found: (namespace: number) => void): Promise<NvmeRecoveryReport> {
    const { devices } = this.tier;
    return recoverNvme(devices, this.#probes, this.#addon, ledger, { found });
  }

  /** Engines are served: soon segments are written and blocks move. */
  begin(server: EngineServer, onWritten: (block: number) => void): void {
    const { context } = server;
    const { ledger, copies, feed, links, arena } = context;
    this.#server = server;
    const now = (): number => performance.now();
    this.#writeThrough = new WriteThrough(ledger, now);
    this.#dropped = new Dropped(ledger, this.refusals);
    const shared = { ledger, tier: this.tier, copies, feed, arena, now };
    this.#mover = new Mover({
      ...shared,
      links,
      refusals: this.refusals,
      onWritten,
      onRefused: (block) => {
        if (this.#config.writeThrough) this.#writeThrough?.refused(block);
      },
      due: () => this.#due(ledger),
      candidates: (into, max) => this.#candidates(ledger, into, max),
    });
    this.#scrubber = new Scrubber({
      ...shared,
      bytesPerSecond: () => this.#config.scrubBytesPerSecond,
      idle: () => context.jobs.inFlight === 0 && this.#mover?.blocksInFlight === 0,
    });
    this.#opening = this.#openSoon().catch((error: unknown) => this.#hooks.fault(error));
  }

  /** Opening takes the JS thread a while: engines that come back at once are answered first. */
  async #openSoon(): Promise<void> {
    await sleep(LIMITS.nvmeIndexOpenDelayMs);
    if (this.#closing) return;
    await this.tier.openIndexes();
    if (!this.#closing) this.tier.begin();
  }

  /** The oldest share of DRAM is kept backed, less what is free: eviction is that far away. */
  #due(ledger: Ledger): boolean {
    if (!this.tier.begun || this.tier.slabs === 0 || this.#roomWhileGrowing(ledger) < 1)
      return false;
    if (this.#config.writeThrough) return true;
    const { options, slots, blocks } = ledger.core.tier(TIER.DRAM);
    const { blocksMax } = options;
    const used = blocksMax > 0 ? blocks / blocksMax : usedShare(slots);
    if (1 - used >= LIMITS.writeBackAheadShare) return false;
    const capacity = blocksMax > 0 ? blocksMax : slots.slotsTotal;
    const depth = Math.ceil(capacity * LIMITS.writeBackAheadShare);
    return ledger.unbacked(TIER.DRAM, TIER.NVME, depth) > 0;
  }

  /** Copies that fit now while segments are still being written: the others wait for them, and push nothing out. */
  #roomWhileGrowing(ledger: Ledger): number {
    if (!this.tier.growing) return Number.POSITIVE_INFINITY;
    const { slots, options } = ledger.core.tier(TIER.NVME);
    return Math.floor(slots.slotsTotal * options.highWatermark) - slots.slotsUsed;
  }

  #candidates(ledger: Ledger, into: Uint32Array, most: number): number {
    const max = Math.max(0, Math.min(most, this.#roomWhileGrowing(ledger)));
    if (this.#config.writeThrough) {
      const count = this.#writeThrough?.next(into, max) ?? 0;
      if (count > 0) return count;
    }
    return ledger.demotable(TIER.DRAM, TIER.NVME, into, max);
  }

  /** A device is drained and this block may not just be dropped: DRAM is to hold it. */
  #promote(block: number): void {
    const prefetcher = this.#server?.prefetcher;
    const ledger = this.#ledger;
    if (prefetcher === undefined || ledger === undefined) return;
    if (prefetcher.refusal() !== undefined) return; // The device asks again.
    prefetcher.begin({
      chain: chainKeysOf(ledger, block),
      deadlineAt: performance.now() + LIMITS.loadDeadlineMsMax,
      priority: DISK_PRIORITY.OTHER,
      done: () => {},
    });
  }

  /** Headers are being read, or will be next: blocks of namespaces that look empty may come back. */
  get adopting(): boolean {
    return this.tier.devices.some(
      ({ rebuilding, rebuildNeeded, health }) => rebuilding || (rebuildNeeded && health === "ok"),
    );
  }

  /** Every few tens of milliseconds. */
  tick(ledger: Ledger): void {
    this.tier.tick();
    this.#leftOut.step();
    if (!this.tier.growing) ledger.evictToWatermark(TIER.NVME);
    this.#mover?.step();
    this.#dropped?.step();
    this.#scrubber?.step();
  }

  onProgress(task: number, done: number, total: number, outcome: number, errno: number): boolean {
    return this.tier.onProgress(task, done, total, outcome, errno);
  }

  /** What changed while running: directories come and go, sizes, rates and watermarks follow at once. */
  reload(config: NvmeConfig, namespaces: Namespaces): void {
    const directories = nvmeDirectories(config);
    const before = nvmeDirectories(this.#config).map(({ path }) => path);
    const after = new Set(directories.map(({ path }) => path));
    this.#config = config;
    assert(this.#ledger !== undefined, "a running tier is reloaded");
    const { highWatermark, lowWatermark } = config;
    Object.assign(this.#ledger.core.tier(TIER.NVME).options, { highWatermark, lowWatermark });
    for (const options of directories) {
      // Open ones take their new limits, also one that was being drained and is wanted again.
      if (!this.tier.configure(options)) this.#follow(options.path, namespaces);
    }
    for (const path of before) if (!after.has(path)) this.#follow(path, namespaces);
  }

  /**
   * Does for a directory what the configuration asks for by the time that all which is being done about it has ended:
   * one that is closing cannot be opened yet, nor one that is opening be drained.
   */
  #follow(path: string, namespaces: Namespaces): void {
    const before = this.#following.get(path) ?? Promise.resolve();
    const done = before.then(async () => {
      const options = nvmeDirectories(this.#config).find((entry) => entry.path === path);
      const open = this.tier.deviceOf(path) !== undefined;
      if (options !== undefined && !open) await this.#add(options, namespaces);
      if (options === undefined) this.#leftOut.remove(path);
      if (options === undefined && open) await this.#drain(path);
      if (this.#following.get(path) === done) this.#following.delete(path);
    });
    this.#following.set(path, done);
  }

  async #add(options: NvmeDirectoryOptions, namespaces: Namespaces): Promise<void> {
    try {
      await this.tier.addDirectory(options);
      this.#leftOut.remove(options.path);
      this.unite(namespaces);
      this.#hooks.note("info", `nvme: ${options.path} was added`);
    } catch (error) {
      this.#hooks.note("error", `nvme: ${options.path} cannot be added: ${String(error)}`);
      // What is not ours, or another daemon's, is not touched again before somebody has looked.
      if (unusable(error)) this.#leftOut.add(options.path);
      else this.#leftOut.remove(options.path);
    }
  }

  async #drain(path: string): Promise<void> {
    try {
      const outcome = await this.tier.drainDirectory(path, LIMITS.nvmeDrainMs);
      this.#hooks.note("info", `nvme: ${path}: ${DRAINED[outcome]}`);
    } catch (error) {
      this.#hooks.note("error", `nvme: ${path} cannot be drained: ${String(error)}`);
    }
  }

  /** What is in flight ends, for as long as a drain may take. Events must still be drained. */
  async drain(withinMs: number): Promise<void> {
    this.#scrubber?.stop();
    await this.#mover?.drain(withinMs);
    const until = performance.now() + withinMs;
    while ((this.#scrubber?.inFlight ?? 0) > 0 && performance.now() < until) await sleep(POLL_MS);
  }

  async close(refreshMs: number): Promise<void> {
    this.#closing = true;
    await this.#opening;
    await this.tier.close(refreshMs);
  }

  explainSource(): NonNullable<ExplainSources["nvme"]> {
    const { refusals, tier } = this;
    const { writeThrough } = this.#config;
    return { refusals, writeThrough, directoryOf: (slot) => tier.deviceOfSlot(slot).directory };
  }

  readings(ledger: Ledger): readonly DeviceReading[] {
    const used = usedByDevice(ledger);
    return this.tier
      .snapshot()
      .map((snapshot) => ({ ...snapshot, usedBytes: used[snapshot.device] ?? 0 }));
  }

  publish(feed: Feed, ledger: Ledger): void {
    feed.set(METRIC.nvmeLeftOut, this.#leftOut.count);
    feed.set(METRIC.evictedUnbacked, ledger.core.tier(TIER.DRAM).evictedUnbacked);
  }
}

/** The device is at fault, and may be well later. */
function unusable(error: unknown): error is CairnError {
  return error instanceof CairnError && error.errorName === "diskUnusable";
}

/** A directory that cannot be asked is as large as it is. */
function plannedOf(
  directory: string,
  capacityBytes: number | "auto",
  segmentBytes: number,
  segments: number,
): number {
  try {
    const facts = directoryFacts(directory);
    const plan = planSegments(capacityBytes, segmentBytes, segments, Infinity, facts);
    return plan.target * segmentBytes;
  } catch {
    return segments * segmentBytes; // The device's own look at it says what is wrong.
  }
}

/** Share of the pool in use: of its slabs those that serve a class, of their slots those that hold a block. */
function usedShare(slots: SlotTable): number {
  const { slabs, slabsFree, slotsUsed, slotsTotal } = slots;
  if (slabs === 0 || slotsTotal === 0) return 0;
  return ((slabs - slabsFree) / slabs) * (slotsUsed / slotsTotal);
}

function usedByDevice(ledger: Ledger): number[] {
  const { slots } = ledger.core.tier(TIER.NVME);
  const bytes: number[] = [];
  for (let slab = 0; slab < slots.slabs; slab++) {
    const classIndex = slots.slabClass(slab);
    if (classIndex < 0) continue;
    const device = slots.deviceOfSlab(slab);
    const payloadBytes = slots.classes[classIndex]?.payloadBytes ?? 0;
    bytes[device] = (bytes[device] ?? 0) + slots.slabUsed(slab) * payloadBytes;
  }
  return bytes;
}

/** As the pool's table holds it (engine-api/namespaces.ts). */
function encodeRow({ descriptor, tenant, variant }: Namespace): Uint8Array {
  return new TextEncoder().encode(JSON.stringify({ descriptor, tenant, variant }));
}
