/**
 * `cairn verify-engine vllm`: the Python package's acceptance test against the daemon of this host. The engine runs in
 * its own Python; this command finds the daemon's socket and hands over.
 */
import { spawn } from "node:child_process";
import { delimiter } from "node:path";
import { fileURLToPath } from "node:url";
import { configOf, readArguments } from "./arguments.ts";
import { EXIT, UsageError } from "./exit.ts";

const SOURCES = fileURLToPath(new URL("../../connectors/python/src", import.meta.url));
const ENGINES: readonly string[] = ["vllm"];

export async function verifyEngineCommand(words: readonly string[]): Promise<number> {
  const parsed = readArguments(words, { python: "string", dtype: "string" }, 1);
  const [engine] = parsed.positionals;
  if (engine === undefined || !ENGINES.includes(engine)) {
    throw new UsageError(`verify-engine takes one of: ${ENGINES.join(", ")}`);
  }
  const python = parsed.values.get("python") ?? "python3";
  const dtype = parsed.values.get("dtype") ?? "float32";
  const { socket } = configOf(parsed).config.engineApi;
  const call = ["-m", "cairn_kv.verify", engine, "--socket", socket, "--dtype", dtype];
  if (parsed.json) call.push("--json");
  const path = [SOURCES, process.env["PYTHONPATH"] ?? ""].filter((entry) => entry !== "");
  const env = { ...process.env, PYTHONPATH: path.join(delimiter) };
  return new Promise((resolve, reject) => {
    const child = spawn(python, call, { stdio: ["ignore", "inherit", "inherit"], env });
    child.on("error", (error) => {
      reject(new UsageError(`--python ${python} cannot be started: ${error.message}`));
    });
    child.on("close", (code) => {
      resolve(code ?? EXIT.FAILURE);
    });
  });
}
