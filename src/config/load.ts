/**
 * From what the operator wrote to one typed, proven Config. Layers, later wins: defaults, the file,
 * `CAIRN_*` variables, flags. All problems of all layers are gathered and reported at once, each with its
 * path and where it was written; nothing is half applied.
 */
import { existsSync, readFileSync, statSync } from "node:fs";
import { hostname } from "node:os";
import { LineCounter, parse as parseYaml, parseDocument } from "yaml";
import { CairnError } from "../errors.ts";
import { defaultConfig, mergeTrees, resolveConfig, type Host } from "./defaults.ts";
import {
  FIELDS,
  fieldOf,
  type Locate,
  misfit,
  type Problem,
  ROOT,
  readText,
  readTree,
} from "./fields.ts";
import { suggestion } from "./nearest.ts";
import { proveConfig } from "./proofs.ts";
import type { Config } from "./schema.ts";
import { misshapes } from "./shape.ts";

const FILE_BYTES_MAX = 1024 * 1024;
/** Searched in this order when neither --config nor CAIRN_CONFIG names a file. */
export const DEFAULT_FILES = ["cairn.yaml", "/etc/cairn/cairn.yaml"] as const;
/** Variables that are ours and no setting of the daemon: CAIRN_SOCKET is where clients look for it. */
const RESERVED =
  /^CAIRN_(ADDON|CONFIG|SOCKET|PYTHON|PYTHON_SUITE|(ENGINES|PYTHON|S3)_CACHE|TEST_.*|BENCH_.*)$/;
const SERVICE_LINK =
  /^([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP)(_.*)?)?)$/;

export type Environment = Readonly<Record<string, string | undefined>>;
export type Flags = Readonly<Record<string, string>>;

export interface ConfigSources {
  /** Path of cairn.yaml; undefined: CAIRN_CONFIG, else the first of DEFAULT_FILES that exists, else none. */
  readonly file?: string | undefined;
  readonly env?: Environment;
  /** Dotted path → text, such as { "dram.capacityBytes": "64GiB" }. */
  readonly flags?: Flags;
  /** What another program's variables said at start (migrate/take-over.ts): above the defaults, below all else. */
  readonly inherited?: readonly InheritedGroup[];
}

/** Settings that make sense together only. Once one of `fields` is set in cairn's own way, none of them counts. */
export interface InheritedGroup {
  /** Where it was written, such as `DYN_KVBM_CPU_CACHE_GB`. */
  readonly source: string;
  readonly fields: readonly string[];
  /** Values as cairn.yaml would hold them. */
  readonly settings: readonly { readonly path: string; readonly value: unknown }[];
}

export interface LoadedConfig {
  readonly config: Config;
  /** The file that was read, if any. */
  readonly file: string | undefined;
  /** Where each value came from; a path that is absent runs on its default. */
  readonly sources: ReadonlyMap<string, string>;
}

/** configInvalid with every problem found. */
export class ConfigError extends CairnError {
  readonly problems: readonly Problem[];

  constructor(problems: readonly Problem[]) {
    super("configInvalid", problems.map(formatProblem).join("\n"), problems.length);
    this.problems = problems;
  }
}

export function formatProblem({ path, source, message }: Problem): string {
  return `${path === "" ? "(whole)" : path} (${source}): ${message}`;
}

interface Layer {
  readonly tree: unknown;
  readonly sources: ReadonlyMap<string, string>;
  readonly problems: readonly Problem[];
}

interface ParsedYaml {
  readonly raw: unknown;
  readonly locate: Locate;
  readonly problems: readonly Problem[];
}

