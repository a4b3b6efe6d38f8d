/** Devices of a tier, live adoption, and the order of copying down. */
import { afterEach, describe, expect, test } from "vitest";
import { STATE } from "../../src/ledger/types.ts";
import { Timeline } from "../../src/ledger/timeline.ts";
import { KEY_WORDS, NO_BLOCK, Small, type SmallOptions } from "./small.ts";
import { FakeStore } from "./store.ts";

const DRAM = 0;
const NVME = 1;
let made: Small[] = [];
/** `slabs` slabs of 2 slots, in turn on the devices. */
function small(slabs: number, devices: number, options: SmallOptions = {}): Small {
  const lower = new FakeStore(slabs, 2, 0, [1, 1], devices);
  const s = new Small({ dram: 32, lower, ...options });
  made.push(s);
  return s;
}
afterEach(() => {
  for (const s of made) s.ledger.audit();
  made = [];
});

/** The device of each block of a chain on NVMe; "-" where it has no copy there. */
function devices(s: Small, chain: string): string {
  const places = Array.from({ length: chain.length }, (_, i) => {
    const slot = s.ledger.slotOf(s.block(chain.slice(0, i + 1)), NVME, 0);
    return slot === NO_BLOCK ? "-" : String((slot >>> 18) % s.nvme.devices);
  });
  return places.join("");
}

function down(s: Small, chain: string): boolean {
  s.store(chain);
  return s.copy(chain, DRAM, NVME);
}

/** What demotable() answers, as chains. */
function next(s: Small, chains: readonly string[], max = 16): string[] {
  const into = new Uint32Array(max);
  const found = s.ledger.demotable(DRAM, NVME, into, max);
  const name = (block: number): string => chains.find((chain) => s.block(chain) === block) ?? "?";
  return [...into.subarray(0, found)].map(name);
}

describe("placement on devices", () => {
  test("a chain stays on the device of its parent, roots go where most room is", () => {
    const s = small(8, 2);
    expect(down(s, "abc")).toBe(true);
    expect(down(s, "xyz")).toBe(true);
    expect(devices(s, "abc")).toBe("000");
    expect(devices(s, "xyz")).toBe("111");
  });

  test("a chain spills to free room on another device before anything is evicted", () => {
    const s = small(4, 2);
    down(s, "abcdef");
    expect(devices(s, "abcdef")).toBe("000011");
    expect(s.ledger.core.tier(NVME).evictions).toBe(0);
  });

  test("when all devices are full the home device's own oldest leaves", () => {
    const s = small(4, 2);
    down(s, "abc");
    down(s, "xyz");
    down(s, "q");
    down(s, "r");
    expect(devices(s, "q") + devices(s, "r")).toBe("01");
    // abc is the oldest of the tier, but x's chain grows on its own device.
    s.ledger.touch(s.block("xyz"));
    down(s, "xyzw");
    expect(devices(s, "xyzw")).toBe("1111");
    expect(devices(s, "abc")).toBe("000");
    expect(devices(s, "r")).toBe("-");
  });

  test("watermarks are kept on each device by itself", () => {
    const lower = new FakeStore(4, 2, 0, [0.7, 0.5], 2);
    const s = small(4, 2, { lower });
    down(s, "abc");
    down(s, "x");
    expect(s.ledger.evictToWatermark(NVME)).toBe(1);
    expect([devices(s, "abc"), devices(s, "x")]).toEqual(["00-", "1"]);
  });
});

