/** `cairn daemon`: reads the command line and hands over to src/main.ts. */
import { readArguments } from "./arguments.ts";

export async function daemonCommand(words: readonly string[]): Promise<number> {
  const parsed = readArguments(words, {});
  const { runDaemon } = await import("../main.ts");
  return runDaemon(parsed.sources);
}