/** Plain values of a YAML text and where each stands in it; pure. */
export function parseYamlText(text: string, name: string): ParsedYaml {
  const failed = (...problems: Problem[]): ParsedYaml => ({
    raw: null,
    locate: () => name,
    problems,
  });
  if (text.length > FILE_BYTES_MAX)
    return failed({ path: "", source: name, message: "longer than 1 MiB" });
  const lines = new LineCounter();
  const document = parseDocument(text, {
    lineCounter: lines,
    prettyErrors: false,
    stringKeys: true,
  });
  const lineAt = (offset: number): string => `${name}:${Math.max(1, lines.linePos(offset).line)}`;
  if (document.errors.length > 0)
    return failed(
      ...document.errors.map(({ pos, message }) => ({ path: "", source: lineAt(pos[0]), message })),
    );
  const locate: Locate = (path) => {
    const node = document.getIn(path, true) as { readonly range?: readonly number[] } | undefined;
    return node?.range === undefined ? name : lineAt(node.range[0]!);
  };
  try {
    return { raw: document.toJS({ maxAliasCount: 16 }), locate, problems: [] };
  } catch (error) {
    // Aliases without an anchor, or too many of them, show only here.
    return failed({ path: "", source: name, message: String(error).split("\n")[0]! });
  }
}

/** Reads the text of a cairn.yaml; pure. */
export function readYaml(text: string, name: string): Layer {
  const { raw, locate, problems: broken } = parseYamlText(text, name);
  const problems = [...broken];
  const sources = new Map<string, string>();
  const tree = raw === null ? {} : readTree(ROOT, raw, [], locate, problems, sources);
  return { tree, sources, problems };
}

function setIn(tree: Record<string, unknown>, path: string, value: unknown): void {
  const keys = path.split(".");
  let at = tree;
  for (const key of keys.slice(0, -1)) {
    at[key] ??= {};
    at = at[key] as Record<string, unknown>;
  }
  at[keys[keys.length - 1]!] = value;
}

function readTexts(
  texts: readonly { readonly path: string; readonly source: string; readonly text: string }[],
): Layer {
  const tree: Record<string, unknown> = {};
  const problems: Problem[] = [];
  const sources = new Map<string, string>();
  for (const { path, source, text } of texts) {
    const field = fieldOf(path);
    if (field === undefined) continue;
    const before = problems.length;
    let value: unknown;
    try {
      value = readText(field.schema, text, (list) => parseYaml(list) as unknown);
    } catch (error) {
      problems.push({ path, source, message: `cannot be read: ${String(error)}` });
      continue;
    }
    const read = readTree(field.schema, value, path.split("."), () => source, problems, sources);
    if (problems.length === before) setIn(tree, path, read);
  }
  return { tree, sources, problems };
}

/** What Kubernetes and Docker put into the environment of a pod beside a service of that name. */
export function isServiceLink(variable: string, service: string): boolean {
  return (
    variable.startsWith(`${service}_`) && SERVICE_LINK.test(variable.slice(service.length + 1))
  );
}

/** Reads `CAIRN_*` variables; pure. Unknown ones are problems, service links are ignored. */
export function readEnvironment(env: Environment): Layer {
  const known = new Map(FIELDS.map((field) => [field.environment, field.path]));
  const texts = [];
  const problems: Problem[] = [];
  for (const [name, text] of Object.entries(env)) {
    if (!name.startsWith("CAIRN_") || text === undefined || RESERVED.test(name)) continue;
    const path = known.get(name);
    if (path !== undefined) texts.push({ path, source: name, text });
    else if (!isServiceLink(name, "CAIRN")) {
      const hint = suggestion(name, [...known.keys()]);
      problems.push({ path: name, source: "environment", message: `unknown variable${hint}` });
    }
  }
  const layer = readTexts(texts);
  return { ...layer, problems: [...problems, ...layer.problems] };
}

/** Settings of other programs as a layer; pure. */
function readInherited(groups: readonly InheritedGroup[]): Layer {
  const problems: Problem[] = [];
  const sources = new Map<string, string>();
  let tree: unknown = {};
  for (const { source, settings } of groups) {
    const raw: Record<string, unknown> = {};
    for (const { path, value } of settings) setIn(raw, path, value);
    tree = mergeTrees(
      tree,
      readTree(ROOT, raw, [], () => source, problems, sources),
    );
  }
  return { tree, sources, problems };
}

