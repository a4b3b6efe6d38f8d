/** What a scenario file exports. The runner (cli.ts) holds the table of them. */
import type { Measurement } from "./result.ts";

export interface ScenarioOptions {
  /** Blocks resident before measuring; undefined = the scenario's own. */
  readonly residentBlocks: number | undefined;
  readonly repetitions: number;
  /** S3 server of the remote scenarios (s3-servers.ts); absent = their own choice. */
  readonly server?: string | undefined;
}

export interface Scenario {
  readonly name: string;
  /** One line for `cairn bench --help`. */
  readonly summary: string;
  readonly run: (options: ScenarioOptions) => Promise<Measurement>;
}
