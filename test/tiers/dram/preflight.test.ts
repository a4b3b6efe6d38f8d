import { chmodSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { CairnError } from "../../../src/errors.ts";
import {
  AUTO_BYTES_MIN,
  type HostFacts,
  hostFacts,
  planPool,
  prepareDirectory,
} from "../../../tiers/dram/preflight.ts";

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;
const SLAB = 64 * MIB;

function facts(over: Partial<HostFacts> = {}): HostFacts {
  return {
    memAvailableBytes: 16 * GIB,
    directoryFreeBytes: 8 * GIB,
    cgroupFreeBytes: Number.POSITIVE_INFINITY,
    memlockBytes: Number.POSITIVE_INFINITY,
    poolBytes: 0,
    poolLengthBytes: 0,
    ...over,
  };
}

const plan = (capacity: number | "auto", over: Partial<HostFacts> = {}) =>
  planPool(capacity, SLAB, "/pool", facts(over));

describe("the size of the pool", () => {
  it("is a quarter of free memory when nobody says otherwise", () => {
    expect(plan("auto").capacityBytes).toBe(4 * GIB);
    expect(plan("auto").notes).toEqual([]);
  });

  it("shrinks to what the directory and the cgroup leave, and says so", () => {
    const small = plan("auto", { directoryFreeBytes: GIB });
    expect(small.capacityBytes).toBeLessThanOrEqual(GIB);
    expect(small.notes.join()).toContain("auto capacity cut");
    expect(plan("auto", { cgroupFreeBytes: GIB }).capacityBytes).toBe(GIB / 4);
    expect(plan("auto", { memAvailableBytes: 128 * MIB }).capacityBytes).toBe(AUTO_BYTES_MIN);
  });

  it("keeps an existing pool, whose bytes are its own already", () => {
    const pool = { poolBytes: 6 * GIB, poolLengthBytes: 6 * GIB + 4 * MIB };
    const kept = plan("auto", {
      ...pool,
      memAvailableBytes: 10 * GIB,
      directoryFreeBytes: 2 * GIB,
    });
    expect(kept.capacityBytes).toBe(6 * GIB);
    expect(plan(8 * GIB, { ...pool, directoryFreeBytes: 3 * GIB }).slabs).toBe(128);
  });

  it("as given is refused when memory, cgroup or file system cannot hold it, with the most that fits", () => {
    const name = (over: Partial<HostFacts>): string => {
      try {
        plan(6 * GIB, over);
        return "taken";
      } catch (error) {
        return error instanceof CairnError ? `${error.errorName} ${error.message}` : String(error);
      }
    };
    expect(name({})).toBe("taken");
    expect(name({ memAvailableBytes: 4 * GIB })).toMatch(/^poolTooLarge .*free memory .*3686 MiB$/);
    expect(name({ cgroupFreeBytes: 4 * GIB })).toMatch(/^poolTooLarge .*free memory/);
    expect(name({ directoryFreeBytes: GIB })).toMatch(/^poolTooLarge .*free space of \/pool/);
  });

  it("is at least one slab, or nothing starts", () => {
    expect(() => plan(SLAB - 1)).toThrow("not even one slab");
    expect(plan(SLAB).slabs).toBe(1);
  });

  it("beyond the memlock limit is noted, not refused", () => {
    expect(plan(GIB, { memlockBytes: 8 * MIB }).notes.join()).toContain("memlock");
  });
});

describe("the pool's directory", () => {
  it("is made closed to others, and refused when it is open, foreign or no directory", () => {
    const parent = mkdtempSync(join(tmpdir(), "cairn-preflight-"));
    const directory = join(parent, "a", "b");
    prepareDirectory(directory);
    expect(statSync(directory).mode & 0o777).toBe(0o700);
    prepareDirectory(directory);
    expect(hostFacts(directory)).toMatchObject({ poolBytes: 0, poolLengthBytes: 0 });
    expect(hostFacts(directory).memAvailableBytes).toBeGreaterThan(0);
    chmodSync(directory, 0o750);
    expect(() => prepareDirectory(directory)).toThrow("mode 750");
    expect(() => prepareDirectory("/proc/self/status")).toThrow(/directory|mode/);
    // Below something that is no directory: typed, too.
    for (const below of ["x", "x/y"]) {
      const act = (): void => prepareDirectory(join("/proc/self/status", below));
      expect(act).toThrow(expect.objectContaining({ errorName: "directoryUnsafe" }));
    }
    rmSync(parent, { recursive: true });
  });
});
