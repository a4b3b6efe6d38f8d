/** What the random model runs on: its configurations, its random numbers, its trees of keys. */

export interface ModelConfig {
  readonly seed: number;
  readonly keys: number;
  readonly namespaces: number;
  readonly unchained: boolean;
  readonly tiers: number;
  readonly slots: readonly number[];
  readonly shards: number;
  /** Devices of the lower tier. */
  readonly devices: number;
  readonly holesMax: number;
  readonly leasesMax: number;
  readonly spareRecords: number;
  /** Ninths of the slots that have a record; 0: all have, and spareRecords more. */
  readonly recordNinths: number;
  /** Relative weights of rough events; 0 turns them off. */
  readonly losses: number;
}

export interface Node {
  readonly key: number;
  readonly namespace: number;
  readonly parent: number;
  readonly depth: number;
  readonly path: readonly number[];
}

/** Operations and how often they come. */
export const WEIGHTS: readonly (readonly [string, number])[] = [
  ["store", 22],
  ["finish", 40],
  ["lookup", 14],
  ["end", 6],
  ["load", 4],
  ["evict", 2],
  ["demote", 8],
  ["promote", 5],
  ["corrupt", 2],
  ["sweep", 6],
  ["fence", 0.4],
  ["restart", 0.5],
  ["abort", 2],
  ["idle", 2],
  ["ahead", 6],
  ["loseDevice", 0.8],
  ["closeDevice", 1],
  ["openDevice", 1.5],
  ["adopt", 6],
];

/** Mulberry32. */
export function random(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  };
}

/** Keys in trees: a parent has a smaller number; the last namespace may be unchained. */
export function growForest(config: ModelConfig, next: () => number): Node[] {
  const { keys, namespaces, unchained, seed } = config;
  const nodes: Node[] = [];
  for (let key = 0; key < keys; key += 1) {
    let parent = -1;
    let namespace = key % namespaces;
    const flat = unchained && namespace === namespaces - 1;
    if (key >= namespaces * 2 && !flat) {
      const bushy = seed % 4 !== 1;
      for (let tries = 0; tries < 20; tries += 1) {
        const near = next() % 3 === 0 || !bushy;
        const candidate = near ? Math.max(0, key - 1 - (next() % 3)) : next() % key;
        const other = nodes[candidate]!;
        if (unchained && other.namespace === namespaces - 1) continue;
        if (other.depth >= 9) continue;
        parent = candidate;
        namespace = other.namespace;
        break;
      }
    }
    const above = parent < 0 ? undefined : nodes[parent]!;
    const path = [...(above?.path ?? []), key];
    nodes.push({ key, namespace, parent, depth: (above?.depth ?? 0) + 1, path });
  }
  return nodes;
}

/** The swarm: small and smaller tables, every mix of features, drawn from the seed. */
export function configOf(seed: number): ModelConfig {
  const next = random(seed * 7919 + 13);
  const tiers = 1 + (next() % 2);
  const keys = 8 + (next() % 32);
  return {
    seed,
    keys,
    namespaces: 1 + (next() % 3),
    unchained: next() % 4 === 0,
    tiers,
    slots: [2 + (next() % 12), 2 + (next() % 14)],
    shards: next() % 3 === 0 ? 1 + (next() % 3) : 1,
    holesMax: 1 + (next() % 3),
    leasesMax: next() % 5,
    spareRecords: 1 + (next() % 40),
    losses: next() % 3,
    devices: 1 + (next() % 4),
    recordNinths: next() % 3 === 0 ? 1 + (next() % 8) : 0,
  };
}
