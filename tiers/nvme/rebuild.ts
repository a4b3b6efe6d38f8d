/**
 * Blocks from slot headers while engines are served: after an index was lost, after a fenced device came back, for a
 * directory that is added. The addon reads and verifies the headers behind all other work; they are offered to the
 * ledger in slices of a few milliseconds, and each block that is taken is written into the index by the next commits.
 *
 * A chain may lie on several disks, and a block is taken only where its parent is known. So while other disks are read,
 * too, a header whose parent is not known is kept (late-headers.ts), and its slab gives out no slots until all of them
 * have been read.
 */
import { type Addon, SCAN_WORDS, SLOT_HEADER } from "../../addon/binding.ts";
import type { Ledger } from "../../src/ledger/ledger.ts";
import { NO_BLOCK, type RecoveredBlock, TIER } from "../../src/ledger/types.ts";
import { LIMITS } from "../../src/limits.ts";
import type { Device } from "./device.ts";
import type { LateHeaders } from "./late-headers.ts";
import type { Tasks } from "./tasks.ts";
import { TWO_32 } from "../../src/words.ts";

const HEADERS_PER_READ = 512;
const SLOT_WORD = 32;
const RETRY_MS = 50;

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

type RebuildAddon = Pick<Addon, "diskScan" | "diskScanRead">;

/** Adopts what the device's headers say. @throws TaskError when they cannot be read */
export async function rebuildDevice(
  device: Device,
  ledger: Ledger,
  addon: RebuildAddon,
  tasks: Tasks,
  arena: number,
  late: LateHeaders,
): Promise<void> {
  late.begin();
  let reads = true;
  const readEnds = (): void => {
    if (reads) late.readEnded();
    reads = false;
  };
  let slabs: readonly number[] = [];
  const began = performance.now();
  try {
    slabs = device.heldSlabs ?? (await holdSlabs(device, ledger));
    device.heldSlabs = undefined;
    await tasks.run(device, (task) => addon.diskScan(device.disk, arena, task));
    const { headers, adopted: early, kept } = await adoptAll(device, ledger, addon, late);
    const settled = kept > 0 ? late.settled : undefined;
    readEnds();
    const adopted = early + ((await settled)?.get(device) ?? 0);
    device.counters.headersRebuilt += adopted;
    const milliseconds = Math.round(performance.now() - began);
    device.note("info", `rebuilt from headers: ${adopted} of ${headers} in ${milliseconds} ms`);
  } finally {
    readEnds();
    for (const slab of slabs) ledger.adoptEnd(TIER.NVME, slab);
  }
}

/**
 * Slabs that serve a class in their file give out no slots until their headers are in. A slab of a lost device may
 * still have readers: it is waited for. One that serves already (an earlier rebuild ended early) is left as it is.
 */
async function holdSlabs(device: Device, ledger: Ledger): Promise<number[]> {
  const slabs: number[] = [];
  const left = new Map([...device.segments.list].map((segment) => [segment.slab, segment]));
  const { slots } = ledger.core.tier(TIER.NVME);
  for (;;) {
    for (const [slab, { payloadBytes }] of left) {
      const serves = !slots.isLost(slab) && slots.slabClass(slab) >= 0;
      if (serves) left.delete(slab);
      if (serves || !ledger.adoptBegin(TIER.NVME, slab, payloadBytes)) continue;
      left.delete(slab);
      if (payloadBytes > 0) slabs.push(slab);
    }
    if (left.size === 0 || device.health === "fenced" || device.closed) return slabs;
    await new Promise((resolve) => {
      setTimeout(resolve, RETRY_MS);
    });
  }
}

async function adoptAll(device: Device, ledger: Ledger, addon: RebuildAddon, late: LateHeaders) {
  const words = new Uint32Array(HEADERS_PER_READ * SCAN_WORDS);
  let headers = 0;
  let adopted = 0;
  let kept = 0;
  let until = performance.now() + LIMITS.nvmeSliceMs;
  for (;;) {
    if (device.health === "fenced" || device.closed) break;
    const count = addon.diskScanRead(device.disk, words);
    if (count === 0) break;
    headers += count;
    for (let index = 0; index < count; index++) {
      const at = index * SCAN_WORDS;
      const waits = late.open && lacksParent(ledger, words, at);
      if (waits && late.keep(device, words.slice(at, at + SCAN_WORDS))) kept += 1;
      else if (adoptHeader(device, ledger, words, at)) adopted += 1;
      if (performance.now() < until) continue;
      ledger.flush();
      await new Promise((resolve) => {
        setImmediate(resolve);
      });
      until = performance.now() + LIMITS.nvmeSliceMs;
    }
    ledger.flush();
  }
  return { headers, adopted, kept };
}

function lacksParent(ledger: Ledger, words: Uint32Array, at: number): boolean {
  const namespace = words[at + SLOT_HEADER.NAMESPACE]!;
  if (words[at + SLOT_HEADER.DEPTH]! <= 1 || namespace >= ledger.namespaceCount) return false;
  return ledger.find(namespace, words, at + SLOT_HEADER.PARENT_KEY) === NO_BLOCK;
}

const offered: Mutable<RecoveredBlock> = {
  namespace: 0,
  depth: 0,
  shard: 0,
  slot: 0,
  generation: 0,
  lastAccess: 0,
};

/** Offers the block of a header; true: it is in the ledger. */
export function adoptHeader(
  device: Device,
  ledger: Ledger,
  words: Uint32Array,
  at: number,
): boolean {
  const namespace = words[at + SLOT_HEADER.NAMESPACE]!;
  if (namespace >= ledger.namespaceCount || device.health === "fenced") return false;
  if (!device.admits(namespace)) return false;
  offered.namespace = namespace;
  offered.depth = words[at + SLOT_HEADER.DEPTH]!;
  offered.shard = words[at + SLOT_HEADER.SHARD]! & 0xffff;
  offered.slot = words[at + SLOT_WORD]!;
  offered.generation = words[at + SLOT_HEADER.GENERATION]!;
  offered.lastAccess =
    words[at + SLOT_HEADER.LAST_ACCESS_HIGH]! * TWO_32 + words[at + SLOT_HEADER.LAST_ACCESS_LOW]!;
  const keyAt = at + SLOT_HEADER.KEY;
  const parentAt = at + SLOT_HEADER.PARENT_KEY;
  if (!ledger.adopt(offered, TIER.NVME, words, keyAt, parentAt)) return false;
  device.marks.setDurable(offered.slot, false);
  return true;
}
