/** `cairn demo`: command line, output and clean-up of the demo. */
import { parseArgs } from "node:util";
import { Demo, FULL, QUICK, type Size } from "./demo.ts";
import { LowerDemo, lowerSummary } from "./lower-tiers.ts";
import { summary } from "./report.ts";
import { Stage } from "./stage.ts";

/**
 * Runs the demo. `--nvme`: its second part, with disks and a shared directory; `--quick`: a smaller model; `--json`:
 * the result as one JSON object on the last line of standard output, progress on standard error.
 * @returns the exit code: 0 if everything held, 1 if not
 */
export async function demoMain(args: readonly string[]): Promise<number> {
  const { values } = parseArgs({
    args: [...args],
    options: {
      json: { type: "boolean", default: false },
      nvme: { type: "boolean", default: false },
      quick: { type: "boolean", default: false },
    },
  });
  const progress = values.json ? process.stderr : process.stdout;
  const say = (line: string): void => void progress.write(`${line}\n`);
  const size = values.quick ? QUICK : FULL;
  if (values.nvme) return lowerDemo(size, say, values.json);
  const stage = new Stage();
  const interrupted = (): void => {
    stage.abandon();
    process.exit(130);
  };
  process.once("SIGINT", interrupted);
  process.once("SIGTERM", interrupted);
  try {
    const result = await new Demo(stage, size, say).run();
    say(summary(result));
    if (values.json) process.stdout.write(`${JSON.stringify(result)}\n`);
    return result.ok ? 0 : 1;
  } finally {
    process.off("SIGINT", interrupted);
    process.off("SIGTERM", interrupted);
    await stage.close();
  }
}

async function lowerDemo(size: Size, say: (line: string) => void, json: boolean): Promise<number> {
  const demo = new LowerDemo(size, say);
  const interrupted = (): void => {
    demo.abandon();
    process.exit(130);
  };
  process.once("SIGINT", interrupted);
  process.once("SIGTERM", interrupted);
  try {
    const result = await demo.run();
    say(lowerSummary(result));
    if (json) process.stdout.write(`${JSON.stringify(result)}\n`);
    return result.ok ? 0 : 1;
  } finally {
    process.off("SIGINT", interrupted);
    process.off("SIGTERM", interrupted);
    await demo.close();
  }
}
