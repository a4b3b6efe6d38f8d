/** Opens the ledger's shared state in the worker. */
import type { LedgerReader } from "./contract.ts";

/** null (a daemon without a ledger view, as in some tests) reads as undefined. */
export function openLedgerReader(shared: unknown): LedgerReader | undefined {
  return shared === null ? undefined : undefined;
}
