/**
 * Rule 4 with DRAM only: the order of leaving equals leaf-first LRU in which a use touches every ancestor.
 * The oracle is that LRU written naively over Maps; the ledger must evict the same blocks in the same
 * order, on bushy trees, with leases, and with fills that fail.
 */
import { expect, test } from "vitest";
import { assert } from "../../src/assert.ts";
import { NO_BLOCK } from "../../src/ledger/types.ts";
import { random } from "./forest.ts";
import { Small } from "./small.ts";
import { FakeStore } from "./store.ts";

class NaiveLru {
  /** Chain → last use, of it or of anything below it. */
  readonly used = new Map<string, number>();
  readonly leased = new Map<string, number>();
  readonly evicted: string[] = [];
  time = 0;

  touch(chain: string): void {
    this.time += 1;
    for (let depth = 1; depth <= chain.length; depth += 1)
      this.used.set(chain.slice(0, depth), this.time);
  }

  /**
   * Evicts the least recently used leaf that is neither leased nor a parent of `pending`; false if there is
   * none.
   */
  evictOne(pending: readonly string[]): boolean {
    const parents = new Set([...this.used.keys(), ...pending].map((chain) => chain.slice(0, -1)));
    let best: string | undefined;
    for (const [chain, time] of this.used) {
      if (parents.has(chain) || (this.leased.get(chain) ?? 0) > 0) continue;
      const older = best === undefined || time < this.used.get(best)!;
      if (older || (time === this.used.get(best!) && chain.length > best!.length)) best = chain;
    }
    if (best === undefined) return false;
    this.used.delete(best);
    this.evicted.push(best);
    return true;
  }
}

function lookupBoth(s: Small, lru: NaiveLru, chain: string): number {
  let depth = 0;
  while (depth < chain.length && lru.used.has(chain.slice(0, depth + 1))) depth += 1;
  assert(s.hit(chain) === depth, "look-up and oracle differ");
  if (depth > 0) {
    s.ledger.touch(s.block(chain.slice(0, depth)));
    lru.touch(chain.slice(0, depth));
  }
  return depth;
}

function storeBoth(s: Small, lru: NaiveLru, chain: string, from: number, capacity: number): void {
  const pending: string[] = [];
  let end = from;
  for (; end < chain.length; end += 1) {
    pending.push(chain.slice(0, end + 1));
    if (lru.used.size + pending.length > capacity && !lru.evictOne(pending)) {
      pending.pop();
      break;
    }
  }
  const statuses = s.store(chain, from);
  const wanted = statuses.split("w").length - 1;
  assert(wanted === end - from, "the oracle finds room for another number of blocks");
  for (const block of pending) lru.used.set(block, 0);
  if (end > from) lru.touch(chain.slice(0, end));
}

test("DRAM-only eviction order is leaf-first LRU with all ancestors touched, exactly", () => {
  let evictions = 0;
  for (let seed = 1; seed <= 60; seed += 1) {
    const next = random(seed);
    const capacity = 4 + (next() % 12);
    const s = new Small({ store: new FakeStore(1, capacity), blocksMax: 64 });
    const lru = new NaiveLru();
    const leases = new Map<number, string>();
    let lease = 0;
    for (let step = 0; step < 400; step += 1) {
      let chain = "";
      for (let depth = 1 + (next() % 5); depth > 0; depth -= 1) chain += "abc"[next() % 3];
      const depth = lookupBoth(s, lru, chain);
      s.dram.freed.length = 0;
      if (next() % 3 > 0 && depth < chain.length) storeBoth(s, lru, chain, depth, capacity);
      else if (depth > 0 && leases.size < 2 && next() % 2 === 0) {
        lease += 1;
        const held = chain.slice(0, depth);
        leases.set(lease, held);
        s.lease(lease, held);
        lru.leased.set(held, (lru.leased.get(held) ?? 0) + 1);
      } else if (leases.size > 0) {
        const [oldest, held] = [...leases][0]!;
        leases.delete(oldest);
        s.ledger.leaseClose(oldest);
        lru.leased.set(held, lru.leased.get(held)! - 1);
      }
      for (const victim of lru.evicted) assert(s.block(victim) === NO_BLOCK, "another victim");
      evictions += lru.evicted.length;
      lru.evicted.length = 0;
      assert(s.ledger.core.table.used === lru.used.size, `seed ${seed}: resident sets differ`);
      for (const resident of lru.used.keys()) assert(s.isVisible(resident), "resident sets differ");
    }
    s.ledger.audit();
  }
  expect(evictions).toBeGreaterThan(3_000);
});
