/**
 * libuv's threads: all asynchronous file operations, look-ups of names and commits of LMDB share them, and one that a
 * hanging file system keeps is gone until it answers. Their number is read from the environment when the process
 * begins, so it cannot be raised here; what may hang is bounded instead.
 */

const POOL_THREADS = 4;
const POOL_THREADS_MAX = 1_024;

/** Threads of the pool, as libuv reads UV_THREADPOOL_SIZE. */
export function poolThreads(size = process.env["UV_THREADPOOL_SIZE"]): number {
  if (size === undefined) return POOL_THREADS;
  const threads = Number.parseInt(size, 10);
  return Number.isNaN(threads) ? 1 : Math.min(POOL_THREADS_MAX, Math.max(1, threads));
}

const SHARED_OPERATIONS_MAX = 3;
/** Threads that a shared directory leaves to others, whatever hangs there. */
const THREADS_LEFT = 2;

/** Operations of a shared directory at once, stuck ones included. */
export function sharedOperationsMax(threads = poolThreads()): number {
  return Math.max(1, Math.min(SHARED_OPERATIONS_MAX, threads - THREADS_LEFT));
}

/**
 * What to say where disks (one commit each) and a shared directory could keep all threads if they hang at once;
 * undefined where one is left.
 */
export function poolWarning(
  disks: number,
  shared: boolean,
  threads = poolThreads(),
): string | undefined {
  const kept = disks + (shared ? sharedOperationsMax(threads) : 0);
  if (threads > kept) return undefined;
  const wanted = disks + (shared ? SHARED_OPERATIONS_MAX : 0) + THREADS_LEFT;
  const what = `${disks} disks${shared ? " and a shared directory" : ""}`;
  return (
    `${threads} threads for files and names, but ${what} that hang could keep ${kept}: ` +
    `start with UV_THREADPOOL_SIZE=${wanted}`
  );
}
