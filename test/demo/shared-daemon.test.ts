/** Two engines of this process over a real daemon, with a window far smaller than a prefix. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { flipStoredBit } from "../../connectors/node/demo/corruption.ts";
import { Stage } from "../../connectors/node/demo/stage.ts";
import { CairnStore } from "../../connectors/node/llama/cairn-store.ts";
import { chainKeys } from "../../connectors/node/llama/chain.ts";
import { type Generation, LlamaEngine } from "../../connectors/node/llama/engine.ts";
import { ensureGguf } from "../../connectors/node/llama/gguf.ts";
import { MODEL_DIRECTORY, syntheticTokens, TINY_MODEL } from "../connectors/llama/models.ts";

const WINDOW_BLOCKS = 3;
let stage: Stage;
let engine: LlamaEngine;
let writer: CairnStore;
let reader: CairnStore;
let requests = 0;

beforeAll(async () => {
  stage = new Stage();
  await stage.daemon.start();
  const modelPath = ensureGguf(TINY_MODEL, MODEL_DIRECTORY).path;
  engine = await LlamaEngine.open({ modelPath, contextTokens: 512, threads: 1 });
  const options = {
    socket: stage.socket,
    descriptor: engine.descriptor,
    windowBlocks: WINDOW_BLOCKS,
  };
  writer = new CairnStore({ ...options, engineId: "writer" });
  reader = new CairnStore({ ...options, engineId: "reader" });
}, 120_000);

afterAll(async () => {
  writer.close();
  reader.close();
  await engine.close();
  await stage.close();
});

async function run(tokens: number[], store?: CairnStore): Promise<Generation> {
  requests += 1;
  return await engine.generate({ id: requests, tokens, newTokens: 3, store });
}

describe("two engines over one daemon", () => {
  test("move a prefix of many windows, after the second engine has proved itself", async () => {
    const tokens = syntheticTokens(40, 170);
    expect(await run(tokens, writer)).toMatchObject({
      cachedTokens: 0,
      blocksStored: 10,
      storeErrors: [],
    });
    const longer = [...tokens, ...syntheticTokens(41, 30)];
    const cold = await run(longer);
    const proving = await run(longer, reader);
    expect(proving).toMatchObject({
      cachedTokens: 0,
      proof: "passed",
      blocksPresent: 10,
      blocksStored: 2,
    });
    const warm = await run(longer, reader);
    expect(warm).toMatchObject({
      cachedTokens: 192,
      proof: "none",
      blocksFailed: 0,
      storeErrors: [],
    });
    expect(warm.probabilities).toEqual(cold.probabilities);
  });

  test("restore what stands before a damaged block in the middle of a window", async () => {
    const tokens = syntheticTokens(42, 170);
    await run(tokens, writer);
    await run(tokens, reader);
    // Block 5 is the second of its window.
    const keys = chainKeys(tokens).slice(0, 5);
    const row = new Uint8Array(engine.rowBytes);
    requests += 1;
    expect((await reader.lookup(requests, keys)).hitBlocks).toBe(5);
    expect(await reader.load(requests, 4, keys.slice(4), row)).toEqual([true]);
    await reader.endRequest(requests);
    expect(flipStoredBit(stage.poolDirectory, Buffer.from(row.subarray(-256)), 99)).toBe(1);
    const warm = await run(tokens, reader);
    // Blocks 1 to 4; of the ten promised, block 5 is damaged and 7 to 10 were not asked for.
    expect(warm).toMatchObject({ cachedTokens: 64, storeErrors: [] });
    expect(warm.blocksFailed).toBeGreaterThan(0);
    expect(warm.probabilities).toEqual((await run(tokens)).probabilities);
    // Stored again by the request that missed it.
    expect(await run(tokens, reader)).toMatchObject({ cachedTokens: 160, blocksFailed: 0 });
  });

  test("miss a chain that nobody stored", async () => {
    expect(await run(syntheticTokens(43, 40), reader)).toMatchObject({
      cachedTokens: 0,
      blocksFailed: 0,
    });
  });
});
