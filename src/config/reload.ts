/** What changes between two configurations, what of it can be applied while running, and how a reload is planned. */
import { FIELDS, ROOT, type Problem, readTree } from "./fields.ts";
import { mergeTrees } from "./defaults.ts";
import { checkConfig, thisHost } from "./load.ts";
import type { Config } from "./schema.ts";

export interface Change {
  readonly path: string;
  readonly before: unknown;
  readonly after: unknown;
}

export interface ConfigDiff {
  /** Applied while running. */
  readonly live: readonly Change[];
  /** Take effect at the next start. */
  readonly restartNeeded: readonly Change[];
}

function valueAt(config: Config, path: string): unknown {
  let at: unknown = config;
  for (const key of path.split(".")) {
    if (typeof at !== "object" || at === null) return undefined;
    at = (at as Readonly<Record<string, unknown>>)[key];
  }
  return at;
}

/** Every field that differs, by what it takes to apply it. */
export function diffConfig(before: Config, after: Config): ConfigDiff {
  const live: Change[] = [];
  const restartNeeded: Change[] = [];
  for (const { path, schema } of FIELDS) {
    const change = { path, before: valueAt(before, path), after: valueAt(after, path) };
    if (JSON.stringify(change.before) === JSON.stringify(change.after)) continue;
    (schema.reload === "live" ? live : restartNeeded).push(change);
  }
  return { live, restartNeeded };
}

/** `after`, except that every field that needs a restart keeps its value of `before`. */
export function liveOnly(before: Config, after: Config): Config {
  const out = structuredClone(before) as unknown as Record<string, unknown>;
  for (const { path, after: value } of diffConfig(before, after).live) {
    const keys = path.split(".");
    let at = out;
    for (const key of keys.slice(0, -1)) at = at[key] as Record<string, unknown>;
    at[keys[keys.length - 1]!] = value;
  }
  return out as unknown as Config;
}

/**
 * The configuration that results when `document` (the shape of cairn.yaml; fields it does not name keep
 * their running value) is laid on `running`. throws ConfigError; `running` is never changed.
 */
export function overlayConfig(running: Config, document: unknown, source: string): Config {
  const problems: Problem[] = [];
  const sources = new Map<string, string>();
  const tree = readTree(ROOT, document, [], () => source, problems, sources);
  return checkConfig(mergeTrees(running, tree), thisHost(), problems, sources);
}
