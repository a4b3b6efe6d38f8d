/** Staging memory, the existence cache and the search for a prefix, each by itself. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { LIMITS } from "../../../src/limits.ts";
import { AskFirst, Existence } from "../../../tiers/remote/existence.ts";
import { healthOf, Pace } from "../../../tiers/remote/health.ts";
import { searchPrefix } from "../../../tiers/remote/prefix.ts";
import { type StagingLease, StagingPool } from "../../../tiers/remote/staging.ts";
import { PRIORITY, type Priority } from "../../../tiers/remote/types.ts";

const KIB = 1_024;
const LONG = { deadlineMs: 60_000 };

async function must(pool: StagingPool, bytes: number, priority: Priority): Promise<StagingLease> {
  const lease = await pool.acquire(bytes, priority, LONG);
  if (!lease.ok) throw new Error(lease.message);
  return lease.value;
}

describe("the staging pool", () => {
  test("leases in use never overlap, whatever comes and goes", async () => {
    const sizes = fc.record({
      bytes: fc.integer({ min: 1, max: 40 * KIB }),
      priority: fc.constantFrom(PRIORITY.DEMAND, PRIORITY.PREFETCH),
      leave: fc.nat(),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(sizes, { maxLength: 60 }), async (steps) => {
        const pool = new StagingPool(new Uint8Array(128 * KIB), 8);
        const held: StagingLease[] = [];
        for (const { bytes, priority, leave } of steps) {
          if (pool.free(bytes, priority)) held.push(await must(pool, bytes, priority));
          else if (held.length > 0) held.splice(leave % held.length, 1)[0]?.release();
          const spans = held
            .map((one) => [one.offsetBytes, one.offsetBytes + one.bytes.length] as const)
            .toSorted((a, b) => a[0] - b[0]);
          for (const [at, span] of spans.entries()) {
            expect(span[0] % 4_096).toBe(0);
            expect(span[0]).toBeGreaterThanOrEqual(spans[at - 1]?.[1] ?? 0);
          }
        }
        for (const one of held) one.release();
        expect([pool.usedBytes, pool.transfers, pool.waiting]).toEqual([0, 0, 0]);
      }),
      { numRuns: 60 },
    );
  });

  test("demand goes before prefetch before upload, in order of arrival", async () => {
    const pool = new StagingPool(new Uint8Array(64 * KIB), 1);
    const first = await must(pool, 4_096, PRIORITY.DEMAND);
    const order: string[] = [];
    const wait = async (name: string, priority: Priority): Promise<void> => {
      const lease = await must(pool, 4_096, priority);
      order.push(name);
      lease.release();
    };
    const all = [
      wait("upload", PRIORITY.UPLOAD),
      wait("prefetch", PRIORITY.PREFETCH),
      wait("demand 1", PRIORITY.DEMAND),
      wait("demand 2", PRIORITY.DEMAND),
    ];
    first.release();
    await Promise.all(all);
    expect(order).toEqual(["demand 1", "demand 2", "prefetch", "upload"]);
  });

  test("uploads leave half of the memory and of the transfers to loads", async () => {
    const pool = new StagingPool(new Uint8Array(64 * KIB), 8);
    await must(pool, 16 * KIB, PRIORITY.UPLOAD);
    await must(pool, 16 * KIB, PRIORITY.UPLOAD);
    expect(pool.free(4 * KIB, PRIORITY.UPLOAD)).toBe(false);
    expect(pool.free(32 * KIB, PRIORITY.DEMAND)).toBe(true);
    const few = new StagingPool(new Uint8Array(64 * KIB), 4);
    await must(few, 1, PRIORITY.UPLOAD);
    await must(few, 1, PRIORITY.UPLOAD);
    expect(few.free(1, PRIORITY.UPLOAD)).toBe(false);
    expect(few.free(1, PRIORITY.PREFETCH)).toBe(true);
  });

  test("nobody overtakes a large request that waits, so that it is served in the end", async () => {
    const pool = new StagingPool(new Uint8Array(64 * KIB), 8);
    const small = await must(pool, 4 * KIB, PRIORITY.DEMAND);
    const large = pool.acquire(64 * KIB, PRIORITY.DEMAND, LONG);
    expect(pool.free(4 * KIB, PRIORITY.DEMAND)).toBe(false);
    small.release();
    expect(await large).toMatchObject({ ok: true });
  });

  test("what can never fit, what waits too long and what is cancelled is refused, not kept", async () => {
    const pool = new StagingPool(new Uint8Array(64 * KIB), 1);
    expect(await pool.acquire(65 * KIB, PRIORITY.DEMAND, LONG)).toMatchObject({ fault: "busy" });
    const held = await must(pool, 1, PRIORITY.DEMAND);
    expect(await pool.acquire(1, PRIORITY.DEMAND, { deadlineMs: 1 })).toMatchObject({
      fault: "timeout",
    });
    const abort = new AbortController();
    const cancelled = pool.acquire(1, PRIORITY.DEMAND, { deadlineMs: 9_999, signal: abort.signal });
    abort.abort();
    expect(await cancelled).toMatchObject({ fault: "cancelled" });
    expect(pool.waiting).toBe(0);
    held.release();
    expect(pool.free(64 * KIB, PRIORITY.DEMAND)).toBe(true);
  });

  test("as many uploads as the bound says may wait, and no more", async () => {
    const pool = new StagingPool(new Uint8Array(64 * KIB), 1);
    const held = await must(pool, 1, PRIORITY.UPLOAD);
    const waiting = Array.from({ length: LIMITS.remoteUploadsWaitingMax }, async () => {
      (await must(pool, 1, PRIORITY.UPLOAD)).release();
    });
    expect(await pool.acquire(1, PRIORITY.UPLOAD, LONG)).toMatchObject({ fault: "busy" });
    held.release();
    await Promise.all(waiting);
    expect(pool.usedBytes).toBe(0);
  });
});

describe("the existence cache", () => {
  const OPTIONS = { entriesMax: 100, presentMs: 1_000, absentMs: 10, probesMax: 2 };

  test("remembers yes and no, each for its own time", async () => {
    const at = { now: 1 };
    const asked: string[] = [];
    const cache = new Existence(
      OPTIONS,
      (name) => {
        asked.push(name);
        return Promise.resolve(name === "yes");
      },
      () => at.now,
    );
    expect(await cache.resolve("yes")).toBe(true);
    expect(await cache.resolve("no")).toBe(false);
    expect([cache.known("yes"), cache.known("no")]).toEqual([true, false]);
    at.now = 100;
    expect([cache.known("yes"), cache.known("no")]).toEqual([true, undefined]);
    at.now = 2_000;
    expect(cache.known("yes")).toBeUndefined();
    expect(asked).toEqual(["yes", "no"]);
  });

  test("asks once for the same name, and drops what exceeds its bound", async () => {
    const answer: ((present: boolean) => void)[] = [];
    const cache = new Existence(
      OPTIONS,
      () => new Promise<boolean>((resolve) => answer.push(resolve)),
      () => 1,
    );
    const asked = ["a", "a", "b", "c"].map((name) => cache.resolve(name));
    expect(answer).toHaveLength(2);
    for (const one of answer) one(true);
    expect(await Promise.all(asked)).toEqual([true, true, true, undefined]);
    expect(cache.dropped).toBe(1);
  });

  test("no answer is not an absence", async () => {
    const cache = new Existence(
      OPTIONS,
      () => Promise.resolve(undefined),
      () => 1,
    );
    expect(await cache.resolve("a")).toBeUndefined();
    expect(cache.known("a")).toBeUndefined();
  });

  test("an object under quarantine is absent until a good one may take its name", async () => {
    const cache = new Existence(
      OPTIONS,
      () => Promise.resolve(true),
      () => 1,
    );
    cache.quarantine("a");
    cache.learn("a", true);
    expect([cache.known("a"), cache.isQuarantined("a")]).toEqual([false, true]);
    expect(await cache.resolve("a")).toBe(false);
    cache.pardon("a");
    expect([cache.known("a"), cache.isQuarantined("a")]).toEqual([false, false]);
    cache.learn("a", true);
    expect(cache.known("a")).toBe(true);
  });

  test("stays within its bound", () => {
    const cache = new Existence(
      OPTIONS,
      () => Promise.resolve(true),
      () => 1,
    );
    for (let at = 0; at < 1_000; at += 1) cache.learn(`${at}`, true);
    for (let at = 0; at < 9_999; at += 1) cache.quarantine(`${at}`);
    expect(cache.entries).toBeLessThanOrEqual(100);
    expect(cache.quarantined).toBeLessThanOrEqual(LIMITS.quarantinedObjectsMax);
  });
});

describe("an upload asks first whether its object is there", () => {
  const asked = (one: AskFirst, uploads: number): number =>
    Array.from({ length: uploads }, () => one.worthwhile()).filter(Boolean).length;

  test("now and then where it never is, always where it often is, and changes its mind", () => {
    const one = new AskFirst();
    expect(asked(one, 160)).toBe(10);
    one.learn(true);
    expect(asked(one, 160)).toBe(160);
    for (let upload = 0; upload < 40; upload += 1) one.learn(false);
    expect(asked(one, 160)).toBe(10);
  });
});

describe("the search for a prefix", () => {
  test("finds every prefix with few questions, from any beginning", () => {
    for (let count = 0; count <= 70; count += 1) {
      for (let present = 0; present <= count; present += 1) {
        for (const first of [0, Math.floor(present / 2), present]) {
          const asked = new Set<number>();
          const known = new Set<number>();
          for (;;) {
            const found = searchPrefix(count, first, (chunk) => {
              if (!known.has(chunk)) return "unknown";
              return chunk < present ? "present" : "absent";
            });
            if (found.ask === undefined) {
              expect(found.chunks).toBe(Math.max(first, present));
              break;
            }
            // What is answered before all is known never exceeds the truth.
            expect(found.chunks).toBeLessThanOrEqual(Math.max(first, present));
            expect(asked.has(found.ask)).toBe(false);
            asked.add(found.ask);
            known.add(found.ask);
          }
          expect(asked.size).toBeLessThanOrEqual(2 + 2 * Math.ceil(Math.log2(count + 1)));
        }
      }
    }
  });

  test("needs one question where nothing is stored and two where everything is", () => {
    const asked: number[] = [];
    const all = searchPrefix(4_096, 0, (chunk) => {
      asked.push(chunk);
      return "present";
    });
    expect([all.chunks, asked]).toEqual([4_096, [0, 4_095]]);
    asked.length = 0;
    const none = searchPrefix(4_096, 7, (chunk) => {
      asked.push(chunk);
      return "absent";
    });
    expect([none.chunks, asked]).toEqual([7, [7]]);
  });
});

describe("the store's health", () => {
  test("is fenced by the breaker, read-only by its writes, slow by the pace, else ok", () => {
    const rows = (["closed", "open", "halfOpen"] as const).map((state) =>
      [false, true].flatMap((readOnly) =>
        [1, 10, 11].map((pace) => healthOf(state, readOnly, pace, 10)),
      ),
    );
    const fenced = new Array(6).fill("fenced");
    const closed = ["ok", "ok", "slow", "readOnly", "readOnly", "readOnly"];
    expect(rows).toEqual([closed, fenced, fenced]);
  });

  test("an idle store's pace fades, a busy one's does not", () => {
    const pace = new Pace();
    expect(pace.bytesPerSecond).toBe(0);
    pace.add(2 ** 21, 200);
    expect([pace.msPerMiB, pace.bytesPerSecond]).toEqual([100, 2 ** 20 * 10]);
    pace.fade();
    expect(pace.msPerMiB).toBe(100);
    pace.fade();
    expect(pace.msPerMiB).toBe(50);
  });
});