/** Checks and proves such settings on the defaults alone. throws ConfigError. */
export function proveInherited(groups: readonly InheritedGroup[]): void {
  const { tree, problems, sources } = readInherited(groups);
  checkConfig(mergeTrees(defaultConfig(), tree), thisHost({}), problems, sources);
}

/** Reads flags by dotted path; pure. */
export function readFlags(flags: Flags): Layer {
  const names = FIELDS.map((field) => field.path);
  const problems: Problem[] = [];
  const texts = [];
  for (const [path, text] of Object.entries(flags)) {
    if (fieldOf(path) !== undefined) texts.push({ path, source: `--${path}`, text });
    else
      problems.push({
        path,
        source: `--${path}`,
        message: `unknown flag${suggestion(path, names)}`,
      });
  }
  const layer = readTexts(texts);
  return { ...layer, problems: [...problems, ...layer.problems] };
}

/** Where a field was set: its own source, or that of the first value inside it. */
function sourceFinder(sources: ReadonlyMap<string, string>): (path: string) => string {
  return (path) => {
    const exact = sources.get(path);
    if (exact !== undefined) return exact;
    for (const [known, source] of sources)
      if (known.startsWith(`${path}.`) || path.startsWith(`${known}.`)) return source;
    return "default";
  };
}

/**
 * Checks a merged tree against the schema and the proofs and fills in the host's values.
 * throws ConfigError.
 */
export function checkConfig(
  tree: unknown,
  host: Host,
  found: readonly Problem[],
  sources: ReadonlyMap<string, string>,
): Config {
  const problems = [...found];
  const sourceOf = sourceFinder(sources);
  if (problems.length === 0) {
    for (const { path, message } of misshapes(ROOT, tree)) {
      const schema = fieldOf(path)?.schema;
      const better = schema === undefined ? undefined : misfit(schema, undefined);
      problems.push({ path, source: sourceOf(path), message: better ?? message });
    }
  }
  if (problems.length > 0) throw new ConfigError(problems);
  const config = resolveConfig(tree as Config, host);
  const unproven = proveConfig(config, sourceOf);
  if (unproven.length > 0) throw new ConfigError(unproven);
  return config;
}

export function thisHost(env: Environment = process.env): Host {
  return {
    hostname: hostname(),
    uid: process.getuid?.() ?? 0,
    runtimeDirectory: env["XDG_RUNTIME_DIR"],
  };
}

/** The text of a configuration file. throws ConfigError when it cannot be read or is longer than 1 MiB. */
export function readConfigFile(path: string): string {
  try {
    const found = statSync(path);
    // A device or a pipe has no length, and may have no end.
    if (!found.isFile())
      throw new ConfigError([{ path: "", source: path, message: "is no regular file" }]);
    if (found.size > FILE_BYTES_MAX)
      throw new ConfigError([{ path: "", source: path, message: "longer than 1 MiB" }]);
    return readFileSync(path, "utf8");
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new ConfigError([{ path: "", source: path, message: `cannot be read: ${reason}` }]);
  }
}

/** Loads, checks and proves the configuration of this process. throws ConfigError naming every problem. */
export function loadConfig(from: ConfigSources = {}): LoadedConfig {
  const env = from.env ?? process.env;
  const file = from.file ?? env["CAIRN_CONFIG"] ?? DEFAULT_FILES.find((path) => existsSync(path));
  const own: Layer[] = [];
  if (file !== undefined) own.push(readYaml(readConfigFile(file), file));
  own.push(readEnvironment(env), readFlags(from.flags ?? {}));
  const isSet = (path: string): boolean => own.some(({ sources: set }) => set.has(path));
  const inherited = (from.inherited ?? []).filter(({ fields }) => !fields.some(isSet));
  const layers = [readInherited(inherited), ...own];
  let tree: unknown = defaultConfig();
  const sources = new Map<string, string>();
  for (const layer of layers) {
    tree = mergeTrees(tree, layer.tree);
    for (const [path, source] of layer.sources) sources.set(path, source);
  }
  const problems = layers.flatMap((layer) => layer.problems);
  return { config: checkConfig(tree, thisHost(env), problems, sources), file, sources };
}
