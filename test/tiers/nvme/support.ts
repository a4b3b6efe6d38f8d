/** A ledger over a small pool and NVMe directories, driven without engines: blocks are stored, copied down, read. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  COPY,
  DISK,
  DISK_ITEM_WORDS,
  EVENT,
  EVENT_WORDS,
  ITEM_WORDS,
  NO_DRAM_SLOT,
} from "../../../addon/binding.ts";
import { loadAddon } from "../../../addon/load.ts";
import { Ledger } from "../../../src/ledger/ledger.ts";
import * as R from "../../../src/ledger/table.ts";
import { NO_BLOCK, STATE, TIER } from "../../../src/ledger/types.ts";
import { LruPolicy } from "../../../src/policy/lru.ts";
import { MAGIC, PROTOCOL_VERSION } from "../../../src/engine-api/protocol.ts";
import { DramTier } from "../../../tiers/dram/index.ts";
import { recoverDram } from "../../../tiers/dram/recover.ts";
import type { DeviceAddon, NvmeDirectoryOptions } from "../../../tiers/nvme/context.ts";
import { NvmeTier } from "../../../tiers/nvme/index.ts";
import { type NamespaceRow, unionNamespaces } from "../../../tiers/nvme/namespaces.ts";
import { type NvmeRecoveryReport, recoverNvme } from "../../../tiers/nvme/recover.ts";

export const MIB = 1024 * 1024;
export const ROW_BYTES = 16_384;
export const KEY_WORDS = 8;
const ROWS = 512;
const LIMITS_OF_TIER = { blocksMax: 0, highWatermark: 1, lowWatermark: 1 };

export const addon = loadAddon();
const events = new Uint32Array(EVENT_WORDS * 64);
const statuses = new Uint8Array(65_536);
const copied = new Map<number, number[]>();
let tier: NvmeTier | undefined;
let dram: DramTier | undefined;
let waiting: (() => void)[] = [];

/** Once per test file. */
export function startAddon(): void {
  addon.start({
    copyThreads: 1,
    inbox: new ArrayBuffer(4 * MIB),
    events,
    statuses,
    transport: {
      frameBodyBytesMax: MIB,
      connectionsMax: 4,
      outboundBytesMax: MIB,
      frameTimeoutMs: 1_000,
      helloTimeoutMs: 1_000,
      magic: MAGIC,
      version: PROTOCOL_VERSION,
    },
    onReady: pump,
  });
}

function pump(): void {
  const count = addon.poll();
  for (let i = 0; i < count; i++) {
    const [type, id = 0, offset = 0, length = 0, a = 0, b = 0, c = 0, d = 0] = events.subarray(
      i * EVENT_WORDS,
      (i + 1) * EVENT_WORDS,
    );
    if (type === EVENT.COPIED) copied.set(id, [...statuses.subarray(offset, offset + length)]);
    if (type === EVENT.PROGRESS && tier?.onProgress(id, a, b, c, d) !== true) {
      dram?.onProgress(id, a, b, c);
    }
  }
  const waiters = waiting;
  waiting = [];
  for (const wake of waiters) wake();
}

/** Resolves once `done` holds; the test's own timeout bounds it. */
export async function until(done: () => boolean): Promise<void> {
  while (!done()) {
    tier?.tick();
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, 5);
      waiting.push(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }
}

export function keysOf(chain: number, count: number): Uint32Array {
  const keys = new Uint32Array(count * KEY_WORDS);
  for (let i = 0; i < keys.length; i++) keys[i] = Math.imul(chain * 65_537 + i + 1, 0x9e3779b1);
  return keys;
}

export function payloadOf(chain: number, index: number): Uint8Array {
  const words = new Uint32Array(ROW_BYTES / 4);
  for (let i = 0; i < words.length; i++)
    words[i] = Math.imul(chain * 1_000 + index + i, 0x85ebca6b);
  return new Uint8Array(words.buffer);
}

export const DIGEST = Uint8Array.from({ length: 16 }, (_, index) => index + 1);
const DESCRIPTOR = new TextEncoder().encode(JSON.stringify({ for: "tests" }));

let lastBatch = 0;
const window = addon.regionCreate.bind(addon);

/** One life of a daemon's lower half. */
export class Node {
  readonly root: string;
  readonly notes: string[] = [];
  readonly promoted: number[] = [];
  tier!: NvmeTier;
  ledger!: Ledger;
  dram!: DramTier;
  report!: NvmeRecoveryReport;
  namespace = 0;
  /** Digests of namespaces that this life takes back from directories; undefined: all. */
  known: readonly Uint8Array[] | undefined;
  region = 0;
  rows!: Uint8Array;

  constructor(root = mkdtempSync(join(tmpdir(), "cairn-nvme-"))) {
    this.root = root;
  }

  directory(index = 0): string {
    return join(this.root, `disk-${index}`);
  }

