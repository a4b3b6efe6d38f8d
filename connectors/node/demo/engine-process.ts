/**
 * One llama.cpp engine as a process: JSON lines in, JSON lines out, ends with its standard input.
 *
 * Arguments: model path, context tokens, threads, state directory, engine id, the engine socket of a daemon ("-" for
 * none: a reference engine that has never heard of a cache), and how long to wait for the remote tier.
 */
import { createInterface } from "node:readline";
import type { BlockStore } from "../llama/blockstore.ts";
import { CairnStore } from "../llama/cairn-store.ts";
import { chainKeys } from "../llama/chain.ts";
import { LlamaEngine } from "../llama/engine.ts";
import { BLOCK_TOKENS } from "../llama/state.ts";
import type {
  EngineCommand,
  EngineReply,
  EngineRequest,
  GenerateReply,
  PeekReply,
  ReadyLine,
  TokenizeReply,
} from "./engine-protocol.ts";

interface Host {
  readonly engine: LlamaEngine;
  readonly store: BlockStore | undefined;
  requestId: number;
}

function writeLine(line: EngineReply | ReadyLine): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

async function generate(
  host: Host,
  command: Extract<EngineCommand, { command: "generate" }>,
): Promise<GenerateReply> {
  host.requestId += 1;
  const result = await host.engine.generate({
    id: host.requestId,
    tokens: command.tokens,
    newTokens: command.newTokens,
    store: host.store,
  });
  const vectors = result.probabilities.map((vector) => Buffer.from(vector.buffer));
  return { ...result, probabilities: Buffer.concat(vectors).toString("base64") };
}

async function peek(
  host: Host,
  command: Extract<EngineCommand, { command: "peek" }>,
): Promise<PeekReply> {
  const { store, engine } = host;
  if (store === undefined) return { bytes: "" };
  host.requestId += 1;
  const id = host.requestId;
  const keys = chainKeys(command.tokens.slice(0, command.depth * BLOCK_TOKENS));
  const row = new Uint8Array(engine.rowBytes);
  try {
    const { hitBlocks } = await store.lookup(id, keys);
    if (hitBlocks < command.depth) return { bytes: "" };
    const landed = await store.load(id, command.depth - 1, keys.slice(-1), row);
    return {
      bytes: landed[0] === true ? Buffer.from(row.subarray(-command.bytes)).toString("base64") : "",
    };
  } finally {
    await store.endRequest(id);
  }
}

async function answer(host: Host, request: EngineRequest): Promise<EngineReply> {
  try {
    if (request.command === "tokenize") {
      const value: TokenizeReply = { tokens: host.engine.runtime.tokenize(request.text) };
      return { sequence: request.sequence, ok: true, value };
    }
    const value =
      request.command === "peek" ? await peek(host, request) : await generate(host, request);
    return { sequence: request.sequence, ok: true, value };
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    return { sequence: request.sequence, ok: false, message };
  }
}

async function main(): Promise<void> {
  const [
    modelPath = "",
    contextTokens = "",
    threads = "",
    stateDirectory = "",
    engineId = "",
    socket = "-",
    remoteWaitMs = "0",
  ] = process.argv.slice(2);
  // An interrupt in the terminal reaches the whole group; the demo ends its engines by closing their input.
  process.on("SIGINT", () => undefined);
  const engine = await LlamaEngine.open({
    modelPath,
    contextTokens: Number(contextTokens),
    threads: Number(threads),
    stateDirectory,
  });
  const store =
    socket === "-"
      ? undefined
      : new CairnStore({
          socket,
          engineId,
          descriptor: engine.descriptor,
          remoteWaitMs: Number(remoteWaitMs),
        });
  const host: Host = { engine, store, requestId: 0 };
  writeLine({ ready: true, blockBytes: engine.rowBytes, vocabulary: engine.runtime.vocabulary });
  for await (const line of createInterface({ input: process.stdin })) {
    // Written by the demo that started this process.
    writeLine(await answer(host, JSON.parse(line) as EngineRequest));
  }
  store?.close();
  await engine.close();
}

await main();
process.exit(0);
