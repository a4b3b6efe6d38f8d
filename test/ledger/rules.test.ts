import { afterEach, describe, expect, test } from "vitest";
import { CairnError } from "../../src/errors.ts";
import { STATE } from "../../src/ledger/types.ts";
import { NO_BLOCK, Small, type SmallOptions } from "./small.ts";

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

function errorName(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (error instanceof CairnError) return error.errorName;
    throw error;
  }
  return "none";
}

describe("rule 1: visible means every shard landed and the parent visible", () => {
  test("a block that lands before its parent waits, and both show when the parent lands", () => {
    const s = small();
    expect(s.reserve("abc")).toBe("www");
    for (const chain of ["a", "ab", "abc"]) s.start(chain);
    s.end("abc");
    s.end("ab");
    expect(s.hit("abc")).toBe(0);
    expect(s.ledger.stateOf(s.block("abc"), 0)).toBe(STATE.LANDED);
    s.end("a");
    expect(s.hit("abc")).toBe(3);
  });

  test("a failed fill aborts everything below it that was not visible yet, deepest first", () => {
    const s = small();
    s.store("a");
    s.reserve("abcd", 1);
    for (const chain of ["ab", "abc", "abcd"]) s.ledger.watch(s.block(chain));
    for (const chain of ["ab", "abc"]) s.start(chain);
    s.end("abc");
    s.end("ab", false);
    expect(s.settled).toEqual([
      ["abcd", false],
      ["abc", false],
      ["ab", false],
    ]);
    expect(s.block("ab")).toBe(NO_BLOCK);
    expect(s.hit("abcd")).toBe(1);
    expect(s.ledger.core.tier(0).slots.slotsUsed).toBe(1);
  });

  test("a filling descendant of a failed block drains: its slot stays until its job ends", () => {
    const s = small();
    s.reserve("ab");
    s.start("a");
    s.start("ab");
    const child = s.block("ab");
    s.end("a", false);
    expect(s.ledger.stateOf(child, 0)).toBe(STATE.DRAINING);
    expect(s.reserve("ab")).toBe("wf");
    s.ledger.fillEnd(child, 0, 0, true);
    expect(s.block("ab")).toBe(NO_BLOCK);
    expect(s.ledger.core.tier(0).slots.slotsUsed).toBe(1);
    s.ledger.fillAbort(s.block("a"), 0, 0);
  });

  test("a block of several shards shows when the last shard lands, in any order", () => {
    const s = small({ shards: 3 });
    for (const shard of [2, 0, 1]) {
      expect(s.reserve("a", 0, shard)).toBe("w");
      expect(s.reserve("a", 0, shard)).toBe("n");
    }
    for (const shard of [1, 2]) {
      s.start("a", shard);
      s.end("a", true, shard);
    }
    expect(s.hit("a")).toBe(0);
    s.start("a", 0);
    s.end("a", true, 0);
    expect(s.hit("a")).toBe(1);
    expect(s.reserve("a", 0, 1)).toBe("p");
  });

  test("a shard whose rank never writes takes the block with it when it is given up", () => {
    const s = small({ shards: 2 });
    s.reserve("ab", 0, 0);
    s.reserve("ab", 0, 1);
    s.start("a", 0);
    s.end("a", true, 0);
    s.ledger.fillAbort(s.block("a"), 0, 1);
    expect(s.block("a")).toBe(NO_BLOCK);
    expect(s.block("ab")).toBe(NO_BLOCK);
    expect(s.ledger.core.tier(0).slots.slotsUsed).toBe(0);
  });
});

