import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { parse as parseYaml } from "yaml";
import { poolFile } from "../../tiers/dram/preflight.ts";
import { COMMANDS } from "../../src/cli/commands.ts";
import { chosen, limitValue, meminfoValue } from "../../src/cli/doctor/host.ts";
import { lowerChecks, nvmeCheck, registeredCheck } from "../../src/cli/doctor/lower.ts";
import { libraryPath, runProbe } from "../../src/cli/doctor/libraries.ts";
import { bar, duration, percent, rate, table } from "../../src/cli/output.ts";
import { runCli } from "../../src/cli/run.ts";
import { spark } from "../../src/cli/top.ts";
import { defaultConfig } from "../../src/config/defaults.ts";
import { type EdgeHandle, startEdge } from "../../src/edge/edge.ts";
import { CAIRN } from "../../src/executable.ts";
import { Feed, METRIC } from "../../src/observe/feed.ts";
import { publishDevices, publishRemote } from "../../src/observe/lower.ts";
import { DEVICE, FakeDaemon, INFO, REMOTE } from "../edge/fixture.ts";

const ROOT = new URL("../..", import.meta.url).pathname;
const directory = mkdtempSync(join(tmpdir(), "cairn-cli-"));
const feed = new Feed();
let edge: EdgeHandle;
let socket = "";

const environment: NodeJS.ProcessEnv = {
  PATH: process.env["PATH"],
  CAIRN_CONFIG: join(directory, "cairn.yaml"),
};

function cairn(words: readonly string[], extra: NodeJS.ProcessEnv = {}) {
  const child = spawn(process.execPath, [...CAIRN, ...words], {
    cwd: ROOT,
    env: { ...environment, ...extra },
    stdio: ["ignore", "pipe", "pipe"],
  });
  return finished(child);
}

async function finished(child: ChildProcess) {
  let stdout = "";
  let stderr = "";
  child.stdout?.setEncoding("utf8").on("data", (part: string) => {
    stdout += part;
  });
  child.stderr?.setEncoding("utf8").on("data", (part: string) => {
    stderr += part;
  });
  const code = await new Promise<number | null>((resolve) => child.once("close", resolve));
  const last = stdout.trimEnd().split("\n").at(-1) ?? "";
  return { code, stdout, stderr, json: () => JSON.parse(last) as Record<string, unknown> };
}

beforeAll(async () => {
  writeFileSync(join(directory, "cairn.yaml"), `dram: {directory: ${directory}/pool}\n`);
  socket = `unix:${join(directory, "edge.sock")}`;
  feed.set(METRIC.ready, 1);
  feed.set(METRIC.orphans, 4);
  feed.add(METRIC.lookupBlocksRequested, 10);
  feed.addAt(METRIC.lookupBlocksHit, 0, 4);
  feed.setAt(METRIC.tierCapacityBytes, 0, 1_024);
  feed.setAt(METRIC.tierUsedBytes, 0, 512);
  const handler = new FakeDaemon();
  const config = { listen: socket };
  publishDevices(feed, [DEVICE]);
  publishRemote(feed, REMOTE);
  edge = await startEdge({ config, feed: feed.buffer, ledger: null, info: INFO, handler });
  edge.devices(["/mnt/a"]);
});
afterAll(async () => {
  await edge.stop();
  rmSync(directory, { recursive: true });
});

