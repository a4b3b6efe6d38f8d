/**
 * LMCache within one engine process: its file (`LMCACHE_CONFIG_FILE`, YAML or JSON) and its `LMCACHE_*` variables,
 * which win over the file. A size there is GiB and counts for one worker process: an engine with eight ranks takes
 * it eight times.
 */
import { statSync } from "node:fs";
import { parse as parseYaml } from "yaml";
import { ConfigError, isServiceLink, parseYamlText, readConfigFile } from "../load.ts";
import { LMCACHE_OPTIONS, LMCACHE_VARIABLES } from "./lmcache-options.ts";
import {
  Draft,
  GIB,
  type Given,
  numberOf,
  optionOf,
  plainText,
  type Reading,
  sizeOf,
  sizeText,
} from "./options.ts";
import { absolutePath, awsBucketOf, bucketGroup, diskGroup, sharedGroup } from "./tiers.ts";

const LMCACHE_PREFIX = "LMCACHE_";
const FILE_VARIABLE = "LMCACHE_CONFIG_FILE";
const EXTRA = "extra_config";
const LOG_LEVELS: Readonly<Record<string, string>> = {
  DEBUG: "debug",
  INFO: "info",
  WARNING: "warn",
  WARN: "warn",
  ERROR: "error",
  CRITICAL: "error",
};

type Environment = Readonly<Record<string, string | undefined>>;
type Tree = Readonly<Record<string, unknown>>;

