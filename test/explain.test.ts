import { describe, expect, it } from "vitest";
import { explainKey, type ExplainSources } from "../src/explain.ts";
import { TIER } from "../src/ledger/types.ts";
import { Dropped } from "../src/transfer/dropped.ts";
import { REFUSAL, Refusals } from "../src/transfer/refusals.ts";
import { keyAt, keysOf } from "./e2e/support.ts";
import { coldFrame } from "../src/engine-api/codec.ts";
import { OP } from "../src/engine-api/protocol.ts";
import { FakeServer } from "./engine-api/fake-server.ts";
import { storeFrame } from "./engine-api/support.ts";

/** Of FakeServer. */
const REGION = 7;
const keys = keysOf(1, 3);
const last = keyAt(keys, 2);

function sourcesOf(fake: FakeServer, refusals: Refusals): ExplainSources {
  return {
    ledger: fake.ledger,
    namespaces: fake.server.context.namespaces.list,
    notStored: fake.server.context.notStored,
    nvme: { refusals, writeThrough: false, directoryOf: (slot) => `/disk/${slot}` },
    remote: undefined,
    nowMs: 61_000,
  };
}

/** Why, by tier. */
function places(sources: ExplainSources, key: Uint8Array): Record<string, string> {
  const [block] = explainKey(sources, key);
  return Object.fromEntries((block?.places ?? []).map(({ tier, why }) => [tier, why]));
}

