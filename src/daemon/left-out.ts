/**
 * Directories of the NVMe tier that could not be opened: the node serves without them, and each is asked at growing
 * intervals whether it works by now. It is opened when a check of the device passes and the directory is one that was
 * in use before: nothing is made, so that what lies below a mount point whose device is gone is not taken for it. A
 * new directory waits for the configuration to be read again.
 */
import { Backoff } from "../../tiers/backoff.ts";
import { checkDevice } from "../../tiers/nvme/check-file.ts";
import { LIMITS } from "../limits.ts";

interface Entry {
  readonly backoff: Backoff;
  askAtMs: number;
  /** A check that hangs has no second one beside it. */
  asking: boolean;
}

export interface LeftOutHooks {
  readonly note: (level: "warn", line: string) => void;
  /** The device works: to be opened, which ends in remove() or in add(). */
  readonly works: (path: string) => void;
  /** Monotonic milliseconds. */
  readonly now: () => number;
}

export class LeftOut {
  readonly #hooks: LeftOutHooks;
  readonly #entries = new Map<string, Entry>();

  constructor(hooks: LeftOutHooks) {
    this.#hooks = hooks;
  }

  get count(): number {
    return this.#entries.size;
  }

  /** It could not be opened, for the first time or again. */
  add(path: string): void {
    let entry = this.#entries.get(path);
    if (entry === undefined) {
      const backoff = new Backoff(LIMITS.nvmeProbeMs, LIMITS.nvmeProbeMsMax);
      entry = { backoff, askAtMs: 0, asking: false };
      this.#entries.set(path, entry);
    }
    entry.asking = false;
    entry.askAtMs = this.#hooks.now() + entry.backoff.failed();
  }

  /** It is open, or no longer wanted. */
  remove(path: string): void {
    this.#entries.delete(path);
  }

  /** Called by the coarse timer. */
  step(): void {
    for (const [path, entry] of this.#entries) {
      if (entry.asking || this.#hooks.now() < entry.askAtMs) continue;
      entry.asking = true;
      void this.#ask(path, entry);
    }
  }

  async #ask(path: string, entry: Entry): Promise<void> {
    try {
      await checkDevice(path, true);
      if (this.#entries.get(path) === entry) this.#hooks.works(path);
    } catch (error) {
      if (this.#entries.get(path) !== entry) return;
      this.#hooks.note("warn", `nvme: still left out: ${path}: ${String(error)}`);
      this.add(path);
    }
  }
}
