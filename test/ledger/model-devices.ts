/** The part of the random model that plays the lower tier: its devices, live adoption, copying down ahead. */
import { assert } from "../../src/assert.ts";
import { STATE } from "../../src/ledger/types.ts";
import type { Model } from "./model.ts";

const TIER = 1;
const KEY_WORDS = 3;
/** Slots offered in one step of an adoption; other operations come between. */
const OFFERS = 3;

export class DeviceModel {
  readonly #model: Model;
  readonly #random: () => number;
  readonly #count: (what: string) => void;
  /** Slabs being adopted, and the slots still to be offered. */
  #slabs: number[] = [];
  #offers: number[] = [];

  constructor(model: Model, random: () => number, count: (what: string) => void) {
    this.#model = model;
    this.#random = random;
    this.#count = count;
  }

  restarted(): void {
    this.#slabs = [];
    this.#offers = [];
  }

  /** A device, −1 if the tier has only one. */
  #device(): number {
    const { tiers, devices } = this.#model.config;
    return tiers < 2 || devices < 2 ? -1 : this.#random() % devices;
  }

  lose(): void {
    const device = this.#device();
    if (device < 0) return;
    const { ledger, stores } = this.#model;
    stores[TIER]!.lose(device);
    const { slots } = ledger.core.tier(TIER);
    const lost = ledger.loseDevice(TIER, device);
    if (lost > 0) this.#count("deviceLost");
    assert(ledger.loseDevice(TIER, device) === 0, "model: a device was lost twice");
    for (let slab = 0; slab < slots.slabs; slab += 1) {
      const here = slab % this.#model.config.devices === device;
      assert(!here || slots.isLost(slab), "model: a slab of a lost device gives out slots");
    }
  }

  close(): void {
    const device = this.#device();
    if (device >= 0) this.#model.ledger.closeDevice(TIER, device);
  }

  open(): void {
    const device = this.#device();
    if (device >= 0) this.#model.ledger.openDevice(TIER, device);
  }

  /** Begins the adoption of lost slabs, goes on with it, or ends it. */
  adopt(): void {
    if (this.#device() < 0) return;
    if (this.#slabs.length === 0) this.#begin();
    else if (this.#offers.length > 0) for (let i = 0; i < OFFERS; i += 1) this.#offer();
    else {
      for (const slab of this.#slabs) this.#model.ledger.adoptEnd(TIER, slab);
      this.#slabs = [];
      this.#count("adopted");
    }
  }

  #begin(): void {
    const { ledger, stores, nodes } = this.#model;
    const store = stores[TIER]!;
    const { slots } = ledger.core.tier(TIER);
    for (let slab = 0; slab < slots.slabs; slab += 1) {
      if (!slots.isLost(slab)) continue;
      const payloadBytes = store.slabs.get(slab) ?? 0;
      if (!ledger.adoptBegin(TIER, slab, payloadBytes)) continue;
      if (payloadBytes > 0) this.#slabs.push(slab);
    }
    this.#offers = [...store.headers.keys()].filter((slot) => this.#slabs.includes(slot >>> 18));
    const place = (slot: number): number => {
      const { key, generation } = store.headers.get(slot)!;
      return nodes[key]!.depth * 1e9 - generation;
    };
    this.#offers.sort((a, b) => place(a) - place(b));
  }

  #offer(): void {
    const slot = this.#offers.shift();
    const { ledger, stores, nodes } = this.#model;
    const store = stores[TIER]!;
    const header = slot === undefined ? undefined : store.headers.get(slot);
    if (slot === undefined || header === undefined) return;
    const { namespace, path } = nodes[header.key]!;
    const chain = this.#model.words(path.slice(-2));
    const at = path.length > 1 ? KEY_WORDS : 0;
    const { shard, generation, lastAccess } = header;
    const offered = { namespace, depth: path.length, shard, slot, generation, lastAccess };
    const known = store.headers.has(slot) && ledger.core.tier(TIER).slots.isLost(slot >>> 18);
    store.unknown.delete(slot);
    const taken = ledger.adopt(offered, TIER, chain, at, 0);
    if (known) {
      assert(!taken, "model: a slot of a lost slab was taken");
      store.unknown.add(slot);
    } else if (!taken) assert(!store.headers.has(slot), "model: a refused header stayed valid");
    if (taken) this.#count("taken");
  }

  /** Copies down what the ledger says is next; some are refused, and are not offered at once again. */
  copyAhead(): void {
    const { ledger, config, nodes } = this.#model;
    if (config.tiers < 2) return;
    const blocks = new Uint32Array(1 + (this.#random() % 6));
    const found = ledger.demotable(0, TIER, blocks, blocks.length);
    const missing = ledger.unbacked(0, TIER, 4);
    assert(missing >= 0 && missing <= 4, "model: more are missing than were looked at");
    const named = [...blocks.subarray(0, found)];
    assert(new Set(named).size === found, "model: a block was offered twice");
    const refused = this.#random() % 4 === 0 ? named[found - 1] : undefined;
    named.forEach((block, i) => {
      const parent = ledger.parentOf(block);
      const above = parent === 0xffff_ffff || named.indexOf(parent) < i;
      assert(above, "model: a block was offered before its ancestor");
      assert(ledger.stateOf(block, 0) === STATE.VISIBLE, "model: nothing to copy from");
      assert(ledger.stateOf(block, TIER) === STATE.ABSENT, "model: it is there already");
    });
    if (refused !== undefined) {
      ledger.demotionRefused(refused);
      const again = new Uint32Array(64);
      const count = ledger.demotable(0, TIER, again, 64);
      assert(!again.subarray(0, count).includes(refused), "model: a refused block was offered");
      this.#count("refused");
    }
    for (const block of named) {
      if (block === refused) return;
      const node = nodes.find((other) => this.#model.blockOf(other.key) === block);
      if (node === undefined || !this.#model.copyBegin(node.key, 0, TIER)) return;
      this.#count("ahead");
    }
  }

  /** Nothing is in flight or leased: a device that gives out slots can take a root (rule 5). */
  checkIdle(stuck: boolean): void {
    const { ledger, config, nodes } = this.#model;
    if (config.tiers < 2 || config.shards > 1 || stuck || this.#slabs.length > 0) return;
    const { slots } = ledger.core.tier(TIER);
    let open = false;
    for (let slab = 0; slab < slots.slabs; slab += 1) {
      open ||= slots.isOpen(slab) && !slots.isDeviceClosed(slots.deviceOfSlab(slab));
    }
    const root = nodes.find(({ key, depth }) => {
      const block = depth === 1 ? this.#model.blockOf(key) : 0xffff_ffff;
      if (block === 0xffff_ffff || ledger.stateOf(block, 0) !== STATE.VISIBLE) return false;
      return ledger.stateOf(block, TIER) === STATE.ABSENT;
    });
    if (!open || root === undefined) return;
    assert(
      this.#model.copyBegin(root.key, 0, TIER),
      "model: idle, and the lower tier takes nothing",
    );
    this.#count("idleBelow");
  }
}
