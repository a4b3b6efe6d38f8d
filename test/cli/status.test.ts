/** The text of `cairn status` where a running edge of the tests has too little to show. */
import { expect, it } from "vitest";
import { namespaceLines } from "../../src/cli/status.ts";

it("lists sixteen namespaces, the newest first, and counts the rest", () => {
  const namespaces = Array.from({ length: 20 }, (_, index) => ({
    index,
    digest: index.toString(16).padStart(32, "0"),
    tenant: "default",
    descriptor: { model: `model ${index}` },
    visibleBlocks: 7 * index,
    unprovenBy: [],
  }));
  const text = namespaceLines(namespaces).join("\n");
  const lines = text.split("\n").filter((line) => line.startsWith("0000"));
  expect(lines).toHaveLength(16);
  expect(lines[0]).toMatch(/^0{30}13 {2}model 19 +default +133$/);
  expect(lines[15]).toMatch(/^0{31}4 {2}model 4 +default +28$/);
  expect(text).toContain("and 4 older namespaces");
  expect(namespaceLines(namespaces.slice(0, 16)).join("\n")).not.toContain("older");
  expect(namespaceLines([])).toEqual([]);
});
