/** A daemon of plain data behind the edge, so that the HTTP side is tested alone. */
import type { FastifyInstance } from "fastify";
import { defaultConfig, resolveConfig } from "../../src/config/defaults.ts";
import { parseListen } from "../../src/config/listen.ts";
import { diffConfig, overlayConfig } from "../../src/config/reload.ts";
import type { Config } from "../../src/config/schema.ts";
import { buildApp } from "../../src/edge/app.ts";
import type { Ask } from "../../src/edge/ask.ts";
import type { EdgeHandler, LedgerReader, NodeInfo, NodeSnapshot } from "../../src/edge/contract.ts";
import { Digests } from "../../src/edge/digest.ts";
import { EventHub } from "../../src/edge/events.ts";
import { buildMetrics } from "../../src/edge/prometheus.ts";
import { CairnError } from "../../src/errors.ts";
import { Feed, FeedReader } from "../../src/observe/feed.ts";
import type { DeviceReading, RemoteReading } from "../../src/observe/lower.ts";

export const INFO: NodeInfo = {
  node: "node-a",
  version: "0.1.0",
  epoch: "00ff",
  pid: 1,
  startedMs: 1_000,
  engineSocket: "/tmp/x/engine.sock",
};

export const DEVICE: DeviceReading = {
  device: 0,
  directory: "/mnt/a",
  health: "slow",
  full: false,
  draining: false,
  rebuilding: false,
  mode: "uring",
  direct: true,
  capacityBytes: 4_096,
  usedBytes: 1_024,
  segments: 3,
  segmentsTarget: 4,
  indexBytes: 14,
  lastCommitMs: 1_500,
  bytesRead: 10,
  bytesWritten: 20,
  readsQueued: 6,
  writesQueued: 7,
  inFlight: 8,
  oldestMicroseconds: 2_500_000,
  cpuMicroseconds: 1_750_000,
  endurance: { writtenBytes: 19, bytesPerDay: 12, budgetBytesPerDay: 13, lifeDays: 365 },
  counters: {
    ioErrors: 30,
    corrupt: 31,
    identity: 32,
    deadlines: 33,
    syncFailures: 34,
    commitFailures: 35,
    commits: 36,
    indexDamaged: 37,
    pagesDropped: 38,
    entriesDropped: 39,
    headersRebuilt: 40,
    stalls: 41,
    fullEvents: 42,
    fences: 43,
    probesFailed: 44,
    prepareFailures: 45,
    indexOpenFailures: 46,
    rowsRefused: 47,
    entriesHeld: 48,
  },
};

export const REMOTE: RemoteReading = {
  description: "directory /mnt/shared",
  health: "readOnly",
  requests: { ok: 5, timeout: 2 },
  retries: 1,
  breakerOpened: 1,
  readOnlyTurns: 19,
  writeProbesFailed: 20,
  receivedBytes: 100,
  sentBytes: 200,
  fetchedBlocks: 3,
  failedBlocks: 4,
  corruptBlocks: 5,
  corruptObjects: 15,
  misplacedObjects: 16,
  sealKeyMissing: 17,
  unsealedObjects: 18,
  existenceHits: 6,
  existenceMisses: 7,
  collected: 8,
  quarantined: 9,
  transfers: 10,
  waiting: 11,
  stagingUsedBytes: 12,
  uploadsWaiting: 21,
  getBytesPerSecond: 13,
  putBytesPerSecond: 14,
  lastFault: "timeout: no answer",
};