describe("the command line", () => {
  test("help lists every command, and each has a page of its own", async () => {
    const { code, stdout } = await cairn(["help"]);
    expect(code).toBe(0);
    for (const { name, summary, usage } of COMMANDS) {
      expect(stdout).toContain(`  ${name}`);
      expect(stdout).toContain(summary);
      expect(usage.startsWith(`usage: cairn ${name}`), name).toBe(true);
    }
    const page = await cairn(["status", "--help"]);
    expect(page).toMatchObject({ code: 0 });
    expect(page.stdout).toContain("--token-file FILE");
    const json = await cairn(["help", "top", "--json"]);
    expect(json.json()).toMatchObject({ commands: [{ name: "top" }] });
  });

  test("a misspelt command, action or option suggests the nearest and exits 2", async () => {
    const cases: readonly (readonly [readonly string[], string])[] = [
      [["stauts"], 'did you mean "status"?'],
      [["config", "chek"], 'did you mean "check"?'],
      [["status", "--egde", "x"], 'did you mean "--edge"?'],
      [["config", "check", "--dram.capacity", "1GiB"], 'did you mean "--dram.capacityBytes"?'],
      [["status", "now"], 'unexpected "now"'],
      [["top", "--count"], "--count needs a value"],
      [["config"], "check, show, migrate, reference"],
    ];
    for (const [words, message] of cases) {
      const write = vi.spyOn(process.stderr, "write").mockReturnValue(true);
      const code = await runCli(words);
      const stderr = write.mock.calls.map(([text]) => String(text)).join("");
      write.mockRestore();
      expect(code, words.join(" ")).toBe(2);
      expect(stderr).toContain(message);
    }
  });

  test("version tells the package's version, and with --json one object", async () => {
    const manifest = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as {
      version: string;
    };
    expect((await cairn(["--version"])).stdout).toContain(`cairn ${manifest.version}`);
    expect((await cairn(["version", "--json"])).json()).toMatchObject({
      version: manifest.version,
      protocol: 1,
    });
  });

  test("an error with --json is one object with its row, on the last line", async () => {
    const answer = await cairn(["status", "--json", "--edge", `unix:${directory}/nobody.sock`]);
    expect(answer.code).toBe(1);
    expect(answer.json()).toMatchObject({
      error: { code: 510, name: "unavailable", retryable: true },
    });
    const usage = await cairn(["stauts", "--json"]);
    expect(usage).toMatchObject({ code: 2 });
    expect(usage.json()).toMatchObject({ error: { name: "usage" } });
  });

  test("commands that need no web server load none", () => {
    const script = `
      const { createRequire } = await import("node:module");
      const webServers = () => Object.keys(createRequire(import.meta.url).cache)
        .filter((path) => /node_modules.(fastify|prom-client)/.test(path)).length;
      await import(${JSON.stringify(`${ROOT}src/cli/run.ts`)});
      await import(${JSON.stringify(`${ROOT}src/cli/daemon.ts`)});
      const before = webServers();
      await import(${JSON.stringify(`${ROOT}src/edge/app.ts`)});
      console.log(JSON.stringify({ before, after: webServers() }));`;
    const args = ["--import", "tsx", "--input-type=module", "-e", script];
    const text = execFileSync(process.execPath, args, { cwd: ROOT, encoding: "utf8" });
    const { before, after } = JSON.parse(text) as { before: number; after: number };
    expect(before).toBe(0);
    expect(after).toBeGreaterThan(0);
  });
});

