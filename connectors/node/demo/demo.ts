/**
 * The demo itself: two real engines share one daemon, and everything the README promises is checked while they do.
 *
 * Three llama.cpp processes run the same random-weight model: engines A and B ask cairn, the reference engine
 * has never heard of it. Every request is answered twice, by its engine and by the reference, and the whole
 * next-token distributions are compared bit for bit. On the way the demo flips stored bits, kills the daemon
 * and brings it back.
 */
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { assert } from "../../../src/assert.ts";
import { ensureGguf, type GgufSpec } from "../llama/gguf.ts";
import { BLOCK_TOKENS } from "../llama/state.ts";
import { EngineProcess } from "./children.ts";
import {
  PHASES,
  type Phase,
  type PlannedRequest,
  systemPrompt,
  userMessage,
} from "./conversations.ts";
import { flipStoredBit } from "./corruption.ts";
import type { GenerateReply } from "./engine-protocol.ts";
import { POOL_BYTES, type Stage } from "./stage.ts";
import { tableHead, tableRow } from "./report.ts";
import {
  compareFloats,
  type Counters,
  type DemoResult,
  newCounters,
  type RequestRecord,
  resultOf,
} from "./result.ts";

const MIB = 1024 * 1024;
const PEEK_BYTES = 256;
const CORRUPT_BLOCKS_METRIC = "cairn_corrupt_blocks_total";
/** Long enough for the engine to be in the middle of the request when the daemon dies. */
const KILL_AFTER_MS = 15;

/** How big a demo. */
export interface Size {
  readonly model: GgufSpec;
  readonly systemCharacters: number;
  readonly newTokens: number;
}

export const FULL: Size = {
  model: {
    name: "cairn-demo",
    seed: 2024,
    layers: 6,
    embedding: 512,
    heads: 8,
    kvHeads: 2,
    headDimension: 64,
    feedForward: 1536,
    vocabulary: 512,
    contextTokens: 1024,
    weightType: "f16",
  },
  systemCharacters: 448,
  newTokens: 10,
};

export const QUICK: Size = {
  model: {
    ...FULL.model,
    name: "cairn-demo-quick",
    layers: 4,
    embedding: 256,
    heads: 4,
    feedForward: 512,
  },
  systemCharacters: 300,
  newTokens: 6,
};

export class Demo {
  readonly #stage: Stage;
  readonly #size: Size;
  readonly #say: (line: string) => void;
  readonly #records: RequestRecord[] = [];
  readonly #problems: string[] = [];
  readonly #spoken = new Map<number, { tokens: number[]; turn: number }>();
  readonly #counters: Counters = newCounters();

  constructor(stage: Stage, size: Size, say: (line: string) => void) {
    this.#stage = stage;
    this.#size = size;
    this.#say = say;
  }

  async run(): Promise<DemoResult> {
    const startMs = performance.now();
    await this.#start();
    for (const phase of PHASES) {
      this.#say(`\n${phase.title}`);
      this.#say(tableHead());
      if (phase.name === "restart") await this.#stage.daemon.start();
      for (const [index, request] of phase.requests.entries()) {
        await this.#request(phase, index, request);
      }
      if (phase.name === "corrupt") {
        this.#counters.corruptionsCounted = await this.#stage.daemon.metric(CORRUPT_BLOCKS_METRIC);
      }
    }
    const { blockBytes } = this.#stage.engine("A");
    await Promise.all([...this.#stage.engines.values()].map((engine) => engine.stop()));
    const daemonExitCode = (await this.#stage.daemon.stop()) ?? null;
    const seconds = (performance.now() - startMs) / 1000;
    const end = { blockBytes, daemonExitCode, seconds, problems: this.#problems };
    return resultOf(this.#records, this.#counters, end);
  }

  async #start(): Promise<void> {
    const { model } = this.#size;
    const file = ensureGguf(model, path.join(tmpdir(), `cairn-models-${process.getuid?.() ?? 0}`));
    this.#say(
      `model   ${model.layers} layers, ${(file.bytes / MIB).toFixed(0)} MiB of random weights (seed ${model.seed})`,
    );
    await this.#stage.daemon.start();
    this.#say(`daemon  up, DRAM pool of ${POOL_BYTES / MIB} MiB`);
    const options = {
      modelPath: file.path,
      contextTokens: model.contextTokens,
      threads: 1,
      stateDirectory: this.#stage.directory,
    };
    const { socket } = this.#stage;
    for (const name of ["A", "B"] as const) {
      const engine = new EngineProcess({ ...options, engineId: `demo-${name}`, socket });
      this.#stage.engines.set(name, engine);
    }
    this.#stage.reference = new EngineProcess({
      ...options,
      engineId: "reference",
      socket: "-",
    });
    const { reference, engines } = this.#stage;
    await Promise.all([...engines.values(), reference].map((engine) => engine.ready()));
    const kib = this.#stage.engine("A").blockBytes / 1024;
    this.#say(
      `engines A, B and a reference without cache; a block of ${BLOCK_TOKENS} tokens is ${kib} KiB of KV`,
    );
  }

