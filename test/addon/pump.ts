/** The addon as a test drives it: one started instance, an event pump, and a little ledger to copy by. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Addon, ArenaInfo, CopyBatch } from "../../addon/binding.ts";
import { COPY, EVENT, EVENT_WORDS, ITEM_WORDS } from "../../addon/binding.ts";
import { loadAddon } from "../../addon/load.ts";
import { MAGIC, PROTOCOL_VERSION } from "../../src/engine-api/protocol.ts";

export const RECORD_WORDS = 20;
const KEY_WORD = 0;
const PARENT_WORD = 8;
const DEPTH_WORD = 9;
const NAMESPACE_WORD = 10;
const RECORDS = 4096;

export interface CopyEnd {
  readonly failed: number;
  readonly statuses: number[];
  readonly bytes: number;
}

export class Pump {
  readonly addon: Addon = loadAddon();
  readonly directory = mkdtempSync(join(tmpdir(), "cairn-addon-"));
  readonly records = new Uint32Array(new SharedArrayBuffer(RECORDS * RECORD_WORDS * 4));
  readonly frames: { connection: number; bytes: Uint8Array; descriptor: number }[] = [];
  readonly closes = new Map<number, number>();
  readonly accepted: number[] = [];
  readonly progress = new Map<number, { done: number; total: number; state: number }>();
  readonly copies = new Map<number, CopyEnd>();
  private readonly events = new Uint32Array(EVENT_WORDS * 16);
  private readonly inbox = new ArrayBuffer(4 << 20);
  private readonly statuses = new Uint8Array(4096);
  private waiting: (() => void)[] = [];
  private lastBatch = 0;

  constructor(copyThreads = 2) {
    this.addon.start({
      copyThreads,
      inbox: this.inbox,
      events: this.events,
      statuses: this.statuses,
      transport: {
        frameBodyBytesMax: 1 << 20,
        connectionsMax: 64,
        outboundBytesMax: 4 << 20,
        frameTimeoutMs: 2_000,
        helloTimeoutMs: 30_000,
        magic: MAGIC,
        version: PROTOCOL_VERSION,
      },
      onReady: () => this.drain(),
    });
    for (let block = 0; block < RECORDS; block++) {
      const at = block * RECORD_WORDS;
      for (let word = 0; word < 8; word++)
        this.records[at + KEY_WORD + word] = block * 8 + word + 1;
      this.records[at + PARENT_WORD] = block === 0 ? 0xffff_ffff : block - 1;
      this.records[at + DEPTH_WORD] = block + 1;
      this.records[at + NAMESPACE_WORD] = 0;
    }
    this.addon.attachLedger({
      records: this.records,
      recordWords: RECORD_WORDS,
      keyWord: KEY_WORD,
      parentWord: PARENT_WORD,
      depthWord: DEPTH_WORD,
      depthMask: 0xff_ffff,
      namespaceWord: NAMESPACE_WORD,
      namespaceMask: 0xffff,
    });
  }

  private drain(): void {
    const count = this.addon.poll();
    for (let i = 0; i < count; i++) this.take(this.events.subarray(i * EVENT_WORDS));
    const waiting = this.waiting;
    this.waiting = [];
    for (const wake of waiting) wake();
  }

  private take(words: Uint32Array): void {
    const [type = 0, id = 0, offset = 0, length = 0, a = 0, b = 0, c = 0, d = 0] = words;
    if (type === EVENT.ACCEPT) this.accepted.push(id);
    if (type === EVENT.CLOSE) this.closes.set(id, a);
    if (type === EVENT.PROGRESS) this.progress.set(id, { done: a, total: b, state: c });
    if (type === EVENT.FRAME) {
      const bytes = new Uint8Array(this.inbox, offset, length).slice();
      this.frames.push({ connection: id, bytes, descriptor: a | 0 });
    }
    if (type === EVENT.COPIED) {
      const statuses = [...this.statuses.subarray(offset, offset + length)];
      this.copies.set(id, { failed: a, statuses, bytes: c + d * 2 ** 32 });
    }
  }

  /** Resolves once `done` holds; the test's own timeout bounds it. */
  async until(done: () => boolean): Promise<void> {
    while (!done()) await new Promise<void>((resolve) => this.waiting.push(resolve));
  }

  openArena(name: string, slabs = 4, slabBytes = 1 << 20): ArenaInfo {
    const path = join(this.directory, name);
    return this.addon.arenaOpen({ path, slabBytes, slabs, numaNode: -1, hugePages: false });
  }

  /** Runs one batch; items are [slot, range, block, generation]. */
  async copy(batch: Partial<CopyBatch>, items: readonly (readonly number[])[]): Promise<CopyEnd> {
    const words = new Uint32Array(items.length * ITEM_WORDS);
    for (const [i, [slot = 0, range = 0, block = 0, generation = 0]] of items.entries()) {
      words.set(
        [slot, range % 2 ** 32, Math.floor(range / 2 ** 32), block, generation],
        i * ITEM_WORDS,
      );
    }
    const id = ++this.lastBatch;
    this.addon.copySubmit(
      {
        kind: COPY.STORE,
        batch: id,
        arena: 0,
        region: 0,
        shard: 0,
        shards: 1,
        payloadBytes: 4096,
        deadlineMs: 0,
        ...batch,
      },
      words,
      items.length,
    );
    await this.until(() => this.copies.has(id));
    return this.copies.get(id) as CopyEnd;
  }

  async scan(arena: number, task: number): Promise<{ done: number; total: number }> {
    this.addon.arenaScan(arena, 2, task);
    await this.until(() => this.progress.get(task)?.state === 1);
    return this.progress.get(task) as { done: number; total: number };
  }

  close(): void {
    this.addon.stop();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** The `code` of what `body` throws; "" when it throws nothing. */
export function codeOf(body: () => unknown): string {
  try {
    body();
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? "uncoded";
  }
  return "";
}
