/**
 * A random model of the ledger's rules (DESIGN §5): small forests of keys, tiny tiers, fills that end out
 * of order or fail, copies between tiers, corruption, fences, sweeps, restarts. The real Ledger runs;
 * beside it stand naive oracles: a Map of valid headers (what the store holds), a Map of what the
 * visibility log says is visible, and the promises given to leases. After each step they are compared.
 */
import { assert } from "../../src/assert.ts";
import { CairnError } from "../../src/errors.ts";
import { Ledger } from "../../src/ledger/ledger.ts";
import { LOG_KIND } from "../../src/ledger/log.ts";
import { NO_BLOCK, NO_SLOT, RESERVE, STATE, type LedgerOptions } from "../../src/ledger/types.ts";
import { LedgerView } from "../../src/ledger/view.ts";
import { LruPolicy } from "../../src/policy/lru.ts";
import { DeviceModel } from "./model-devices.ts";
import { growForest, random, WEIGHTS, type ModelConfig, type Node } from "./forest.ts";
import { FakeStore } from "./store.ts";

interface Job {
  readonly kind: "fill" | "copy" | "load";
  readonly key: number;
  readonly block: number;
  readonly tier: number;
  readonly from: number;
  readonly shard: number;
  readonly slots: readonly number[];
}

interface Promised {
  readonly namespace: number;
  leaf: number;
  depth: number;
}

const KEY_WORDS = 3;
const AUDIT_EVERY = 10;
export class Model {
  readonly config: ModelConfig;
  readonly #random: () => number;
  readonly nodes: readonly Node[];
  readonly #leaves: number[] = [];
  stores: FakeStore[] = [];
  ledger: Ledger;
  #view: LedgerView;
  #jobs: Job[] = [];
  readonly #devices: DeviceModel;
  readonly #leases = new Map<number, Promised>();
  #nextLease = 1;
  #sequence = 1;
  /** Key → bits of tiers, as the visibility log tells it. */
  readonly #visible = new Map<number, number>();
  readonly #keyOf = new Map<string, number>();
  readonly #watched = new Map<number, number>();
  #steps = 0;
  #now = 1;
  readonly counts: Record<string, number> = {};

  constructor(config: ModelConfig) {
    this.config = config;
    this.#random = random(config.seed);
    this.nodes = growForest(config, this.#random);
    const parents = new Set(this.nodes.map((node) => node.parent));
    for (const { key, namespace } of this.nodes) {
      if (!parents.has(key)) this.#leaves.push(key);
      this.#keyOf.set(`${namespace}:${this.words([key]).join(",")}`, key);
    }
    this.stores = config.slots
      .slice(0, config.tiers)
      .map((slots, tier) => this.#store(slots, tier));
    [this.ledger, this.#view] = this.#boot();
    this.#devices = new DeviceModel(this, this.#random, (what) => this.#count(what));
  }

  #store(slots: number, tier: number): FakeStore {
    // Odd seeds use several small slabs and no cap; even ones one slab and a cap in blocks.
    const capped = (this.config.seed + tier) % 2 === 0 && this.config.shards === 1;
    const total = slots * this.config.shards;
    const { devices } = this.config;
    if (tier === 1 && devices > 1) {
      return new FakeStore(Math.max(devices, Math.ceil(total / 3)), 3, 0, [1, 1], devices);
    }
    return capped ? new FakeStore(1, total + 3, slots) : new FakeStore(Math.ceil(total / 3), 3);
  }

  #boot(): [Ledger, LedgerView] {
    const { recordNinths, spareRecords } = this.config;
    const slots = this.config.slots.slice(0, this.config.tiers).reduce((a, b) => a + b, 0);
    const short = Math.max(2, Math.floor((slots * recordNinths) / 9));
    const options: LedgerOptions = {
      blocksMax: recordNinths > 0 ? short : slots + spareRecords,
      namespacesMax: 8,
      tenantsMax: 2,
      tiers: this.stores.map((store) => store.options),
      holesMax: this.config.holesMax,
      splitSamplesMax: 3,
      logEntries: 512,
      observer: {
        settled: (block, visible) => this.#settled(block, visible),
        leaseReduced: (lease, depth) => this.#reduced(lease, depth),
      },
    };
    const ledger = new Ledger(options, new LruPolicy(), this.config.seed);
    for (let i = 0; i < this.config.namespaces; i += 1) {
      const chained = !(this.config.unchained && i === this.config.namespaces - 1);
      const { shards } = this.config;
      ledger.addNamespace({
        keyWords: KEY_WORDS,
        shards,
        chained,
        payloadBytes: 64,
        tenant: i % 2,
      });
    }
    return [ledger, new LedgerView(ledger.share())];
  }

  #pick<T>(from: readonly T[]): T {
    return from[this.#random() % from.length]!;
  }

  #count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1;
  }

