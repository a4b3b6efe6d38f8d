/**
 * remote-get and remote-put: how near the remote tier comes to what node:http alone does with the same S3 server.
 *
 * Chunks of four 2 MiB blocks; four sockets, so four requests at the server at a time. A pass moves every chunk once through the tier: identity,
 * checksums, staging, deadlines and all. Before each pass the reference (bench/raw-http.ts) moves objects of the same
 * length over the same number of sockets. The figure is the median over pairs of our speed by the reference's. The
 * server is real where one is installed: `--server versitygw|minio|fake`; on one machine it shares the processors
 * with both clients.
 */
import { UsageError } from "../../src/cli/exit.ts";
import { chunkName, lastKeyOf } from "../../tiers/remote/chunk.ts";
import { S3Store } from "../../tiers/remote/s3.ts";
import { MissingTool } from "../fio.ts";
import { Progress } from "../progress.ts";
import { RawHttp } from "../raw-http.ts";
import { RemoteRig } from "../remote-rig.ts";
import { check, type Measurement } from "../result.ts";
import {
  findServer,
  INSTALL,
  SERVER_NAMES,
  type S3Server,
  type ServerName,
  startServer,
} from "../s3-servers.ts";
import type { Scenario, ScenarioOptions } from "../scenario.ts";
import { median, significant } from "../statistics.ts";
import { pipelined } from "./dram.ts";

const MIB = 2 ** 20;
const BLOCK_BYTES = 2 * MIB;
const CHUNK_BLOCKS = 4;
const CHUNKS_DEFAULT = 24;
/** Requests at the server, of either side: sockets. */
const CONCURRENCY = 4;
/** Chunks under way in the tier, so that a socket does not wait while a chunk is exported or imported. */
const LANES = 2 * CONCURRENCY;
const STAGING_BYTES = 160 * MIB;
const RATIO_MIN = 0.9;

interface Pass {
  readonly GBps: number;
  readonly cpuSecondsPerGB: number;
}

interface Pair {
  readonly ours: Pass;
  readonly raw: Pass;
}

interface Run {
  readonly server: ServerName;
  readonly pairs: readonly Pair[];
  readonly failed: number;
  readonly wrong: number;
  readonly passBytes: number;
}

function serverOf(options: ScenarioOptions): ServerName {
  const asked = options.server ?? "versitygw";
  const name = SERVER_NAMES.find((one) => one === asked);
  if (name === undefined) {
    throw new UsageError(`--server: expected one of ${SERVER_NAMES.join(", ")}, got "${asked}"`);
  }
  if (findServer(name) === undefined) {
    throw new MissingTool(name, `${name}: ${INSTALL[name]} (or .ci/s3-servers)`);
  }
  return name;
}

async function timed(bytes: number, pass: () => Promise<void>): Promise<Pass> {
  const before = process.cpuUsage();
  const startMs = performance.now();
  await pass();
  const milliseconds = performance.now() - startMs;
  const { user, system } = process.cpuUsage(before);
  return { GBps: bytes / milliseconds / 1e6, cpuSecondsPerGB: ((user + system) / bytes) * 1e3 };
}

/** One server, the tier and the reference on it. */
class Duel {
  readonly rig: RemoteRig;
  readonly #chunks: number;
  readonly #server: S3Server;
  readonly #raw: RawHttp;
  /** Preallocated bodies of the reference, one per lane. */
  readonly #bodies: readonly Uint8Array[];
  #pass = 0;
  failed = 0;

  constructor(server: S3Server, chunks: number) {
    const { accessKeyId, bucket, endpoint, region, secretAccessKey } = server;
    const store = new S3Store({
      bucket,
      prefix: "",
      region,
      endpoint,
      pathStyle: true,
      credentials: { accessKeyId, secretAccessKey },
      signPayload: false,
      socketsMax: CONCURRENCY,
      idleMs: 30_000,
    });
    this.#server = server;
    this.#chunks = chunks;
    const shape = { blockBytes: BLOCK_BYTES, chunkBlocks: CHUNK_BLOCKS, chunks };
    this.rig = new RemoteRig({ ...shape, concurrency: LANES, stagingBytes: STAGING_BYTES }, store);
    this.#raw = new RawHttp(server, CONCURRENCY);
    this.#bodies = Array.from({ length: CONCURRENCY }, () =>
      new Uint8Array(this.rig.objectBytes).fill(0x5a),
    );
  }

  get passBytes(): number {
    return this.#chunks * this.rig.objectBytes;
  }

  ourPut(): Promise<Pass> {
    return this.#each(LANES, (index) => this.rig.upload(index));
  }

  ourGet(): Promise<Pass> {
    return this.#each(LANES, async (index) => {
      this.failed += await this.rig.fetch(index);
    });
  }

  rawPut(): Promise<Pass> {
    this.#pass += 1;
    return this.#each(CONCURRENCY, (index, lane) =>
      this.#raw.put(this.#rawPath(index), this.#body(lane)),
    );
  }

  /** The very objects that the tier stored. */
  rawGet(): Promise<Pass> {
    return this.#each(CONCURRENCY, async (index, lane) => {
      const received = await this.#raw.get(this.#ourPath(index), this.#body(lane));
      if (received !== this.rig.objectBytes) this.failed += 1;
    });
  }

  /** Objects of the last passes are not kept: the server's disk is bounded. */
  async clear(): Promise<void> {
    for (let index = 0; index < this.#chunks; index += 1) {
      await this.#raw.delete(this.#ourPath(index));
      if (this.#pass > 0) await this.#raw.delete(this.#rawPath(index));
    }
  }

  async close(): Promise<void> {
    this.#raw.close();
    await this.rig.close();
  }

  #each(lanes: number, move: (index: number, lane: number) => Promise<void>): Promise<Pass> {
    return timed(this.passBytes, () => pipelined(this.#chunks, lanes, move));
  }

  #body(lane: number): Uint8Array {
    return this.#bodies[lane] ?? new Uint8Array(0);
  }

  #ourPath(index: number): string {
    const chunk = this.rig.chunk(index);
    return `/${this.#server.bucket}/${chunkName(chunk.space, 0, lastKeyOf(chunk), "")}`;
  }

  #rawPath(index: number): string {
    return `/${this.#server.bucket}/raw/${this.#pass}/${index}`;
  }
}

