import { createRequire } from "node:module";
import { dirname, isAbsolute, join } from "node:path";
import { fileURLToPath } from "node:url";
import { CairnError } from "../src/errors.ts";
import type { Addon } from "./binding.ts";

const require = createRequire(import.meta.url);
let loaded: Addon | undefined;

function addonPath(): string {
  return process.env["CAIRN_ADDON"] ?? "../build/Release/cairn.node";
}

/** Where a program lies that is built together with the addon. */
export function programPath(name: string): string {
  const folder = dirname(addonPath());
  if (isAbsolute(folder)) return join(folder, name);
  return join(dirname(fileURLToPath(import.meta.url)), folder, name);
}

/** The addon of this process. Throws addonMissing with the way to build it. */
export function loadAddon(): Addon {
  if (loaded !== undefined) return loaded;
  const path = addonPath();
  try {
    loaded = require(path) as Addon;
  } catch (error) {
    throw new CairnError("addonMissing", `cannot load ${path}: ${String(error)}`);
  }
  return loaded;
}