describe("rule 2: who may leave", () => {
  test("a parent does not leave for the child that is about to be stored below it", () => {
    const s = small({ dram: 1 });
    s.store("a");
    expect(s.reserve("ab", 1)).toBe("f");
    expect(s.hit("a")).toBe(1);
  });

  test("a leased block and all its ancestors stay; the tier answers full", () => {
    const s = small({ dram: 3 });
    s.store("abc");
    s.lease(1, "abc");
    expect(s.store("x")).toBe("f");
    s.ledger.leaseClose(1);
    expect(s.store("x")).toBe("w");
    expect(s.hit("abc")).toBe(2);
  });

  test("a slot that a copy job reads is not evicted", () => {
    const s = small({ dram: 1 });
    s.store("a");
    s.ledger.pin(s.block("a"), 0);
    expect(s.store("x")).toBe("f");
    s.ledger.unpin(s.block("a"), 0);
    expect(s.store("x")).toBe("w");
  });

  test("a copy that also stands in the other tier may leave under a lease and with children there", () => {
    const s = small({ dram: 2, nvme: 4 });
    s.store("ab");
    expect(s.copy("ab", 0, 1)).toBe(true);
    s.lease(1, "ab");
    expect(s.store("x")).toBe("w");
    expect(s.hit("ab")).toBe(2);
    expect(s.ledger.stateOf(s.block("ab"), 0)).toBe(STATE.ABSENT);
    expect(s.lookup("ab")).toMatchObject({ dramBlocks: 1, nvmeBlocks: 1 });
  });
});

describe("rule 3: one parent and one depth per key", () => {
  test("a key under another parent or at another depth is refused and nothing is taken", () => {
    const s = small();
    s.store("ab");
    const words = s.words("ab");
    const other = s.words("xy");
    const mixed = new Uint32Array([...other.subarray(0, 8), ...words.subarray(8, 16)]);
    const statuses = new Uint8Array(2);
    const blocks = new Uint32Array(2);
    const offer = (): unknown =>
      s.ledger.reserve(s.namespace, 0, mixed, 0, 0, 2, 0, statuses, blocks);
    expect(errorName(offer)).toBe("chainMismatch");
    const deeper = (): unknown =>
      s.ledger.reserve(s.namespace, 2, words, 8, 0, 1, 0, statuses, blocks);
    expect(errorName(deeper)).toBe("chainMismatch");
    expect(s.ledger.core.table.used).toBe(2);
  });

  test("a chain that repeats a key is refused and what it took goes back", () => {
    const s = small();
    const once = s.words("a");
    const twice = new Uint32Array([...once, ...once]);
    const offer = (): unknown =>
      s.ledger.reserve(s.namespace, 0, twice, 0, 0, 2, 0, new Uint8Array(2), new Uint32Array(2));
    expect(errorName(offer)).toBe("chainMismatch");
    expect(s.ledger.core.table.used).toBe(0);
    expect(s.ledger.core.tier(0).slots.slotsUsed).toBe(0);
  });

  test("a store below an absent parent takes nothing and says how deep the chain is resident", () => {
    const s = small();
    s.store("ab");
    expect(s.reserve("abcd", 3)).toBe("a");
    expect(s.ledger.core.table.used).toBe(2);
  });

  test("more keys than records answer ledgerFull and take nothing", () => {
    const s = small({ blocksMax: 3 });
    s.store("ab");
    expect(errorName(() => s.reserve("abcd", 2))).toBe("ledgerFull");
    expect(s.ledger.core.table.used).toBe(2);
    expect(s.store("abc", 2)).toBe("w");
  });

  test("a shard that the namespace does not have is refused", () => {
    const s = small();
    expect(errorName(() => s.reserve("a", 0, 1))).toBe("shardOutOfRange");
  });
});

describe("rule 4: order of leaving", () => {
  test("leaves go first, oldest chain first, and a touched chain stays", () => {
    const s = small({ dram: 6 });
    s.store("abc");
    s.store("xyz");
    s.ledger.touch(s.block("abc"));
    s.store("1");
    expect([s.hit("abc"), s.hit("xyz")]).toEqual([3, 2]);
    s.store("12");
    expect([s.hit("abc"), s.hit("xyz")]).toEqual([3, 1]);
  });

  test("a child that leaves hands its time to the parent", () => {
    const s = small({ dram: 4 });
    s.store("ab");
    s.store("x");
    s.store("y");
    s.ledger.touch(s.block("ab"));
    s.ledger.hint(s.block("ab"), { kind: "drop" });
    s.store("1");
    s.store("2");
    expect([s.hit("a"), s.hit("x"), s.hit("y")]).toEqual([1, 0, 1]);
  });

  test("each tier evicts its own leaves first, also where every block has a copy elsewhere", () => {
    const s = small({ dram: 3, nvme: 4 });
    s.store("abc");
    s.copy("abc", 0, 1);
    for (const [chain, left] of [
      ["x", "abc"],
      ["y", "ab"],
    ] as const) {
      s.store(chain);
      expect(s.ledger.stateOf(s.block(left), 0)).toBe(STATE.ABSENT);
      expect(s.ledger.stateOf(s.block("a"), 0)).toBe(STATE.VISIBLE);
    }
    expect(s.hit("abc")).toBe(3);
  });

  test("a chain that is stored in order puts one block into the age index", () => {
    const s = small({ dram: 16 });
    s.store("abcdefghijkl");
    expect(s.ledger.core.tier(0).heaps[0]!.length).toBe(1);
  });
});

