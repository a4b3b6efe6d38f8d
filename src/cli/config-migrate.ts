/** `cairn config migrate`: prints the cairn.yaml that another program's configuration comes to. */
import { kvbmGiven, readKvbm } from "../config/migrate/kvbm.ts";
import {
  lmcacheFileGiven,
  lmcacheGiven,
  lmcacheVariablesGiven,
  readLmcache,
} from "../config/migrate/lmcache.ts";
import { readServer, serverGiven } from "../config/migrate/lmcache-server.ts";
import type { Reading } from "../config/migrate/options.ts";
import { migrate } from "../config/migrate/page.ts";
import { readConfigFile } from "../config/load.ts";
import { numberOption, type ParsedArguments } from "./arguments.ts";
import { EXIT, UsageError } from "./exit.ts";
import { printJson } from "./output.ts";

const WORKERS_MAX = 1_024;

/** @param flags the words of a command line of `lmcache server`, those behind `--` */
export function migrateConfig(parsed: ParsedArguments, flags: readonly string[]): number {
  const file = parsed.values.get("lmcache");
  const environment = parsed.values.get("env") === "true";
  if (file === undefined && !environment && flags.length === 0)
    throw new UsageError("config migrate needs --lmcache FILE, --env, or -- and lmcache's flags");
  const workers = numberOption(parsed, "workers", 1, 1, WORKERS_MAX);
  if (!Number.isInteger(workers)) throw new UsageError("--workers: a whole number is needed");
  const env = environment ? process.env : {};
  const given =
    file === undefined
      ? lmcacheGiven(env)
      : [...lmcacheFileGiven(readConfigFile(file), file), ...lmcacheVariablesGiven(env)];
  const readings: readonly Reading[] = [
    ...(file === undefined ? [] : [readLmcache(given, workers)]),
    readServer(serverGiven(flags)),
    readKvbm(kvbmGiven(env)),
    ...(file === undefined ? [readLmcache(given, workers)] : []),
  ];
  const { config, notes, text } = migrate(readings);
  if (parsed.json) printJson({ config, notes });
  else process.stdout.write(text);
  return EXIT.OK;
}