describe("a free slab that the backing store still uses", () => {
  test("is passed over for another one, and given when it is idle", () => {
    const s = small(3, 1);
    // The last one is taken first.
    s.nvme.busy.add(0);
    expect(down(s, "ab")).toBe(true);
    expect([...s.nvme.slabs.keys()]).toEqual([1]);
    s.nvme.busy.clear();
    expect(down(s, "xy")).toBe(true);
    expect([...s.nvme.slabs.keys()]).toEqual([1, 0]);
  });

  test("sends a root to a device with less room, and a chain on from a device that gives none", () => {
    const s = small(5, 2);
    for (const slab of [0, 2, 4]) s.nvme.busy.add(slab);
    expect(down(s, "ab")).toBe(true);
    expect(devices(s, "ab")).toBe("11");
    s.nvme.busy.clear();
    s.nvme.busy.add(3);
    expect(down(s, "abc")).toBe(true);
    expect(devices(s, "abc")).toBe("110");
  });

  test("makes a tier without another one full until it is idle, at no block's cost", () => {
    const s = small(2, 1);
    expect(down(s, "ab")).toBe(true);
    const [taken] = s.nvme.slabs.keys();
    s.nvme.busy.add(1 - taken!);
    const big = s.ledger.addNamespace({
      keyWords: KEY_WORDS,
      shards: 1,
      chained: true,
      payloadBytes: 5000,
      tenant: 1,
    });
    const blocks = new Uint32Array(1);
    s.ledger.reserve(big, 0, s.words("q"), 0, 0, 1, 0, new Uint8Array(1), blocks);
    s.ledger.fillStart(blocks[0]!, DRAM, 0);
    s.ledger.fillEnd(blocks[0]!, DRAM, 0, true);
    expect(s.ledger.copyBegin(blocks[0]!, DRAM, NVME)).toBe(false);
    s.ledger.audit();
    expect(devices(s, "ab")).toBe("00");
    s.nvme.busy.clear();
    expect(s.ledger.copyBegin(blocks[0]!, DRAM, NVME)).toBe(true);
    s.ledger.copyEnd(blocks[0]!, DRAM, NVME, true);
    expect(s.nvme.slabs.get(1 - taken!)).toBe(8192);
  });
});

describe("a closed device", () => {
  test("takes nothing, is read, and is not evicted from for room that it does not give", () => {
    const s = small(4, 2);
    down(s, "abcd");
    expect(devices(s, "abcd")).toBe("0000");
    s.ledger.closeDevice(NVME, 0);
    for (const chain of ["q", "r", "s", "t", "u", "v"]) expect(down(s, chain)).toBe(true);
    expect(devices(s, "abcd")).toBe("0000");
    expect(devices(s, "u") + devices(s, "v")).toBe("11");
    s.ledger.openDevice(NVME, 0);
    expect(down(s, "w")).toBe(true);
  });

  test("lets a leaf go that keeps its ancestors on an open device when nothing else may leave", () => {
    const s = small(2, 2);
    down(s, "abcd");
    expect(devices(s, "abcd")).toBe("0011");
    s.ledger.closeDevice(NVME, 1);
    expect(down(s, "x")).toBe(true);
    expect(devices(s, "x")).toBe("0");
    expect(devices(s, "abcd")).toBe("0---");
  });

  test("a tier whose devices are all closed answers that there is no room", () => {
    const s = small(2, 2);
    s.ledger.closeDevice(NVME, 0);
    s.ledger.closeDevice(NVME, 1);
    expect(down(s, "a")).toBe(false);
  });

  test("a tier of one device that is closed keeps all it holds, however much is offered", () => {
    const s = small(4, 1);
    down(s, "abcdefgh");
    expect(devices(s, "abcdefgh")).toBe("00000000");
    s.ledger.closeDevice(NVME, 0);
    for (const chain of ["q", "r", "s"]) expect(down(s, chain)).toBe(false);
    expect(devices(s, "abcdefgh")).toBe("00000000");
    expect(s.ledger.evictToWatermark(NVME)).toBe(0);
  });
});

describe("a lost device", () => {
  test("loses only what stands there and is not announced to the store", () => {
    const s = small(8, 2);
    down(s, "abc");
    down(s, "xyz");
    s.nvme.freed.length = 0;
    expect(s.ledger.loseDevice(NVME, 0)).toBe(3);
    expect(s.nvme.freed).toEqual([]);
    expect([devices(s, "abc"), devices(s, "xyz")]).toEqual(["---", "111"]);
    expect([s.hit("abc"), s.hit("xyz")]).toEqual([3, 3]);
    expect(down(s, "abc")).toBe(true);
    expect(devices(s, "abc")).toBe("111");
  });

  test("makes holes of blocks whose children stand elsewhere", () => {
    const s = small(2, 2);
    down(s, "abcd");
    s.ledger.loseTier(DRAM);
    s.ledger.loseDevice(NVME, 0);
    expect(s.ledger.holeCount).toBeGreaterThan(0);
    expect(s.hit("abcd")).toBe(0);
    s.sweepAll();
    expect(s.ledger.stateOf(s.block("abcd"), NVME)).toBe(STATE.ORPHAN);
  });

  test("a copy into it that ends well does not count, one out of it fails", () => {
    const s = small(4, 2);
    s.store("a");
    expect(s.ledger.copyBegin(s.block("a"), DRAM, NVME)).toBe(true);
    s.ledger.loseDevice(NVME, 0);
    s.ledger.copyEnd(s.block("a"), DRAM, NVME, true);
    expect(s.ledger.stateOf(s.block("a"), NVME)).toBe(STATE.ABSENT);
    expect(s.hit("a")).toBe(1);
    s.copy("a", DRAM, NVME);
    expect(devices(s, "a")).toBe("1");
    s.ledger.loseTier(DRAM);
    expect(s.ledger.copyBegin(s.block("a"), NVME, DRAM)).toBe(true);
    s.ledger.loseDevice(NVME, 1);
    s.ledger.copyEnd(s.block("a"), NVME, DRAM, true);
    expect(s.block("a")).toBe(NO_BLOCK);
  });
});

