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

interface Loaded {
  /** Packages, node's own left out, with the first module that names each. */
  readonly packages: ReadonlyMap<string, string>;
  /** Modules of this checkout. */
  readonly modules: readonly string[];
}

/** What is loaded together with modules. */
function loadedWith(entries: readonly string[]): Loaded {
  const packages = new Map<string, string>();
  const seen = new Set<string>();
  const open = entries.map((path) => join(root, path));
  for (let path = open.pop(); path !== undefined; path = open.pop()) {
    if (seen.has(path)) continue;
    seen.add(path);
    for (const target of loadedBy(path)) {
      if (target.startsWith(".")) open.push(join(dirname(path), target));
      else if (!target.startsWith("node:")) packages.set(target, path.slice(root.length));
    }
  }
  return { packages, modules: [...seen].map((path) => path.slice(root.length)) };
}

const START = ["src/cli.ts", "src/cli/daemon.ts", "src/main.ts", "src/daemon.ts"];

describe("the modules of a start", () => {
  it("bring along no package but the few that serving needs", () => {
    const { packages } = loadedWith(START);
    expect([...packages.keys()].toSorted()).toEqual(["@msgpack/msgpack", "yaml"]);
  });

  it("are found with the packages that they name", () => {
    expect([...loadedWith(["src/edge/routes.ts"]).packages.keys()]).toContain("typebox");
  });

  it("are none of those that read other programs' configuration", () => {
    const foreign = (modules: readonly string[]) =>
      modules.filter((path) => path.startsWith("src/config/migrate/"));
    expect(foreign(loadedWith(START).modules)).toEqual([]);
    expect(foreign(loadedWith(["src/cli/config-migrate.ts"]).modules)).not.toEqual([]);
  });
});
