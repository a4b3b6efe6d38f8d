import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CairnStore } from "../../../connectors/node/llama/cairn-store.ts";
import { chainKeys } from "../../../connectors/node/llama/chain.ts";
import { LlamaEngine } from "../../../connectors/node/llama/engine.ts";
import { ensureGguf } from "../../../connectors/node/llama/gguf.ts";
import { MODEL_DIRECTORY, syntheticTokens, TINY_MODEL } from "./models.ts";

let engine: LlamaEngine;
let directory = "";

beforeAll(async () => {
  directory = mkdtempSync(path.join(tmpdir(), "cairn-store-"));
  const modelPath = ensureGguf(TINY_MODEL, MODEL_DIRECTORY).path;
  engine = await LlamaEngine.open({
    modelPath,
    contextTokens: 256,
    threads: 1,
    stateDirectory: directory,
  });
}, 60_000);

afterAll(async () => {
  await engine.close();
  rmSync(directory, { recursive: true, force: true });
});

describe("the engine over a daemon that is not there", () => {
  test("rejects each call with its typed error, so that the engine can count it", async () => {
    const socket = path.join(directory, "nobody.sock");
    const store = new CairnStore({ socket, engineId: "alone", descriptor: engine.descriptor });
    const keys = chainKeys(syntheticTokens(1, 32));
    const rows = new Uint8Array(2 * engine.rowBytes);
    await expect(store.lookup(1, keys)).rejects.toMatchObject({ errorName: "unavailable" });
    await expect(store.load(1, 0, keys, rows)).rejects.toMatchObject({ errorName: "unavailable" });
    await expect(store.store(1, 0, undefined, keys, rows)).rejects.toMatchObject({
      errorName: "unavailable",
    });
    await expect(store.prove(rows.subarray(0, 32), true)).rejects.toMatchObject({
      errorName: "unavailable",
    });
    store.close();
  });

  test("answers every request from recomputation", async () => {
    const socket = path.join(directory, "nobody.sock");
    const store = new CairnStore({ socket, engineId: "alone", descriptor: engine.descriptor });
    const tokens = syntheticTokens(2, 70);
    const [without, reference] = [
      await engine.generate({ id: 1, tokens, newTokens: 4, store }),
      await engine.generate({ id: 2, tokens, newTokens: 4 }),
    ];
    expect(without).toMatchObject({ cachedTokens: 0, computedTokens: 70, blocksStored: 0 });
    expect(without.storeErrors.map((error) => error.split(":")[0])).toEqual(["lookup", "store"]);
    expect(without.probabilities).toEqual(reference.probabilities);
    store.close();
  });
});
