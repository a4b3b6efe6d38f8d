/**
 * `cairn replay TRACE` — a workload trace on the pure ledger, or with --daemon through a real daemon with real bytes.
 *
 * --daemon starts a private daemon that evicts exactly on demand (watermarks at 100 %), so that its hits must equal
 * those of the pure replay; a second one at the production watermarks is printed beside it. With --socket the daemon
 * that runs there is used as it is, and only compared by bytes.
 */
import { parseArgs } from "node:util";
import { CairnError } from "../../src/errors.ts";
import { withDaemon } from "../daemon.ts";
import { significant } from "../statistics.ts";
import { type DaemonReplay, replayDaemon } from "./daemon.ts";
import { ON_DEMAND, PRODUCTION, type ReplayCounts, replayPure } from "./pure.ts";
import { replayTiers } from "./tiers.ts";
import { idealHits, readTrace, type Trace, TraceError } from "./trace.ts";

const EXIT_USAGE = 2;
const BLOCK_BYTES_DEFAULT = 4_096;
const BLOCK_BYTES_MAX = 64 * 2 ** 20;
const MIB = 2 ** 20;

const USAGE = `usage: cairn replay TRACE [--capacity-blocks N|inf] [--nvme-blocks N] [--policy lru] [--json]
       cairn replay TRACE --daemon [--capacity-blocks N] [--block-bytes BYTES] [--socket PATH] [--json]

TRACE: JSON lines (timestamp, input_length, output_length, hash_ids per 512-token block), or the same as .jsonl.xz;
- reads standard input.
--capacity-blocks: blocks the cache holds; 0 or inf (the default): as many as the trace names.
--nvme-blocks: blocks of an NVMe tier below; DRAM is then written back ahead of eviction and NVMe hits are promoted.`;

export interface ReplayCommand {
  readonly trace: string;
  /** 0 = infinite. */
  readonly capacityBlocks: number;
  /** 0 = no NVMe tier. */
  readonly nvmeBlocks: number;
  readonly daemon: boolean;
  readonly blockBytes: number;
  readonly socket: string | undefined;
  readonly json: boolean;
}

function whole(text: string, flag: string, minimum: number, maximum: number): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isSafeInteger(value) || value < minimum || value > maximum) {
    const range = `a whole number from ${minimum} to ${maximum}`;
    throw new CairnError("badRequest", `--${flag}: expected ${range}, got "${text}"`);
  }
  return value;
}

