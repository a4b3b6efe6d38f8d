/**
 * The schema as a flat list of settable fields, and the walk that turns what people write (a YAML tree, one
 * environment variable, one flag) into the schema's own types. Nothing here knows a field by name.
 */
import { suggestion } from "./nearest.ts";
import { ConfigSchema, type Reload, type Unit } from "./schema.ts";
import { parseBytes, parseMilliseconds, parseMode } from "./units.ts";

/** The part of JSON Schema that ConfigSchema uses. */
export interface Schema {
  readonly type?: string;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly items?: Schema;
  readonly anyOf?: readonly Schema[];
  readonly enum?: readonly string[];
  readonly const?: string;
  readonly default?: unknown;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly unit?: Unit;
  readonly reload?: Reload;
  readonly description?: string;
}

export interface Field {
  /** Dotted path, such as `dram.capacityBytes`; also the flag's name. */
  readonly path: string;
  /** Environment variable, such as `CAIRN_DRAM_CAPACITY_BYTES`. */
  readonly environment: string;
  readonly schema: Schema;
  readonly optional: boolean;
}

/** One thing wrong with a configuration. */
export interface Problem {
  readonly path: string;
  /** Where the value came from: `cairn.yaml:3`, `CAIRN_…`, `--…`, `default`. */
  readonly source: string;
  readonly message: string;
}

export const ROOT: Schema = ConfigSchema as unknown as Schema;

function environmentName(path: string): string {
  return `CAIRN_${path
    .replaceAll(/([a-z0-9])([A-Z])/g, "$1_$2")
    .replaceAll(".", "_")
    .toUpperCase()}`;
}

function collect(schema: Schema, prefix: string, optional: boolean, out: Field[]): void {
  for (const [key, child] of Object.entries(schema.properties ?? {})) {
    const path = prefix === "" ? key : `${prefix}.${key}`;
    const childOptional = optional || !(schema.required ?? []).includes(key);
    if (child.properties !== undefined) collect(child, path, childOptional, out);
    else
      out.push({
        path,
        environment: environmentName(path),
        schema: child,
        optional: childOptional,
      });
  }
}

function fields(): readonly Field[] {
  const out: Field[] = [];
  collect(ROOT, "", false, out);
  return out;
}

/** Every settable field, in the order of the schema. Arrays (tenants, directories) are one field each. */
export const FIELDS = fields();
const byPath = new Map(FIELDS.map((field) => [field.path, field]));

export function fieldOf(path: string): Field | undefined {
  return byPath.get(path);
}

function expected(schema: Schema): string {
  if (schema.enum !== undefined) return schema.enum.map((value) => `"${value}"`).join(" or ");
  if (schema.anyOf !== undefined) {
    const literals = schema.anyOf.flatMap((one) =>
      one.const === undefined ? [] : [`"${one.const}"`],
    );
    return [schema.unit === "bytes" ? "a size such as 64GiB" : "a number", ...literals].join(
      " or ",
    );
  }
  if (schema.unit === "bytes") return "a size such as 64GiB";
  if (schema.unit === "ms") return "a duration such as 2s or 500ms";
  if (schema.unit === "mode") return "a mode such as 0o660";
  if (schema.type === "array") return "a list";
  return `a value of type ${schema.type ?? "object"}`;
}

/** `expected …, got …` with the bounds where they are what is wrong; undefined when the value fits. */
export function misfit(schema: Schema, value: unknown): string | undefined {
  const got = `got ${JSON.stringify(value) ?? "nothing"}`;
  const literal =
    schema.anyOf?.some((one) => one.const !== undefined && one.const === value) === true;
  if (literal) return undefined;
  const numeric = schema.anyOf?.find((one) => one.type === "integer") ?? schema;
  if (numeric.type === "integer" || numeric.type === "number") {
    if (typeof value !== "number" || !Number.isFinite(value))
      return `expected ${expected(schema)}, ${got}`;
    if (numeric.type === "integer" && !Number.isInteger(value))
      return `expected a whole number, ${got}`;
    if (numeric.minimum !== undefined && value < numeric.minimum)
      return `expected at least ${numeric.minimum}, ${got}`;
    if (numeric.maximum !== undefined && value > numeric.maximum)
      return `expected at most ${numeric.maximum}${schema.unit === "mode" ? " (write it as 0o660)" : ""}, ${got}`;
    return undefined;
  }
  if (schema.enum !== undefined)
    return typeof value === "string" && schema.enum.includes(value)
      ? undefined
      : `expected ${expected(schema)}, ${got}`;
  if (schema.type === "boolean" || schema.type === "string")
    return typeof value === schema.type ? undefined : `expected ${expected(schema)}, ${got}`;
  return undefined;
}

/** A scalar in its schema's type: sizes, durations and modes are read from text; the rest is left as it is. */
export function readScalar(schema: Schema, value: unknown): unknown {
  if (typeof value !== "string") return value;
  if (schema.unit === "bytes") return parseBytes(value) ?? value;
  if (schema.unit === "ms") return parseMilliseconds(value) ?? value;
  if (schema.unit === "mode") return parseMode(value) ?? value;
  return value;
}

/** A field's value from an environment variable or a flag, where everything is text. */
export function readText(schema: Schema, text: string, parse: (text: string) => unknown): unknown {
  if (schema.type === "array") return parse(text);
  if (schema.type === "boolean") return text === "true" ? true : text === "false" ? false : text;
  const scalar = readScalar(schema, text);
  if (typeof scalar !== "string" || schema.unit !== undefined) return scalar;
  const wantsNumber = schema.type === "integer" || schema.type === "number";
  return wantsNumber && /^-?\d+(\.\d+)?$/.test(text.trim()) ? Number(text) : text;
}

/** Tells where the value at a path of a tree was written. */
export type Locate = (path: readonly (string | number)[]) => string;

function isMap(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * A tree (parsed YAML or JSON) in the schema's types. Unknown keys, wrong shapes and values out of range are
 * added to `problems`; every leaf's origin is noted in `sources` under its dotted path.
 */
export function readTree(
  schema: Schema,
  value: unknown,
  path: readonly (string | number)[],
  locate: Locate,
  problems: Problem[],
  sources: Map<string, string>,
): unknown {
  const dotted = path.join(".");
  const note = (message: string, at = path): void => {
    problems.push({ path: at.join("."), source: locate(at), message });
  };
  if (schema.properties !== undefined) {
    // An empty section (`dram:` with nothing under it) reads as null and means no change.
    if (value === null) return {};
    if (!isMap(value)) {
      note(`expected a section with keys, got ${JSON.stringify(value)}`);
      return undefined;
    }
    const out: Record<string, unknown> = {};
    const names = Object.keys(schema.properties);
    for (const [key, child] of Object.entries(value)) {
      const childSchema = Object.hasOwn(schema.properties, key)
        ? schema.properties[key]
        : undefined;
      if (childSchema === undefined) note(`unknown key${suggestion(key, names)}`, [...path, key]);
      else out[key] = readTree(childSchema, child, [...path, key], locate, problems, sources);
    }
    return out;
  }
  sources.set(dotted, locate(path));
  if (schema.type === "array") {
    if (!Array.isArray(value)) {
      note(`expected a list, got ${JSON.stringify(value)}`);
      return undefined;
    }
    const items = schema.items ?? {};
    return value.map((item, index) =>
      readTree(items, item, [...path, index], locate, problems, sources),
    );
  }
  const read = readScalar(schema, value);
  const wrong = misfit(schema, read);
  if (wrong !== undefined) note(wrong);
  return read;
}