  /** The conversation's next prompt: everything said so far and the next question. */
  async #prompt(
    conversation: number,
  ): Promise<{ readonly tokens: number[]; readonly turn: number }> {
    const { reference } = this.#stage;
    assert(reference !== undefined, "the reference engine runs");
    const said = this.#spoken.get(conversation);
    const turn = (said?.turn ?? 0) + 1;
    const before =
      said?.tokens ??
      (await reference.tokenize(systemPrompt(conversation, this.#size.systemCharacters)));
    return {
      tokens: [...before, ...(await reference.tokenize(userMessage(conversation, turn)))],
      turn,
    };
  }

  async #request(phase: Phase, index: number, request: PlannedRequest): Promise<void> {
    const { tokens, turn } = await this.#prompt(request.conversation);
    const { reference } = this.#stage;
    assert(reference !== undefined, "the reference engine runs");
    const depth = phase.name === "corrupt" ? await this.#corrupt(request, tokens, index) : 0;
    const engine = this.#stage.engine(request.engine);
    let reply: GenerateReply;
    try {
      const answering = engine.generate(tokens, this.#size.newTokens);
      // Awaited below; until then a failure must not count as unhandled.
      answering.catch(() => undefined);
      if (phase.name === "kill" && index === 0) {
        await sleep(KILL_AFTER_MS);
        await this.#stage.daemon.killHard();
        this.#counters.daemonKills += 1;
      }
      reply = await answering;
    } catch (error) {
      this.#counters.requestsFailed += 1;
      this.#problems.push(
        `a request failed: ${error instanceof Error ? error.message : String(error)}`,
      );
      return;
    }
    const cold = await reference.generate(tokens, this.#size.newTokens);
    const { compared, differing } = compareFloats(reply.probabilities, cold.probabilities);
    const note = this.#judge(phase, index, reply, depth, differing);
    const record: RequestRecord = {
      number: this.#records.length + 1,
      phase: phase.name,
      ...request,
      turn,
      promptTokens: tokens.length,
      cachedTokens: reply.cachedTokens,
      computedTokens: reply.computedTokens,
      ttftMs: reply.timeToFirstTokenMs,
      ttftReferenceMs: cold.timeToFirstTokenMs,
      probabilitiesCompared: compared,
      probabilitiesDiffering: differing,
      note,
    };
    this.#records.push(record);
    this.#say(tableRow(record));
    this.#spoken.set(request.conversation, { tokens: [...tokens, ...reply.tokens], turn });
  }

  /** Flips one bit in a stored block of this prompt; returns the block's depth, 0 if none was found. */
  async #corrupt(
    request: PlannedRequest,
    tokens: readonly number[],
    index: number,
  ): Promise<number> {
    const wholeBlocks = Math.floor(tokens.length / BLOCK_TOKENS);
    const depth = Math.max(1, Math.floor((wholeBlocks * (index + 1)) / 4));
    const tail = await this.#stage.engine(request.engine).peek(tokens, depth, PEEK_BYTES);
    const bit = (index * 677 + 13) % (PEEK_BYTES * 8);
    const copies = tail.byteLength === 0 ? 0 : flipStoredBit(this.#stage.poolDirectory, tail, bit);
    if (copies === 0) {
      this.#problems.push(
        `block ${depth} of conversation ${request.conversation} was not found in the pool`,
      );
      return 0;
    }
    this.#counters.corruptionsInjected += 1;
    return depth;
  }

  /** Counts what this request shows; the text stands behind its row. */
  #judge(
    phase: Phase,
    index: number,
    reply: GenerateReply,
    depth: number,
    differing: number,
  ): string {
    const notes: string[] = [];
    if (phase.name === "kill" && index === 0) notes.push("daemon killed meanwhile");
    if (reply.proof === "passed") {
      this.#counters.proofsPassed += 1;
      notes.push("proved its incarnation, cold once");
    }
    if (reply.proof === "failed") {
      this.#counters.proofsFailed += 1;
      notes.push("incarnation proof failed");
    }
    if (depth > 0) {
      const caught =
        reply.blocksFailed > 0 &&
        reply.cachedTokens <= (depth - 1) * BLOCK_TOKENS &&
        differing === 0;
      if (caught) this.#counters.corruptionsCaught += 1;
      notes.push(
        `flipped bit in block ${depth} ${caught ? "caught, recomputed from there" : "NOT CAUGHT"}`,
      );
    }
    const [error] = reply.storeErrors;
    if (error !== undefined) {
      // While the daemon is dead the reason is known; otherwise it is worth a line.
      const [call = ""] = error.split(":");
      notes.push(phase.name === "kill" ? `no daemon at ${call}` : `store error: ${error}`);
    }
    return notes.join("; ");
  }
}
