import { Compile } from "typebox/schema";
import { describe, expect, it } from "vitest";
import { defaultConfig } from "../../src/config/defaults.ts";
import { ROOT } from "../../src/config/fields.ts";
import { ConfigSchema } from "../../src/config/schema.ts";
import { misshapes, type Shape } from "../../src/config/shape.ts";

const WRONG: readonly unknown[] = [
  ...[null, true, -1, 0, 1, 1.5, 1e17, Number.NaN, Infinity, "", "auto", "x".repeat(5_000)],
  ...[[], {}, [1], ["a"], [{ path: "" }], [{ path: "/a", capacityBytes: 0.5 }], [{ name: "a" }]],
  ...[[{ path: "/a", capacityBytes: "auto" }], [{ name: "a", uids: [1.5] }], { unknown: 1 }],
];

/** Copies of the tree with one place changed: each value of WRONG there, and nothing there. */
function* variants(tree: unknown, place: readonly string[] = []): Generator<unknown> {
  for (const value of WRONG) yield changed(place, value);
  if (place.length > 0) yield changed(place, undefined);
  if (typeof tree !== "object" || tree === null) return;
  for (const [key, child] of Object.entries(tree)) yield* variants(child, [...place, key]);
}

function changed(place: readonly string[], value: unknown): unknown {
  const last = place.at(-1);
  if (last === undefined) return value;
  const root = structuredClone(full());
  let at = root as unknown as Record<string, unknown>;
  for (const key of place.slice(0, -1)) at = at[key] as Record<string, unknown>;
  if (value === undefined && Array.isArray(at)) at.length = 0;
  else if (value === undefined) delete at[last];
  else at[last] = value;
  return root;
}

/** The defaults, with the lists filled and the optional settings present. */
function full(): object {
  const tree = structuredClone(defaultConfig());
  const directories = [{ path: "/d", capacityBytes: "auto", ratedWriteBytes: 1 }];
  const tenants = [{ name: "a", socket: "/s", uids: [7] }];
  return { ...tree, nvme: { ...tree.nvme, directories }, tenants };
}

describe("the shape of a configuration", () => {
  it("is judged as typebox judges it, whatever stands in whichever place", () => {
    const validator = Compile(ConfigSchema);
    let refused = 0;
    let count = 0;
    for (const tree of variants(full())) {
      const fits = misshapes(ROOT, tree).length === 0;
      expect(fits, JSON.stringify(tree)).toBe(validator.Check(tree));
      refused += fits ? 0 : 1;
      count += 1;
    }
    expect(misshapes(ROOT, full())).toEqual([]);
    expect(refused).toBeGreaterThan(count / 2);
    expect(refused).toBeLessThan(count);
  });

  it("refuses to judge by a keyword that it does not know", () => {
    const shape = { type: "string", pattern: "^a$" } as Shape;
    expect(() => misshapes(shape, "a")).toThrow("no check of pattern");
  });

  it("counts characters, not the halves of surrogate pairs", () => {
    expect(misshapes({ type: "string", maxLength: 1 }, "🜨")).toEqual([]);
    expect(misshapes({ type: "string", maxLength: 1 }, "ab")).toHaveLength(1);
  });
});
