/** The auditor's part for slots: re-derives used counts, free lists and the room of each device. */
import { assert } from "../assert.ts";
import { FREE_END, FREE_WORD, OWNER_MASK, SLAB, type SlotParts, type SlotTable } from "./slots.ts";

const NONE = -1;

/** Throws AssertionFailure with the first difference. */
export function auditSlotTable(table: SlotTable): void {
  const parts = table.parts();
  assert(parts.unannounced === 0, "audit: freed slots were not announced");
  let used = 0;
  for (let slab = 0; slab < table.slabs; slab += 1) {
    if (parts.class[slab] !== NONE) used += auditSlab(table, parts, slab);
  }
  assert(used === table.slotsUsed, "audit: used slots differ from the count");
  parts.freeSlabs.forEach((stack, device) => {
    assert(new Set(stack).size === stack.length, "audit: slab free twice");
    for (const slab of stack) {
      const free = parts.class[slab] === NONE && parts.status[slab] === SLAB.OPEN;
      assert(free, "audit: a slab in use stands among the free ones");
      assert(parts.device[slab] === device, "audit: a slab stands on another device");
    }
  });
  for (let device = 0; device < table.devices; device += 1) auditDevice(table, parts, device);
}

/** One slab's free list and its place in the list of open ones; returns its used slots. */
function auditSlab(table: SlotTable, parts: SlotParts, slab: number): number {
  const entry = table.classes[parts.class[slab]!]!;
  const owners = parts.owners[slab]!;
  const fresh = parts.fresh[slab]!;
  const status = parts.status[slab]!;
  let used = 0;
  for (let index = 0; index < fresh; index += 1) if (owners[index]! < FREE_WORD) used += 1;
  let listed = 0;
  for (let index = parts.head[slab]!; index !== FREE_END; index = owners[index]! & OWNER_MASK) {
    assert(owners[index]! >= FREE_WORD, "audit: a taken slot stands in the free list");
    listed += 1;
    assert(listed <= fresh, "audit: a free list is circular");
  }
  // The free list of a slab that is being adopted is made at the end.
  const expected = status === SLAB.ADOPTING ? 0 : fresh - used;
  assert(listed === expected, "audit: slots leaked from the free list");
  assert(used === parts.used[slab], "audit: used slots of a slab differ");
  let open = false;
  const first = entry.open[parts.device[slab]!]!;
  for (let s = first; s !== NONE; s = parts.next[s]!) if (s === slab) open = true;
  const opened = used < entry.slotsPerSlab && status === SLAB.OPEN;
  assert(open === opened, "audit: a slab's place in the list of open slabs is wrong");
  return used;
}

function auditDevice(table: SlotTable, parts: SlotParts, device: number): void {
  let used = 0;
  let free = 0;
  const room = table.classes.map(() => 0);
  const slabs = table.classes.map(() => 0);
  for (let slab = 0; slab < table.slabs; slab += 1) {
    if (parts.device[slab] !== device) continue;
    const classIndex = parts.class[slab]!;
    const open = parts.status[slab] === SLAB.OPEN;
    if (classIndex === NONE) {
      if (open) free += 1;
      continue;
    }
    used += parts.used[slab]!;
    slabs[classIndex] = slabs[classIndex]! + 1;
    const left = table.classes[classIndex]!.slotsPerSlab - parts.used[slab]!;
    if (open) room[classIndex] = room[classIndex]! + left;
  }
  assert(used === table.slotsUsedOf(device), "audit: used slots of a device differ");
  assert(free === parts.freeSlabs[device]!.length, "audit: a free slab is in no list");
  table.classes.forEach((entry, classIndex) => {
    assert(entry.room[device] === room[classIndex], "audit: room of a device differs");
    assert(entry.slabsOf[device] === slabs[classIndex], "audit: slabs of a device differ");
  });
}
