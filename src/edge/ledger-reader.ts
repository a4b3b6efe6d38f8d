/**
 * The ledger as the edge sees it, over shared memory only: locating keys and following the visibility log
 * cost the ledger's thread nothing. What the view lacks, the key length of each namespace, stands in a
 * small shared table that the daemon writes when it adds a namespace.
 */
import { assert } from "../assert.ts";
import { LOG_KIND } from "../ledger/log.ts";
import { TIER_NAMES } from "../ledger/types.ts";
import { LedgerView, type LogEntry } from "../ledger/view.ts";
import type { BlockEvent, EdgeLedger, LedgerReader, LocatedBlock } from "./contract.ts";

const SUFFIX_WORDS = 2;
const WORD_BYTES = 4;

/** The table of key lengths; the daemon sets `table[namespace] = keyWords` beside addNamespace() and replaceNamespace(). */
export function namespaceTable(namespacesMax: number): Uint8Array {
  return new Uint8Array(new SharedArrayBuffer(namespacesMax));
}

function hexOf(words: Uint32Array, keyWords: number): string {
  const bytes = Buffer.from(words.buffer, words.byteOffset, keyWords * WORD_BYTES);
  return bytes.toString("hex");
}

function tierNames(bits: number): string[] {
  return TIER_NAMES.filter((_, tier) => (bits & (1 << tier)) !== 0);
}

class SharedLedgerReader implements LedgerReader {
  private readonly view: LedgerView;
  private readonly keyWords: Uint8Array;

  constructor({ view, keyWords }: EdgeLedger) {
    this.view = new LedgerView(view);
    this.keyWords = keyWords;
  }

  locate(key: Uint8Array): LocatedBlock[] {
    assert(key.length % WORD_BYTES === 0, "a key is whole words");
    assert(key.length >= SUFFIX_WORDS * WORD_BYTES, "a key has at least eight bytes");
    // A copy, because a view over 32-bit words needs alignment that a received buffer may lack.
    const words = new Uint32Array(new Uint8Array(key).buffer);
    const found: LocatedBlock[] = [];
    for (let namespace = 0; namespace < this.keyWords.length; namespace++) {
      const keyWords = this.keyWords[namespace]!;
      if (keyWords === 0) break;
      if (words.length !== keyWords && words.length !== SUFFIX_WORDS) continue;
      for (const block of this.view.locate(namespace, words, 0, words.length, keyWords)) {
        const { depth } = block;
        const tiers = tierNames(block.tiers);
        // Between the ledger's two writes a block can be visible in no tier: it is on its way out.
        if (tiers.length > 0)
          found.push({ namespace, key: hexOf(block.key, keyWords), depth, tiers });
      }
    }
    return found;
  }

  head(): number {
    return this.view.nextSequence;
  }

  read(sequence: number, max: number): { events: BlockEvent[]; next: number; lost: number } {
    const entries = this.view.readLog(sequence, max);
    if (entries !== undefined) {
      const events = entries.map((entry) => this.event(entry));
      return { events, next: sequence + events.length, lost: 0 };
    }
    // Lapped: go on from now. What is skipped is counted; a page that is behind shows the newest anyway.
    const next = this.view.nextSequence;
    return { events: [], next, lost: next - sequence };
  }

  private event({ sequence, kind, namespace, tier, key }: LogEntry): BlockEvent {
    return {
      sequence,
      kind: kind === LOG_KIND.STORED ? "stored" : "removed",
      namespace,
      key: hexOf(key, this.keyWords[namespace] ?? 0),
      tier: TIER_NAMES[tier] ?? "unknown",
    };
  }
}

/** null (no ledger attached, as where the edge is tested alone) reads as undefined. */
export function openLedgerReader(shared: EdgeLedger | null): LedgerReader | undefined {
  return shared === null ? undefined : new SharedLedgerReader(shared);
}
