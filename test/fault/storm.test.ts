/**
 * kill -9 in the middle of a storm of STOREs, and in the middle of a start. After each: every acknowledged block
 * comes back with its bytes, whatever else is visible is whole, and the pool goes on serving.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { STORE_STATUS } from "../../src/engine-api/protocol.ts";
import { type TestDaemon, withDaemon } from "../harness/daemon.ts";
import { chainOf, TestEngine } from "../harness/engine.ts";
import { eventually } from "../harness/eventually.ts";
import { LONG, scaled } from "../harness/scale.ts";

const MIB = 1024 * 1024;
/** A pool that holds everything, and one that must evict all the while. */
const STORMS = [
  { what: "with room", capacityBytes: 512 * MIB, rounds: scaled(1, 14), keepsAll: true },
  { what: "with eviction", capacityBytes: 16 * MIB, rounds: scaled(1, 8), keepsAll: false },
] as const;
const BLOCKS = 8;
const STORES_MAX = 400;
const ROW_BYTES = [4_096, 65_536, 200] as const;

/** A small seeded generator, so that a failing run can be repeated. */
function generator(seed: number): () => number {
  let state = seed >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state / 2 ** 32;
  };
}

interface Attempt {
  readonly keys: Uint8Array[];
  /** Blocks that a completion said are visible: a prefix. */
  acknowledged: number;
}

async function storm(engine: TestEngine, name: string, attempts: Attempt[]): Promise<void> {
  for (let index = 0; index < STORES_MAX; index++) {
    const attempt: Attempt = { keys: chainOf(`${name}-${index}`, BLOCKS), acknowledged: 0 };
    attempts.push(attempt);
    try {
      const { completion } = await engine.store(attempt.keys);
      attempt.acknowledged = completion?.visible ?? 0;
    } catch {
      return;
    }
  }
}

function startEngines(daemon: TestDaemon, name: string): Promise<TestEngine[]> {
  return Promise.all(
    ROW_BYTES.map((rowBytes) =>
      TestEngine.start(daemon.socket, {
        engineId: `${name}-${rowBytes}`,
        rows: BLOCKS,
        descriptor: { rowBytes, model: `storm-${rowBytes}` },
      }),
    ),
  );
}

async function checkAttempts(
  engine: TestEngine,
  attempts: readonly Attempt[],
  keepsAll: boolean,
): Promise<number> {
  let acknowledged = 0;
  for (const { keys, acknowledged: promised } of attempts) {
    const read = await engine.read(keys);
    expect(read).toMatchObject({ landed: read.hit, failed: [], wrong: 0 });
    if (keepsAll) expect(read.hit).toBeGreaterThanOrEqual(promised);
    acknowledged += promised;
  }
  return acknowledged;
}

it.each(STORMS)(
  "$rounds kills in a storm $what lose nothing that was acknowledged and show nothing that is not whole",
  async ({ capacityBytes, rounds, keepsAll }) => {
    const seed = Number(process.env["CAIRN_TEST_SEED"] ?? Date.now() % 2 ** 31);
    process.stdout.write(`kill storm: seed ${seed} (CAIRN_TEST_SEED repeats it)\n`);
    const random = generator(seed);
    let acknowledged = 0;
    let attempted = 0;
    await withDaemon({ dram: { capacityBytes, copyThreads: 2 } }, async (daemon) => {
      for (let round = 0; round < rounds; round++) {
        const engines = await startEngines(daemon, `round-${round}`);
        const attempts: Attempt[][] = engines.map(() => []);
        const storms = engines.map((engine, index) =>
          storm(engine, `${seed}-${round}-${index}`, attempts[index]!),
        );
        const promised = (): number => attempts.flat().filter((one) => one.acknowledged > 0).length;
        await eventually("the storm blows", () => promised() > 4);
        await sleep(random() * 300);
        expect(await daemon.stop("SIGKILL")).toEqual({ code: null, signal: "SIGKILL" });
        await Promise.all(storms);
        if (round % 3 === 2) {
          daemon.spawn();
          await sleep(random() * 1_200);
          await daemon.stop("SIGKILL");
        }
        await daemon.launch();
        const readers = await startEngines(daemon, `reader-${round}`);
        for (const [index, reader] of readers.entries()) {
          acknowledged += await checkAttempts(reader, attempts[index]!, keepsAll);
          attempted += attempts[index]!.length * BLOCKS;
          const again = chainOf(`${seed}-again-${round}-${index}`, BLOCKS);
          const stored = await reader.store(again);
          expect(stored.statuses).toEqual(Array(BLOCKS).fill(STORE_STATUS.WANTED));
          reader.close();
        }
        await eventually(
          "recovery is told",
          async () => (await daemon.metric("recoveredBlocks")) > 0,
        );
        await daemon.settles("connections", 0);
      }
      expect(await daemon.stop("SIGTERM")).toEqual({ code: 0, signal: null });
    });
    process.stdout.write(`kill storm: ${acknowledged} of ${attempted} blocks were acknowledged\n`);
    expect(acknowledged).toBeGreaterThan(rounds * 10);
  },
  LONG ? 230_000 : 90_000,
);
