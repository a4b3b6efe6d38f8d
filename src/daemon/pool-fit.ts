/** Whether this host holds a pool, asked before anything is opened. */
import { existsSync } from "node:fs";
import { dirname } from "node:path";
import { hostFacts, planPool } from "../../tiers/dram/preflight.ts";
import type { Config } from "../config/schema.ts";
import { CairnError } from "../errors.ts";

/** Why a start would refuse the pool's size; undefined: it would not, or for another reason. */
export function poolFault({ dram }: Config): string | undefined {
  let place = dram.directory;
  while (!existsSync(place) && place !== "/") place = dirname(place);
  try {
    planPool(dram.capacityBytes, dram.slabBytes, dram.directory, hostFacts(place));
    return undefined;
  } catch (error) {
    if (!(error instanceof CairnError)) throw error;
    return error.message;
  }
}