function parseOptions(args: readonly string[]) {
  return parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      "capacity-blocks": { type: "string", default: "0" },
      "nvme-blocks": { type: "string", default: "0" },
      policy: { type: "string", default: "lru" },
      daemon: { type: "boolean", default: false },
      "block-bytes": { type: "string", default: String(BLOCK_BYTES_DEFAULT) },
      socket: { type: "string" },
      json: { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
}

/** Parses the command line; undefined asks for the usage text. Throws CairnError badRequest. */
export function parseReplay(args: readonly string[]): ReplayCommand | undefined {
  let parsed: ReturnType<typeof parseOptions>;
  try {
    parsed = parseOptions(args);
  } catch (error) {
    // parseArgs explains itself in several lines; the first names the flag.
    const message = error instanceof Error ? error.message : String(error);
    throw new CairnError("badRequest", message.split("\n")[0] ?? message);
  }
  const { values, positionals } = parsed;
  const trace = positionals[0];
  if (values.help || trace === undefined) return undefined;
  if (positionals.length > 1) throw new CairnError("badRequest", "one trace at a time");
  if (values.policy !== "lru") {
    throw new CairnError("badRequest", `--policy: no policy "${values.policy}"; there is lru`);
  }
  const capacity = values["capacity-blocks"];
  const infinite = capacity === "inf" || capacity === "infinite";
  const blockBytes = whole(values["block-bytes"], "block-bytes", 64, BLOCK_BYTES_MAX);
  if (blockBytes % 4 !== 0) throw new CairnError("badRequest", "--block-bytes: a multiple of 4");
  const nvmeBlocks = whole(values["nvme-blocks"], "nvme-blocks", 0, 80_000_000);
  const daemon = values.daemon || values.socket !== undefined;
  if (nvmeBlocks > 0 && daemon) {
    throw new CairnError("badRequest", "--nvme-blocks: only on the pure ledger, not with --daemon");
  }
  return {
    trace,
    capacityBlocks: infinite ? 0 : whole(capacity, "capacity-blocks", 0, 80_000_000),
    nvmeBlocks,
    daemon,
    blockBytes,
    socket: values.socket,
    json: values.json,
  };
}

/** Pool bytes that surely hold `blocks` slots: header, rounding of rows and of slabs included. */
function poolBytes(blocks: number, blockBytes: number): number {
  const slotBytes = Math.ceil((blockBytes + 256) / 4_096) * 4_096;
  return Math.ceil((blocks * slotBytes * 1.05) / (64 * MIB) + 2) * 64 * MIB;
}

async function throughDaemon(
  trace: Trace,
  command: ReplayCommand,
  watermarks: typeof ON_DEMAND | typeof PRODUCTION,
): Promise<DaemonReplay> {
  const capacity = command.capacityBlocks === 0 ? trace.hashIds.length : command.capacityBlocks;
  const options = {
    capacityBytes: poolBytes(capacity, command.blockBytes),
    blocksMax: capacity,
    ...watermarks,
  };
  return withDaemon(options, (daemon) => replayDaemon(trace, daemon.socket, command.blockBytes));
}

type Fields = Readonly<Record<string, unknown>>;

/** Fields of a daemon run; `ok` is false for wrong or missing bytes, or another hit count than the pure replay. */
async function daemonFields(
  trace: Trace,
  command: ReplayCommand,
): Promise<{ fields: Fields; ok: boolean }> {
  const sound = (run: DaemonReplay): boolean => run.wrongBlocks === 0 && run.failedBlocks === 0;
  const { capacityBlocks, blockBytes, socket } = command;
  if (socket !== undefined) {
    const run = await replayDaemon(trace, socket, blockBytes);
    return { fields: { mode: "socket", blockBytes, ...rounded(run) }, ok: sound(run) };
  }
  const run = await throughDaemon(trace, command, ON_DEMAND);
  const production = await throughDaemon(trace, command, PRODUCTION);
  const pure = replayPure(trace, { capacityBlocks, ...ON_DEMAND });
  const equal = run.hits === pure.hits;
  const fields = {
    mode: "daemon",
    blockBytes,
    ...rounded(run),
    equalToPure: equal,
    pure,
    production: { ...PRODUCTION, ...rounded(production) },
  };
  return { fields, ok: equal && sound(run) && sound(production) };
}

function rounded(run: DaemonReplay): DaemonReplay {
  return { ...run, seconds: significant(run.seconds) };
}

function pureFields(trace: Trace, command: ReplayCommand): Fields {
  const { capacityBlocks, nvmeBlocks } = command;
  if (nvmeBlocks > 0) {
    return { mode: "tiers", nvmeBlocks, ...replayTiers(trace, { capacityBlocks, nvmeBlocks }) };
  }
  return { mode: "pure", ...replayPure(trace, { capacityBlocks, ...ON_DEMAND }) };
}

function printHuman(fields: Fields): void {
  const text = (value: unknown): string =>
    typeof value === "string" ? value : JSON.stringify(value);
  for (const [name, value] of Object.entries(fields)) {
    process.stdout.write(`${name.padEnd(16)} ${text(value)}\n`);
  }
}

async function run(command: ReplayCommand): Promise<number> {
  const trace = await readTrace(command.trace);
  const ideal = idealHits(trace);
  const answer = command.daemon
    ? await daemonFields(trace, command)
    : { fields: pureFields(trace, command), ok: true };
  const fields = {
    policy: "lru",
    capacityBlocks: command.capacityBlocks,
    ...answer.fields,
    idealHits: ideal,
    idealHitRate: trace.blocks === 0 ? 0 : ideal / trace.blocks,
  };
  if (command.json) process.stdout.write(`${JSON.stringify(fields)}\n`);
  else printHuman(fields);
  return answer.ok ? 0 : 1;
}

/** Runs the command; resolves to the exit code: 1 = wrong bytes or counts that differ, 2 = bad input. */
export async function replayMain(args: readonly string[]): Promise<number> {
  try {
    const command = parseReplay(args);
    if (command === undefined) {
      process.stdout.write(`${USAGE}\n`);
      return args.length === 0 ? EXIT_USAGE : 0;
    }
    return await run(command);
  } catch (error) {
    const expected = error instanceof CairnError || error instanceof TraceError;
    if (!expected) throw error;
    process.stderr.write(`cairn replay: ${error.message}\n`);
    return error instanceof TraceError || error.errorName === "badRequest" ? EXIT_USAGE : 1;
  }
}

export type { ReplayCounts };
