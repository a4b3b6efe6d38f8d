/**
 * `cairn bench NAME` — one runner for every scenario. Each prints one JSON object (with --json, as its last line) of
 * the shape in result.ts; without --json, a short table. A bar that is missed is a result, not a failure of the
 * command, unless --enforce is given; wrong bytes or a daemon that does not start are failures.
 */
import { parseArgs } from "node:util";
import { CairnError } from "../src/errors.ts";
import { MissingTool } from "./fio.ts";
import { type BenchResult, loadNow, passed, toResult } from "./result.ts";
import { rivalsMain } from "./rivals.ts";
import type { Scenario, ScenarioOptions } from "./scenario.ts";
import { commit } from "./scenarios/commit.ts";
import { dram } from "./scenarios/dram.ts";
import { lookup, lookupWalk } from "./scenarios/lookup.ts";
import { lookupPython } from "./scenarios/lookup-python.ts";
import { lookupSocket } from "./scenarios/lookup-socket.ts";
import { memory } from "./scenarios/memory.ts";
import { nvmeRead, nvmeWrite } from "./scenarios/nvme-device.ts";
import { remoteGet, remotePut } from "./scenarios/remote-transfer.ts";
import { restart } from "./scenarios/restart.ts";
import { restartIndex } from "./scenarios/restart-index.ts";
import { restartNvme } from "./scenarios/restart-nvme.ts";
import { vllmOverhead } from "./scenarios/vllm-overhead.ts";

export const SCENARIOS: readonly Scenario[] = [
  lookup,
  lookupWalk,
  lookupSocket,
  dram,
  commit,
  memory,
  restart,
  nvmeRead,
  nvmeWrite,
  restartNvme,
  restartIndex,
  remoteGet,
  remotePut,
  lookupPython,
  vllmOverhead,
];

const REPETITIONS_DEFAULT = 5;
const EXIT_USAGE = 2;

export interface BenchCommand {
  readonly name: string;
  readonly json: boolean;
  readonly enforce: boolean;
  readonly options: ScenarioOptions;
}

export function benchUsage(): string {
  const rows = [...SCENARIOS.map((one) => [one.name, one.summary] as const), ...EXTRA_ROWS];
  const table = rows.map(([name, summary]) => `  ${name.padEnd(14)} ${summary}`).join("\n");
  return (
    "usage: cairn bench NAME [--json] [--enforce] [--resident BLOCKS] [--repetitions N] [--server S3]\n\n" +
    `${table}\n\n--enforce: exit 1 when a bar is missed.`
  );
}

const EXTRA_ROWS = [
  ["all", "every scenario above, one after another"],
  ["rivals", "the JSON lines of the side-by-side comparison with other caches"],
] as const;

/** Reads a whole number of at least 1. Throws CairnError badRequest. */
function positive(text: string | undefined, flag: string): number | undefined {
  if (text === undefined) return undefined;
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1) {
    throw new CairnError("badRequest", `--${flag}: expected a whole number above 0, got "${text}"`);
  }
  return value;
}

/** Parses the command line; undefined asks for the usage text. Throws CairnError badRequest. */
export function parseBench(args: readonly string[]): BenchCommand | undefined {
  let parsed: ReturnType<typeof parseOptions>;
  try {
    parsed = parseOptions(args);
  } catch (error) {
    // parseArgs explains itself in several lines; the first names the flag.
    const message = error instanceof Error ? error.message : String(error);
    throw new CairnError("badRequest", message.split("\n")[0] ?? message);
  }
  const { values, positionals } = parsed;
  const name = positionals[0];
  if (values.help === true || name === undefined) return undefined;
  if (positionals.length > 1) throw new CairnError("badRequest", "one scenario at a time, or all");
  const known = [...SCENARIOS.map((one) => one.name), ...EXTRA_ROWS.map((row) => row[0])];
  if (!known.includes(name)) {
    throw new CairnError("badRequest", `no scenario ${name}; there are ${known.join(", ")}`);
  }
  return {
    name,
    json: values.json === true,
    enforce: values.enforce === true,
    options: {
      residentBlocks: positive(values.resident, "resident"),
      repetitions: positive(values.repetitions, "repetitions") ?? REPETITIONS_DEFAULT,
      server: values.server,
    },
  };
}

function parseOptions(args: readonly string[]) {
  return parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      json: { type: "boolean" },
      enforce: { type: "boolean" },
      help: { type: "boolean", short: "h" },
      resident: { type: "string" },
      repetitions: { type: "string" },
      server: { type: "string" },
    },
  });
}

export function humanLines(result: BenchResult): string {
  const reference =
    result.reference === null ? "" : `, ${result.reference} ${result.reference_value}`;
  const head = `${result.scenario}: ${result.value} ${result.unit} (ratio ${result.ratio}, bar ${result.bar}${reference})`;
  const rows = result.checks.map((one) => {
    const sign = one.sense === "atMost" ? "≤" : "≥";
    const mark = one.passed ? "ok  " : "MISS";
    return `  ${mark} ${one.name}: ${one.value} ${one.unit} ${sign} ${one.bar}`;
  });
  return [head, ...rows, `  load ${result.load.join(" → ")}, ${result.machine}`].join("\n");
}

async function runScenario(scenario: Scenario, options: ScenarioOptions): Promise<BenchResult> {
  const loadBefore = loadNow();
  return toResult(scenario.name, await scenario.run(options), loadBefore);
}

/** Runs the command; resolves to the exit code. */
export async function benchMain(args: readonly string[]): Promise<number> {
  let command: BenchCommand | undefined;
  try {
    command = parseBench(args);
  } catch (error) {
    if (!(error instanceof CairnError)) throw error;
    process.stderr.write(`cairn bench: ${error.message}\n`);
    return EXIT_USAGE;
  }
  if (command === undefined) {
    process.stdout.write(`${benchUsage()}\n`);
    return args.length === 0 ? EXIT_USAGE : 0;
  }
  if (command.name === "rivals") return rivalsMain(command.json);
  const { name, json } = command;
  const chosen = SCENARIOS.filter((one) => name === "all" || name === one.name);
  const results: BenchResult[] = [];
  let missing = false;
  for (const scenario of chosen) {
    try {
      const result = await runScenario(scenario, command.options);
      results.push(result);
      process.stdout.write(`${json ? JSON.stringify(result) : humanLines(result)}\n`);
    } catch (error) {
      if (!(error instanceof MissingTool)) throw error;
      process.stderr.write(`cairn bench: ${scenario.name}: ${error.message}\n`);
      missing = true;
    }
  }
  if (missing) return EXIT_USAGE;
  return command.enforce && !results.every(passed) ? 1 : 0;
}
