/**
 * The remote tier inside the daemon: its store, the staging memory that JS and the addon share, what brings chunks in
 * (for PREFETCH) and what sends them out. Without the tier there is no such object.
 */
import type { Addon } from "../../addon/binding.ts";
import { chunkBlocksOf } from "../../tiers/remote/chunk.ts";
import { RemoteTier } from "../../tiers/remote/index.ts";
import type { ObjectStore } from "../../tiers/remote/object-store.ts";
import { S3Store } from "../../tiers/remote/s3.ts";
import { SharedDirectory } from "../../tiers/remote/shared-directory.ts";
import type { ChunkSpace } from "../../tiers/remote/types.ts";
import type { RemoteConfig } from "../config/schema.ts";
import type { Namespaces } from "../engine-api/namespaces.ts";
import type { EngineServer } from "../engine-api/server.ts";
import { CairnError } from "../errors.ts";
import type { ExplainSources } from "../explain.ts";
import { LIMITS } from "../limits.ts";
import type { RemoteReading } from "../observe/lower.ts";
import { RemoteFetcher } from "../transfer/remote-fetcher.ts";
import { StagingBatches } from "../transfer/staging-copies.ts";
import { Uploader } from "../transfer/uploader.ts";

export interface RemoteHooks {
  readonly note: (level: "info" | "warn" | "error", line: string) => void;
  readonly fault: (error: unknown) => void;
}

/** Chunk length where a descriptor names none (engine-api/descriptor.ts fills it in). */
const CHUNK_BLOCKS_DEFAULT = 16;

export class RemoteParts {
  readonly tier: RemoteTier;
  readonly uploader: Uploader;
  readonly #addon: Addon;
  readonly #region: number;
  readonly #spaces: (ChunkSpace | undefined)[] = [];
  readonly #namespaces: Namespaces;

  /** hasNvme: its write-back offers chunks. @throws CairnError configInvalid, windowMap */
  constructor(server: EngineServer, config: RemoteConfig, hasNvme: boolean, hooks: RemoteHooks) {
    const { context } = server;
    const { addon, ledger, copies, links, feed, namespaces, arena } = context;
    this.#addon = addon;
    this.#namespaces = namespaces;
    const stagingBytes = Math.min(config.inFlightBytesMax, LIMITS.stagingBytesMax);
    const { region, descriptor } = addon.regionCreate(stagingBytes);
    this.#region = region;
    const bytes = new Uint8Array(addon.clientMap(descriptor, stagingBytes));
    addon.closeDescriptor(descriptor);
    this.tier = new RemoteTier({
      store: storeOf(config),
      staging: { bytes },
      copies: new StagingBatches(copies, arena, region),
      deleteCorrupt: true,
      transfersMax: config.concurrencyMax,
      requestDeadlineMs: config.requestTimeoutMs,
      existence: {
        entriesMax: config.cacheEntries,
        presentMs: config.cacheMs,
        absentMs: config.cacheAbsentMs,
        probesMax: config.concurrencyMax,
      },
      guard: { attemptsMax: config.retriesMax + 1, attemptDeadlineMs: config.requestTimeoutMs },
      garbage: garbageOf(config),
      probeIntervalMs: LIMITS.remoteProbeMs,
      slowMsPerMiB: LIMITS.remoteSlowMsPerMiB,
      log: (line) => hooks.note("warn", line),
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
    this.uploader = new Uploader({ ...shared, feed, offersOld: !hasNvme });
    context.remotePrefix = (index, keys, localBlocks) => {
      const space = spaceOf(index);
      const keyBytes = namespaces.at(index)?.keyBytes ?? 0;
      return space === undefined ? 0 : this.tier.remotePrefix(space, keys, keyBytes, localBlocks);
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
      chunkBlocks: chunkBlocksOf(declared, namespace.rowBytes),
      payloadBytes: namespace.rowBytes,
      shards: namespace.shards,
    };
    this.#spaces[index] = space;
    return space;
  }

  tick(): void {
    this.uploader.step();
  }

  explainSource(): NonNullable<ExplainSources["remote"]> {
    const { description } = this.tier;
    return { description, chunkBlocksOf: (index) => this.#spaceOf(index)?.chunkBlocks ?? 1 };
  }

  reading(): RemoteReading {
    return this.tier.snapshot();
  }

  /** Uploads are cancelled; nothing of the tier touches DRAM or the staging memory afterwards. */
  async close(): Promise<void> {
    await this.uploader.stop();
    await this.tier.close();
    this.#addon.regionUnmap(this.#region);
  }
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

function storeOf(config: RemoteConfig): ObjectStore {
  if (config.kind === "directory") {
    const { directory } = config;
    if (directory === undefined)
      throw new CairnError("configInvalid", "remote.directory is missing");
    return new SharedDirectory({ directory });
  }
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
