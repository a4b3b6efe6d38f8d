/** LOADs in pieces: what they may read is what their lease covers, and a piece far from its end is cheap. */
import { describe, expect, test, vi } from "vitest";
import { KEY_WORDS, NO_BLOCK, Small } from "./small.ts";

const DEPTH = 2_000;
const PIECE = 16;

/** A chain of DEPTH blocks, and one that branches off at `branch` and has a tail of its own. */
function deep(branch = DEPTH): { s: Small; chain: string; other: string } {
  const letters = (from: number, count: number): string =>
    Array.from({ length: count }, (_, i) => String.fromCharCode(0x100 + from + (i % 500))).join("");
  const s = new Small({ dram: 2 * DEPTH, blocksMax: 2 * DEPTH });
  const chain = letters(0, DEPTH);
  const other = chain.slice(0, branch) + letters(600, DEPTH - branch);
  s.store(chain);
  if (branch < DEPTH) s.store(other);
  return { s, chain, other };
}

/** Pins one piece and lets it go again; the blocks found. */
function load(s: Small, chain: string, start: number, count: number, lease = 1): number[] {
  const blocks = new Uint32Array(count);
  const tiers = new Uint8Array(count);
  const words = s.words(chain);
  const pinned = s.ledger.pinRange(lease, start, words, start * KEY_WORDS, count, 0, blocks, tiers);
  expect(pinned).toBe([...blocks].filter((block) => block !== NO_BLOCK).length);
  s.ledger.unpinAll(blocks, tiers, count);
  return [...blocks];
}

function blocksOf(s: Small, chain: string, start: number, count: number): number[] {
  const words = s.words(chain);
  return Array.from({ length: count }, (_, i) =>
    s.ledger.find(s.namespace, words, (start + i) * KEY_WORDS),
  );
}

describe("LOAD under a lease on a deep block", () => {
  test.each(["upward", "downward"])(
    "in pieces, %s, finds every block and walks little",
    (order) => {
      const { s, chain } = deep();
      s.lease(1, chain);
      const steps = vi.spyOn(s.ledger.core, "parentOf");
      const starts = Array.from({ length: DEPTH / PIECE }, (_, i) => i * PIECE);
      if (order === "upward") starts.reverse();
      for (const start of starts) {
        expect(load(s, chain, start, PIECE)).toEqual(blocksOf(s, chain, start, PIECE));
      }
      // The first walk may pass the whole chain, every further one 128 blocks and its own.
      expect(steps.mock.calls.length).toBeLessThan(DEPTH + starts.length * (128 + PIECE));
      s.ledger.audit();
    },
  );

  test("answers misses for another chain's keys, however far up they branch off", () => {
    const { s, chain, other } = deep(1_000);
    s.lease(1, chain);
    expect(s.hit(other)).toBe(DEPTH);
    for (const start of [1_984, 1_500, 1_000]) {
      expect(load(s, other, start, PIECE)).toEqual(new Array(PIECE).fill(NO_BLOCK));
    }
    const across = load(s, other, 992, PIECE);
    expect(across).toEqual([
      ...blocksOf(s, chain, 992, 8),
      ...(new Array(8).fill(NO_BLOCK) as number[]),
    ]);
    s.ledger.audit();
  });

  test("follows the lease when a hole cuts it short and when it moves deeper again", () => {
    const { s, chain } = deep();
    s.lease(1, chain);
    load(s, chain, 0, PIECE);
    s.ledger.corrupt(s.block(chain.slice(0, 1_500)), 0);
    expect(load(s, chain, 1_490, PIECE)).toEqual([
      ...blocksOf(s, chain, 1_490, 9),
      ...(new Array(PIECE - 9).fill(NO_BLOCK) as number[]),
    ]);
    expect(load(s, chain, 100, PIECE)).toEqual(blocksOf(s, chain, 100, PIECE));
    s.sweepAll();
    s.store(chain, 1_499);
    s.sweepAll();
    s.ledger.leaseFollow(1, s.block(chain));
    expect(load(s, chain, 1_490, PIECE)).toEqual(blocksOf(s, chain, 1_490, PIECE));
    expect(load(s, chain, 100, PIECE)).toEqual(blocksOf(s, chain, 100, PIECE));
    s.ledger.leaseClose(1);
    s.lease(2, chain.slice(0, 300));
    expect(load(s, chain, 16, PIECE, 2)).toEqual(blocksOf(s, chain, 16, PIECE));
    s.ledger.audit();
  });
});
