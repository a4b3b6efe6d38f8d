/** What the kernel says about a process: CPU time and resident memory, from /proc. */
import { readFileSync } from "node:fs";
import { assert } from "../src/assert.ts";

/** Clock ticks of /proc/<pid>/stat: 100 a second on every Linux that Node runs on. */
const TICKS_PER_SECOND = 100;

/** User plus system seconds of the process with all its threads and reaped children. */
export function cpuSeconds(pid: number): number {
  const text = readFileSync(`/proc/${pid}/stat`, "utf8");
  return cpuSecondsOfStat(text);
}

export function cpuSecondsOfStat(text: string): number {
  // The command name stands in parentheses and may hold spaces; fields are counted after it.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const user = Number(fields[11]);
  const system = Number(fields[12]);
  assert(Number.isFinite(user) && Number.isFinite(system), "stat has the two times");
  return (user + system) / TICKS_PER_SECOND;
}

export interface ResidentMemory {
  readonly totalBytes: number;
  /** Of it, shared memory (tmpfs, memfd). */
  readonly sharedBytes: number;
}

export function residentMemory(pid: number): ResidentMemory {
  return residentMemoryOfStatus(readFileSync(`/proc/${pid}/status`, "utf8"));
}

export function residentMemoryOfStatus(text: string): ResidentMemory {
  const kibibytes = (field: string): number => {
    const found = new RegExp(`^${field}:\\s+(\\d+) kB$`, "m").exec(text);
    assert(found !== null, "the status names the field");
    return Number(found[1]) * 1_024;
  };
  return { totalBytes: kibibytes("VmRSS"), sharedBytes: kibibytes("RssShmem") };
}

/** Pauses of this thread by the garbage collector, from PerformanceObserver. */
export class GcWatch {
  readonly #observer: PerformanceObserver;
  #pauses = 0;
  #longestMs = 0;

  constructor() {
    this.#observer = new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) this.#add(entry.duration);
    });
    this.#observer.observe({ entryTypes: ["gc"] });
  }

  #add(durationMs: number): void {
    this.#pauses += 1;
    this.#longestMs = Math.max(this.#longestMs, durationMs);
  }

  /** Entries are delivered by the event loop: await a turn before this. */
  end(): { readonly pauses: number; readonly longestMs: number } {
    for (const entry of this.#observer.takeRecords()) this.#add(entry.duration);
    this.#observer.disconnect();
    return { pauses: this.#pauses, longestMs: this.#longestMs };
  }
}

/** One turn of the event loop. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}
