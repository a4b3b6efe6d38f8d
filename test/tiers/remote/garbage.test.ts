/** Garbage collection by age and by bytes, by one node and by several at once. */
import { describe, expect, test } from "vitest";
import { chunkName } from "../../../tiers/remote/chunk.ts";
import {
  collectGarbage,
  type GarbageReport,
  type GarbageRound,
  isOurPart,
} from "../../../tiers/remote/garbage.ts";
import {
  failure,
  type ObjectPage,
  type ObjectStore,
  type Outcome,
  success,
} from "../../../tiers/remote/object-store.ts";
import { keyOf, SPACE } from "./fixture.ts";

const NOW = 1_800_000_000_000;
const HOUR = 3_600_000;
const DAY = 24 * HOUR;

/** Objects by name in memory; pages of 7. */
class MemoryStore implements ObjectStore {
  readonly description = "memory";
  readonly objects = new Map<string, { bytes: number; modifiedMs: number }>();
  deletes = 0;
  sweptBefore = 0;
  failing = false;

  list(prefix: string, cursor: string | undefined): Promise<Outcome<ObjectPage>> {
    if (this.failing) return Promise.resolve(failure("unavailable", "down"));
    const names = [...this.objects.keys()].filter((name) => name.startsWith(prefix)).toSorted();
    const page = names.filter((name) => name > (cursor ?? "")).slice(0, 7);
    const entries = page.flatMap((name) => {
      const found = this.objects.get(name);
      return found === undefined ? [] : [{ name, ...found }];
    });
    const last = page.at(-1);
    return Promise.resolve(success({ entries, cursor: page.length === 7 ? last : undefined }));
  }
  delete(name: string): Promise<Outcome<"deleted" | "missing">> {
    this.deletes += 1;
    return Promise.resolve(success(this.objects.delete(name) ? "deleted" : "missing"));
  }
  sweep(beforeMs: number): Promise<Outcome<number>> {
    this.sweptBefore = beforeMs;
    return Promise.resolve(success(3));
  }
  get(): never {
    throw new Error("not asked");
  }
  put(): never {
    throw new Error("not asked");
  }
  head(): never {
    throw new Error("not asked");
  }
  check(): never {
    throw new Error("not asked");
  }
  close(): Promise<void> {
    return Promise.resolve();
  }
}

function nameOf(at: number): string {
  return chunkName(SPACE, 0, keyOf(at, 1), "");
}

/** `count` objects of 100 bytes, object i being i days old. */
function filled(count: number): MemoryStore {
  const store = new MemoryStore();
  for (let at = 0; at < count; at += 1) {
    store.objects.set(nameOf(at), { bytes: 100, modifiedMs: NOW - at * DAY });
  }
  return store;
}

function days(store: MemoryStore): number[] {
  return [...store.objects.values()]
    .map(({ modifiedMs }) => Math.round((NOW - modifiedMs) / DAY))
    .toSorted((a, b) => a - b);
}

function collect(
  store: MemoryStore,
  options: Partial<GarbageRound["options"]>,
  salt = "salt",
): Promise<GarbageReport> {
  const whole = { intervalMs: 1, ageMsMax: 0, bytesMax: 0, graceMs: HOUR, parts: 1, ...options };
  const limits = { deadlineMs: 1_000 };
  return collectGarbage({
    store,
    options: whole,
    nowMs: NOW,
    salt,
    limits,
    deleted: () => undefined,
  });
}

const upTo = (count: number): number[] => Array.from({ length: count }, (_, at) => at);

describe("a round of one node", () => {
  test("removes nothing without limits, and counts what there is", async () => {
    const store = filled(50);
    const report = await collect(store, {});
    expect(report).toMatchObject({ objects: 50, bytes: 5_000, removed: 0, swept: 3 });
    expect(store.objects.size).toBe(50);
    expect(store.sweptBefore).toBe(NOW - HOUR);
  });

  test("removes by age exactly what is older", async () => {
    const store = filled(50);
    expect(await collect(store, { ageMsMax: 10 * DAY })).toMatchObject({
      removed: 40,
      removedBytes: 4_000,
    });
    expect(days(store)).toEqual(upTo(10));
  });

  test("removes the oldest until the rest fits the bytes", async () => {
    const store = filled(60);
    await collect(store, { bytesMax: 2_000 });
    const left = days(store);
    expect(left.length).toBeLessThanOrEqual(20);
    // Ages that fall into one bucket of the histogram go together.
    expect(left.length).toBeGreaterThanOrEqual(18);
    expect(left).toEqual(upTo(left.length));
  });

  test("never touches what is younger than the grace time, whatever the budget", async () => {
    const store = filled(50);
    await collect(store, { bytesMax: 1, graceMs: 5 * DAY });
    expect(days(store)).toEqual(upTo(5));
  });

  test("takes objects from the future for new ones", async () => {
    const store = filled(3);
    store.objects.set(nameOf(99), { bytes: 100, modifiedMs: NOW + 30 * DAY });
    await collect(store, { bytesMax: 1 });
    expect(days(store)).toEqual([-30, 0]);
  });

  test("neither counts nor removes what is not ours", async () => {
    const store = filled(3);
    const foreign = ["v1/list/0001", "v1x/a", "v9/old", "backup"];
    for (const name of foreign) store.objects.set(name, { bytes: 1e9, modifiedMs: 1 });
    const report = await collect(store, { ageMsMax: 2 * HOUR, bytesMax: 1 });
    expect(report.objects).toBe(3);
    expect(foreign.every((name) => store.objects.has(name))).toBe(true);
  });

  test("ends early when the store fails, and says so", async () => {
    const store = filled(3);
    store.failing = true;
    expect(await collect(store, { ageMsMax: HOUR })).toMatchObject({
      fault: "unavailable",
      removed: 0,
    });
    expect(store.deletes).toBe(0);
  });
});

describe("several nodes", () => {
  test("at once remove what one would, without an error about what another removed", async () => {
    const store = filled(200);
    const reports = await Promise.all(
      ["a", "b", "c"].map((salt) => collect(store, { ageMsMax: 50 * DAY }, salt)),
    );
    expect(days(store)).toEqual(upTo(50));
    expect(reports.map((one) => one.fault)).toEqual([undefined, undefined, undefined]);
    expect(reports.reduce((sum, one) => sum + one.removed, 0)).toBe(150);
  });

  test("that share the work do different parts, and rounds complete it", async () => {
    const store = filled(400);
    const before = store.objects.size;
    await collect(store, { ageMsMax: DAY, parts: 4 }, "a 1");
    const once = before - store.objects.size;
    expect(once).toBeGreaterThan(50);
    expect(once).toBeLessThan(150);
    for (let round = 0; round < 60; round += 1) {
      await collect(store, { ageMsMax: DAY, parts: 4 }, `a ${round}`);
    }
    expect(days(store)).toEqual([0]);
  });

  test("a part is a fair share that differs from salt to salt", () => {
    const names = Array.from({ length: 1_000 }, (_, at) => nameOf(at));
    const of = (salt: string): string[] => names.filter((name) => isOurPart(name, salt, 4));
    expect(Math.abs(of("x").length - 250)).toBeLessThan(60);
    expect(of("x")).not.toEqual(of("y"));
    expect(names.every((name) => isOurPart(name, "x", 1))).toBe(true);
  });
});
