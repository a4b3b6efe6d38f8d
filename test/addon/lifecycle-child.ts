/**
 * A process that is cut short at one stage of the addon's life: `lifecycle-child.ts STAGE ENDING DIRECTORY`.
 * As a worker (workerData instead of arguments) it reaches the stage, says so, and waits to be terminated.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import {
  COPY,
  DISK,
  DISK_ITEM_WORDS,
  EVENT,
  EVENT_WORDS,
  ITEM_WORDS,
  NO_DRAM_SLOT,
  SLOT_INDEX_BITS,
} from "../../addon/binding.ts";
import { loadAddon } from "../../addon/load.ts";
import { MAGIC, PROTOCOL_VERSION } from "../../src/engine-api/protocol.ts";

const BLOCK_BYTES = 65_536;
const SEGMENT_BYTES = 64 << 20;
const PREPARE_TASK = 7;
const addon = loadAddon();
const events = new Uint32Array(EVENT_WORDS * 16);
let prepared = (): void => {};

function drain(): void {
  const count = addon.poll();
  for (let i = 0; i < count; i++) {
    const [type, id, , , , , state] = events.subarray(i * EVENT_WORDS);
    if (type === EVENT.PROGRESS && id === PREPARE_TASK && state === 1) prepared();
  }
}

function start(): void {
  addon.start({
    copyThreads: 2,
    inbox: new ArrayBuffer(1 << 20),
    events,
    statuses: new Uint8Array(4096),
    transport: {
      frameBodyBytesMax: 65_536,
      connectionsMax: 8,
      outboundBytesMax: 1 << 20,
      frameTimeoutMs: 1_000,
      helloTimeoutMs: 1_000,
      magic: MAGIC,
      version: PROTOCOL_VERSION,
    },
    onReady: drain,
  });
}

function open(directory: string): number {
  const path = join(directory, "pool");
  return addon.arenaOpen({ path, slabBytes: 8 << 20, slabs: 8, numaNode: -1, hugePages: false })
    .arena;
}

interface Filling {
  readonly arena: number;
  readonly region: number;
}

function beginCopies(directory: string): Filling {
  const arena = open(directory);
  addon.arenaPutNamespace(arena, 0, new Uint8Array(16), new Uint8Array(0));
  // Every slot once: a slot has one writer at a time.
  const slots: number[] = [];
  for (let slab = 0; slab < 8; slab++) {
    const count = addon.arenaAssign(arena, slab, BLOCK_BYTES);
    for (let i = 0; i < count; i++) slots.push((slab << SLOT_INDEX_BITS) | i);
  }
  const { region, descriptor } = addon.regionCreate(8 << 20);
  addon.closeDescriptor(descriptor);
  const records = new Uint32Array(new SharedArrayBuffer(64 * 4)).fill(1);
  const layout = { keyWord: 0, parentWord: 8, depthWord: 9, namespaceWord: 10 };
  records[8] = 0xffff_ffff;
  records[10] = 0;
  addon.attachLedger({ records, recordWords: 16, depthMask: 1, namespaceMask: 1, ...layout });
  for (let batch = 0; batch < 10; batch++) {
    const items = new Uint32Array(ITEM_WORDS * 100);
    for (let i = 0; i < 100; i++) items[i * ITEM_WORDS] = slots[batch * 100 + i] as number;
    const base = { kind: COPY.STORE, batch, arena, region, shard: 0, shards: 1, deadlineMs: 0 };
    addon.copySubmit({ ...base, payloadBytes: BLOCK_BYTES }, items, 100);
  }
  return { arena, region };
}

function openDisk(directory: string): number {
  const path = join(directory, "disk");
  mkdirSync(path, { recursive: true, mode: 0o700 });
  return addon.diskOpen({
    directory: path,
    segmentBytes: SEGMENT_BYTES,
    mode: "auto",
    direct: "auto",
    queueDepth: 8,
    writeDepth: 4,
    stagingBytes: 4 << 20,
  }).disk;
}

/** A disk with a prepared segment, and a hundred batches of this kind under way. */
async function beginDisk(directory: string, kind: number): Promise<number> {
  start();
  const { arena, region } = beginCopies(directory);
  const disk = openDisk(directory);
  await new Promise<void>((resolve) => {
    prepared = resolve;
    addon.diskPrepare(disk, 0, PREPARE_TASK);
  });
  addon.diskAttach(disk, 0, 0);
  const slots = addon.diskAssign(disk, 0, BLOCK_BYTES);
  for (let batch = 100; batch < 200; batch++) {
    const items = new Uint32Array(DISK_ITEM_WORDS * 10);
    for (let i = 0; i < 10; i++) {
      const dram = kind === DISK.WRITE ? i : NO_DRAM_SLOT;
      items.set([(batch * 10 + i) % slots, i * BLOCK_BYTES, 0, 0, dram], i * DISK_ITEM_WORDS);
    }
    const base = { kind, batch, disk, arena, region, shard: 0, shards: 1, priority: 0 };
    addon.diskSubmit({ ...base, payloadBytes: BLOCK_BYTES, deadlineMs: 0 }, items, 10);
  }
  return disk;
}