describe("rule 5: copies between tiers", () => {
  test("a block is refused in a tier where its parent is not", () => {
    const s = small({ nvme: 4 });
    s.store("ab");
    expect(s.ledger.copyBegin(s.block("ab"), 0, 1)).toBe(false);
    expect(s.copy("ab", 0, 1)).toBe(true);
    expect(s.lookup("ab")).toMatchObject({ dramBlocks: 2, nvmeBlocks: 0 });
  });

  test("a failed copy leaves the source and nothing else", () => {
    const s = small({ nvme: 4 });
    s.store("a");
    expect(s.ledger.copyBegin(s.block("a"), 0, 1)).toBe(true);
    s.ledger.copyEnd(s.block("a"), 0, 1, false);
    expect(s.ledger.stateOf(s.block("a"), 1)).toBe(STATE.ABSENT);
    expect(s.hit("a")).toBe(1);
    expect(s.ledger.core.pinsOf(s.block("a"), 0)).toBe(0);
  });

  test("a promotion keeps the lower copy", () => {
    const s = small({ dram: 2, nvme: 4 });
    s.store("a");
    s.copy("a", 0, 1);
    s.store("xy");
    expect(s.ledger.stateOf(s.block("a"), 0)).toBe(STATE.ABSENT);
    expect(s.copy("a", 1, 0)).toBe(true);
    expect(s.ledger.stateOf(s.block("a"), 0)).toBe(STATE.VISIBLE);
    expect(s.ledger.stateOf(s.block("a"), 1)).toBe(STATE.VISIBLE);
  });

  test("when only a leaf on NVMe keeps a DRAM copy, that leaf is dropped and the store succeeds", () => {
    const s = small({ dram: 2, nvme: 4 });
    s.store("ab");
    s.copy("ab", 0, 1);
    s.ledger.hint(s.block("ab"), { kind: "retain" });
    s.ledger.corrupt(s.block("a"), 1);
    s.ledger.corrupt(s.block("ab"), 0);
    s.lease(1, "ab");
    s.ledger.leaseClose(1);
    expect(s.hit("ab")).toBe(2);
    expect(s.store("xy")).toBe("ww");
    expect(s.hit("ab")).toBe(0);
  });
});

