import { describe, expect, it } from "vitest";
import { poolThreads, poolWarning, sharedOperationsMax } from "../src/pool-threads.ts";

describe("libuv's threads", () => {
  it("are as many as libuv makes of the environment", () => {
    expect(poolThreads(undefined)).toBe(4);
    expect(["16", "0", "-3", "x", "5000"].map((size) => poolThreads(size))).toEqual([
      16, 1, 1, 1, 1_024,
    ]);
  });

  it("are never all kept by a shared directory that hangs, where there are two", () => {
    for (let threads = 2; threads < 40; threads++) {
      expect(sharedOperationsMax(threads)).toBeLessThan(threads);
    }
    expect([1, 2, 3, 4, 5, 16].map(sharedOperationsMax)).toEqual([1, 1, 1, 2, 3, 3]);
  });

  it("are warned of exactly where disks and a shared directory could keep all, and the number mends it", () => {
    for (let disks = 1; disks <= 64; disks++) {
      for (const shared of [false, true]) {
        for (const threads of [1, 2, 4, 16, 64]) {
          const kept = disks + (shared ? sharedOperationsMax(threads) : 0);
          const warning = poolWarning(disks, shared, threads);
          expect(warning !== undefined).toBe(kept >= threads);
          if (warning === undefined) continue;
          const wanted = Number(/UV_THREADPOOL_SIZE=(\d+)/.exec(warning)?.[1]);
          expect(poolWarning(disks, shared, wanted)).toBeUndefined();
        }
      }
    }
  });
});
