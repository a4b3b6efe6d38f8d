import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import {
  idealHits,
  parseLine,
  readTrace,
  TraceBuilder,
  TraceError,
  traceKeys,
} from "../../bench/replay/trace.ts";

const directory = mkdtempSync(join(tmpdir(), "cairn-trace-"));
afterAll(() => rmSync(directory, { recursive: true }));

const line = (inputLength: number, hashIds: readonly unknown[], rest: object = {}): string =>
  JSON.stringify({
    timestamp: 0,
    input_length: inputLength,
    output_length: 1,
    hash_ids: hashIds,
    ...rest,
  });

function build(...texts: string[]) {
  const builder = new TraceBuilder();
  texts.forEach((text, index) => builder.add(text, index + 1));
  return builder.build();
}

describe("one line of a trace", () => {
  const malformed: readonly [string, string, string][] = [
    ["text that is not JSON", "{", "not JSON"],
    ["an empty line", "", "not JSON"],
    ["an array", "[]", "not a JSON object"],
    ["null", "null", "not a JSON object"],
    ["no timestamp", '{"input_length":0,"output_length":0,"hash_ids":[]}', "timestamp"],
    ["a negative timestamp", line(0, [], { timestamp: -1 }), "timestamp"],
    ["no output length", line(0, [], { output_length: null }), "output_length"],
    ["a fractional length", line(0.5, []), "input_length"],
    ["a length as text", line(0, [], { input_length: "512" }), "input_length"],
    ["ids that are no array", line(512, [], { hash_ids: 7 }), "hash_ids"],
    ["too few ids", line(1_024, [1]), "hash_ids has 1 entries"],
    ["too many ids", line(512, [1, 2]), "hash_ids has 2 entries"],
    ["a negative id", line(512, [-1]), "an entry of hash_ids"],
    ["an id as text", line(512, ["1"]), "an entry of hash_ids"],
    ["an id that a number cannot hold", line(512, [2 ** 53]), "an entry of hash_ids"],
  ];
  it.each(malformed)("is refused with its number when it is %s", (_name, text, message) => {
    expect(() => parseLine(text, 7)).toThrow(TraceError);
    expect(() => parseLine(text, 7)).toThrow(`line 7: `);
    expect(() => parseLine(text, 7)).toThrow(message);
  });

  it("may leave out the id of a partial tail block, which is not counted anyway", () => {
    expect(build(line(1_000, [1, 2])).blocks).toBe(1);
    expect(build(line(1_000, [1])).blocks).toBe(1);
    expect(build(line(511, [])).blocks).toBe(0);
  });

  it("is refused when an id stands after another block than before", () => {
    expect(() => build(line(1_024, [1, 2]), line(1_024, [3, 2]))).toThrow("line 2: hash id 2");
    expect(() => build(line(1_024, [1, 1]))).toThrow("line 1: hash id 1");
  });
});

describe("a trace", () => {
  it("counts every request and every full block", () => {
    const trace = build(line(1_536, [5, 6, 7]), line(100, []), line(1_500, [5, 6, 9]));
    expect(trace.requests).toBe(3);
    expect(trace.blocks).toBe(5);
    expect(trace.requestBlocksMax).toBe(3);
    expect([...trace.starts]).toEqual([0, 3, 3, 5]);
    expect([...trace.blockIndexes]).toEqual([0, 1, 2, 0, 1]);
    expect([...trace.hashIds]).toEqual([5, 6, 7]);
    expect(idealHits(trace)).toBe(2);
  });

  it("counts the same as a walk over a set of prefixes, whatever the requests", () => {
    // A path of small steps names each block by the whole path, so that equal ids have equal prefixes.
    const paths = fc.array(fc.array(fc.integer({ min: 0, max: 2 }), { maxLength: 6 }), {
      maxLength: 30,
    });
    fc.assert(
      fc.property(paths, (requests) => {
        const name = (path: readonly number[]) => path.reduce((id, step) => id * 4 + step + 1, 0);
        const prefixes = (path: readonly number[]) =>
          path.map((_, end) => name(path.slice(0, end + 1)));
        const trace = build(...requests.map((path) => line(path.length * 512, prefixes(path))));
        const seen = new Set<number>();
        let hits = 0;
        for (const path of requests) {
          const ids = prefixes(path);
          const miss = ids.findIndex((id) => !seen.has(id));
          hits += miss < 0 ? ids.length : miss;
          for (const id of ids) seen.add(id);
        }
        expect(trace.blocks).toBe(requests.reduce((sum, path) => sum + path.length, 0));
        expect(idealHits(trace)).toBe(hits);
      }),
    );
  });

  it("has SHA-256 of the id as the key", () => {
    const trace = build(line(1_024, [0, 258]));
    const bytes = new Uint8Array(traceKeys(trace).buffer);
    const expected = createHash("sha256")
      .update(Uint8Array.of(2, 1, 0, 0, 0, 0, 0, 0))
      .digest("hex");
    expect(Buffer.from(bytes.subarray(32, 64)).toString("hex")).toBe(expected);
  });
});

describe("a trace file", () => {
  it("is read whole, with or without a final newline", async () => {
    for (const [name, end] of [
      ["a.jsonl", "\n"],
      ["b.jsonl", ""],
    ] as const) {
      const path = join(directory, name);
      writeFileSync(path, `${line(512, [1])}\n${line(512, [1])}${end}`);
      expect((await readTrace(path)).requests).toBe(2);
    }
  });

  /** The machine's program, called `name` alone in a directory of its own: the only PATH. */
  async function withOnly<T>(names: readonly string[], use: () => Promise<T>): Promise<T> {
    const bin = mkdtempSync(join(directory, "bin-"));
    for (const name of names) {
      const real =
        name === "python3"
          ? spawnSync("python3", ["-c", "import sys; print(sys.executable)"])
          : spawnSync("sh", ["-c", `command -v ${name}`]);
      if (real.status === 0) symlinkSync(real.stdout.toString().trim(), join(bin, name));
    }
    const before = process.env["PATH"];
    process.env["PATH"] = bin;
    try {
      return await use();
    } finally {
      process.env["PATH"] = before;
    }
  }

  it("is unpacked by xz or by python3, whichever is there, and says so where neither is", async () => {
    const path = join(directory, "packed.jsonl.xz");
    const text = `${line(512, [1])}\n${line(1_024, [1, 2])}\n`;
    const pack = "import lzma,sys; sys.stdout.buffer.write(lzma.compress(sys.stdin.buffer.read()))";
    const packed = spawnSync("python3", ["-c", pack], { input: text });
    expect(packed.status).toBe(0);
    writeFileSync(path, packed.stdout);
    expect(await readTrace(path)).toMatchObject({ requests: 2, blocks: 3 });
    const read = (): Promise<unknown> => readTrace(path);
    expect(await withOnly(["python3"], read)).toMatchObject({ requests: 2, blocks: 3 });
    await expect(withOnly([], read)).rejects.toThrow("neither xz nor python3 is installed");
  });

  it("is refused at its first malformed line", async () => {
    const path = join(directory, "broken.jsonl");
    writeFileSync(path, `${line(512, [1])}\n{"timestamp": 0\n`);
    await expect(readTrace(path)).rejects.toMatchObject({ name: "TraceError", line: 2 });
  });

  it("is refused when it is not there, or not what its name says", async () => {
    await expect(readTrace(join(directory, "none.jsonl"))).rejects.toThrow("cannot read");
    const path = join(directory, "broken.jsonl.xz");
    writeFileSync(path, "this is not an archive");
    await expect(readTrace(path)).rejects.toMatchObject({ name: "TraceError", line: 0 });
  });
});
