import { afterEach, describe, expect, it } from "vitest";
import { DISK, ITEM, ITEM_PROMOTED } from "../../addon/binding.ts";
import { STATE, TIER } from "../../src/ledger/types.ts";
import { LIMITS } from "../../src/limits.ts";
import { Feed } from "../../src/observe/feed.ts";
import { Copies, DISK_PRIORITY } from "../../src/transfer/copies.ts";
import { Links } from "../../src/transfer/links.ts";
import { LIFT, type Lift, Prefetcher } from "../../src/transfer/prefetcher.ts";
import { KEY_WORDS, Small } from "../ledger/small.ts";
import { FakeDisks, FakeDiskTier } from "./fake-disk.ts";

const BLOCK_BYTES = 8 * 2 ** 20;
/** Blocks that may be on their way at once. */
const AT_ONCE = LIMITS.prefetchInFlightBytesMax / BLOCK_BYTES;

class Bench {
  ms = 0;
  readonly small = new Small({ dram: 64, nvme: 64, payloadBytes: BLOCK_BYTES });
  readonly disks = new FakeDisks();
  readonly copies = new Copies(this.disks, () => this.ms);
  readonly ended: [outcome: number, resident: number][] = [];
  readonly prefetcher = new Prefetcher({
    ledger: this.small.ledger,
    tier: new FakeDiskTier(),
    copies: this.copies,
    links: new Links(() => this.ms),
    feed: new Feed(),
    arena: 1,
    now: () => this.ms,
  });

  /** A chain that stands on NVMe alone. */
  below(chain: string): void {
    const { small } = this;
    small.store(chain);
    expect(small.copy(chain, TIER.DRAM, TIER.NVME)).toBe(true);
    for (let depth = chain.length; depth > 0; depth--) {
      small.ledger.corrupt(small.block(chain.slice(0, depth)), TIER.DRAM);
    }
    expect(small.ledger.stateOf(small.block(chain), TIER.NVME)).toBe(STATE.VISIBLE);
  }

  lift(chain: string, deadlineAt = 1_000): Lift {
    return this.prefetcher.begin({
      chain: {
        namespace: this.small.namespace,
        keyWords: KEY_WORDS,
        words: this.small.words(chain),
        count: chain.length,
      },
      deadlineAt,
      priority: DISK_PRIORITY.PREFETCH,
      done: (outcome, resident) => this.ended.push([outcome, resident]),
    });
  }

  get reading(): number {
    return this.disks.batches.reduce((sum, { count }) => sum + count, 0);
  }

  endOne(): void {
    this.disks.end(this.copies, () => ITEM.OK | ITEM_PROMOTED);
  }
}

let bench: Bench;
afterEach(() => {
  expect(bench.prefetcher.lifts).toBe(0);
  bench.small.ledger.audit();
});

describe("lifts", () => {
  it("have no more bytes on their way than the bound, all together, and go on as reads end", () => {
    bench = new Bench();
    bench.below("abcdefghijklm");
    bench.below("opqrst");
    bench.lift("abcdefghijklm");
    expect(bench.reading).toBe(AT_ONCE);
    bench.lift("opqrst");
    expect(bench.reading).toBe(AT_ONCE);
    for (const { request } of bench.disks.batches) {
      expect(request).toMatchObject({ kind: DISK.READ, priority: DISK_PRIORITY.PREFETCH });
    }
    while (bench.disks.batches.length > 0) {
      bench.endOne();
      bench.prefetcher.tick();
      expect(bench.reading).toBeLessThanOrEqual(AT_ONCE);
    }
    expect(bench.ended).toEqual([
      [LIFT.DONE, 13],
      [LIFT.DONE, 6],
    ]);
  });

  it("count what the remote tier brings once, though reads from NVMe end meanwhile", () => {
    bench = new Bench();
    bench.below("ab");
    let told: (blocks: number, bytes: number) => void = () => expect.unreachable("not asked");
    bench.prefetcher.remote = {
      fetch: (_chain, from, _deadlineMs, _signal, done) => {
        expect(from).toBe(2);
        told = done;
      },
    };
    bench.lift("abcd");
    expect(bench.reading).toBe(2);
    // Both come while the reads are under way, which end before the remote tier says so.
    bench.small.store("abcd");
    while (bench.disks.batches.length > 0) bench.endOne();
    expect(bench.ended).toEqual([]);
    told(2, 2 * BLOCK_BYTES);
    expect(bench.ended).toEqual([[LIFT.DONE, 4]]);
  });

  it("read nothing more once their deadline has passed, and leave what came", () => {
    bench = new Bench();
    bench.below("abcdefghijklm");
    bench.lift("abcdefghijklm", 50);
    bench.ms = 50;
    bench.prefetcher.tick();
    expect(bench.disks.cancelled).toEqual(bench.disks.batches.map(({ request }) => request.batch));
    while (bench.disks.batches.length > 0) bench.endOne();
    expect(bench.ended).toEqual([[LIFT.DEADLINE, AT_ONCE]]);
  });

  it("are so many at once, and one more is refused until one has ended", () => {
    bench = new Bench();
    bench.below("abcdefghijklm");
    const lifts = Array.from({ length: LIMITS.prefetchesMax }, () => bench.lift("abcdefghijklm"));
    expect(bench.prefetcher.refusal()).toMatch(/prefetchesMax/);
    for (const lift of lifts) bench.prefetcher.cancel(lift, LIFT.CANCELLED);
    while (bench.disks.batches.length > 0) bench.endOne();
    expect(bench.prefetcher.refusal()).toBeUndefined();
    expect(bench.ended).toHaveLength(lifts.length);
  });
});
