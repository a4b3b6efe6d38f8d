/** Blocks of namespaces that one life does not know: they are there for the next, unless their room was needed. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { evict } from "../../../src/ledger/evict.ts";
import { TIER } from "../../../src/ledger/types.ts";
import { addon, DIGEST, Node, startAddon, until } from "./support.ts";

beforeAll(startAddon);
afterAll(() => addon.stop());

const OTHER = DIGEST.map((byte) => byte + 100);
const zeroes = (count: number): number[] => Array<number>(count).fill(0);

/** A life of namespace `digest` alone that leaves these chains of 50 blocks on the disk. */
async function life(root: string | undefined, digest: Uint8Array, chains: readonly number[]) {
  const node = new Node(root);
  node.known = [digest];
  await node.open();
  await node.ready();
  for (const chain of chains) expect(await node.demote(await node.store(chain, 50))).toBe(50);
  return node;
}

describe("entries of a namespace that is not bound", () => {
  it("stay in the index over a life that writes elsewhere, and are read by the next one", async () => {
    const first = await life(undefined, DIGEST, [1]);
    await first.close();
    const second = await life(first.root, OTHER, [2]);
    expect(second.report).toMatchObject({ headers: 50, recovered: 0, dropped: 0 });
    expect(second.tier.devices[0]!.counters.entriesHeld).toBe(50);
    expect(second.chain(1, 50)).toHaveLength(0);
    second.ledger.audit();
    await second.close(5_000);

    const third = await new Node(first.root).open();
    expect(third.report).toMatchObject({ headers: 100, recovered: 100, dropped: 0 });
    for (const [namespace, chain] of [1, 2].entries()) {
      third.namespace = namespace;
      expect(await third.read(chain, 50)).toEqual(zeroes(50));
    }
    third.ledger.audit();
    await third.close();
    third.remove();
  });

  it("share a segment with blocks that are read, evicted, and come back with them", async () => {
    // Both namespaces' blocks in one segment of 102 slots.
    const first = await life(undefined, DIGEST, [1]);
    await first.close();
    const mixed = await new Node(first.root).open();
    const index = mixed.ledger.addNamespace({
      keyWords: 8,
      shards: 1,
      chained: true,
      payloadBytes: 16_384,
      tenant: 0,
    });
    mixed.dram.putNamespace(index, OTHER, new TextEncoder().encode("{}"));
    mixed.tier.bindNamespace(index, OTHER, new TextEncoder().encode("{}"));
    mixed.namespace = index;
    expect(await mixed.demote(await mixed.store(2, 50))).toBe(50);
    const slabs = new Set(
      [...mixed.chain(2, 50)].map((block) => mixed.ledger.slotOf(block, TIER.NVME, 0) >>> 18),
    );
    mixed.namespace = 0;
    slabs.add(mixed.ledger.slotOf(mixed.chain(1, 1)[0]!, TIER.NVME, 0) >>> 18);
    expect(slabs.size).toBe(1);
    await mixed.close();

    const partly = new Node(first.root);
    partly.known = [OTHER];
    await partly.open();
    expect(partly.report).toMatchObject({ recovered: 50, dropped: 0 });
    expect(await partly.read(2, 50)).toEqual(zeroes(50));
    const { core } = partly.ledger;
    for (const block of partly.chain(2, 50).toReversed()) {
      evict(core, block, core.tier(TIER.NVME));
    }
    partly.ledger.flush();
    partly.ledger.audit();
    await partly.ready();
    expect(await partly.demote(await partly.store(3, 50))).toBe(50);
    await partly.close(5_000);

    const whole = await new Node(first.root).open();
    expect(whole.report.recovered).toBe(150);
    whole.namespace = 0;
    expect(await whole.read(1, 50)).toEqual(zeroes(50));
    whole.ledger.audit();
    await whole.close();
    whole.remove();
  });

  it("make room when the device has no other segment left", async () => {
    const first = await life(undefined, DIGEST, [1, 2]);
    await first.close();
    const second = await life(first.root, OTHER, [11, 12, 13, 14, 15, 16]);
    const device = second.tier.devices[0]!;
    await until(() => device.held.list.length === 0);
    for (const chain of [17, 18]) {
      expect(await second.demote(await second.store(chain, 50))).toBe(50);
    }
    second.ledger.audit();
    await until(() => device.owedPages === 0);
    await device.committer.idle();
    await second.close();
    const third = await new Node(first.root).open();
    expect(third.report).toMatchObject({ recovered: 400, dropped: 0 });
    await third.close();
    third.remove();
  });

  it("are forgotten by a device that is fenced, and the device is whole again", async () => {
    const first = await life(undefined, DIGEST, [1]);
    await first.close();
    const second = await life(first.root, OTHER, [2]);
    const device = second.tier.devices[0]!;
    device.event("hang");
    expect(device.held.list).toEqual([]);
    await until(() => device.health === "ok" && !device.rebuilding && !device.rebuildNeeded);
    expect(await second.read(2, 50)).toEqual(zeroes(50));
    for (const chain of [3, 4, 5, 6, 7, 8]) {
      expect(await second.demote(await second.store(chain, 50))).toBe(50);
    }
    second.ledger.audit();
    await second.close();
    second.remove();
  });
});
