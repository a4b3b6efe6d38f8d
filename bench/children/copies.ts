/** Copies payload through the daemon at a given pace until SIGTERM: half stores, half loads, 2 MiB blocks, 16 a call. */
import { assert } from "../../src/assert.ts";
import { childAnswer, childInput } from "../children.ts";
import { connectBench } from "../client.ts";
import { chainKeys, KEY_WORDS } from "../ledger.ts";

export interface CopiesInput {
  readonly socket: string;
  readonly bytesPerSecond: number;
}

const BLOCK_BYTES = 2 * 2 ** 20;
const BLOCKS = 16;

const input = childInput<CopiesInput>();
const client = await connectBench(input.socket, "bench-copies", BLOCK_BYTES, BLOCKS);
client.rows.fill(0x33);
const words = new Uint32Array(BLOCKS * KEY_WORDS);
let stopping = false;
process.on("SIGTERM", () => {
  stopping = true;
});
process.stdout.write("\n"); // ready
const startMs = performance.now();
let bytes = 0;
for (let chain = 1_000_000; !stopping; chain += 1) {
  chainKeys(words, chain, BLOCKS);
  const stored = await client.store(0, words, 0, BLOCKS);
  const { hit, lease } = await client.lookup(1, words, BLOCKS);
  assert(hit === stored, "what was stored is found");
  if (hit > 0) await client.load(lease, words, 0, hit);
  client.endRequest(1);
  bytes += (stored + hit) * BLOCK_BYTES;
  const aheadMs = (bytes / input.bytesPerSecond) * 1_000 - (performance.now() - startMs);
  if (aheadMs > 1) {
    await new Promise((resolve) => {
      setTimeout(resolve, aheadMs);
    });
  }
}
const bytesPerSecond = bytes / ((performance.now() - startMs) / 1_000);
client.close();
childAnswer({ bytesPerSecond });
