/**
 * One directory, that is one device: its disk in the addon, its segments, its index, its health. What it sees becomes
 * events of the table in health.ts; what the table answers is acted on here: a device that may not be written is
 * closed in the ledger (it gives out no slots), a fenced one is lost there, one that comes back is opened again.
 */
import {
  DISK,
  type DiskCounters,
  type DiskInfo,
  ITEM,
  ITEM_PROMOTED,
} from "../../addon/binding.ts";
import { assert } from "../../src/assert.ts";
import type { Ledger } from "../../src/ledger/ledger.ts";
import { TIER } from "../../src/ledger/types.ts";
import { LIMITS } from "../../src/limits.ts";
import { Backoff } from "../backoff.ts";
import type { DeviceHealth } from "../tier.ts";
import { checkDevice } from "./check-file.ts";
import { type CommitDevice, Committer } from "./committer.ts";
import type { DeviceContext, NvmeDirectoryOptions } from "./context.ts";
import { nvmeCounters } from "./counters.ts";
import { DiskFigures } from "./disk-figures.ts";
import { Endurance, type EnduranceState } from "./endurance.ts";
import { FaultWindow, type HealthEvent, nextHealth } from "./health.ts";
import { DeviceIndex } from "./device-index.ts";
import { HeldSegments } from "./held.ts";
import { indexOfPage, Marks } from "./marks.ts";
import type { NamespaceRow, Rows } from "./namespaces.ts";
import { directoryFacts, planSegments, type SegmentPlan } from "./plan.ts";
import { Segments, type SlabNumbers } from "./segments.ts";
import { TaskError, withinTime } from "./tasks.ts";

const FACTS_MS = 2_000;
/** errno and LMDB's code for "no room"; LMDB says EIO for it. */
const ENOSPC = 28;
const EIO = 5;

export class Device implements CommitDevice {
  readonly index: number;
  options: NvmeDirectoryOptions;
  info: DiskInfo;
  readonly marks = new Marks();
  readonly segments: Segments;
  readonly deviceIndex: DeviceIndex;
  readonly held: HeldSegments;
  readonly committer: Committer;
  readonly endurance: Endurance;
  readonly counters = nvmeCounters();
  health: DeviceHealth = "ok";
  full = false;
  /** It is being emptied, to be closed. */
  draining = false;
  /** Counts the beginnings and ends of drains: whoever drains sees that it was called off. */
  drains = 0;
  /** Everything is gone from it and the disk is closed. */
  closed = false;
  /** False between closing a disk and opening it anew, which may take several probes. */
  diskOpen = true;
  /** The index's last failed commit found no room. */
  #indexWantsRoom = false;
  readonly #figures: DiskFigures;
  #carried: { readonly slots: Uint32Array; readonly generations: Uint32Array } | undefined;
  /** Headers have to be read: the index was damaged, or the device was fenced. */
  rebuildNeeded = false;
  rebuilding = false;
  /** Slabs that give out no slots until the headers of an added directory were read. */
  heldSlabs: number[] | undefined;
  lastCommitMs = 0;
  plan: SegmentPlan | undefined;
  readonly #context: DeviceContext;
  readonly #readFaults = new FaultWindow(LIMITS.nvmeReadErrorsMax, LIMITS.nvmeErrorWindowMs);
  readonly #backoff = new Backoff(LIMITS.nvmeProbeMs, LIMITS.nvmeProbeMsMax);
  #syncing = false;
  #probing = false;
  /** A failed sync stands until the disk is opened anew; a fenced one may have operations that hang. */
  #stale = false;
  #stalled = false;
  #writable = true;
  #probeAtMs = 0;
  #factsAtMs = 0;
  #flushAtMs = 0;
  #refreshAtMs = 0;
  #refreshSlab = 0;
  #refreshPage = 0;
  #bytesSeen = 0;

  constructor(
    index: number,
    options: NvmeDirectoryOptions,
    info: DiskInfo,
    rows: readonly NamespaceRow[] | undefined,
    numbers: SlabNumbers,
    context: DeviceContext,
  ) {
    this.index = index;
    this.options = options;
    this.info = info;
    this.#context = context;
    this.#figures = new DiskFigures(() => context.addon.diskCounters(this.disk));
    const mayUse = (segment: number): boolean => !this.deviceIndex.names(segment);
    this.segments = new Segments(context.addon, () => this.disk, this.marks, numbers, mayUse);
    const { marks, segments } = this;
    this.held = new HeldSegments(segments, marks);
    const parts = {
      directory: options.path,
      marks,
      segments,
      core: () => this.#ledger.core,
      namespace: context.namespace,
      generations: (slots: Uint32Array, count: number, into: Uint32Array) =>
        context.addon.diskGenerations(this.disk, slots, count, into),
      meta: () => this.#meta(),
    };
    this.deviceIndex = new DeviceIndex(parts, rows);
    this.committer = new Committer(this);
    const { writeBudgetBytesPerDay, ratedWriteBytes } = options;
    this.endurance = new Endurance(writeBudgetBytesPerDay, ratedWriteBytes, Date.now());
  }

