/**
 * A tokenizer-level reader of TypeScript and C++ for the house rules: it blanks comments and the inside of
 * literals (same length, same lines), then finds functions by matching parentheses and braces.
 *
 * It is a heuristic, not a parser. It errs towards reporting one function too many: a type literal after an arrow
 * counts as a body, which only matters when that literal is longer than a function may be.
 */
export type Language = "ts" | "cpp";

export interface FunctionSpan {
  readonly name: string;
  /** First line, from 1. */
  readonly line: number;
  readonly lines: number;
}

const REGEX_BEFORE =
  /(?:^|[([{},;:=!&|?+\-*%<>~^]|\b(?:return|typeof|case|in|of|do|else|throw|await|yield))\s*$/;
const TS_CONTROL = new Set([
  "if",
  "for",
  "while",
  "switch",
  "catch",
  "with",
  "await",
  "return",
  "do",
  "else",
]);
const CPP_CONTROL = new Set([
  "if",
  "for",
  "while",
  "switch",
  "catch",
  "constexpr",
  "return",
  "alignas",
  "decltype",
  "sizeof",
]);

interface Cursor {
  readonly source: string;
  readonly out: string[];
  at: number;
}

function blank(cursor: Cursor, to: number): void {
  for (; cursor.at < to && cursor.at < cursor.source.length; cursor.at += 1) {
    if (cursor.source[cursor.at] !== "\n") cursor.out[cursor.at] = " ";
  }
}

function indexAfter(source: string, needle: string, from: number): number {
  const found = source.indexOf(needle, from);
  return found < 0 ? source.length : found + needle.length;
}

/** Index after the closing quote; an unescaped newline ends a broken literal. */
function quotedEnd(source: string, from: number, quote: string): number {
  for (let at = from + 1; at < source.length; at += 1) {
    if (source[at] === "\\") at += 1;
    else if (source[at] === quote || source[at] === "\n") return at + 1;
  }
  return source.length;
}

function regexEnd(source: string, from: number): number {
  let inClass = false;
  for (let at = from + 1; at < source.length; at += 1) {
    const character = source[at];
    if (character === "\\") at += 1;
    else if (character === "\n") return at;
    else if (character === "[") inClass = true;
    else if (character === "]") inClass = false;
    else if (character === "/" && !inClass) return at + 1;
  }
  return source.length;
}

/** Blanks the text of a template literal and keeps what stands inside `${…}`. */
function blankTemplate(cursor: Cursor): void {
  cursor.at += 1;
  while (cursor.at < cursor.source.length) {
    const character = cursor.source[cursor.at];
    if (character === "`") {
      cursor.at += 1;
      return;
    }
    if (character === "$" && cursor.source[cursor.at + 1] === "{") {
      cursor.at += 2;
      blankCode(cursor, "ts", true, false);
    } else blank(cursor, cursor.at + (character === "\\" ? 2 : 1));
  }
}

function isRawString(source: string, at: number): boolean {
  return source.startsWith('R"', at) && !/\w/.test(source[at - 1] ?? "");
}

function blankCode(
  cursor: Cursor,
  language: Language,
  nested: boolean,
  keepStrings: boolean,
): void {
  const { source } = cursor;
  let depth = 0;
  while (cursor.at < source.length) {
    const at = cursor.at;
    const character = source[at] as string;
    if (source.startsWith("//", at)) {
      const end = source.indexOf("\n", at);
      blank(cursor, end < 0 ? source.length : end);
    } else if (source.startsWith("/*", at)) blank(cursor, indexAfter(source, "*/", at + 2));
    else if (language === "cpp" && isRawString(source, at)) {
      const open = source.indexOf("(", at);
      blank(cursor, indexAfter(source, `)${source.slice(at + 2, open)}"`, open));
    } else if (character === "'" && language === "cpp" && /\w/.test(source[at - 1] ?? ""))
      cursor.at += 1;
    else if (character === '"' || character === "'") {
      const end = quotedEnd(source, at, character);
      cursor.at += 1;
      if (!keepStrings) blank(cursor, end - 1);
      cursor.at = end;
    } else if (character === "`" && language === "ts") blankTemplate(cursor);
    else if (character === "/" && language === "ts" && REGEX_BEFORE.test(lastCode(cursor))) {
      blank(cursor, regexEnd(source, at));
    } else {
      if (character === "{") depth += 1;
      if (character === "}") depth -= 1;
      cursor.at += 1;
      if (nested && depth < 0) return;
    }
  }
}

function lastCode(cursor: Cursor): string {
  return cursor.out.slice(Math.max(0, cursor.at - 40), cursor.at).join("");
}

/** Source with comments and literal text blanked. With keepStrings, quoted strings stay (to read imports). */
export function stripSource(source: string, language: Language, keepStrings = false): string {
  const cursor: Cursor = { source, out: source.split(""), at: 0 };
  blankCode(cursor, language, false, keepStrings);
  const text = cursor.out.join("");
  if (language === "ts") return text;
  return text.replace(/^[ \t]*#(?:[^\n]*\\\n)*[^\n]*/gm, (line) => line.replace(/[^\n]/g, " "));
}

const OPENERS: Record<string, string> = { "(": ")", "{": "}", "[": "]" };

/** Index of the bracket that closes the one at `at`, or -1. */
function matching(text: string, at: number): number {
  const open = text[at] as string;
  const close = OPENERS[open] as string;
  let depth = 0;
  for (let index = at; index < text.length; index += 1) {
    if (text[index] === open) depth += 1;
    else if (text[index] === close) {
      depth -= 1;
      if (depth === 0) return index;
    }
  }
  return -1;
}

function skipSpace(text: string, at: number): number {
  let index = at;
  while (index < text.length && /\s/.test(text[index] as string)) index += 1;
  return index;
}

/** Body `{` of a TypeScript function whose parameter list closes at `close`, or -1. */
function bodyAfterTs(text: string, close: number): number {
  let at = skipSpace(text, close + 1);
  if (text[at] === "{") return at;
  if (text[at] !== ":") return -1;
  let previous = ":";
  at += 1;
  while (at < text.length) {
    const character = text[at] as string;
    if (/\s/.test(character)) at += 1;
    else if (
      character === "{" &&
      !/[:|&<,([>=]/.test(previous) &&
      !/\bis\s*$/.test(text.slice(0, at))
    )
      return at;
    else if (character === "{" && previous === ">" && !/=>\s*$/.test(text.slice(0, at))) return at;
    else if (character in OPENERS) {
      const end = matching(text, at);
      if (end < 0) return -1;
      previous = text[end] as string;
      at = end + 1;
    } else if (/[;,)}\]]/.test(character) && !isInsideAngle(text, close, at)) return -1;
    else if (character === "=" && text[at + 1] !== ">") return -1;
    else {
      previous = character;
      at += 1;
    }
  }
  return -1;
}

/** A comma inside `Map<a, b>` does not end a return type. */
function isInsideAngle(text: string, from: number, at: number): boolean {
  const span = text.slice(from, at).replace(/=>/g, "");
  return span.split("<").length > span.split(">").length;
}

/** Body `{` of a C++ function whose parameter list closes at `close`, or -1. */
function bodyAfterCpp(text: string, close: number): number {
  let at = close + 1;
  const rest =
    /^(?:\s|const\b|noexcept\b(?:\s*\([^)]*\))?|override\b|final\b|mutable\b|&{1,2}|->\s*[\w:<>,\s*&]+?(?=\s*\{))*/;
  at += rest.exec(text.slice(at))?.[0].length ?? 0;
  if (text[at] === "{") return at;
  if (text[at] !== ":" || text[at + 1] === ":") return -1;
  at += 1;
  while (at < text.length) {
    const name = /^\s*[\w:<>]+\s*/.exec(text.slice(at));
    if (name === null) return -1;
    at += name[0].length;
    if (text[at] !== "(" && text[at] !== "{") return -1;
    const end = matching(text, at);
    if (end < 0) return -1;
    at = skipSpace(text, end + 1);
    if (text[at] === "{") return at;
    if (text[at] !== ",") return -1;
    at += 1;
  }
  return -1;
}

function lineOf(text: string, at: number): number {
  let line = 1;
  for (
    let index = text.indexOf("\n");
    index >= 0 && index < at;
    index = text.indexOf("\n", index + 1)
  )
    line += 1;
  return line;
}

/** Every function with a body: declarations, methods, arrows with a block, lambdas. */
export function functionSpans(source: string, language: Language): FunctionSpan[] {
  const text = stripSource(source, language);
  const spans: FunctionSpan[] = [];
  const add = (name: string, from: number, body: number): void => {
    const end = matching(text, body);
    if (end < 0) return;
    const line = lineOf(text, from);
    spans.push({ name, line, lines: lineOf(text, end) - line + 1 });
  };
  for (let at = 0; at < text.length; at += 1) {
    if (language === "ts" && text.startsWith("=>", at)) {
      const body = skipSpace(text, at + 2);
      if (text[body] === "{") add("=>", at, body);
    }
    if (text[at] !== "(") continue;
    const before = /(#?[\w$~]+|\]|>)\s*$/.exec(text.slice(Math.max(0, at - 80), at));
    const name = before?.[1];
    if (name === undefined) continue;
    if ((language === "ts" ? TS_CONTROL : CPP_CONTROL).has(name)) continue;
    const close = matching(text, at);
    if (close < 0) continue;
    const body = language === "ts" ? bodyAfterTs(text, close) : bodyAfterCpp(text, close);
    if (body >= 0) add(name, at, body);
  }
  return spans;
}

export interface ImportOf {
  readonly target: string;
  /** `import type` or `export type`: nothing of it runs. */
  readonly typeOnly: boolean;
}

/** Modules that a TypeScript source names by import, export-from, import() or a relative `.ts` string. */
export function importsOf(source: string): ImportOf[] {
  const text = stripSource(source, "ts", true);
  const found: ImportOf[] = [];
  const statement = /\b(import|export)\s+(type\s)?(?:[^;"'()]*?\bfrom\s*)?["']([^"'\n]+)["']/g;
  for (const match of text.matchAll(statement)) {
    const named = /\{([^}]*)\}/.exec(match[0]);
    const allTypes =
      named !== null &&
      /\b(?:import|export)\s*\{/.test(match[0]) &&
      (named[1] as string)
        .split(",")
        .every((one) => one.trim() === "" || /^type\s/.test(one.trim()));
    found.push({ target: match[3] as string, typeOnly: match[2] !== undefined || allTypes });
  }
  for (const match of text.matchAll(/["'](\.{1,2}\/[^"'\n]+\.m?[jt]s)["']/g)) {
    const target = match[1] as string;
    if (!found.some((one) => one.target === target)) found.push({ target, typeOnly: false });
  }
  for (const match of text.matchAll(/\bimport\(\s*["']([^"'\n]+)["']\s*\)/g)) {
    const target = match[1] as string;
    if (!found.some((one) => one.target === target)) found.push({ target, typeOnly: false });
  }
  return found;
}
