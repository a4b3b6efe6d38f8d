/** Notes why keys of STOREs were not taken, or not kept, for whoever asks about one of them later (explain.ts). */
import { assert } from "../assert.ts";
import { RECORD_WORDS } from "../ledger/table.ts";
import { type Block, NO_BLOCK, RESERVE } from "../ledger/types.ts";
import { STORE_REFUSAL } from "../transfer/refusals.ts";
import type { EngineContext } from "./context.ts";
import type { Namespace } from "./namespaces.ts";

/** Keys of a STORE: where they stand in the frame. */
export interface StoreKeys {
  readonly namespace: Namespace;
  readonly words: Uint32Array;
  readonly at: number;
  readonly count: number;
}

/** After a reservation, whose statuses stand in the context. */
export function noteRefused(context: EngineContext, keys: StoreKeys): void {
  const { statuses } = context;
  // Once a key is refused all behind it are.
  for (let index = keys.count - 1; index >= 0 && statuses[index]! >= RESERVE.FULL; index--) {
    const full = statuses[index] === RESERVE.FULL;
    note(context, keys, index, full ? STORE_REFUSAL.FULL : STORE_REFUSAL.PARENT_ABSENT);
  }
}

/** The whole STORE was refused for want of records. */
export function noteLedgerFull(context: EngineContext, keys: StoreKeys): void {
  const { ledger } = context;
  const { index: namespace, keyWords } = keys.namespace;
  for (let index = 0; index < keys.count; index++) {
    const there = ledger.find(namespace, keys.words, keys.at + index * keyWords) !== NO_BLOCK;
    if (!there) note(context, keys, index, STORE_REFUSAL.LEDGER_FULL);
  }
}

function note(context: EngineContext, keys: StoreKeys, index: number, reason: number): void {
  const { index: namespace, keyWords } = keys.namespace;
  context.notStored.add(namespace, keys.words, keys.at + index * keyWords, keyWords, reason);
}

/** A reserved block is given up because its bytes did not come; before the ledger forgets it. */
export function noteUnfilled({ ledger, notStored }: EngineContext, block: Block): void {
  if (block === NO_BLOCK || !ledger.core.inUse(block)) return;
  const namespace = ledger.namespaceOf(block);
  const { keyWords } = ledger.namespace(namespace);
  assert(keyWords > 0, "a block has a key");
  const { records } = ledger.core;
  notStored.add(namespace, records, block * RECORD_WORDS, keyWords, STORE_REFUSAL.NOT_FILLED);
}
