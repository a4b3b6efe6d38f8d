/**
 * Load or recompute. A hit is worth its load only while the load ends sooner than the engine would have
 * computed the same tokens. DRAM and NVMe are read side by side, so a mixed prefix takes the longer of both.
 * What is on NVMe lies behind what is in DRAM (DRAM loses its leaves first), so there are three answers worth
 * giving: all of it, what is in DRAM, nothing. The engine computes the rest.
 */

/** time = latencyMicroseconds + bytes / bytesPerMicrosecond. */
export interface LinkModel {
  readonly latencyMicroseconds: number;
  readonly bytesPerMicrosecond: number;
}

/** One reused object: LOOKUP fills it for every hit. */
export interface GateInput {
  dramBlocks: number;
  nvmeBlocks: number;
  blockBytes: number;
  blockTokens: number;
  /** 0 = unknown: then everything is worth loading. */
  prefillTokensPerSecond: number;
  dram: LinkModel;
  nvme: LinkModel;
}

export const GATE_REASON = {
  /** Loading all of it is quickest. */
  LOAD: 0,
  /** The engine did not say how fast it computes. */
  UNKNOWN_RATE: 1,
  /** The blocks on NVMe take longer to read than to compute. */
  NVME_SLOW: 2,
  /** Nothing is quicker to load than to compute. */
  SLOW: 3,
} as const;
export const GATE_REASON_LABELS = ["load", "unknown_rate", "nvme_slow", "slow"] as const;

export interface GateVerdict {
  /** Microseconds until the whole hit is loaded. */
  estimatedMicroseconds: number;
  /** Blocks from the start of the prefix that are worth loading. */
  worthBlocks: number;
  reason: number;
}

function transfer(link: LinkModel, bytes: number): number {
  return bytes === 0 ? 0 : link.latencyMicroseconds + bytes / link.bytesPerMicrosecond;
}

/** Fills `verdict`; allocates nothing. */
export function gate(input: GateInput, verdict: GateVerdict): void {
  const { dramBlocks, nvmeBlocks, blockBytes, prefillTokensPerSecond } = input;
  const blocks = dramBlocks + nvmeBlocks;
  const dram = transfer(input.dram, dramBlocks * blockBytes);
  const all = Math.max(dram, transfer(input.nvme, nvmeBlocks * blockBytes));
  verdict.estimatedMicroseconds = all;
  verdict.worthBlocks = blocks;
  verdict.reason = GATE_REASON.LOAD;
  if (prefillTokensPerSecond === 0) {
    verdict.reason = GATE_REASON.UNKNOWN_RATE;
    return;
  }
  const compute = (input.blockTokens * 1e6) / prefillTokensPerSecond;
  const withDram = dram + nvmeBlocks * compute;
  const withNothing = blocks * compute;
  if (all <= withDram && all <= withNothing) return;
  const some = dramBlocks > 0 && withDram <= withNothing;
  verdict.worthBlocks = some ? dramBlocks : 0;
  verdict.reason = some ? GATE_REASON.NVME_SLOW : GATE_REASON.SLOW;
}
