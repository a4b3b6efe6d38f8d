import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { LIMITS } from "../../../src/limits.ts";
import { Backoff } from "../../../tiers/backoff.ts";
import { Endurance } from "../../../tiers/nvme/endurance.ts";
import {
  FaultWindow,
  HEALTH_EVENTS,
  HEALTH_STATES,
  HEALTH_TABLE,
  nextHealth,
} from "../../../tiers/nvme/health.ts";
import { firstSlotOfPage, Marks, pageOfSlot } from "../../../tiers/nvme/marks.ts";
import {
  decodeNamespaces,
  encodeNamespaces,
  readNamespaces,
  Rows,
  unionNamespaces,
  writeNamespaces,
} from "../../../tiers/nvme/namespaces.ts";
import { type DirectoryFacts, directoryFacts, planSegments } from "../../../tiers/nvme/plan.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const folder = mkdtempSync(join(tmpdir(), "cairn-nvme-pure-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe("health", () => {
  // [state, event, next]: every move that changes the state; all others stay.
  const moves: readonly (readonly [string, string, string])[] = [
    ["ok", "readErrors", "fenced"],
    ["ok", "writeError", "readOnly"],
    ["ok", "syncFailed", "readOnly"],
    ["ok", "stall", "slow"],
    ["ok", "hang", "fenced"],
    ["ok", "probeFailed", "readOnly"],
    ["slow", "readErrors", "fenced"],
    ["slow", "writeError", "readOnly"],
    ["slow", "syncFailed", "readOnly"],
    ["slow", "hang", "fenced"],
    ["slow", "probeOk", "ok"],
    ["slow", "probeFailed", "readOnly"],
    ["readOnly", "readErrors", "fenced"],
    ["readOnly", "hang", "fenced"],
    ["readOnly", "probeOk", "ok"],
    ["fenced", "probeOk", "ok"],
  ];

  it("has a next state for every state and event, and changes only where it is said to", () => {
    const expected = new Map(moves.map(([state, event, next]) => [`${state} ${event}`, next]));
    for (const state of HEALTH_STATES) {
      expect(Object.keys(HEALTH_TABLE[state]).toSorted()).toEqual([...HEALTH_EVENTS].toSorted());
      for (const event of HEALTH_EVENTS) {
        const wanted = expected.get(`${state} ${event}`) ?? state;
        expect(nextHealth(state, event), `${state} ${event}`).toBe(wanted);
      }
    }
  });

  it("leaves no state without a way back to ok, and only a probe leads out of a fence", () => {
    for (const state of HEALTH_STATES) expect(nextHealth(state, "probeOk")).toBe("ok");
    const out = HEALTH_EVENTS.filter((event) => nextHealth("fenced", event) !== "fenced");
    expect(out).toEqual(["probeOk"]);
  });

  it("counts faults within its window only", () => {
    const window = new FaultWindow(3, 1_000);
    expect([0, 400, 1_100, 1_200, 1_300].map((time) => window.fault(time))).toEqual([
      false,
      false,
      false,
      true,
      true,
    ]);
    window.clear();
    expect(window.fault(1_301)).toBe(false);
  });

  it("waits twice as long after each failed probe, up to a bound", () => {
    const backoff = new Backoff(1, 5);
    expect([1, 2, 3, 4].map(() => backoff.failed())).toEqual([1, 2, 4, 5]);
    backoff.reset();
    expect(backoff.failed()).toBe(1);
  });
});

