import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { TIER } from "../../../src/ledger/types.ts";
import { addon, Node, startAddon, until } from "./support.ts";

beforeAll(startAddon);
afterAll(() => addon.stop());

describe("the NVMe tier on the real addon", () => {
  it("writes segments in the background, copies down, and reads every byte back after a restart", async () => {
    const first = await (await new Node().open()).ready();
    const blocks = await first.store(1, 100);
    expect(await first.demote(blocks)).toBe(100);
    expect(await first.read(1, 100)).toEqual(Array(100).fill(0));
    first.ledger.audit();
    await first.close();

    const second = await new Node(first.root).open();
    expect(second.report).toMatchObject({ headers: 100, recovered: 100, dropped: 0 });
    expect(second.chain(1, 100)).toHaveLength(100);
    expect(await second.read(1, 100)).toEqual(Array(100).fill(0));
    second.ledger.audit();
    await second.close();
    second.remove();
  });
});
