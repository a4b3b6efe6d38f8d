/** What only a directory of files can suffer: racing processes, killed writers, foreign files, a stuck server. */
import { type ChildProcessByStdio, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmod,
  mkdir,
  mkdtemp,
  readdir,
  rm,
  stat,
  symlink,
  utimes,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface, type Interface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { SharedDirectory } from "../../../tiers/remote/shared-directory.ts";
import { unended } from "../../../tiers/under-way.ts";
import { ROOT } from "../../harness/daemon.ts";
import { LIMITS, listed } from "./contract.ts";
import { bytesFor } from "./directory-bytes.ts";
import { PATIENT } from "../../harness/eventually.ts";

let directory: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "cairn-remote-"));
});
afterEach(async () => {
  await rm(directory, { recursive: true });
});

interface Writer {
  readonly child: ChildProcessByStdio<Writable, Readable, null>;
  readonly said: string[];
}

async function startWriter(seed: number, bytes: number, count: number): Promise<Writer> {
  const script = `${ROOT}/test/tiers/remote/directory-writer.ts`;
  const words = [directory, "v1/raced", `${seed}`, `${bytes}`, `${count}`];
  const child = spawn(process.execPath, ["--import", "tsx", script, ...words], {
    cwd: ROOT,
    stdio: ["pipe", "pipe", "inherit"],
  });
  const said: string[] = [];
  const lines: Interface = createInterface({ input: child.stdout });
  const ready = once(lines, "line");
  lines.on("line", (line: string) => said.push(line));
  await ready;
  return { child, said };
}

async function allFiles(): Promise<string[]> {
  const found = await readdir(directory, { recursive: true });
  return found.filter((path) => path.includes("/")).toSorted();
}

describe("racing processes", () => {
  test("of five that write one name at once one has stored, and the object is wholly its", async () => {
    const bytes = 3_000_000;
    const writers = await Promise.all([1, 2, 3, 4, 5].map((seed) => startWriter(seed, bytes, 1)));
    const ends = writers.map(({ child }) => once(child, "exit"));
    for (const { child } of writers) child.stdin.write("go\n");
    await Promise.all(ends);
    const answers = writers.map(({ said }) => said.at(-1) ?? "");
    expect(answers.toSorted((a, b) => (a < b ? -1 : 1))).toEqual([
      "present",
      "present",
      "present",
      "present",
      "stored",
    ]);
    const into = new Uint8Array(bytes);
    const store = new SharedDirectory({ directory });
    expect(await store.get("v1/raced", 0, into, LIMITS)).toEqual({ ok: true, value: bytes });
    const winner = answers.indexOf("stored") + 1;
    expect(Buffer.compare(into, bytesFor(bytes, winner))).toBe(0);
    expect(await allFiles()).toHaveLength(1);
  });

  test("a writer killed in the middle leaves no half object, and its leftover is swept by age", async () => {
    const bytes = 8 * 2 ** 20;
    const store = new SharedDirectory({ directory });
    let leftovers: string[] = [];
    // A kill may fall between two writes; in the end one falls into a write.
    for (let round = 0; round < 40 && leftovers.length === 0; round += 1) {
      const writer = await startWriter(round, bytes, 0);
      const ended = once(writer.child, "exit");
      writer.child.stdin.write("go\n");
      await vi.waitUntil(
        async () => (await allFiles()).some((path) => path.includes(".writing-")),
        { ...PATIENT, interval: 1 },
      );
      writer.child.kill("SIGKILL");
      await ended;
      leftovers = (await allFiles()).filter((path) => path.includes(".writing-"));
      for (const entry of await listed(store, "")) {
        const into = new Uint8Array(bytes);
        expect(entry.bytes).toBe(bytes);
        expect(await store.get(entry.name, 0, into, LIMITS)).toMatchObject({ ok: true });
        expect(Buffer.compare(into, bytesFor(bytes, round))).toBe(0);
        await store.delete(entry.name, LIMITS);
      }
    }
    expect(leftovers).toHaveLength(1);
    expect(await store.sweep(Date.now() - 3_600_000, LIMITS)).toEqual({ ok: true, value: 0 });
    expect(await store.sweep(Date.now() + 1_000, LIMITS)).toEqual({ ok: true, value: 1 });
    expect(await allFiles()).toEqual([]);
  }, 120_000);
});