describe("cairn config migrate", () => {
  const migrate = (words: readonly string[], extra: NodeJS.ProcessEnv = {}) =>
    cairn(["config", "migrate", ...words], extra);

  test("prints a cairn.yaml with comments, which config check accepts", async () => {
    const lmcache = join(directory, "lmcache.yaml");
    writeFileSync(lmcache, "max_local_cpu_size: 2\nenable_p2p: true\n");
    const { code, stdout } = await migrate(["--lmcache", lmcache, "--workers", "3"]);
    expect(code).toBe(0);
    expect(parseYaml(stdout)).toEqual({ dram: { capacityBytes: "6GiB" } });
    expect(stdout).toContain(`#   ${lmcache}:2 enable_p2p: nodes share blocks`);
    const made = join(directory, "migrated.yaml");
    writeFileSync(made, stdout);
    const checked = await cairn(["config", "check", "--config", made, "--json"]);
    expect(checked.json()).toMatchObject({ config: { dram: { capacityBytes: 6 * 2 ** 30 } } });
  });

  test("reads the environment and the flags of LMCache's server, the file first", async () => {
    const lmcache = join(directory, "first.yaml");
    writeFileSync(lmcache, "max_local_cpu_size: 2\n");
    const env = { DYN_KVBM_CPU_CACHE_GB: "9", LMCACHE_LOG_LEVEL: "ERROR" };
    const server = ["--", "lmcache", "server", "--l1-size-gb", "5", "--eviction-policy", "LRU"];
    const all = await migrate(["--json", "--env", "--lmcache", lmcache, ...server], env);
    expect(all.json()).toMatchObject({
      config: {
        dram: { capacityBytes: "2GiB" },
        log: { level: "error" },
        policy: { eviction: "lru" },
      },
    });
    const { notes } = all.json() as { notes: { source: string; fate: string }[] };
    expect(notes.map(({ source, fate }) => `${source.split(" ").at(-1)} ${fate}`)).toEqual([
      "max_local_cpu_size mapped",
      "LMCACHE_LOG_LEVEL mapped",
      "--l1-size-gb refused",
      "--eviction-policy mapped",
      "DYN_KVBM_CPU_CACHE_GB refused",
    ]);
    const flags = await migrate(["--env", ...server], env);
    expect(parseYaml(flags.stdout)).toMatchObject({ dram: { capacityBytes: "5GiB" } });
  });

  test("needs something to read, and exits 2 for what is no file of LMCache", async () => {
    const list = join(directory, "list.yaml");
    writeFileSync(list, "- 1\n");
    const cases: readonly (readonly [readonly string[], string])[] = [
      [[], "--lmcache FILE"],
      [["--lmcache", list], "no map of options"],
      [["--lmcache", join(directory, "nowhere.yaml")], "cannot be read"],
      [["--env", "--workers", "0"], "--workers"],
      [["--env", "--workers", "1.5"], "whole number"],
      [["--env", "--write"], "unknown option --write"],
    ];
    for (const [words, message] of cases) {
      const { code, stderr } = await migrate(words);
      expect(code, words.join(" ")).toBe(2);
      expect(stderr).toContain(message);
    }
    const { code, stderr } = await cairn(["config", "check", "--", "--l1-size-gb", "5"]);
    expect(code).toBe(2);
    expect(stderr).toContain('unexpected "--l1-size-gb"');
  });

  test("is what config show and purge count, too, and say on standard error", async () => {
    const disk = join(directory, "kvbm");
    mkdirSync(disk);
    const env = { DYN_KVBM_DISK_CACHE_GB: "8", DYN_KVBM_DISK_CACHE_DIR: disk };
    const shown = await cairn(["config", "show", "--json"], env);
    expect(shown.json()).toMatchObject({
      config: { nvme: { enabled: true, directories: [{ path: `${disk}/cairn` }] } },
      sources: { "nvme.enabled": "DYN_KVBM_DISK_CACHE_GB, DYN_KVBM_DISK_CACHE_DIR" },
    });
    expect(shown.stderr).toContain("cairn: DYN_KVBM_DISK_CACHE_GB taken over: ");
    const checked = await cairn(["config", "check"], { ...env, DYN_KVBM_DISK_CACHE_GB: "lots" });
    expect(checked.code).toBe(0);
    expect(checked.stderr).toContain("cairn: DYN_KVBM_DISK_CACHE_GB ignored: ");
    expect((await cairn(["purge", "--yes"], env)).stderr).toContain("DYN_KVBM_DISK_CACHE_DIR");
  });
});

