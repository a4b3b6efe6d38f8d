/**
 * Finds the command, runs it, and turns whatever it throws into one line (or one JSON object) and an exit
 * code: 0 ok, 1 failure, 2 usage or configuration.
 */
import { CairnError } from "../errors.ts";
import { suggestion } from "../config/nearest.ts";
import { COMMANDS } from "./commands.ts";
import { asUsage, EXIT, failureBody, UsageError } from "./exit.ts";
import { printJson } from "./output.ts";

function overview(): string {
  const width = Math.max(...COMMANDS.map(({ name }) => name.length));
  const rows = COMMANDS.map(({ name, summary }) => `  ${name.padEnd(width)}  ${summary}`);
  return [
    "cairn: the daemon that owns every KV-cache block of an inference node",
    "",
    "usage: cairn COMMAND [options]",
    "",
    ...rows,
    "",
    "`cairn help COMMAND` tells more. Every command takes --json (one object on the last line).",
    "Settings: cairn.yaml, CAIRN_* variables, flags such as --dram.capacityBytes 64GiB (docs/config.md).",
    "Exit codes: 0 ok, 1 failure, 2 usage or configuration.",
  ].join("\n");
}

function report(error: unknown, json: boolean): number {
  const body = failureBody(error);
  if (json) printJson({ error: body });
  process.stderr.write(`cairn: ${body.message}\n`);
  if (error instanceof UsageError) return EXIT.USAGE;
  if (body.action !== "" && body.action !== "None.") process.stderr.write(`  ${body.action}\n`);
  if (
    !(error instanceof CairnError) &&
    error instanceof Error &&
    process.env["CAIRN_TEST_TRACE"] === "1"
  )
    process.stderr.write(`${error.stack ?? ""}\n`);
  return body.name === "configInvalid" ? EXIT.USAGE : EXIT.FAILURE;
}

function help(topic: string | undefined, json: boolean): number {
  if (json) {
    const chosen = COMMANDS.filter(({ name }) => topic === undefined || name === topic);
    if (chosen.length === 0) throw unknownCommand(topic ?? "");
    printJson({ commands: chosen.map(({ name, summary, usage }) => ({ name, summary, usage })) });
    return EXIT.OK;
  }
  if (topic === undefined) {
    process.stdout.write(`${overview()}\n`);
    return EXIT.OK;
  }
  const command = COMMANDS.find(({ name }) => name === topic);
  if (command === undefined) throw unknownCommand(topic);
  process.stdout.write(`${command.usage}\n`);
  return EXIT.OK;
}

function unknownCommand(name: string): UsageError {
  const names = [...COMMANDS.map((command) => command.name), "help"];
  return new UsageError(`unknown command "${name}"${suggestion(name, names)}`);
}

/** Runs one command line; returns the exit code. Never throws. */
export async function runCli(words: readonly string[]): Promise<number> {
  const [name, ...rest] = words;
  const json = rest.includes("--json");
  try {
    if (name === undefined || name === "--help" || name === "-h") return help(undefined, json);
    if (name === "help")
      return help(
        rest.find((word) => !word.startsWith("-")),
        json,
      );
    const wanted = name === "--version" || name === "-v" ? "version" : name;
    const command = COMMANDS.find((one) => one.name === wanted);
    if (command === undefined) throw unknownCommand(name);
    const asksHelp = !command.ownHelp && (rest.includes("--help") || rest.includes("-h"));
    return asksHelp ? help(wanted, json) : await command.run(rest);
  } catch (error) {
    return report(asUsage(error), json);
  }
}