  get directory(): string {
    return this.options.path;
  }

  get rows(): Rows {
    return this.deviceIndex.rows;
  }

  get disk(): number {
    return this.info.disk;
  }

  get mayRead(): boolean {
    return this.health !== "fenced" && !this.closed && this.diskOpen;
  }

  /** A new copy may be begun here. */
  get mayWrite(): boolean {
    return (
      this.health === "ok" &&
      !this.full &&
      !this.draining &&
      !this.closed &&
      this.deviceIndex.isOpen
    );
  }

  get #ledger(): Ledger {
    const { ledger } = this.#context;
    assert(ledger !== undefined, "the ledger was attached before the tier is used");
    return ledger;
  }

  // The index ---------------------------------------------------------------------------------------------------

  /** At start. An index that cannot be opened is no reason not to read the device: it is tried again. */
  async openIndex(): Promise<void> {
    try {
      await this.deviceIndex.open();
      if (this.deviceIndex.rewriteNeeded) this.#dirtyAll();
    } catch (error) {
      this.counters.indexOpenFailures += 1;
      this.note(
        "error",
        `the index cannot be opened, so no copies are taken yet: ${String(error)}`,
      );
      if (this.#noRoom(error)) this.#becomeFull();
      else this.event("syncFailed");
    }
  }

  /** Blocks of this namespace may come here: the index can name them. */
  admits(namespace: number): boolean {
    if (this.deviceIndex.admit(namespace)) return true;
    if (this.counters.rowsRefused === 0) {
      this.note("error", "namespaces.json is full: blocks of further namespaces are not taken");
    }
    this.counters.rowsRefused += 1;
    return false;
  }

  /** An entry of a namespace that is not bound: kept, unread. False: its row names nothing. */
  hold(slot: number, slab: number, row: number): boolean {
    if (!this.rows.names(row)) return false;
    this.held.hold(slot, slab);
    return true;
  }

  /** Namespaces that no entry of the index names give up their rows. */
  vacateRows(used: (row: number) => boolean): void {
    const count = this.rows.vacate(used);
    if (count > 0) this.note("info", `${count} namespaces have no block here any more`);
  }

  /** Pages in the index whose segment is gone: removed by the next commits. */
  forgetPages(keys: readonly number[]): void {
    this.deviceIndex.forget(keys);
  }

  /** Pages that did not verify are written afresh: their blocks are forgotten. */
  dropPages(keys: readonly number[]): void {
    this.counters.pagesDropped += keys.length;
    this.deviceIndex.drop(keys);
  }

  /** Pages that the index is to be told of. */
  get owedPages(): number {
    return this.marks.dirtyPages + this.deviceIndex.staleKeys;
  }

  get committable(): boolean {
    const healthy = this.health === "ok" || this.health === "slow";
    return healthy && !this.full && !this.closed && !this.#syncing && this.deviceIndex.isOpen;
  }

  async sync(): Promise<void> {
    this.#syncing = true;
    const { addon, tasks } = this.#context;
    const synced = tasks.run(this, (task) => addon.diskSync(this.disk, task));
    const settled = (): void => {
      this.#syncing = false;
    };
    synced.then(settled, settled);
    await withinTime(synced);
  }

  prepareRows(pages: readonly number[]): Promise<void> {
    return this.deviceIndex.prepareRows(pages);
  }

  async writePages(pages: readonly number[]): Promise<void> {
    this.endurance.wrote(await this.deviceIndex.writePages(pages), Date.now());
  }

  #meta(): object {
    const directoryId = Buffer.from(this.info.directoryId).toString("hex");
    return { directoryId, endurance: this.endurance.state() };
  }

  /** What the last life left in the index's meta entry. */
  restoreMeta(meta: { endurance?: Partial<EnduranceState>; bootId?: string }): void {
    this.deviceIndex.restoreMeta(meta);
    if (meta.endurance !== undefined) this.endurance.restore(meta.endurance, Date.now());
  }

  commitEnded(milliseconds: number, _pages: number): void {
    this.lastCommitMs = milliseconds;
    this.counters.commits += 1;
  }

  commitFailed(step: "sync" | "index", error: unknown): void {
    this.counters[step === "sync" ? "syncFailures" : "commitFailures"] += 1;
    const full = this.#noRoom(error);
    this.note("error", `${step} failed${full ? " for want of room" : ""}: ${String(error)}`);
    if (step === "sync") this.#stale = true;
    if (step === "index") this.#indexWantsRoom = full;
    if (full) this.#becomeFull();
    else this.event("syncFailed");
  }

  /** LMDB reports a full file system as EIO: the file system itself is asked. */
  #noRoom(error: unknown): boolean {
    const errno = (error as { errno?: unknown }).errno;
    if (errno === ENOSPC || errno === -ENOSPC) return true;
    const { code } = error as { code?: unknown };
    if (code !== EIO && code !== ENOSPC) return false;
    return code === ENOSPC || this.#facts()?.full === true;
  }

  fault(error: unknown): void {
    this.#context.hooks.fault(error);
  }

  note(level: "info" | "warn" | "error", line: string): void {
    this.#context.hooks.note(level, `nvme: ${this.directory}: ${line}`);
  }

  // Health ------------------------------------------------------------------------------------------------------

  /** An item of this device ended with this ITEM status. */
  ended(kind: number, status: number): void {
    const plain = status & ~ITEM_PROMOTED;
    if (plain === ITEM.OK) return this.event("itemOk");
    if (plain === ITEM.CORRUPT) this.counters.corrupt += 1;
    if (plain === ITEM.IDENTITY) this.counters.identity += 1;
    if (plain === ITEM.DEADLINE) this.counters.deadlines += 1;
    if (plain !== ITEM.IO) return undefined;
    this.counters.ioErrors += 1;
    if (kind === DISK.WRITE) return this.event("writeError");
    return this.event(this.#readFaults.fault(performance.now()) ? "readErrors" : "readError");
  }

  event(event: HealthEvent): void {
    const next = nextHealth(this.health, event);
    if (next === this.health) return;
    const before = this.health;
    this.health = next;
    this.note(next === "ok" ? "info" : "error", `${before} → ${next} (${event})`);
    if (next === "slow") this.counters.stalls += 1;
    if (next === "fenced") this.#lost();
    if (next === "ok") this.#returned(before);
    else this.#probeAtMs = performance.now() + this.#backoff.failed();
    this.#openOrClose();
  }

  #lost(): void {
    this.counters.fences += 1;
    this.rebuildNeeded = true;
    this.#stale = true;
    this.held.forget(undefined);
    this.#context.ledger?.loseDevice(TIER.NVME, this.index);
  }

  #returned(before: DeviceHealth): void {
    this.#backoff.reset();
    this.#readFaults.clear();
    // After a failed sync nobody knows which pages reached the disk: all are written again.
    if (before !== "slow") this.#dirtyAll();
  }

  #dirtyAll(): void {
    for (const slab of this.marks.slabs()) {
      for (const page of this.marks.pagesInUse(slab, 0, Number.POSITIVE_INFINITY)) {
        this.marks.setDirty(page);
      }
    }
  }

  /** Tells the ledger whether slots of this device may be given out. */
  #openOrClose(): void {
    const { ledger } = this.#context;
    const writable = this.mayWrite;
    if (ledger === undefined || writable === this.#writable) return;
    this.#writable = writable;
    if (writable) ledger.openDevice(TIER.NVME, this.index);
    else ledger.closeDevice(TIER.NVME, this.index);
  }

  #becomeFull(): void {
    if (!this.full) this.counters.fullEvents += 1;
    this.full = true;
    this.event("full");
    this.#openOrClose();
  }

  // Time --------------------------------------------------------------------------------------------------------

  /** Called every few tens of milliseconds. */
  tick(nowMs: number): void {
    if (this.closed) return;
    this.#watch();
    this.#openOrClose();
    // A device that hangs may hang whoever asks for its files.
    const answers = !this.#stalled && this.health !== "fenced";
    if (answers && nowMs >= this.#factsAtMs) {
      this.#factsAtMs = nowMs + FACTS_MS;
      this.#room();
    }
    const mended = this.health === "ok" && !this.#stale && this.deviceIndex.isOpen;
    if (!mended && this.deviceIndex.tried && nowMs >= this.#probeAtMs) {
      void this.#probe(); // Never rejects.
    }
    if (nowMs >= this.#refreshAtMs) {
      this.#refreshAtMs = nowMs + LIMITS.nvmeRefreshMs;
      this.#refreshSome();
    }
    const many = this.owedPages > LIMITS.nvmeDirtyPagesPerCycle;
    if (many || nowMs >= this.#flushAtMs) {
      this.#flushAtMs = nowMs + LIMITS.nvmeIdleCommitMs;
      if (this.committable) this.committer.flush();
    }
  }

  /** The background round: a few pages get their blocks' last access. */
  #refreshSome(): void {
    const slabs = this.marks.slabs();
    if (slabs.length === 0) return;
    this.#refreshSlab %= slabs.length;
    const slab = slabs[this.#refreshSlab]!;
    const pages = this.marks.pagesInUse(slab, this.#refreshPage, LIMITS.nvmeRefreshPages);
    for (const page of pages) this.marks.setDirty(page);
    const last = pages.at(-1);
    if (last !== undefined && pages.length === LIMITS.nvmeRefreshPages) {
      this.#refreshPage = indexOfPage(last) + 1;
    } else {
      this.#refreshPage = 0;
      this.#refreshSlab += 1;
    }
  }

  /** What the disk counts; its last answer while it is not open. */
  diskCounters(): DiskCounters {
    return this.#figures.reading(this.diskOpen);
  }

  #watch(): void {
    if (!this.diskOpen) return;
    const counters = this.diskCounters();
    this.chargeWrites(counters.bytesWritten);
    const milliseconds = counters.oldestMicroseconds / 1_000;
    this.#stalled = milliseconds > LIMITS.nvmeSlowMs;
    if (milliseconds > LIMITS.nvmeFenceMs) this.event("hang");
    else if (this.#stalled) this.event("stall");
  }

  /** Bytes the disk has written so far go off the endurance budget. */
  chargeWrites(bytesWritten: number): void {
    const added = bytesWritten - this.#bytesSeen;
    this.#bytesSeen = bytesWritten;
    if (added > 0) this.endurance.wrote(added, Date.now());
  }

  #facts(): SegmentPlan | undefined {
    try {
      const facts = directoryFacts(this.directory);
      const { capacityBytes } = this.options;
      const { count } = this.segments;
      this.plan = planSegments(capacityBytes, this.info.segmentBytes, count, Infinity, facts);
      return this.plan;
    } catch (error) {
      this.note("error", `cannot be asked for its room: ${String(error)}`);
      return undefined;
    }
  }

  /** Full and not full any more; the target of segments. */
  #room(): void {
    const before = this.plan?.note ?? "";
    const plan = this.#facts();
    if (plan === undefined) return;
    if (plan.note !== "" && plan.note !== before) this.note("warn", plan.note);
    if (plan.full && !this.full) {
      this.note("error", "the file system is full: no new blocks");
      this.#becomeFull();
    } else if (!plan.full && this.full) {
      this.full = false;
      if (this.#indexWantsRoom) this.deviceIndex.retry();
      this.note("info", "the file system has room again");
      this.#openOrClose();
    }
    const { ledger } = this.#context;
    const over = this.segments.count - this.segments.retiring > plan.target;
    // Before its headers were read a segment only looks empty.
    const known = !this.rebuildNeeded && !this.rebuilding;
    if (ledger !== undefined && over && known && !this.draining) {
      this.segments.retireOne(ledger.core);
    }
  }

  /** Writes, syncs and reads back a small file; opens a broken index again. */
  async #probe(): Promise<void> {
    if (this.#probing || this.#syncing || this.#stalled || this.full) return;
    this.#probing = true;
    // A check that hangs holds a thread: there is no second one until it has ended.
    const check = checkDevice(this.directory);
    const over = check.catch(() => undefined);
    try {
      await withinTime(check);
      if (this.closed) return; // Another may have its directory by now.
      if (this.#stale) this.#reopenDisk();
      if (this.deviceIndex.broken) this.held.forget(this.#ledger.core);
      await this.deviceIndex.open();
      if (this.health === "ok") this.#dirtyAll();
      this.event("probeOk");
    } catch (error) {
      this.counters.probesFailed += 1;
      this.note("warn", `probe failed: ${String(error)}`);
      this.event("probeFailed");
      this.#probeAtMs = performance.now() + this.#backoff.failed();
    } finally {
      void over.then(() => {
        this.#probing = false;
      });
    }
    this.#openOrClose();
  }

  /** Reads in flight end as misses. The generations of copies that count are carried over. */
  #reopenDisk(): void {
    const { addon, tasks } = this.#context;
    // Opening may fail (the lock is still held by a write that hangs): the next probe goes on from here.
    this.#carried ??= this.#generations();
    const { slots, generations } = this.#carried;
    tasks.abandon(this);
    this.diskCounters();
    if (this.diskOpen) addon.diskClose(this.disk);
    this.diskOpen = false;
    this.info = this.#context.open(this.directory);
    this.diskOpen = true;
    this.#figures.openedAnew();
    this.segments.attachAgain();
    addon.diskRestore(this.disk, slots, generations, slots.length);
    this.#carried = undefined;
    this.#stale = false;
    this.note("info", "opened anew");
  }

  #generations(): { readonly slots: Uint32Array; readonly generations: Uint32Array } {
    const slots = this.marks.durableSlots();
    const generations = new Uint32Array(slots.length);
    this.#context.addon.diskGenerations(this.disk, slots, slots.length, generations);
    return { slots, generations };
  }

  /** Headers could not be read: tried again when the device was probed. */
  rebuildFailed(): void {
    this.rebuildNeeded = true;
    this.event("syncFailed");
  }

  /** Every page with its blocks' last access, until `untilMs` (performance.now()); false: not all. */
  async refreshAll(untilMs: number): Promise<boolean> {
    if (!this.committable) return false;
    this.#dirtyAll();
    return this.committer.drain(untilMs);
  }

  // Growth and drain --------------------------------------------------------------------------------------------

  /** New limits: they hold from the next look at the file system on, which is the next tick. */
  configure(options: NvmeDirectoryOptions): void {
    assert(options.path === this.directory, "a device keeps its directory");
    this.options = options;
    this.endurance.configure(options.writeBudgetBytesPerDay, options.ratedWriteBytes);
    this.#factsAtMs = 0;
  }

  /** Nothing new comes here, and every segment is to be emptied. */
  beginDrain(): number {
    this.draining = true;
    this.tick(performance.now());
    this.segments.retireAll();
    this.drains += 1;
    return this.drains;
  }

  /** It stays after all: what has not left stays, and segments that were given back are written again. */
  endDrain(): void {
    this.draining = false;
    this.drains += 1;
    this.segments.keepAll(this.#ledger.core);
    this.#factsAtMs = 0;
  }

  /** Begins the next segment if the plan has room for it. */
  grow(): void {
    if (!this.mayWrite || this.plan === undefined || this.segments.preparing !== undefined) return;
    if (this.segments.planned >= this.plan.target) return this.#useHeld();
    this.#prepare().catch((error: unknown) => this.fault(error));
  }

  /** There will be no more segments: those that are held for namespaces that are not bound, as far as needed. */
  #useHeld(): void {
    const { core } = this.#ledger;
    const { lowWatermark } = core.tier(TIER.NVME).options;
    const segment = this.held.useOne(core, this.index, lowWatermark);
    if (segment === undefined) return;
    this.note("info", `room is short: segment ${segment} is used, whose namespaces are not known`);
  }

  async #prepare(): Promise<void> {
    try {
      await this.segments.prepareNext(this.#context.tasks, this);
      this.endurance.wrote(this.info.segmentBytes, Date.now());
    } catch (error) {
      if (!(error instanceof TaskError)) throw error;
      this.counters.prepareFailures += 1;
      this.note("error", `a new segment could not be written: errno ${error.errno}`);
      if (error.errno === ENOSPC) this.#becomeFull();
      else this.event("writeError");
    }
  }

  /** One slice of emptying retiring segments. */
  retireStep(): void {
    if (this.segments.retiring === 0) return;
    const { ledger, hooks } = this.#context;
    if (ledger === undefined) return;
    const stays = (block: number): void => {
      if (this.draining) hooks.promote(block);
    };
    for (const { segment, pages, kept } of this.segments.retireStep(ledger.core, true, stays)) {
      this.deviceIndex.forgetSegment(segment, pages);
      if (kept === undefined) this.note("info", `segment ${segment} was given back`);
      else this.note("warn", `segment ${segment} was given up, its file was not removed: ${kept}`);
      this.#factsAtMs = 0; // Another one may have to go.
    }
  }

  /** Ends the index and the disk. */
  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    await this.committer.idle();
    await this.deviceIndex.close();
    this.#context.tasks.abandon(this);
    if (this.diskOpen) this.#context.addon.diskClose(this.disk);
  }
}
