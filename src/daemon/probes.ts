/** The first step of a start; src/main.ts loads it before anything that takes time. */
import { type IndexProbe, startProbe } from "../../tiers/nvme/probe.ts";
import type { NvmeConfig } from "../config/schema.ts";

/** Starts reading the indexes, each in a process of its own. Empty when the tier is off. */
export function probeIndexes(config: NvmeConfig): readonly IndexProbe[] {
  return config.enabled ? config.directories.map(({ path }) => startProbe(path)) : [];
}
