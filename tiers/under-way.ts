/**
 * Work at file systems that may never end: it keeps a thread, and with it the process, which Node would then wait for
 * at its exit. Who stops asks here first.
 */
const running = new Map<Promise<unknown>, string>();

/** The same promise, remembered until it settles. complaint: what to say of it if it does not. */
export function underWay<T>(complaint: string, work: Promise<T>): Promise<T> {
  running.set(work, complaint);
  const forget = (): void => void running.delete(work);
  work.then(forget, forget);
  return work;
}

/** Resolves when nothing is under way any more, or after this time: with the complaints of what still is. */
export async function unended(withinMs: number): Promise<readonly string[]> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, running.size === 0 ? 0 : withinMs);
  });
  await Promise.race([Promise.allSettled(running.keys()), late]);
  clearTimeout(timer);
  return [...new Set(running.values())];
}
