/**
 * An engine that skips the prefill somebody has already done.
 *
 * For each request it asks the block store for the longest cached prefix, restores it, evaluates the rest and stores
 * what is new. The cache can only ever make it faster: whatever the store does (reject, stall, fail single blocks,
 * vanish), the request is answered from recomputation.
 *
 * **Canonical blocks.** Only blocks evaluated as one batch of 16 tokens are stored. A block that decoding
 * filled token by token has slightly other bits, so before it is stored its tokens are evaluated again as one
 * batch (1 batch per 16 generated tokens, after the answer is out). Hence equal keys mean equal bytes, whoever
 * computed them.
 */
import { performance } from "node:perf_hooks";
import { assert } from "../../../src/assert.ts";
import type { NamespaceDescriptor } from "../../../src/engine-api/protocol.ts";
import { CairnError } from "../../../src/errors.ts";
import type { BlockStore, LookupAnswer } from "./blockstore.ts";
import { chainKeys, HASH_ALGORITHM, HASH_SEED, KEY_BYTES } from "./chain.ts";
import { compareBlocks, typeName } from "./compare.ts";
import { LlamaRuntime, type RuntimeOptions } from "./runtime.ts";
import { BLOCK_TOKENS, blockRowBytes, copyBlock, type SequenceState } from "./state.ts";

export interface GenerateRequest {
  /** Unique among this engine's requests. */
  readonly id: number;
  /** Prompt; at least one token. */
  readonly tokens: readonly number[];
  readonly newTokens: number;
  /** Undefined: neither read nor written (the reference run). */
  readonly store?: BlockStore | undefined;
}

/** Outcome of the incarnation proof that this request was asked for. */
export type ProofOutcome = "none" | "passed" | "failed" | "unavailable";

export interface Generation {
  readonly tokens: readonly number[];
  /** One vector of the whole vocabulary per generated token. */
  readonly probabilities: readonly Float32Array[];
  /** Prompt tokens restored, and prompt tokens evaluated; together the prompt. */
  readonly cachedTokens: number;
  readonly computedTokens: number;
  /** Request accepted → first token chosen, look-up and restore included. */
  readonly timeToFirstTokenMs: number;
  /** Part of it spent on look-up, load and restore. */
  readonly restoreMs: number;
  /** After the answer: canonical blocks, gather, STORE until acknowledged. */
  readonly storeMs: number;
  readonly blocksStored: number;
  readonly blocksPresent: number;
  readonly blocksRefused: number;
  /** Blocks that the look-up promised and the load did not deliver; recomputed. */
  readonly blocksFailed: number;
  /** Store calls that rejected or ran out of time. */
  readonly storeErrors: readonly string[];
  readonly proof: ProofOutcome;
}

/** Default of `storeDeadlineMs`. */
const STORE_DEADLINE_MS = 3_000;

export interface EngineOptions extends RuntimeOptions {
  /**
   * Longest wait for any one answer of the block store. Past it the request goes on without, and does not ask
   * that store again. Default 3,000.
   */
  readonly storeDeadlineMs?: number;
}

/** Tallies of one request while it runs. */
interface Tally {
  blocksFailed: number;
  blocksStored: number;
  blocksPresent: number;
  blocksRefused: number;
  readonly storeErrors: string[];
  /** The store let a deadline pass: it is left alone for the rest of this request. */
  stalled: boolean;
}

export class LlamaEngine {
  readonly runtime: LlamaRuntime;
  /** Canonical bytes of one block. */
  readonly rowBytes: number;
  readonly #storeDeadlineMs: number;
  #busy = false;

  private constructor(runtime: LlamaRuntime, storeDeadlineMs: number) {
    this.runtime = runtime;
    this.#storeDeadlineMs = storeDeadlineMs;
    this.rowBytes = blockRowBytes(runtime.shape);
  }

  /** See `LlamaRuntime.open`. */
  static async open(options: EngineOptions): Promise<LlamaEngine> {
    const runtime = await LlamaRuntime.open(options);
    return new LlamaEngine(runtime, options.storeDeadlineMs ?? STORE_DEADLINE_MS);
  }

  /** The namespace of this engine's blocks: two engines share blocks only if every field is equal. */
  get descriptor(): NamespaceDescriptor {
    const { identity, shape } = this.runtime;
    const kvTypes = [...new Set([...shape.keys, ...shape.values].map((row) => typeName(row.type)))];
    return {
      model: identity.modelName,
      revision: `gguf-sha256:${identity.modelSha256}`,
      kvDtype: kvTypes.join("+"),
      quantScales: kvTypes.some((name) => name.startsWith("q")),
      layout: `llama-state-v${shape.version}:layers=${shape.keys.length}:keys-then-values:batch=${BLOCK_TOKENS}`,
      rowBytes: this.rowBytes,
      groupKinds: ["full"],
      draft: false,
      blockTokens: BLOCK_TOKENS,
      hashAlgorithm: HASH_ALGORITHM,
      hashSeed: HASH_SEED,
      engineBuild: identity.build,
      keyBytes: KEY_BYTES,
      shards: 1,
      chained: true,
    };
  }

