/** Defaults from the schema, deep merge of sparse layers, and the values that only the host knows. */
import { join } from "node:path";
import { ROOT, type Schema } from "./fields.ts";
import type { Config, NvmeConfig } from "./schema.ts";

type Tree = Record<string, unknown>;

function defaultsOf(schema: Schema): Tree {
  const out: Tree = {};
  for (const [key, child] of Object.entries(schema.properties ?? {})) {
    if (child.properties !== undefined) {
      if ((schema.required ?? []).includes(key)) out[key] = defaultsOf(child);
    } else if (child.default !== undefined) {
      out[key] = structuredClone(child.default);
    }
  }
  return out;
}

/** The configuration that runs with no file, before the host's own values are filled in. */
export function defaultConfig(): Config {
  return defaultsOf(ROOT) as unknown as Config;
}

function isTree(value: unknown): value is Tree {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** `over` laid on `base`, sections merged, everything else (lists too) replaced; neither is changed. */
export function mergeTrees(base: unknown, over: unknown): unknown {
  if (!isTree(base) || !isTree(over)) return over === undefined ? base : over;
  const out: Tree = { ...base };
  for (const [key, value] of Object.entries(over)) out[key] = mergeTrees(out[key], value);
  return out;
}

export interface Host {
  readonly hostname: string;
  readonly uid: number;
  /** $XDG_RUNTIME_DIR, if set. */
  readonly runtimeDirectory: string | undefined;
}

/** Default engine socket of this user. */
export function defaultEngineSocket(host: Host): string {
  return host.runtimeDirectory === undefined || host.runtimeDirectory === ""
    ? `/tmp/cairn-${host.uid}/engine.sock`
    : join(host.runtimeDirectory, "cairn", "engine.sock");
}

/** Fills in what stands empty: node name, socket, DRAM directory. */
export function resolveConfig(config: Config, host: Host): Config {
  return {
    ...config,
    node: { name: config.node.name === "" ? host.hostname : config.node.name },
    engineApi: {
      ...config.engineApi,
      socket: config.engineApi.socket === "" ? defaultEngineSocket(host) : config.engineApi.socket,
    },
    dram: {
      ...config.dram,
      directory:
        config.dram.directory === "" ? `/dev/shm/cairn-${host.uid}` : config.dram.directory,
    },
  };
}

/** One entry of `nvme.directories` with nothing left out. */
export interface NvmeDirectory {
  readonly path: string;
  /** Bytes of all its files; "auto": what is free there, less head-room. */
  readonly capacityBytes: number | "auto";
  /** 0: no limit. */
  readonly writeBudgetBytesPerDay: number;
  /** 0: unknown. */
  readonly ratedWriteBytes: number;
}

/** The tier's directories, in the order of the file, without trailing slashes. */
export function nvmeDirectories({ directories }: NvmeConfig): readonly NvmeDirectory[] {
  return directories.map((entry) => ({
    path: entry.path.length > 1 ? entry.path.replace(/\/+$/, "") : entry.path,
    capacityBytes: entry.capacityBytes ?? "auto",
    writeBudgetBytesPerDay: entry.writeBudgetBytesPerDay ?? 0,
    ratedWriteBytes: entry.ratedWriteBytes ?? 0,
  }));
}

/** Whether chunks of the remote tier are sealed. */
export function remoteSealed({ remote, tenants }: Config): boolean {
  return remote.sealing === "on" || (remote.sealing === "auto" && tenants.length > 0);
}

const DERIVED_BLOCKS_MIN = 131_072;
const DERIVED_BLOCKS_MAX = 16_777_216;
/** Rows on disk are hundreds of KiB; 64 KiB leaves room for small ones at a fiftieth of the memory. */
const NVME_BYTES_PER_BLOCK = 65_536;
const DRAM_BYTES_PER_BLOCK = 4_096;

/**
 * Block records of the ledger: `ledger.blocksMax`, else one for each 4 KiB of DRAM and each 64 KiB of NVMe,
 * within reason. A block that lies in both tiers has one record.
 */
export function ledgerBlocks(config: Config, dramBytes: number, nvmeBytes: number): number {
  if (config.ledger.blocksMax > 0) return config.ledger.blocksMax;
  const blocks = dramBytes / DRAM_BYTES_PER_BLOCK + nvmeBytes / NVME_BYTES_PER_BLOCK;
  return Math.min(DERIVED_BLOCKS_MAX, Math.max(DERIVED_BLOCKS_MIN, Math.floor(blocks)));
}
