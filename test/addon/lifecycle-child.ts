/**
 * A process that is cut short at one stage of the addon's life: `lifecycle-child.ts STAGE ENDING DIRECTORY`.
 * As a worker (workerData instead of arguments) it reaches the stage, says so, and waits to be terminated.
 */
import { join } from "node:path";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { COPY, EVENT_WORDS, ITEM_WORDS, SLOT_INDEX_BITS } from "../../addon/binding.ts";
import { loadAddon } from "../../addon/load.ts";
import { MAGIC, PROTOCOL_VERSION } from "../../src/engine-api/protocol.ts";

const BLOCK_BYTES = 65_536;
const addon = loadAddon();

function start(): void {
  addon.start({
    copyThreads: 2,
    inbox: new ArrayBuffer(1 << 20),
    events: new Uint32Array(EVENT_WORDS * 16),
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
    onReady: () => addon.poll(),
  });
}

function open(directory: string): number {
  const path = join(directory, "pool");
  return addon.arenaOpen({ path, slabBytes: 8 << 20, slabs: 8, numaNode: -1, hugePages: false })
    .arena;
}

function beginCopies(directory: string): void {
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

const STAGES: Record<string, (directory: string) => void> = {
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
    STAGES[stage]?.(directory);
    if (ending === "exit") process.exit(0);
    if (ending === "throw") throw new Error("cut short");
    if (ending === "stop") addon.stop();
  }
} else {
  const { stage, directory } = workerData as { stage: string; directory: string };
  STAGES[stage]?.(directory);
  parentPort?.postMessage("reached");
  setInterval(() => {}, 1_000);
}
