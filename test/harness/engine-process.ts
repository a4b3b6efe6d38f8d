/**
 * An engine in a process of its own, to be killed or stopped. Its arguments: socket, engine id, seed of its chains.
 * It stores one chain and holds a lease on it, reserves a second and fills half of it, says so in one line of
 * JSON, and then does nothing until its standard input closes.
 */
import { OP } from "../../src/engine-api/protocol.ts";
import { chainOf, TestEngine } from "./engine.ts";
import { fillBody, frameOf, storeBody } from "./frames.ts";

export interface EngineProcessReady {
  readonly lease: number;
  readonly stored: number;
  readonly wanted: number;
}

export const PROCESS_CHAIN_BLOCKS = 16;

async function main(socket: string, engineId: string, seed: string): Promise<void> {
  const engine = await TestEngine.start(socket, { engineId });
  const kept = chainOf(`${seed}-kept`, PROCESS_CHAIN_BLOCKS);
  const stored = await engine.store(kept);
  const { lease } = await engine.lookup(kept);
  const half = chainOf(`${seed}-half`, PROCESS_CHAIN_BLOCKS);
  const body = storeBody({ region: engine.region, keys: half, tokens: half.length * 16 });
  const reply = await engine.wire.call({ op: OP.STORE, count: half.length, namespace: 1, body });
  const rows = engine.gather(half.slice(0, PROCESS_CHAIN_BLOCKS / 2));
  const pairs = rows.map((row, index): [number, number] => [index, row]);
  engine.wire.send(
    frameOf({ op: OP.FILL, id: reply.id, count: pairs.length, body: fillBody(pairs) }),
  );
  await engine.wire.beat();
  const ready: EngineProcessReady = {
    lease,
    stored: stored.completion?.visible ?? 0,
    wanted: reply.view.getUint32(0, true),
  };
  process.stdout.write(`${JSON.stringify(ready)}\n`);
  process.stdin.resume();
  process.stdin.on("end", () => engine.close());
}

const [socket, engineId, seed] = process.argv.slice(2);
if (process.argv[1]?.endsWith("engine-process.ts") === true && socket !== undefined) {
  await main(socket, engineId ?? "process", seed ?? "process");
}
