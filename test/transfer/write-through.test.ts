import { describe, expect, it } from "vitest";
import { TIER } from "../../src/ledger/types.ts";
import { WriteThrough } from "../../src/transfer/write-through.ts";
import { Small } from "../ledger/small.ts";

function next(source: WriteThrough, max: number): number[] {
  const into = new Uint32Array(max);
  return [...into.subarray(0, source.next(into, max))];
}

describe("write-through", () => {
  it("offers blocks in the order in which they became visible, each once", () => {
    const small = new Small({ dram: 16, nvme: 16 });
    const source = new WriteThrough(small.ledger);
    small.store("abc");
    small.store("x");
    const chains = ["a", "ab", "abc", "x"].map((chain) => small.block(chain));
    expect(next(source, 2)).toEqual(chains.slice(0, 2));
    expect(next(source, 8)).toEqual(chains.slice(2));
    expect(next(source, 8)).toEqual([]);
  });

  it("leaves out what has a copy below, and what has gone", () => {
    const small = new Small({ dram: 16, nvme: 16 });
    const source = new WriteThrough(small.ledger);
    small.store("ab");
    small.store("xy");
    expect(small.copy("ab", TIER.DRAM, TIER.NVME)).toBe(true);
    small.ledger.corrupt(small.block("xy"), TIER.DRAM);
    expect(next(source, 8)).toEqual([small.block("x")]);
  });

  it("goes on with what is left when the log has overtaken it", () => {
    const small = new Small({ dram: 4, nvme: 4 });
    const source = new WriteThrough(small.ledger);
    for (let round = 0; round < 400; round++) small.store(String.fromCharCode(97 + (round % 26)));
    const offered = next(source, 1_000);
    expect(offered.length).toBeGreaterThan(0);
    for (const block of offered) expect(small.ledger.isVisible(block)).toBe(true);
  });
});