/** Both orders in turn, so that neither always has the warmer server. */
async function pairOf(first: boolean, ours: () => Promise<Pass>, raw: () => Promise<Pass>) {
  if (first) {
    const own = await ours();
    return { ours: own, raw: await raw() };
  }
  const reference = await raw();
  return { ours: await ours(), raw: reference };
}

async function measurePuts(duel: Duel, repetitions: number, progress: Progress): Promise<Pair[]> {
  const pairs: Pair[] = [];
  // The first pair warms both up and is thrown away.
  for (let repetition = 0; repetition <= repetitions; repetition += 1) {
    await duel.rig.refill();
    const pair = await pairOf(
      repetition % 2 === 0,
      () => duel.ourPut(),
      () => duel.rawPut(),
    );
    if (repetition > 0) pairs.push(pair);
    if (repetition === repetitions) await duel.ourGet();
    await duel.clear();
    progress.update(repetition);
  }
  return pairs;
}

async function measureGets(duel: Duel, repetitions: number, progress: Progress): Promise<Pair[]> {
  const pairs: Pair[] = [];
  await duel.rig.refill();
  await duel.ourPut();
  for (let repetition = 0; repetition <= repetitions; repetition += 1) {
    const pair = await pairOf(
      repetition % 2 === 0,
      () => duel.ourGet(),
      () => duel.rawGet(),
    );
    if (repetition > 0) pairs.push(pair);
    progress.update(repetition);
  }
  await duel.clear();
  return pairs;
}

async function measure(put: boolean, options: ScenarioOptions): Promise<Run> {
  const name = serverOf(options);
  const blocks = options.residentBlocks ?? CHUNKS_DEFAULT * CHUNK_BLOCKS;
  const chunks = Math.max(CONCURRENCY, Math.floor(blocks / CHUNK_BLOCKS));
  const progress = new Progress(put ? "remote-put" : "remote-get", options.repetitions);
  const server = await startServer(name);
  let duel: Duel | undefined;
  try {
    duel = new Duel(server, chunks);
    const pairs = put
      ? await measurePuts(duel, options.repetitions, progress)
      : await measureGets(duel, options.repetitions, progress);
    const wrong = await duel.rig.wrong();
    return { server: name, pairs, failed: duel.failed, wrong, passBytes: duel.passBytes };
  } finally {
    progress.end();
    await duel?.close();
    await server.stop();
  }
}

function measurement({ server, pairs, failed, wrong, passBytes }: Run): Measurement {
  const middle = (figure: (pair: Pair) => number): number => median(pairs.map(figure));
  const ratio = middle(({ ours, raw }) => ours.GBps / raw.GBps);
  return {
    value: middle(({ ours }) => ours.GBps),
    unit: "GB/s",
    bar: RATIO_MIN,
    sense: "atLeast",
    reference: `node:http keep-alive, UNSIGNED-PAYLOAD, preallocated buffers, on the same ${server}`,
    referenceValue: middle(({ raw }) => raw.GBps),
    repetitions: pairs.length,
    checks: [
      check("ours ÷ raw-http, median of pairs", ratio, "", "atLeast", RATIO_MIN),
      check("blocks failed or wrong", failed + wrong, "", "atMost", 0),
    ],
    detail: {
      server,
      blockBytes: BLOCK_BYTES,
      chunkBytes: BLOCK_BYTES * CHUNK_BLOCKS,
      concurrency: CONCURRENCY,
      passBytes,
      checksum: "xxh3-128",
      cpuSecondsPerGB: significant(middle(({ ours }) => ours.cpuSecondsPerGB)),
      rawCpuSecondsPerGB: significant(middle(({ raw }) => raw.cpuSecondsPerGB)),
      pairs: pairs.map(({ ours, raw }) => [significant(ours.GBps), significant(raw.GBps)]),
    },
  };
}

async function run(put: boolean, options: ScenarioOptions): Promise<Measurement> {
  return measurement(await measure(put, options));
}

export const remoteGet: Scenario = {
  name: "remote-get",
  summary: "chunks from an S3 server into DRAM against node:http (GB/s); --server NAME",
  run: (options) => run(false, options),
};

export const remotePut: Scenario = {
  name: "remote-put",
  summary: "chunks from DRAM to an S3 server against node:http (GB/s); --server NAME",
  run: (options) => run(true, options),
};
