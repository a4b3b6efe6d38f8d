/**
 * Index pages from the ledger: the only place where what the ledger knows of a slot becomes bytes of the index. Only
 * durable slots are named, and of those only copies that are still good.
 */
import type { Core } from "../../src/ledger/core.ts";
import { FILL } from "../../src/ledger/slots.ts";
import * as R from "../../src/ledger/table.ts";
import { NO_BLOCK, NO_SLOT, STATE, TIER } from "../../src/ledger/types.ts";
import { PAGE_SLOTS, PARENT, PageWriter } from "./index-pages.ts";
import { firstSlotOfPage, type Marks, pageOfSlot } from "./marks.ts";

/** A page and what the index needs of its segment. */
export interface PagePlace {
  readonly page: number;
  /** Key in the index. */
  readonly key: number;
  readonly payloadBytes: number;
}

const writer = new PageWriter();
const slots = new Uint32Array(PAGE_SLOTS);
const generations = new Uint32Array(PAGE_SLOTS);

/** Is this slot's copy one that a restart should find? */
function listed(core: Core, slot: number): boolean {
  const table = core.tier(TIER.NVME).slots;
  if (table.slabClass(table.slabOf(slot)) < 0 || table.fillOf(slot) === FILL.FREE) return false;
  const state = core.stateOf(table.ownerOf(slot), TIER.NVME);
  return state !== STATE.ABSENT && state !== STATE.DRAINING && state !== STATE.QUARANTINED;
}

/** Listed slots of a page as bits. */
function listedBits(core: Core, marks: Marks, page: number): number {
  const durable = marks.durableBits(page);
  const first = firstSlotOfPage(page);
  let bits = 0;
  for (let position = 0; position < PAGE_SLOTS; position++) {
    const bit = 1 << position;
    if ((durable & bit) !== 0 && listed(core, first + position)) bits |= bit;
  }
  return bits;
}

/** Calls back with the namespace of every copy that the page would name. */
export function namespacesOfPage(
  core: Core,
  marks: Marks,
  page: number,
  visit: (namespace: number) => void,
): void {
  const bits = listedBits(core, marks, page);
  const first = firstSlotOfPage(page);
  const table = core.tier(TIER.NVME).slots;
  for (let position = 0; position < PAGE_SLOTS; position++) {
    if ((bits & (1 << position)) === 0) continue;
    visit(core.namespaceOf(table.ownerOf(first + position)).index);
  }
}

/**
 * Bytes of one page; undefined when it names nothing.
 * @param nowMs time of the ledger's present tick
 */
export function serialisePage(
  core: Core,
  marks: Marks,
  place: PagePlace,
  rowOf: (namespace: number) => number,
  generationsOf: (slots: Uint32Array, count: number, into: Uint32Array) => void,
  nowMs: number,
): Buffer | undefined {
  const { page } = place;
  const bits = listedBits(core, marks, page);
  if (bits === 0) return undefined;
  const first = firstSlotOfPage(page);
  let count = 0;
  for (let position = 0; position < PAGE_SLOTS; position++) {
    if ((bits & (1 << position)) !== 0) slots[count++] = first + position;
  }
  generationsOf(slots, count, generations);
  writer.begin(place.key, place.payloadBytes);
  for (let index = 0; index < count; index++) {
    addSlot(core, bits, slots[index]!, generations[index]!, rowOf, nowMs);
  }
  return writer.end();
}

function addSlot(
  core: Core,
  bits: number,
  slot: number,
  generation: number,
  rowOf: (namespace: number) => number,
  nowMs: number,
): void {
  const page = pageOfSlot(slot);
  const block = core.tier(TIER.NVME).slots.ownerOf(slot);
  const namespace = core.namespaceOf(block);
  const row = rowOf(namespace.index);
  const shard = namespace.shards === 1 ? 0 : shardOf(core, block, slot, namespace.shards);
  const base = block * R.RECORD_WORDS;
  const parent = core.parentOf(block);
  const age = core.records[base + R.tierWord(TIER.NVME) + R.AGE]!;
  writer.add(
    slot % PAGE_SLOTS,
    row,
    shard,
    core.depthOf(block),
    generation,
    Math.max(1, Math.floor(nowMs - core.tick + age)),
    core.records,
    base + R.KEY,
    parent === NO_BLOCK ? PARENT.NONE : parentPosition(core, page, bits, parent, shard),
    parent * R.RECORD_WORDS + R.KEY,
  );
}

/** Where the parent's copy of the same shard stands in the page, PARENT.SPELLED if it does not. */
function parentPosition(
  core: Core,
  page: number,
  bits: number,
  parent: number,
  shard: number,
): number {
  const slot = core.slotOf(parent, TIER.NVME, shard);
  if (slot === NO_SLOT || pageOfSlot(slot) !== page) return PARENT.SPELLED;
  const position = slot % PAGE_SLOTS;
  return (bits & (1 << position)) !== 0 ? position : PARENT.SPELLED;
}

function shardOf(core: Core, block: number, slot: number, shards: number): number {
  for (let shard = 0; shard < shards; shard++) {
    if (core.slotOf(block, TIER.NVME, shard) === slot) return shard;
  }
  return 0;
}
