/** The smallest model that still has several layers and shared KV heads; written once per machine. */
import { tmpdir } from "node:os";
import path from "node:path";
import type { GgufSpec } from "../../../connectors/node/llama/gguf.ts";

export const TINY_MODEL: GgufSpec = {
  name: "cairn-tiny",
  seed: 11,
  layers: 3,
  embedding: 128,
  heads: 4,
  kvHeads: 2,
  headDimension: 32,
  feedForward: 256,
  vocabulary: 300,
  contextTokens: 1024,
  weightType: "f16",
};

export const MODEL_DIRECTORY = path.join(tmpdir(), `cairn-models-${process.getuid?.() ?? 0}`);

/** Deterministic byte-level tokens; equal (seed, index) give equal tokens. */
export function syntheticTokens(seed: number, length: number): number[] {
  return Array.from(
    { length },
    (_, index) => 3 + (((Math.imul(index + 1, 7919) + Math.imul(seed, 104_729)) >>> 3) % 256),
  );
}
