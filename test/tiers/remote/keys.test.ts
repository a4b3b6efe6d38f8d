/** Data keys: what a file or a command may say, and that nothing a source does is worse than a miss. */
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { LIMITS } from "../../../src/limits.ts";
import { type KeySource, KeyRing, keyIdOf, parseKeys } from "../../../tiers/remote/keys.ts";
import { SPACE } from "./fixture.ts";

const key = (seed: number): Uint8Array => new Uint8Array(32).fill(seed);
const text = (seed: number): string => Buffer.from(key(seed)).toString("base64");
const space = { ...SPACE, tenant: "a" };

let directory: string;
const rings: KeyRing[] = [];
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "cairn-keys-"));
});
afterAll(async () => {
  await Promise.all(rings.map((ring) => ring.close()));
  await rm(directory, { recursive: true });
});

function ringOf(source: KeySource): { ring: KeyRing; lines: string[] } {
  const lines: string[] = [];
  const ring = new KeyRing({ source, refreshMs: 3_600_000, log: (line) => lines.push(line) });
  rings.push(ring);
  return { ring, lines };
}

/** Runs JavaScript. */
function script(code: string, timeoutMs = 60_000): KeySource {
  return { command: [process.execPath, "-e", code], timeoutMs };
}

describe("the text of keys", () => {
  test("has tenants, which may hold spaces, labels and keys; the first is the current one", () => {
    const lines = [
      "# all keys",
      "",
      `a 2 ${text(2)}`,
      `  b c\t1   ${text(3)}  `,
      `a 1 ${text(1)}\r`,
    ];
    const keys = parseKeys(lines.join("\n"));
    expect([...keys.keys()]).toEqual(["a", "b c"]);
    expect(keys.get("a")).toEqual([
      { id: keyIdOf("a", "2", key(2)), bytes: key(2) },
      { id: keyIdOf("a", "1", key(1)), bytes: key(1) },
    ]);
  });

  test("is refused with the line's number and without a word of it", () => {
    for (const line of [
      "a 1",
      `a 1 ${text(1)}=`,
      `a 1 ${text(1).slice(4)}`,
      `a 1 ${text(1)} more`,
      `a thirteen-long ${text(1)}`,
      `a lab/el ${text(1)}`,
      `a 0 ${text(1)}`,
    ]) {
      const refused = (): unknown => parseKeys(`a 0 ${text(1)}\n${line}\n`);
      expect(refused, line).toThrow(/line 2/);
      expect(refused, line).not.toThrow(text(1).slice(0, 8));
    }
    expect(() => parseKeys("# none\n")).toThrow("no data key");
    const many = Array.from({ length: LIMITS.sealKeysMax + 1 }, (_, at) => `a ${at} ${text(1)}`);
    expect(() => parseKeys(many.join("\n"))).toThrow("more than");
  });

  test("an id tells label, tenant and key apart, and shows the label", () => {
    const ids = [
      keyIdOf("a", "1", key(1)),
      keyIdOf("a", "1", key(2)),
      keyIdOf("b", "1", key(1)),
      keyIdOf("a", "2", key(1)),
    ].map((id) => Buffer.from(id).toString("latin1"));
    expect(new Set(ids).size).toBe(ids.length);
    expect(ids.every((id) => id.length === 16)).toBe(true);
    expect(ids[3]?.slice(0, 12)).toBe(`2${"\0".repeat(11)}`);
  });
});

describe("a key file", () => {
  test("that others may read, that is none, or that says nonsense leaves the earlier keys", async () => {
    const file = join(directory, "keys");
    await writeFile(file, `a 1 ${text(1)}\n`, { mode: 0o600 });
    const { ring, lines } = ringOf({ file });
    expect(ring.sealKey(space)).toBeUndefined();
    expect(await ring.refresh()).toBe(true);
    expect(ring.sealKey(space)?.bytes).toEqual(key(1));
    expect(ring.sealKey(SPACE)).toBeUndefined();
    expect(ring.sealKey({ ...SPACE, tenant: "b" })).toBeUndefined();
    await writeFile(file, `a 2 ${text(2)}\n`);
    await chmod(file, 0o640);
    expect(await ring.refresh()).toBe(false);
    await chmod(file, 0o600);
    await writeFile(file, "nonsense");
    expect(await ring.refresh()).toBe(false);
    await writeFile(file, "#".repeat(LIMITS.sealKeyTextBytesMax + 1));
    expect(await ring.refresh()).toBe(false);
    await rm(file);
    expect(await ring.refresh()).toBe(false);
    expect([ring.failures, lines.length]).toEqual([4, 4]);
    expect(lines[0]).toContain("0600");
    expect(ring.sealKey(space)?.bytes).toEqual(key(1));
    await writeFile(file, `a 2 ${text(2)}\na 1 ${text(1)}\n`, { mode: 0o600 });
    expect(await ring.refresh()).toBe(true);
    expect(ring.sealKey(space)?.bytes).toEqual(key(2));
    expect(ring.openKey(space, keyIdOf("a", "1", key(1)))?.bytes).toEqual(key(1));
    expect(ring.openKey(space, keyIdOf("b", "1", key(1)))).toBeUndefined();
    expect(ring.openKey(SPACE, keyIdOf("a", "1", key(1)))).toBeUndefined();
  });
});

describe("a key command", () => {
  test("prints keys; its arguments reach it as they are, without a shell", async () => {
    const code = "process.stdout.write(process.argv[1])";
    const argument = `a $HOME ${text(1)}\n# ; exit 1 \`id\` | "\na 1 ${text(1)}`;
    const first = ringOf({
      command: [process.execPath, "-e", code, argument.replace("$HOME", "h")],
      timeoutMs: 60_000,
    });
    expect(await first.ring.refresh()).toBe(true);
    expect(first.ring.openKey(space, keyIdOf("a", "1", key(1)))?.bytes).toEqual(key(1));
    const second = ringOf({ command: [process.execPath, "-e", code, argument], timeoutMs: 60_000 });
    expect(await second.ring.refresh()).toBe(false);
    expect(second.lines[0]).toContain("line 1");
  });

  test("that hangs, prints without end, fails or does not exist ends within its bounds", async () => {
    const sources: KeySource[] = [
      script("setInterval(() => undefined, 1000)", 200),
      // Its child holds the output open.
      script(
        "require('node:child_process').spawn('/bin/sleep', ['20'], { stdio: 'inherit' }); setInterval(() => 0, 1e3)",
        1_000,
      ),
      script("const more = () => process.stdout.write('x'.repeat(65536), more); more()"),
      script("process.stderr.write('secret'); process.exit(3)"),
      { command: [join(directory, "nothing")], timeoutMs: 1_000 },
    ];
    for (const source of sources) {
      const { ring, lines } = ringOf(source);
      expect(await ring.refresh()).toBe(false);
      expect(ring.failures).toBe(1);
      expect(lines).toHaveLength(1);
      expect(lines[0]).not.toContain("secret");
    }
  }, 60_000);

  test("reads the end of its input at once, and ends when the ring is closed", async () => {
    const code = `process.stdin.on("end", () => console.log("a 1 ${text(1)}")).resume()`;
    expect(await ringOf(script(code)).ring.refresh()).toBe(true);
    const { ring, lines } = ringOf(script("setInterval(() => undefined, 1000)"));
    const reading = ring.refresh();
    await ring.close();
    expect(await reading).toBe(false);
    expect(lines).toEqual([]);
  });
});
