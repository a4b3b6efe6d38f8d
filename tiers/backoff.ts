import { assert } from "../src/assert.ts";

/** When to probe next: doubles by each failure. */
export class Backoff {
  readonly #firstMs: number;
  readonly #mostMs: number;
  #waitMs: number;

  constructor(firstMs: number, mostMs: number) {
    assert(firstMs > 0, "a wait has a length");
    this.#firstMs = firstMs;
    this.#mostMs = mostMs;
    this.#waitMs = firstMs;
  }

  /** The wait before the next try. */
  failed(): number {
    const wait = this.#waitMs;
    this.#waitMs = Math.min(this.#mostMs, wait * 2);
    return wait;
  }

  reset(): void {
    this.#waitMs = this.#firstMs;
  }
}
