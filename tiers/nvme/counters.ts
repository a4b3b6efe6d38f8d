/** What went wrong on a device, by name, since the start. */
export const NVME_COUNTERS = [
  "ioErrors",
  "corrupt",
  "identity",
  "deadlines",
  "syncFailures",
  "commitFailures",
  "commits",
  "indexDamaged",
  "pagesDropped",
  "entriesDropped",
  "headersRebuilt",
  "stalls",
  "fullEvents",
  "fences",
  "probesFailed",
  "prepareFailures",
] as const;
export type NvmeCounter = (typeof NVME_COUNTERS)[number];
export type NvmeCounters = Record<NvmeCounter, number>;

export function nvmeCounters(): NvmeCounters {
  return Object.fromEntries(NVME_COUNTERS.map((name) => [name, 0])) as NvmeCounters;
}
