/**
 * What a disk has counted in the life of the daemon. The addon counts from 0 each time a disk is opened, also where a
 * fenced one is opened anew; sums that went back would show as negative rates.
 */
import type { DiskCounters } from "../../addon/binding.ts";

/** Those that only grow; the others say what holds now. */
const SUMS = [
  "bytesRead",
  "bytesWritten",
  "readItems",
  "writeItems",
  "ioErrors",
  "itemsCorrupt",
  "itemsIdentity",
  "cpuMicroseconds",
] as const satisfies readonly (keyof DiskCounters)[];

export class DiskFigures {
  readonly #ask: () => DiskCounters;
  #earlier: DiskCounters | undefined;
  #last: DiskCounters | undefined;

  /** `ask`: what the addon says of the disk as it is open now. */
  constructor(ask: () => DiskCounters) {
    this.#ask = ask;
  }

  /** Its last answer while it is not open. */
  reading(open: boolean): DiskCounters {
    if (!open && this.#last !== undefined) return this.#last;
    const counted = this.#ask();
    const sums: { -readonly [K in keyof DiskCounters]: DiskCounters[K] } = { ...counted };
    for (const name of SUMS) sums[name] = counted[name] + (this.#earlier?.[name] ?? 0);
    this.#last = sums;
    return sums;
  }

  /** The disk was opened anew: it counts from 0. */
  openedAnew(): void {
    this.#earlier = this.#last;
  }
}
