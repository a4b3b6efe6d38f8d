/**
 * A store that can be read and not be stored to: a bucket without permission or room, a full or read-only file system.
 * Nothing may be sent to it in vain, reads go on, operators see the state, and it ends by itself.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { LIMITS } from "../../src/limits.ts";
import { FAKE_KEYS, FAKE_REGION, type FakeRequest, FakeS3 } from "../harness/fake-s3.ts";
import { mountRefusal, SmallFileSystem } from "../harness/mounts.ts";
import { ask, metric } from "./edge-client.ts";
import {
  BLOCKS,
  CHAIN_CHUNKS,
  CHUNK_BLOCKS,
  fetched,
  objects,
  type RemoteEngine,
  RemoteNodes,
  storeChain,
} from "./remote-nodes.ts";
import { eventually, type TestDaemon } from "./support.ts";

const MIB = 1024 * 1024;
/** Chains stored before, and while the store takes nothing. */
const BEFORE = [0, 1];
const WHILE = [2, 3, 4, 5];
const READ_ONLY = 2;

vi.setConfig({ testTimeout: 240_000 });

const refusal = mountRefusal();
const required = process.env["CI_FULL"] === "1";
if (refusal !== undefined) console.warn(`no shared directories that are full: ${refusal}`);

let nodes: RemoteNodes;
beforeEach(() => {
  nodes = new RemoteNodes();
});
afterEach(() => nodes.remove());

async function storeAll(engine: RemoteEngine, families: readonly number[]): Promise<void> {
  for (const family of families) expect(await storeChain(engine, family)).toBe(BLOCKS);
}

async function healthIs(node: TestDaemon, health: number): Promise<void> {
  await eventually(async () => (await metric(node, "cairn_remote_health")) === health, 120_000);
}

interface Pair {
  readonly writer: RemoteEngine;
  readonly reader: RemoteEngine;
}

/** Two nodes over a store that holds what the first has stored. */
async function startPair(remote: object, stored: () => number): Promise<Pair> {
  const writer = await nodes.start(nodes.node(remote, {}));
  const directories = [{ path: join(nodes.root, "readers-disk"), capacityBytes: 64 * MIB }];
  const reader = await nodes.start(nodes.node(remote, { directories }));
  await storeAll(writer, BEFORE);
  await eventually(() => stored() === CHAIN_CHUNKS * BEFORE.length, 60_000);
  return { writer, reader };
}

/** The store takes nothing: the writer's chunks wait, and a node that finds it read-only is served all the same. */
async function meetFault({ writer, reader }: Pair): Promise<void> {
  const { node } = writer;
  await storeAll(writer, WHILE);
  await storeChain(reader, 90);
  for (const one of [node, reader.node]) await healthIs(one, READ_ONLY);
  for (const family of BEFORE) {
    expect(await fetched(reader, family)).toBe(CHAIN_CHUNKS * CHUNK_BLOCKS);
  }
  expect(await metric(reader.node, "cairn_remote_breaker_opened_total")).toBe(0);
  const waiting = (): Promise<number> => metric(node, "cairn_remote_uploads_waiting");
  await eventually(async () => (await waiting()) > 0, 60_000);
  expect(await metric(node, "cairn_remote_read_only_total")).toBeGreaterThanOrEqual(1);
  const probes = (): Promise<number> => metric(node, "cairn_remote_write_probes_failed_total");
  await eventually(async () => (await probes()) >= 2, 60_000);
  const { remote } = JSON.parse(await ask(node, "GET", "/v1/stats")) as {
    readonly remote: { readonly health: string };
  };
  expect(remote.health).toBe("readOnly");
  expect(node.log()).toMatch(/ok → readOnly \((?:refused|full): /);
}

/** It takes objects again: everything is stored. */
async function recovers({ writer, reader }: Pair, stored: () => number): Promise<void> {
  const chunks = CHAIN_CHUNKS * (BEFORE.length + WHILE.length + 1);
  await eventually(() => stored() === chunks, 120_000);
  for (const { node } of [writer, reader]) {
    await healthIs(node, 0);
    const waiting = (): Promise<number> => metric(node, "cairn_remote_uploads_waiting");
    await eventually(async () => (await waiting()) === 0, 60_000);
    expect(node.log()).toContain("readOnly → ok");
    expect(node.log()).not.toContain("a fault in cairn");
  }
}

describe("a bucket", () => {
  let fake: FakeS3;
  beforeEach(async () => {
    fake = await FakeS3.start();
  });
  afterEach(() => fake.stop());

  function bucket(): object {
    const credentialsFile = join(nodes.root, "credentials");
    const { accessKeyId, secretAccessKey } = FAKE_KEYS;
    const lines = ["[default]", `aws_access_key_id=${accessKeyId}`];
    const text = [...lines, `aws_secret_access_key=${secretAccessKey}`, ""].join("\n");
    writeFileSync(credentialsFile, text, { mode: 0o600 });
    const { endpoint, bucket: name } = fake;
    return { kind: "s3", s3: { endpoint, bucket: name, region: FAKE_REGION, credentialsFile } };
  }

  /** A PUT of a chunk, that is not of a probe. */
  function putsChunk({ method, key }: FakeRequest): boolean {
    return method === "PUT" && !key.includes("/00000000000000000000000000000000/");
  }

  it.each([
    ["may not be written to", "AccessDenied"],
    ["has used up its quota", "QuotaExceeded"],
  ])(
    "that %s is read-only: what came meanwhile waits, and is stored when it takes objects",
    async (_name, code) => {
      const stored = (): number => fake.objects.size;
      const pair = await startPair(bucket(), stored);
      const before = fake.requests.filter(putsChunk).length;
      fake.fault = ({ method }) =>
        method === "PUT" ? { kind: "status", status: 403, code } : undefined;
      await meetFault(pair);
      // Those that both nodes had under way when the first of them was refused.
      const sent = fake.requests.filter(putsChunk).length - before;
      expect(sent).toBeGreaterThan(0);
      expect(sent).toBeLessThanOrEqual(2 * LIMITS.remoteChunksInFlight);
      fake.fault = () => undefined;
      await recovers(pair, stored);
    },
  );
});

function onFileSystems(): void {
  let files: SmallFileSystem;
  beforeEach(() => {
    files = new SmallFileSystem(32 * MIB);
  });
  afterEach(() => files.remove());

  async function comesBack(begin: () => void, end: () => void): Promise<void> {
    const shared = join(files.mountPoint, "shared");
    mkdirSync(shared, { mode: 0o700 });
    const remote = { kind: "directory", directory: shared };
    const stored = (): number => objects(shared).length;
    const pair = await startPair(remote, stored);
    begin();
    await meetFault(pair);
    end();
    await recovers(pair, stored);
  }

  it("on a full file system is read-only until there is room", async () => {
    await comesBack(
      () => files.fill("filler"),
      () => rmSync(join(files.mountPoint, "filler")),
    );
  });

  it("on a file system that turned read-only is read-only until it is not", async () => {
    const remount = (how: string) => (): void => {
      execFileSync("mount", ["-o", `remount,${how}`, files.mountPoint]);
    };
    await comesBack(remount("ro"), remount("rw"));
  });
}

if (refusal === undefined || required) describe("a shared directory", onFileSystems);
else
  it("of its own file system is not mounted here, for a reason", () =>
    expect(refusal).not.toBe(""));