describe("live adoption", () => {
  interface Offered {
    readonly chain: string;
    readonly slot: number;
    readonly lastAccess?: number;
    readonly shard?: number;
  }

  function adopt(s: Small, slab: number, offered: readonly Offered[]): boolean[] {
    s.nvme.slabs.set(slab, 64);
    expect(s.ledger.adoptBegin(NVME, slab, 64)).toBe(true);
    const taken = offered.map(({ chain, slot, lastAccess = 1, shard = 0 }) => {
      const at = (chain.length - 1) * KEY_WORDS;
      const depth = chain.length;
      const generation = 1;
      const block = { namespace: s.namespace, depth, shard, slot, generation, lastAccess };
      return s.ledger.adopt(block, NVME, s.words(chain), at, at - KEY_WORDS);
    });
    s.ledger.adoptEnd(NVME, slab);
    return taken;
  }

  test("shows chains top-down beside what is in DRAM, and drops what has no parent", () => {
    const s = small(1, 1, { lower: new FakeStore(1, 8) });
    s.store("ab");
    const taken = adopt(s, 0, [
      { chain: "a", slot: 0 },
      { chain: "x", slot: 1 },
      { chain: "xy", slot: 2 },
      { chain: "pq", slot: 3 },
      { chain: "abc", slot: 4 },
    ]);
    expect(taken).toEqual([true, true, true, false, true]);
    expect([s.hit("abc"), s.hit("xy"), s.hit("pq")]).toEqual([3, 2, 0]);
    expect(s.ledger.stateOf(s.block("a"), DRAM)).toBe(STATE.VISIBLE);
    expect(s.ledger.stateOf(s.block("a"), NVME)).toBe(STATE.VISIBLE);
    expect(s.ledger.stateOf(s.block("ab"), NVME)).toBe(STATE.ABSENT);
    expect(s.nvme.freed).toEqual([3]);
  });

  test("refuses a second copy of a block in the same tier and keeps the first", () => {
    const s = small(2, 1, { lower: new FakeStore(2, 4) });
    down(s, "a");
    const slot = s.ledger.slotOf(s.block("a"), NVME, 0);
    const other = (slot >>> 18) ^ 1;
    expect(adopt(s, other, [{ chain: "a", slot: (other << 18) >>> 0 }])).toEqual([false]);
    expect(s.ledger.slotOf(s.block("a"), NVME, 0)).toBe(slot);
  });

  test("takes orphans back that waited for a parent which was lost with its device", () => {
    const s = small(2, 2);
    down(s, "abcd");
    const slots = ["a", "ab"].map((chain) => s.ledger.slotOf(s.block(chain), NVME, 0));
    s.ledger.loseTier(DRAM);
    s.ledger.loseDevice(NVME, 0);
    s.sweepAll();
    expect(s.hit("abcd")).toBe(0);
    const offered = [
      { chain: "a", slot: slots[0]! },
      { chain: "ab", slot: slots[1]! },
    ];
    expect(adopt(s, slots[0]! >>> 18, offered)).toEqual([true, true]);
    s.sweepAll();
    expect(s.hit("abcd")).toBe(4);
  });

  test("a slab gives out no slots until its adoption ended, and none that was taken", () => {
    const s = small(1, 1, { lower: new FakeStore(1, 3) });
    s.nvme.slabs.set(0, 64);
    expect(s.ledger.adoptBegin(NVME, 0, 64)).toBe(true);
    expect(s.ledger.adoptBegin(NVME, 0, 64)).toBe(false);
    expect(down(s, "a")).toBe(false);
    s.ledger.adoptEnd(NVME, 0);
    expect(down(s, "a")).toBe(true);
  });

  test("nothing that was adopted leaves for a copy while its slab gives out no slots", () => {
    const s = small(1, 1, { lower: new FakeStore(1, 3) });
    s.nvme.slabs.set(0, 64);
    s.ledger.adoptBegin(NVME, 0, 64);
    const offer = (chain: string, slot: number): boolean => {
      const at = (chain.length - 1) * KEY_WORDS;
      const block = {
        namespace: s.namespace,
        depth: chain.length,
        shard: 0,
        slot,
        generation: 1,
        lastAccess: 1,
      };
      return s.ledger.adopt(block, NVME, s.words(chain), at, at - KEY_WORDS);
    };
    expect(offer("a", 0)).toBe(true);
    expect(down(s, "x")).toBe(false);
    expect(s.ledger.core.tier(NVME).evictions).toBe(0);
    expect([offer("ab", 1), offer("abc", 2)]).toEqual([true, true]);
    s.ledger.adoptEnd(NVME, 0);
    expect(s.hit("abc")).toBe(3);
    // From now on the slab takes part: its oldest leaf leaves for a newer block.
    expect(s.copy("x", DRAM, NVME)).toBe(true);
    expect([s.hit("abc"), s.hit("x")]).toEqual([2, 1]);
  });

  test("a block that lacks a shard is given up when the last slab ends", () => {
    const s = small(1, 1, { lower: new FakeStore(1, 8), shards: 2 });
    expect(
      adopt(s, 0, [
        { chain: "a", slot: 0, shard: 0 },
        { chain: "a", slot: 1, shard: 1 },
        { chain: "ab", slot: 2, shard: 0 },
      ]),
    ).toEqual([true, true, true]);
    expect(s.hit("ab")).toBe(1);
    expect(s.block("ab")).toBe(NO_BLOCK);
    expect(s.nvme.freed).toEqual([2]);
  });

  test("ends with the device when that is lost meanwhile, and begins anew", () => {
    const s = small(1, 1, { lower: new FakeStore(1, 8) });
    s.nvme.slabs.set(0, 64);
    s.ledger.adoptBegin(NVME, 0, 64);
    const offer = (chain: string, slot: number): boolean => {
      const at = (chain.length - 1) * KEY_WORDS;
      const depth = chain.length;
      const block = {
        namespace: s.namespace,
        depth,
        shard: 0,
        slot,
        generation: 1,
        lastAccess: 1,
      };
      return s.ledger.adopt(block, NVME, s.words(chain), at, at - KEY_WORDS);
    };
    expect([offer("a", 1), offer("ab", 5)]).toEqual([true, true]);
    s.ledger.pin(s.block("a"), NVME);
    expect(s.ledger.loseDevice(NVME, 0)).toBe(2);
    s.ledger.audit();
    expect([offer("x", 2), s.hit("ab")]).toEqual([false, 0]);
    s.ledger.adoptEnd(NVME, 0);
    expect(s.ledger.adoptBegin(NVME, 0, 64)).toBe(false);
    s.ledger.unpin(s.block("a"), NVME);
    expect(adopt(s, 0, [{ chain: "x", slot: 2 }])).toEqual([true]);
    expect(s.hit("x")).toBe(1);
  });

  test("times of last access order the adopted among themselves and behind what was used since", () => {
    const s = small(1, 1, { lower: new FakeStore(1, 4) });
    const now = 1_700_000_000_000;
    s.ledger.noteTime(now);
    down(s, "n");
    s.ledger.loseDevice(NVME, 0);
    adopt(s, 0, [
      { chain: "a", slot: 0, lastAccess: now - 1_000 },
      { chain: "b", slot: 1, lastAccess: now - 3_000 },
      { chain: "c", slot: 2, lastAccess: now - 2_000 },
    ]);
    const ages = ["b", "c", "a"].map((chain) => s.ledger.ageOf(s.block(chain), NVME));
    expect(ages).toEqual([...ages].sort((a, b) => a - b));
    expect(ages[2]!).toBeLessThan(s.ledger.ageOf(s.block("n"), DRAM));
    expect(s.ledger.lastAccessOf(s.block("c"), NVME)).toBe(now - 2_000);
    for (const chain of ["p", "q"]) down(s, chain);
    expect([s.hit("a"), s.hit("b"), s.hit("c")]).toEqual([1, 0, 1]);
  });
});