export const SNAPSHOT: NodeSnapshot = {
  devices: [DEVICE],
  remote: REMOTE,
  links: [
    {
      link: "dram_to_window",
      bytes: 1,
      batches: 1,
      latencyMicroseconds: 50,
      bytesPerSecond: 5e9,
      recentBytesPerSecond: 0,
      p50Microseconds: 100,
      p99Microseconds: 200,
    },
  ],
  tiers: [
    {
      tier: "dram",
      state: "serving",
      capacityBytes: 1_024,
      usedBytes: 512,
      blocks: 2,
      visibleBlocks: 2,
      slots: 4,
      slotsUsed: 2,
      slabs: 1,
      slabsFree: 0,
      classes: [{ payloadBytes: 256, slabs: 1, slots: 4, slotsUsed: 2 }],
    },
  ],
  namespaces: [
    {
      index: 0,
      digest: "ab".repeat(16),
      tenant: "default",
      descriptor: { model: "m", blockTokens: 16 },
      visibleBlocks: 2,
      unprovenBy: ["engine-1"],
    },
  ],
  instances: [
    {
      instance: 1,
      engineId: "engine-1",
      engine: "llama.cpp 1",
      tenant: "default",
      uid: 1_000,
      connections: 2,
      leases: 3,
      pinnedBytes: 256,
      regions: 1,
      windowBytes: 4_096,
      jobs: 0,
      heartbeatAgeMs: 10,
    },
  ],
};

export function testConfig(): Config {
  const host = { hostname: "node-a", uid: 1, runtimeDirectory: undefined };
  return resolveConfig(defaultConfig(), host);
}

/** Applies live changes as the daemon does: whole or not at all. */
export class FakeDaemon implements EdgeHandler {
  running = testConfig();
  snapshots = 0;

  snapshot(): NodeSnapshot {
    this.snapshots += 1;
    return SNAPSHOT;
  }

  config(): Config {
    return this.running;
  }

  configPut(document: unknown) {
    const next = overlayConfig(this.running, document, "PUT /v1/config");
    const { live, restartNeeded } = diffConfig(this.running, next);
    if (restartNeeded.length > 0)
      throw new CairnError("restartNeeded", restartNeeded.map(({ path }) => path).join(", "));
    this.running = next;
    return { applied: live.map(({ path }) => path), config: next };
  }

  explain() {
    return [];
  }
}

export function fakeReader(): LedgerReader {
  const key = "00".repeat(24) + "11".repeat(8);
  const twin = "22".repeat(24) + "11".repeat(8);
  const blocks = [key, twin].map((full, namespace) => ({
    namespace,
    key: full,
    depth: 1,
    tiers: ["dram"],
  }));
  return {
    locate: (bytes) => {
      const hex = Buffer.from(bytes).toString("hex");
      return blocks.filter((block) =>
        hex.length === 16 ? block.key.endsWith(hex) : block.key === hex,
      );
    },
    head: () => 5,
    read: (sequence) => ({
      events: [{ sequence: 5, kind: "stored", namespace: 0, key, tier: "dram" } as const],
      next: sequence + 1,
      lost: 0,
    }),
  };
}

export interface TestApp {
  readonly app: FastifyInstance;
  readonly feed: Feed;
  readonly daemon: FakeDaemon;
  readonly events: EventHub;
}

export interface TestAppOptions {
  readonly token?: string;
  readonly listen?: string;
  readonly reader?: LedgerReader | undefined;
  readonly ask?: Ask;
}

export async function testApp(options: TestAppOptions = {}): Promise<TestApp> {
  const address = parseListen(options.listen ?? "127.0.0.1:0");
  if (address === undefined) throw new Error("bad listen address in a test");
  const feed = new Feed();
  const reader = new FeedReader(feed.buffer);
  const digests = new Digests(reader, 0);
  const metrics = buildMetrics(reader, INFO);
  const ledger = "reader" in options ? options.reader : fakeReader();
  const events = new EventHub(digests, metrics, ledger);
  const daemon = new FakeDaemon();
  const direct = async (request: { readonly kind: string; readonly document?: unknown }) => {
    if (request.kind === "ping") return true;
    if (request.kind === "snapshot") return daemon.snapshot();
    if (request.kind === "config") return daemon.config();
    if (request.kind === "configPut") return daemon.configPut(request.document);
    return daemon.explain();
  };
  const app = await buildApp({
    address,
    secrets: options.token === undefined ? {} : { token: options.token },
    info: INFO,
    feed: reader,
    digests,
    metrics,
    events,
    reader: ledger,
    ask: options.ask ?? (direct as unknown as Ask),
    now: () => 61_000,
  });
  return { app, feed, daemon, events };
}
