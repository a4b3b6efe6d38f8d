// Builds the native addon with node-gyp. Node's own headers are used when they are installed beside
// the node binary (Debian, most containers), so that a machine without internet access builds too.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const require = createRequire(import.meta.url);
const nodeGyp = require.resolve("node-gyp/bin/node-gyp.js");
const prefix = join(dirname(process.execPath), "..");
const headersBeside = existsSync(join(prefix, "include", "node", "node_api.h"));
const args = [nodeGyp, "rebuild", "--jobs", "2", ...process.argv.slice(2)];
if (headersBeside) args.push(`--nodedir=${prefix}`);
const result = spawnSync(process.execPath, args, { cwd: root, stdio: "inherit" });
if (result.status !== 0) {
  console.error(
    "cairn: the native addon did not build; a C++20 compiler, make and python3 are needed.",
  );
}
process.exit(result.status ?? 1);
