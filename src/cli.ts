#!/usr/bin/env -S UV_THREADPOOL_SIZE=16 node --import tsx
/** The one executable. A thin dispatcher: each command's modules are loaded only when it runs. */
import { runCli } from "./cli/run.ts";

process.exitCode = await runCli(process.argv.slice(2));
