/**
 * `cairn verify-engine vllm`: the Python package's acceptance test against the daemon of this host. The engine runs in
 * its own Python; this command finds the daemon's socket, looks that this Python has what it takes, and hands over.
 */
import { execFile, spawn } from "node:child_process";
import { delimiter } from "node:path";
import { fileURLToPath } from "node:url";
import { configOf, readArguments } from "./arguments.ts";
import { EXIT, UsageError } from "./exit.ts";

const SOURCES = fileURLToPath(new URL("../../connectors/python/src", import.meta.url));
const ENGINES: readonly string[] = ["vllm"];
const DTYPES: readonly string[] = ["float32", "bfloat16"];
/** Prints those of its arguments that cannot be imported; imports none of them, which would take long. */
const FIND_MODULES =
  "import importlib.util, sys; print(*(n for n in sys.argv[1:] if importlib.util.find_spec(n) is None))";

export async function verifyEngineCommand(words: readonly string[]): Promise<number> {
  const parsed = readArguments(words, { python: "string", dtype: "string" }, 1);
  const [engine] = parsed.positionals;
  if (engine === undefined || !ENGINES.includes(engine)) {
    throw new UsageError(`verify-engine takes one of: ${ENGINES.join(", ")}`);
  }
  const python = parsed.values.get("python") ?? "python3";
  const dtype = parsed.values.get("dtype") ?? "float32";
  if (!DTYPES.includes(dtype)) throw new UsageError(`--dtype takes one of: ${DTYPES.join(", ")}`);
  const lacking = await modulesMissing(python, ["msgspec", engine]);
  if (lacking !== "") {
    throw new UsageError(`--python ${python} lacks ${lacking}: name the engine's own Python`);
  }
  const { socket } = configOf(parsed).config.engineApi;
  const call = ["-m", "cairn_kv.verify", engine, "--socket", socket, "--dtype", dtype];
  if (parsed.json) call.push("--json");
  const path = [SOURCES, process.env["PYTHONPATH"] ?? ""].filter((entry) => entry !== "");
  const env = { ...process.env, PYTHONPATH: path.join(delimiter) };
  return new Promise((resolve, reject) => {
    const child = spawn(python, call, { stdio: ["ignore", "inherit", "inherit"], env });
    child.on("error", reject);
    child.on("close", (code) => {
      resolve(code ?? EXIT.FAILURE);
    });
  });
}

/** Of these modules those that this Python does not have, with commas. @throws UsageError it cannot be run */
async function modulesMissing(python: string, modules: readonly string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile(python, ["-c", FIND_MODULES, ...modules], (error, stdout) => {
      if (error === null) resolve(stdout.trim().replaceAll(" ", ", "));
      else reject(new UsageError(`--python ${python} cannot be run: ${error.message}`));
    });
  });
}