describe("an explanation", () => {
  it("follows a block from DRAM to NVMe, tier by tier", () => {
    const fake = new FakeServer(64, 64);
    const sources = sourcesOf(fake, new Refusals(() => 1_000));
    expect(explainKey(sources, last)).toEqual([]);
    fake.store(keys);
    expect(places(sources, last)).toMatchObject({
      dram: expect.stringMatching(/readable; it may leave/),
      nvme: expect.stringMatching(/not written yet: write-back/),
      remote: "this node has no remote tier",
    });
    expect(places(sources, keyAt(keys, 0))["dram"]).toMatch(/it stays: children stand on it/);
    fake.demote(keys, true);
    expect(places(sources, last)).toMatchObject({
      dram: expect.stringMatching(/a load or PREFETCH promotes it/),
      nvme: expect.stringMatching(/^synced and indexed in \/disk\//),
    });
    fake.lease(keys);
    expect(places(sources, last)["nvme"]).toMatch(/it stays: 1 leases hold it/);
  });

  it("names the reason and the time of the last refusal, also when the block is gone", () => {
    const fake = new FakeServer(64, 64);
    const refusals = new Refusals(() => 1_000);
    const sources = sourcesOf(fake, refusals);
    fake.store(keys);
    const words = new Uint32Array(last.slice().buffer);
    for (const reason of Object.values(REFUSAL)) {
      refusals.add(0, words, 0, 8, reason);
      expect(places(sources, last)["nvme"]).toMatch(/^not written 60 s ago: (?!unknown)/);
    }
    const [block = 0] = fake.blocksOf(last);
    fake.ledger.corrupt(block, TIER.DRAM);
    const [gone] = explainKey(sources, last);
    expect(gone?.verdict).toMatch(/its last copy left/);
    expect(gone?.copies).toEqual([]);
  });

  it("remembers what left DRAM before it could be copied down, and only that", () => {
    const fake = new FakeServer(6, 64);
    const refusals = new Refusals(() => 1_000);
    const sources = sourcesOf(fake, refusals);
    const dropped = new Dropped(fake.ledger, refusals);
    const backed = keysOf(2, 3);
    fake.store(backed);
    fake.demote(backed, false);
    fake.store(keys);
    dropped.step();
    // Three leave with a copy below, then three without one.
    fake.store(keysOf(3, 3));
    dropped.step();
    expect(places(sources, keyAt(backed, 2))["nvme"]).toMatch(/^synced and indexed/);
    fake.store(keysOf(4, 3));
    dropped.step();
    expect(places(sources, last)["nvme"]).toMatch(/evicted from DRAM before its turn came/);
    expect(explainKey(sources, keyAt(keysOf(3, 3), 2))).toHaveLength(1);
  });

  it("forgets the oldest refusals, and never names another block's", () => {
    const refusals = new Refusals(() => 1_000);
    const words = new Uint32Array(8);
    for (let index = 0; index < 10_000; index++) {
      words[0] = index;
      refusals.add(0, words, 0, 8, REFUSAL.NO_ROOM);
    }
    expect(refusals.find(0, words, 0, 8)?.reason).toBe(REFUSAL.NO_ROOM);
    expect(refusals.find(1, words, 0, 8)).toBeUndefined();
    words[0] = 3;
    expect(refusals.find(0, words, 0, 8)).toBeUndefined();
  });

  it("says what chunk a block belongs to in the remote tier", () => {
    const fake = new FakeServer(64, 64);
    fake.store(keys);
    const remote = { description: "directory /mnt/kv", chunkBlocksOf: () => 2 };
    const sources = { ...sourcesOf(fake, new Refusals(() => 1)), nvme: undefined, remote };
    expect(places(sources, last)).toMatchObject({
      nvme: "this node has no NVMe tier",
      remote: expect.stringMatching(/^directory \/mnt\/kv: .*depths 3 to 4/),
    });
  });

  it("says why a key was not stored: no slot, no record, no parent, no bytes", () => {
    const fake = new FakeServer(6, 64);
    const sources = { ...sourcesOf(fake, new Refusals(() => 1)), nowMs: Date.now() + 5_000 };
    const dram = (key: Uint8Array): string | undefined => places(sources, key)["dram"];
    const stored = keysOf(2, 5);
    fake.store(stored);
    fake.lease(stored);
    // One slot is left for three keys.
    fake.send(storeFrame(11, REGION, keys, [0, 1, 2]));
    expect(dram(keyAt(keys, 0))).toMatch(/its bytes are being written/);
    expect(dram(last)).toMatch(/^not stored \d+ s ago: no slot could be freed/);
    expect(explainKey(sources, last)[0]).toMatchObject({
      verdict: "Not readable: it was offered and not stored.",
      copies: [],
    });
    fake.end();
    const below = keysOf(3, 2);
    const under = { startDepth: 1, parent: keyAt(below, 0) };
    fake.send(storeFrame(12, REGION, keyAt(below, 1), [3], under));
    expect(dram(keyAt(below, 1))).toMatch(/: the block that it continues was not here/);
    const many = keysOf(4, 1_025);
    fake.send(storeFrame(13, REGION, many, undefined));
    expect(dram(keyAt(many, 1_024))).toMatch(/: no record of the ledger could be freed/);
    // Reserved, never filled, and cancelled.
    const reserved = keysOf(5, 1);
    fake.ledger.corrupt(fake.blocksOf(keys)[0] ?? 0, TIER.DRAM);
    fake.send(storeFrame(14, REGION, reserved, undefined));
    expect(dram(reserved)).toMatch(/a slot is reserved, its bytes have not come yet/);
    const job = fake.replies.at(-1)?.header.id ?? 0;
    fake.send(coldFrame(OP.CANCEL, 0, 15, job, 0, undefined));
    expect(dram(reserved)).toMatch(/: its bytes did not come before the deadline/);
  });

  it("names every state that a copy can be in", () => {
    const fake = new FakeServer(64, 64);
    const sources = sourcesOf(fake, new Refusals(() => 1_000));
    const { ledger } = fake;
    fake.send(storeFrame(11, REGION, keys, undefined));
    const [first = 0, second = 0, third = 0] = fake.blocksOf(keys);
    const dram = (index: number): string | undefined => places(sources, keyAt(keys, index))["dram"];
    expect(dram(0)).toMatch(/^a slot is reserved/);
    for (const block of [first, second, third]) ledger.fillStart(block, TIER.DRAM, 0);
    expect(dram(2)).toBe("its bytes are being written now");
    ledger.fillEnd(second, TIER.DRAM, 0, true);
    expect(dram(1)).toBe("complete, but its parent is not readable yet");
    expect(explainKey(sources, keyAt(keys, 1))[0]?.verdict).toMatch(/^Not readable: a shard/);
    ledger.fillEnd(first, TIER.DRAM, 0, true);
    ledger.fillEnd(third, TIER.DRAM, 0, true);
    expect(dram(1)).toMatch(/^complete and readable; it stays: children stand on it/);
    ledger.pin(second, TIER.DRAM);
    ledger.corrupt(second, TIER.DRAM);
    expect(dram(1)).toBe("it proved wrong; readers still hold the slot");
    const [hole] = explainKey(sources, keyAt(keys, 1));
    expect(hole).toMatchObject({ flags: ["hole"], verdict: expect.stringMatching(/lost while/) });
    while (ledger.sweep(64));
    expect(dram(2)).toBe("complete, but its parent is gone: it leaves first");
    ledger.unpin(second, TIER.DRAM);
    fake.hangUp();
  });
});