  /**
   * Answers one request, greedily. One at a time.
   * @throws CairnError badRequest if the request does not fit the context; never because of the block store.
   */
  async generate(request: GenerateRequest): Promise<Generation> {
    const length = request.tokens.length;
    if (length === 0 || request.newTokens < 1)
      throw new CairnError("badRequest", "a prompt and an answer need tokens");
    if (length + request.newTokens > this.runtime.contextTokens) {
      throw new CairnError(
        "badRequest",
        "prompt and answer exceed the context",
        this.runtime.contextTokens,
      );
    }
    assert(!this.#busy, "the engine answers one request at a time");
    this.#busy = true;
    try {
      return await this.#run(request);
    } finally {
      this.#busy = false;
    }
  }

  async close(): Promise<void> {
    await this.runtime.close();
  }

  async #run(request: GenerateRequest): Promise<Generation> {
    const { tokens, store } = request;
    const tally: Tally = {
      blocksFailed: 0,
      blocksStored: 0,
      blocksPresent: 0,
      blocksRefused: 0,
      storeErrors: [],
      stalled: false,
    };
    const startMs = performance.now();
    await this.runtime.clear();
    // The last prompt token is always evaluated: its logits are the answer.
    const keys = chainKeys(tokens.slice(0, -1));
    const answer = await this.#lookup(request, keys, tally);
    const cachedBlocks = await this.#restore(request, keys.slice(0, answer.hitBlocks), tally);
    const restoreMs = performance.now() - startMs;
    const cachedTokens = cachedBlocks * BLOCK_TOKENS;
    const first = await this.runtime.evaluateAndPredict(tokens.slice(cachedTokens));
    const timeToFirstTokenMs = performance.now() - startMs;
    const generated = [first.token];
    const probabilities = [first.probabilities];
    while (generated.length < request.newTokens) {
      const next = await this.runtime.evaluateAndPredict(generated.slice(-1));
      generated.push(next.token);
      probabilities.push(next.probabilities);
    }
    const storeStartMs = performance.now();
    const proof =
      store === undefined
        ? "none"
        : await this.#keep(request, store, generated, cachedBlocks, answer, tally);
    return {
      tokens: generated,
      probabilities,
      cachedTokens,
      computedTokens: tokens.length - cachedTokens,
      timeToFirstTokenMs,
      restoreMs,
      storeMs: performance.now() - storeStartMs,
      blocksStored: tally.blocksStored,
      blocksPresent: tally.blocksPresent,
      blocksRefused: tally.blocksRefused,
      blocksFailed: tally.blocksFailed,
      storeErrors: tally.storeErrors,
      proof,
    };
  }

