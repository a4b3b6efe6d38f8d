import { afterEach, describe, expect, test } from "vitest";
import { AgeHeap } from "../../src/ledger/heap.ts";
import { LOG_KIND } from "../../src/ledger/log.ts";
import { MOVE_WORDS } from "../../src/ledger/resize.ts";
import { classBytes } from "../../src/ledger/slots.ts";
import { hashKey, RECORD_WORDS, Table } from "../../src/ledger/table.ts";
import { NO_SLOT, STATE, TIER } from "../../src/ledger/types.ts";
import { LedgerView } from "../../src/ledger/view.ts";
import { random } from "./forest.ts";
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

describe("a slab whose last block has left", () => {
  test("is given to another class at once when that needs one", () => {
    const s = small();
    const { ledger } = s;
    s.store("abc");
    const tier = ledger.core.tier(TIER.DRAM);
    Object.assign(tier.options, { highWatermark: 0, lowWatermark: 0 });
    expect(ledger.evictToWatermark(TIER.DRAM)).toBe(3);
    expect(tier.slots.slabsFree).toBe(0);
    const other = ledger.addNamespace({
      keyWords: KEY_WORDS,
      shards: 1,
      chained: true,
      payloadBytes: 128,
      tenant: 0,
    });
    const at = { blocks: new Uint32Array(1), statuses: new Uint8Array(1) };
    const words = new Uint32Array(KEY_WORDS).fill(3);
    const taken = ledger.reserve(other, 0, words, 0, 0, 1, 0, at.statuses, at.blocks);
    expect(taken.wanted).toBe(1);
    ledger.fillAbort(at.blocks[0]!, TIER.DRAM, 0);
  });
});

describe("record table", () => {
  test("holds what a Map holds over random insertions and removals of colliding keys", () => {
    const next = random(5);
    const table = new Table(64, 2, 1);
    table.keyWords.fill(4);
    const map = new Map<string, number>();
    for (let step = 0; step < 20_000; step += 1) {
      // Few distinct tails: long probe sequences, equal hashes in several namespaces.
      const words = new Uint32Array([next() % 3, next() % 2, next() % 4, next() % 3]);
      const namespace = next() % 2;
      const name = `${namespace}/${words.join(",")}`;
      const block = table.find(namespace, 4, words, 0);
      expect(block).toBe(map.get(name) ?? NO_BLOCK);
      if (block === NO_BLOCK && table.free > 0) {
        map.set(name, table.insert(namespace, 4, words, 0, NO_BLOCK, 1));
      } else if (block !== NO_BLOCK) {
        table.remove(block);
        table.recycle(block);
        map.delete(name);
      }
      expect(table.used).toBe(map.size);
    }
  });

  test("costs 96 bytes a record and at most 9 bytes of index", () => {
    const table = new Table(1_000_000, 1, 0);
    expect(table.records.length).toBe(1_000_000 * RECORD_WORDS);
    expect(table.bytes / 1_000_000).toBeLessThan(105);
  });

  test("the hash spreads keys that differ in one bit, and separates namespaces", () => {
    const seen = new Set<number>();
    for (let bit = 0; bit < 32; bit += 1) {
      seen.add(hashKey(1 << bit, 0, 0, 0) & 0xffff);
      seen.add(hashKey(0, 1 << bit, 0, 0) & 0xffff);
      seen.add(hashKey(0, 0, bit, 0) & 0xffff);
    }
    expect(seen.size).toBeGreaterThan(90);
  });
});

describe("age heap", () => {
  test("gives entries back in order of rank", () => {
    const next = random(9);
    const heap = new AgeHeap();
    const ranks: number[] = [];
    for (let i = 0; i < 500; i += 1) {
      const rank = next();
      ranks.push(rank);
      heap.push(rank, i);
    }
    heap.sinkTop(0xffff_fff0);
    ranks.sort((a, b) => a - b);
    ranks[0] = 0xffff_fff0;
    ranks.sort((a, b) => a - b);
    for (const rank of ranks) {
      expect(heap.rankAt(0)).toBe(rank);
      heap.pop();
    }
    expect(heap.length).toBe(0);
  });

  test("a rebuild drops entries and keeps order under new ranks", () => {
    const heap = new AgeHeap();
    for (let i = 0; i < 100; i += 1) heap.push(i, i);
    heap.rebuild(
      (block) => block % 2 === 0,
      (rank) => 1000 - rank,
    );
    const order: number[] = [];
    for (; heap.length > 0; heap.pop()) order.push(heap.blockAt(0));
    expect(order).toEqual(Array.from({ length: 50 }, (_, i) => 98 - 2 * i));
  });
});

