/** What a start loads before engines are served: nobody waits for a package that only operators need. */
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { stripSource } from "./tidy/scanner.ts";

const root = new URL("..", import.meta.url).pathname;

/** Targets of a module's `import … from` and `export … from` that stand in it as code, not as types. */
function loadedBy(path: string): string[] {
  const text = stripSource(readFileSync(path, "utf8"), "ts", true);
  const statement = /^(?:import|export)\s+(?!type\s)(?:[^;"']*?\sfrom\s+)?"([^"]+)";/gm;
  return Array.from(text.matchAll(statement), (match) => match[1]!);
}

/** Packages that are loaded together with a module, node's own left out. */
function packagesOf(entries: readonly string[]): Map<string, string> {
  const found = new Map<string, string>();
  const seen = new Set<string>();
  const open = entries.map((path) => join(root, path));
  for (let path = open.pop(); path !== undefined; path = open.pop()) {
    if (seen.has(path)) continue;
    seen.add(path);
    for (const target of loadedBy(path)) {
      if (target.startsWith(".")) open.push(join(dirname(path), target));
      else if (!target.startsWith("node:")) found.set(target, path.slice(root.length));
    }
  }
  return found;
}

describe("the modules of a start", () => {
  it("bring along no package but the few that serving needs", () => {
    const packages = packagesOf([
      "src/cli.ts",
      "src/cli/daemon.ts",
      "src/main.ts",
      "src/daemon.ts",
    ]);
    expect([...packages.keys()].toSorted()).toEqual(["@msgpack/msgpack", "yaml"]);
  });

  it("are found with the packages that they name", () => {
    expect([...packagesOf(["src/edge/routes.ts"]).keys()]).toContain("typebox");
  });
});
