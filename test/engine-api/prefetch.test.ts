import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DISK, DISK_ITEM_WORDS, EVENT, ITEM, ITEM_PROMOTED } from "../../addon/binding.ts";
import { coldFrame, decodeCold } from "../../src/engine-api/codec.ts";
import { FLAG, OP } from "../../src/engine-api/protocol.ts";
import { STATE, TIER } from "../../src/ledger/types.ts";
import { METRIC } from "../../src/observe/feed.ts";
import { LIFT, type RemoteSource } from "../../src/transfer/prefetcher.ts";
import { keysOf } from "../e2e/support.ts";
import { FakeServer } from "./fake-server.ts";
import { hotFrame } from "./support.ts";

const PROMOTED = ITEM.OK | ITEM_PROMOTED;
const keys = keysOf(1, 6);
let fake: FakeServer;

beforeEach(() => {
  fake = new FakeServer(64, 64);
  fake.store(keys);
  fake.demote(keys, true);
});
afterEach(() => {
  expect(fake.batches).toHaveLength(0);
  expect(fake.server.prefetcher.lifts).toBe(0);
  fake.ledger.audit();
});

function ask(id: number, body: object, flags = 0, namespace = 0, tag = 40): object {
  fake.replies.length = 0;
  fake.send(coldFrame(OP.PREFETCH, flags, tag, id, namespace, body));
  const [reply] = fake.replies;
  if (reply === undefined) throw new Error("no reply");
  expect(reply.header.flags).toBe(FLAG.REPLY);
  return decodeCold(new Uint8Array(reply.body.buffer, reply.body.byteOffset));
}

/** [outcome, resident blocks] of the one completion. */
function ended(): [number, number] {
  const found = fake.replies.filter(({ header }) => (header.flags & FLAG.COMPLETION) !== 0);
  const [reply] = found;
  if (reply === undefined || found.length > 1) throw new Error(`${found.length} completions`);
  expect(reply.header).toMatchObject({ op: OP.PREFETCH, tag: 40, id: 40 });
  return [reply.body.getUint32(0, true), reply.header.count];
}

function inDram(chain: Uint8Array): number {
  const states = fake.blocksOf(chain).map((block) => fake.ledger.stateOf(block, TIER.DRAM));
  return states.filter((state) => state === STATE.VISIBLE).length;
}

