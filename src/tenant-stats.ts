/**
 * What STATS tells an engine of the node where there is more than one tenant: its own tenant's share and
 * nothing else. Node-wide counts would tell one tenant when, and how much, another one computes.
 */
import { assert } from "./assert.ts";
import type { Ledger } from "./ledger/ledger.ts";
import { TIER_NAMES } from "./ledger/types.ts";

export interface TenantStats {
  readonly tenant: string;
  /** Copies this tenant has in each local tier, and the bytes of their slots. */
  readonly tiers: readonly {
    readonly tier: string;
    readonly blocks: number;
    readonly usedBytes: number;
  }[];
}

/** @param index the tenant's number in the ledger. */
export function tenantStats(ledger: Ledger, tenant: string, index: number): TenantStats {
  const { tenants, tiers } = ledger.core;
  assert(index >= 0 && index < tenants.tenantsMax, "the ledger keeps accounts of every tenant");
  return {
    tenant,
    tiers: tiers.flatMap((tier, t) =>
      tier === undefined
        ? []
        : [
            {
              tier: TIER_NAMES[t] ?? "unknown",
              blocks: tenants.blocksOf(index, t),
              usedBytes: tenants.bytesOf(index, t),
            },
          ],
    ),
  };
}
