/** Segments that are given back, and what the index still says of them. */
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { TIER } from "../../../src/ledger/types.ts";
import { StaleKeys } from "../../../tiers/nvme/device-index.ts";
import { PAGES_PER_SEGMENT } from "../../../tiers/nvme/index-pages.ts";
import { IndexStore, type PageWrite } from "../../../tiers/nvme/index-store.ts";
import { startProbe } from "../../../tiers/nvme/probe.ts";
import { addon, Node, startAddon, until } from "./support.ts";

beforeAll(startAddon);
afterAll(() => addon.stop());

const zeroes = (count: number): number[] => Array<number>(count).fill(0);

/** Entries that the index of a closed node names. */
async function indexed(node: Node): Promise<number> {
  const probe = startProbe(node.directory());
  const { damage, entries } = await probe.verdict;
  probe.stop();
  expect(damage).toBeUndefined();
  return entries;
}

describe("a segment that was given back", () => {
  it("leaves the index with the next commits, although its slots are no more", async () => {
    const node = await (await new Node().open()).ready();
    expect(await node.demote(await node.store(1, 100))).toBe(100);
    const device = node.tier.devices[0]!;
    await device.committer.idle();
    device.draining = true;
    device.segments.retireAll();
    await until(() => device.segments.count === 0);
    await until(() => device.owedPages === 0);
    await device.committer.idle();
    await node.close();
    expect(await indexed(node)).toBe(0);
    node.remove();
  });

  it("lends its number to no other before the index has forgotten it, also after a kill", async () => {
    const first = await (await new Node().open()).ready();
    expect(await first.demote(await first.store(1, 100))).toBe(100);
    const device = first.tier.devices[0]!;
    const slot = first.ledger.slotOf(first.chain(1, 1)[0]!, TIER.NVME, 0);
    const { segment } = device.segments.at(first.ledger.core.tier(TIER.NVME).slots.slabOf(slot))!;
    await device.committer.idle();
    // All files go, and nothing of that reaches the index.
    device.draining = true;
    device.segments.retireAll();
    vi.spyOn(device, "committable", "get").mockReturnValue(false);
    await until(() => device.segments.count === 0);
    await first.close();
    expect(await indexed(first)).toBe(100);

    const write = vi.spyOn(IndexStore.prototype, "write");
    const names = ({ key }: PageWrite): boolean => Math.floor(key / PAGES_PER_SEGMENT) === segment;
    const forgotten = (): boolean =>
      write.mock.settledResults.some(
        ({ type }, call) => type === "fulfilled" && write.mock.calls[call]![0].some(names),
      );
    const prepared: number[] = [];
    const face = Object.assign(Object.create(addon) as typeof addon, {
      diskPrepare: (disk: number, number: number, task: number) => {
        if (!forgotten()) prepared.push(number);
        addon.diskPrepare(disk, number, task);
      },
    });
    const second = await new Node(first.root).open([first.entry()], face);
    await second.ready(2);
    expect(prepared).not.toContain(segment);
    await until(forgotten);
    expect(await second.demote(await second.store(2, 50))).toBe(50);
    await second.close();
    vi.restoreAllMocks();
    expect(await indexed(second)).toBe(50);
    const third = await new Node(first.root).open();
    expect(third.report).toMatchObject({ headers: 50, recovered: 50 });
    expect(await third.read(2, 50)).toEqual(zeroes(50));
    await third.close();
    third.remove();
  });
});

describe("stale keys", () => {
  it("name their segments until each of them was removed", () => {
    const keys = new StaleKeys();
    const [first, second] = [3 * PAGES_PER_SEGMENT, 5 * PAGES_PER_SEGMENT + 7];
    for (const key of [first, first + 1, first, second]) keys.add(key);
    expect([keys.size, keys.names(3), keys.names(5), keys.names(4)]).toEqual([
      3,
      true,
      true,
      false,
    ]);
    expect(keys.first(2)).toEqual([first, first + 1]);
    expect(keys.size).toBe(3);
    keys.removed([first, second, second]);
    expect([keys.size, keys.names(3), keys.names(5)]).toEqual([1, true, false]);
    expect(keys.first(10)).toEqual([first + 1]);
  });
});