function isTree(value: unknown): value is Tree {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Options of `extra_config`, one by one. */
function extraGiven(value: unknown, sourceOf: (key?: string) => string): Given[] {
  let tree = value;
  if (typeof value === "string") {
    try {
      // LMCache's own examples write it with single quotes, which JSON has not.
      tree = parseYaml(value, { maxAliasCount: 0 }) as unknown;
    } catch {
      tree = undefined;
    }
  }
  if (value === null || value === "") return [];
  if (!isTree(tree))
    return [{ name: EXTRA, value, source: sourceOf(), fault: "it is no map of options" }];
  return Object.entries(tree).map(([key, one]) => ({
    name: `${EXTRA}.${key}`,
    value: one,
    source: sourceOf(key),
  }));
}

/** The options in the text of LMCache's file. throws ConfigError when it is no YAML map. */
export function lmcacheFileGiven(text: string, name: string): Given[] {
  const { raw, locate, problems } = parseYamlText(text, name);
  if (problems.length > 0) throw new ConfigError(problems);
  if (raw === null) return [];
  if (!isTree(raw))
    throw new ConfigError([{ path: "", source: name, message: "is no map of options" }]);
  return Object.entries(raw).flatMap(([key, value]) => {
    if (key !== EXTRA) return [{ name: key, value, source: `${locate([key])} ${key}` }];
    return extraGiven(value, (inner) =>
      inner === undefined ? `${locate([key])} ${key}` : `${locate([key, inner])} ${key}.${inner}`,
    );
  });
}

/** LMCache drops quotes around the whole of a variable. */
function unquoted(text: string): string {
  const match = /^\s*(["'])(.*)\1\s*$/s.exec(text);
  return match === null ? text : match[2]!;
}

/** The variables among `env` that are LMCache's. */
export function lmcacheVariablesGiven(env: Environment): Given[] {
  return Object.entries(env).flatMap(([name, text]) => {
    if (!name.startsWith(LMCACHE_PREFIX) || text === undefined) return [];
    const value = unquoted(text);
    const key = name.slice(LMCACHE_PREFIX.length).toLowerCase();
    if (key === EXTRA)
      return extraGiven(value, (inner) => (inner === undefined ? name : `${name} ${inner}`));
    if (optionOf(LMCACHE_VARIABLES, name) !== undefined) return [{ name, value, source: name }];
    const known = LMCACHE_OPTIONS.some((row) => row.name === key);
    return !known && isServiceLink(name, "LMCACHE") ? [] : [{ name: key, value, source: name }];
  });
}

/** Why a file gave no options. What a parser quotes of it may be a secret, so only the place is told. */
function fileFault(error: unknown): string {
  if (!(error instanceof ConfigError))
    return error instanceof Error ? error.message : String(error);
  return `no map of options can be read at ${error.problems.map(({ source }) => source).join(", ")}`;
}

/** What LMCACHE_CONFIG_FILE names; a file that cannot be read is one option with a fault. */
function lmcacheFileOf(env: Environment): Given[] {
  const file = env[FILE_VARIABLE];
  if (file === undefined || file === "") return [];
  try {
    // A pipe could keep a start waiting for ever.
    if (!statSync(file).isFile()) throw new Error(`${file} is no plain file`);
    return lmcacheFileGiven(readConfigFile(file), file);
  } catch (error) {
    const source = FILE_VARIABLE;
    return [{ name: source, value: file, source, fault: fileFault(error) }];
  }
}

/** All that an environment says: the file that it names, and the variables over it. */
export function lmcacheGiven(env: Environment): Given[] {
  const file = lmcacheFileOf(env);
  // A file that could not be read has its line: none that says it was read as well.
  const told = file.some(({ source }) => source === FILE_VARIABLE);
  const variables = lmcacheVariablesGiven(env);
  return [...file, ...variables.filter(({ name }) => !told || name !== FILE_VARIABLE)];
}

function readDram(draft: Draft, workers: number): void {
  const size = draft.take("max_local_cpu_size");
  if (size === undefined) return;
  const bytes = sizeOf(size.value, GIB * workers);
  if (typeof bytes === "string") draft.refuse(size, bytes);
  else {
    const settings = [{ path: "dram.capacityBytes", value: sizeText(bytes) }];
    draft.group([size], settings, perWorker(workers));
  }
}

function perWorker(workers: number): string {
  return workers === 1
    ? "LMCache counts it per worker process, cairn for the node"
    : `for ${workers} worker processes`;
}

function readDisk(draft: Draft, workers: number): void {
  const size = draft.take("max_local_disk_size");
  const place = draft.take("local_disk");
  const given = [place, size].filter((one) => one !== undefined);
  if (place === undefined)
    return draft.refuseAll(given, "without local_disk there is no disk tier");
  if (size === undefined)
    return draft.refuseAll(given, "max_local_disk_size is not set: LMCache stores nothing there");
  const bytes = sizeOf(size.value, GIB * workers);
  if (typeof bytes === "string") return draft.refuseAll(given, `max_local_disk_size: ${bytes}`);
  const paths = plainText(place.value).split(",").map(absolutePath);
  const known = paths.filter((path) => path !== undefined);
  if (known.length < paths.length)
    return draft.refuseAll(given, "local_disk holds what is no absolute path");
  const capacityBytes = Math.floor(bytes / known.length);
  const disks = known.map((path) => ({ path, capacityBytes }));
  diskGroup(draft, given, disks, perWorker(workers));
}

function textOf(given: Given | undefined): string | undefined {
  return given === undefined ? undefined : plainText(given.value);
}

function readBucket(draft: Draft, url: Given): void {
  const region = draft.take(`${EXTRA}.s3_region`);
  const prefix = draft.take(`${EXTRA}.s3_file_prefix`);
  const given = [url, region, prefix].filter((one) => one !== undefined);
  const aws = awsBucketOf(plainText(url.value));
  if (aws === undefined)
    return draft.refuseAll(
      given,
      "where the name of the bucket ends and its store begins is not said; set remote.s3.bucket and remote.s3.endpoint",
    );
  bucketGroup(draft, given, {
    bucket: aws.bucket,
    region: textOf(region) ?? aws.region,
    prefix: textOf(prefix)?.replace(/^\/+|\/+$/g, ""),
  });
}

function readUrl(draft: Draft): void {
  const url = draft.take("remote_url");
  if (url === undefined) return;
  const text = plainText(url.value).trim();
  if (text.startsWith("s3://")) return readBucket(draft, url);
  const scheme = /^([a-z][a-z0-9+.-]*):\/\//i.exec(text)?.[1]?.toLowerCase();
  if (scheme === "fs" || scheme === "file") {
    const path = absolutePath(text.replace(/^[a-z]+:\/\/[^/,]*/i, ""));
    if (path === undefined) draft.refuse(url, "it names no one absolute path");
    else sharedGroup(draft, [url], path);
  } else if (scheme === undefined) draft.refuse(url, "it is no URL");
  else
    draft.refuse(url, `${scheme} has no counterpart: the remote tier is a shared directory or S3`);
}

function readPlugins(draft: Draft): void {
  const plugins = draft.take("remote_storage_plugins");
  if (plugins === undefined) return;
  const { value } = plugins;
  const names = plainText(value).split(",");
  const name = names[0]?.trim() ?? "";
  if (names.length !== 1 || !/^fs(\.|$)/.test(name))
    return draft.refuse(plugins, "no counterpart: the remote tier is one shared directory or S3");
  const base =
    draft.take(`${EXTRA}.remote_storage_plugin.${name}.base_path`) ??
    draft.take(`${EXTRA}.fs_base_path`);
  const given = [plugins, base].filter((one) => one !== undefined);
  const path = absolutePath(textOf(base) ?? "");
  if (path === undefined) draft.refuseAll(given, "it names no one absolute path");
  else sharedGroup(draft, given, path);
}

function readSingles(draft: Draft): void {
  const timeout = draft.take("blocking_timeout_secs");
  if (timeout !== undefined) {
    const seconds = numberOf(timeout.value);
    const settings = [
      { path: "remote.requestTimeoutMs", value: Math.round((seconds ?? 0) * 1_000) },
    ];
    if (seconds === undefined) draft.refuse(timeout, "it is no number");
    else draft.group([timeout], settings, "");
  }
  const policy = draft.take("cache_policy");
  if (policy !== undefined) {
    if (plainText(policy.value).toUpperCase() === "LRU")
      draft.group([policy], [{ path: "policy.eviction", value: "lru" }], "");
    else draft.refuse(policy, "no counterpart: the least recently used leaf leaves first");
  }
  const level = draft.take("LMCACHE_LOG_LEVEL");
  if (level !== undefined) {
    const value = LOG_LEVELS[plainText(level.value).trim().toUpperCase()];
    if (value === undefined) draft.refuse(level, "it is no level");
    else draft.group([level], [{ path: "log.level", value }], "");
  }
}

/** @param workers worker processes (ranks) that each held as much as the options say */
export function readLmcache(given: Iterable<Given>, workers = 1): Reading {
  const draft = new Draft([...LMCACHE_OPTIONS, ...LMCACHE_VARIABLES], given);
  readDram(draft, workers);
  readDisk(draft, workers);
  readUrl(draft);
  readPlugins(draft);
  readSingles(draft);
  return draft.end();
}