  entry(index = 0, capacityBytes = 12 * MIB): NvmeDirectoryOptions {
    const path = this.directory(index);
    return { path, capacityBytes, writeBudgetBytesPerDay: 0, ratedWriteBytes: 0 };
  }

  async open(
    directories: readonly NvmeDirectoryOptions[] = [this.entry()],
    face: DeviceAddon = addon,
  ): Promise<this> {
    if (this.region === 0) {
      const { region, descriptor } = window(ROWS * ROW_BYTES);
      this.region = region;
      this.rows = new Uint8Array(addon.clientMap(descriptor, ROWS * ROW_BYTES));
    }
    this.tier = new NvmeTier(
      face,
      {
        directories,
        segmentBytes: 2 * MIB,
        mode: "auto",
        direct: "auto",
        queueDepth: 8,
        writeDepth: 4,
        stagingBytes: 4 * MIB,
      },
      {
        note: (_level, line) => this.notes.push(line),
        fault: (error) => {
          throw error;
        },
        promote: (block) => this.promoted.push(block),
      },
    );
    tier = this.tier;
    const probes = await this.tier.readIndexes([]);
    this.dram = new DramTier(
      addon,
      {
        directory: join(this.root, "dram"),
        capacityBytes: 16 * MIB,
        slabBytes: MIB,
        hugePages: false,
        populateThreads: 1,
      },
      1,
      { note: (line) => this.notes.push(line), progress: () => undefined },
    );
    dram = this.dram;
    this.#makeLedger();
    this.report = await recoverNvme(this.tier.devices, probes, addon, this.ledger, {
      found: () => undefined,
    });
    await recoverDram(this.dram, this.ledger, this.ledger.namespaceCount, {
      found: () => undefined,
    });
    await this.tier.openIndexes();
    this.tier.begin();
    return this;
  }