describe("recovery of two tiers", () => {
  /** Offers [chain, tier, slot, last access] in this order. */
  function recover(
    s: Small,
    offered: readonly (readonly [string, number, number, number])[],
  ): boolean[] {
    for (const [tier, store] of [s.dram, s.nvme].entries()) {
      store.slabs.set(0, 64);
      s.ledger.recoverSlab(tier, 0, 64);
    }
    const taken = offered.map(([chain, tier, slot, lastAccess]) => {
      const at = (chain.length - 1) * KEY_WORDS;
      const depth = chain.length;
      const block = { namespace: s.namespace, depth, shard: 0, slot, generation: 1, lastAccess };
      return s.ledger.recover(block, tier, s.words(chain), at, at - KEY_WORDS);
    });
    s.ledger.recoverEnd();
    return taken;
  }

  test("NVMe first, all depths, then DRAM: a tail in DRAM is visible under a prefix on NVMe", () => {
    const s = small(1, 1, { lower: new FakeStore(1, 8) });
    const taken = recover(s, [
      ["a", NVME, 0, 100],
      ["ab", NVME, 1, 100],
      ["abc", NVME, 2, 100],
      ["ab", DRAM, 0, 300],
      ["abcd", DRAM, 1, 200],
      ["xy", DRAM, 2, 200],
    ]);
    expect(taken).toEqual([true, true, true, true, true, false]);
    expect(s.lookup("abcd")).toMatchObject({ depth: 4, dramBlocks: 2, nvmeBlocks: 2 });
    expect(s.dram.freed).toEqual([2]);
  });

  test("a block's age is the later of both tiers' times, in both", () => {
    const s = small(1, 1, { lower: new FakeStore(1, 8) });
    recover(s, [
      ["a", NVME, 0, 1_000],
      ["b", NVME, 1, 2_000],
      ["a", DRAM, 0, 3_000],
    ]);
    const age = (chain: string, tier: number): number => s.ledger.ageOf(s.block(chain), tier);
    expect(age("a", NVME)).toBe(age("a", DRAM));
    expect(age("a", NVME)).toBeGreaterThan(age("b", NVME));
    s.ledger.noteTime(10_000);
    expect(s.ledger.lastAccessOf(s.block("b"), NVME)).toBe(2_000);
  });

  test("a tier's cap holds for blocks that are known from the other tier, too", () => {
    const s = small(1, 1, { lower: new FakeStore(1, 8), store: new FakeStore(1, 8, 1) });
    const taken = recover(s, [
      ["a", NVME, 0, 1],
      ["b", NVME, 1, 1],
      ["a", DRAM, 0, 1],
      ["b", DRAM, 1, 1],
    ]);
    expect(taken).toEqual([true, true, true, false]);
    expect(s.hit("b")).toBe(1);
  });
});

