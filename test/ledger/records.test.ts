import { afterEach, describe, expect, test } from "vitest";
import { CairnError } from "../../src/errors.ts";
import { NO_BLOCK, STATE, TIER } from "../../src/ledger/types.ts";
import { Small, type SmallOptions } from "./small.ts";

let made: Small[] = [];
function small(options: SmallOptions): Small {
  const s = new Small(options);
  made.push(s);
  return s;
}
afterEach(() => {
  for (const s of made) s.ledger.audit();
  made = [];
});

function refusal(attempt: () => unknown): string {
  try {
    attempt();
    return "none";
  } catch (error) {
    return error instanceof CairnError ? error.errorName : String(error);
  }
}

describe("a tier with more slots than the ledger has records", () => {
  test("gives up its oldest leaf for a STORE, where no DRAM copy had to go", () => {
    const s = small({ dram: 4, nvme: 32, blocksMax: 6 });
    for (const chain of ["ab", "xy"]) {
      s.store(chain);
      expect(s.copy(chain, TIER.DRAM, TIER.NVME)).toBe(true);
    }
    // Both chains leave DRAM for these; their copies below are what holds the records.
    s.store("12");
    s.store("34", 0);
    expect(s.hit("ab") + s.hit("xy") + s.hit("12") + s.hit("34")).toBe(6);
    expect(s.hit("ab")).toBe(0);
    expect([s.hit("xy"), s.hit("12"), s.hit("34")]).toEqual([2, 2, 2]);
    expect(s.ledger.core.recordEvictions).toBe(2);
    expect(s.ledger.core.tier(TIER.NVME).slots.slotsUsed).toBe(2);
  });

  test("keeps what is leased, and goes on to the next oldest", () => {
    const s = small({ dram: 4, nvme: 32, blocksMax: 6 });
    for (const chain of ["ab", "xy"]) {
      s.store(chain);
      s.copy(chain, TIER.DRAM, TIER.NVME);
    }
    s.lease(1, "ab");
    s.store("12");
    s.store("34");
    expect([s.hit("ab"), s.hit("xy")]).toEqual([2, 0]);
    s.ledger.leaseClose(1);
  });

  test("keeps the chain that a STORE continues, its parent and what it names", () => {
    const s = small({ dram: 2, nvme: 32, blocksMax: 4 });
    s.store("ab");
    s.copy("ab", TIER.DRAM, TIER.NVME);
    s.store("xy");
    s.copy("xy", TIER.DRAM, TIER.NVME);
    // The oldest leaf is b: the STORE stands on it.
    expect(s.reserve("abc", 2)).toBe("w");
    expect([s.hit("ab"), s.hit("xy")]).toEqual([2, 1]);
    s.ledger.fillAbort(s.block("abc"), TIER.DRAM, 0);
  });

  test("loses nothing for a STORE that names more keys than there are records", () => {
    const s = small({ dram: 4, nvme: 32, blocksMax: 4 });
    s.store("abcd");
    expect(refusal(() => s.reserve("12345"))).toBe("ledgerFull");
    expect(s.hit("abcd")).toBe(4);
  });

  test("lets a block go from both tiers where that is what frees a record", () => {
    const s = small({ dram: 8, nvme: 32, blocksMax: 2 });
    s.store("ab");
    s.copy("ab", TIER.DRAM, TIER.NVME);
    expect(s.store("x")).toBe("w");
    expect([s.hit("ab"), s.hit("x")]).toEqual([1, 1]);
    expect(s.block("ab")).toBe(NO_BLOCK);
    expect(s.ledger.stateOf(s.block("a"), TIER.NVME)).toBe(STATE.VISIBLE);
  });

  test("holds back few records for stale entries of the age indexes, however long it runs", () => {
    const s = small({ dram: 64, nvme: 1_024, blocksMax: 256 });
    for (let i = 0; i < 2_000; i += 1) {
      const chain = String.fromCharCode(0x100 + i) + "ab";
      expect(s.store(chain)).toBe("www");
      if (i % 2 === 0) expect(s.copy(chain, TIER.DRAM, TIER.NVME)).toBe(true);
      if (i % 3 === 0) s.ledger.touch(s.block(chain.slice(0, 2)));
      const { table } = s.ledger.core;
      expect(table.zombies).toBeLessThanOrEqual((256 >>> 6) + 64);
      expect(s.hit(chain)).toBe(3);
    }
    expect(s.ledger.core.recordEvictions).toBeGreaterThan(1_000);
  });
});

test("DRAM alone gives up its oldest leaf when records run out before slots do", () => {
  const s = small({ dram: 16, blocksMax: 3 });
  s.store("ab");
  s.store("x");
  expect(s.store("y")).toBe("w");
  expect([s.hit("ab"), s.hit("x"), s.hit("y")]).toEqual([1, 1, 1]);
});
