/**
 * Replays a trace through a running daemon, its socket and its copy threads, with real bytes: one request at a time in
 * trace order. Hit blocks are loaded and every loaded word is compared with what that block must hold; the rest is
 * stored. What was loaded is wiped first, so that a load that moved nothing cannot look right.
 */
import { assert } from "../../src/assert.ts";
import { type BenchClient, connectBench } from "../client.ts";
import { Progress } from "../progress.ts";
import { isPayload, writePayload } from "./payload.ts";
import { counts, type ReplayCounts, requestKeys } from "./pure.ts";
import { KEY_WORDS, type Trace, traceKeys } from "./trace.ts";

export interface DaemonReplay extends ReplayCounts {
  /** Loaded blocks that were compared, word by word. */
  readonly comparedBlocks: number;
  readonly wrongBlocks: number;
  /** Blocks that LOOKUP promised and LOAD did not give. */
  readonly failedBlocks: number;
  /** Blocks that STORE acknowledged as visible. */
  readonly storedBlocks: number;
  readonly seconds: number;
}

interface Totals {
  hits: number;
  compared: number;
  wrong: number;
  failed: number;
  stored: number;
}

/** Row `row` of the client's window as words. */
function rowWords(client: BenchClient, row: number): Uint32Array {
  const from = client.rows.byteOffset + row * client.rowBytes;
  return new Uint32Array(client.rows.buffer, from, client.rowBytes / 4);
}

async function loadAndCompare(
  client: BenchClient,
  lease: number,
  words: Uint32Array,
  hit: number,
  totals: Totals,
): Promise<void> {
  client.rows.fill(0xa5, 0, hit * client.rowBytes);
  const failed = await client.load(lease, words, 0, hit);
  totals.failed += failed.length;
  const missing = new Set(failed);
  for (let position = 0; position < hit; position += 1) {
    if (missing.has(position)) continue;
    totals.compared += 1;
    if (!isPayload(rowWords(client, position), words, position * KEY_WORDS)) totals.wrong += 1;
  }
}

async function oneRequest(
  client: BenchClient,
  request: number,
  words: Uint32Array,
  count: number,
  totals: Totals,
): Promise<void> {
  const { hit, lease } = await client.lookup(request + 1, words, count);
  assert(hit <= count, "a hit is not longer than the request");
  totals.hits += hit;
  if (hit > 0) await loadAndCompare(client, lease, words, hit, totals);
  if (hit < count) {
    for (let position = hit; position < count; position += 1) {
      writePayload(rowWords(client, position), words, position * KEY_WORDS);
    }
    const visible = await client.store(lease, words, hit, count - hit);
    totals.stored += visible;
  }
  client.endRequest(request + 1);
}

/** Connects to `socket` and replays the whole trace. Throws CairnError when the daemon refuses or leaves. */
export async function replayDaemon(
  trace: Trace,
  socket: string,
  blockBytes: number,
): Promise<DaemonReplay> {
  assert(blockBytes % 4 === 0 && blockBytes >= 64, "a block is whole words, 64 bytes at least");
  const rows = Math.max(1, trace.requestBlocksMax);
  const client = await connectBench(socket, "cairn-replay", blockBytes, rows);
  const totals: Totals = { hits: 0, compared: 0, wrong: 0, failed: 0, stored: 0 };
  const keys = traceKeys(trace);
  const words = new Uint32Array(rows * KEY_WORDS);
  const progress = new Progress("replay", trace.requests);
  const startMs = performance.now();
  try {
    for (let request = 0; request < trace.requests; request += 1) {
      const count = requestKeys(trace, keys, request, words);
      if (count > 0) await oneRequest(client, request, words, count, totals);
      progress.update(request + 1, `hit ${((totals.hits / trace.blocks) * 100).toFixed(1)} %`);
    }
  } finally {
    progress.end();
    client.close();
  }
  return {
    ...counts(trace, totals.hits),
    comparedBlocks: totals.compared,
    wrongBlocks: totals.wrong,
    failedBlocks: totals.failed,
    storedBlocks: totals.stored,
    seconds: (performance.now() - startMs) / 1_000,
  };
}