  /** Key words: pairs of keys share their last 8 bytes, so that short keys are ambiguous. */
  words(keys: readonly number[]): Uint32Array {
    const words = new Uint32Array(keys.length * KEY_WORDS);
    keys.forEach((key, i) => {
      words[i * KEY_WORDS] = Math.imul(key + 1, 0x9e3779b1);
      words[i * KEY_WORDS + 1] = 0xabcdef00 + (key >> 1);
      words[i * KEY_WORDS + 2] = Math.imul((key >> 1) + 77, 0x85ebca6b);
    });
    return words;
  }

  blockOf(key: number): number {
    return this.ledger.find(this.nodes[key]!.namespace, this.words([key]), 0);
  }

  #settled(block: number, visible: boolean): void {
    assert(this.#watched.has(block), "model: settled() without a watch");
    this.#watched.delete(block);
    if (visible) assert(this.ledger.isVisible(block), "model: settled as visible, yet it is not");
  }

  #reduced(lease: number, depth: number): void {
    const promise = this.#leases.get(lease);
    assert(promise !== undefined, "model: a lease that was closed was reduced");
    promise.depth = depth;
  }

  step(): void {
    const total = WEIGHTS.reduce((sum, [name, weight]) => sum + this.#weight(name, weight), 0);
    let x = (this.#random() / 2 ** 32) * total;
    let chosen = "finish";
    for (const [name, weight] of WEIGHTS) {
      x -= this.#weight(name, weight);
      if (x < 0) {
        chosen = name;
        break;
      }
    }
    this.#now += 1;
    this.#run(chosen);
    this.#steps += 1;
    this.check(this.#steps % AUDIT_EVERY === 0);
  }

  #weight(name: string, weight: number): number {
    const rough = ["corrupt", "fence", "restart", "loseDevice"].includes(name);
    return rough ? weight * this.config.losses : weight;
  }

  #run(name: string): void {
    if (name === "store") this.#opStore();
    else if (name === "finish") this.#opFinish();
    else if (name === "lookup") this.#opLookup();
    else if (name === "end") this.#opEnd();
    else if (name === "load") this.#opLoad();
    else if (name === "evict") this.#opEvict();
    else if (name === "demote") this.#opCopy(0, 1);
    else if (name === "promote") this.#opCopy(1, 0);
    else if (name === "corrupt") this.#opCorrupt();
    else if (name === "sweep") this.ledger.sweep(1 + (this.#random() % this.config.keys));
    else if (name === "fence") this.#opFence();
    else if (name === "restart") this.#opRestart();
    else if (name === "abort") this.#opAbort();
    else if (name === "ahead") this.#devices.copyAhead();
    else if (name === "loseDevice") this.#devices.lose();
    else if (name === "closeDevice") this.#devices.close();
    else if (name === "openDevice") this.#devices.open();
    else if (name === "adopt") this.#devices.adopt();
    else this.#opIdle();
  }

  #opStore(): void {
    const node = this.nodes[this.#random() % this.nodes.length]!;
    const start = this.#random() % node.path.length;
    const path = node.path.slice(start, start + 1 + (this.#random() % 4));
    this.store(node.namespace, node.path, start, path, this.#random() % this.config.shards);
  }

  /** Reserves and begins fills; false if the ledger had no record left or something was full. */
  store(
    namespace: number,
    path: readonly number[],
    start: number,
    keys: readonly number[],
    shard: number,
  ): boolean {
    const words = this.words([...path.slice(0, start), ...keys]);
    const statuses = new Uint8Array(keys.length);
    const blocks = new Uint32Array(keys.length);
    const parentAt = (start - 1) * KEY_WORDS;
    const at = start * KEY_WORDS;
    const { chained } = this.ledger.namespace(namespace);
    let result;
    try {
      result = this.ledger.reserve(
        namespace,
        start,
        words,
        parentAt,
        at,
        keys.length,
        shard,
        statuses,
        blocks,
      );
    } catch (error) {
      assert(error instanceof CairnError && error.errorName === "ledgerFull", String(error));
      this.#count("ledgerFull");
      const named = start > 0 && chained ? [path[start - 1]!, ...keys] : keys;
      if (keys.length <= this.ledger.core.table.blocksMax) this.#checkRecordsHeld(named);
      return false;
    }
    if (result.parentAbsent) this.#count("parentAbsent");
    keys.forEach((key, i) => {
      const block = blocks[i]!;
      if (statuses[i] === RESERVE.PRESENT) assert(this.ledger.isVisible(block), "model: present");
      if (statuses[i] === RESERVE.PENDING || statuses[i] === RESERVE.WANTED) this.#watch(block);
      if (statuses[i] === RESERVE.FULL) this.#count("full");
      if (statuses[i] !== RESERVE.WANTED) return;
      this.#count("wanted");
      const slot = this.ledger.slotOf(block, 0, shard);
      assert(slot !== NO_SLOT, "model: a wanted block has no slot");
      this.ledger.fillStart(block, 0, shard);
      this.stores[0]!.fillStart(slot);
      this.#jobs.push({ kind: "fill", key, block, tier: 0, from: -1, shard, slots: [slot] });
    });
    this.#maybeFollow(path, keys, statuses, blocks);
    if (result.deepest !== NO_BLOCK && this.ledger.core.inUse(result.deepest)) {
      this.ledger.touch(result.deepest);
    }
    return statuses.every((status) => status < RESERVE.FULL);
  }

  /** A STORE of `named` found no record: then none was to be had by dropping a block that nobody needs. */
  #checkRecordsHeld(named: readonly number[]): void {
    for (const { key } of this.nodes) {
      const block = this.blockOf(key);
      if (block === NO_BLOCK || named.includes(key)) continue;
      const child = this.nodes.some(
        (node) => node.parent === key && this.blockOf(node.key) !== NO_BLOCK,
      );
      const used = this.#jobs.some((job) => job.block === block);
      if (child || used || this.ledger.core.leasesOf(block) > 0) continue;
      if (this.ledger.core.filling(block) || this.ledger.core.landed(block)) continue;
      const complete = this.ledger.isVisible(block) || this.ledger.core.orphan(block);
      assert(!complete, "model: ledgerFull, although a block that nobody needs has a record");
    }
  }

  #watch(block: number): void {
    if (this.#watched.has(block)) return;
    this.#watched.set(block, 1);
    this.ledger.watch(block);
  }

  /** A lease on this path sometimes waits for the deepest block that was taken. */
  #maybeFollow(
    path: readonly number[],
    keys: readonly number[],
    statuses: Uint8Array,
    blocks: Uint32Array,
  ): void {
    let last = -1;
    statuses.forEach((status, i) => {
      if (status <= RESERVE.WANTED) last = i;
    });
    if (last < 0) return;
    for (const [lease, promise] of this.#leases) {
      const held = this.ledger.leaseBlock(lease);
      if (held === NO_BLOCK || this.#random() % 2 === 0) continue;
      promise.depth = Math.max(promise.depth, this.ledger.depthOf(held));
      const under = path[promise.depth - 1];
      if (under === undefined || this.blockOf(under) !== held) continue;
      if (this.nodes[keys[last]!]!.depth <= promise.depth) continue;
      promise.leaf = keys[last]!;
      this.ledger.leaseFollow(lease, blocks[last]!);
      this.#count("follow");
    }
  }

  #opFinish(): void {
    if (this.#jobs.length === 0) return;
    const at = this.#random() % this.#jobs.length;
    const job = this.#jobs[at]!;
    this.#jobs.splice(at, 1);
    if (job.kind === "load") {
      this.#checkBytes(job);
      this.ledger.unpin(job.block, job.tier);
      return;
    }
    const ok = this.#random() % 8 !== 0;
    const store = this.stores[job.tier]!;
    const isLost = (slot: number): boolean =>
      this.ledger.core.tier(job.tier).slots.isLost(slot >>> 18);
    if (ok) {
      job.slots.forEach((slot, i) => {
        // What lands on a lost device is a true copy there that the ledger will not count.
        if (isLost(slot)) store.unknown.add(slot);
        store.fillEnd(slot, job.key, job.shard + i, this.#now);
      });
    }
    if (job.kind === "fill") this.ledger.fillEnd(job.block, job.tier, job.shard, ok);
    else this.ledger.copyEnd(job.block, job.from, job.tier, ok);
    if (!ok) this.#count("failed");
  }

  /**
   * A pinned slot must still hold the key it was pinned for, unless the copy was declared wrong meanwhile.
   */
  #checkBytes(job: Job): void {
    if (this.ledger.stateOf(job.block, job.tier) === STATE.QUARANTINED) return;
    for (const slot of job.slots) {
      const header = this.stores[job.tier]!.headers.get(slot);
      assert(header?.key === job.key, "model: a pinned slot holds another key");
    }
  }

  #opLookup(): void {
    const leaf = this.#pick(this.#leaves);
    const node = this.nodes[leaf]!;
    const count = 1 + (this.#random() % node.path.length);
    const words = this.words(node.path);
    const result = this.ledger.lookup(node.namespace, words, 0, count);
    const { depth, block } = result;
    assert(
      result.dramBlocks + result.nvmeBlocks === depth,
      "model: the tier split does not add up",
    );
    if (depth === 0) return;
    assert(block === this.blockOf(node.path[depth - 1]!), "model: look-up names another block");
    this.ledger.touch(block);
    if (this.#leases.size >= this.config.leasesMax || this.#random() % 2 === 0) return;
    const lease = this.#nextLease;
    this.#nextLease += 1;
    this.ledger.leaseOpen(lease, 1, block);
    this.#leases.set(lease, { namespace: node.namespace, leaf: node.path[depth - 1]!, depth });
    this.#count("lease");
  }

  #opEnd(): void {
    if (this.#leases.size === 0) return;
    const lease = this.#pick([...this.#leases.keys()]);
    this.#leases.delete(lease);
    this.ledger.leaseClose(lease);
  }

  /** LOAD under a lease: everything it promises must be readable (rule 7). */
  #opLoad(): void {
    if (this.#leases.size === 0 || this.#jobs.length > 30) return;
    const [lease, promise] = this.#pick([...this.#leases]);
    if (promise.depth === 0) return;
    const path = this.nodes[promise.leaf]!.path.slice(0, promise.depth);
    const blocks = new Uint32Array(path.length);
    const tiers = new Uint8Array(path.length);
    const pinned = this.ledger.pinRange(
      lease,
      0,
      this.words(path),
      0,
      path.length,
      0,
      blocks,
      tiers,
    );
    assert(pinned === path.length, "model: a LOAD under a lease misses a block");
    path.forEach((key, i) => {
      const slots: number[] = [];
      for (let shard = 0; shard < this.config.shards; shard += 1) {
        slots.push(this.ledger.slotOf(blocks[i]!, tiers[i]!, shard));
      }
      const job = { key, block: blocks[i]!, tier: tiers[i]!, from: -1, shard: 0, slots };
      this.#jobs.push({ kind: "load", ...job });
    });
    this.#count("load");
  }

  /** A hint that lets a leaf go. */
  #opEvict(): void {
    const block = this.blockOf(this.#random() % this.config.keys);
    if (block !== NO_BLOCK) this.ledger.hint(block, { kind: "drop" });
  }

  #opCopy(from: number, to: number): void {
    if (this.config.tiers < 2) return;
    const node = this.nodes[this.#random() % this.nodes.length]!;
    for (const key of node.path) {
      const block = this.blockOf(key);
      if (block === NO_BLOCK) return;
      if (this.ledger.stateOf(block, to) !== STATE.ABSENT) continue;
      if (!this.copyBegin(key, from, to)) return;
    }
  }

  /** Begins a copy that opFinish ends some time. */
  copyBegin(key: number, from: number, to: number): boolean {
    const block = this.blockOf(key);
    if (!this.ledger.copyBegin(block, from, to)) return false;
    const slots: number[] = [];
    for (let shard = 0; shard < this.config.shards; shard += 1) {
      slots.push(this.ledger.slotOf(block, to, shard));
      this.stores[to]!.fillStart(slots[shard]!);
    }
    this.#jobs.push({ kind: "copy", key, block, tier: to, from, shard: 0, slots });
    this.#count("copy");
    return true;
  }

  #opCorrupt(): void {
    const copies: [number, number][] = [];
    for (let key = 0; key < this.config.keys; key += 1) {
      const block = this.blockOf(key);
      if (block === NO_BLOCK) continue;
      for (let tier = 0; tier < this.config.tiers; tier += 1) {
        const state = this.ledger.stateOf(block, tier);
        if (state >= STATE.LANDED && state <= STATE.ORPHAN) copies.push([block, tier]);
      }
    }
    if (copies.length === 0) return;
    const [block, tier] = this.#pick(copies);
    const before = this.ledger.holeCount;
    this.ledger.corrupt(block, tier);
    if (this.ledger.holeCount > before) this.#count("hole");
  }

  #opFence(): void {
    this.ledger.loseTier(this.config.tiers - 1);
    this.#count("fence");
  }

  /** A shard whose rank never writes: a STORE is begun and given up before its copy starts. */
  #opAbort(): void {
    const node = this.nodes[this.#random() % this.nodes.length]!;
    const blocks = new Uint32Array(1);
    const statuses = new Uint8Array(1);
    const start = node.depth - 1;
    const words = this.words(node.path);
    const shard = this.#random() % this.config.shards;
    const at = start * KEY_WORDS;
    try {
      this.ledger.reserve(
        node.namespace,
        start,
        words,
        at - KEY_WORDS,
        at,
        1,
        shard,
        statuses,
        blocks,
      );
    } catch {
      return;
    }
    if (statuses[0] === RESERVE.WANTED) this.ledger.fillAbort(blocks[0]!, 0, shard);
  }

  /** When nothing is in flight, leased or being swept, a full tier must be able to free a slot (rule 5). */
  #opIdle(): void {
    if (this.#jobs.length > 0 || this.#leases.size > 0 || this.ledger.holeCount > 0) return;
    const root = this.nodes.find((node) => node.depth === 1 && this.blockOf(node.key) === NO_BLOCK);
    if (root === undefined) return;
    const stuck = this.#partial();
    const taken = this.store(root.namespace, root.path, 0, [root.key], 0);
    assert(taken || stuck, "model: idle and full, and nothing may leave");
    this.#devices.checkIdle(stuck);
    this.#count("idle");
  }

  /** Some block waits for shards that nobody is sending: its slots are legitimately held. */
  #partial(): boolean {
    return this.nodes.some((node) => {
      const block = this.blockOf(node.key);
      return block !== NO_BLOCK && this.ledger.core.filling(block);
    });
  }

  #opRestart(): void {
    // What stood on a lost device comes back, too, and there may be no record for all.
    const whole =
      this.ledger.holeCount === 0 && this.stores.every((store) => store.unknown.size === 0);
    const before = whole ? [...this.#visible].filter(([, bits]) => bits !== 0) : [];
    const lost = this.#random() % 4 === 0 ? 0 : -1;
    const stores = this.stores;
    this.#jobs = [];
    this.#leases.clear();
    this.#watched.clear();
    this.#visible.clear();
    this.#sequence = 1;
    if (lost === 0) this.stores = [this.#store(this.config.slots[0]!, 0), ...stores.slice(1)];
    [this.ledger, this.#view] = this.#boot();
    for (const store of this.stores) store.unknown.clear();
    this.#devices.restarted();
    this.#recover();
    this.check(true);
    for (const [key, bits] of before) {
      if (lost === 0 && (bits & 2) === 0) continue;
      const path = this.nodes[key]!.path;
      if (lost === 0 && path.some((above) => (this.#visible.get(above) ?? 0) === 0)) continue;
      assert(
        this.ledger.isVisible(this.blockOf(key)),
        "model: a visible block was lost by a restart",
      );
    }
    this.#count("restart");
  }

  #recover(): void {
    const headers = this.stores.flatMap((store, tier) =>
      [...store.headers].map(([slot, header]) => ({ slot, tier, ...header })),
    );
    const depth = (key: number): number => this.nodes[key]!.depth;
    headers.sort((a, b) => depth(a.key) - depth(b.key) || b.generation - a.generation);
    this.stores.forEach((store, tier) => {
      for (const [slab, payloadBytes] of store.slabs) {
        this.ledger.recoverSlab(tier, slab, payloadBytes);
      }
    });
    for (const { slot, tier, key, shard, generation, lastAccess } of headers) {
      const { namespace, path } = this.nodes[key]!;
      const chain = this.words(path.slice(-2));
      const at = path.length > 1 ? KEY_WORDS : 0;
      const block = { namespace, depth: depth(key), shard, slot, generation, lastAccess };
      this.ledger.recover(block, tier, chain, at, 0);
    }
    this.ledger.recoverEnd();
  }

  /** The invariants that can be seen from outside. */
  check(deep: boolean): void {
    this.#readLog();
    for (const leaf of deep ? this.#leaves : [this.#pick(this.#leaves)]) this.#checkChain(leaf);
    if (!deep) return;
    this.ledger.audit();
    for (const [lease, promise] of this.#leases) this.#checkLease(lease, promise);
    for (const node of this.nodes) this.#checkKey(node);
  }

  #readLog(): void {
    this.ledger.flush();
    const entries = this.#view.readLog(this.#sequence, 512);
    assert(entries !== undefined, "model: the log was lapped");
    for (const entry of entries) {
      const words = [...entry.key.subarray(0, KEY_WORDS)].join(",");
      const key = this.#keyOf.get(`${entry.namespace}:${words}`);
      assert(key !== undefined, "model: the log names an unknown key");
      const bit = 1 << entry.tier;
      const bits = this.#visible.get(key) ?? 0;
      const stored = entry.kind === LOG_KIND.STORED;
      assert(((bits & bit) === 0) === stored, "model: the log repeats itself");
      this.#visible.set(key, stored ? bits | bit : bits & ~bit);
    }
    this.#sequence += entries.length;
  }

  /** Bisection = linear walk = the oracle's walk. */
  #checkChain(leaf: number): void {
    const { namespace, path } = this.nodes[leaf]!;
    const words = this.words(path);
    let naive = 0;
    while (naive < path.length && (this.#visible.get(path[naive]!) ?? 0) !== 0) naive += 1;
    const linear = this.ledger.lookupLinear(namespace, words, 0, path.length).depth;
    assert(linear === naive, "model: the linear walk differs from the oracle");
    const bisected = this.ledger.lookup(namespace, words, 0, path.length).depth;
    assert(bisected === linear, "model: bisection differs from the linear walk");
  }

  #checkLease(lease: number, promise: Promised): void {
    const block = this.ledger.leaseBlock(lease);
    const depth = block === NO_BLOCK ? 0 : this.ledger.depthOf(block);
    assert(depth >= promise.depth, "model: a lease fell back without saying so");
    promise.depth = depth;
    if (depth === 0) return;
    const path = this.nodes[promise.leaf]!.path;
    assert(this.blockOf(path[depth - 1]!) === block, "model: a lease left its chain");
  }

  /** Visible copies have valid headers of their key; the view locates exactly what is visible. */
  #checkKey(node: Node): void {
    const bits = this.#visible.get(node.key) ?? 0;
    const words = this.words([node.key]);
    const full = this.#view.locate(node.namespace, words, 0, KEY_WORDS, KEY_WORDS);
    assert(full.length === (bits === 0 ? 0 : 1), "model: the view locates a full key wrongly");
    assert(bits === 0 || full[0]!.tiers === bits, "model: the view names other tiers");
    const twin = node.key ^ 1;
    const twinBits = this.nodes[twin]?.namespace === node.namespace ? this.#visible.get(twin) : 0;
    const short = this.#view.locate(node.namespace, words, 1, 2, KEY_WORDS);
    const expected = (bits === 0 ? 0 : 1) + ((twinBits ?? 0) === 0 ? 0 : 1);
    assert(short.length === expected, "model: the view locates a short key wrongly");
    const block = this.blockOf(node.key);
    for (let tier = 0; tier < this.config.tiers; tier += 1) {
      if ((bits & (1 << tier)) === 0) continue;
      for (let shard = 0; shard < this.config.shards; shard += 1) {
        const header = this.stores[tier]!.headers.get(this.ledger.slotOf(block, tier, shard));
        const right = header?.key === node.key && header.shard === shard;
        assert(right, "model: a visible copy has no valid header");
      }
    }
  }
}
