import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  gate,
  GATE_REASON,
  GATE_REASON_LABELS,
  type GateInput,
  type GateVerdict,
} from "../../src/policy/gate.ts";

const BASE: GateInput = {
  dramBlocks: 0,
  nvmeBlocks: 0,
  blockBytes: 1_000,
  blockTokens: 16,
  prefillTokensPerSecond: 0,
  dram: { latencyMicroseconds: 10, bytesPerMicrosecond: 1_000 },
  nvme: { latencyMicroseconds: 100, bytesPerMicrosecond: 100 },
};

function ask(over: Partial<GateInput>): GateVerdict {
  const verdict = { estimatedMicroseconds: -1, worthBlocks: -1, reason: -1 };
  gate({ ...BASE, ...over }, verdict);
  return verdict;
}

describe("the gate", () => {
  it("finds everything worth loading while the prefill rate is unknown", () => {
    const reason = GATE_REASON.UNKNOWN_RATE;
    const verdict = ask({ dramBlocks: 4, nvmeBlocks: 6 });
    // NVMe is the longer of both: 100 + 6 · 10.
    expect(verdict).toEqual({ estimatedMicroseconds: 160, worthBlocks: 10, reason });
  });

  it("loads all when computing takes longer", () => {
    const verdict = ask({ dramBlocks: 4, nvmeBlocks: 6, prefillTokensPerSecond: 10_000 });
    expect(verdict.worthBlocks).toBe(10);
    expect(verdict.reason).toBe(GATE_REASON.LOAD);
  });

  it("leaves the part on NVMe to the engine when that is quicker to compute than to read", () => {
    // One block computes in 16 µs; six read from NVMe in 160 µs.
    const verdict = ask({ dramBlocks: 4, nvmeBlocks: 6, prefillTokensPerSecond: 1_000_000 });
    expect(verdict.worthBlocks).toBe(4);
    expect(verdict.reason).toBe(GATE_REASON.NVME_SLOW);
    expect(verdict.estimatedMicroseconds).toBe(160);
  });

  it("finds nothing worth loading when even DRAM is slower than computing", () => {
    const verdict = ask({ dramBlocks: 1, prefillTokensPerSecond: 1_000_000_000 });
    expect(verdict.worthBlocks).toBe(0);
    expect(verdict.reason).toBe(GATE_REASON.SLOW);
  });

  it("answers 0 for a miss", () => {
    expect(ask({ prefillTokensPerSecond: 5 }).estimatedMicroseconds).toBe(0);
    expect(ask({ prefillTokensPerSecond: 5 }).worthBlocks).toBe(0);
  });

  it("never takes longer than the best of the other choices, and names every reason", () => {
    const seen = new Set<number>();
    const blocks = fc.integer({ min: 0, max: 2_000 });
    const rate = fc.integer({ min: 1, max: 4_000_000 });
    fc.assert(
      fc.property(blocks, blocks, rate, (dramBlocks, nvmeBlocks, prefillTokensPerSecond) => {
        const verdict = ask({ dramBlocks, nvmeBlocks, prefillTokensPerSecond });
        seen.add(verdict.reason);
        const compute = (16 * 1e6) / prefillTokensPerSecond;
        const dram = dramBlocks === 0 ? 0 : 10 + dramBlocks;
        const nvme = nvmeBlocks === 0 ? 0 : 100 + nvmeBlocks * 10;
        const times = new Map([
          [0, (dramBlocks + nvmeBlocks) * compute],
          [dramBlocks, dram + nvmeBlocks * compute],
          [dramBlocks + nvmeBlocks, Math.max(dram, nvme)],
        ]);
        const chosen = times.get(verdict.worthBlocks) ?? Number.NaN;
        expect(chosen).toBeLessThanOrEqual(Math.min(...times.values()) + 1e-6);
      }),
    );
    ask({});
    expect(GATE_REASON_LABELS).toHaveLength(Object.keys(GATE_REASON).length);
  });
});
