/**
 * Writing and checking the configuration's schema without typebox's code: that is seven hundred modules, more than
 * half of what a daemon loads before it can read its configuration. The types are typebox's own (so `Static` reads
 * the schema), the values plain JSON Schema; a test holds this checker and typebox's against each other.
 */
import type { Type as TypeBox } from "typebox";
import { assert } from "../assert.ts";

type Builders = "Array" | "Boolean" | "Integer" | "Literal" | "Number" | "Object" | "Optional";
type Options = Readonly<Record<string, unknown>>;

const OPTIONAL = "~optional";

/** typebox's builders, as far as ConfigSchema uses them. */
export const Type = {
  Array: (items: object, options?: Options) => ({ type: "array", items, ...options }),
  Boolean: (options?: Options) => ({ type: "boolean", ...options }),
  Enum: (values: readonly string[], options?: Options) => ({ enum: values, ...options }),
  Integer: (options?: Options) => ({ type: "integer", ...options }),
  Literal: (value: string, options?: Options) => ({ type: typeof value, const: value, ...options }),
  Number: (options?: Options) => ({ type: "number", ...options }),
  Object: (properties: Readonly<Record<string, object>>, options?: Options) => {
    const required = Object.keys(properties).filter((key) => !isOptional(properties[key]!));
    return { type: "object", ...(required.length > 0 ? { required } : {}), properties, ...options };
  },
  /** Marked where JSON does not show it: the mark is the object's around it. */
  Optional: (schema: object) => Object.defineProperty({ ...schema }, OPTIONAL, { value: true }),
  String: (options?: Options) => ({ type: "string", ...options }),
  Union: (anyOf: readonly object[], options?: Options) => ({ anyOf, ...options }),
  Unsafe: (schema: object) => schema,
} as unknown as Pick<typeof TypeBox, Builders | "Enum" | "String" | "Union" | "Unsafe">;

function isOptional(schema: object): boolean {
  return OPTIONAL in schema;
}

/** What the checker understands; a schema with any other keyword is refused (a programming fault). */
export interface Shape {
  readonly type?: string;
  readonly properties?: Readonly<Record<string, Shape>>;
  readonly required?: readonly string[];
  readonly additionalProperties?: boolean;
  readonly items?: Shape;
  readonly anyOf?: readonly Shape[];
  readonly enum?: readonly string[];
  readonly const?: string;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly minItems?: number;
  readonly maxItems?: number;
}

/** Keywords that say nothing about a value. */
const NOTES = ["default", "description", "reload", "unit"];
const CHECKED = [
  ...["type", "properties", "required", "additionalProperties", "items", "anyOf", "enum", "const"],
  ...["minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"],
];
const KNOWN: ReadonlySet<string> = new Set([...NOTES, ...CHECKED]);

export interface Misshape {
  /** Keys from the root on, joined by dots. */
  readonly path: string;
  readonly message: string;
}

/** Everything in a value that its shape does not allow; empty: it fits. */
export function misshapes(shape: Shape, value: unknown, path = ""): readonly Misshape[] {
  for (const keyword of Object.keys(shape)) assert(KNOWN.has(keyword), `no check of ${keyword}`);
  const wrong = (message: string): readonly Misshape[] => [{ path, message }];
  if (shape.anyOf !== undefined) {
    const fits = shape.anyOf.some((one) => misshapes(one, value, path).length === 0);
    return fits ? [] : wrong("must match one of its kinds");
  }
  if (shape.enum !== undefined) {
    return shape.enum.includes(value as string) ? [] : wrong(`must be one of ${shape.enum.join()}`);
  }
  if (!isOfType(shape.type, value)) return wrong(`must be of type ${shape.type}`);
  if (shape.const !== undefined && value !== shape.const) return wrong(`must be ${shape.const}`);
  if (typeof value === "number") {
    return between(value, shape.minimum, shape.maximum) ? [] : wrong("is out of range");
  }
  if (typeof value === "string") {
    const fits = between(Array.from(value).length, shape.minLength, shape.maxLength);
    return fits ? [] : wrong("is too short or too long");
  }
  if (Array.isArray(value)) return inArray(shape, value, path);
  return typeof value === "object" && value !== null ? inObject(shape, value, path) : [];
}

function isOfType(type: string | undefined, value: unknown): boolean {
  if (type === "integer") return Number.isInteger(value);
  if (type === "number") return Number.isFinite(value);
  if (type === "array") return Array.isArray(value);
  if (type === "object") {
    return typeof value === "object" && value !== null && !Array.isArray(value);
  }
  assert(type === "string" || type === "boolean", "a shape names its type");
  return typeof value === type;
}

function between(value: number, least = -Infinity, most = Infinity): boolean {
  return value >= least && value <= most;
}

function inArray(shape: Shape, values: readonly unknown[], path: string): readonly Misshape[] {
  const { items } = shape;
  const found: Misshape[] = [];
  if (!between(values.length, shape.minItems, shape.maxItems)) {
    found.push({ path, message: "has too few or too many items" });
  }
  if (items === undefined) return found;
  for (const [index, value] of values.entries()) {
    found.push(...misshapes(items, value, joined(path, String(index))));
  }
  return found;
}

function inObject(shape: Shape, value: object, path: string): readonly Misshape[] {
  const properties = new Map(Object.entries(shape.properties ?? {}));
  const found: Misshape[] = [];
  for (const key of shape.required ?? []) {
    if (!Object.hasOwn(value, key)) found.push({ path, message: `must have ${key}` });
  }
  for (const [key, child] of Object.entries(value)) {
    const known = properties.get(key);
    if (known !== undefined) found.push(...misshapes(known, child, joined(path, key)));
    else if (shape.additionalProperties === false) {
      found.push({ path: joined(path, key), message: "is not known here" });
    }
  }
  return found;
}

function joined(path: string, key: string): string {
  return path === "" ? key : `${path}.${key}`;
}
