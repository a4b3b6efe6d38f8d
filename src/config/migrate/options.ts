/**
 * What a reader of another program's configuration is made of. Each program has a table of its options, and each
 * option one fate: it becomes a setting here, it has a counterpart at the engine's connector, it is missing here, or
 * nobody needs it. A reader sorts what is given by that table; of what becomes settings it makes groups, each taken
 * or left as a whole. Every option that is given ends as exactly one note, so nothing is dropped silently.
 *
 * Values are quoted in notes only where they are sizes or paths that were taken: the rest may be a secret.
 */
import type { InheritedGroup } from "../load.ts";
import { suggestion } from "../nearest.ts";

export type Fate = "mapped" | "engine" | "missing" | "needless";

export interface ForeignOption {
  /** As its program writes it; a last `*` stands for any rest. */
  readonly name: string;
  readonly fate: Fate;
  /** Paths of settings (mapped), or the connector's option (engine); else none. */
  readonly becomes: readonly string[];
  /** What differs, or why there is nothing to set. */
  readonly remark: string;
}

/** One option that was given. */
export interface Given {
  readonly name: string;
  /** Text from variables and flags; from a file as YAML reads it. */
  readonly value: unknown;
  /** Such as `LMCACHE_CHUNK_SIZE`, `lmcache.yaml:3 chunk_size`, `--chunk-size`. */
  readonly source: string;
  /** Why its value cannot be read at all. */
  readonly fault?: string;
}

/** Settings that are taken or left as a whole. */
export type Group = InheritedGroup;

/** What became of one option. */
export interface Note {
  readonly source: string;
  /** `refused`: the option is known and what it says cannot be used. */
  readonly fate: Fate | "refused" | "unknown";
  readonly text: string;
  /** For `mapped`. */
  readonly group?: Group;
}

export interface Reading {
  readonly groups: readonly Group[];
  readonly notes: readonly Note[];
}

export function mapped(name: string, becomes: readonly string[], remark: string): ForeignOption {
  return { name, fate: "mapped", becomes, remark };
}

export function atEngine(name: string, becomes: string, remark: string): ForeignOption {
  return { name, fate: "engine", becomes: [becomes], remark };
}

export function missing(remark: string, names: readonly string[]): ForeignOption[] {
  return names.map((name) => ({ name, fate: "missing", becomes: [], remark }));
}

export function needless(remark: string, names: readonly string[]): ForeignOption[] {
  return names.map((name) => ({ name, fate: "needless", becomes: [], remark }));
}

/** The row of a name: its own, else the longest that ends in `*` and fits. */
export function optionOf(table: readonly ForeignOption[], name: string): ForeignOption | undefined {
  const own = table.find((row) => row.name === name);
  if (own !== undefined) return own;
  return table
    .filter((row) => row.name.endsWith("*") && name.startsWith(row.name.slice(0, -1)))
    .toSorted((left, right) => right.name.length - left.name.length)[0];
}

const SHOWN_MAX = 400;

/** Text of others on one line of ours: no control characters, nothing that ends a comment, not endless. */
export function shown(text: string): string {
  const clean = text.replaceAll(/[\p{C}\p{Zl}\p{Zp}]/gu, "?");
  return clean.length > SHOWN_MAX ? `${clean.slice(0, SHOWN_MAX)}…` : clean;
}

/**
 * The one text that a value is: of a list its items, with commas between. A tree is none, and need not even have a
 * text: as a file may name any key, `toString` may be a number.
 */
export function plainText(value: unknown): string {
  const items = Array.isArray(value) ? (value as readonly unknown[]) : [value];
  const one = (item: unknown): string =>
    typeof item === "object" && item !== null ? "{}" : String(item);
  return items.map(one).join(",");
}

/** A number as Python's float() reads what such a file or variable holds; undefined: it is none. */
export function numberOf(value: unknown): number | undefined {
  if (typeof value === "number") return Number.isFinite(value) ? value : undefined;
  if (typeof value !== "string") return undefined;
  return /^\s*\d+(\.\d*)?(e\+?\d+)?\s*$/i.test(value) ? Number(value) : undefined;
}