  #makeLedger(): void {
    this.ledger = new Ledger(
      {
        blocksMax: 16_384,
        namespacesMax: 64,
        tenantsMax: 1,
        tiers: [this.dram.ledgerOptions(LIMITS_OF_TIER), this.tier.ledgerOptions(LIMITS_OF_TIER)],
        holesMax: 16,
        splitSamplesMax: 64,
        logEntries: 1_024,
        observer: { settled: () => undefined, leaseReduced: () => undefined },
      },
      new LruPolicy(),
      1,
    );
    this.tier.attach(this.ledger, this.dram.arena);
    const isKnown = ({ digest }: NamespaceRow): boolean =>
      this.known?.some((one) => Buffer.compare(one, digest) === 0) ?? true;
    const directories = this.tier.namespaceRows().map((list) => list.filter(isKnown));
    const { all, added } = unionNamespaces(this.dram.namespaces(), directories, 64);
    const own = { index: 0, digest: this.known?.[0] ?? DIGEST, descriptor: DESCRIPTOR };
    const rows = all.length > 0 ? all : [own];
    for (const { index, digest, descriptor } of all.length > 0 ? added : rows) {
      this.dram.putNamespace(index, digest, descriptor);
    }
    for (const { index, digest, descriptor } of rows) {
      this.namespace = this.ledger.addNamespace({
        keyWords: KEY_WORDS,
        shards: 1,
        chained: true,
        payloadBytes: ROW_BYTES,
        tenant: 0,
      });
      this.tier.bindNamespace(index, digest, descriptor);
    }
    addon.attachLedger({
      records: this.ledger.core.records,
      recordWords: R.RECORD_WORDS,
      keyWord: R.KEY,
      parentWord: R.PARENT,
      depthWord: R.DEPTH,
      depthMask: R.DEPTH_MASK,
      namespaceWord: R.NAMESPACE,
      namespaceMask: R.NAMESPACE_MASK,
    });
  }

  /** Segments are there (each holds 126 rows of ROW_BYTES). */
  async ready(segments = 4): Promise<this> {
    await until(() => this.tier.slabs >= segments);
    return this;
  }

  /** STOREs a chain of `count` blocks into DRAM. */
  async store(chain: number, count: number): Promise<Uint32Array> {
    const keys = keysOf(chain, count);
    const found = new Uint8Array(count);
    const blocks = new Uint32Array(count);
    this.ledger.reserve(this.namespace, 0, keys, 0, 0, count, 0, found, blocks);
    const items = new Uint32Array(count * ITEM_WORDS);
    for (let i = 0; i < count; i++) {
      this.rows.set(payloadOf(chain, i), i * ROW_BYTES);
      this.ledger.fillStart(blocks[i]!, TIER.DRAM, 0);
      const slot = this.ledger.slotOf(blocks[i]!, TIER.DRAM, 0);
      items.set([slot, i * ROW_BYTES, 0, blocks[i]!, 0], i * ITEM_WORDS);
    }
    const ended = await this.#batch((batch) =>
      addon.copySubmit({ ...this.#request(batch, COPY.STORE) }, items, count),
    );
    if (ended.some((status) => status !== 0)) throw new Error(`STORE: ${ended.join(" ")}`);
    for (const block of blocks) this.ledger.fillEnd(block, TIER.DRAM, 0, true);
    this.ledger.flush();
    return blocks;
  }

  #request(batch: number, kind: number) {
    const { region, dram: pool } = this;
    const base = { kind, batch, arena: pool.arena, region, shard: 0, shards: 1 };
    return { ...base, payloadBytes: ROW_BYTES, deadlineMs: 0 };
  }

  async #batch(submit: (batch: number) => void): Promise<number[]> {
    const batch = ++lastBatch;
    submit(batch);
    await until(() => copied.has(batch));
    return copied.get(batch)!;
  }

  /** Copies blocks down and commits them; how many count now. */
  async demote(blocks: Uint32Array): Promise<number> {
    const { ledger, tier: nvme } = this;
    const begun = [...blocks].filter((block) => ledger.copyBegin(block, TIER.DRAM, TIER.NVME));
    const disks = new Map<number, number[]>();
    for (const block of begun) {
      const disk = nvme.diskOf(ledger.slotOf(block, TIER.NVME, 0));
      disks.set(disk, [...(disks.get(disk) ?? []), block]);
    }
    let durable = 0;
    const work = [...disks].map(async ([disk, some]) => {
      durable += (await this.#writeDown(disk, some)) ? some.length : 0;
    });
    await Promise.all(work);
    return durable;
  }

  async #writeDown(disk: number, blocks: readonly number[]): Promise<boolean> {
    const { ledger, tier: nvme } = this;
    const items = new Uint32Array(blocks.length * DISK_ITEM_WORDS);
    const slots = Uint32Array.from(blocks, (block) => ledger.slotOf(block, TIER.NVME, 0));
    for (const [i, block] of blocks.entries()) {
      const from = ledger.slotOf(block, TIER.DRAM, 0);
      items.set([slots[i]!, 0, 0, block, from], i * DISK_ITEM_WORDS);
    }
    const ended = await this.#batch((batch) =>
      addon.diskSubmit(
        { ...this.#request(batch, DISK.WRITE), region: 0, disk, priority: 0 },
        items,
        blocks.length,
      ),
    );
    for (const [i, status] of ended.entries()) nvme.ended(slots[i]!, DISK.WRITE, status, 1);
    const good = ended.every((status) => status === 0);
    const durable =
      good &&
      (await new Promise<boolean>((resolve) => {
        nvme.commit(slots, slots.length, resolve);
      }));
    for (const block of blocks) ledger.copyEnd(block, TIER.DRAM, TIER.NVME, durable);
    return durable;
  }

  /** Blocks of a chain that are visible, in order. */
  chain(chain: number, count: number): number[] {
    const keys = keysOf(chain, count);
    const found: number[] = [];
    for (let i = 0; i < count; i++) {
      const block = this.ledger.find(this.namespace, keys, i * KEY_WORDS);
      if (block === NO_BLOCK || !this.ledger.isVisible(block)) break;
      found.push(block);
    }
    return found;
  }

  /** Reads a chain's blocks from NVMe and compares them: item statuses, 99 for wrong bytes. */
  async read(chain: number, count: number): Promise<number[]> {
    const { ledger, tier: nvme } = this;
    const blocks = this.chain(chain, count).filter(
      (block) => ledger.stateOf(block, TIER.NVME) === STATE.VISIBLE,
    );
    const all: number[] = [];
    for (const [i, block] of blocks.entries()) {
      const slot = ledger.slotOf(block, TIER.NVME, 0);
      this.rows.fill(0, 0, ROW_BYTES);
      const items = Uint32Array.of(slot, 0, 0, block, NO_DRAM_SLOT);
      const disk = nvme.diskOf(slot);
      const [status = -1] = await this.#batch((batch) =>
        addon.diskSubmit({ ...this.#request(batch, DISK.READ), disk, priority: 0 }, items, 1),
      );
      nvme.ended(slot, DISK.READ, status, 1);
      const same = Buffer.compare(this.rows.subarray(0, ROW_BYTES), payloadOf(chain, i)) === 0;
      all.push(status === 0 && !same ? 99 : status);
    }
    return all;
  }

  /** Evicts every DRAM copy that may go. */
  dropDram(): void {
    const { core } = this.ledger;
    for (let block = 0; block < core.table.touched; block++) {
      if (!core.inUse(block) || core.stateOf(block, TIER.DRAM) !== STATE.VISIBLE) continue;
      if (core.stateOf(block, TIER.NVME) === STATE.VISIBLE) this.ledger.corrupt(block, TIER.DRAM);
    }
  }

  /** Ends this life; `refreshMs` 0 is as near to a kill as one process gets. */
  async close(refreshMs = 0, keepDram = false): Promise<void> {
    await this.tier.close(refreshMs);
    this.dram.close(keepDram);
    if (!keepDram) rmSync(join(this.root, "dram"), { recursive: true, force: true });
  }

  remove(): void {
    rmSync(this.root, { recursive: true, force: true });
  }
}
