/**
 * A daemon with an NVMe tier in a directory on a real disk, and ways to hurt that disk: LD_PRELOAD (disk-faults.c) for
 * what a device does while the daemon runs, plain file access for what happened while nobody looked.
 */
import { spawnSync } from "node:child_process";
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { DISK_HEADER_BYTES } from "../../addon/binding.ts";
import { STORE_STATUS } from "../../src/engine-api/protocol.ts";
import { type Settings, TestDaemon } from "./daemon.ts";
import { chainOf, fillPayload, TestEngine } from "./engine.ts";
import { eventually } from "./eventually.ts";

const MIB = 2 ** 20;
export const ROW_BYTES = 4_096;
/** Only a disk that hangs makes a test wait this long. */
const DURABLE_MS = 60_000;
/** Longer than gauges and a commit take. */
const REST_MS = 1_000;
/** Header and payload, in whole sectors. */
export const SLOT_BYTES = 8_192;

/** Words of the control file, in the order of disk-faults.c. */
export const DISK_FAULT = {
  /** A write leaves its second half as it was, and says it is done. */
  TEAR: 0,
  /** A write goes to the place of the one before. */
  MISDIRECT: 1,
  /** A write does nothing, and says it is done. */
  LOSE: 2,
  /** A read comes with one bit changed behind the header. */
  FLIP: 3,
  FAIL_READ: 4,
  FAIL_WRITE: 5,
  FAIL_SYNC: 6,
  /** Everything hangs while it is not 0. */
  STALL: 7,
  NO_ROOM: 8,
  /** Not 0: the faults strike the index's file instead of segments. */
  INDEX: 9,
  /** How often anything struck. */
  STRUCK: 10,
} as const;
const FAULT_WORDS = 11;
export const ALWAYS = 0xffff_ffff;

/** Builds the library once in a process; where no C compiler is, says so. */
function faultLibrary(directory: string): string {
  const source = new URL("./disk-faults.c", import.meta.url).pathname;
  const target = join(directory, "disk-faults.so");
  const done = spawnSync("cc", ["-shared", "-fPIC", "-O1", "-o", target, source, "-ldl"]);
  if (done.status !== 0) throw new Error(`cc: ${done.error ?? done.stderr.toString()}`);
  return target;
}

export interface DiskNodeOptions {
  readonly nvme?: Settings;
  readonly dram?: Settings;
  readonly capacityBytes?: number;
  /** Directory of the disk; default: a fresh one. */
  readonly disk?: string;
}

export interface Reading {
  readonly hit: number;
  readonly landed: number;
  readonly wrong: number;
  readonly names: readonly string[];
}

/** Chains of this node: `count` of `blocks` blocks each. */
export function chainsOf(name: string, count: number, blocks: number): Uint8Array[][] {
  return Array.from({ length: count }, (_unused, index) => chainOf(`${name}-${index}`, blocks));
}

export class DiskNode {
  readonly daemon: TestDaemon;
  readonly disk: string;
  readonly #scratch = mkdtempSync(join(tmpdir(), "cairn-disk-node-"));
  readonly #control: string;
  #engines = 0;

