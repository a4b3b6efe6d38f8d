/** docs/faults.md is held to the code: its counters exist, its tests exist, and those of disks look at these counters. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { METRICS } from "../../src/observe/metrics.ts";
import { NVME_EVENT_LABELS, NVME_EVENTS } from "../../src/observe/metrics-lower.ts";

const root = new URL("../../", import.meta.url).pathname;
const page = readFileSync(`${root}docs/faults.md`, "utf8");
const KEY_OF = new Map(Object.entries(METRICS).map(([key, { name }]) => [name as string, key]));
const NAMES = [...KEY_OF.keys()];

/** Rows of the page's tables: cells, without the outer bars. */
const rows = page
  .split("\n")
  .filter((line) => line.startsWith("| ") && !line.startsWith("| fault |"))
  .map((line) =>
    line
      .slice(1, -1)
      .split(/(?<!\\)\|/)
      .map((cell) => cell.trim()),
  );
/** The section on disks has a number, and names a test in each row. */
const DISK_COLUMNS = 6;
const diskRows = rows.filter(
  (cells) => cells.length === DISK_COLUMNS && cells[0] !== "#" && cells[0] !== "34",
);

/** Counters of a cell: `cairn_…`, or `…end` of one that a row above spells out. */
function countersOf(cell: string): string[] {
  const quoted = [...cell.matchAll(/`(cairn_|…)([a-z_]+)/g)];
  return quoted.flatMap(([, start, rest]) => {
    if (start === "cairn_") return [`cairn_${rest}`];
    // In the section on disks "…" stands for cairn_nvme_, elsewhere for some name above.
    const long = NAMES.filter((name) => name.endsWith(rest ?? ""));
    return [long.find((name) => name === `cairn_nvme_${rest}`) ?? long[0] ?? `…${rest}`];
  });
}

/** Files of a name in the last column. */
function testsOf(name: string): string[] {
  const places = [`test/${name}.test.ts`, `${name}.test.ts`, `test/fault/${name}.test.ts`];
  const found = places.filter((path) => existsSync(root + path));
  if (found.length > 0 || !existsSync(root + name)) return found;
  return readdirSync(root + name).map((file) => `${name}/${file}`);
}

describe("the page of faults", () => {
  it("names counters that /metrics has", () => {
    const named = rows.flatMap((cells) => cells.flatMap(countersOf));
    expect(named.length).toBeGreaterThan(40);
    expect(named.filter((name) => !KEY_OF.has(name))).toEqual([]);
  });

  it("names events of disks that are counted", () => {
    const events = [...page.matchAll(/\{event="([a-z_]+)"\}/g)].map(([, event]) => event ?? "");
    expect(events.length).toBeGreaterThan(5);
    expect(events.filter((event) => !NVME_EVENT_LABELS.includes(event))).toEqual([]);
  });

  it.each(diskRows)("row %s, %s: a test of it looks at each counter", (...cells) => {
    const [counters = "", names = ""] = cells.slice(-2);
    const files = names.split(", ").flatMap(testsOf);
    expect(files.length).toBeGreaterThanOrEqual(names.split(", ").length);
    const text = files.map((path) => readFileSync(root + path, "utf8")).join("\n");
    const keys = countersOf(counters).map((name) => KEY_OF.get(name) ?? name);
    const events = [...counters.matchAll(/\{event="([a-z_]+)"\}/g)].map(([, event]) => event ?? "");
    // Tests of the tier by itself read the event under its own name.
    const seen = (event: string): boolean =>
      text.includes(event) || text.includes(NVME_EVENTS[NVME_EVENT_LABELS.indexOf(event)] ?? event);
    const figures = keys.filter((key) => key !== "nvmeEvents");
    expect(figures.filter((key) => !text.includes(key))).toEqual([]);
    expect(events.filter((event) => !seen(event))).toEqual([]);
  });
});
