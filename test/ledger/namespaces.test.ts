/** Indexes of namespaces that nothing names any more go to others, and carry nothing over. */
import { afterEach, describe, expect, test } from "vitest";
import { TIER, type NamespaceOptions } from "../../src/ledger/types.ts";
import { random } from "./forest.ts";
import { KEY_WORDS, NO_BLOCK, Small, type SmallOptions } from "./small.ts";

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

function like(over: Partial<NamespaceOptions> = {}): NamespaceOptions {
  return { keyWords: KEY_WORDS, shards: 1, chained: true, payloadBytes: 64, tenant: 0, ...over };
}

/** Lets everything of the only tier go that may go. */
function evictAll(s: Small): void {
  const options = s.ledger.core.tier(TIER.DRAM).options as { highWatermark: number };
  Object.assign(options, { highWatermark: 0, lowWatermark: 0 });
  s.ledger.evictToWatermark(TIER.DRAM);
  Object.assign(options, { highWatermark: 1, lowWatermark: 1 });
}

describe("an index given to another namespace", () => {
  test("finds nothing of the former, and keys of another length", () => {
    const s = small();
    s.store("abc");
    evictAll(s);
    expect(s.ledger.recordsIn(s.namespace)).toBe(0);
    s.ledger.replaceNamespace(s.namespace, like({ keyWords: 2, tenant: 1, payloadBytes: 128 }));
    const words = new Uint32Array([5, 6, 7, 8]);
    expect(s.ledger.lookup(s.namespace, words, 0, 2).depth).toBe(0);
    const blocks = new Uint32Array(2);
    const statuses = new Uint8Array(2);
    const taken = s.ledger.reserve(s.namespace, 0, words, 0, 0, 2, 0, statuses, blocks);
    expect(taken.wanted).toBe(2);
    for (const block of blocks) {
      s.ledger.fillStart(block, TIER.DRAM, 0);
      s.ledger.fillEnd(block, TIER.DRAM, 0, true);
    }
    expect(s.ledger.lookup(s.namespace, words, 0, 2).depth).toBe(2);
    expect(s.ledger.recordsIn(s.namespace)).toBe(2);
    expect(s.ledger.core.tenants.blocksOf(1, TIER.DRAM)).toBe(2);
    expect(s.ledger.core.tenants.blocksOf(0, TIER.DRAM)).toBe(0);
  });

  test("must have no record: not one reserved, filling, visible, or kept as a hole", () => {
    const s = small();
    const refused = (): void =>
      expect(() => s.ledger.replaceNamespace(s.namespace, like())).toThrow(/records name/);
    s.reserve("a");
    refused();
    s.start("a");
    refused();
    s.end("a");
    refused();
    s.store("ab");
    s.ledger.corrupt(s.block("a"), TIER.DRAM);
    expect(s.block("a")).not.toBe(NO_BLOCK);
    refused();
    expect(s.ledger.recordsIn(s.namespace)).toBe(2);
  });

  test("must exist", () => {
    const s = small();
    expect(() => s.ledger.replaceNamespace(1, like())).toThrow(/that exists/);
  });
});

describe("size classes", () => {
  test("are as many as namespaces and slabs need, however many sizes came and went", () => {
    const s = small({ dram: 4 });
    const { slots } = s.ledger.core.tier(TIER.DRAM);
    for (let size = 1; size <= 500; size += 1) {
      s.ledger.replaceNamespace(s.namespace, like({ payloadBytes: size * 64 }));
    }
    expect(slots.classes.length).toBeLessThanOrEqual(2);
    expect(slots.classes.at(s.ledger.core.namespaces[0]!.classOfTier[0]!)?.payloadBytes).toBe(
      32_768,
    );
  });

  test("are kept while a slab serves them or another namespace names them", () => {
    const next = random(11);
    const s = small({ dram: 8 });
    const other = s.ledger.addNamespace(like({ payloadBytes: 256 }));
    const words = new Uint32Array(KEY_WORDS).fill(9);
    const at = { blocks: new Uint32Array(1), statuses: new Uint8Array(1) };
    s.ledger.reserve(other, 0, words, 0, 0, 1, 0, at.statuses, at.blocks);
    s.ledger.fillStart(at.blocks[0]!, TIER.DRAM, 0);
    s.ledger.fillEnd(at.blocks[0]!, TIER.DRAM, 0, true);
    for (let step = 0; step < 200; step += 1) {
      s.ledger.replaceNamespace(s.namespace, like({ payloadBytes: 64 * (1 + (next() % 40)) }));
      s.ledger.audit();
    }
    expect(s.ledger.lookup(other, words, 0, 1).depth).toBe(1);
  });
});
