/** JSON lines between the demo and an engine process: one request, one reply with the same `sequence`. */
import type { ProofOutcome } from "../llama/engine.ts";

export type EngineCommand =
  | { readonly command: "tokenize"; readonly text: string }
  | {
      readonly command: "generate";
      readonly tokens: readonly number[];
      readonly newTokens: number;
    }
  /** The last bytes of the stored block at `depth` of these tokens' chain, as the cache returns them. */
  | {
      readonly command: "peek";
      readonly tokens: readonly number[];
      readonly depth: number;
      readonly bytes: number;
    };

export type EngineRequest = EngineCommand & { readonly sequence: number };

export interface GenerateReply {
  readonly tokens: readonly number[];
  /** Float32 vectors of the whole vocabulary, one per token, one after the other, base64. */
  readonly probabilities: string;
  readonly cachedTokens: number;
  readonly computedTokens: number;
  readonly timeToFirstTokenMs: number;
  readonly restoreMs: number;
  readonly storeMs: number;
  readonly blocksStored: number;
  readonly blocksFailed: number;
  readonly storeErrors: readonly string[];
  readonly proof: ProofOutcome;
}

export interface TokenizeReply {
  readonly tokens: readonly number[];
}

/** Empty text: the block could not be loaded. */
export interface PeekReply {
  readonly bytes: string;
}

/** First line of an engine process. */
export interface ReadyLine {
  readonly ready: true;
  readonly blockBytes: number;
  readonly vocabulary: number;
}

export type EngineReply =
  | { readonly sequence: number; readonly ok: true; readonly value: unknown }
  | { readonly sequence: number; readonly ok: false; readonly message: string };