describe("copying down ahead of eviction", () => {
  const chains = ["a", "ab", "abc", "x", "xy", "m", "mn"];

  test("names the oldest chains first, each from the root, and nothing twice", () => {
    const s = small(8, 1);
    for (const chain of ["abc", "xy", "mn"]) s.store(chain);
    s.ledger.touch(s.block("abc"));
    expect(next(s, chains)).toEqual(["x", "xy", "m", "mn", "a", "ab", "abc"]);
    expect(next(s, chains, 3)).toEqual(["x", "xy", "m"]);
    s.copy("x", DRAM, NVME);
    expect(next(s, chains, 2)).toEqual(["xy", "m"]);
  });

  test("leaves out what is leased, read, on its way or refused, and what stands below a refused block", () => {
    const s = small(8, 1);
    for (const chain of ["abc", "xy", "mn"]) s.store(chain);
    s.lease(1, "abc");
    s.ledger.pin(s.block("xy"), DRAM);
    s.ledger.demotionRefused(s.block("m"));
    expect(next(s, chains)).toEqual([]);
    s.ledger.unpin(s.block("xy"), DRAM);
    expect(s.ledger.copyBegin(s.block("x"), DRAM, NVME)).toBe(true);
    expect(next(s, chains)).toEqual(["xy"]);
    s.ledger.copyEnd(s.block("x"), DRAM, NVME, true);
    s.ledger.leaseClose(1);
    expect(next(s, chains)).toEqual(["a", "ab", "abc", "xy"]);
  });

  test("a refusal ends when the block is used, and some logical time later", () => {
    const s = small(8, 1);
    s.store("x");
    s.ledger.demotionRefused(s.block("x"));
    expect(next(s, chains)).toEqual([]);
    s.ledger.touch(s.block("x"));
    expect(next(s, chains)).toEqual(["x"]);
    s.ledger.demotionRefused(s.block("x"));
    s.ledger.core.tick += 1 << 16;
    expect(next(s, chains)).toEqual(["x"]);
  });

  test("a full tier is worth a copy only in the place of an older one, so that copying down comes to an end", () => {
    const s = small(2, 1);
    for (const chain of "pqrst") s.store(chain);
    const worth = (chain: string): boolean => s.ledger.worthRoom(s.block(chain), DRAM, NVME);
    expect(worth("p")).toBe(true);
    for (const chain of "qrst") s.copy(chain, DRAM, NVME);
    expect(worth("p")).toBe(false);
    s.ledger.touch(s.block("p"));
    expect(worth("p")).toBe(true);
    // A tier that still grows: what does not fit yet waits, and pushes nothing out.
    expect(s.ledger.worthRoom(s.block("p"), DRAM, NVME, true)).toBe(false);
    expect(s.copy("p", DRAM, NVME)).toBe(true);
    // What left for it is older than all that stayed.
    expect(s.ledger.stateOf(s.block("q"), NVME)).toBe(STATE.ABSENT);
    expect(worth("q")).toBe(false);
  });

  test("unbacked() counts the copies that would leave next without a lower one, past leaves too", () => {
    const s = small(8, 1);
    for (const chain of ["abc", "xy"]) s.store(chain);
    expect([1, 2, 4, 9].map((depth) => s.ledger.unbacked(DRAM, NVME, depth))).toEqual([1, 2, 4, 5]);
    s.copy("abc", DRAM, NVME);
    expect([3, 4, 5].map((depth) => s.ledger.unbacked(DRAM, NVME, depth))).toEqual([0, 1, 2]);
  });

  test("copies dropped without a lower one are counted, others are not", () => {
    const s = small(8, 1, { dram: 3 });
    s.store("abc");
    s.copy("abc", DRAM, NVME);
    s.store("xyz");
    expect(s.ledger.core.tier(DRAM).evictedUnbacked).toBe(0);
    s.store("mno");
    expect(s.ledger.core.tier(DRAM).evictedUnbacked).toBe(3);
  });

  test("a promotion makes the block and the prefix it continues as young as the use", () => {
    const s = small(8, 1, { dram: 4 });
    s.store("abc");
    s.copy("abc", DRAM, NVME);
    for (const chain of ["abc", "ab"]) s.ledger.hint(s.block(chain), { kind: "retain" });
    for (const chain of ["x", "y", "z"]) s.store(chain);
    expect([s.hit("abc"), s.ledger.stateOf(s.block("ab"), DRAM)]).toEqual([3, STATE.ABSENT]);
    const before = s.ledger.ageOf(s.block("a"), DRAM);
    expect(s.ledger.copyBegin(s.block("ab"), NVME, DRAM)).toBe(true);
    s.ledger.copyEnd(s.block("ab"), NVME, DRAM, true);
    const { tick } = s.ledger.core;
    expect(before).toBeLessThan(tick);
    expect(s.ledger.ageOf(s.block("a"), DRAM)).toBe(tick);
    expect(s.ledger.ageOf(s.block("ab"), DRAM)).toBe(tick);
  });
});