  constructor(options: DiskNodeOptions = {}) {
    this.disk = options.disk ?? join(this.#scratch, "disk");
    mkdirSync(this.disk, { recursive: true, mode: 0o700 });
    this.#control = join(this.#scratch, "faults");
    const capacityBytes = options.capacityBytes ?? 32 * MIB;
    this.daemon = new TestDaemon({
      dram: { capacityBytes: 4 * MIB, slabBytes: MIB / 4, ...options.dram },
      nvme: {
        enabled: true,
        directories: [{ path: this.disk, capacityBytes }],
        segmentBytes: 4 * MIB,
        stagingBytes: MIB,
        writeThrough: true,
        // Scrubbing finds what a test hurts before the test reads it.
        scrubBytesPerSecond: 0,
        ...options.nvme,
      },
    });
  }

  /** The next start runs with the fault library; its mode of I/O must be threads. */
  armFaults(): void {
    writeFileSync(this.#control, new Uint8Array(FAULT_WORDS * 4));
    this.daemon.environment = {
      LD_PRELOAD: faultLibrary(this.#scratch),
      CAIRN_TEST_DISK_FAULTS: this.#control,
    };
    this.daemon.configure({ nvme: { mode: "threads" } });
  }

  fault(word: number, times: number): void {
    const file = openSync(this.#control, "r+");
    writeSync(file, Uint8Array.from(new Uint8Array(Uint32Array.of(times).buffer)), 0, 4, word * 4);
    closeSync(file);
  }

  /** How often a fault struck. */
  struck(): number {
    return readFileSync(this.#control).readUInt32LE(DISK_FAULT.STRUCK * 4);
  }

  engine(rows = 64): Promise<TestEngine> {
    this.#engines += 1;
    return TestEngine.start(this.daemon.socket, { engineId: `engine-${this.#engines}`, rows });
  }

  /** Stores chains; every block is acknowledged. */
  async store(chains: readonly Uint8Array[][]): Promise<void> {
    const engine = await this.engine();
    for (const keys of chains) {
      const { completion, statuses } = await engine.store(keys);
      if (statuses.includes(STORE_STATUS.FULL) || (completion?.failed.length ?? 0) > 0)
        throw new Error(`not every block was taken: ${JSON.stringify(completion)}`);
    }
    engine.close();
  }

  /** Stores chains and waits until as many more blocks are on the disk, synced and indexed. */
  async storeDurably(chains: readonly Uint8Array[][]): Promise<void> {
    const blocks = chains.reduce((sum, keys) => sum + keys.length, 0);
    const before = await this.daemon.metric("writtenBackBlocks");
    await this.store(chains);
    await eventually(
      `${blocks} blocks are durable`,
      async () => (await this.daemon.metric("writtenBackBlocks")) >= before + blocks,
      DURABLE_MS,
    );
  }

  /** Waits until nothing more is copied down: all that was written is synced and indexed. */
  async quiet(): Promise<void> {
    let before = -1;
    await eventually("write-back comes to rest", async () => {
      const written = await this.daemon.metric("writtenBackBlocks");
      const rests = written === before;
      before = written;
      if (!rests) await sleep(REST_MS);
      return rests;
    });
  }

  /** Looks up and loads chains whole, comparing every byte. */
  async read(chains: readonly Uint8Array[][]): Promise<Reading> {
    const engine = await this.engine();
    const sum = { hit: 0, landed: 0, wrong: 0, names: [] as string[] };
    for (const keys of chains) {
      const { hit, landed, wrong, failed } = await engine.read(keys);
      sum.hit += hit;
      sum.landed += landed;
      sum.wrong += wrong;
      sum.names.push(...failed.map(({ name }) => name));
    }
    engine.close();
    return sum;
  }

  /** kill -9; what was only in DRAM is gone with the pool, so that reads come from the disk. */
  async killWithoutPool(): Promise<void> {
    await this.daemon.stop("SIGKILL");
    this.forgetPool();
  }

  /** The daemon is down: the next start finds no DRAM pool. */
  forgetPool(): void {
    rmSync(join(this.daemon.directory, "pool"), { recursive: true, force: true });
  }

  async restartWithoutPool(): Promise<void> {
    await this.killWithoutPool();
    await this.daemon.launch();
  }

  /** One figure of the device; its number is 0. */
  event(name: string): Promise<number> {
    return this.daemon.metric("nvmeEvents", name);
  }

  health(value: number): Promise<void> {
    return this.daemon.settles("nvmeHealth", value);
  }

  async visible(blocks: number): Promise<void> {
    await eventually(
      `${blocks} blocks are visible on the disk`,
      async () => (await this.daemon.metric("tierVisibleBlocks", "nvme")) >= blocks,
    );
  }

  segments(): string[] {
    const names = readdirSync(this.disk).filter((name) => name.startsWith("segment-"));
    return names.toSorted().map((name) => join(this.disk, name));
  }

  /** File and offset of the slot that holds this block now; throws when there is not exactly one. */
  slotOf(key: Uint8Array): { readonly file: string; readonly at: number } {
    const payload = new Uint8Array(ROW_BYTES);
    fillPayload(key, payload);
    const found = this.segments().flatMap((file) => {
      const at = readFileSync(file).indexOf(payload);
      return at < 0 ? [] : [{ file, at: at - DISK_HEADER_BYTES }];
    });
    const [slot] = found;
    if (slot === undefined || found.length > 1) throw new Error(`${found.length} slots hold it`);
    return slot;
  }

  async remove(): Promise<void> {
    await this.daemon.remove();
    rmSync(this.#scratch, { recursive: true, force: true });
  }
}

/** Changes one byte of a file. */
export function flipByte(file: string, at: number, mask = 0x10): void {
  const handle = openSync(file, "r+");
  const byte = new Uint8Array(1);
  readSync(handle, byte, 0, 1, at);
  byte[0]! ^= mask;
  writeSync(handle, byte, 0, 1, at);
  closeSync(handle);
}

export function bytesAt(file: string, at: number, length: number): Uint8Array {
  const handle = openSync(file, "r");
  const bytes = new Uint8Array(length);
  readSync(handle, bytes, 0, length, at);
  closeSync(handle);
  return bytes;
}

export function putBytes(file: string, at: number, bytes: Uint8Array): void {
  const handle = openSync(file, "r+");
  writeSync(handle, bytes, 0, bytes.byteLength, at);
  closeSync(handle);
}

/** Runs `use` with a node of its own and removes it whatever happens; a fault in cairn fails the test. */
export async function withDiskNode(
  options: DiskNodeOptions,
  use: (node: DiskNode) => Promise<void>,
): Promise<void> {
  const node = new DiskNode(options);
  try {
    await use(node);
    if (/a fault in cairn/.test(node.daemon.log())) throw new Error(node.daemon.log());
  } catch (error) {
    throw new Error(`${String(error)}\n${node.daemon.log().slice(-3_000)}`, { cause: error });
  } finally {
    await node.remove();
  }
}
