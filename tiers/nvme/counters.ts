/** What happened to a device since the start, by name; /metrics tells the same events. */
import { NVME_EVENTS } from "../../src/observe/metrics-lower.ts";

export type NvmeCounters = Record<(typeof NVME_EVENTS)[number], number>;

export function nvmeCounters(): NvmeCounters {
  return Object.fromEntries(NVME_EVENTS.map((name) => [name, 0])) as NvmeCounters;
}
