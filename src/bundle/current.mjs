// Whether the bundle in dist/bundle (made by build.mjs) is this checkout's own. Code that is not the sources' may never
// run, so each of them that went into it is looked at: size and time of last change as they were when it was read, else
// its content. Packages are known by their version. The kernel sets ctime itself, at every write, so no tool that keeps mtimes can hide a change. Plain
// JavaScript with two of node's own modules, because every start runs it first.
import { readFileSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** Root of the checkout, with a slash at its end. */
export const ROOT = fileURLToPath(new URL("../../", import.meta.url));
/** Holds manifest.json, and a folder for each bundle that is kept. */
export const BUNDLES = `${ROOT}dist/bundle/`;
/** Of the manifest: { version, folder, sources: path → [bytes, ctimeMs, sha256], outputs: name → bytes }. */
export const MANIFEST_VERSION = 1;

/** Lower-case hex. */
export function digest(bytes) {
  return process.getBuiltinModule("node:crypto").createHash("sha256").update(bytes).digest("hex");
}

function isSame(path, [bytes, ctimeMs, sha256]) {
  const status = statSync(path);
  if (status.size !== bytes) return false;
  return status.ctimeMs === ctimeMs || digest(readFileSync(path)) === sha256;
}

/** Folder of the bundle, with a slash at its end; undefined where there is none, or it is damaged or not the sources' own. */
export function currentBundle() {
  try {
    const text = readFileSync(`${BUNDLES}manifest.json`, "utf8");
    const { version, folder, sources, outputs } = JSON.parse(text);
    if (version !== MANIFEST_VERSION) return undefined;
    for (const path of Object.keys(sources)) {
      if (!isSame(ROOT + path, sources[path])) return undefined;
    }
    const directory = `${BUNDLES}${folder}/`;
    for (const name of Object.keys(outputs)) {
      if (statSync(directory + name).size !== outputs[name]) return undefined;
    }
    return directory;
  } catch {
    // Whatever is wrong with it, the sources are there.
    return undefined;
  }
}
