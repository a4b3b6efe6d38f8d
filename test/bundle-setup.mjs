// Before any suite: makes the bundle anew where it is not the sources' own.
import { execFileSync } from "node:child_process";
import { currentBundle, ROOT } from "../src/bundle/current.mjs";

export function setup() {
  if (currentBundle() === undefined) {
    execFileSync(process.execPath, [`${ROOT}src/bundle/build.mjs`], { stdio: "inherit" });
  }
}
