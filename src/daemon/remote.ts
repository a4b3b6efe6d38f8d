/**
 * The remote tier inside the daemon: its store, the staging memory that JS and the addon share, what brings chunks in
 * (for PREFETCH) and what sends them out. Without the tier there is no such object.
 */
import { rmSync } from "node:fs";
import { join } from "node:path";
import { type Addon, ITEM } from "../../addon/binding.ts";
import { chunkBlocksOf } from "../../tiers/remote/chunk.ts";
import { RemoteTier } from "../../tiers/remote/index.ts";
import { KeyRing } from "../../tiers/remote/keys.ts";
import type { ObjectStore } from "../../tiers/remote/object-store.ts";
import { SharedDirectory } from "../../tiers/remote/shared-directory.ts";
import { type ChunkSpace, type ExistenceOptions, NO_HINT } from "../../tiers/remote/types.ts";
import { remoteSealed } from "../config/defaults.ts";
import type { Config, RemoteConfig } from "../config/schema.ts";
import type { EngineContext } from "../engine-api/context.ts";
import type { Namespaces } from "../engine-api/namespaces.ts";
import type { EngineServer } from "../engine-api/server.ts";
import { assert } from "../assert.ts";
import { CairnError } from "../errors.ts";
import type { ExplainSources } from "../explain.ts";
import type { Ledger } from "../ledger/ledger.ts";
import { LIMITS } from "../limits.ts";
import { type Feed, METRIC } from "../observe/feed.ts";
import type { RemoteReading } from "../observe/lower.ts";
import { RemoteFetcher } from "../transfer/remote-fetcher.ts";
import { StagingBatches } from "../transfer/staging-copies.ts";
import { UploadSources } from "../transfer/upload-sources.ts";
import { Uploader } from "../transfer/uploader.ts";

export interface RemoteHooks {
  readonly note: (level: "info" | "warn" | "error", line: string) => void;
  readonly fault: (error: unknown) => void;
}

/** Pages of any file system that a pool may stand on. */
const UPLOAD_SLAB_ALIGN_BYTES = 2 * 1024 * 1024;
/** Chunk length where a descriptor names none (engine-api/descriptor.ts fills it in). */
const CHUNK_BLOCKS_DEFAULT = 16;

export class RemoteParts {
  readonly tier: RemoteTier;
  readonly uploader: Uploader;
  readonly #addon: Addon;
  readonly #region: number;
  readonly #spaces: (ChunkSpace | undefined)[] = [];
  readonly #namespaces: Namespaces;
  readonly #chunkBytesMax: number;
  readonly #keys: KeyRing | undefined;
  readonly #below: UploadSources | undefined;

  /** @throws CairnError configInvalid, windowMap */
  static async open(
    server: EngineServer,
    config: Config,
    hooks: RemoteHooks,
  ): Promise<RemoteParts> {
    return new RemoteParts(server, config, hooks, await storeOf(config.remote));
  }

  private constructor(
    server: EngineServer,
    nodeConfig: Config,
    hooks: RemoteHooks,
    store: ObjectStore,
  ) {
    const { context } = server;
    const { remote: config } = nodeConfig;
    const sealed = remoteSealed(nodeConfig);
    const { addon, ledger, copies, links, feed, namespaces, arena, nvme } = context;
    this.#addon = addon;
    this.#namespaces = namespaces;
    this.#chunkBytesMax = config.chunkBytesMax;
    if (sealed && !addon.sealing()) {
      throw new CairnError("configInvalid", "remote.sealing: this node binary has no AES-256-GCM");
    }
    const stagingBytes = Math.min(config.inFlightBytesMax, LIMITS.stagingBytesMax);
    const { region, descriptor } = addon.regionCreate(stagingBytes);
    this.#region = region;
    const bytes = new Uint8Array(addon.clientMap(descriptor, stagingBytes));
    addon.closeDescriptor(descriptor);
    this.#keys = sealed ? keysOf(config, hooks) : undefined;
    this.#below = uploadSources(context, nodeConfig, hooks);
    this.tier = new RemoteTier({
      store,
      sealer: this.#keys,
      staging: { bytes },
      copies: new StagingBatches(copies, arena, region, {
        below: this.#below,
        bad: badSources(ledger, feed),
      }),
      deleteCorrupt: config.deleteCorrupt,
      // Sockets stay busy while chunks are copied.
      transfersMax: config.concurrencyMax * 2,
      requestDeadlineMs: config.requestTimeoutMs,
      existence: existenceOf(config),
      guard: { attemptsMax: config.retriesMax + 1, attemptDeadlineMs: config.requestTimeoutMs },
      garbage: garbageOf(config),
      probeIntervalMs: LIMITS.remoteProbeMs,
      slowMsPerMiB: LIMITS.remoteSlowMsPerMiB,
      log: (line) => hooks.note("warn", line),
      fault: hooks.fault,
    });
    const now = (): number => performance.now();
    const spaceOf = (index: number): ChunkSpace | undefined => this.#spaceOf(index);
    const shared = { ledger, storage: this.tier, links, spaceOf, fault: hooks.fault, now };
    server.prefetcher.remote = new RemoteFetcher({
      ...shared,
      onImported: (index) => {
        const namespace = namespaces.at(index);
        if (namespace !== undefined) namespace.recovered = true;
      },
    });
    this.uploader = new Uploader({
      ...shared,
      feed,
      offersOld: nvme === undefined,
      readsDisk: this.#below === undefined ? undefined : (slot) => nvme?.mayRead(slot) === true,
      settled: () => namespaces.settled(),
    });
    context.remotePrefix = (index, keys, localBlocks) => {
      const space = spaceOf(index);
      const keyBytes = namespaces.at(index)?.keyBytes ?? 0;
      if (space === undefined) return NO_HINT;
      return this.tier.remotePrefix(space, keys, keyBytes, localBlocks);
    };
    hooks.note("info", `remote: ${this.tier.description}`);
  }