describe("cairn config", () => {
  test("check accepts a valid configuration and says where it came from", async () => {
    const good = await cairn(["config", "check", "--dram.capacityBytes", "1GiB", "--json"]);
    expect(good.code).toBe(0);
    expect(good.json()).toMatchObject({
      valid: true,
      config: { dram: { capacityBytes: 2 ** 30, directory: `${directory}/pool` } },
      sources: { "dram.capacityBytes": "--dram.capacityBytes" },
    });
  });

  test("check prints every problem with its source and exits 2", async () => {
    const bad = join(directory, "bad.yaml");
    writeFileSync(bad, "dram:\n  lowWatermak: 0.5\nlog: {level: loud}\n");
    const answer = await cairn(["config", "check", "--config", bad, "--json"], {
      CAIRN_NODE_NAM: "x",
    });
    expect(answer.code).toBe(2);
    const { error } = answer.json() as {
      error: { name: string; problems: { path: string; source: string }[] };
    };
    expect(error.name).toBe("configInvalid");
    expect(error.problems.map(({ path, source }) => `${path} ${source}`)).toEqual([
      `dram.lowWatermak ${bad}:2`,
      `log.level ${bad}:3`,
      "CAIRN_NODE_NAM environment",
    ]);
    expect(answer.stderr).toContain("cairn config check");
  });

  test("what show prints is a cairn.yaml that gives the same configuration", async () => {
    const shown = await cairn(["config", "show", "--log.level", "warn"]);
    expect(parseYaml(shown.stdout)).toMatchObject({ log: { level: "warn" } });
    const copy = join(directory, "copy.yaml");
    writeFileSync(copy, shown.stdout);
    const again = await cairn(["config", "show", "--config", copy]);
    expect(parseYaml(again.stdout)).toEqual(parseYaml(shown.stdout));
  });

  test("a boolean flag stands alone or takes =false, and never eats the next word", async () => {
    const on = await cairn(["config", "show", "--dram.keepOnStop", "--json"]);
    expect(on.json()).toMatchObject({ config: { dram: { keepOnStop: true } } });
    const off = await cairn(["config", "show", "--dram.keepOnStop=false", "--json"]);
    expect(off.json()).toMatchObject({ config: { dram: { keepOnStop: false } } });
  });

  test("the daemon refuses a bad configuration before it opens anything", async () => {
    const answer = await cairn(["daemon", "--edge.listen", "0.0.0.0:7411", "--json"]);
    expect(answer.code).toBe(2);
    expect(answer.json()).toMatchObject({ error: { name: "configInvalid" } });
    expect(existsSync(join(directory, "pool"))).toBe(false);
  });
});

describe("cairn status and top", () => {
  test("status shows tiers, hit rate, orphans, unproven namespaces and pins per engine", async () => {
    const { code, stdout } = await cairn(["status", "--edge", socket]);
    expect(code).toBe(0);
    for (const words of [
      "node-a",
      "serving",
      "50.0 %",
      "40.0 % since start",
      "orphans 4",
      "engine-1",
      "256 B",
    ])
      expect(stdout).toContain(words);
    expect(stdout).toMatch(new RegExp(`^${"ab".repeat(16)}  m +default +\\d+$`, "m"));
    expect(stdout).toContain(`${"ab".repeat(16)} (m) must be proven by engine-1`);
    const { stats, tiers } = (await cairn(["status", "--edge", socket, "--json"])).json();
    expect(stats).toMatchObject({ node: "node-a", hitRate: 0.4, gauges: { orphans: 4 } });
    expect(tiers).toMatchObject([{ tier: "dram", usedBytes: 512 }]);
  });

  test("status shows each disk with state, mode, wear and life, and the remote store", async () => {
    feed.observe(METRIC.nvmeReadSeconds, 0.003);
    feed.observe(METRIC.nvmeCommitSeconds, 0.04);
    feed.set(METRIC.nvmeLeftOut, 2);
    const { stdout } = await cairn(["status", "--edge", socket]);
    expect(stdout).toMatch(
      /disk reads p50 [\d.]+ ms, p99 [\d.]+ ms {2}writes idle {2}written to durable p50 [\d.]+ ms/,
    );
    const disk = stdout.split("\n").find((line) => line.startsWith("/mnt/a")) ?? "";
    expect(disk).toMatch(
      /slow, preparing 1 +uring, direct +1 KiB \(25\.0 %\).* 6\/7 +8 +12 B of 13 B +365 days/,
    );
    const store = "remote  read-only  directory /mnt/shared  last fault: timeout: no answer";
    expect(stdout).toContain(store);
    expect(stdout).toContain("chunks to store 21");
    expect(stdout).toContain("left out, since they could not be opened (see the log): 2");
    expect(stdout).toContain("30 disk errors");
    const { stdout: line } = await cairn(["top", "--edge", socket, "--count", "1"]);
    expect(line).toContain("/mnt/a slow");
    expect(line).toContain("disks left out 2  remote read-only");
    expect(line).toMatch(/disk read p99 [\d.]+ ms/);
  });

  test("top prints plain lines where there is no terminal, and objects with --json", async () => {
    const plain = await cairn(["top", "--edge", socket, "--interval", "0.2", "--count", "2"]);
    expect(plain.code).toBe(0);
    const lines = plain.stdout.trimEnd().split("\n");
    expect(lines).toHaveLength(2);
    for (const line of lines) expect(line).toMatch(/dram █████░░░░░ 50\.0 % of 1 KiB .*engines 0/);
    expect(plain.stdout).not.toContain("\u001b");
    const json = await cairn(["top", "--edge", socket, "--count", "1", "--json"]);
    expect(json.json()).toMatchObject({ stats: { node: "node-a" } });
  });

  test("on a terminal top draws one screen and gives the terminal back; TERM=dumb gets lines", async () => {
    const words = `stty rows 50 cols 150; ${process.execPath} ${CAIRN.join(" ")} top --edge ${socket} --count 1`;
    // `script` gives the command a terminal of its own.
    const typescript = async (term: string): Promise<string> => {
      const child = spawn("script", ["-qec", words, "/dev/null"], {
        cwd: ROOT,
        env: { ...environment, TERM: term },
        stdio: ["ignore", "pipe", "pipe"],
      });
      return (await finished(child)).stdout;
    };
    const screen = await typescript("xterm");
    expect(screen).toContain("\u001b[?1049h");
    expect(screen).toMatch(/onboarded  ▁[^▁]*offloaded  ▁/);
    expect(screen.trimEnd().endsWith("\u001b[?1049l")).toBe(true);
    expect(await typescript("dumb")).not.toContain("\u001b[?1049h");
  });
});