describe("the files", () => {
  test("lie in sub-directories, closed to others, under names that list() turns back", async () => {
    const store = new SharedDirectory({ directory, fileMode: 0o600 });
    const names = Array.from({ length: 300 }, (_, at) => `v1/${"ab".repeat(16)}/4-9-0-1/${at}`);
    for (const name of names) await store.put(name, bytesFor(3, 1), LIMITS);
    const folders = await readdir(directory);
    expect(folders.length).toBeGreaterThan(100);
    expect(folders.every((name) => /^[0-9a-f]{2}$/.test(name))).toBe(true);
    const [file] = await allFiles();
    expect((await stat(join(directory, file ?? ""))).mode & 0o777).toBe(0o600);
    expect((await listed(store, "")).map((one) => one.name)).toEqual(names.toSorted());
  });

  test("of others are neither listed nor read nor swept", async () => {
    const store = new SharedDirectory({ directory });
    await store.put("v1/a", bytesFor(3, 1), LIMITS);
    const [ours] = await allFiles();
    const folder = join(directory, (ours ?? "").split("/")[0] ?? "");
    for (const name of ["notes.txt", "V1.A.chunk", "v1..a.chunk", ".hidden.chunk", ".chunk"]) {
      await writeFile(join(folder, name), "foreign");
      await utimes(join(folder, name), 1, 1);
    }
    await mkdir(join(folder, "v1.folder.chunk"));
    await mkdir(join(directory, "lost+found"));
    expect((await listed(store, "")).map((one) => one.name)).toEqual(["v1/a"]);
    expect(await store.sweep(Date.now() + 1_000, LIMITS)).toEqual({ ok: true, value: 0 });
    expect(await readdir(folder)).toHaveLength(7);
  });

  test("behind a symbolic link are not followed", async () => {
    const store = new SharedDirectory({ directory });
    await store.put("v1/a", bytesFor(9, 1), LIMITS);
    const [ours] = await allFiles();
    const path = join(directory, ours ?? "");
    await rm(path);
    await writeFile(join(directory, "secret"), "secret bytes");
    await symlink(join(directory, "secret"), path);
    expect(await store.get("v1/a", 0, new Uint8Array(4), LIMITS)).toMatchObject({ ok: false });
  });

  test("a directory removed under the store is made anew, one whose mount is gone is not", async () => {
    const store = new SharedDirectory({ directory });
    await store.put("v1/a", bytesFor(3, 1), LIMITS);
    const [ours] = await allFiles();
    await rm(join(directory, (ours ?? "").split("/")[0] ?? ""), { recursive: true });
    expect(await store.put("v1/a", bytesFor(3, 1), LIMITS)).toMatchObject({ ok: false });
    expect(await store.put("v1/a", bytesFor(3, 1), LIMITS)).toMatchObject({ value: "stored" });
    await rm(directory, { recursive: true });
    const gone = { fault: "unavailable" };
    expect(await store.put("v1/b", bytesFor(3, 1), LIMITS)).toMatchObject(gone);
    // Nobody knows whether the object is missing.
    expect(await store.get("v1/a", 0, new Uint8Array(3), LIMITS)).toMatchObject(gone);
    expect(await store.head("v1/a", LIMITS)).toMatchObject(gone);
    expect(await store.check(LIMITS)).toMatchObject(gone);
    await expect(stat(directory)).rejects.toThrow();
    await mkdir(directory);
  });

  test("of a full file system are refused as full, and reads go on", async () => {
    // A limit on the length of files stands in for a quota: the write is refused in the middle.
    const store = new SharedDirectory({ directory });
    await store.put("v1/a", bytesFor(3, 1), LIMITS);
    const script = `ulimit -f 8; exec "${process.execPath}" --import tsx -e "
      const { SharedDirectory } = await import('${ROOT}/tiers/remote/shared-directory.ts');
      process.on('SIGXFSZ', () => undefined);
      const store = new SharedDirectory({ directory: '${directory}' });
      const put = await store.put('v1/b', new Uint8Array(1000000), { deadlineMs: 20000 });
      const get = await store.get('v1/a', 0, new Uint8Array(3), { deadlineMs: 20000 });
      console.log(put.ok ? put.value : put.fault, get.ok);"`;
    const out = execFileSync("bash", ["-c", script], { cwd: ROOT, encoding: "utf8" });
    expect(out.trim()).toBe("full true");
    expect((await allFiles()).filter((path) => path.includes(".writing-"))).toEqual([]);
  });
});

describe("a server that is gone", () => {
  /** A FIFO nobody writes to: open() for reading does not return, as on a hung mount. */
  async function hang(store: SharedDirectory, name: string): Promise<string> {
    await store.put(name, bytesFor(9, 1), LIMITS);
    const files = await allFiles();
    const path = join(directory, files.find((file) => file.endsWith(".hung.chunk")) ?? "");
    await rm(path);
    execFileSync("mkfifo", [path]);
    return path;
  }

  test("costs each call its deadline, frees the buffer when the kernel does, and stops at a bound", async () => {
    const store = new SharedDirectory({ directory, operationsMax: 2 });
    const path = await hang(store, "v1/hung");
    await chmod(path, 0o600);
    const short = { deadlineMs: 50 };
    const into = new Uint8Array(4);
    const stuck = [
      await store.get("v1/hung", 0, into, short),
      await store.get("v1/hung", 0, into, short),
    ];
    for (const one of stuck) expect(one).toMatchObject({ ok: false, fault: "timeout" });
    // Both turns are taken: a third call waits for one and ends at its own deadline.
    expect(await store.head("v1/hung", short)).toMatchObject({ fault: "timeout" });
    const abort = new AbortController();
    const waiting = store.head("v1/hung", { deadlineMs: 60_000, signal: abort.signal });
    abort.abort();
    expect(await waiting).toMatchObject({ fault: "cancelled" });
    // A process that waited for them at its end would wait for ever.
    expect(await unended(20)).toEqual([`${directory} does not answer`]);
    // The server is back: what was stuck ends, and calls go on.
    const released = stuck.flatMap((one) =>
      one.ok || one.released === undefined ? [] : [one.released],
    );
    expect(released).toHaveLength(2);
    execFileSync("bash", ["-c", 'exec 3<>"$1"; sleep 0.3', "bash", path]);
    await Promise.all(released);
    expect(await unended(5_000)).toEqual([]);
    expect(await store.head("v1/hung", LIMITS)).toMatchObject({ ok: true });
    await store.close();
  });
});
