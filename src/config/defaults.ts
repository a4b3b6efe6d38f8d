/** Defaults from the schema, deep merge of sparse layers, and the values that only the host knows. */
import { join } from "node:path";
import { ROOT, type Schema } from "./fields.ts";
import type { Config } from "./schema.ts";

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
