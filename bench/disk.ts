/**
 * One disk by itself: the addon's disk engine, a DRAM arena and a window in this process, without ledger or daemon.
 * Blocks of the arena are written to slots of one segment and read back into rows of the window; the slot's header,
 * identity and checksum are those of the daemon.
 */
import { mkdirSync, mkdtempSync, rmSync, statfsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type Addon,
  COPY,
  DISK,
  DISK_HEADER_BYTES,
  DISK_ITEM_WORDS,
  DISK_SECTOR_BYTES,
  type DiskInfo,
  EVENT,
  EVENT_WORDS,
  ITEM_WORDS,
  NO_DRAM_SLOT,
} from "../addon/binding.ts";
import { loadAddon } from "../addon/load.ts";
import { assert } from "../src/assert.ts";
import { CairnError } from "../src/errors.ts";
import { XorShift } from "./ledger.ts";
import { ChainRecords, openArena, startAddon } from "./rig.ts";

const MIB = 2 ** 20;
const EVENTS = 4_096;
/** Items of one batch, and batches submitted ahead, so that the device's queue never runs dry. */
const BATCH_ITEMS = 16;
const BATCHES_AHEAD = 3;
const TMPFS_MAGIC = 0x0102_1994;

export interface DiskRigOptions {
  readonly blockBytes: number;
  /** Blocks in the arena and rows of the window. */
  readonly blocks: number;
  /** Slots of the segment. */
  readonly slots: number;
  readonly queueDepth: number;
  readonly writeDepth: number;
}

export interface DiskPass {
  readonly GBps: number;
  readonly failed: number;
}

/** Where disks are benched: CAIRN_BENCH_DIRECTORY, else the first of these that is no memory. */
export function diskParent(): string {
  const given = process.env["CAIRN_BENCH_DIRECTORY"];
  if (given !== undefined) return given;
  const found = [tmpdir(), "/var/tmp", process.cwd()].find(
    (path) => statfsSync(path).type !== TMPFS_MAGIC,
  );
  if (found === undefined)
    throw new CairnError("badRequest", "no directory on a disk; set CAIRN_BENCH_DIRECTORY");
  return found;
}

interface Ended {
  readonly failed: number;
}

/** Start with open(), end with close(), which removes its files. */
export class DiskRig {
  readonly options: DiskRigOptions;
  readonly directory: string;
  readonly #addon: Addon = loadAddon();
  readonly #events = new Uint32Array(EVENTS * EVENT_WORDS);
  readonly #statuses = new Uint8Array(65_536);
  readonly #batches = new Map<number, (ended: Ended) => void>();
  readonly #tasks = new Map<number, (errno: number) => void>();
  #dramSlots: Uint32Array = new Uint32Array(0);
  readonly #poolDirectory = mkdtempSync("/dev/shm/cairn-bench-disk-");
  #info: DiskInfo | undefined;
  #rows: Uint32Array = new Uint32Array(0);
  #region = 0;
  #arena = 0;
  #number = 0;

  constructor(options: DiskRigOptions) {
    this.options = options;
    this.directory = mkdtempSync(join(diskParent(), "cairn-bench-disk-"));
  }

  /** The disk's answers to its probes: how it is driven. */
  get info(): DiskInfo {
    assert(this.#info !== undefined, "the rig is open");
    return this.#info;
  }

  /** io_uring reads and writes registered memory, as it does soon after the first work. */
  get registeredBuffers(): boolean {
    return this.#addon.diskCounters(this.info.disk).registeredBuffers;
  }

  /** Bytes of one slot on disk: what one read or write moves. */
  get slotBytes(): number {
    const bytes = DISK_HEADER_BYTES + this.options.blockBytes;
    return Math.ceil(bytes / DISK_SECTOR_BYTES) * DISK_SECTOR_BYTES;
  }

  get segmentFile(): string {
    return join(this.directory, "disk", "segment-000000.cairn");
  }

  /** Engine started, arena filled, segment written once from end to end, every slot holding a block. */
  async open(): Promise<void> {
    const shared = { events: this.#events, statuses: this.#statuses };
    startAddon(this.#addon, { ...shared, onReady: () => this.#drain() });
    await this.#openArena();
    await this.#openDisk();
    const first = await this.write(this.order(0));
    assert(first.failed === 0, "every slot was written");
  }

  async #openArena(): Promise<void> {
    const addon = this.#addon;
    const { blocks, blockBytes } = this.options;
    const { arena, slots } = openArena(addon, this.#poolDirectory, blockBytes, blocks);
    this.#arena = arena;
    this.#dramSlots = slots;
    const records = new ChainRecords(addon, blocks);
    for (let block = 0; block < blocks; block++) records.setKey(block, block * 8 + 1);
    const { region, sizeBytes, descriptor } = addon.regionCreate(blocks * blockBytes);
    this.#region = region;
    this.#rows = new Uint32Array(addon.clientMap(descriptor, sizeBytes));
    const items = new Uint32Array(blocks * ITEM_WORDS);
    for (let block = 0; block < blocks; block++) {
      this.#pattern(block).fill(this.#rows, this.#rowAt(block), this.#rowAt(block + 1));
      items.set(this.#copyItem(block), block * ITEM_WORDS);
    }
    const { failed } = await this.#batch((batch) =>
      addon.copySubmit({ kind: COPY.STORE, ...this.#common(batch) }, items, blocks),
    );
    assert(failed === 0, "the arena is filled");
  }

  async #openDisk(): Promise<void> {
    const addon = this.#addon;
    const { slots, blockBytes, queueDepth, writeDepth } = this.options;
    const directory = join(this.directory, "disk");
    mkdirSync(directory, { mode: 0o700 });
    const segmentBytes = DISK_SECTOR_BYTES + slots * this.slotBytes;
    const stagingBytes = Math.max(MIB, 2 * queueDepth * this.slotBytes);
    const modes = { mode: "auto", direct: "auto" } as const;
    this.#info = addon.diskOpen({
      directory,
      segmentBytes,
      stagingBytes,
      queueDepth,
      writeDepth,
      ...modes,
    });
    const { disk } = this.#info;
    await this.#task((task) => addon.diskPrepare(disk, 0, task));
    addon.diskAttach(disk, 0, 0);
    assert(addon.diskAssign(disk, 0, blockBytes) === slots, "the segment holds these slots");
  }

  #common(batch: number) {
    const { blockBytes } = this.options;
    const shard = { shard: 0, shards: 1 };
    const bytes = { payloadBytes: blockBytes, deadlineMs: 0 };
    return { batch, arena: this.#arena, region: this.#region, ...shard, ...bytes };
  }

  #rowAt(block: number): number {
    return (block * this.options.blockBytes) / 4;
  }

  #pattern(block: number): XorShift {
    return new XorShift(block + 1);
  }

