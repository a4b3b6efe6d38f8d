/**
 * `cairn top`: the same figures again and again. On a terminal it redraws one screen with plain ANSI; where
 * the output is no terminal, or TERM is dumb, it prints one line each time.
 */
import { formatBytes, formatSeconds } from "../config/units.ts";
import { CairnError } from "../errors.ts";
import { numberOption, readArguments } from "./arguments.ts";
import { EDGE_OPTIONS, edgeClient } from "./client.ts";
import { EXIT } from "./exit.ts";
import { bar, percent, printJson, printLine, rate } from "./output.ts";
import {
  healthWord,
  readStatus,
  type Stats,
  type Status,
  statusHead,
  statusTail,
} from "./status.ts";

const SPARKS = "▁▂▃▄▅▆▇█";
const HISTORY_MAX = 60;
/** For terminals that do not tell their size. */
const SCREEN_ROWS = 24;
const ENTER = "\u001b[?1049h\u001b[?25l";
const LEAVE = "\u001b[?25h\u001b[?1049l";
const HOME = "\u001b[H";
const CLEAR_LINE = "\u001b[K";
const CLEAR_BELOW = "\u001b[J";

/** A row of block characters, newest right; a gap where there is no data. */
export function spark(values: readonly (number | null)[], high: number): string {
  return values
    .map((value) => {
      if (value === null) return " ";
      const step = high > 0 ? Math.round((value / high) * (SPARKS.length - 1)) : 0;
      return SPARKS[Math.min(SPARKS.length - 1, Math.max(0, step))]!;
    })
    .join("");
}

/** One line for logs and dumb terminals. */
export function topLine(stats: Stats): string {
  const { recent, tiers, devices, remote, gauges } = stats;
  const { lookupSeconds: lookup, nvmeReadSeconds: read } = recent.latencySeconds;
  const filled = tiers.map((tier) => {
    const share = tier.capacityBytes > 0 ? tier.usedBytes / tier.capacityBytes : 0;
    return `${tier.tier} ${bar(share, 10)} ${percent(share)} of ${formatBytes(tier.capacityBytes)}`;
  });
  const ill = devices.filter(({ health, full }) => health !== "ok" || full);
  return [
    new Date(stats.atMs).toISOString().slice(11, 19),
    ...filled,
    `hit ${percent(recent.hitRate)}`,
    `${recent.lookupsPerSecond.toFixed(0)} look-ups/s`,
    lookup === null ? "p99 –" : `p99 ${formatSeconds(lookup.p99)}`,
    `on ${rate(recent.loadBytesPerSecond)}`,
    `off ${rate(recent.storeBytesPerSecond)}`,
    ...(read === null ? [] : [`disk read p99 ${formatSeconds(read.p99)}`]),
    `engines ${gauges.instances}`,
    `leases ${gauges.leases}`,
    ...ill.map(
      ({ directory, health, full }) => `${directory} ${healthWord(health)}${full ? ", full" : ""}`,
    ),
    ...(gauges.nvmeLeftOut > 0 ? [`disks left out ${gauges.nvmeLeftOut}`] : []),
    ...(remote === null || remote.health === "ok" ? [] : [`remote ${healthWord(remote.health)}`]),
  ].join("  ");
}

interface History {
  readonly hits: (number | null)[];
  readonly loads: number[];
  readonly stores: number[];
}

function remember({ hits, loads, stores }: History, { recent }: Stats): void {
  hits.push(recent.hitRate);
  loads.push(recent.loadBytesPerSecond);
  stores.push(recent.storeBytesPerSecond);
  for (const list of [hits, loads, stores]) if (list.length > HISTORY_MAX) list.shift();
}

function charts({ hits, loads, stores }: History): string {
  const high = Math.max(1, ...loads, ...stores);
  return [
    `hit rate   ${spark(hits, 1)}`,
    `onboarded  ${spark(loads, high)}`,
    `offloaded  ${spark(stores, high)}  (full height ${rate(high)})`,
  ].join("\n");
}

/** What does not fit is cut at the bottom, where the engines are; the last line is always kept. */
function draw(text: string, lastLine: string): void {
  const rows = process.stdout.rows > 0 ? process.stdout.rows : SCREEN_ROWS;
  const lines = [...text.split("\n").slice(0, Math.max(1, rows - 3)), "", lastLine];
  process.stdout.write(HOME + lines.map((line) => `${line}${CLEAR_LINE}\n`).join("") + CLEAR_BELOW);
}

function show(status: Status, history: History, failed: CairnError | undefined): void {
  const parts = [statusHead(status), charts(history), statusTail(status)];
  draw(parts.join("\n\n"), failed === undefined ? "q ends" : `no connection: ${failed.message}`);
}

/** Resolves after the interval, or as soon as the user wants to leave. */
function pause(milliseconds: number, leave: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      leave.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    leave.addEventListener("abort", done);
    if (leave.aborted) done();
  });
}

/** Full screen until q, Ctrl-C or SIGTERM; always gives the terminal back as it was. */
function openScreen(leave: AbortController): () => void {
  const stop = (): void => leave.abort();
  const onKey = (key: Buffer): void => {
    if (key.includes("q") || key.includes(3)) stop();
  };
  const { stdin } = process;
  process.stdout.write(ENTER);
  if (stdin.isTTY) stdin.setRawMode(true).on("data", onKey).resume();
  process.once("SIGTERM", stop);
  return () => {
    if (stdin.isTTY) stdin.setRawMode(false).off("data", onKey).pause();
    process.off("SIGTERM", stop);
    process.stdout.write(LEAVE);
  };
}

export async function topCommand(words: readonly string[]): Promise<number> {
  const parsed = readArguments(words, { ...EDGE_OPTIONS, interval: "string", count: "string" });
  const intervalMs = numberOption(parsed, "interval", 1, 0.2, 60) * 1_000;
  const count = numberOption(parsed, "count", Number.MAX_SAFE_INTEGER, 1, Number.MAX_SAFE_INTEGER);
  const client = edgeClient(parsed);
  // The first reading comes before the screen changes: a daemon that is not there is an ordinary error.
  let status = await readStatus(client);
  const screen = process.stdout.isTTY === true && process.env["TERM"] !== "dumb" && !parsed.json;
  const leave = new AbortController();
  const stop = (): void => leave.abort();
  process.once("SIGINT", stop);
  const close = screen ? openScreen(leave) : undefined;
  const history: History = { hits: [], loads: [], stores: [] };
  let failed: CairnError | undefined;
  for (let shown = 0; shown < count && !leave.signal.aborted; ) {
    if (failed === undefined) remember(history, status.stats);
    if (screen) show(status, history, failed);
    else if (failed !== undefined) process.stderr.write(`cairn: ${failed.message}\n`);
    else if (parsed.json) printJson(status);
    else printLine(topLine(status.stats));
    shown += 1;
    if (shown >= count) break;
    await pause(intervalMs, leave.signal);
    failed = undefined;
    try {
      status = await readStatus(client);
    } catch (error) {
      if (!(error instanceof CairnError)) throw error;
      failed = error;
    }
  }
  close?.();
  process.off("SIGINT", stop);
  return failed === undefined ? EXIT.OK : EXIT.FAILURE;
}
