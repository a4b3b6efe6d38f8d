#!/usr/bin/env -S UV_THREADPOOL_SIZE=16 node
// The executable. Runs the bundle that was made at install as long as it is the sources' own, else the sources through
// tsx: what runs is always what is written, and a start does not wait for the loading of some 200 TypeScript modules.
import { pathToFileURL } from "node:url";
import { currentBundle } from "./bundle/current.mjs";

const bundle = currentBundle();
if (bundle === undefined) {
  const { register } = await import("tsx/esm/api");
  register();
  await import("./cli.ts");
} else {
  await import(pathToFileURL(`${bundle}cli.js`).href);
}
