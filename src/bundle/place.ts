/**
 * Where this program runs from: its sources, or the bundle that is made of them at install (build.mjs). The bundler
 * leaves the address of this module as it is, and gives every other module the address of its source.
 */
import { basename } from "node:path";

export const bundled = !import.meta.url.endsWith(".ts");

/** The module that a thread is started with. `source`: an entry of build.mjs, from the root of the checkout. */
export function entryUrl(source: string): URL {
  const path = bundled ? `./${basename(source, ".ts")}.js` : `../../${source}`;
  return new URL(path, import.meta.url);
}
