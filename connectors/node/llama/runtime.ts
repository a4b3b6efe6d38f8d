/**
 * One llama.cpp context with one sequence, through node-llama-cpp's prebuilt CPU library.
 *
 * **Partition.** Tokens are always evaluated in batches that end at multiples of 16 positions (the block
 * size). llama.cpp is deterministic for equal batches, not across batch sizes: a prefill in one shot and one in
 * two parts differ in the last bits. With a fixed partition (and equal threads on one kind of CPU) a block's
 * bytes are a function of its tokens alone, so a restored prefix continues bit-exactly as a recomputed one would.
 */
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import {
  getLlama,
  LlamaLogLevel,
  type Llama,
  type LlamaContext,
  type LlamaContextSequence,
  type LlamaModel,
  type Token,
} from "node-llama-cpp";
import { assert } from "../../../src/assert.ts";
import { CairnError } from "../../../src/errors.ts";
import { fileSha256 } from "./gguf.ts";
import {
  BLOCK_TOKENS,
  blockRowBytes,
  buildSequenceState,
  copyBlock,
  parseSequenceState,
  type SequenceState,
  type StateShape,
} from "./state.ts";

export interface RuntimeOptions {
  readonly modelPath: string;
  /** Tokens the context can hold, prompt and answer together. */
  readonly contextTokens: number;
  /** CPU threads; part of what makes two runs bit-equal. */
  readonly threads: number;
  /**
   * Where state files live for milliseconds each; best on tmpfs. Default: shared memory, else the temporary
   * directory.
   */
  readonly stateDirectory?: string | undefined;
}

/** What identifies the bytes that this runtime computes. */
export interface RuntimeIdentity {
  readonly modelName: string;
  readonly modelSha256: string;
  /** llama.cpp repository and release. */
  readonly build: string;
}

/** A sampled token and the probability of every token of the vocabulary, by token id. */
export interface NextToken {
  readonly token: number;
  readonly probabilities: Float32Array;
}

/** A directory of our own in memory (tmpfs) where there is one: state files live for milliseconds. */
function makeStateDirectory(wanted: string | undefined): string {
  const sharedMemory = "/dev/shm";
  const isThere = statSync(sharedMemory, { throwIfNoEntry: false })?.isDirectory() === true;
  const parent = wanted ?? (isThere ? sharedMemory : tmpdir());
  return mkdtempSync(path.join(parent, "cairn-llama-"));
}

export class LlamaRuntime {
  readonly identity: RuntimeIdentity;
  readonly shape: StateShape;
  readonly vocabulary: number;
  readonly contextTokens: number;
  readonly #llama: Llama;
  readonly #model: LlamaModel;
  readonly #context: LlamaContext;
  readonly #sequence: LlamaContextSequence;
  readonly #directory: string;

  private constructor(parts: {
    readonly llama: Llama;
    readonly model: LlamaModel;
    readonly context: LlamaContext;
    readonly sequence: LlamaContextSequence;
    readonly directory: string;
    readonly identity: RuntimeIdentity;
    readonly shape: StateShape;
    readonly vocabulary: number;
  }) {
    this.#llama = parts.llama;
    this.#model = parts.model;
    this.#context = parts.context;
    this.#sequence = parts.sequence;
    this.#directory = parts.directory;
    this.identity = parts.identity;
    this.shape = parts.shape;
    this.vocabulary = parts.vocabulary;
    this.contextTokens = parts.sequence.contextSize;
  }

  /**
   * Loads the model and proves that this build's state has the layout of state.ts: a probe state is taken
   * apart and put together again, and must come out byte for byte.
   * @throws CairnError engineStateMalformed if not; whatever node-llama-cpp throws if the model cannot be loaded.
   */
  static async open(options: RuntimeOptions): Promise<LlamaRuntime> {
    assert(
      options.contextTokens >= 2 * BLOCK_TOKENS && options.threads >= 1,
      "a context of two blocks, one thread",
    );
    const llama = await getLlama({
      build: "never",
      gpu: false,
      progressLogs: false,
      logLevel: LlamaLogLevel.error,
      maxThreads: options.threads,
    });
    const directory = makeStateDirectory(options.stateDirectory);
    try {
      const model = await llama.loadModel({ modelPath: options.modelPath });
      const context = await model.createContext({
        contextSize: options.contextTokens,
        batchSize: BLOCK_TOKENS,
        threads: options.threads,
        flashAttention: true,
        sequences: 1,
      });
      const sequence = context.getSequence();
      const { shape, vocabulary } = await probe(sequence, path.join(directory, "probe.state"));
      const release = llama.llamaCppRelease;
      const identity: RuntimeIdentity = {
        modelName: model.fileInfo.metadata.general.name ?? path.basename(options.modelPath),
        modelSha256: fileSha256(options.modelPath).sha256,
        build: `${release.repo}@${release.release}`,
      };
      return new LlamaRuntime({
        llama,
        model,
        context,
        sequence,
        directory,
        identity,
        shape,
        vocabulary,
      });
    } catch (error) {
      rmSync(directory, { recursive: true, force: true });
      await llama.dispose();
      throw error;
    }
  }

  /** Tokens evaluated so far; the next one gets this position. */
  get position(): number {
    return this.#sequence.nextTokenIndex;
  }