/** `true`, `1`, `yes`, `on` and their opposites; undefined: neither. */
export function booleanOf(value: unknown): boolean | undefined {
  const word = plainText(value).trim().toLowerCase();
  if (["true", "1", "yes", "on"].includes(word)) return true;
  return ["false", "0", "no", "off"].includes(word) ? false : undefined;
}

export const GIB = 2 ** 30;
export const GB = 1e9;
const BYTES_MAX = 2 ** 50;

/** Bytes of so many units, or why that is no size. */
export function sizeOf(value: unknown, unit: number): number | string {
  const count = numberOf(value);
  if (count === undefined) return "it is no number";
  const bytes = Math.floor(count * unit);
  if (bytes <= 0) return "0 bytes hold nothing";
  return bytes <= BYTES_MAX ? bytes : "it is more than 1 PiB";
}

/** Bytes as cairn.yaml writes them; exact. */
export function sizeText(bytes: number): string | number {
  if (bytes % GIB === 0) return `${bytes / GIB}GiB`;
  if (bytes % GB === 0) return `${bytes / GB}GB`;
  return bytes;
}

/** Options that turn something on. */
const SWITCH = /(?:^|[._-])(?:enable|use)[_-]/i;

/** What is given, sorted by a table; a reader takes the mapped options out of it one by one. */
export class Draft {
  readonly #groups: Group[] = [];
  readonly #notes: Note[] = [];
  readonly #open = new Map<string, Given[]>();

  constructor(table: readonly ForeignOption[], given: Iterable<Given>) {
    for (const one of given) this.#sort(one, table);
  }

  #sort(given: Given, table: readonly ForeignOption[]): void {
    const { name, value, fault } = given;
    const row = optionOf(table, name);
    if (fault !== undefined) this.refuse(given, fault);
    else if (row === undefined) this.#unknown(given, table);
    else if (value === null) this.#note(given, "needless", "it is not set (null)");
    else if (row.fate === "mapped") this.#open.set(name, [...(this.#open.get(name) ?? []), given]);
    else if (row.fate === "engine")
      this.#note(given, "engine", `${row.becomes[0]} of the connector's options: ${row.remark}`);
    else if (row.fate === "missing" && SWITCH.test(name) && booleanOf(value) === false)
      this.#note(given, "needless", "it is off");
    else this.#note(given, row.fate, row.remark);
  }

  /** All that is given of this option, which is the caller's to note from here on. */
  takeAll(name: string): readonly Given[] {
    const taken = this.#open.get(name) ?? [];
    this.#open.delete(name);
    return taken;
  }

  /** Of an option given more than once the last counts. */
  take(name: string): Given | undefined {
    const all = this.takeAll(name);
    for (const earlier of all.slice(0, -1)) this.refuse(earlier, "it is given again later");
    return all.at(-1);
  }

  refuse(given: Given, why: string): void {
    this.#note(given, "refused", why);
  }

  refuseAll(given: readonly Given[], why: string): void {
    for (const one of given) this.refuse(one, why);
  }

  /** Makes one group of what these options say. */
  group(
    from: readonly Given[],
    settings: Group["settings"],
    remark: string,
    fields: readonly string[] = settings.map(({ path }) => path),
  ): void {
    const source = from.map((given) => given.source).join(", ");
    const group: Group = { source, fields, settings };
    this.#groups.push(group);
    const text = settings.map(({ path, value }) => `${path}: ${JSON.stringify(value)}`).join(", ");
    const whole = remark === "" ? text : `${text} (${remark})`;
    for (const [index, given] of from.entries()) {
      const said = index === 0 ? whole : `with ${from[0]!.source}`;
      this.#notes.push({ source: given.source, fate: "mapped", text: said, group });
    }
  }

  end(): Reading {
    for (const left of this.#open.values()) {
      for (const given of left) this.refuse(given, "alone it sets nothing");
    }
    this.#open.clear();
    return { groups: this.#groups, notes: this.#notes };
  }

  #unknown(given: Given, table: readonly ForeignOption[]): void {
    const hint = suggestion(
      given.name,
      table.map(({ name }) => name),
    );
    this.#note(given, "unknown", `no option by this name is known${hint}`);
  }

  #note({ source }: Given, fate: Note["fate"], text: string): void {
    this.#notes.push({ source, fate, text });
  }
}
