import { createRequire } from "node:module";
import { CairnError } from "../src/errors.ts";
import type { Addon } from "./binding.ts";

const require = createRequire(import.meta.url);
let loaded: Addon | undefined;

/** The addon of this process. Throws addonMissing with the way to build it. */
export function loadAddon(): Addon {
  if (loaded !== undefined) return loaded;
  const path = process.env["CAIRN_ADDON"] ?? "../build/Release/cairn.node";
  try {
    loaded = require(path) as Addon;
  } catch (error) {
    throw new CairnError("addonMissing", `cannot load ${path}: ${String(error)}`);
  }
  return loaded;
}
