/**
 * Which jobs wait for which block to become visible: positions of STOREs whose block is being filled by
 * another, or whose other shards are still missing. Chains of (job, position) hang off a block in flat
 * arrays; only blocks that really wait are in the map, so a STORE of whole blocks in order never comes here.
 */
import { assert } from "../assert.ts";
import type { Block } from "../ledger/types.ts";
import type { Job } from "./jobs.ts";

const NONE = -1;

export class Waiters {
  readonly #heads = new Map<Block, number>();
  readonly #jobs: (Job | undefined)[] = [];
  #positions = new Int32Array(1_024);
  #next = new Int32Array(1_024);
  #free = NONE;
  #used = 0;

  get size(): number {
    return this.#heads.size;
  }

  /** True when this is the block's first waiter: the caller asks the ledger to watch it. */
  add(block: Block, job: Job, position: number): boolean {
    const entry = this.#allocate();
    const head = this.#heads.get(block);
    this.#jobs[entry] = job;
    this.#positions[entry] = position;
    this.#next[entry] = head ?? NONE;
    this.#heads.set(block, entry);
    return head === undefined;
  }

  /** Takes all waiters of a block off; `each` gets them one by one. */
  settle(block: Block, visible: boolean, each: WaiterCallback): void {
    let entry = this.#heads.get(block) ?? NONE;
    this.#heads.delete(block);
    while (entry !== NONE) {
      const job = this.#jobs[entry];
      assert(job !== undefined, "a waiter has a job");
      const following = this.#next[entry]!;
      each(job, this.#positions[entry]!, visible);
      this.#release(entry);
      entry = following;
    }
  }

  /** Takes one waiter off; the ledger's watch may stay and then finds nobody. */
  remove(block: Block, job: Job, position: number): void {
    let before = NONE;
    let entry = this.#heads.get(block) ?? NONE;
    while (entry !== NONE) {
      const following = this.#next[entry]!;
      if (this.#jobs[entry] === job && this.#positions[entry] === position) {
        if (before !== NONE) this.#next[before] = following;
        else if (following !== NONE) this.#heads.set(block, following);
        else this.#heads.delete(block);
        this.#release(entry);
        return;
      }
      before = entry;
      entry = following;
    }
  }

  #allocate(): number {
    if (this.#free !== NONE) {
      const entry = this.#free;
      this.#free = this.#next[entry]!;
      return entry;
    }
    if (this.#used === this.#next.length) {
      const positions = new Int32Array(this.#used * 2);
      positions.set(this.#positions);
      this.#positions = positions;
      const next = new Int32Array(this.#used * 2);
      next.set(this.#next);
      this.#next = next;
    }
    return this.#used++;
  }

  #release(entry: number): void {
    this.#jobs[entry] = undefined;
    this.#next[entry] = this.#free;
    this.#free = entry;
  }
}

export type WaiterCallback = (job: Job, position: number, visible: boolean) => void;
