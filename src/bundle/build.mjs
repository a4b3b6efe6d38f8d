// Bundles the program into plain JavaScript, so that a start loads a few files instead of some 200 through tsx. Run by
// npm's install script and by `npm run build:bundle`; src/launch.mjs runs the result as long as it is the sources' own.
//
// Modules go on finding what lies beside their sources (the page, the addon, scripts of other processes): their
// `import.meta.url` stays the source's address, told from the bundle's, so a checkout may be moved.
//
// A bundle is a folder of its own and is in force once manifest.json, renamed into place, names it. No start sees half
// of one, and a daemon that runs from an older one still finds the parts that it loads late.
import {
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { BUNDLES, digest, MANIFEST_VERSION, ROOT } from "./current.mjs";

/** What is started by name; everything else hangs on these. */
const ENTRIES = ["src/cli.ts", "src/edge/worker.ts"];
/** Packages without native code that a start waits for. */
const PACKAGES = ["yaml", "@msgpack/msgpack"];
/** They decide, too, what the bundle is. */
const SETTINGS = [
  "package.json",
  "tsconfig.json",
  "src/bundle/build.mjs",
  ...PACKAGES.map((name) => `node_modules/${name}/package.json`),
];
/** Its own address tells whether the bundle runs (place.ts). */
const ADDRESS_KEPT = "src/bundle/place.ts";
/** The new one, the one before, and one that another process may be making. */
const FOLDERS_KEPT = 3;
/** A later write could have the same ctime where clocks are coarse: such a file's content is compared. */
const CTIME_SETTLED_MS = 2_000;

/** Reads a file of this checkout and notes in `sources` what was read. */
function readSource(path, sources) {
  // The state before the read: a write in between makes it differ, never seem the same.
  const { ctimeMs } = statSync(ROOT + path);
  const bytes = readFileSync(ROOT + path);
  const settled = Date.now() - ctimeMs > CTIME_SETTLED_MS;
  sources[path] = [bytes.length, settled ? ctimeMs : 0, digest(bytes)];
  return bytes.toString("utf8");
}

function sourcesPlugin(sources) {
  const packages = new RegExp(`^(?:${PACKAGES.join("|")})$`);
  return {
    name: "sources",
    setup({ onLoad, onResolve }) {
      onResolve({ filter: packages }, ({ path }) => ({
        path: fileURLToPath(import.meta.resolve(path)),
      }));
      onLoad({ filter: /\.m?[jt]s$/ }, (file) => {
        const path = file.path.slice(ROOT.length);
        if (!file.path.startsWith(ROOT) || path.startsWith("node_modules/")) return undefined;
        const text = readSource(path, sources);
        const address = `new URL("../../../${path}", import.meta.url).href`;
        const contents =
          path === ADDRESS_KEPT ? text : text.replaceAll("import.meta.url", () => address);
        return { contents, loader: path.endsWith(".ts") ? "ts" : "js" };
      });
    },
  };
}

async function bundle(directory, sources) {
  const { metafile } = await build({
    absWorkingDir: ROOT,
    entryPoints: ENTRIES,
    entryNames: "[name]",
    outdir: directory,
    bundle: true,
    splitting: true,
    format: "esm",
    platform: "node",
    target: "node20",
    packages: "external",
    plugins: [sourcesPlugin(sources)],
    // yaml is CommonJS and requires modules of node; esbuild keeps the name `require` free in the bundle.
    banner: {
      js: 'import { createRequire as requireFrom } from "node:module";\nconst require = requireFrom(import.meta.url);',
    },
    // Read by `node --enable-source-maps` only.
    sourcemap: "linked",
    sourcesContent: false,
    metafile: true,
    logLevel: "warning",
  });
  const modules = Object.entries(metafile.outputs).filter(([path]) => path.endsWith(".js"));
  return Object.fromEntries(modules.map(([path, { bytes }]) => [basename(path), bytes]));
}

const folder = `${Date.now().toString(36)}-${process.pid}`;
const sources = {};
let outputs;
try {
  mkdirSync(BUNDLES + folder, { recursive: true });
  for (const path of SETTINGS) readSource(path, sources);
  outputs = await bundle(BUNDLES + folder, sources);
} catch (error) {
  rmSync(BUNDLES + folder, { recursive: true, force: true });
  console.error(`cairn: no bundle: starts run the sources and take longer: ${String(error)}`);
  // A checkout without all of its parts can be installed all the same.
  process.exit(process.argv.includes("--optional") ? 0 : 1);
}
const manifest = { version: MANIFEST_VERSION, folder, sources, outputs };
writeFileSync(`${BUNDLES}${folder}/manifest.json`, JSON.stringify(manifest));
renameSync(`${BUNDLES}${folder}/manifest.json`, `${BUNDLES}manifest.json`);
// Names begin with the time; the clock may have been set back.
const others = readdirSync(BUNDLES).filter((name) => name !== "manifest.json" && name !== folder);
for (const name of others.toSorted().slice(0, 1 - FOLDERS_KEPT)) {
  rmSync(BUNDLES + name, { recursive: true, force: true, maxRetries: 3 });
}