describe("slots", () => {
  test("size classes are multiples of 64 B up to 4 KiB and of 4 KiB above", () => {
    expect([1, 64, 65, 4096, 4097, 2 ** 21].map(classBytes)).toEqual([
      64,
      64,
      128,
      4096,
      8192,
      2 ** 21,
    ]);
  });

  test("two classes share no slab, and one that comes late takes a slab from the other", () => {
    const s = small({ store: new FakeStore(2, 3) });
    s.store("abcdef");
    const big = s.ledger.addNamespace({
      keyWords: KEY_WORDS,
      shards: 1,
      chained: true,
      payloadBytes: 5000,
      tenant: 1,
    });
    const statuses = new Uint8Array(1);
    const blocks = new Uint32Array(1);
    const words = s.words("q");
    const offer = (): number => {
      s.ledger.reserve(big, 0, words, 0, 0, 1, 0, statuses, blocks);
      return statuses[0]!;
    };
    expect(offer()).toBe(2);
    expect([...s.dram.slabs.values()].sort((a, b) => a - b)).toEqual([64, 8192]);
    s.ledger.fillStart(blocks[0]!, 0, 0);
    s.ledger.fillEnd(blocks[0]!, 0, 0, true);
    expect(s.hit("abcdef")).toBe(3);
    expect(s.ledger.core.tenants.bytesOf(1, 0)).toBe(8192);
    expect(s.ledger.core.tenants.blocksOf(0, 0)).toBe(3);
  });

  test("a class whose slabs are all leased answers full to the other class and loses nothing", () => {
    const s = small({ store: new FakeStore(1, 3) });
    s.store("abc");
    s.lease(1, "abc");
    const big = s.ledger.addNamespace({
      keyWords: KEY_WORDS,
      shards: 1,
      chained: true,
      payloadBytes: 5000,
      tenant: 1,
    });
    const statuses = new Uint8Array(1);
    s.ledger.reserve(big, 0, s.words("q"), 0, 0, 1, 0, statuses, new Uint32Array(1));
    expect(statuses[0]).toBe(3);
    expect(s.hit("abc")).toBe(3);
  });

  test("watermarks evict from above the high to the low one", () => {
    const s = small({ store: new FakeStore(1, 10, 0, [0.8, 0.5]) });
    s.store("abcdefgh");
    expect(s.ledger.evictToWatermark(0)).toBe(0);
    s.store("i");
    expect(s.ledger.evictToWatermark(0)).toBe(4);
    expect(s.ledger.core.tier(0).slots.slotsUsed).toBe(5);
    expect(s.hit("abcdefgh")).toBe(4);
  });

  test("making room ahead of need loses no block that has no copy below", () => {
    const s = small({ store: new FakeStore(1, 10, 0, [0.8, 0.5]), nvme: 8 });
    for (const root of "abcdefghi") s.store(root);
    expect(s.ledger.evictToWatermark(0, true)).toBe(0);
    for (const root of "ab") {
      expect(s.ledger.copyBegin(s.block(root), 0, 1)).toBe(true);
      s.ledger.copyEnd(s.block(root), 0, 1, true);
    }
    expect(s.ledger.evictToWatermark(0, true)).toBe(2);
    expect(s.hit("a") + s.hit("b") + s.hit("c")).toBe(3);
    expect(s.ledger.core.tier(0).evictedUnbacked).toBe(0);
    expect(s.ledger.core.tier(0).slots.slotsUsed).toBe(7);
  });

  test("a cap in blocks holds however many slots there are", () => {
    const s = small({ store: new FakeStore(4, 8, 3) });
    s.store("abc");
    s.store("xy");
    expect(s.ledger.core.tier(0).blocks).toBe(3);
    expect([s.hit("abc"), s.hit("xy")]).toEqual([1, 2]);
  });
});

describe("growing and shrinking", () => {
  test("slabs added are used before anything is evicted", () => {
    const s = small({ store: new FakeStore(1, 3) });
    s.store("abc");
    s.ledger.growTier(0, 2);
    expect(s.store("xyz")).toBe("www");
    expect(s.hit("abc")).toBe(3);
  });

  test("a slab is emptied by moves: pinned slots wait, blocks keep their place in the tree", () => {
    const s = small({ store: new FakeStore(3, 3) });
    s.store("abcdef");
    s.ledger.pin(s.block("abcd"), 0);
    const moves = new Uint32Array(MOVE_WORDS * 8);
    const slab = s.ledger.slotOf(s.block("abcd"), 0, 0) >>> 18;
    expect(s.ledger.planMoves(0, slab, moves, 8)).toBe(2);
    for (let i = 0; i < 2; i += 1) {
      const [from, to, block, shard] = moves.subarray(i * MOVE_WORDS) as unknown as number[];
      s.ledger.moved(0, block!, shard!, from!, to!, true);
      expect(s.ledger.slotOf(block!, 0, 0)).toBe(to);
    }
    expect(s.ledger.slabEmpty(0, slab)).toBe(false);
    s.ledger.unpin(s.block("abcd"), 0);
    expect(s.ledger.planMoves(0, slab, moves, 8)).toBe(1);
    s.ledger.moved(0, moves[2]!, moves[3]!, moves[0]!, moves[1]!, true);
    expect(s.ledger.slabEmpty(0, slab)).toBe(true);
    expect(s.hit("abcdef")).toBe(6);
  });

  test("a failed move leaves the block where it was", () => {
    const s = small({ store: new FakeStore(2, 2) });
    s.store("ab");
    const moves = new Uint32Array(MOVE_WORDS * 2);
    const slab = s.ledger.slotOf(s.block("a"), 0, 0) >>> 18;
    expect(s.ledger.planMoves(0, slab, moves, 2)).toBe(2);
    for (let i = 0; i < 2; i += 1) {
      const [from, to, block] = moves.subarray(i * MOVE_WORDS) as unknown as number[];
      s.ledger.moved(0, block!, 0, from!, to!, false);
      expect(s.ledger.slotOf(block!, 0, 0)).toBe(from);
    }
    expect(s.hit("ab")).toBe(2);
  });
});

