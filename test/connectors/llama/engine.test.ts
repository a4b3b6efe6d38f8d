import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { chainKeys } from "../../../connectors/node/llama/chain.ts";
import { type Generation, LlamaEngine } from "../../../connectors/node/llama/engine.ts";
import { ensureGguf } from "../../../connectors/node/llama/gguf.ts";
import { partition } from "../../../connectors/node/llama/runtime.ts";
import { hex, MemoryStore } from "./memory-store.ts";
import { MODEL_DIRECTORY, syntheticTokens, TINY_MODEL } from "./models.ts";

let writer: LlamaEngine;
let reader: LlamaEngine;
let requests = 0;

beforeAll(async () => {
  const options = {
    modelPath: ensureGguf(TINY_MODEL, MODEL_DIRECTORY).path,
    contextTokens: 512,
    threads: 1,
    storeDeadlineMs: 500,
  };
  writer = await LlamaEngine.open(options);
  reader = await LlamaEngine.open(options);
}, 60_000);

afterAll(async () => {
  await writer.close();
  await reader.close();
});

async function run(
  engine: LlamaEngine,
  tokens: number[],
  store?: MemoryStore,
): Promise<Generation> {
  requests += 1;
  return await engine.generate({ id: requests, tokens, newTokens: 5, store });
}

function probabilitiesDiffering(left: Generation, right: Generation): number {
  let differing = 0;
  for (const [step, vector] of left.probabilities.entries()) {
    for (const [token, probability] of vector.entries()) {
      if (!Object.is(probability, right.probabilities[step]?.[token])) differing++;
    }
  }
  return differing;
}

const PREFIX = syntheticTokens(1, 96);

describe("the llama.cpp engine over a block store", () => {
  test("restores a stored prefix in another engine bit-exactly", async () => {
    const store = new MemoryStore(writer.rowBytes);
    const first = await run(writer, [...PREFIX, ...syntheticTokens(2, 41)], store);
    expect(first).toMatchObject({
      cachedTokens: 0,
      computedTokens: 137,
      blocksStored: 8,
      storeErrors: [],
    });
    const tokens = [...PREFIX, ...syntheticTokens(3, 37)];
    const warm = await run(reader, tokens, store);
    expect(warm).toMatchObject({
      cachedTokens: 96,
      computedTokens: 37,
      blocksFailed: 0,
      storeErrors: [],
    });
    const cold = await run(reader, tokens);
    expect(cold.cachedTokens).toBe(0);
    expect(warm.tokens).toEqual(cold.tokens);
    expect(warm.probabilities.map((vector) => vector.length)).toEqual(
      Array(5).fill(TINY_MODEL.vocabulary),
    );
    expect(probabilitiesDiffering(warm, cold)).toBe(0);
  });

  test("reuses blocks that decoding filled, bit-exactly", async () => {
    const store = new MemoryStore(writer.rowBytes);
    let tokens = syntheticTokens(4, 60);
    for (let turn = 0; turn < 4; turn++) {
      const warm = await run(turn % 2 === 0 ? writer : reader, tokens, store);
      const cold = await run(reader, tokens);
      expect(probabilitiesDiffering(warm, cold)).toBe(0);
      // Everything but the partial tail of the turn before.
      if (turn > 0) expect(warm.cachedTokens).toBe(Math.floor((tokens.length - 10) / 16) * 16);
      tokens = [...tokens, ...warm.tokens, ...syntheticTokens(5 + turn, 10)];
    }
  });

  test("stores the same bytes for the same key, whoever computed them", async () => {
    const tokens = syntheticTokens(20, 80);
    const [left, right] = [new MemoryStore(writer.rowBytes), new MemoryStore(writer.rowBytes)];
    await run(writer, tokens.slice(0, 30), left);
    await run(writer, tokens, left);
    await run(reader, tokens, right);
    for (const key of chainKeys(tokens))
      expect(left.blocks.get(hex(key))).toEqual(right.blocks.get(hex(key)));
  });

  test("answers differently when one bit of a restored block is flipped, so the comparison can fail", async () => {
    const store = new MemoryStore(writer.rowBytes);
    const tokens = [...PREFIX, ...syntheticTokens(6, 20)];
    await run(writer, tokens, store);
    const block = store.blocks.get(hex(chainKeys(tokens)[3] ?? new Uint8Array()));
    expect(block).toBeDefined();
    // The high exponent bit of a half in layer 0's keys.
    if (block !== undefined) block[1] = (block[1] ?? 0) ^ 0x40;
    const warm = await run(reader, tokens, store);
    expect(warm.cachedTokens).toBe(112);
    expect(probabilitiesDiffering(warm, await run(reader, tokens))).toBeGreaterThan(
      TINY_MODEL.vocabulary / 2,
    );
  });

  test("recomputes from the first block that does not load", async () => {
    const store = new MemoryStore(writer.rowBytes);
    const tokens = [...PREFIX, ...syntheticTokens(7, 20)];
    await run(writer, tokens, store);
    store.failing.add(hex(chainKeys(tokens)[2] ?? new Uint8Array()));
    const warm = await run(reader, tokens, store);
    expect(warm).toMatchObject({ cachedTokens: 32, blocksFailed: 1 });
    expect(probabilitiesDiffering(warm, await run(reader, tokens))).toBe(0);
  });

  test("keeps answering when the store is dead, and says so", async () => {
    const store = new MemoryStore(writer.rowBytes);
    store.dead = true;
    const tokens = syntheticTokens(8, 50);
    const answer = await run(writer, tokens, store);
    expect(answer.cachedTokens).toBe(0);
    expect(answer.storeErrors.length).toBeGreaterThan(0);
    expect(probabilitiesDiffering(answer, await run(reader, tokens))).toBe(0);
  });

  test("leaves a store that does not answer alone for the rest of the request", async () => {
    const store = new MemoryStore(writer.rowBytes);
    store.stalled = true;
    const tokens = syntheticTokens(17, 50);
    const answer = await run(writer, tokens, store);
    expect(answer).toMatchObject({ cachedTokens: 0, blocksStored: 0 });
    expect(answer.storeErrors).toEqual(["lookup: no answer in time"]);
    expect(store).toMatchObject({ calls: 1, ended: [requests] });
    expect(probabilitiesDiffering(answer, await run(reader, tokens))).toBe(0);
  });

  test("always computes the last prompt token, even when every block is cached", async () => {
    const store = new MemoryStore(writer.rowBytes);
    const tokens = syntheticTokens(9, 64);
    await run(writer, tokens, store);
    const warm = await run(reader, tokens, store);
    expect(warm).toMatchObject({ cachedTokens: 48, computedTokens: 16 });
    expect(probabilitiesDiffering(warm, await run(reader, tokens))).toBe(0);
  });

  test("answers a prompt shorter than a block", async () => {
    const store = new MemoryStore(writer.rowBytes);
    const answer = await run(writer, syntheticTokens(10, 13), store);
    expect(answer).toMatchObject({ cachedTokens: 0, computedTokens: 13, blocksStored: 1 });
  });

  test("offers blocks again from where the chain still stands", async () => {
    const store = new MemoryStore(writer.rowBytes);
    const tokens = [...PREFIX, ...syntheticTokens(16, 20)];
    await run(writer, tokens.slice(0, 70), store);
    store.offerFrom = 2;
    // Blocks 3 and 4 are offered again beside the three new ones.
    expect(await run(reader, tokens, store)).toMatchObject({
      cachedTokens: 64,
      blocksStored: 3,
      blocksPresent: 2,
      blocksRefused: 0,
    });
  });

  test("ends every request it looked up for", async () => {
    const store = new MemoryStore(writer.rowBytes);
    await run(writer, syntheticTokens(11, 40), store);
    expect(store.ended).toEqual([requests]);
  });

  test("refuses a prompt that does not fit its context", async () => {
    await expect(run(writer, syntheticTokens(12, 510))).rejects.toMatchObject({
      errorName: "badRequest",
    });
    await expect(run(writer, [])).rejects.toMatchObject({ errorName: "badRequest" });
  });
});