  async #lookup(
    request: GenerateRequest,
    keys: readonly Uint8Array[],
    tally: Tally,
  ): Promise<LookupAnswer> {
    const { store, id } = request;
    if (store === undefined || keys.length === 0) return { hitBlocks: 0 };
    const answer = await this.#attempt("lookup", tally, () => store.lookup(id, keys));
    if (answer === undefined || answer.hitBlocks > keys.length) return { hitBlocks: 0 };
    return answer;
  }

  /** Loads and restores as many of the promised blocks as arrive in order; returns how many. */
  async #restore(
    request: GenerateRequest,
    keys: readonly Uint8Array[],
    tally: Tally,
  ): Promise<number> {
    const { store, id, tokens } = request;
    if (store === undefined || keys.length === 0) return 0;
    // A fresh buffer for each request: a load that outlives its deadline writes into memory nobody reads.
    const rows = new Uint8Array(keys.length * this.rowBytes);
    const landed = await this.#attempt("load", tally, () => store.load(id, 0, keys, rows));
    const firstFailed = landed === undefined ? 0 : landed.indexOf(false);
    const blocks = firstFailed === -1 ? keys.length : firstFailed;
    tally.blocksFailed += landed === undefined ? keys.length : landed.filter((ok) => !ok).length;
    if (blocks === 0) return 0;
    try {
      await this.runtime.restore(tokens, rows, blocks);
      return blocks;
    } catch (error) {
      tally.storeErrors.push(`restore: ${messageOf(error)}`);
      tally.blocksFailed += blocks;
      return 0;
    }
  }

  /** After the answer: makes whole blocks canonical, proves if asked, stores what is new, ends the request. */
  async #keep(
    request: GenerateRequest,
    store: BlockStore,
    generated: readonly number[],
    cachedBlocks: number,
    answer: LookupAnswer,
    tally: Tally,
  ): Promise<ProofOutcome> {
    const tokens = [...request.tokens, ...generated];
    const keys = chainKeys(tokens);
    let proof: ProofOutcome = "none";
    if (keys.length > cachedBlocks || answer.proof !== undefined) {
      const state = await this.#canonicalState(request.tokens.length, tokens, keys.length, tally);
      if (state !== undefined && answer.proof !== undefined) {
        proof = await this.#prove(request.id, store, state, keys, answer.proof, tally);
      }
      if (state !== undefined)
        await this.#store(request.id, store, state, keys, cachedBlocks, tally);
    }
    // Also after a stall: what the late look-up leased must not stay pinned.
    tally.stalled = false;
    await this.#attempt("endRequest", tally, () => store.endRequest(request.id));
    return proof;
  }

  /**
   * State whose first `blocks` blocks are canonical; undefined if the engine cannot give one (nothing is
   * stored then).
   */
  async #canonicalState(
    promptTokens: number,
    tokens: readonly number[],
    blocks: number,
    tally: Tally,
  ): Promise<SequenceState | undefined> {
    const canonicalBlocks = Math.floor(promptTokens / BLOCK_TOKENS);
    try {
      if (blocks > canonicalBlocks) {
        const canonicalTokens = canonicalBlocks * BLOCK_TOKENS;
        if (canonicalTokens === 0) await this.runtime.clear();
        else await this.runtime.truncate(canonicalTokens);
        await this.runtime.evaluate(tokens.slice(canonicalTokens, blocks * BLOCK_TOKENS));
      }
      return await this.runtime.saveState();
    } catch (error) {
      tally.storeErrors.push(`save: ${messageOf(error)}`);
      return undefined;
    }
  }

  /** Offers the blocks from `startBlock` on; once more from further up if their parent has gone meanwhile. */
  async #store(
    id: number,
    store: BlockStore,
    state: SequenceState,
    keys: readonly Uint8Array[],
    startBlock: number,
    tally: Tally,
  ): Promise<void> {
    if (keys.length === startBlock) return;
    const rows = new Uint8Array((keys.length - startBlock) * this.rowBytes);
    for (let block = startBlock; block < keys.length; block++) {
      const at = (block - startBlock) * this.rowBytes;
      copyBlock(state, block, rows.subarray(at, at + this.rowBytes));
    }
    const parentKey = startBlock === 0 ? undefined : keys[startBlock - 1];
    const outcome = await this.#attempt("store", tally, () =>
      store.store(id, startBlock, parentKey, keys.slice(startBlock), rows),
    );
    const offerFrom = outcome?.offerFrom;
    if (offerFrom !== undefined && offerFrom < startBlock) {
      await this.#store(id, store, state, keys, offerFrom, tally);
      return;
    }
    tally.blocksStored += outcome?.stored ?? 0;
    tally.blocksPresent += outcome?.present ?? 0;
    tally.blocksRefused += outcome?.refused ?? keys.length - startBlock;
  }

  async #prove(
    id: number,
    store: BlockStore,
    state: SequenceState,
    keys: readonly Uint8Array[],
    wanted: { readonly depth: number; readonly key: Uint8Array },
    tally: Tally,
  ): Promise<ProofOutcome> {
    const key = keys[wanted.depth - 1];
    if (key === undefined || Buffer.compare(key, wanted.key) !== 0) return "unavailable";
    const stored = new Uint8Array(this.rowBytes);
    const landed = await this.#attempt("load", tally, () =>
      store.load(id, wanted.depth - 1, [key], stored),
    );
    // A block that did not arrive says nothing about this engine: no verdict.
    if (landed?.[0] !== true) return "unavailable";
    const computed = new Uint8Array(this.rowBytes);
    copyBlock(state, wanted.depth - 1, computed);
    const { matches } = compareBlocks(this.runtime.shape, computed, stored);
    await this.#attempt("prove", tally, () => store.prove(key, matches));
    return matches ? "passed" : "failed";
  }

  /** Runs one call of the block store; a rejection or a missed deadline is recorded and reads as undefined. */
  async #attempt<T>(call: string, tally: Tally, run: () => Promise<T>): Promise<T | undefined> {
    if (tally.stalled) return undefined;
    let timer: NodeJS.Timeout | undefined;
    const deadline = new Promise<never>((_, reject) => {
      const late = new CairnError("deadlineExceeded", "no answer in time");
      timer = setTimeout(() => reject(late), this.#storeDeadlineMs);
    });
    try {
      return await Promise.race([run(), deadline]);
    } catch (error) {
      tally.storeErrors.push(`${call}: ${messageOf(error)}`);
      tally.stalled = error instanceof CairnError && error.errorName === "deadlineExceeded";
      return undefined;
    } finally {
      clearTimeout(timer);
    }
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
