/** The command line. A thin dispatcher: each command's modules are loaded only when it runs. */
import { runCli } from "./cli/run.ts";

process.exitCode = await runCli(process.argv.slice(2));
