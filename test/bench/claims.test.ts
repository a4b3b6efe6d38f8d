/** The figures of docs/claims.md and the README are those of bench/results: whoever measures anew writes them anew. */
import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { BenchResult } from "../../bench/result.ts";

const root = new URL("../../", import.meta.url);
const read = (path: string): string => readFileSync(new URL(path, root), "utf8");
const claims = read("docs/claims.md");
const readme = read("README.md");

/** The last of this scenario's results: names begin with the day. */
function lastResult(name: string): BenchResult {
  const files = readdirSync(new URL("bench/results/", root)).filter(
    (file) => file.replace(/^\d{4}-\d{2}-\d{2}-/, "") === `${name}.json`,
  );
  return JSON.parse(read(`bench/results/${files.toSorted().at(-1)}`)) as BenchResult;
}

const millions = (value: number): string => (value / 1e6).toFixed(2);
const fixed = (value: number, digits: number): string => value.toFixed(digits);
/** As claims.md writes shares: without the zero in front. */
const share = (value: number): string => value.toFixed(2).replace(/^0/, "");
/** Of a speed beside a reference: the median of the pairs' ratios. */
const pairs = (result: BenchResult): number => result.checks[0]?.value ?? Number.NaN;

/** What a document must say, made of the results it speaks of. */
const STATEMENTS: readonly (readonly [string, string, (name: string) => string])[] = [
  ["commit", claims, (name) => `${lastResult(name).value.toLocaleString("en")} blocks a second`],
  ["commit", readme, (name) => `| ${millions(lastResult(name).value)} M |`],
  ["dram", claims, (name) => `**${fixed(pairs(lastResult(name)), 2)} times memcpy**`],
  ["dram", readme, (name) => `÷ memcpy | ${fixed(pairs(lastResult(name)), 2)} |`],
  ["lookup-1m", claims, (name) => `${fixed(lastResult(name).value, 1)} µs at 1 M blocks`],
  ["lookup-10m", claims, (name) => `${fixed(lastResult(name).value, 1)} µs at 10 M`],
  ["lookup-walk-1m", claims, (name) => `${fixed(lastResult(name).value, 0)} ns a block at 1 M`],
  ["lookup-walk-10m", claims, (name) => `${fixed(lastResult(name).value, 0)} ns at 10 M`],
  ["lookup-socket", claims, (name) => free(name)],
  ["memory-1m", claims, (name) => `${fixed(lastResult(name).value, 1)} bytes a block at 1 M`],
  ["nvme-read", claims, (name) => `read ${fixed(lastResult(name).value, 2)} GB/s`],
  ["nvme-write", claims, (name) => `write ${fixed(lastResult(name).value, 2)} GB/s`],
  ["nvme-read", claims, (name) => `**${fixed(pairs(lastResult(name)), 2)} times fio** at depth 16`],
  ["nvme-write", claims, (name) => `**${fixed(pairs(lastResult(name)), 2)} times fio** at depth 8`],
  ["remote-get-versitygw", claims, () => remote("get")],
  ["remote-put-versitygw", claims, () => remote("put")],
  ["restart", claims, (name) => `${fixed(lastResult(name).value, 2)} s from exec`],
  ["restart", readme, (name) => `1 M blocks | ${fixed(lastResult(name).value, 2)} s |`],
  ["restart-nvme", claims, (name) => `${fixed(lastResult(name).value, 2)} s (`],
  ["restart-index", claims, (name) => `--json\`): ${fixed(lastResult(name).value, 2)} s from`],
  ["restart-nvme", readme, (name) => `index read | ${fixed(lastResult(name).value, 2)} s |`],
];

function free(name: string): string {
  const { checks } = lastResult(name);
  const p50 = checks.find((one) => one.name === "idle p50, free")?.value ?? Number.NaN;
  return `Left to the scheduler: p50 ${fixed(p50, 1)} µs`;
}

function remote(way: string): string {
  const [one, other] = ["versitygw", "minio"].map((server) =>
    share(pairs(lastResult(`remote-${way}-${server}`))),
  );
  return `${way} ${one} and ${other} times`;
}

describe("a figure that is stated is the one that was measured", () => {
  it.each(STATEMENTS)("%s", (name, document, statement) => {
    expect(document).toContain(statement(name));
  });
});
