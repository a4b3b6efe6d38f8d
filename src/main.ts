/**
 * Wiring of `cairn daemon`: configuration, log, signals, exit code. The readers of the indexes take longest of all that
 * a start waits for: they begin as soon as the configuration is known, and the daemon's own modules are loaded beside.
 */
import { type EventEmitter, once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { inherit, type PoolFault } from "./config/inherit.ts";
import { type ConfigSources, loadConfig } from "./config/load.ts";
import type { Daemon, Logger } from "./daemon.ts";
import { probeIndexes } from "./daemon/probes.ts";

/** What the last work at a file system that is not hanging may take at the end. */
const ANSWER_MS = 1_000;
/** What the last lines of the log may take to be written: whoever reads them may have gone. */
const LOG_MS = 1_000;

async function loadPoolFault(): Promise<PoolFault> {
  return (await import("./daemon/pool-fit.ts")).poolFault;
}

/** Exit codes: 0 stopped in order, 1 could not start or serve on (the error is in the log). */
export async function runDaemon(own: ConfigSources): Promise<number> {
  const { sources, warnings } = await inherit(own, loadPoolFault);
  const { config, file } = loadConfig(sources);
  const probes = probeIndexes(config.nvme);
  const { pino } = await import("pino");
  const { packageVersion } = await import("./cli/version.ts");
  const { createDaemon } = await import("./daemon.ts");
  const log = pino.destination(2);
  const logger: Logger = pino({ level: config.log.level, base: null }, log);
  if (file !== undefined) logger.info({ file }, "configuration");
  for (const { source, text } of warnings) logger.warn({ variable: source }, text);
  const daemon = createDaemon(config, { logger, version: packageVersion(), probes });
  await daemon.start();
  return new Promise((resolve) => {
    onSignals(daemon, sources, logger, () => leave(logger, log, resolve), resolve);
  });
}

function onSignals(
  daemon: Daemon,
  sources: ConfigSources,
  logger: Logger,
  stopped: () => Promise<void>,
  exit: (code: number) => void,
): void {
  const stop = (): void => {
    logger.info({}, "stopping; once more stops at once");
    const again = (): void => void daemon.stop(true);
    process.on("SIGTERM", again).on("SIGINT", again);
    daemon.stop().then(stopped, (error: unknown) => {
      logger.error({ error: String(error) }, "could not stop in order");
      exit(1);
    });
  };
  process.once("SIGTERM", stop);
  process.once("SIGINT", stop);
  process.on("SIGHUP", () => {
    reload(daemon, sources).catch((error: unknown) => {
      logger.error({ error: String(error) }, "reload refused; the old configuration stays");
    });
  });
}

/** Where lines go: they are written some time after they were logged. */
interface LogFile extends EventEmitter {
  end(): void;
}

/** Ends the process in order, unless a file system that hangs holds a thread of it: Node would wait for that for ever. */
async function leave(logger: Logger, log: LogFile, exit: (code: number) => void): Promise<void> {
  const { unended } = await import("../tiers/under-way.ts");
  const complaints = await unended(ANSWER_MS);
  if (complaints.length === 0) return exit(0);
  logger.warn({}, `${complaints.join("; ")}; the process is killed, not ended`);
  // Lines are written beside the event loop, and nothing else is left to write them.
  const written = once(log, "close").catch(() => undefined);
  log.end();
  await Promise.race([written, sleep(LOG_MS)]);
  process.kill(process.pid, "SIGKILL");
}

async function reload(daemon: Daemon, sources: ConfigSources): Promise<void> {
  await daemon.reload(() => loadConfig(sources).config);
}