  #copyItem(block: number): readonly number[] {
    const range = block * this.options.blockBytes;
    return [this.#dramSlots[block]!, range % 2 ** 32, Math.floor(range / 2 ** 32), block, 0];
  }

  /** Every slot once, in an order that only the seed decides. */
  order(seed: number): Uint32Array {
    const { slots } = this.options;
    const order = Uint32Array.from({ length: slots }, (_, slot) => slot);
    const random = new Uint32Array(slots);
    new XorShift(seed + 1).fill(random, 0, slots);
    for (let last = slots - 1; last > 0; last--) {
      const other = random[last]! % (last + 1);
      [order[last], order[other]] = [order[other]!, order[last]!];
    }
    return order;
  }

  /** Slots in this order into the rows of their blocks; payload hashes are checked on the way. */
  read(order: Uint32Array): Promise<DiskPass> {
    return this.#pass(DISK.READ, order);
  }

  /** Blocks of the arena into slots in this order. */
  write(order: Uint32Array): Promise<DiskPass> {
    return this.#pass(DISK.WRITE, order);
  }

  async #pass(kind: number, order: Uint32Array): Promise<DiskPass> {
    const { blocks, blockBytes } = this.options;
    let next = 0;
    let failed = 0;
    const items = new Uint32Array(BATCH_ITEMS * DISK_ITEM_WORDS);
    const lane = async (): Promise<void> => {
      while (next < order.length) {
        const count = Math.min(BATCH_ITEMS, order.length - next);
        for (let index = 0; index < count; index++) {
          const slot = order[next + index]!;
          const block = slot % blocks;
          const range = block * blockBytes;
          const dram = kind === DISK.WRITE ? this.#dramSlots[block]! : NO_DRAM_SLOT;
          const words = [slot, range % 2 ** 32, Math.floor(range / 2 ** 32), block, dram];
          items.set(words, index * DISK_ITEM_WORDS);
        }
        next += count;
        const { disk } = this.info;
        const ended = await this.#batch((batch) =>
          this.#addon.diskSubmit({ kind, disk, priority: 0, ...this.#common(batch) }, items, count),
        );
        failed += ended.failed;
      }
    };
    const startMs = performance.now();
    await Promise.all(Array.from({ length: BATCHES_AHEAD }, lane));
    const milliseconds = performance.now() - startMs;
    return { GBps: (order.length * this.slotBytes) / milliseconds / 1e6, failed };
  }

  /** Reads every slot into a wiped window and compares all rows: blocks that differ. */
  async wrong(): Promise<number> {
    this.#rows.fill(0);
    const { failed } = await this.read(this.order(0));
    let wrong = failed;
    for (let block = 0; block < Math.min(this.options.blocks, this.options.slots); block++) {
      const [from, to] = [this.#rowAt(block), this.#rowAt(block + 1)];
      if (!this.#pattern(block).matches(this.#rows, from, to)) wrong += 1;
    }
    return wrong;
  }

  #batch(submit: (batch: number) => void): Promise<Ended> {
    const batch = ++this.#number;
    return new Promise((resolve) => {
      this.#batches.set(batch, resolve);
      submit(batch);
    });
  }

  async #task(start: (task: number) => void): Promise<void> {
    const task = ++this.#number;
    const errno = await new Promise<number>((resolve) => {
      this.#tasks.set(task, resolve);
      start(task);
    });
    if (errno !== 0) throw new CairnError("internal", `${this.directory}: errno ${errno}`);
  }

  #drain(): void {
    const count = this.#addon.poll();
    for (let index = 0; index < count; index++) {
      const [type = 0, id = 0, , , a = 0, , c = 0, d = 0] = this.#events.subarray(
        index * EVENT_WORDS,
        (index + 1) * EVENT_WORDS,
      );
      if (type === EVENT.COPIED) {
        this.#batches.get(id)?.({ failed: a });
        this.#batches.delete(id);
      } else if (type === EVENT.PROGRESS && c !== 0) {
        this.#tasks.get(id)?.(c === 1 ? 0 : d || 1);
        this.#tasks.delete(id);
      }
    }
  }

  close(): void {
    this.#addon.stop();
    rmSync(this.directory, { recursive: true, force: true });
    rmSync(this.#poolDirectory, { recursive: true, force: true });
  }
}
