/**
 * The NVMe tier: several directories, each one device, behind one range of slab numbers. A slab of the ledger is a
 * segment file of one of them; numbers are given out in the order in which segments become usable and are never used
 * again. What lies in a directory, what counts when, and what each fault does: README.md.
 *
 * Order of a start (src/daemon/nvme.ts drives it): startProbe() for each directory, early → new NvmeTier (locks,
 * attaches) → readIndexes() → ledger made with ledgerOptions() → attach() → namespace tables united, bindNamespace()
 * for each → recoverNvme(), then the DRAM headers, recoverEnd() → engines are served → openIndexes() → begin() →
 * tick() every few tens of milliseconds.
 */
import {
  DISK_HEADER_BYTES,
  DISK_SECTOR_BYTES,
  type DiskInfo,
  SLOT_INDEX_BITS,
} from "../../addon/binding.ts";
import { assert } from "../../src/assert.ts";
import { CairnError } from "../../src/errors.ts";
import type { Ledger } from "../../src/ledger/ledger.ts";
import { type SlabTierOptions, TIER } from "../../src/ledger/types.ts";
import { LIMITS } from "../../src/limits.ts";
import { prepareDirectory } from "../dram/preflight.ts";
import type { DiskTier, TierLimits } from "../tier.ts";
import type { DeviceAddon, DeviceContext, DeviceHooks, NvmeDirectoryOptions } from "./context.ts";
import { Device } from "./device.ts";
import { opensOf } from "./index-store.ts";
import { type NamespaceRow, NAMESPACES_FILE, readNamespaces } from "./namespaces.ts";
import { type IndexProbe, startProbe } from "./probe.ts";
import { forgetGone } from "./recover.ts";
import { LateHeaders } from "./late-headers.ts";
import { adoptHeader, rebuildDevice } from "./rebuild.ts";
import { type DeviceSnapshot, deviceSnapshot } from "./snapshot.ts";
import { Tasks } from "./tasks.ts";

export interface NvmeOptions {
  readonly directories: readonly NvmeDirectoryOptions[];
  readonly segmentBytes: number;
  readonly mode: "auto" | "uring" | "threads";
  readonly direct: "auto" | "off";
  readonly queueDepth: number;
  readonly writeDepth: number;
  readonly stagingBytes: number;
}

/** How the drain of a directory ended; `kept`: it was called off, `stopped`: the tier was closed. */
export type DrainOutcome = "emptied" | "givenUp" | "kept" | "stopped";

/** Slabs that a slot number can name. */
const SLABS_MAX = 2 ** (32 - SLOT_INDEX_BITS);
/** Devices that the ledger tells apart; numbers are not used again in a life. */
const DEVICES_MAX = 64;

export class NvmeTier implements DiskTier {
  readonly index = TIER.NVME;
  readonly name = "nvme";
  readonly segmentBytes: number;
  readonly devices: Device[] = [];
  readonly addon: DeviceAddon;
  readonly #stagingBytes: number;
  readonly #tasks = new Tasks();
  readonly #lateHeaders = new LateHeaders(() => this.ledger, adoptHeader);
  readonly #context: DeviceContext;
  /** Device of each slab number given out. */
  readonly #deviceOfSlab = new Uint8Array(SLABS_MAX);
  readonly #namespaces: (NamespaceRow | undefined)[] = [];
  #slabs = 0;
  /** Slabs that the ledger knows of. */
  #slabsReady = 0;
  #begun = false;
  #arena = 0;

