/** The bundle that is made at install: it runs while it is the sources' own, and no start may run anything else. */
import { type ExecFileException, execFile } from "node:child_process";
import {
  appendFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { CAIRN, CAIRN_ENVIRONMENT } from "../../src/executable.ts";
import { cleanEnvironment, ROOT, TestDaemon } from "../harness/daemon.ts";

const COPIED = [
  "src",
  "tiers",
  "addon",
  "bench",
  "connectors/node",
  "dashboard",
  "package.json",
  "tsconfig.json",
];
/** As long as build.mjs takes to trust a file's ctime. */
const SETTLED_MS = 2_100;

const directory = mkdtempSync(join(tmpdir(), "cairn-bundle-"));
let checkout = join(directory, "checkout");
const at = (path: string): string => join(checkout, path);
const kept = join(directory, "kept");

interface Answer {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

function run(...words: readonly string[]): Promise<Answer> {
  const options = { cwd: checkout, env: cleanEnvironment() };
  return new Promise((resolve) => {
    execFile(process.execPath, words, options, (error: ExecFileException | null, stdout, stderr) =>
      resolve({ code: Number(error?.code ?? 0), stdout, stderr }),
    );
  });
}

const cairn = (...words: readonly string[]): Promise<Answer> => run("src/launch.mjs", ...words);

async function makeBundle(): Promise<void> {
  expect(await run("src/bundle/build.mjs")).toMatchObject({ code: 0, stderr: "" });
}

/** Which of the two ran. */
async function from(): Promise<string> {
  const { stdout, stderr } = await cairn("version", "--json");
  expect(stderr).toBe("");
  return (JSON.parse(stdout) as { from: string }).from;
}

interface Manifest {
  readonly version: number;
  readonly folder: string;
  readonly sources: Readonly<Record<string, readonly [number, number, string]>>;
  readonly outputs: Readonly<Record<string, number>>;
}

const MANIFEST = "dist/bundle/manifest.json";
const manifest = (): Manifest => JSON.parse(readFileSync(at(MANIFEST), "utf8")) as Manifest;
const folders = (): string[] => readdirSync(at("dist/bundle")).filter((name) => name.includes("-"));

beforeAll(async () => {
  for (const path of COPIED) cpSync(join(ROOT, path), at(path), { recursive: true });
  for (const path of ["node_modules", "build"]) symlinkSync(join(ROOT, path), at(path));
  await sleep(SETTLED_MS);
  await makeBundle();
  cpSync(at("dist"), kept, { recursive: true });
});
afterEach(() => {
  rmSync(at("dist"), { recursive: true });
  cpSync(kept, at("dist"), { recursive: true });
});
afterAll(() => rmSync(directory, { recursive: true }));

/** Changes a file for one case. */
async function changed(path: string, text: (before: string) => string, use: () => Promise<void>) {
  const before = readFileSync(at(path), "utf8");
  writeFileSync(at(path), text(before));
  try {
    await use();
  } finally {
    writeFileSync(at(path), before);
  }
}

describe("a start", () => {
  test("runs the bundle that was made of these sources", async () => {
    expect(await from()).toBe("bundle");
    const { sources } = manifest();
    for (const path of ["src/cli.ts", "src/daemon.ts", "src/edge/worker.ts", "bench/cli.ts"])
      expect(sources[path]?.[1], path).toBe(statSync(at(path)).ctimeMs);
  });

  test("runs the sources when one of them has changed, and the bundle again when it is as it was", async () => {
    await changed(
      "src/cli/version.ts",
      (text) => text.replace('"sources"', '"changed"'),
      async () => expect(await from()).toBe("changed"),
    );
    expect(await from()).toBe("bundle");
  });

  test("sees a change that keeps the size and the time of the last change", async () => {
    const { mtime } = statSync(at("src/cli/version.ts"));
    await changed(
      "src/cli/version.ts",
      (text) => text.replace('"sources"', '"chances"'),
      async () => {
        utimesSync(at("src/cli/version.ts"), mtime, mtime);
        expect(await from()).toBe("chances");
      },
    );
  });

  test("runs the bundle when files were only touched", async () => {
    const now = new Date();
    for (const path of Object.keys(manifest().sources))
      if (!path.startsWith("node_modules/")) utimesSync(at(path), now, now);
    expect(await from()).toBe("bundle");
  });

  test("runs the sources when a bundled module is gone, or the settings of the bundler are others", async () => {
    renameSync(at("bench/rivals.ts"), at("rivals.ts"));
    expect(await from()).toBe("sources");
    renameSync(at("rivals.ts"), at("bench/rivals.ts"));
    expect(await from()).toBe("bundle");
    for (const path of ["src/bundle/build.mjs", "package.json", "tsconfig.json"])
      await changed(
        path,
        (text) => `${text}\n`,
        async () => expect(await from(), path).toBe("sources"),
      );
  });

  test("does not mind a new file that nothing imports", async () => {
    writeFileSync(at("src/new.ts"), "");
    expect(await from()).toBe("bundle");
    rmSync(at("src/new.ts"));
  });

  test("runs the sources where there is no bundle, or it is damaged", async () => {
    const { folder, outputs } = manifest();
    const whole = readFileSync(at(MANIFEST), "utf8");
    for (const text of [whole.slice(0, -20), "", "null", "{}", '{"version":1}']) {
      writeFileSync(at(MANIFEST), text);
      expect(await from(), text.slice(0, 20)).toBe("sources");
    }
    writeFileSync(at(MANIFEST), JSON.stringify({ ...manifestOf(whole), version: 0 }));
    expect(await from()).toBe("sources");
    writeFileSync(at(MANIFEST), whole);
    const output = at(`dist/bundle/${folder}/cli.js`);
    truncateSync(output, outputs["cli.js"]! - 1);
    expect(await from()).toBe("sources");
    appendFileSync(output, "\n");
    expect(await from()).toBe("bundle");
    rmSync(at(`dist/bundle/${folder}`), { recursive: true });
    expect(await from()).toBe("sources");
    rmSync(at("dist/bundle"), { recursive: true });
    expect(await from()).toBe("sources");
  });

  test("runs the bundle of a checkout that was moved, in a path with strange characters", async () => {
    const moved = join(directory, "a #checkout, moved 100%");
    renameSync(checkout, moved);
    checkout = moved;
    expect(await from()).toBe("bundle");
  });

  test("is the same by npm, by the executable, and by whoever starts a daemon as a child", () => {
    const { scripts, bin } = JSON.parse(readFileSync(at("package.json"), "utf8")) as {
      scripts: Record<string, string>;
      bin: Record<string, string>;
    };
    const words = CAIRN.map((word) => word.replace(ROOT, "")).join(" ");
    const threads = `UV_THREADPOOL_SIZE=${CAIRN_ENVIRONMENT.UV_THREADPOOL_SIZE}`;
    expect(scripts["cairn"]).toBe(`exec env ${threads} node ${words}`);
    expect(scripts["start"]).toBe(`${scripts["cairn"]} daemon`);
    const [line] = readFileSync(at(bin["cairn"]!), "utf8").split("\n");
    expect(line).toBe(`#!/usr/bin/env -S ${threads} node`);
  });
});

const manifestOf = (text: string): Manifest => JSON.parse(text) as Manifest;

describe("making the bundle", () => {
  test("leaves a good one when two processes do it at the same time", async () => {
    await Promise.all([makeBundle(), makeBundle()]);
    expect(await from()).toBe("bundle");
  });

  test("keeps the one before for daemons that run from it, and no more than a few", async () => {
    for (let times = 0; times < 4; times += 1) {
      const before = manifest().folder;
      await makeBundle();
      expect(manifest().folder).not.toBe(before);
      expect(folders()).toContain(before);
      expect(folders().length).toBeLessThanOrEqual(3);
    }
    expect(await from()).toBe("bundle");
  });

  test("keeps the new one where the clock was set back and older ones seem newer", async () => {
    for (const name of ["zzzzzzzz-1", "zzzzzzzz-2", "zzzzzzzz-3"])
      mkdirSync(at(`dist/bundle/${name}`));
    await makeBundle();
    expect(folders()).toHaveLength(3);
    expect(await from()).toBe("bundle");
  });

  test("leaves nothing behind where parts of the checkout are missing, and does not fail an install", async () => {
    renameSync(at("bench"), at("elsewhere"));
    try {
      const before = folders();
      for (const [words, code] of [[[], 1] as const, [["--optional"], 0] as const]) {
        const answer = await run("src/bundle/build.mjs", ...words);
        expect(answer.code).toBe(code);
        expect(answer.stderr).toContain("cairn: no bundle: starts run the sources");
      }
      expect(folders()).toEqual(before);
      expect(await from()).toBe("sources");
    } finally {
      renameSync(at("elsewhere"), at("bench"));
    }
  });
});

describe("what runs from the bundle", () => {
  test("is each command, with the exit codes and errors that its sources have", async () => {
    expect(await from()).toBe("bundle");
    for (const command of ["demo", "bench", "replay", "doctor", "verify-engine"]) {
      const help = await cairn(command, "--help");
      expect(help, command).toMatchObject({ code: 0, stderr: "" });
      expect(help.stdout).toContain(`usage: cairn ${command}`);
      expect(await cairn(command, "--nonsense"), command).toMatchObject({ code: 2 });
    }
    expect(await cairn("bench", "nonsense")).toMatchObject({ code: 2 });
    const nobody = await cairn("status", "--json", "--edge", `unix:${directory}/nobody.sock`);
    expect(nobody.code).toBe(1);
    expect(JSON.parse(nobody.stdout)).toMatchObject({ error: { code: 510, name: "unavailable" } });
    const reference = await cairn("config", "reference");
    expect(reference.stdout).toBe(readFileSync(join(ROOT, "docs/config.md"), "utf8"));
  });

  test("tells doctor so, and what to do when it is the sources", async () => {
    const finding = async (): Promise<string | undefined> =>
      (await cairn("doctor")).stdout.match(/^.* bundle .*\n.*$/m)?.[0];
    expect(await finding()).toMatch(/^ok/);
    rmSync(at(MANIFEST));
    expect(await finding()).toMatch(/^warn .*\n +fix: Run `npm run build:bundle`/);
  });

  test("is a daemon that serves metrics and the page, and still finds its parts when the bundle is made anew", async () => {
    const daemon = new TestDaemon();
    daemon.executable = [CAIRN[0]!, at("src/launch.mjs")];
    try {
      expect(await from()).toBe("bundle");
      await daemon.launch();
      await changed("src/cli/version.ts", (text) => `${text}\n`, makeBundle);
      expect((await daemon.get("/metrics")).text).toContain("cairn_");
      expect((await daemon.get("/")).text).toBe(readFileSync(at("dashboard/index.html"), "utf8"));
      // The end loads a part of its own.
      expect(await daemon.stop()).toEqual({ code: 0, signal: null });
      expect(daemon.log()).not.toContain("Cannot find module");
    } finally {
      await daemon.remove();
    }
  });
});