describe("logical and wall time", () => {
  test("map onto each other between notes, in order, and through halving", () => {
    const timeline = new Timeline();
    timeline.recovered(1_000, 5_000, 4_001);
    timeline.note(10_000, 20_000);
    timeline.note(10_000, 60_000);
    timeline.note(20_000, 100_000);
    expect([1_000, 3_000, 5_000, 20_000, 60_000, 100_000].map((t) => timeline.ageOf(t))).toEqual([
      1, 2_001, 4_001, 10_000, 15_000, 20_000,
    ]);
    expect(timeline.timeOf(2_001)).toBe(3_000);
    expect(timeline.ageOf(10 ** 15)).toBe(20_000);
    expect(timeline.ageOf(0)).toBe(1);
    timeline.halve();
    expect(timeline.timeOf(7_500)).toBe(60_000);
  });

  test("a clock set back is not believed, and many notes keep the order", () => {
    const timeline = new Timeline();
    for (let i = 1; i <= 5_000; i += 1) timeline.note(i * 3, i * 1_000);
    timeline.note(20_000, 5);
    const times = Array.from({ length: 5_000 }, (_, i) => timeline.timeOf(i * 3));
    expect(times).toEqual([...times].sort((a, b) => a - b));
    expect(timeline.ageOf(4_999_000)).toBeGreaterThan(timeline.ageOf(4_000_000));
  });
});
