/** A daemon that starts among the variables of the program it replaces. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { type Settings, TestDaemon } from "../harness/daemon.ts";
import { eventually } from "../harness/eventually.ts";

const MIB = 2 ** 20;

interface Line {
  readonly level: number;
  readonly msg: string;
  readonly variable?: string;
}

/** pino's number of a warning. */
const WARN = 40;

const warningsOf = (daemon: TestDaemon): readonly Line[] =>
  daemon
    .log()
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as Line)
    .filter(({ level, variable }) => level === WARN && variable !== undefined);

/** The daemon's settings without a size of the pool. */
function sizeless(daemon: TestDaemon, more: Settings = {}): string {
  const { dram, ...rest } = daemon.settings;
  const { capacityBytes: _, ...pool } = dram as Settings;
  const log = { level: "info" };
  return JSON.stringify({ ...rest, log, nvme: { segmentBytes: MIB }, dram: pool, ...more });
}

async function capacityOf(daemon: TestDaemon, tier: string): Promise<number> {
  return daemon.metric("tierCapacityBytes", tier);
}

describe("a daemon among variables of Dynamo KVBM", () => {
  let daemon: TestDaemon;
  afterEach(() => daemon.remove());

  it("takes their sizes and directory, says so once for each, keeps them at a reload, and yields to its file", async () => {
    daemon = new TestDaemon();
    const disk = join(daemon.directory, "kvbm");
    mkdirSync(disk);
    writeFileSync(join(disk, "theirs"), "x");
    daemon.environment = {
      DYN_KVBM_CPU_CACHE_GB: "0.02",
      DYN_KVBM_DISK_CACHE_GB: "0.05",
      DYN_KVBM_DISK_CACHE_DIR: disk,
      DYN_KVBM_METRICS: "true",
      DYN_KVBM_LEADER_ZMQ_PUB_PORT: "many",
    };
    daemon.writeConfig(sizeless(daemon));
    daemon.spawn();
    await daemon.serves();
    expect(await capacityOf(daemon, "dram")).toBe(19 * MIB);
    expect(await capacityOf(daemon, "nvme")).toBeGreaterThan(0);
    const warnings = warningsOf(daemon);
    expect(warnings.map(({ variable }) => String(variable)).toSorted()).toEqual(
      Object.keys(daemon.environment).toSorted(),
    );
    const taken = warnings.filter(({ msg }) => msg.startsWith("taken over: "));
    expect(taken).toHaveLength(3);

    daemon.signal("SIGHUP");
    await eventually("the reload is told", () => daemon.log().includes("reloaded"));
    expect(await capacityOf(daemon, "dram")).toBe(19 * MIB);
    expect(warningsOf(daemon)).toHaveLength(warnings.length);

    daemon.writeConfig(
      sizeless(daemon, {
        dram: { ...(daemon.settings["dram"] as Settings), capacityBytes: 32 * MIB },
      }),
    );
    daemon.signal("SIGHUP");
    await eventually(
      "the file's size is in force",
      async () => (await capacityOf(daemon, "dram")) === 32 * MIB,
    );
    expect((await daemon.stop()).code).toBe(0);
  });

  it("starts although none of them can be used", async () => {
    daemon = new TestDaemon();
    daemon.environment = {
      DYN_KVBM_CPU_CACHE_GB: "lots",
      DYN_KVBM_DISK_CACHE_GB: "8",
      DYN_KVBM_DISK_CACHE_DIR: "/proc/nowhere",
      LMCACHE_CONFIG_FILE: join(daemon.directory, "gone.yaml"),
      LMCACHE_REMOTE_URL: "redis://user:s3cr3t@host:6379",
    };
    await daemon.launch();
    expect(warningsOf(daemon).every(({ msg }) => msg.startsWith("ignored: "))).toBe(true);
    expect(new Set(warningsOf(daemon).map(({ variable }) => variable))).toEqual(
      new Set(Object.keys(daemon.environment)),
    );
    expect(daemon.log()).not.toContain("s3cr3t");
  });
});
