/** The addon's background tasks (PROGRESS events) as promises, and the time that anything at a device may take. */
import { assert } from "../../src/assert.ts";
import { LIMITS } from "../../src/limits.ts";

const OUTCOME_RUNNING = 0;
const OUTCOME_FAILED = 2;
/** Task numbers of this tier: above those of the DRAM tier, below those of windows (65536). */
export const TASK_FIRST = 1_024;
export const TASK_LAST = 65_535;

/** A task ended with this errno. */
export class TaskError extends Error {
  readonly errno: number;

  constructor(errno: number) {
    super(`errno ${errno}`);
    this.name = "TaskError";
    this.errno = errno;
  }
}

/** What a task ends with whose disk was closed. */
const ECANCELED = 125;

interface Running {
  readonly owner: object;
  readonly progress: (done: number, total: number) => void;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

export class Tasks {
  readonly #running = new Map<number, Running>();
  #last = TASK_FIRST - 1;

  get size(): number {
    return this.#running.size;
  }

  /** Starts a task of `owner` under a number of its own. Rejects with what `start` throws, or with TaskError. */
  run(
    owner: object,
    start: (task: number) => void,
    progress: (done: number, total: number) => void = () => undefined,
  ): Promise<void> {
    const task = this.#number();
    return new Promise<void>((resolve, reject) => {
      start(task);
      this.#running.set(task, { owner, progress, resolve, reject });
    });
  }

  /** The owner's disk was closed: its tasks report no more. */
  abandon(owner: object): void {
    for (const [task, running] of this.#running) {
      if (running.owner !== owner) continue;
      this.#running.delete(task);
      running.reject(new TaskError(ECANCELED));
    }
  }

  /** A PROGRESS event; false when it is not of this tier. */
  onProgress(task: number, done: number, total: number, outcome: number, errno: number): boolean {
    if (task < TASK_FIRST || task > TASK_LAST) return false;
    const running = this.#running.get(task);
    if (running === undefined) return true; // Its disk was closed meanwhile.
    running.progress(done, total);
    if (outcome === OUTCOME_RUNNING) return true;
    this.#running.delete(task);
    if (outcome === OUTCOME_FAILED) running.reject(new TaskError(errno));
    else running.resolve();
    return true;
  }

  #number(): number {
    assert(this.#running.size <= TASK_LAST - TASK_FIRST, "task numbers are used up");
    do this.#last = this.#last >= TASK_LAST ? TASK_FIRST : this.#last + 1;
    while (this.#running.has(this.#last));
    return this.#last;
  }
}

/** Something at a device took longer than nvmeCommitMsMax. */
export class OverdueError extends Error {
  constructor() {
    super(`no answer within ${LIMITS.nvmeCommitMsMax} ms`);
    this.name = "OverdueError";
  }
}

/** `work`, or OverdueError when it takes too long; what it does later concerns nobody. */
export async function withinTime<T>(work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new OverdueError()), LIMITS.nvmeCommitMsMax);
  });
  work.catch(() => undefined);
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
