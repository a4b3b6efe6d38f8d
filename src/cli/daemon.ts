/** `cairn daemon`: reads the command line and hands over to src/main.ts. */
import type { ConfigSources } from "../config/load.ts";
import { readArguments } from "./arguments.ts";
import { mainOf } from "./siblings.ts";

/** src/main.ts: loads the configuration, tells its problems before anything is opened, serves until it is told to stop, resolves with the exit code. */
export type RunDaemon = (sources: ConfigSources) => Promise<number>;

export async function daemonCommand(words: readonly string[]): Promise<number> {
  const parsed = readArguments(words, {});
  const runDaemon = await mainOf<RunDaemon>("../main.ts", "runDaemon");
  return runDaemon(parsed.sources);
}
