/**
 * Commands that live beside the node core: demo, bench, replay and the daemon itself. They are found by file
 * at run time, so that nothing of them is loaded, or even compiled, for the other commands.
 */
import { CairnError } from "../errors.ts";

type Main = (...args: readonly never[]) => Promise<number>;

/** The function `name` of a module of this checkout. throws internal when it is not there. */
export async function mainOf<F extends Main>(path: string, name: string): Promise<F> {
  const module = (await import(new URL(path, import.meta.url).href)) as Readonly<
    Record<string, unknown>
  >;
  const main = module[name];
  if (typeof main !== "function") throw new CairnError("internal", `${path} has no ${name}`);
  return main as F;
}

type WordsMain = (words: readonly string[]) => Promise<number>;

export async function demoCommand(words: readonly string[]): Promise<number> {
  return (await mainOf<WordsMain>("../../connectors/node/demo/cli.ts", "demoMain"))(words);
}

export async function benchCommand(words: readonly string[]): Promise<number> {
  return (await mainOf<WordsMain>("../../bench/cli.ts", "benchMain"))(words);
}

export async function replayCommand(words: readonly string[]): Promise<number> {
  return (await mainOf<WordsMain>("../../bench/replay/cli.ts", "replayMain"))(words);
}
