/**
 * Engines that behave, all at once and in random order, on a pool that is much too small: overlapping chains,
 * half-filled stores, cancelled jobs, kept leases, connections that end in the middle, two ranks that race. The
 * daemon audits its ledger meanwhile; every byte that is loaded is compared.
 */
import { createHash } from "node:crypto";
import { expect, it } from "vitest";
import { decodeCold } from "../../src/engine-api/codec.ts";
import { OP, STORE_STATUS } from "../../src/engine-api/protocol.ts";
import { type TestDaemon, withDaemon } from "../harness/daemon.ts";
import { TestEngine } from "../harness/engine.ts";
import { fillBody, frameOf, join, storeBody } from "../harness/frames.ts";
import { LONG, scaled } from "../harness/scale.ts";
import { ConnectionClosed, errorName } from "../harness/wire.ts";

const MIB = 1024 * 1024;
const STEPS = scaled(120, 2_500);
const CLIENTS = 6;
const DEPTH_MAX = 40;
/** What a LOAD under a lease may answer for a block: another client's lie or a hole never appears here. */
const LOAD_FAILURES = new Set(["blockNotReadable", "cancelled", "unknownLease"]);

type Random = (below: number) => number;

function generator(seed: number): Random {
  let state = seed >>> 0 || 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** A path in a bushy tree of keys: every eighth block may branch three ways, and there are five roots. */
function randomChain(random: Random): Uint8Array[] {
  const keys: Uint8Array[] = [];
  let digest = createHash("sha256")
    .update(`root-${random(5)}`)
    .digest();
  const depth = 1 + random(DEPTH_MAX);
  for (let index = 0; index < depth; index++) {
    keys.push(new Uint8Array(digest));
    const branch = index % 8 === 7 ? random(3) : 0;
    digest = createHash("sha256").update(digest).update(String(branch)).digest();
  }
  return keys;
}

interface Client {
  readonly daemon: TestDaemon;
  readonly random: Random;
  readonly name: string;
  readonly flavour: (typeof FLAVOURS)[number];
  engine: TestEngine;
  lives: number;
  loaded: number;
}

const FLAVOURS = [
  { model: "chaos", chained: true },
  { model: "chaos", chained: true },
  { model: "chaos", chained: true },
  { model: "chaos", chained: true },
  { model: "chaos-loose", chained: false },
  { model: "chaos-wide", chained: true, rowBytes: 16_384 },
] as const;

function enter(daemon: TestDaemon, name: string, flavour: Client["flavour"]): Promise<TestEngine> {
  return TestEngine.start(daemon.socket, { engineId: name, descriptor: flavour, rows: 96 });
}

async function store(client: Client): Promise<void> {
  const { engine, random } = client;
  const chain = randomChain(random);
  const from = random(3) === 0 ? random(chain.length) : 0;
  const answer = await engine.store(chain, client.flavour.chained ? from : 0);
  const refused = answer.completion?.failed ?? [];
  for (const { name } of refused) {
    expect(["blockNotReadable", "deadlineExceeded", "cancelled"]).toContain(name);
  }
  const full = answer.statuses.indexOf(STORE_STATUS.FULL);
  if (full >= 0) expect(new Set(answer.statuses.slice(full))).toEqual(new Set([STORE_STATUS.FULL]));
}

/** Reserves, fills a random part in random order, and then cancels, forgets or finishes the rest. */
async function storeInPieces(client: Client): Promise<void> {
  const { engine, random } = client;
  const keys = randomChain(random).slice(0, 16);
  const body = storeBody({ region: engine.region, keys, tokens: keys.length * 16 });
  const fields = { op: OP.STORE, count: keys.length, namespace: 1, body };
  const reply = await engine.wire.call(fields);
  expect(errorName(reply)).toBe("none");
  if (reply.id === 0) return;
  const statuses = reply.body.subarray(16);
  const wanted = keys
    .map((_key, index) => index)
    .filter((index) => statuses[index] === STORE_STATUS.WANTED);
  engine.gather(keys, 48);
  wanted.sort(() => random(3) - 1);
  const part = wanted.slice(0, random(wanted.length + 1));
  if (part.length > 0) {
    const pairs = part.map((index): [number, number] => [index, 48 + index]);
    engine.wire.send(
      frameOf({ op: OP.FILL, id: reply.id, count: pairs.length, body: fillBody(pairs) }),
    );
  }
  const manner = random(3);
  if (manner === 0) await engine.wire.call({ op: OP.CANCEL, id: reply.id });
  const completion = await engine.wire.completion(reply.tag);
  expect(completion.count).toBeLessThanOrEqual(keys.length);
}

async function read(client: Client): Promise<void> {
  const { engine, random } = client;
  const chain = randomChain(random);
  const answer = await engine.read(chain);
  expect(answer.wrong).toBe(0);
  for (const { name } of answer.failed) expect(LOAD_FAILURES).toContain(name);
  if (client.flavour.chained) expect(answer.failed).toEqual([]);
  client.loaded += answer.landed;
}

/** Keeps a lease for a while under one of few request ids, so that leases replace each other. */
async function hold(client: Client): Promise<void> {
  await client.engine.lookup(randomChain(client.random), 1_000_000 + client.random(4));
}

async function advise(client: Client): Promise<void> {
  const { engine, random } = client;
  const keys = randomChain(random);
  await engine.wire.call({ op: OP.TOUCH, count: keys.length, namespace: 1, body: join(keys) });
  const reply = await engine.wire.cold(OP.HINT, { namespace: 1, key: keys[0]!, kind: "retain" });
  expect(decodeCold(reply.body)).toHaveProperty("verdict");
}

/** Leaves in the middle of a STORE and a LOAD, and comes back as another life. */
async function leave(client: Client): Promise<void> {
  const { engine, random } = client;
  const chain = randomChain(random);
  const { lease } = await engine.lookup(chain, 7);
  const storing = engine.store(randomChain(random)).catch(closedIsFine);
  const loading = lease === 0 ? undefined : engine.load(lease, chain, 0, 48).catch(closedIsFine);
  engine.close();
  await Promise.all([storing, loading]);
  client.lives += 1;
  client.engine = await enter(client.daemon, `${client.name}-${client.lives}`, client.flavour);
}

function closedIsFine(error: unknown): void {
  if (!(error instanceof ConnectionClosed)) throw error;
}

const ACTIONS = [store, store, store, read, read, read, storeInPieces, storeInPieces, hold, advise];

async function live(client: Client): Promise<void> {
  for (let step = 0; step < STEPS; step++) {
    const action = client.random(40) === 0 ? leave : ACTIONS[client.random(ACTIONS.length)]!;
    await action(client);
  }
}

it(
  `${CLIENTS} engines do ${STEPS} random things each on a pool that is too small`,
  async () => {
    const seed = Number(process.env["CAIRN_TEST_SEED"] ?? Date.now() % 2 ** 31);
    process.stdout.write(`chaos: seed ${seed} (CAIRN_TEST_SEED repeats it)\n`);
    const settings = {
      engineApi: { storeFillMs: 60 },
      ledger: { blocksMax: 600 },
      dram: { capacityBytes: 3 * MIB },
    };
    await withDaemon(settings, async (daemon) => {
      const clients = await Promise.all(
        FLAVOURS.map(async (flavour, index): Promise<Client> => {
          const name = `chaos-${index}`;
          const engine = await enter(daemon, name, flavour);
          const random = generator(seed + index * 7_919);
          return { daemon, random, name, flavour, engine, lives: 0, loaded: 0 };
        }),
      );
      await Promise.all(clients.map(live));
      for (const { engine, loaded } of clients) {
        expect(loaded).toBeGreaterThan(0);
        engine.close();
      }
      for (const gauge of ["connections", "leases", "pinnedBytes", "jobs", "regions"] as const) {
        await daemon.settles(gauge, 0);
      }
      expect(await daemon.metric("evictions")).toBeGreaterThan(0);
      expect(await daemon.metric("corruptBlocks")).toBe(0);
      expect(await daemon.stop()).toEqual({ code: 0, signal: null });
    });
  },
  LONG ? 240_000 : 90_000,
);