describe("the incarnation proof", () => {
  test("computes cold, passes on an equal block and is warm afterwards", async () => {
    const store = new MemoryStore(writer.rowBytes);
    const tokens = [...PREFIX, ...syntheticTokens(13, 20)];
    await run(writer, tokens, store);
    store.proofDepth = 4;
    const proving = await run(reader, tokens, store);
    expect(proving).toMatchObject({ cachedTokens: 0, proof: "passed" });
    expect(store.proofs).toEqual([
      { key: hex(chainKeys(tokens)[3] ?? new Uint8Array()), ok: true },
    ]);
    expect(await run(reader, tokens, store)).toMatchObject({ cachedTokens: 112, proof: "none" });
  });

  test("fails on a block of other content", async () => {
    const store = new MemoryStore(writer.rowBytes);
    const tokens = [...PREFIX, ...syntheticTokens(14, 20)];
    await run(writer, tokens, store);
    const [first, second] = chainKeys(tokens).map(hex);
    store.blocks.set(first ?? "", store.blocks.get(second ?? "") ?? new Uint8Array());
    store.proofDepth = 1;
    expect(await run(reader, tokens, store)).toMatchObject({ cachedTokens: 0, proof: "failed" });
    expect(store.proofs).toEqual([{ key: first, ok: false }]);
  });

  test("gives no verdict on a block that does not load", async () => {
    const store = new MemoryStore(writer.rowBytes);
    const tokens = [...PREFIX, ...syntheticTokens(15, 20)];
    await run(writer, tokens, store);
    store.proofDepth = 2;
    store.failing.add(hex(chainKeys(tokens)[1] ?? new Uint8Array()));
    expect(await run(reader, tokens, store)).toMatchObject({
      cachedTokens: 0,
      proof: "unavailable",
    });
    expect(store.proofs).toEqual([]);
  });
});

describe("the engine's identity", () => {
  test("names model, build, layout and block, equally in two engines of one model", () => {
    expect(writer.descriptor).toEqual(reader.descriptor);
    expect(writer.descriptor).toMatchObject({
      blockTokens: 16,
      kvDtype: "f16",
      chained: true,
      shards: 1,
      keyBytes: 32,
    });
    expect(writer.descriptor.revision).toMatch(/^gguf-sha256:[0-9a-f]{64}$/);
    // 16 tokens · 3 layers · (K and V) · 2 heads · 32 · 2 bytes
    expect(writer.descriptor.rowBytes).toBe(16 * 3 * 2 * 2 * 32 * 2);
  });

  test("reads text through the tokenizer it was written with", () => {
    expect(writer.runtime.tokenize("Hi you")).toEqual([75, 108, 259, 124, 114, 120]);
  });
});

test("a partition ends at multiples of sixteen positions", () => {
  const sizes = (length: number, position: number) =>
    partition(syntheticTokens(1, length), position).map((slice) => slice.length);
  expect(sizes(40, 0)).toEqual([16, 16, 8]);
  expect(sizes(40, 10)).toEqual([6, 16, 16, 2]);
  expect(sizes(0, 3)).toEqual([]);
});
