/** `cairn config check|show|migrate|reference`. */
import { writeFileSync } from "node:fs";
import { stringify } from "yaml";
import { suggestion } from "../config/nearest.ts";
import { configReference, errorReference } from "../config/reference.ts";
import { configInForce, type ParsedArguments, readArguments } from "./arguments.ts";
import { EXIT, UsageError } from "./exit.ts";
import { printJson, printLine } from "./output.ts";

type Action = (parsed: ParsedArguments, behind: readonly string[]) => number | Promise<number>;

async function check(parsed: ParsedArguments): Promise<number> {
  const { config, file, sources } = await configInForce(parsed);
  if (parsed.json)
    printJson({ valid: true, file: file ?? null, config, sources: Object.fromEntries(sources) });
  else printLine(`configuration is valid (${file ?? "no file: defaults, environment and flags"})`);
  return EXIT.OK;
}

async function show(parsed: ParsedArguments): Promise<number> {
  const { config, file, sources } = await configInForce(parsed);
  if (parsed.json) {
    printJson({ file: file ?? null, config, sources: Object.fromEntries(sources) });
    return EXIT.OK;
  }
  printLine(`# ${file ?? "no file"}; set: ${sources.size === 0 ? "nothing" : ""}`);
  for (const [path, source] of sources) printLine(`#   ${path} (${source})`);
  printLine(stringify(config).trimEnd());
  return EXIT.OK;
}

async function reference(parsed: ParsedArguments): Promise<number> {
  const { migrationReference } = await import("../config/migrate/reference.ts");
  const pages = {
    "docs/config.md": configReference(),
    "docs/errors.md": errorReference(),
    "docs/migration.md": migrationReference(),
  };
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

async function migrate(parsed: ParsedArguments, behind: readonly string[]): Promise<number> {
  return (await import("./config-migrate.ts")).migrateConfig(parsed, behind);
}

const ACTIONS: Readonly<Record<string, Action>> = { check, show, migrate, reference };
const MIGRATE_OPTIONS = { lmcache: "string", env: "boolean", workers: "string" } as const;

export async function configCommand(words: readonly string[]): Promise<number> {
  // What stands behind `--` is a command line of another program.
  const end = words.includes("--") ? words.indexOf("--") : words.length;
  const ours = words.slice(0, end);
  const options = ours.includes("migrate") ? MIGRATE_OPTIONS : { write: "boolean" as const };
  const parsed = readArguments(ours, options, 1);
  const name = parsed.positionals[0];
  const names = Object.keys(ACTIONS);
  if (name === undefined) throw new UsageError(`config needs one of: ${names.join(", ")}`);
  const action = Object.hasOwn(ACTIONS, name) ? ACTIONS[name] : undefined;
  if (action === undefined)
    throw new UsageError(`unknown: config ${name}${suggestion(name, names)}`);
  const behind = words.slice(end + 1);
  if (behind.length > 0 && name !== "migrate") throw new UsageError(`unexpected "${behind[0]}"`);
  return action(parsed, behind);
}