  /**
   * Opens every directory: locked, checked, prepared segments attached.
   * @throws CairnError directoryUnsafe, directoryLocked, formatUnsupported, diskUnusable
   */
  constructor(addon: DeviceAddon, options: NvmeOptions, hooks: DeviceHooks) {
    this.addon = addon;
    this.segmentBytes = options.segmentBytes;
    this.#stagingBytes = options.stagingBytes;
    this.#context = {
      addon,
      tasks: this.#tasks,
      hooks,
      ledger: undefined,
      namespace: (index) => this.#namespaces[index],
      open: (directory) => openDisk(addon, options, directory),
    };
    try {
      for (const directory of options.directories) this.#open(directory);
    } catch (error) {
      for (const device of this.devices) addon.diskClose(device.disk);
      throw error;
    }
    this.#slabsReady = this.#slabs;
  }

  #open(options: NvmeDirectoryOptions): Device {
    const index = this.devices.length;
    if (index >= DEVICES_MAX) {
      throw new CairnError("diskUnusable", `more than ${DEVICES_MAX} directories were opened`);
    }
    prepareDirectory(options.path, "diskUnusable");
    const info = this.#context.open(options.path);
    const slabsBefore = this.#slabs;
    try {
      const rows = readNamespaces(options.path);
      const numbers = {
        take: () => this.#takeSlab(index),
        ready: (slab: number) => this.#slabReady(slab),
        left: () => SLABS_MAX - this.#slabs,
      };
      const device = new Device(index, options, info, rows, numbers, this.#context);
      for (const line of info.notes) device.note("info", line);
      const unfinished = device.segments.attachFound();
      if (unfinished.length > 0) {
        device.note("info", `${unfinished.length} unfinished segments will be written again`);
      }
      this.devices.push(device);
      return device;
    } catch (error) {
      this.addon.diskClose(info.disk);
      this.#slabs = slabsBefore; // No slab may name a segment that was not attached.
      if (error instanceof CairnError) throw error;
      throw new CairnError("diskUnusable", `${options.path}: ${String(error)}`);
    }
  }

  #takeSlab(device: number): number {
    if (this.#slabs >= SLABS_MAX) return -1;
    const slab = this.#slabs++;
    this.#deviceOfSlab[slab] = device;
    return slab;
  }

  #slabReady(slab: number): void {
    const { ledger } = this.#context;
    this.#slabsReady = Math.max(this.#slabsReady, slab + 1);
    ledger?.growTier(TIER.NVME, this.#slabsReady);
  }

  // DiskTier ----------------------------------------------------------------------------------------------------

  /** More segments are to come: what does not fit yet will. */
  get growing(): boolean {
    return this.devices.some(
      ({ mayWrite, plan, segments: { preparing, planned } }) =>
        mayWrite && (preparing !== undefined || planned < (plan?.target ?? 0)),
    );
  }

  get slabs(): number {
    return this.#slabsReady;
  }

  get capacityBytes(): number {
    let bytes = 0;
    for (const { segments } of this.devices) bytes += segments.count * this.segmentBytes;
    return bytes;
  }

  /** 0 also for rows that the staging memory is too small for. */
  slotsPerSlab(payloadBytes: number): number {
    const slotBytes =
      Math.ceil((DISK_HEADER_BYTES + payloadBytes) / DISK_SECTOR_BYTES) * DISK_SECTOR_BYTES;
    if (slotBytes > this.#stagingBytes / 2) return 0;
    return this.addon.diskSlotsPerSegment(this.segmentBytes, payloadBytes);
  }

  ledgerOptions(limits: TierLimits): SlabTierOptions {
    return {
      slabs: this.#slabsReady,
      deviceOf: (slab) => this.#deviceOfSlab[slab]!,
      slotsPerSlab: (payloadBytes) => this.slotsPerSlab(payloadBytes),
      assignSlab: (slab, payloadBytes) => this.#ofSlab(slab).segments.assign(slab, payloadBytes),
      releaseSlab: (slab) => this.#ofSlab(slab).segments.release(slab),
      invalidate: (slots, count) => this.#freed(slots, count),
      ...limits,
    };
  }

  #ofSlab(slab: number): Device {
    assert(slab < this.#slabs, "no such slab");
    return this.devices[this.#deviceOfSlab[slab]!]!;
  }

  deviceOfSlot(slot: number): Device {
    return this.#ofSlab(slot >>> SLOT_INDEX_BITS);
  }

  /** Freed slots leave the index; their headers stay true until they are overwritten (README.md). */
  #freed(slots: Uint32Array, count: number): void {
    for (let index = 0; index < count; index++) {
      const slot = slots[index]!;
      this.deviceOfSlot(slot).marks.clearDurable(slot);
    }
  }

  diskOf(slot: number): number {
    return this.deviceOfSlot(slot).disk;
  }

  mayRead(slot: number): boolean {
    return this.deviceOfSlot(slot).mayRead;
  }

  mayWrite(slot: number): boolean {
    return this.deviceOfSlot(slot).mayWrite;
  }

  admits(slot: number): boolean {
    const { core } = this.ledger;
    const owner = core.tier(TIER.NVME).slots.ownerOf(slot);
    return this.deviceOfSlot(slot).admits(core.namespaceOf(owner).index);
  }

  commit(slots: Uint32Array, count: number, done: (durable: boolean) => void): void {
    assert(count > 0, "a commit names slots");
    this.deviceOfSlot(slots[0]!).committer.commit(slots, count, done);
  }

  ended(slot: number, kind: number, status: number, _microseconds: number): void {
    this.deviceOfSlot(slot).ended(kind, status);
  }

  writeAllowanceBytes(disk: number): number {
    const device = this.devices.find((one) => one.disk === disk && !one.closed);
    if (device === undefined) return 0;
    device.chargeWrites(device.diskCounters().bytesWritten);
    return device.endurance.allowanceBytes(Date.now());
  }

  // Start -------------------------------------------------------------------------------------------------------

  /**
   * Takes the probes' verdicts. Probes come in the order of the directories; where one is missing it is started now.
   * Entries stay with the probes until recoverNvme().
   */
  async readIndexes(probes: readonly IndexProbe[]): Promise<readonly IndexProbe[]> {
    const all = this.devices.map(
      (device) =>
        probes.find(({ directory }) => directory === device.directory) ??
        startProbe(device.directory),
    );
    // A directory may have been left out since its probe was started.
    for (const probe of probes) if (!all.includes(probe)) probe.stop();
    await Promise.all(all.map((probe, index) => this.#readIndex(this.devices[index]!, probe)));
    return all;
  }

  async #readIndex(device: Device, probe: IndexProbe): Promise<void> {
    const verdict = await probe.verdict;
    const id = Buffer.from(device.info.directoryId).toString("hex");
    const foreign = verdict.meta.directoryId !== undefined && verdict.meta.directoryId !== id;
    const opens = opensOf(device.directory);
    const { rowsDamaged, rows } = device.deviceIndex;
    let reason = foreign ? "it belongs to another directory" : verdict.damage;
    if (rowsDamaged) reason ??= `${NAMESPACES_FILE} is damaged`;
    if (verdict.entries > 0 && rows.list.length === 0) reason ??= `${NAMESPACES_FILE} is gone`;
    if (opens >= LIMITS.nvmeIndexOpensMax) reason ??= `${opens} starts ended in its first commit`;
    if (reason !== undefined) {
      probe.stop();
      device.deviceIndex.distrust();
      device.counters.indexDamaged += 1;
      device.rebuildNeeded = device.segments.count > 0;
      device.note(
        "error",
        `the index is not believed (${reason}): moved aside, rebuilt from headers`,
      );
    } else device.restoreMeta(verdict.meta);
    // Segments without an index: it was taken away, or the first commit never came.
    if (!verdict.found) device.rebuildNeeded = device.segments.count > 0;
  }

  /** Namespaces known to the directories, for unionNamespaces(). */
  namespaceRows(): readonly (readonly NamespaceRow[])[] {
    return this.devices.map(({ rows }) => rows.named);
  }

  /** The daemon numbers this namespace so; called for each, restored or new, before it has blocks here. */
  bindNamespace(index: number, digest: Uint8Array, descriptor: Uint8Array): void {
    const row = { digest: digest.slice(), descriptor: descriptor.slice() };
    this.#namespaces[index] = row;
    for (const { rows } of this.devices) rows.bind(index, row.digest);
  }

  /** The ledger was made with ledgerOptions(). `arena`: the DRAM arena, whose namespaces seed header hashes. */
  attach(ledger: Ledger, arena: number): void {
    assert(this.#context.ledger === undefined, "one ledger");
    this.#context.ledger = ledger;
    this.#arena = arena;
  }

  get ledger(): Ledger {
    const { ledger } = this.#context;
    assert(ledger !== undefined, "attach() came before");
    return ledger;
  }

  /**
   * Damaged indexes are moved aside, and all take pages. No look-up waits for that: engines may be served before. A
   * directory that is being added opens its own, once it was read.
   */
  async openIndexes(): Promise<void> {
    const open = this.devices.filter(({ closed, rebuilding }) => !closed && !rebuilding);
    await Promise.all(open.map((device) => device.openIndex()));
  }

  /** begin() was called. */
  get begun(): boolean {
    return this.#begun;
  }

  /** The indexes are open: from now on segments are written, damaged indexes rebuilt. */
  begin(): void {
    this.#begun = true;
    this.tick();
  }

  /** Every few tens of milliseconds. */
  tick(): void {
    if (!this.#begun) return;
    const nowMs = performance.now();
    for (const device of this.devices) {
      if (device.closed) continue;
      device.tick(nowMs);
      const due = device.rebuildNeeded && !device.rebuilding && device.health === "ok";
      if (due) this.#rebuild(device);
      if (!device.rebuilding) device.grow();
      device.retireStep();
    }
  }

  #rebuild(device: Device): void {
    device.rebuildNeeded = false;
    device.rebuilding = true;
    const { ledger } = this;
    rebuildDevice(device, ledger, this.addon, this.#tasks, this.#arena, this.#lateHeaders)
      .catch((error: unknown) => {
        device.note("error", `headers could not be read: ${String(error)}`);
        device.rebuildFailed();
      })
      .finally(() => {
        device.rebuilding = false;
      });
  }

  // While running -----------------------------------------------------------------------------------------------

  /** A PROGRESS event; false when the task is not of this tier. */
  onProgress(task: number, done: number, total: number, outcome: number, errno: number): boolean {
    return this.#tasks.onProgress(task, done, total, outcome, errno);
  }

  /**
   * A directory is added: opened, its free segments are of use at once, and what lies in it is adopted from its
   * headers in the background. Returned are the namespaces it knows: the caller makes those known that are new
   * (bindNamespace(), and the pool's table) before it yields to the event loop again. @throws CairnError
   */
  async addDirectory(options: NvmeDirectoryOptions): Promise<readonly NamespaceRow[]> {
    const device = this.#open(options);
    try {
      await this.#takeIn(device);
    } catch (error) {
      await this.#giveUp(device);
      throw error;
    }
    return device.rows.named;
  }

  async #takeIn(device: Device): Promise<void> {
    for (const [index, row] of this.#namespaces.entries()) {
      if (row !== undefined) device.rows.bind(index, row.digest);
    }
    this.#slabsReady = this.#slabs;
    this.ledger.growTier(TIER.NVME, this.#slabsReady);
    device.heldSlabs = holdSlabs(this.ledger, device);
    device.rebuilding = true; // Not before its index is open.
    const probe = startProbe(device.directory);
    try {
      await this.#readIndex(device, probe);
      await device.openIndex();
      await forgetGone(device, probe);
    } finally {
      probe.stop();
      device.rebuilding = false;
    }
    device.rebuildNeeded = device.segments.count > 0;
  }

  /** What the ledger has of it is lost, and the directory is another's to open. */
  async #giveUp(device: Device): Promise<void> {
    this.ledger.loseDevice(TIER.NVME, device.index);
    for (const slab of device.heldSlabs ?? []) this.ledger.adoptEnd(TIER.NVME, slab);
    device.heldSlabs = undefined;
    await device.close();
  }

  /** The device of a directory that is open, also while it is drained. */
  deviceOf(path: string): Device | undefined {
    return this.devices.find(({ directory, closed }) => directory === path && !closed);
  }

  /** New limits of an open directory. If it was being drained it stays after all. False: it is not open. */
  configure(options: NvmeDirectoryOptions): boolean {
    const device = this.deviceOf(options.path);
    if (device === undefined) return false;
    device.configure(options);
    if (device.draining) device.endDrain();
    return true;
  }

  /**
   * Empties a directory and closes it: nothing new goes there, what may leave does, what may not is promoted. After
   * `giveUpMs` the rest is given up. Resolves when the directory is closed, its segments being removed as far as
   * they could be emptied; or when configure() called it off, or the tier was closed.
   */
  async drainDirectory(path: string, giveUpMs: number): Promise<DrainOutcome> {
    const device = this.deviceOf(path);
    if (device === undefined) throw new CairnError("notFound", `${path} is no open directory`);
    const drain = device.beginDrain();
    const until = performance.now() + giveUpMs;
    while (device.segments.count > 0 || device.segments.preparing !== undefined) {
      if (performance.now() >= until) {
        device.note("warn", "drained for too long: what is left is given up");
        await this.#giveUp(device);
        return "givenUp";
      }
      await pause();
      if (device.closed) return "stopped";
      if (device.drains !== drain) return "kept";
      device.segments.retireAll();
    }
    await device.close();
    return "emptied";
  }

  /** Last accesses into the indexes, then all is closed. For a clean stop. */
  async close(refreshMs: number): Promise<void> {
    this.#begun = false;
    const until = performance.now() + refreshMs;
    await Promise.all(
      this.devices.map(async (device) => {
        if (device.closed) return;
        if (refreshMs > 0 && !(await device.refreshAll(until))) {
          device.note("info", "stopped before all times of last access were written");
        }
        await device.close();
      }),
    );
  }

  snapshot(): readonly DeviceSnapshot[] {
    return this.devices.filter(({ closed }) => !closed).map((device) => deviceSnapshot(device));
  }
}

/** Slabs that lie assigned in the files are not given out before their headers were read. */
function holdSlabs(ledger: Ledger, device: Device): number[] {
  const held: number[] = [];
  for (const { slab, payloadBytes } of device.segments.list) {
    if (payloadBytes > 0 && ledger.adoptBegin(TIER.NVME, slab, payloadBytes)) held.push(slab);
  }
  return held;
}

function openDisk(addon: DeviceAddon, options: NvmeOptions, directory: string): DiskInfo {
  const { segmentBytes, mode, direct, queueDepth, writeDepth, stagingBytes } = options;
  try {
    return addon.diskOpen({
      directory,
      segmentBytes,
      mode,
      direct,
      queueDepth,
      writeDepth,
      stagingBytes,
    });
  } catch (error) {
    const code = (error as { code?: unknown }).code;
    const reason = `${directory}: ${error instanceof Error ? error.message : String(error)}`;
    if (code === "LOCKED") throw new CairnError("directoryLocked", reason);
    if (code === "UNSAFE") throw new CairnError("directoryUnsafe", reason);
    if (code === "FORMAT") throw new CairnError("formatUnsupported", reason);
    throw new CairnError("diskUnusable", reason);
  }
}

function pause(): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, 20);
  });
}
