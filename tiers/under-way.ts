/**
 * Work at file systems that may never end: it keeps a thread, and with it the process, which Node would then wait for
 * at its exit. Who stops asks here first.
 */
const running = new Set<Promise<unknown>>();

/** The same promise, remembered until it settles. */
export function underWay<T>(work: Promise<T>): Promise<T> {
  running.add(work);
  const forget = (): void => void running.delete(work);
  work.then(forget, forget);
  return work;
}

/** Resolves when nothing is under way any more, or after this time; false: something is. */
export async function allEnded(withinMs: number): Promise<boolean> {
  if (running.size === 0) return true;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, withinMs);
  });
  await Promise.race([Promise.allSettled(running), late]);
  clearTimeout(timer);
  return running.size === 0;
}
