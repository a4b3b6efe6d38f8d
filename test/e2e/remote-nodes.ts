/** Nodes that share a store, engines on them, and chains that they store and fetch: small blocks, two chunks a chain. */
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { CairnClient, Window } from "../../connectors/node/index.ts";
import { coldFrame } from "../../src/engine-api/codec.ts";
import { FLAG, OP } from "../../src/engine-api/protocol.ts";
import { coldOf, hotFrame, RawClient } from "../engine-api/support.ts";
import { metric } from "./edge-client.ts";
import {
  clientOf,
  descriptor,
  eventually,
  keyAt,
  keysOf,
  payloadOf,
  rowsFrom,
  TestDaemon,
} from "./support.ts";

const MIB = 1024 * 1024;
/** Sixteen blocks of 4 KiB make a chunk; a chain has two and a remainder that is not stored. */
export const CHUNK_BLOCKS = 16;
export const CHAIN_CHUNKS = 2;
export const BLOCKS = CHAIN_CHUNKS * CHUNK_BLOCKS + 4;

export interface RemoteEngine {
  readonly node: TestDaemon;
  readonly client: CairnClient;
  readonly window: Window;
}

export class RemoteNodes {
  readonly root = mkdtempSync(join(tmpdir(), "cairn-remote-nodes-"));
  /** Of the NVMe tier; one node has it. */
  readonly disk = join(this.root, "disk");
  readonly #nodes: TestDaemon[] = [];
  readonly #clients: CairnClient[] = [];

  /** A node with a pool of 2 MiB. */
  node(remote: object, nvme: object): TestDaemon {
    const node = new TestDaemon({
      dram: { capacityBytes: 2 * MIB, slabBytes: 256 * 1024 },
      nvme: {
        enabled: true,
        directories: [{ path: this.disk, capacityBytes: 128 * MIB }],
        segmentBytes: 8 * MIB,
        writeThrough: true,
        ...nvme,
      },
      remote: { enabled: true, chunkBytesMax: 65_536, cacheAbsentMs: 50, ...remote },
    });
    this.#nodes.push(node);
    return node;
  }

  /** The node serves, and an engine is on it. */
  async start(node: TestDaemon): Promise<RemoteEngine> {
    await node.start();
    await eventually(async () => (await metric(node, "cairn_ready").catch(() => 0)) === 1, 60_000);
    const client = await clientOf(node.socket);
    this.#clients.push(client);
    return { node, client, window: await client.createWindow({ blocks: BLOCKS }) };
  }

  async remove(): Promise<void> {
    for (const client of this.#clients) client.close();
    for (const node of this.#nodes) await node.remove();
    rmSync(this.root, { recursive: true, force: true });
  }
}

export async function storeChain(
  { client, window }: RemoteEngine,
  family: number,
): Promise<number> {
  const keys = keysOf(family, BLOCKS);
  for (let index = 0; index < BLOCKS; index++) {
    window.row(index).set(payloadOf(keyAt(keys, index)));
  }
  return (await client.store({ window, startDepth: 0, keys, rows: rowsFrom(0, BLOCKS) })).landed;
}

/** Blocks of the chain that a node without any of them serves after PREFETCH, each compared. */
export async function fetched(
  { node, client, window }: RemoteEngine,
  family: number,
): Promise<number> {
  const keys = keysOf(family, BLOCKS);
  const raw = new RawClient(node.socket);
  const hello = await raw.hello("engine-a", { namespaces: [{ ...descriptor() }] });
  if (hello.error !== undefined) throw new Error("HELLO was refused");
  await raw.ask(hotFrame(OP.LOOKUP, FLAG.KEEP_CHAIN, 2, 1, BLOCKS, [0, 0, keys]));
  const body = { deadlineMs: 20_000 };
  const reply = await raw.ask(coldFrame(OP.PREFETCH, FLAG.BY_REQUEST, 3, 1, 1, body));
  if (coldOf(reply)["verdict"] !== "accepted") throw new Error("PREFETCH was not accepted");
  await raw.next();
  raw.close();
  const { hit, lease } = await client.lookup(family + 10, keys);
  if (hit === 0) return 0;
  window.bytes.fill(0);
  const part = keys.subarray(0, hit * 32);
  const request = { lease, window, startDepth: 0, keys: part, rows: rowsFrom(0, hit) };
  const { failed } = await client.load(request);
  client.endRequest(family + 10);
  const wrong = rowsFrom(0, hit).filter(
    (row) => Buffer.compare(window.row(row), payloadOf(keyAt(keys, row))) !== 0,
  );
  if (failed.length + wrong.length > 0)
    throw new Error(`${failed.length} blocks failed, ${wrong.length} are wrong`);
  return hit;
}

/** Files of chunks below a shared directory. */
export function objects(directory: string): string[] {
  return readdirSync(directory, { withFileTypes: true }).flatMap((entry) => {
    const path = join(directory, entry.name);
    if (entry.isDirectory()) return objects(path);
    return entry.name.endsWith(".chunk") ? [path] : [];
  });
}
