/**
 * What the leases of one instance pin, each block counted once as far as that can be known cheaply. Requests
 * of one engine share prefixes (a system prompt, a conversation), and leases of one shared prefix pin it once,
 * however many they are.
 *
 * A pin is a prefix that a LOOKUP leased: the blocks from its base (a shorter pin on the same chain) down to
 * its own. Leases and longer pins refer to it; when nobody does, its blocks are no longer counted. A new
 * lease finds its base among the instance's most recent pins by key, and the caller proves it by walking up
 * the parent links: keys alone are what a client says. What a lease stores on top of its prefix counts as its
 * own. So the sum never falls short of what is pinned; it exceeds it where two chains branch off at a block
 * that no LOOKUP ended on, or where the pin they share is no longer among the most recent.
 */
import { assert } from "../assert.ts";
import { LIMITS } from "../limits.ts";
import type { Block } from "../ledger/types.ts";
import type { Namespace } from "./namespaces.ts";

const KEY_WORDS_MAX = LIMITS.keyBytesMax / 4;

export class Pin {
  readonly key = new Uint32Array(KEY_WORDS_MAX);
  namespace: Namespace | undefined;
  block: Block = 0;
  depth = 0;
  base: Pin | undefined;
  /** Leases that end here, and pins whose base this is. */
  references = 0;
}

export class Pins {
  /** Bytes of all pins, without what leases stored on top. */
  bytes = 0;
  /** Most recent first. */
  readonly #recent: Pin[] = [];
  readonly #free: Pin[] = [];

  /**
   * The longest recent pin whose key stands at its depth among the `count` keys at words[at…]; it is on their
   * chain if they are one.
   */
  candidate(namespace: Namespace, words: Uint32Array, at: number, count: number): Pin | undefined {
    const { keyWords } = namespace;
    let found = -1;
    let depth = 0;
    for (let index = 0; index < this.#recent.length; index++) {
      const pin = this.#recent[index]!;
      if (pin.namespace !== namespace || pin.depth > count || pin.depth <= depth) continue;
      const keyAt = at + (pin.depth - 1) * keyWords;
      let word = keyWords - 1;
      while (word >= 0 && pin.key[word] === words[keyAt + word]) word--;
      if (word >= 0) continue;
      found = index;
      depth = pin.depth;
    }
    return found === -1 ? undefined : this.#promote(found);
  }

  #promote(index: number): Pin {
    const pin = this.#recent[index];
    assert(pin !== undefined, "a pin that was found is listed");
    this.#recent.copyWithin(1, 0, index);
    this.#recent[0] = pin;
    return pin;
  }

  /** A reference to the pin of this prefix, made if it is new; key = words[at…]. */
  take(
    namespace: Namespace,
    block: Block,
    depth: number,
    base: Pin | undefined,
    words: Uint32Array,
    at: number,
  ): Pin {
    assert(base === undefined || base.depth <= depth, "a base is not longer than what it carries");
    if (base !== undefined) base.references++;
    if (base?.depth === depth) return base;
    const pin = this.#free.pop() ?? new Pin();
    assert(pin.references === 0, "a free pin is blank");
    for (let word = 0; word < namespace.keyWords; word++) pin.key[word] = words[at + word]!;
    pin.namespace = namespace;
    pin.block = block;
    pin.depth = depth;
    pin.base = base;
    pin.references = 1;
    this.bytes += (depth - (base?.depth ?? 0)) * namespace.blockBytes;
    this.#recent.unshift(pin);
    if (this.#recent.length > LIMITS.recentPinsMax) this.#recent.pop();
    return pin;
  }

  /** Gives a reference back. */
  give(taken: Pin): void {
    let pin: Pin | undefined = taken;
    while (pin !== undefined) {
      const { base, namespace }: Pin = pin;
      assert(pin.references > 0 && namespace !== undefined, "a pin given back was taken");
      pin.references--;
      if (pin.references > 0) return;
      this.bytes -= (pin.depth - (base?.depth ?? 0)) * namespace.blockBytes;
      const index = this.#recent.indexOf(pin);
      if (index !== -1) this.#recent.splice(index, 1);
      pin.namespace = undefined;
      pin.base = undefined;
      if (this.#free.length < LIMITS.recentPinsMax) this.#free.push(pin);
      pin = base;
    }
    assert(this.bytes >= 0, "pinned bytes never go below zero");
  }
}
