/** `cairn config check|show|reference`. */
import { writeFileSync } from "node:fs";
import { stringify } from "yaml";
import { suggestion } from "../config/nearest.ts";
import { configReference, errorReference } from "../config/reference.ts";
import { configOf, type ParsedArguments, readArguments } from "./arguments.ts";
import { EXIT, UsageError } from "./exit.ts";
import { printJson, printLine } from "./output.ts";

function check(parsed: ParsedArguments): number {
  const { config, file, sources } = configOf(parsed);
  if (parsed.json)
    printJson({ valid: true, file: file ?? null, config, sources: Object.fromEntries(sources) });
  else printLine(`configuration is valid (${file ?? "no file: defaults, environment and flags"})`);
  return EXIT.OK;
}

function show(parsed: ParsedArguments): number {
  const { config, file, sources } = configOf(parsed);
  if (parsed.json) {
    printJson({ file: file ?? null, config, sources: Object.fromEntries(sources) });
    return EXIT.OK;
  }
  printLine(`# ${file ?? "no file"}; set: ${sources.size === 0 ? "nothing" : ""}`);
  for (const [path, source] of sources) printLine(`#   ${path} (${source})`);
  printLine(stringify(config).trimEnd());
  return EXIT.OK;
}

function reference(parsed: ParsedArguments): number {
  const pages = { "docs/config.md": configReference(), "docs/errors.md": errorReference() };
  if (parsed.values.get("write") !== "true") {
    if (parsed.json) printJson(pages);
    else process.stdout.write(pages["docs/config.md"]);
    return EXIT.OK;
  }
  for (const [path, text] of Object.entries(pages))
    writeFileSync(new URL(`../../${path}`, import.meta.url), text);
  if (parsed.json) printJson({ written: Object.keys(pages) });
  else printLine(`wrote ${Object.keys(pages).join(" and ")}`);
  return EXIT.OK;
}

const ACTIONS: Readonly<Record<string, (parsed: ParsedArguments) => number>> = {
  check,
  show,
  reference,
};

export async function configCommand(words: readonly string[]): Promise<number> {
  const parsed = readArguments(words, { write: "boolean" }, 1);
  const name = parsed.positionals[0];
  if (name === undefined) throw new UsageError("config needs one of: check, show, reference");
  const action = Object.hasOwn(ACTIONS, name) ? ACTIONS[name] : undefined;
  if (action === undefined)
    throw new UsageError(`unknown: config ${name}${suggestion(name, Object.keys(ACTIONS))}`);
  return action(parsed);
}
