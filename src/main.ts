/** Wiring of `cairn daemon`: configuration, log, signals, exit code. */
import { pino } from "pino";
import { type ConfigSources, loadConfig } from "./config/load.ts";
import { createDaemon, type Daemon, type Logger } from "./daemon.ts";
import { packageVersion } from "./cli/version.ts";

/** Exit codes: 0 stopped in order, 1 could not start or serve on (the error is in the log). */
export async function runDaemon(sources: ConfigSources): Promise<number> {
  const { config, file } = loadConfig(sources);
  const logger: Logger = pino({ level: config.log.level, base: null }, pino.destination(2));
  if (file !== undefined) logger.info({ file }, "configuration");
  const daemon = createDaemon(config, { logger, version: packageVersion() });
  await daemon.start();
  return new Promise((resolve) => {
    onSignals(daemon, sources, logger, resolve);
  });
}

function onSignals(
  daemon: Daemon,
  sources: ConfigSources,
  logger: Logger,
  exit: (code: number) => void,
): void {
  const stop = (): void => {
    logger.info({}, "stopping; once more stops at once");
    const again = (): void => void daemon.stop(true);
    process.on("SIGTERM", again).on("SIGINT", again);
    daemon.stop().then(
      () => exit(0),
      (error: unknown) => {
        logger.error({ error: String(error) }, "could not stop in order");
        exit(1);
      },
    );
  };
  process.once("SIGTERM", stop);
  process.once("SIGINT", stop);
  process.on("SIGHUP", () => {
    reload(daemon, sources).catch((error: unknown) => {
      logger.error({ error: String(error) }, "reload refused; the old configuration stays");
    });
  });
}

async function reload(daemon: Daemon, sources: ConfigSources): Promise<void> {
  await daemon.reload(() => loadConfig(sources).config);
}
