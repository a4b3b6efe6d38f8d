/**
 * Command lines: a command's own options beside settings by dotted path (`--dram.capacityBytes 64GiB`).
 * What is neither is refused with the nearest name.
 */
import { parseArgs } from "node:util";
import { FIELDS } from "../config/fields.ts";
import { inherit } from "../config/inherit.ts";
import { type ConfigSources, type LoadedConfig, loadConfig } from "../config/load.ts";
import { suggestion } from "../config/nearest.ts";
import { UsageError } from "./exit.ts";

export type OptionKinds = Readonly<Record<string, "string" | "boolean">>;

export interface ParsedArguments {
  readonly values: ReadonlyMap<string, string>;
  readonly positionals: readonly string[];
  readonly sources: ConfigSources;
  readonly json: boolean;
}

const COMMON: OptionKinds = { json: "boolean", config: "string" };

function isBooleanField(path: string): boolean {
  return FIELDS.some((field) => field.path === path && field.schema.type === "boolean");
}

/** throws UsageError for an unknown option, a missing value, or more positionals than the command takes. */
export function readArguments(
  words: readonly string[],
  own: OptionKinds,
  positionalsMax = 0,
): ParsedArguments {
  const kinds: Record<string, "string" | "boolean"> = { ...COMMON, ...own };
  for (const { path } of FIELDS) kinds[path] = isBooleanField(path) ? "boolean" : "string";
  const options = Object.fromEntries(Object.entries(kinds).map(([name, type]) => [name, { type }]));
  const { tokens } = parseArgs({
    args: [...words],
    options,
    strict: false,
    allowPositionals: true,
    tokens: true,
  });
  const values = new Map<string, string>();
  const flags: Record<string, string> = {};
  const positionals: string[] = [];
  for (const token of tokens) {
    if (token.kind === "positional") positionals.push(token.value);
    if (token.kind !== "option") continue;
    const kind = kinds[token.name];
    if (kind === undefined) {
      const names = Object.keys(kinds).map((name) => `--${name}`);
      const hint = suggestion(token.rawName, names);
      throw new UsageError(`unknown option ${token.rawName}${hint}`);
    }
    if (kind === "string" && (token.value === undefined || token.value === ""))
      throw new UsageError(`${token.rawName} needs a value`);
    const value = token.value ?? "true";
    if (token.name.includes(".") || token.name === "tenants") flags[token.name] = value;
    else values.set(token.name, value);
  }
  const extra = positionals[positionalsMax];
  if (extra !== undefined) throw new UsageError(`unexpected "${extra}"`);
  const file = values.get("config");
  return { values, positionals, sources: { file, flags }, json: values.get("json") === "true" };
}

/** The configuration that these arguments, the environment and the file give. throws ConfigError. */
export function configOf(parsed: ParsedArguments): LoadedConfig {
  return loadConfig(parsed.sources);
}

/**
 * The configuration that a daemon would run with: `configOf`, and what variables of other programs add, told on
 * standard error. throws ConfigError.
 */
export async function configInForce(parsed: ParsedArguments): Promise<LoadedConfig> {
  const poolFault = async () => (await import("../daemon/pool-fit.ts")).poolFault;
  const { sources, warnings } = await inherit(parsed.sources, poolFault);
  for (const { source, text } of warnings) process.stderr.write(`cairn: ${source} ${text}\n`);
  return loadConfig(sources);
}

/** A number option within bounds. throws UsageError. */
export function numberOption(
  parsed: ParsedArguments,
  name: string,
  fallback: number,
  minimum: number,
  maximum: number,
): number {
  const text = parsed.values.get(name);
  if (text === undefined) return fallback;
  const value = Number(text);
  if (!Number.isFinite(value) || value < minimum || value > maximum)
    throw new UsageError(`--${name}: expected ${minimum} to ${maximum}, got "${text}"`);
  return value;
}