describe("the plan of segments", () => {
  const facts = (over: Partial<DirectoryFacts>): DirectoryFacts => ({
    totalBytes: 1_000 * GIB,
    freeBytes: 900 * GIB,
    segmentFileBytes: 0,
    otherBytes: 0,
    ...over,
  });

  it("never asks for more than the budget or for the file system's head-room", () => {
    const bytes = (most: number) => fc.integer({ min: 0, max: most }).map((mib) => mib * MIB);
    const cases = fc.record({
      total: bytes(2_000_000).filter((total) => total > 0),
      freeShare: fc.double({ min: 0, max: 1, noNaN: true }),
      oursShare: fc.double({ min: 0, max: 1, noNaN: true }),
      otherShare: fc.double({ min: 0, max: 1, noNaN: true }),
      capacity: fc.oneof(bytes(4_000_000), fc.constant("auto" as const)),
      segmentBytes: fc.integer({ min: 1, max: 4_096 }).map((mib) => mib * MIB),
    });
    fc.assert(
      fc.property(cases, ({ total, freeShare, oursShare, otherShare, capacity, segmentBytes }) => {
        const free = Math.floor(total * freeShare);
        const ours = Math.floor((total - free) * oursShare);
        const otherBytes = Math.floor(ours * otherShare);
        const segmentFileBytes = ours - otherBytes;
        const segments = Math.floor(segmentFileBytes / segmentBytes);
        const found = { totalBytes: total, freeBytes: free, segmentFileBytes, otherBytes };
        const plan = planSegments(capacity, segmentBytes, segments, 100, found);
        expect(plan.target).toBeGreaterThanOrEqual(0);
        if (plan.target <= segments) return;
        expect(plan.target).toBeLessThanOrEqual(100);
        const used = otherBytes + plan.target * segmentBytes;
        if (capacity !== "auto") expect(used).toBeLessThanOrEqual(capacity);
        const left = free + ours - used;
        expect(left).toBeGreaterThanOrEqual(total * LIMITS.nvmeHeadroomShare - 1);
      }),
    );
  });

  it("takes what is free but the head-room where the capacity is auto", () => {
    const plan = planSegments("auto", GIB, 0, 16_384, facts({}));
    expect(plan.budgetBytes).toBe(850 * GIB);
    expect(plan.target).toBe(836);
    expect(plan.note).toBe("");
  });

  it("says so when the file system cannot hold what was asked for", () => {
    const plan = planSegments(2_000 * GIB, GIB, 0, 16_384, facts({}));
    expect(plan.note).toContain("870400 MiB");
    expect(plan.target).toBeLessThan(850);
  });

  it("keeps written segments while others use up the head-room, and gives back when it is full", () => {
    const roomy = facts({ freeBytes: 20 * GIB, segmentFileBytes: 100 * GIB });
    expect(planSegments(101 * GIB, GIB, 100, 16_384, roomy).target).toBe(100);
    const full = facts({ freeBytes: GIB, segmentFileBytes: 100 * GIB });
    const plan = planSegments(101 * GIB, GIB, 100, 16_384, full);
    expect(plan.full).toBe(true);
    expect(plan.target).toBeLessThan(55);
  });

  it("gives back when the directory holds more than it was given", () => {
    const over = facts({ segmentFileBytes: 100 * GIB });
    expect(planSegments(50 * GIB, GIB, 100, 16_384, over).target).toBeLessThan(50);
  });

  it("counts what files really take, index and damaged indexes included", () => {
    const directory = join(folder, "facts");
    mkdirSync(join(directory, "index"), { recursive: true });
    writeFileSync(join(directory, "segment-000000.cairn"), Buffer.alloc(64 * 1024, 1));
    writeFileSync(join(directory, "index", "data.mdb"), Buffer.alloc(32 * 1024, 1));
    const found = directoryFacts(directory);
    expect(found.segmentFileBytes).toBe(64 * 1024);
    expect(found.otherBytes).toBe(32 * 1024);
    expect(found.freeBytes).toBeLessThanOrEqual(found.totalBytes);
  });
});

