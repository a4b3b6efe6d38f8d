/**
 * Runs the model over many seeds: `soak.ts FIRST_SEED OPERATIONS`. Its own process, because the test
 * runner's module loader makes calls between modules many times slower. Prints one JSON line; a failure
 * names its seed and step.
 */
import { configOf } from "./forest.ts";
import { Model } from "./model.ts";

const STEPS = 1_500;
const first = Number(process.argv[2] ?? 1);
const operations = Number(process.argv[3] ?? 100_000);
const counts: Record<string, number> = {};
let done = 0;
for (let seed = first; done < operations; seed += 1) {
  const model = new Model(configOf(seed));
  for (let step = 0; step < STEPS; step += 1, done += 1) {
    try {
      model.step();
    } catch (error) {
      console.error(`seed ${seed}, step ${step}, config ${JSON.stringify(model.config)}`);
      throw error;
    }
  }
  for (const [name, count] of Object.entries(model.counts))
    counts[name] = (counts[name] ?? 0) + count;
}
console.log(JSON.stringify({ operations: done, counts }));
