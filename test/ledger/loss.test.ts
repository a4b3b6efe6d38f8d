import { afterEach, describe, expect, test } from "vitest";
import { LOG_KIND } from "../../src/ledger/log.ts";
import { STATE } from "../../src/ledger/types.ts";
import { LedgerView } from "../../src/ledger/view.ts";
import { KEY_WORDS, NO_BLOCK, Small, type SmallOptions } from "./small.ts";
import { FakeStore } from "./store.ts";

let made: Small[] = [];
function small(options: SmallOptions = {}): Small {
  const s = new Small(options);
  made.push(s);
  return s;
}
afterEach(() => {
  for (const s of made) s.ledger.audit();
  made = [];
});

describe("rule 8: holes", () => {
  test("look-ups are cut at a hole at once, before any scan", () => {
    const s = small();
    s.store("abcde");
    s.ledger.corrupt(s.block("abc"), 0);
    expect(s.ledger.isVisible(s.block("abcd"))).toBe(true);
    expect(s.hit("abcde")).toBe(2);
    expect(s.hitLinear("abcde")).toBe(2);
    s.sweepAll();
    expect(s.ledger.isVisible(s.block("abcd"))).toBe(false);
    expect(s.ledger.stateOf(s.block("abcde"), 0)).toBe(STATE.ORPHAN);
  });

  test("holes, orphans and aborted blocks are counted", () => {
    const s = small();
    s.store("abcde");
    s.ledger.corrupt(s.block("ab"), 0);
    s.sweepAll();
    s.reserve("xyz");
    s.ledger.fillAbort(s.block("xy"), 0, 0);
    const { holesMade, orphaned, aborted } = s.ledger.core;
    expect({ holesMade, orphaned, aborted }).toEqual({ holesMade: 1, orphaned: 3, aborted: 2 });
  });

  test("a leaf that is lost leaves no hole", () => {
    const s = small();
    s.store("ab");
    s.ledger.corrupt(s.block("ab"), 0);
    expect(s.ledger.holeCount).toBe(0);
    expect(s.block("ab")).toBe(NO_BLOCK);
  });

  test("a hole that is refilled waits until the scan ended, then shows and takes its orphans back", () => {
    const s = small();
    s.store("abcd");
    s.ledger.corrupt(s.block("ab"), 0);
    expect(s.store("ab", 1)).toBe("w");
    expect(s.ledger.stateOf(s.block("ab"), 0)).toBe(STATE.LANDED);
    expect(s.hit("abcd")).toBe(1);
    s.sweepAll();
    expect(s.ledger.holeCount).toBe(0);
    expect(s.hit("abcd")).toBe(4);
  });

  test("orphans are the first to be evicted, from the deepest up", () => {
    const s = small({ dram: 5 });
    s.store("abcd");
    s.ledger.corrupt(s.block("ab"), 0);
    s.sweepAll();
    s.store("xyz");
    expect(s.hit("xyz")).toBe(3);
    expect(s.ledger.core.tier(0).evictedOrphans).toBe(1);
    expect(s.store("ab", 1)).toBe("w");
    expect(s.hit("abcd")).toBe(2);
    s.ledger.hint(s.block("xyz"), { kind: "drop" });
    expect(s.reserve("abc", 2)).toBe("w");
    s.ledger.fillAbort(s.block("abc"), 0, 0);
  });

  test("more holes than the list takes make look-ups walk, with the same answers", () => {
    const s = small({ dram: 32, holesMax: 1 });
    for (const chain of ["abcd", "wxyz", "12345"]) s.store(chain);
    for (const chain of ["ab", "wxy", "1234"]) s.ledger.corrupt(s.block(chain), 0);
    expect(s.ledger.holeCount).toBe(3);
    expect([s.hit("abcd"), s.hit("wxyz"), s.hit("12345")]).toEqual([1, 2, 3]);
    s.sweepAll();
    expect([s.hit("abcd"), s.hit("wxyz"), s.hit("12345")]).toEqual([1, 2, 3]);
  });

  test("a fenced tier loses its copies and keeps what stands elsewhere", () => {
    const s = small({ nvme: 8 });
    s.store("abc");
    s.copy("abc", 0, 1);
    s.store("xy");
    s.lease(1, "xy");
    expect(s.ledger.loseTier(0)).toBe(5);
    expect(s.reduced).toEqual([[1, 0]]);
    expect(s.hit("abc")).toBe(3);
    expect(s.hit("xy")).toBe(0);
    s.sweepAll();
  });

  test("a copy that proves wrong while it is read keeps its slot until the reader ends", () => {
    const s = small();
    s.store("a");
    const block = s.block("a");
    s.ledger.pin(block, 0);
    s.ledger.corrupt(block, 0);
    expect(s.ledger.stateOf(block, 0)).toBe(STATE.QUARANTINED);
    expect(s.hit("a")).toBe(0);
    expect(s.reserve("a")).toBe("f");
    s.ledger.unpin(block, 0);
    expect(s.store("a")).toBe("w");
  });
});