describe("endurance", () => {
  const DAY = 86_400_000;

  it("allows the budget of a day, an hour's worth at a time", () => {
    const endurance = new Endurance(24_000, 0, 0);
    expect(endurance.allowanceBytes(0)).toBe(1_000);
    endurance.wrote(1_500, 0);
    expect(endurance.allowanceBytes(0)).toBe(0);
    expect(endurance.allowanceBytes(DAY / 24)).toBe(500);
    expect(endurance.allowanceBytes(DAY)).toBe(1_000);
    let written = 0;
    for (let time = DAY; time < 2 * DAY; time += DAY / 240) {
      const bytes = endurance.allowanceBytes(time);
      endurance.wrote(bytes, time);
      written += bytes;
    }
    expect(written).toBeLessThanOrEqual(25_000);
    expect(written).toBeGreaterThan(23_000);
  });

  it("without a budget allows all", () => {
    expect(new Endurance(0, 0, 0).allowanceBytes(5)).toBe(Number.POSITIVE_INFINITY);
  });

  it("estimates the drive's life from a day's bytes, over restarts", () => {
    const first = new Endurance(0, 100_000, 0);
    first.wrote(1_000, DAY / 2);
    const second = new Endurance(0, 100_000, DAY);
    second.restore(first.state(), DAY + 1);
    expect(second.snapshot(DAY + 1)).toEqual({
      writtenBytes: 1_000,
      bytesPerDay: 1_000,
      budgetBytesPerDay: 0,
      lifeDays: 99,
    });
  });

  it("ignores a state from the future or without sense", () => {
    const endurance = new Endurance(24_000, 0, 0);
    endurance.restore({ ...new Endurance(0, 0, DAY).state(), writtenBytes: 7 }, 5);
    endurance.restore({ writtenBytes: Number.NaN }, 5);
    expect(endurance.snapshot(5).writtenBytes).toBe(0);
  });
});

describe("marks", () => {
  it("agree with a plain model under any order of writes, frees and commits", () => {
    const step = fc.tuple(
      fc.constantFrom("durable", "indexed", "clear", "take", "dirty"),
      fc.constantFrom(3, 5),
      fc.integer({ min: 0, max: 200 }),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
        const marks = new Marks();
        marks.addSlab(3);
        marks.addSlab(5);
        const durable = new Set<number>();
        const dirty = new Set<number>();
        for (const [what, slab, index] of steps) {
          const slot = slab * 2 ** 18 + index;
          if (what === "durable" || what === "indexed") {
            marks.setDurable(slot, what === "indexed");
            durable.add(slot);
            if (what === "durable") dirty.add(pageOfSlot(slot));
          } else if (what === "clear") {
            marks.clearDurable(slot);
            if (durable.delete(slot)) dirty.add(pageOfSlot(slot));
          } else if (what === "dirty") {
            marks.setDirty(pageOfSlot(slot));
            dirty.add(pageOfSlot(slot));
          } else {
            const pages: number[] = [];
            marks.takeOldest(2, pages);
            expect(pages.length).toBe(Math.min(2, dirty.size));
            for (const page of pages) expect(dirty.delete(page)).toBe(true);
          }
          expect(marks.dirtyPages).toBe(dirty.size);
        }
        const found: number[] = [];
        for (const slab of marks.slabs()) {
          for (const page of marks.pagesInUse(slab, 0, 1_000)) {
            for (let i = 0; i < 32; i++) {
              if (marks.isDurable(firstSlotOfPage(page) + i)) found.push(firstSlotOfPage(page) + i);
            }
          }
        }
        expect(found.toSorted((a, b) => a - b)).toEqual([...durable].toSorted((a, b) => a - b));
      }),
    );
  });
});