describe("what other threads see", () => {
  test("the log tells each copy that came and went, parents before children, with parent keys", () => {
    const s = small({ dram: 2 });
    const view = new LedgerView(s.ledger.share());
    s.store("ab");
    s.store("x");
    const entries = view.readLog(1, 100)!;
    expect(entries.map((entry) => entry.kind)).toEqual([
      LOG_KIND.STORED,
      LOG_KIND.STORED,
      LOG_KIND.REMOVED,
      LOG_KIND.STORED,
    ]);
    expect([...entries[1]!.parent]).toEqual([...s.words("a")]);
    expect([...entries[2]!.key]).toEqual([...s.words("ab").subarray(8)]);
    expect(entries.map((entry) => entry.sequence)).toEqual([1, 2, 3, 4]);
    expect(view.nextSequence).toBe(5);
  });

  test("a reader that was lapped is told so", () => {
    const s = small({ dram: 1 });
    const view = new LedgerView(s.ledger.share());
    for (let i = 0; i < 300; i += 1) s.store(String.fromCharCode(97 + (i % 20)));
    expect(view.readLog(1, 10)).toBeUndefined();
    expect(view.readLog(view.firstSequence, 1_000)).toHaveLength(256 - 64);
  });

  test("a key that is not visible is not located", () => {
    const s = small();
    const view = new LedgerView(s.ledger.share());
    s.reserve("a");
    expect(view.locate(s.namespace, s.words("a"), 0, 8, 8)).toEqual([]);
    s.start("a");
    s.end("a");
    expect(view.locate(s.namespace, s.words("a"), 6, 2, 8)).toMatchObject([{ depth: 1, tiers: 1 }]);
    expect(view.locate(s.namespace + 1, s.words("a"), 0, 8, 8)).toEqual([]);
  });
});

describe("watches and hints", () => {
  test("a watch settles once: at once for a visible block, else when its fate is known", () => {
    const s = small();
    s.store("a");
    s.ledger.watch(s.block("a"));
    s.reserve("ab", 1);
    s.ledger.watch(s.block("ab"));
    s.start("ab");
    expect(s.settled).toEqual([["a", true]]);
    s.end("ab");
    expect(s.settled).toEqual([
      ["a", true],
      ["ab", true],
    ]);
  });

  test("drop lets a leaf go at once but never a leased or inner block; retain counts as a use", () => {
    const s = small({ dram: 2 });
    s.store("ab");
    expect(s.ledger.hint(s.block("a"), { kind: "drop" }).verdict).toBe("accepted");
    expect(s.hit("ab")).toBe(2);
    s.lease(1, "ab");
    s.ledger.hint(s.block("ab"), { kind: "drop" });
    expect(s.hit("ab")).toBe(2);
    s.ledger.leaseClose(1);
    s.ledger.hint(s.block("ab"), { kind: "sessionEnd" });
    expect(s.hit("ab")).toBe(1);
    s.store("x");
    expect(s.ledger.hint(s.block("a"), { kind: "retain" }).verdict).toBe("clipped");
    s.store("y");
    expect([s.hit("a"), s.hit("x")]).toEqual([1, 0]);
    expect(s.ledger.hint(s.block("a"), { kind: "priority" }).verdict).toBe("refused");
  });
});

test("logical time that runs out is halved and the order of leaving stays", () => {
  const s = small({ dram: 3 });
  for (const chain of ["a", "b", "c"]) s.store(chain);
  s.ledger.core.tick = 0xffff_fff0 - 1;
  s.ledger.touch(s.block("a"));
  s.ledger.touch(s.block("b"));
  expect(s.ledger.core.tick).toBeLessThan(2 ** 31 + 4);
  s.ledger.audit();
  s.store("x");
  expect([s.hit("a"), s.hit("b"), s.hit("c")]).toEqual([1, 1, 0]);
  s.store("y");
  expect([s.hit("a"), s.hit("b")]).toEqual([0, 1]);
});

test("records that only an age index still names are given back when the table needs them", () => {
  const s = small({ blocksMax: 3, dram: 3 });
  for (const chain of ["a", "b", "c"]) s.store(chain);
  for (const chain of ["a", "b", "c"]) s.ledger.corrupt(s.block(chain), 0);
  expect(s.ledger.core.table.zombies).toBe(3);
  expect(s.store("xyz")).toBe("www");
  expect(s.ledger.core.table.zombies).toBe(0);
  expect(s.ledger.slotOf(s.block("x"), 0, 1)).toBe(NO_SLOT);
  expect(s.ledger.stateOf(s.block("x"), 0)).toBe(STATE.VISIBLE);
});
