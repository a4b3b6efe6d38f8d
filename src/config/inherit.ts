/**
 * The door to migrate/: variables of other programs that did cairn's work on this node before. Nothing of it is loaded
 * where no such variable is set, which a start would otherwise pay for.
 */
import type { ConfigSources } from "./load.ts";
import type { Config } from "./schema.ts";

const FOREIGN = /^(?:DYN_KVBM|LMCACHE)_/;

/** One line for the operator: what became of one variable. */
export interface InheritanceWarning {
  readonly source: string;
  readonly text: string;
}

export interface Inheritance {
  /** The same sources, and what was taken over. */
  readonly sources: ConfigSources;
  readonly warnings: readonly InheritanceWarning[];
}

/** Why a start would refuse the size of the pool; undefined: it would not. */
export type PoolFault = (config: Config) => string | undefined;

/**
 * Takes over what `DYN_KVBM_*` and `LMCACHE_*` variables say and no setting of cairn's own does. Never fails by what
 * they say. throws ConfigError for cairn's own configuration.
 * @param poolFault loads what judges the pool, which is not the configuration's to know
 */
export async function inherit(
  sources: ConfigSources,
  poolFault: () => Promise<PoolFault>,
): Promise<Inheritance> {
  const env = sources.env ?? process.env;
  if (!Object.keys(env).some((name) => FOREIGN.test(name))) return { sources, warnings: [] };
  const { takeOver } = await import("./migrate/take-over.ts");
  return takeOver(sources, await poolFault());
}