describe("namespaces.json", () => {
  const row = (fill: number) => ({
    digest: new Uint8Array(16).fill(fill),
    descriptor: new TextEncoder().encode(`descriptor ${fill} é "`),
  });

  it("gives back what was written", async () => {
    const directory = join(folder, "namespaces");
    mkdirSync(directory);
    expect(readNamespaces(directory)).toEqual([]);
    await writeNamespaces(directory, [row(1), row(2)]);
    await writeNamespaces(directory, [row(1), row(2), row(3)]);
    expect(readNamespaces(directory)).toEqual([row(1), row(2), row(3)]);
  });

  it("with any byte changed is damaged or unchanged in meaning", () => {
    const text = Buffer.from(encodeNamespaces([row(1), row(2)]));
    const good = [row(1), row(2)];
    for (let at = 0; at < text.length; at++) {
      for (const bit of [1, 4, 16]) {
        const bytes = Buffer.from(text);
        bytes[at] = bytes[at]! ^ bit;
        let rows: unknown;
        try {
          rows = decodeNamespaces(bytes.toString("utf8"));
        } catch (error) {
          expect(error).toMatchObject({ errorName: "formatUnsupported" });
          continue;
        }
        if (rows !== undefined) expect(rows).toEqual(good);
      }
    }
  });

  it("cut short is damaged, and of another version is refused by name", () => {
    const text = encodeNamespaces([row(1)]);
    for (let length = 0; length < text.length - 1; length++) {
      expect(decodeNamespaces(text.slice(0, length))).toBeUndefined();
    }
    expect(() => decodeNamespaces(text.replace('"version":1', '"version":2'))).toThrow(/version 2/);
  });

  it("rows translate both ways, and an index given to another namespace forgets its old row", () => {
    const rows = new Rows([row(1), row(2)]);
    rows.bind(7, row(2).digest);
    rows.bind(4, row(9).digest);
    expect([rows.rowOf(7), rows.indexOf(1), rows.rowOf(4), rows.indexOf(0)]).toEqual([
      1, 7, -1, -1,
    ]);
    expect(rows.add(4, row(9))).toBe(true);
    expect([rows.rowOf(4), rows.indexOf(2), rows.unwritten]).toEqual([2, 4, true]);
    rows.written(rows.revision);
    expect(rows.unwritten).toBe(false);
    rows.bind(7, row(1).digest);
    expect([rows.rowOf(7), rows.indexOf(0), rows.indexOf(1)]).toEqual([0, 7, -1]);
  });

  it("rows that no entry names are vacated, used again, and cut off at the end of the table", () => {
    const rows = new Rows([row(1), row(2), row(3), row(4)]);
    rows.bind(7, row(1).digest);
    rows.bind(8, row(2).digest);
    expect(rows.vacate((number) => number === 1)).toBe(3);
    expect([rows.list.length, rows.rowOf(7), rows.rowOf(8), rows.unwritten]).toEqual([
      2,
      -1,
      1,
      true,
    ]);
    // As the next start reads it: the vacant row names nothing, and is given away.
    const again = new Rows(decodeNamespaces(encodeNamespaces(rows.list))!);
    expect(again.named).toEqual([row(2)]);
    again.bind(0, row(1).digest);
    expect(again.rowOf(0)).toBe(-1);
    expect(again.add(0, row(5))).toBe(true);
    expect([again.rowOf(0), again.list.length]).toEqual([0, 2]);
    expect(again.vacate(() => true)).toBe(0);
  });

  it("a table that is full gives no row, and says so", () => {
    const many = Array.from({ length: LIMITS.nvmeNamespaceRowsMax }, (_, number) => ({
      digest: new Uint8Array(Uint32Array.of(number, 1, 2, 3).buffer),
      descriptor: Uint8Array.of(1),
    }));
    const rows = new Rows(many);
    expect(rows.add(0, row(1))).toBe(false);
    expect([rows.rowOf(0), rows.unwritten]).toEqual([-1, false]);
    rows.vacate((number) => number !== 500);
    expect(rows.add(0, row(1))).toBe(true);
    expect([rows.rowOf(0), rows.list.length]).toEqual([500, LIMITS.nvmeNamespaceRowsMax]);
  });

  it("tables are united: the pool keeps its numbers, others follow, none twice, none beyond the bound", () => {
    const pool = [{ index: 0, ...row(1) }];
    const { all, added } = unionNamespaces(
      pool,
      [
        [row(1), row(2)],
        [row(3), row(2)],
      ],
      3,
    );
    expect(all.map(({ index, digest }) => [index, digest[0]])).toEqual([
      [0, 1],
      [1, 2],
      [2, 3],
    ]);
    expect(added).toHaveLength(2);
    expect(unionNamespaces(pool, [[row(2), row(3)]], 2).added).toHaveLength(1);
  });

  it("is written whole: a file that was not renamed is not read", async () => {
    const directory = join(folder, "whole");
    mkdirSync(directory);
    await writeNamespaces(directory, [row(1)]);
    writeFileSync(join(directory, "namespaces.json.new"), "torn");
    expect(readNamespaces(directory)).toEqual([row(1)]);
    expect(readFileSync(join(directory, "namespaces.json"), "utf8")).toContain('"version":1');
  });
});