  tokenize(text: string): number[] {
    return [...this.#model.tokenize(text)];
  }

  /** Forgets every token. */
  async clear(): Promise<void> {
    await this.#sequence.clearHistory();
    assert(this.position === 0, "a cleared sequence is empty");
  }

  /** Forgets the tokens from `position` on. */
  async truncate(position: number): Promise<void> {
    assert(position > 0 && position <= this.position, "truncation keeps a part of what there is");
    if (position === this.position) return;
    await this.#sequence.eraseContextTokenRanges([{ start: position, end: this.position }]);
    assert(this.position === position, "the tail is gone and nothing was shifted");
  }

  /** Evaluates tokens at the current position, in the partition of the file comment. */
  async evaluate(tokens: readonly number[]): Promise<void> {
    for (const slice of partition(tokens, this.position)) {
      await this.#sequence.evaluateWithoutGeneratingNewTokens(slice);
    }
  }

  /** Evaluates tokens (at least one) and returns the greedy choice after the last, with the whole distribution. */
  async evaluateAndPredict(tokens: readonly number[]): Promise<NextToken> {
    assert(tokens.length > 0, "a prediction needs a token to stand on");
    const slices = partition(tokens, this.position);
    for (const slice of slices.slice(0, -1))
      await this.#sequence.evaluateWithoutGeneratingNewTokens(slice);
    return await predict(this.#sequence, slices.at(-1) ?? [], this.vocabulary);
  }

  /** The state of all tokens evaluated so far, taken apart. */
  async saveState(): Promise<SequenceState> {
    const state = await savedState(this.#sequence, path.join(this.#directory, "save.state"));
    if (state.tokens.length !== this.position) {
      throw new CairnError(
        "engineStateMalformed",
        "the saved state holds another count of tokens",
        state.tokens.length,
      );
    }
    return state;
  }

  /**
   * Replaces the sequence by the first `blocks` blocks of `tokens`, whose canonical bytes are `rows`.
   * @throws whatever the engine throws; the sequence is empty then.
   */
  async restore(tokens: readonly number[], rows: Uint8Array, blocks: number): Promise<void> {
    await this.clear();
    const file = path.join(this.#directory, "load.state");
    try {
      writeFileSync(file, buildSequenceState(this.shape, tokens, rows, blocks), { mode: 0o600 });
      await this.#sequence.loadStateFromFile(file, { acceptRisk: true });
    } catch (error) {
      await this.clear();
      throw error;
    } finally {
      rmSync(file, { force: true });
    }
    assert(this.position === blocks * BLOCK_TOKENS, "the engine took every token of the state");
  }

  async close(): Promise<void> {
    rmSync(this.#directory, { recursive: true, force: true });
    await this.#context.dispose();
    await this.#model.dispose();
    await this.#llama.dispose();
  }
}

/** Cuts tokens that begin at `position` into batches that end at multiples of 16. */
export function partition(tokens: readonly number[], position: number): Token[][] {
  const slices: Token[][] = [];
  for (let at = 0; at < tokens.length; ) {
    const length = BLOCK_TOKENS - ((position + at) % BLOCK_TOKENS);
    // Token is a number with a brand that node-llama-cpp's own calls hand out; ids from elsewhere are cast.
    slices.push(tokens.slice(at, at + length) as Token[]);
    at += length;
  }
  return slices;
}

async function predict(
  sequence: LlamaContextSequence,
  slice: readonly Token[],
  vocabulary: number,
): Promise<NextToken> {
  const last = slice.at(-1);
  assert(last !== undefined, "the last batch holds a token");
  const wanted = {
    generateNext: { token: true, probabilities: true, options: { temperature: 0 } },
  } as const;
  const outputs = await sequence.controlledEvaluate([...slice.slice(0, -1), [last, wanted]]);
  const next = outputs.at(-1)?.next;
  const pairs = next?.probabilities;
  if (typeof next?.token !== "number" || pairs === undefined) {
    throw new CairnError("internal", "the engine returned no next token");
  }
  const probabilities = new Float32Array(vocabulary === 0 ? pairs.size : vocabulary);
  if (pairs.size !== probabilities.length)
    throw new CairnError("internal", "the engine left probabilities out");
  for (const [token, probability] of pairs) probabilities[token] = probability;
  return { token: next.token, probabilities };
}

async function savedState(sequence: LlamaContextSequence, file: string): Promise<SequenceState> {
  try {
    await sequence.saveStateToFile(file);
    return parseSequenceState(readFileSync(file));
  } finally {
    rmSync(file, { force: true });
  }
}

async function probe(
  sequence: LlamaContextSequence,
  file: string,
): Promise<{ readonly shape: StateShape; readonly vocabulary: number }> {
  const tokens = Array.from({ length: 2 * BLOCK_TOKENS }, (_, index) => index + 1) as Token[];
  await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, BLOCK_TOKENS));
  const next = await predict(sequence, tokens.slice(BLOCK_TOKENS), 0);
  const state = await savedState(sequence, file);
  const blockBytes = blockRowBytes(state.shape);
  const rows = new Uint8Array(2 * blockBytes);
  for (let block = 0; block < 2; block++) {
    copyBlock(state, block, rows.subarray(block * blockBytes, (block + 1) * blockBytes));
  }
  const rebuilt = buildSequenceState(state.shape, tokens, rows, 2);
  if (Buffer.compare(rebuilt, state.bytes) !== 0) {
    throw new CairnError("engineStateMalformed", "a state taken apart and rebuilt is not the same");
  }
  await sequence.clearHistory();
  return { shape: state.shape, vocabulary: next.probabilities.length };
}
