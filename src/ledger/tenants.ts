/**
 * What each tenant holds, per tier: blocks (copies) and bytes (slots by class size). Shared, read by other
 * threads.
 */
import { assert } from "../assert.ts";

export class TenantAccounts {
  readonly tenantsMax: number;
  /** [tenant × tiers + tier] */
  readonly blocks: Float64Array;
  readonly bytes: Float64Array;
  readonly #tiers: number;

  constructor(tenantsMax: number, tiers: number) {
    assert(tenantsMax > 0 && tiers > 0, "tenants and tiers must be positive");
    this.tenantsMax = tenantsMax;
    this.#tiers = tiers;
    this.blocks = new Float64Array(new SharedArrayBuffer(tenantsMax * tiers * 8));
    this.bytes = new Float64Array(new SharedArrayBuffer(tenantsMax * tiers * 8));
  }

  addBlocks(tenant: number, tier: number, count: number): void {
    const i = tenant * this.#tiers + tier;
    this.blocks[i] = this.blocks[i]! + count;
  }

  addBytes(tenant: number, tier: number, bytes: number): void {
    const i = tenant * this.#tiers + tier;
    this.bytes[i] = this.bytes[i]! + bytes;
  }

  blocksOf(tenant: number, tier: number): number {
    return this.blocks[tenant * this.#tiers + tier]!;
  }

  bytesOf(tenant: number, tier: number): number {
    return this.bytes[tenant * this.#tiers + tier]!;
  }
}