function connect(directory: string): void {
  const path = join(directory, "engine.sock");
  addon.listen(path, 0o600, 1);
  const client = addon.clientOpen(
    path,
    () => {},
    () => {},
  );
  addon.clientSend(client, new Uint8Array(40), 0, 40, -1);
}

const STAGES: Record<string, (directory: string) => void | Promise<void>> = {
  loaded: () => {},
  started: () => start(),
  failedStart: () => {
    try {
      addon.start({} as never);
    } catch {
      return;
    }
    throw new Error("start() took an empty object");
  },
  listening: (directory) => {
    start();
    addon.listen(join(directory, "engine.sock"), 0o600, 1);
  },
  connected: (directory) => {
    start();
    connect(directory);
  },
  poolOpen: (directory) => {
    start();
    open(directory);
  },
  poolOpenUnstarted: (directory) => void open(directory),
  failedOpen: (directory) => {
    start();
    try {
      open(join(directory, "missing"));
    } catch {
      return;
    }
    throw new Error("a pool opened in a directory that is not there");
  },
  populating: (directory) => {
    start();
    addon.arenaPopulate(open(directory), 0, 8, 2, 1);
  },
  scanning: (directory) => {
    start();
    addon.arenaScan(open(directory), 2, 1);
  },
  regionMapped: () => {
    start();
    addon.regionMap(addon.clientMemfd(1 << 20, false).descriptor, 1 << 20);
  },
  callInFlight: (directory) => {
    start();
    beginCopies(directory);
  },
  closing: (directory) => {
    start();
    connect(directory);
    addon.arenaClose(open(directory), true);
    addon.unlisten(1);
  },
  diskOpen: (directory) => {
    start();
    openDisk(directory);
  },
  diskFailedOpen: (directory) => {
    start();
    openDisk(directory);
    try {
      openDisk(directory);
    } catch {
      return;
    }
    throw new Error("one directory opened twice");
  },
  diskPreparing: (directory) => {
    start();
    addon.diskPrepare(openDisk(directory), 0, PREPARE_TASK);
  },
  diskReading: async (directory) => void (await beginDisk(directory, DISK.READ)),
  diskWriting: async (directory) => void (await beginDisk(directory, DISK.WRITE)),
  diskScanning: async (directory) => {
    const disk = await beginDisk(directory, DISK.WRITE);
    addon.diskScan(disk, 1, 8);
    addon.diskSync(disk, 9);
  },
  diskClosing: async (directory) => {
    const disk = await beginDisk(directory, DISK.WRITE);
    addon.diskScan(disk, 1, 8);
    addon.diskSync(disk, 9);
    addon.diskPrepare(disk, 1, 10);
    addon.diskClose(disk);
  },
  stopped: (directory) => {
    start();
    connect(directory);
    beginCopies(directory);
    addon.stop();
    addon.stop();
  },
};

async function inWorker(stage: string, directory: string): Promise<void> {
  const worker = new Worker(new URL("../../src/edge/bootstrap.mjs", import.meta.url), {
    argv: [import.meta.url.replace(/\?.*/, "")],
    workerData: { stage, directory },
  });
  await new Promise((resolve, reject) => {
    worker.once("message", resolve);
    worker.once("error", reject);
  });
  await worker.terminate();
}

if (isMainThread) {
  const [stage = "", ending = "", directory = ""] = process.argv.slice(2);
  if (ending === "worker") {
    await inWorker(stage, directory);
  } else {
    await STAGES[stage]?.(directory);
    if (ending === "exit") process.exit(0);
    if (ending === "throw") throw new Error("cut short");
    if (ending === "stop") addon.stop();
  }
} else {
  const { stage, directory } = workerData as { stage: string; directory: string };
  await STAGES[stage]?.(directory);
  parentPort?.postMessage("reached");
  setInterval(() => {}, 1_000);
}