describe("rule 10: recovery", () => {
  interface Offered {
    chain: string;
    slot: number;
    generation?: number;
    lastAccess?: number;
    shard?: number;
  }

  function recover(s: Small, offered: readonly Offered[], now?: number): boolean[] {
    s.dram.slabs.set(0, 64);
    s.ledger.recoverSlab(0, 0, 64);
    const taken = offered.map(({ chain, slot, generation = 1, lastAccess = 1, shard = 0 }) => {
      const words = s.words(chain);
      const at = (chain.length - 1) * KEY_WORDS;
      const block = {
        namespace: s.namespace,
        depth: chain.length,
        shard,
        slot,
        generation,
        lastAccess,
      };
      return s.ledger.recover(block, 0, words, at, at - KEY_WORDS);
    });
    s.ledger.recoverEnd(now);
    return taken;
  }

  test("chains come back visible, orphans of a missing parent are dropped", () => {
    const s = small();
    const taken = recover(s, [
      { chain: "a", slot: 0 },
      { chain: "ab", slot: 1 },
      { chain: "xy", slot: 2 },
      { chain: "abc", slot: 5 },
    ]);
    expect(taken).toEqual([true, true, false, true]);
    expect(s.hit("abc")).toBe(3);
    expect(s.dram.freed).toEqual([2]);
    expect(s.store("xy")).toBe("ww");
  });

  test("the log tells of copies that came back, of more than it holds the last, the lowest tier's first", () => {
    const letters = Array.from({ length: 250 }, (_, at) => String.fromCharCode(256 + at)).join("");
    for (const length of [3, 250]) {
      const s = small({ dram: 256, nvme: 256, blocksMax: 256 });
      for (const tier of [1, 0]) {
        s.ledger.recoverSlab(tier, 0, 64);
        for (let depth = 1; depth <= length; depth += 1) {
          const words = s.words(letters.slice(0, depth));
          const at = (depth - 1) * KEY_WORDS;
          const { namespace } = s;
          const block = {
            namespace,
            depth,
            shard: 0,
            slot: depth - 1,
            generation: 1,
            lastAccess: 1,
          };
          expect(s.ledger.recover(block, tier, words, at, at - KEY_WORDS)).toBe(true);
        }
      }
      s.ledger.recoverEnd();
      const view = new LedgerView(s.ledger.share());
      expect(view.nextSequence).toBe(2 * length + 1);
      const told = view.readLog(view.firstSequence, 1_000)!;
      const all = [1, 0].flatMap((tier) =>
        Array.from({ length }, (_, at) => ({ kind: LOG_KIND.STORED, tier, depth: at + 1 })),
      );
      const kept = Math.min(all.length, s.ledger.core.log.readable);
      expect(told).toMatchObject(all.slice(-kept));
      expect(told).toHaveLength(kept);
      expect(view.readLog(1, 1) === undefined).toBe(kept < all.length);
    }
  });

  test("of two headers of one key the higher generation wins and the other slot is freed", () => {
    const s = small();
    const taken = recover(s, [
      { chain: "a", slot: 3, generation: 9 },
      { chain: "a", slot: 1, generation: 4 },
    ]);
    expect(taken).toEqual([true, false]);
    expect(s.ledger.slotOf(s.block("a"), 0, 0)).toBe(3);
    expect(s.dram.freed).toEqual([1]);
  });

  test("a block that lacks a shard is dropped, and what stood below it is not visible", () => {
    const s = small({ shards: 2 });
    recover(s, [
      { chain: "a", slot: 0, shard: 0 },
      { chain: "a", slot: 1, shard: 1 },
      { chain: "ab", slot: 2, shard: 0 },
      { chain: "abc", slot: 3, shard: 0 },
      { chain: "abc", slot: 4, shard: 1 },
    ]);
    expect(s.hit("abc")).toBe(1);
    expect(s.ledger.stateOf(s.block("abc"), 0)).toBe(STATE.ORPHAN);
    for (const shard of [0, 1]) expect(s.reserve("ab", 1, shard)).toBe("w");
    for (const shard of [0, 1]) s.start("ab", shard);
    for (const shard of [0, 1]) s.end("ab", true, shard);
    expect(s.hit("abc")).toBe(3);
  });

  test("last access decides who leaves first afterwards", () => {
    const s = small({ store: new FakeStore(1, 4) });
    recover(s, [
      { chain: "a", slot: 0, lastAccess: 1_700_000_000_300 },
      { chain: "b", slot: 1, lastAccess: 1_700_000_000_100 },
      { chain: "c", slot: 2, lastAccess: 1_700_000_000_200 },
    ]);
    s.store("xy");
    expect([s.hit("a"), s.hit("b"), s.hit("c")]).toEqual([1, 0, 1]);
    s.store("z");
    expect([s.hit("a"), s.hit("c")]).toEqual([1, 0]);
  });

  test("a time that lies in the future, or long ago, leaves the order of the others alone", () => {
    const now = 1_700_000_000_400;
    for (const stray of [Number.MAX_SAFE_INTEGER, 2 ** 64, 0, 1]) {
      const s = small({ store: new FakeStore(1, 4) });
      const offered = [
        { chain: "d", slot: 3, lastAccess: stray },
        { chain: "a", slot: 0, lastAccess: now - 100 },
        { chain: "b", slot: 1, lastAccess: now - 300 },
        { chain: "c", slot: 2, lastAccess: now - 200 },
      ];
      recover(s, offered, now);
      const { ledger } = s;
      const ages = ["b", "c", "a"].map((chain) => ledger.ageOf(s.block(chain), 0));
      expect(ages.toSorted((x, y) => x - y)).toEqual(ages);
      expect(new Set(ages).size).toBe(3);
      expect(ledger.lastAccessOf(s.block("d"), 0)).toBeLessThanOrEqual(now);
      s.store(stray === 0 || stray === 1 ? "xy" : "x");
      expect([s.hit("a"), s.hit("b"), s.hit("c")]).toEqual([1, 0, 1]);
      expect(s.hit("d")).toBe(stray > now ? 1 : 0);
    }
  });

  test("a slot out of range, of a foreign slab or of an unknown namespace is not taken", () => {
    const s = small({ dram: 4 });
    const taken = recover(s, [
      { chain: "a", slot: 7 },
      { chain: "b", slot: 1 << 18 },
      { chain: "c", slot: 0 },
      { chain: "d", slot: 0 },
    ]);
    expect(taken).toEqual([false, false, true, false]);
  });
});

describe("rule 11: unchained namespaces", () => {
  test("blocks have no parents: each is found, leased, touched and evicted on its own", () => {
    const s = small({ dram: 3, chained: false });
    expect(s.store("abc")).toBe("www");
    expect(s.hit("abc")).toBe(3);
    s.ledger.corrupt(s.block("ab"), 0);
    expect(s.ledger.holeCount).toBe(0);
    expect(s.hit("abc")).toBe(1);
    expect(s.isVisible("abc")).toBe(true);
    s.ledger.leaseOpen(1, 1, NO_BLOCK);
    expect(s.ledger.leaseHold(1, s.namespace, s.words("abc"), 0, 3)).toBe(2);
    expect(s.store("xy")).toBe("wf");
    s.ledger.leaseClose(1);
    s.ledger.touchKeys(s.namespace, s.words("a"), 0, 1);
    expect(s.store("12")).toBe("ww");
    expect(s.isVisible("a")).toBe(true);
    expect(s.isVisible("abc")).toBe(false);
  });
});