describe("cairn purge", () => {
  test("it lists without --yes, refuses while the pool is locked, deletes when it is free", async () => {
    const pool = join(directory, "purge");
    execFileSync("mkdir", [pool]);
    const path = poolFile(pool);
    writeFileSync(path, "x".repeat(100));
    const words = ["purge", "--dram.directory", pool, "--json"];
    const asked = await cairn(words);
    expect(asked).toMatchObject({ code: 2 });
    expect(existsSync(path)).toBe(true);
    const holder = spawn("flock", ["-n", path, "sh", "-c", "echo held; read _"], {
      stdio: ["pipe", "pipe", "ignore"],
    });
    await new Promise((resolve) => holder.stdout.once("data", resolve));
    const refused = await cairn([...words, "--yes"]);
    expect(refused.code).toBe(1);
    expect(refused.json()).toMatchObject({ error: { name: "directoryLocked" } });
    expect(existsSync(path)).toBe(true);
    holder.stdin.end();
    await new Promise((resolve) => holder.once("close", resolve));
    const done = await cairn([...words, "--yes"]);
    expect(done.json()).toEqual({ directory: pool, deleted: [path], kept: [], bytes: 100 });
    expect(existsSync(path)).toBe(false);
    expect((await cairn([...words, "--yes"])).json()).toMatchObject({ deleted: [] });
  });
});

describe("cairn purge and the disks", () => {
  test("blocks on disks stay unless --nvme asks for them, and files that are not ours always stay", async () => {
    const disk = join(directory, "disk");
    mkdirSync(join(disk, "index"), { recursive: true });
    const ours = ["directory.cairn", "segment-000000.cairn", "namespaces.json", "index/data.mdb"];
    for (const name of [...ours, "notes.txt"]) writeFileSync(join(disk, name), "x");
    const words = ["purge", "--yes", "--nvme.directories", `[{path: ${disk}}]`, "--json"];
    const lock = join(disk, "directory.cairn");
    expect((await cairn(words)).json()).toMatchObject({ deleted: [], kept: [lock] });
    expect(existsSync(join(disk, "segment-000000.cairn"))).toBe(true);
    const holder = spawn("flock", ["-n", lock, "sh", "-c", "echo held; read _"], {
      stdio: ["pipe", "pipe", "ignore"],
    });
    await new Promise((resolve) => holder.stdout.once("data", resolve));
    const refused = await cairn([...words, "--nvme"]);
    expect(refused.json()).toMatchObject({ error: { name: "directoryLocked" } });
    expect(readdirSync(disk)).toHaveLength(5);
    holder.stdin.end();
    await new Promise((resolve) => holder.once("close", resolve));
    expect((await cairn([...words, "--nvme"])).json()).toMatchObject({ deleted: [lock] });
    expect(readdirSync(disk)).toEqual(["notes.txt"]);
  });
});

