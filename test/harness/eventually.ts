/** Waiting in tests: for a condition with a bound that only a hang reaches, never for a duration. */
import { setTimeout as sleep } from "node:timers/promises";

/** Only a daemon that hangs makes a test wait this long. */
export const PATIENCE_MS = 60_000;
/** The same for vi.waitUntil and vi.waitFor, which give up after a second by themselves. */
export const PATIENT = { timeout: PATIENCE_MS } as const;
const POLL_MS = 10;

/** Polls until `read` gives something other than undefined or false. Throws after PATIENCE_MS. */
export async function eventually<T>(
  what: string,
  read: () => T | undefined | false | Promise<T | undefined | false>,
  patienceMs = PATIENCE_MS,
): Promise<T> {
  const endMs = performance.now() + patienceMs;
  for (;;) {
    const value = await read();
    if (value !== undefined && value !== false) return value;
    if (performance.now() > endMs) throw new Error(`never happened: ${what}`);
    await sleep(POLL_MS);
  }
}

/** Rejects when `promise` is not settled within PATIENCE_MS. */
export async function within<T>(
  what: string,
  promise: Promise<T>,
  patienceMs = PATIENCE_MS,
): Promise<T> {
  const timer = new AbortController();
  const late = sleep(patienceMs, undefined, { signal: timer.signal }).then(() => {
    throw new Error(`never happened: ${what}`);
  });
  late.catch(() => undefined);
  try {
    return await Promise.race([promise, late]);
  } finally {
    timer.abort();
  }
}
