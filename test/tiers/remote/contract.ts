/** What every ObjectStore must do, as one suite that runs against each of them. */
import { afterAll, beforeAll, expect, test } from "vitest";
import type { CallLimits, ObjectEntry, ObjectStore } from "../../../tiers/remote/object-store.ts";

export const LIMITS: CallLimits = { deadlineMs: 20_000 };

export function bytesOf(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, at) => (at * 31 + seed * 17 + (at >> 8)) & 0xff);
}

/** All pages. */
export async function listed(store: ObjectStore, prefix: string): Promise<ObjectEntry[]> {
  const entries: ObjectEntry[] = [];
  let cursor: string | undefined;
  do {
    const page = await store.list(prefix, cursor, LIMITS);
    if (!page.ok) throw new Error(`${page.fault}: ${page.message}`);
    entries.push(...page.value.entries);
    cursor = page.value.cursor;
  } while (cursor !== undefined);
  return entries.toSorted((a, b) => (a.name < b.name ? -1 : 1));
}

/** Registers the suite. `open` makes a store of its own content; `another` opens the same content once more. */
export function storeContract(
  open: () => Promise<{ readonly store: ObjectStore; readonly another: () => ObjectStore }>,
  end: () => Promise<void> = () => Promise.resolve(),
): void {
  let store: ObjectStore;
  let another: () => ObjectStore;
  beforeAll(async () => {
    ({ store, another } = await open());
  });
  afterAll(async () => {
    await store?.close();
    await end();
  });

  test("a stored object comes back whole, and in any range", async () => {
    const body = bytesOf(300_000, 1);
    expect(await store.put("v1/whole/a", body, LIMITS)).toEqual({ ok: true, value: "stored" });
    const whole = new Uint8Array(300_000);
    expect(await store.get("v1/whole/a", 0, whole, LIMITS)).toEqual({ ok: true, value: 300_000 });
    expect(Buffer.compare(whole, body)).toBe(0);
    for (const [from, length] of [
      [0, 1],
      [1, 4_096],
      [299_999, 1],
      [65_530, 131_072],
    ] as const) {
      const part = new Uint8Array(length);
      expect(await store.get("v1/whole/a", from, part, LIMITS)).toEqual({
        ok: true,
        value: 300_000,
      });
      expect(Buffer.compare(part, body.subarray(from, from + length))).toBe(0);
    }
  });

  test("an object of 8 MiB goes out of and into the middle of a larger buffer", async () => {
    const length = 8 * 2 ** 20;
    const body = new Uint8Array(length + 4_096);
    body.set(bytesOf(length, 3), 2_048);
    const view = body.subarray(2_048, 2_048 + length);
    expect(await store.put("v1/large", view, LIMITS)).toMatchObject({ ok: true });
    const into = new Uint8Array(length + 4_096);
    expect(
      await store.get("v1/large", 0, into.subarray(2_048, 2_048 + length), LIMITS),
    ).toMatchObject({ ok: true });
    expect(Buffer.compare(into, body)).toBe(0);
  });

  test("the first writer wins and the second is told so", async () => {
    expect(await store.put("v1/once", bytesOf(10, 1), LIMITS)).toMatchObject({ value: "stored" });
    expect(await store.put("v1/once", bytesOf(10, 2), LIMITS)).toMatchObject({ value: "present" });
    const into = new Uint8Array(10);
    await store.get("v1/once", 0, into, LIMITS);
    expect(into).toEqual(bytesOf(10, 1));
  });

  test("of eight writers at once exactly one has stored, and its bytes are whole", async () => {
    const other = another();
    const results = await Promise.all(
      Array.from({ length: 8 }, (_, at) =>
        (at % 2 === 0 ? store : other).put("v1/race", bytesOf(200_000, at), LIMITS),
      ),
    );
    await other.close();
    const stored = results.flatMap((one, at) => (one.ok && one.value === "stored" ? [at] : []));
    expect(results.filter((one) => one.ok)).toHaveLength(8);
    expect(stored).toHaveLength(1);
    const into = new Uint8Array(200_000);
    expect(await store.get("v1/race", 0, into, LIMITS)).toMatchObject({ ok: true });
    expect(Buffer.compare(into, bytesOf(200_000, stored[0] as number))).toBe(0);
  });

  test("a missing object is missing to get, head and delete", async () => {
    const into = new Uint8Array(4);
    expect(await store.get("v1/none", 0, into, LIMITS)).toMatchObject({ fault: "missing" });
    expect(await store.head("v1/none", LIMITS)).toMatchObject({ fault: "missing" });
    expect(await store.delete("v1/none", LIMITS)).toMatchObject({ ok: true });
  });

  test("a range beyond the end is short and leaves no half answer for a success", async () => {
    await store.put("v1/short", bytesOf(100, 1), LIMITS);
    for (const from of [50, 100, 1_000]) {
      const into = new Uint8Array(64);
      expect(await store.get("v1/short", from, into, LIMITS)).toMatchObject({ fault: "short" });
    }
  });

  test("head tells length and age", async () => {
    await store.put("v1/head", bytesOf(123, 1), LIMITS);
    const found = await store.head("v1/head", LIMITS);
    if (!found.ok) throw new Error(found.message);
    expect(found.value.bytes).toBe(123);
    expect(Math.abs(found.value.modifiedMs - Date.now())).toBeLessThan(120_000);
  });

  test("list pages through a prefix and nothing else; deleted objects are gone", async () => {
    const names = Array.from({ length: 230 }, (_, at) => `v1/list/${String(at).padStart(4, "0")}`);
    for (const name of names) await store.put(name, bytesOf(5, 1), LIMITS);
    await store.put("v1/other", bytesOf(5, 1), LIMITS);
    const found = await listed(store, "v1/list/");
    expect(found.map((one) => one.name)).toEqual(names);
    expect(found.every((one) => one.bytes === 5 && one.modifiedMs > 0)).toBe(true);
    expect(await store.delete("v1/list/0007", LIMITS)).toMatchObject({ ok: true });
    expect(await listed(store, "v1/list/")).toHaveLength(229);
  });

  test("check finds the store reachable", async () => {
    expect(await store.check(LIMITS)).toEqual({ ok: true, value: "reachable" });
  });

  test("a call whose signal has fired is cancelled and stores nothing", async () => {
    const signal = AbortSignal.abort();
    const limits = { deadlineMs: 1_000, signal };
    expect(await store.put("v1/cancelled", bytesOf(5, 1), limits)).toMatchObject({
      fault: "cancelled",
    });
    expect(await store.get("v1/cancelled", 0, new Uint8Array(1), limits)).toMatchObject({
      fault: "cancelled",
    });
    expect(await store.head("v1/cancelled", LIMITS)).toMatchObject({ fault: "missing" });
  });
}
