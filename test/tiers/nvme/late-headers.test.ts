/** Headers that wait for parents of other disks: when they are offered, in which order, and how many. */
import { beforeEach, describe, expect, it } from "vitest";
import { SLOT_HEADER } from "../../../addon/binding.ts";
import type { Ledger } from "../../../src/ledger/ledger.ts";
import { LIMITS } from "../../../src/limits.ts";
import type { Device } from "../../../tiers/nvme/device.ts";
import { LateHeaders } from "../../../tiers/nvme/late-headers.ts";

const disk = (): Device => ({ closed: false }) as Device;
const header = (depth: number): Uint32Array => {
  const words = new Uint32Array(32);
  words[SLOT_HEADER.DEPTH] = depth;
  return words;
};

let offered: number[];
let flushes: number;
let late: LateHeaders;
let first: Device;
let second: Device;

beforeEach(() => {
  offered = [];
  flushes = 0;
  first = disk();
  second = disk();
  const ledger = { flush: () => (flushes += 1) } as unknown as Ledger;
  late = new LateHeaders(
    () => ledger,
    (_device, _ledger, words) => offered.push(words[SLOT_HEADER.DEPTH] ?? 0) > 0,
  );
});

describe("headers without their parent", () => {
  it("wait only while another disk is read, or while some wait already", () => {
    late.begin();
    expect(late.open).toBe(false);
    late.begin();
    expect(late.open).toBe(true);
    expect(late.keep(first, header(5))).toBe(true);
    late.readEnded();
    expect(late.open).toBe(true);
    late.readEnded();
    expect(late.open).toBe(false);
  });

  it("are offered when the last disk has been read, by depth over all of them", async () => {
    late.begin();
    late.begin();
    for (const depth of [3, 7, 9]) late.keep(first, header(depth));
    for (const depth of [4, 8]) late.keep(second, header(depth));
    const { settled } = late;
    late.readEnded();
    expect(offered).toEqual([]);
    late.readEnded();
    const adopted = await settled;
    expect(offered).toEqual([3, 4, 7, 8, 9]);
    expect([adopted?.get(first), adopted?.get(second)]).toEqual([3, 2]);
    expect(flushes).toBeGreaterThan(0);
    expect(late.settled).toBeUndefined();
  });

  it("of a disk that was closed meanwhile are not offered", async () => {
    late.begin();
    late.begin();
    late.keep(first, header(3));
    late.keep(second, header(4));
    Object.assign(first, { closed: true });
    const { settled } = late;
    late.readEnded();
    late.readEnded();
    await settled;
    expect(offered).toEqual([4]);
  });

  it("are refused beyond their bound", () => {
    late.begin();
    late.begin();
    const words = header(2);
    for (let index = 0; index < LIMITS.nvmeLateHeadersMax; index++) late.keep(first, words);
    expect(late.keep(first, words)).toBe(false);
  });
});