  /** What the chunks of a namespace have in common. An index may be given to another namespace. */
  #spaceOf(index: number): ChunkSpace | undefined {
    const namespace = this.#namespaces.at(index);
    if (namespace === undefined || !namespace.descriptor.chained) return undefined;
    const known = this.#spaces[index];
    if (known?.namespace === namespace.digest) return known;
    const declared = namespace.descriptor.chunkBlocks ?? CHUNK_BLOCKS_DEFAULT;
    const space = {
      namespace: namespace.digest,
      chunkBlocks: chunkBlocksOf(declared, namespace.rowBytes, this.#chunkBytesMax),
      payloadBytes: namespace.rowBytes,
      shards: namespace.shards,
      tenant: namespace.tenant,
    };
    this.#spaces[index] = space;
    return space;
  }

  /** The configuration was read again: so are the data keys. */
  reload(): void {
    void this.#keys?.refresh();
    this.uploader.lookAgain();
  }

  tick(): void {
    this.uploader.step();
  }

  explainSource(): NonNullable<ExplainSources["remote"]> {
    const { description } = this.tier;
    return { description, chunkBlocksOf: (index) => this.#spaceOf(index)?.chunkBlocks ?? 1 };
  }

  reading(): RemoteReading {
    return { ...this.tier.snapshot(), uploadsWaiting: this.uploader.waiting };
  }

  /** Uploads are cancelled; nothing of the tier touches DRAM or the staging memory afterwards. */
  async close(): Promise<void> {
    this.#below?.stop();
    await this.uploader.stop();
    await this.tier.close();
    await this.#below?.close();
    await this.#keys?.close();
    this.#addon.regionUnmap(this.#region);
  }
}

/** Beside the pool. A node that cannot have it stores what stands in DRAM. */
function uploadSources(
  { addon, copies, ledger, namespaces, nvme }: EngineContext,
  config: Config,
  { note }: RemoteHooks,
): UploadSources | undefined {
  if (nvme === undefined) return undefined;
  const path = join(config.dram.directory, "uploads.cairn");
  // A slab holds the largest block that a disk takes, and headers.
  const bytes = config.nvme.stagingBytes / 2 + UPLOAD_SLAB_ALIGN_BYTES;
  const slabBytes = Math.ceil(bytes / UPLOAD_SLAB_ALIGN_BYTES) * UPLOAD_SLAB_ALIGN_BYTES;
  try {
    rmSync(path, { force: true });
    const sources = new UploadSources({
      addon,
      copies,
      tier: nvme,
      path,
      slabBytes,
      namespaceOf: (block) => ledger.namespaceOf(block),
      digestOf: (index) => {
        const namespace = namespaces.at(index);
        assert(namespace !== undefined, "blocks lie in known namespaces");
        return namespace.digest;
      },
      now: () => performance.now(),
    });
    // Its memory goes with the process, however that ends.
    rmSync(path);
    return sources;
  } catch (error) {
    note("warn", `remote: chunks that are on NVMe alone are not stored: ${String(error)}`);
    return undefined;
  }
}

/** Drops a copy that proved bad as the source of an upload, and counts it. */
function badSources(ledger: Ledger, feed: Feed) {
  return (block: number, tier: number, status: number): void => {
    if (status === ITEM.CORRUPT) feed.add(METRIC.corruptBlocks, 1);
    if (status === ITEM.IDENTITY) feed.add(METRIC.identityFailures, 1);
    if (status === ITEM.IO) feed.add(METRIC.deviceReadErrors, 1);
    ledger.corrupt(block, tier);
  };
}

function existenceOf(config: RemoteConfig): ExistenceOptions {
  return {
    entriesMax: config.cacheEntries,
    presentMs: config.cacheMs,
    absentMs: config.cacheAbsentMs,
    probesMax: config.concurrencyMax,
  };
}

/** The ring reads its keys at once; until it has, the tier answers with misses. */
function keysOf({ keyFile, keyCommand, keyRefreshMs }: RemoteConfig, hooks: RemoteHooks): KeyRing {
  const command = { command: keyCommand ?? [], timeoutMs: LIMITS.sealKeyCommandMs };
  const source = keyFile === undefined ? command : { file: keyFile };
  const log = (line: string): void => hooks.note("error", line);
  const keys = new KeyRing({ source, refreshMs: keyRefreshMs, log });
  void keys.refresh();
  return keys;
}

function garbageOf({ ageMsMax, budgetBytes }: RemoteConfig) {
  if (ageMsMax === 0 && budgetBytes === 0) return undefined;
  return {
    intervalMs: LIMITS.remoteGarbageMs,
    ageMsMax,
    bytesMax: budgetBytes,
    graceMs: LIMITS.remoteGraceMs,
    parts: 1,
  };
}

/** The S3 client takes long to load, so it is loaded where it is wanted. */
async function storeOf(config: RemoteConfig): Promise<ObjectStore> {
  if (config.kind === "directory") {
    const { directory } = config;
    if (directory === undefined)
      throw new CairnError("configInvalid", "remote.directory is missing");
    return new SharedDirectory({ directory });
  }
  const { S3Store } = await import("../../tiers/remote/s3.ts");
  const { endpoint, bucket, prefix, region, pathStyle, credentialsFile, signPayload } = config.s3;
  return new S3Store({
    bucket,
    prefix,
    region,
    endpoint: endpoint === "" ? undefined : endpoint,
    pathStyle,
    credentialsFile,
    signPayload,
    socketsMax: config.concurrencyMax,
    idleMs: LIMITS.remoteIdleSocketMs,
  });
}