describe("rule 6: look-up", () => {
  test("the longest prefix whose depth fits is found, whatever follows", () => {
    const s = small();
    s.store("abcde");
    for (const [chain, depth] of [
      ["abcde", 5],
      ["abcdx", 4],
      ["abx", 2],
      ["x", 0],
      ["ab", 2],
    ] as const) {
      expect(s.hit(chain), chain).toBe(depth);
      expect(s.hitLinear(chain), chain).toBe(depth);
    }
  });

  test("the walk agrees with bisection on long chains, in order, interleaved, and over recycled records", () => {
    const s = small({ dram: 280, blocksMax: 400 });
    const chainOf = (head: string, length: number): string =>
      head + Array.from({ length: length - 1 }, (_, i) => String.fromCharCode(256 + i)).join("");
    const grow = (head: string, from: number, to: number): void => {
      expect(s.store(chainOf(head, to), from)).toBe("w".repeat(to - from));
    };
    grow("a", 0, 100);
    for (let at = 0; at < 90; at += 15) {
      grow("b", at, at + 15);
      grow("c", at, at + 15);
    }
    // Evicts the tail of a and reuses its records.
    grow("d", 0, 60);
    for (const head of ["a", "b", "c", "d"]) {
      for (const length of [1, 31, 32, 33, 64, 65, 90, 100]) {
        const whole = chainOf(head, length);
        const astray = `${chainOf(head, length - 1 || 1)}!`;
        for (const chain of [whole, astray]) expect(s.hitLinear(chain)).toBe(s.hit(chain));
      }
    }
    expect(s.hitLinear(chainOf("b", 90))).toBe(90);
    expect(s.hitLinear(chainOf("d", 60))).toBe(60);
    expect(s.hitLinear(chainOf("a", 100))).toBe(40);
  });

  test("a key offered at the wrong depth is a miss", () => {
    const s = small();
    s.store("ab");
    const words = s.words("ab");
    expect(s.ledger.lookup(s.namespace, words, 8, 1).depth).toBe(0);
  });

  test("the split between tiers is exact for short prefixes and says when it is sampled", () => {
    const s = small({ nvme: 16 });
    s.store("abcdefgh");
    s.copy("abcdefgh", 0, 1);
    for (const chain of ["abcdefgh", "abcdefg"]) s.ledger.hint(s.block(chain), { kind: "drop" });
    s.store("abcdefghij".slice(0, 3));
    expect(s.lookup("abc")).toMatchObject({ depth: 3, sampled: false });
    const long = s.lookup("abcdefgh");
    expect(long.sampled).toBe(long.depth > 4);
    expect(long.dramBlocks + long.nvmeBlocks).toBe(long.depth);
  });
});

describe("rule 7: leases", () => {
  test("a lease moves to the followed block when that becomes visible, not before", () => {
    const s = small();
    s.store("a");
    s.lease(1, "a");
    s.reserve("abc", 1);
    s.ledger.leaseFollow(1, s.block("abc"));
    for (const chain of ["ab", "abc"]) s.start(chain);
    s.end("abc");
    expect(s.ledger.leaseBlock(1)).toBe(s.block("a"));
    s.end("ab");
    expect(s.ledger.leaseBlock(1)).toBe(s.block("abc"));
    s.ledger.leaseClose(1);
  });

  test("when the followed block is given up the lease ends on the deepest one that made it", () => {
    const s = small();
    s.store("a");
    s.lease(1, "a");
    s.reserve("abc", 1);
    s.ledger.leaseFollow(1, s.block("abc"));
    for (const chain of ["ab", "abc"]) s.start(chain);
    s.end("abc", false);
    s.end("ab");
    expect(s.ledger.leaseBlock(1)).toBe(s.block("ab"));
  });

  test("a hole sends every lease below it back to the hole's parent and says so", () => {
    const s = small();
    s.store("abcd");
    s.lease(1, "abcd");
    s.lease(2, "a");
    s.ledger.corrupt(s.block("abc"), 0);
    expect(s.reduced).toEqual([[1, 2]]);
    expect(s.ledger.leaseBlock(1)).toBe(s.block("ab"));
    expect(s.ledger.leaseBlock(2)).toBe(s.block("a"));
    s.sweepAll();
  });

  test("LOAD pins what it reads, and a key that differs is not readable", () => {
    const s = small();
    s.store("abc");
    s.lease(1, "abc");
    const blocks = new Uint32Array(3);
    const tiers = new Uint8Array(3);
    const words = new Uint32Array([...s.words("ab"), ...s.words("x")]);
    expect(s.ledger.pinRange(1, 0, words, 0, 3, 0, blocks, tiers)).toBe(2);
    expect([...blocks]).toEqual([s.block("a"), s.block("ab"), NO_BLOCK]);
    expect(s.ledger.core.pinsOf(s.block("ab"), 0)).toBe(1);
    s.ledger.unpinAll(blocks, tiers, 3);
    expect(s.ledger.core.pinsOf(s.block("ab"), 0)).toBe(0);
    expect(s.ledger.pinRange(1, 2, s.words("abcd"), 16, 2, 0, blocks, tiers)).toBe(1);
    s.ledger.unpinAll(blocks, tiers, 2);
  });
});