describe("cairn doctor and the lower tiers", () => {
  const segmentBytes = 2 ** 20;
  const entry = { capacityBytes: "auto" as const, writeBudgetBytesPerDay: 0, ratedWriteBytes: 0 };

  test("a directory is judged by file system, O_DIRECT, room and owner, and each fault has its fix", () => {
    const disk = mkdtempSync(join(directory, "doctor-"));
    const found = nvmeCheck({ ...entry, path: disk }, segmentBytes);
    expect(found.found).toMatch(/ on \w+.*, (O_DIRECT works|no O_DIRECT \(.+\)), .+ free of /);
    expect(readdirSync(disk)).toEqual([]);
    expect(nvmeCheck({ ...entry, path: join(disk, "new", "one") }, segmentBytes).status).toBe(
      found.status,
    );
    const large = { ...entry, path: disk, capacityBytes: 2 ** 50 };
    expect(nvmeCheck(large, segmentBytes)).toMatchObject({ status: "warn" });
    expect(nvmeCheck(large, segmentBytes).fix).toContain("capacityBytes");
    chmodSync(disk, 0o755);
    expect(nvmeCheck({ ...entry, path: disk }, segmentBytes)).toMatchObject({
      status: "fail",
      fix: `chmod 700 ${disk}`,
    });
    writeFileSync(join(directory, "plain"), "");
    const plain = nvmeCheck({ ...entry, path: join(directory, "plain") }, segmentBytes);
    expect(plain).toMatchObject({ status: "fail" });
  });

  test("memory is no disk, and doctor says so", () => {
    const memory = mkdtempSync("/dev/shm/cairn-doctor-");
    const found = nvmeCheck({ ...entry, path: memory }, segmentBytes);
    rmSync(memory, { recursive: true });
    expect(found).toMatchObject({ status: "warn" });
    expect(found.found).toContain("tmpfs");
  });

  test("staging memory must fit under the limit of locked memory, unless root runs the daemon", () => {
    const limits =
      "Max locked memory         8388608              8388608              bytes     \n";
    const nvme = { ...defaultConfig().nvme, directories: [{ path: "/a" }, { path: "/b" }] };
    expect(registeredCheck({ nvme }, limits, false)).toMatchObject({ status: "warn" });
    expect(registeredCheck({ nvme }, limits, false).found).toContain("128 MiB");
    expect(registeredCheck({ nvme }, limits, true)).toMatchObject({ status: "ok", fix: null });
    const none = "Max locked memory         unlimited            unlimited            bytes     \n";
    expect(registeredCheck({ nvme }, none, false)).toMatchObject({ status: "ok", fix: null });
  });

  test("checks of the lower tiers appear when the configuration enables them", () => {
    const config = defaultConfig();
    expect(lowerChecks(config)).toEqual([]);
    const disk = mkdtempSync(join(directory, "doctor-"));
    const nvme = { ...config.nvme, enabled: true, directories: [{ path: disk }] };
    const remote = { ...config.remote, enabled: true, directory: join(disk, "none") };
    const found = lowerChecks({ ...config, nvme, remote });
    expect(found.map(({ check }) => check)).toEqual(["nvme", "nvme memlock", "remote"]);
    expect(found.at(-1)).toMatchObject({ status: "fail" });
  });

  test("a shared directory that takes no files is told from one that does", () => {
    const config = defaultConfig();
    const checked = (path: string) => {
      return lowerChecks({
        ...config,
        remote: { ...config.remote, enabled: true, directory: path },
      });
    };
    const shared = mkdtempSync(join(directory, "doctor-"));
    expect(checked(shared)).toMatchObject([{ check: "remote", status: "ok", fix: null }]);
    expect(readdirSync(shared)).toEqual([]);
    // Nobody makes files there, not even root.
    const [found] = checked("/proc/self");
    expect(found).toMatchObject({ status: "warn" });
    expect(found?.found).toMatch(/takes no files \(E[A-Z]+\)/);
  });
});