describe("PREFETCH", () => {
  it("lifts what the lease stands on into DRAM, root first", () => {
    const lease = fake.lease(keys);
    expect(ask(lease, {})).toEqual({ verdict: "accepted", blocks: 6 });
    const batch = fake.end(() => PROMOTED);
    expect(batch.request).toMatchObject({ kind: DISK.READ, region: 0, priority: 1 });
    expect(batch.count).toBe(6);
    const slots = fake.blocksOf(keys).map((block) => fake.ledger.slotOf(block, TIER.DRAM, 0));
    const targets = slots.map((_, item) => batch.items[item * DISK_ITEM_WORDS + 4]);
    expect(targets).toEqual(slots);
    expect(ended()).toEqual([LIFT.DONE, 6]);
    expect(inDram(keys)).toBe(6);
    expect(fake.feed.get(METRIC.prefetchedBlocks)).toBe(6);
    fake.load(lease, keys);
    expect(fake.end().disk).toBe(false);
  });

  it("takes the chain that a LOOKUP kept, by its request id, also where nothing was hit", () => {
    const far = keysOf(9, 4);
    fake.send(hotFrame(OP.LOOKUP, FLAG.KEEP_CHAIN, 1, 77, 4, [0, 0, far]));
    expect(fake.replies.at(-1)?.header.id).toBe(0);
    expect(ask(77, {}, FLAG.BY_REQUEST, 1)).toEqual({ verdict: "accepted", blocks: 4 });
    expect(ended()).toEqual([LIFT.CLIPPED, 0]);
  });

  it("takes whole keys, and what is there already costs nothing", () => {
    const other = keysOf(2, 3);
    fake.store(other);
    fake.lease(other, 8);
    ask(8, { keys: other }, FLAG.BY_REQUEST, 1);
    expect(ended()).toEqual([LIFT.DONE, 3]);
    expect(fake.feed.get(METRIC.prefetchedBlocks)).toBe(0);
  });

  it("of nothing that was announced is refused", () => {
    fake.send(coldFrame(OP.PREFETCH, FLAG.BY_REQUEST, 40, 999, 1, {}));
    expect(fake.replies.at(-1)?.header.flags).toBe(FLAG.REPLY | FLAG.ERROR);
    fake.lease(keys, 5, FLAG.NO_LEASE | FLAG.KEEP_CHAIN);
    fake.send(hotFrame(OP.LOOKUP, 0, 1, 6, 0, [0, 0]));
    const verdict = ask(5, {}, FLAG.BY_REQUEST, 0);
    expect(verdict).toMatchObject({ verdict: "refused" });
  });

  it("stops at the first block that proves bad, and says how far it came", () => {
    ask(fake.lease(keys), {});
    fake.end((item) => (item === 4 ? ITEM.CORRUPT : PROMOTED));
    expect(ended()).toEqual([LIFT.CLIPPED, 4]);
    expect(fake.feed.get(METRIC.corruptBlocks)).toBe(1);
    fake.lease(keys, 9);
    expect(fake.replies.at(-1)?.header.count).toBe(4);
  });

  it("ends at its deadline, once nothing of it is in flight", async () => {
    ask(fake.lease(keys), { deadlineMs: 1 });
    await new Promise((resolve) => {
      setTimeout(resolve, 5);
    });
    fake.server.tick();
    expect(() => ended()).toThrow("0 completions");
    expect(fake.cancelled).toHaveLength(1);
    fake.end((item) => (item < 2 ? PROMOTED : ITEM.CANCELLED));
    expect(ended()).toEqual([LIFT.DEADLINE, 2]);
  });

  it("is cancelled by its tag, and its completion comes before the reply", () => {
    ask(fake.lease(keys), {});
    fake.send(coldFrame(OP.CANCEL, 0, 41, 40, 0, undefined));
    fake.end(() => ITEM.CANCELLED);
    expect(ended()).toEqual([LIFT.CANCELLED, 0]);
    expect(fake.replies.at(-1)?.header).toMatchObject({ op: OP.CANCEL, tag: 41, count: 1 });
    expect(inDram(keys)).toBe(0);
  });

  it("ends with its request, and with its connection", () => {
    const lease = fake.lease(keys, 5);
    ask(lease, {});
    fake.send(coldFrame(OP.END_REQUEST, 0, 42, 5, 0, undefined));
    fake.end(() => ITEM.CANCELLED);
    expect(ended()[0]).toBe(LIFT.CANCELLED);
    ask(fake.lease(keys, 6), {});
    const before = fake.replies.length;
    fake.hangUp();
    fake.end(() => ITEM.CANCELLED);
    expect(fake.replies.length).toBe(before);
  });

  it("is clipped to half of DRAM", () => {
    const lease = fake.lease(keys);
    const many = keysOf(3, 40);
    expect(ask(lease, { keys: many })).toMatchObject({ verdict: "clipped", blocks: 32 });
    expect(ended()).toEqual([LIFT.CLIPPED, 0]);
  });

  it("goes on in the remote tier where the node's own tiers end", () => {
    const calls: { from: number; done: (blocks: number, bytes: number) => void }[] = [];
    const remote: RemoteSource = {
      fetch: (_chain, from, _deadlineMs, _signal, done) => calls.push({ from, done }),
    };
    fake.server.prefetcher.remote = remote;
    const longer = keysOf(1, 10);
    ask(fake.lease(keys), { keys: longer });
    fake.end(() => PROMOTED);
    expect(calls.map(({ from }) => from)).toEqual([6]);
    expect(() => ended()).toThrow("0 completions");
    calls[0]?.done(0, 0);
    expect(ended()).toEqual([LIFT.CLIPPED, 6]);
  });

  it("tells the remote part when it is cancelled, and waits for it", () => {
    let aborted = false;
    let finish: (() => void) | undefined;
    fake.server.prefetcher.remote = {
      fetch: (_chain, _from, _deadlineMs, signal, done) => {
        signal.addEventListener("abort", () => {
          aborted = true;
        });
        finish = () => done(0, 0);
      },
    };
    const far = keysOf(9, 4);
    fake.lease(keys, 5);
    ask(5, { keys: far }, FLAG.BY_REQUEST, 1);
    fake.send(coldFrame(OP.CANCEL, 0, 41, 40, 0, undefined));
    expect(aborted).toBe(true);
    expect(() => ended()).toThrow("0 completions");
    finish?.();
    // The completion goes out with the next event at the latest.
    fake.event([EVENT.PROGRESS, 1, 0, 0, 0, 0, 0, 0]);
    expect(ended()).toEqual([LIFT.CANCELLED, 0]);
  });

  it("lifts all shards of a block, or none", () => {
    fake = new FakeServer(64, 64, { shards: 2 });
    const one = keysOf(4, 1);
    const words = new Uint32Array(one.slice().buffer);
    for (const shard of [0, 1]) {
      fake.ledger.reserve(0, 0, words, 0, 0, 1, shard, new Uint8Array(1), new Uint32Array(1));
    }
    const [block = 0] = fake.blocksOf(one);
    for (const shard of [0, 1]) fake.ledger.fillStart(block, TIER.DRAM, shard);
    for (const shard of [0, 1]) fake.ledger.fillEnd(block, TIER.DRAM, shard, true);
    fake.demote(one, true);
    const lease = fake.lease(one);
    ask(lease, {});
    expect(fake.end(() => PROMOTED).request.shard).toBe(0);
    fake.end(() => ITEM.DEADLINE);
    expect(ended()).toEqual([LIFT.CLIPPED, 0]);
    ask(lease, {});
    fake.end(() => PROMOTED);
    fake.end(() => PROMOTED);
    expect(ended()).toEqual([LIFT.DONE, 1]);
  });
});
