import { beforeEach, describe, expect, it } from "vitest";
import { TIER } from "../../src/ledger/types.ts";
import { WriteThrough } from "../../src/transfer/write-through.ts";
import { LIMITS } from "../../src/limits.ts";
import { Small } from "../ledger/small.ts";

let ms: number;
beforeEach(() => {
  ms = 0;
});

function next(source: WriteThrough, max: number): number[] {
  const into = new Uint32Array(max);
  return [...into.subarray(0, source.next(into, max))];
}

describe("write-through", () => {
  it("offers blocks in the order in which they became visible, each once", () => {
    const small = new Small({ dram: 16, nvme: 16 });
    const source = new WriteThrough(small.ledger, () => ms);
    small.store("abc");
    small.store("x");
    const chains = ["a", "ab", "abc", "x"].map((chain) => small.block(chain));
    expect(next(source, 2)).toEqual(chains.slice(0, 2));
    expect(next(source, 8)).toEqual(chains.slice(2));
    expect(next(source, 8)).toEqual([]);
  });

  it("leaves out what has a copy below, and what has gone", () => {
    const small = new Small({ dram: 16, nvme: 16 });
    const source = new WriteThrough(small.ledger, () => ms);
    small.store("ab");
    small.store("xy");
    expect(small.copy("ab", TIER.DRAM, TIER.NVME)).toBe(true);
    small.ledger.corrupt(small.block("xy"), TIER.DRAM);
    expect(next(source, 8)).toEqual([small.block("x")]);
  });

  it("goes on with what is left when the log has overtaken it", () => {
    const small = new Small({ dram: 4, nvme: 4 });
    const source = new WriteThrough(small.ledger, () => ms);
    for (let round = 0; round < 400; round++) small.store(String.fromCharCode(97 + (round % 26)));
    const offered = next(source, 1_000);
    expect(offered.length).toBeGreaterThan(0);
    for (const block of offered) expect(small.ledger.isVisible(block)).toBe(true);
  });

  it("reads so much of the log in one go, and goes on the next time", () => {
    const count = LIMITS.writeThroughLogEntriesMax + 8;
    const small = new Small({ dram: 8_192, blocksMax: 8_192, nvme: 8_192, logEntries: 16_384 });
    const source = new WriteThrough(small.ledger, () => ms);
    const chains = Array.from({ length: count }, (_, at) => String.fromCharCode(256 + at));
    for (const chain of chains) small.store(chain);
    for (const chain of chains) expect(small.copy(chain, TIER.DRAM, TIER.NVME)).toBe(true);
    small.store("x");
    const offered = [next(source, 8), next(source, 8), next(source, 8)];
    expect(offered).toEqual([[], [], [small.block("x")]]);
  });

  it("offers what was refused again, parents first, after a pause", () => {
    const small = new Small({ dram: 16, nvme: 16 });
    const source = new WriteThrough(small.ledger, () => ms);
    small.store("abc");
    const blocks = next(source, 8);
    for (const block of [blocks[0]!, blocks[1]!, blocks[1]!]) source.refused(block);
    expect(next(source, 8)).toEqual([]);
    ms = LIMITS.writeThroughRetryMs;
    expect(next(source, 1)).toEqual([blocks[0]]);
    expect(next(source, 8)).toEqual([blocks[1]]);
    ms *= 10;
    expect(next(source, 8)).toEqual([]);
  });

  it("waits longer each time that nothing was taken, up to its bound, and no longer once something was", () => {
    const small = new Small({ dram: 16, nvme: 16 });
    const source = new WriteThrough(small.ledger, () => ms);
    small.store("ab");
    let [offered, pause] = [next(source, 8), 0];
    for (let round = 0; round < 10; round++) {
      for (const block of offered) source.refused(block);
      const from = ms;
      do {
        ms += LIMITS.writeThroughRetryMs;
        offered = next(source, 8);
      } while (offered.length === 0);
      expect(offered).toHaveLength(2);
      expect(ms - from).toBeGreaterThanOrEqual(pause);
      expect(ms - from).toBeLessThanOrEqual(LIMITS.writeThroughRetryMsMax);
      pause = ms - from;
    }
    expect(pause).toBe(LIMITS.writeThroughRetryMsMax);
    source.refused(offered[0]!);
    ms += LIMITS.writeThroughRetryMsMax;
    expect(next(source, 8)).toEqual([offered[0]]);
    source.refused(offered[0]!);
    ms += LIMITS.writeThroughRetryMs;
    expect(next(source, 8)).toEqual([offered[0]]);
  });

  it("remembers so many refused blocks, and none that left or was copied since", () => {
    const count = LIMITS.writeThroughRetriesMax + 10;
    const small = new Small({ dram: 2_048, nvme: 16, blocksMax: 4_096 });
    const source = new WriteThrough(small.ledger, () => ms);
    const chains = Array.from({ length: count }, (_, at) => String.fromCharCode(256 + at));
    for (const chain of chains) {
      small.store(chain);
      source.refused(small.block(chain));
    }
    while (next(source, 512).length > 0);
    expect(small.copy(chains[0]!, TIER.DRAM, TIER.NVME)).toBe(true);
    small.ledger.corrupt(small.block(chains[1]!), TIER.DRAM);
    ms = LIMITS.writeThroughRetryMs;
    const again = next(source, count);
    expect(again).toHaveLength(LIMITS.writeThroughRetriesMax - 2);
    expect(again[0]).toBe(small.block(chains[2]!));
  });
});