describe("cairn doctor", () => {
  test("every finding has a status and a source, and what is wrong has a fix", async () => {
    const answer = await cairn(["doctor", "--json"]);
    const { findings, healthy } = answer.json() as {
      healthy: boolean;
      findings: {
        check: string;
        status: string;
        found: string;
        fix: string | null;
        source: string;
      }[];
    };
    expect(answer.code).toBe(healthy ? 0 : 1);
    const checks = findings.map(({ check }) => check);
    for (const check of [
      "node",
      "addon",
      "memory",
      "tmpfs",
      "huge pages",
      "memlock",
      "NUMA",
      "io_uring",
      "CUDA",
      "NVML",
      "NIXL",
    ])
      expect(checks).toContain(check);
    for (const { check, status, source, found, fix } of findings) {
      expect(["ok", "absent", "warn", "fail"], check).toContain(status);
      expect(`${source}${found}`, check).not.toBe("");
      if (status === "fail") expect(fix, check).not.toBeNull();
    }
  });

  test("a library that crashes the probe is a finding, not a crash of doctor", async () => {
    expect(await runProbe("crash")).toEqual({ kind: "crashed", how: "SIGSEGV" });
  });

  test("a probe that does not end in time is killed and told", async () => {
    expect(await runProbe("numa", 1)).toEqual({ kind: "crashed", how: "SIGKILL" });
  });

  test("the kernel's files are read as the kernel writes them", () => {
    const meminfo = "MemTotal:  100 kB\nHugePages_Total:       3\nHugepagesize:    2048 kB\n";
    expect(meminfoValue(meminfo, "MemTotal")).toBe(102_400);
    expect(meminfoValue(meminfo, "HugePages_Total")).toBe(3);
    expect(meminfoValue(meminfo, "None")).toBeUndefined();
    const limits =
      "Limit                     Soft Limit           Hard Limit           Units     \n" +
      "Max open files            1024                 4096                 files     \n" +
      "Max locked memory         unlimited            unlimited            bytes     \n";
    expect(limitValue(limits, "Max open files")).toBe(1_024);
    expect(limitValue(limits, "Max locked memory")).toBe(Number.POSITIVE_INFINITY);
    expect(chosen("always within_size [advise] never deny force")).toBe("advise");
  });

  test("libraries are looked for in LD_LIBRARY_PATH first", () => {
    writeFileSync(join(directory, "libcuda.so.1"), "");
    const found = libraryPath("libcuda.so.1", { LD_LIBRARY_PATH: `/none:${directory}` });
    expect(found).toBe(join(directory, "libcuda.so.1"));
    expect(libraryPath("libnone.so", {})).toBeUndefined();
  });
});

describe("words and bars", () => {
  test("figures read as people write them", () => {
    expect(percent(null)).toBe("–");
    expect(percent(0.1234)).toBe("12.3 %");
    expect(rate(1.25e9)).toBe("1.25 GB/s");
    expect(duration(3 * 86_400 + 7_300)).toBe("3 d 2 h");
    expect(duration(59)).toBe("59 s");
    expect(bar(2, 4)).toBe("████");
    expect(spark([0, null, 1], 1)).toBe("▁ █");
    expect(table(["a", "b"], [["xx", "1"]], [1])).toBe("a   b\nxx  1");
  });
});

describe("cairn verify-engine", () => {
  test("names an unknown dtype, a Python that cannot be run and modules that it lacks", async () => {
    const dtype = await cairn(["verify-engine", "vllm", "--dtype", "float8"]);
    expect([dtype.code, dtype.stderr]).toEqual([
      2,
      expect.stringContaining("--dtype takes one of: float32, bfloat16"),
    ]);
    const absent = await cairn(["verify-engine", "vllm", "--python", "/absent/python"]);
    expect([absent.code, absent.stderr]).toEqual([
      2,
      expect.stringContaining("--python /absent/python cannot be run"),
    ]);
    const python = join(directory, "python");
    writeFileSync(python, '#!/bin/sh\nexec python3 -I -S "$@"\n', { mode: 0o755 });
    const bare = await cairn(["verify-engine", "vllm", "--python", python]);
    expect([bare.code, bare.stderr]).toEqual([2, expect.stringContaining("lacks msgspec, vllm")]);
  });
});
