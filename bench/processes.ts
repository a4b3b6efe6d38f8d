/** What the kernel says about a process: CPU time and resident memory, from /proc. */
import { readFileSync } from "node:fs";
import { constants, type PerformanceEntry, PerformanceObserver } from "node:perf_hooks";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
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

export interface GcPauses {
  readonly pauses: number;
  readonly longestMs: number;
  /** Longest pause of each kind of collection, in ms. */
  readonly kinds: Readonly<Record<string, number>>;
}

const GC_KINDS: Readonly<Record<number, string>> = {
  [constants.NODE_PERFORMANCE_GC_MINOR]: "minor",
  [constants.NODE_PERFORMANCE_GC_MAJOR]: "major",
  [constants.NODE_PERFORMANCE_GC_INCREMENTAL]: "incremental",
  [constants.NODE_PERFORMANCE_GC_WEAKCB]: "weak",
};

/** Pauses of this thread by the garbage collector, from PerformanceObserver. */
export class GcWatch {
  readonly #observer: PerformanceObserver;
  readonly #kinds: Record<string, number> = {};
  #pauses = 0;
  #longestMs = 0;

  constructor() {
    this.#observer = new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) this.#add(entry);
    });
    this.#observer.observe({ entryTypes: ["gc"] });
  }

  #add(entry: PerformanceEntry): void {
    // The types of this Node version do not name the detail of a "gc" entry.
    const { kind } = (entry as unknown as { readonly detail: { readonly kind: number } }).detail;
    const name = GC_KINDS[kind] ?? "other";
    this.#pauses += 1;
    this.#longestMs = Math.max(this.#longestMs, entry.duration);
    this.#kinds[name] = Math.max(this.#kinds[name] ?? 0, entry.duration);
  }

  /** Entries are delivered by the event loop: await a turn before this. */
  end(): GcPauses {
    for (const entry of this.#observer.takeRecords()) this.#add(entry);
    this.#observer.disconnect();
    return { pauses: this.#pauses, longestMs: this.#longestMs, kinds: this.#kinds };
  }
}

/** One turn of the event loop. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

/** Collects what setting up left behind, so that a watch that starts now sees what comes after. */
export async function settleHeap(): Promise<void> {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  collect();
  await nextTurn();
  collect();
  await nextTurn();
}
