/**
 * What the restart scenarios share: chains of small blocks whose payload names them, stored, loaded and compared, and
 * the time from exec to a look-up that succeeds.
 */
import { assert } from "../src/assert.ts";
import { CairnError } from "../src/errors.ts";
import { type BenchClient, connectBench } from "./client.ts";
import type { BenchDaemon } from "./daemon.ts";
import { KEY_WORDS } from "./ledger.ts";
import { isPayload, writePayload } from "./replay/payload.ts";

export const PAYLOAD_BYTES = 64;
export const CHAIN_BLOCKS = 32_768;
export const RESIDENT_DEFAULT = 1_000_000;
/** Blocks of one STORE or LOAD. */
export const BATCH = 4_096;
/** From exec to the first look-up. */
export const SECONDS_MAX = 2;
const GIVE_UP_MS = 600_000;
const RETRY_MS = 5;
const ENGINE_ID = "bench-restart";

export function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, milliseconds);
  });
}

/** Throws CairnError unavailable when it does not come true for GIVE_UP_MS. */
export async function until(
  what: string,
  everyMs: number,
  holds: () => Promise<boolean>,
): Promise<void> {
  const end = performance.now() + GIVE_UP_MS;
  while (!(await holds())) {
    if (performance.now() > end) throw new CairnError("unavailable", `never: ${what}`);
    await sleep(everyMs);
  }
}

/** Runs `use` with a client of its own. Throws CairnError. */
export async function withClient<T>(
  daemon: BenchDaemon,
  use: (client: BenchClient) => Promise<T>,
): Promise<T> {
  const client = await connectBench(daemon.socket, ENGINE_ID, PAYLOAD_BYTES, BATCH);
  try {
    return await use(client);
  } finally {
    client.close();
  }
}

const row = (client: BenchClient, index: number): Uint32Array =>
  new Uint32Array(
    client.rows.buffer,
    client.rows.byteOffset + index * PAYLOAD_BYTES,
    PAYLOAD_BYTES / 4,
  );

/** Stores blocks [depth, depth + count) of the chain under payloads that name them. */
export async function storeBatch(
  client: BenchClient,
  words: Uint32Array,
  depth: number,
  count: number,
): Promise<void> {
  for (let index = 0; index < count; index += 1) {
    writePayload(row(client, index), words, (depth + index) * KEY_WORDS);
  }
  const visible = await client.store(0, words, depth, count, 0);
  assert(visible === count, "every block of the batch is visible");
}

export interface Loaded {
  wrong: number;
  missing: number;
}

/** Loads one chain of CHAIN_BLOCKS blocks and adds what is missing or differs to `total`. */
export async function loadChain(
  client: BenchClient,
  words: Uint32Array,
  total: Loaded,
): Promise<void> {
  const { hit, lease } = await client.lookup(1, words, CHAIN_BLOCKS);
  total.missing += CHAIN_BLOCKS - hit;
  for (let depth = 0; depth < hit; depth += BATCH) {
    const count = Math.min(BATCH, hit - depth);
    client.rows.fill(0);
    const failed = new Set(await client.load(lease, words, depth, count, 0));
    total.missing += failed.size;
    for (let index = 0; index < count; index += 1) {
      if (failed.has(depth + index)) continue;
      if (!isPayload(row(client, index), words, (depth + index) * KEY_WORDS)) total.wrong += 1;
    }
  }
  client.endRequest(1);
}

/** Starts the process and asks until `found` blocks of the chain or more are answered; seconds from exec. */
export async function restarted(
  daemon: BenchDaemon,
  words: Uint32Array,
  found: number,
): Promise<number> {
  const startMs = performance.now();
  daemon.launch();
  while (performance.now() - startMs < GIVE_UP_MS) {
    try {
      // An engine's whole connection, tried every few milliseconds, would take a fifth of a core from the start.
      if (!(await daemon.serves())) {
        await sleep(RETRY_MS);
        continue;
      }
      const hit = await withClient(
        daemon,
        async (client) => (await client.lookup(1, words, CHAIN_BLOCKS)).hit,
      );
      if (hit >= found) return (performance.now() - startMs) / 1_000;
    } catch (error) {
      if (!(error instanceof CairnError) || !error.row.retryable) throw error;
    }
    await sleep(RETRY_MS);
  }
  throw new CairnError("unavailable", `no look-up succeeded: ${daemon.logTail()}`);
}
